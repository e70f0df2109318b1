from dataclasses import asdict, replace

import pytest
import torch
from cases import TASK, TINY

from mmstudy.core.tasks import load
from mmstudy.study.draws import minibatch_order, probe_split
from mmstudy.study.protocol import Protocol


def test_networks_are_looked_at_after_shares_of_the_training():
    assert TINY.marks == (0, 10, 40)
    assert Protocol().marks == (0, 40, 100, 200, 400, 1000, 2000)


def test_costs_are_those_counted_by_hand():
    """Five hundred training and sixty validation examples; a pass is one, a training step three, a product six."""
    protocol = Protocol(
        steps=1000, batch=8, progress=(0.0, 1.0), short=0.2, children=5, child_steps=7, probe_examples=30,
        random_rays=3, traces=2, doublings=4,
    )  # fmt: skip
    assert protocol.full_cost == 3 * 8 * 1000
    assert protocol.costs(500, 60) == {
        "children": 3 * 8 * 7 * 5,
        "children's predictions": 30 * 5,
        "children's validation predictions": 60 * 5,
        "centre": 30,
        "centre's validation predictions": 60,
        "children's rays": 30 * 5 * 10,  # places × (± children)
        "snapshots' rays": 30 * 5 * 10,
        "random rays": 30 * 5 * 3,
        "gradient rays": 3 * 30 + 30 * 5 * 2,
        "training loss": 500,
        "hessian products": 6 * 2 * 30,
        "validation": 60,
        "short run": 3 * 8 * 200,
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": 1}, "≥ 2 seeds and ≥ 3 children; got 1 and 3"),
        ({"children": 2}, "≥ 2 seeds and ≥ 3 children; got 2 and 2"),
        ({"progress": (0.25, 1.0)}, r"from 0 to 1, both included; got \(0\.25, 1\.0\)"),
        ({"progress": (0.0, 0.25)}, "from 0 to 1, both included"),
        ({"progress": (0.0, 0.5, 0.25, 1.0)}, "from 0 to 1, both included"),
        ({"progress": (0.0, 1.0, 2.0)}, "from 0 to 1, both included"),
        ({"progress": ()}, "from 0 to 1, both included"),
        ({"progress": (0.0, 0.05, 1.0)}, "progress must be 3 steps or more"),
        ({"short": 0.05}, "progress must be 3 steps or more"),
        ({"short": 1.0}, "short runs and progress"),
        ({"progress": (0.0, float("nan"), 1.0)}, "a share of the training must be a finite number"),
        ({"step_size": float("nan")}, "step_size must be a finite number > 0; got nan"),
        ({"step_size": float("inf")}, "step_size must be a finite number > 0; got inf"),
        ({"margin": float("nan")}, "margin must be a finite number > 0; got nan"),
        ({"margin": -1.0}, "margin must be a finite number > 0; got -1.0"),
        ({"momentum": 2}, r"momentum must lie in \[0, 1\); got 2"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"child_steps": 0}, "child_steps must be at least 1; got 0"),
        ({"probe_examples": 0}, "probe_examples must be at least 1; got 0"),
        ({"bins": 7}, "steps = 40 is no multiple of bins = 7"),
        ({"estimators": ("raze",)}, r"unknown estimators \['raze'\]; known: .*children"),
    ],
)
def test_what_cannot_be_done_is_refused_by_value(wrong, said):
    with pytest.raises(ValueError, match=said):
        Protocol(**asdict(TINY) | wrong)


def test_every_name_has_a_minibatch_order_of_its_own_and_epochs_are_permutations():
    data = load(TASK)
    first, second = minibatch_order(TASK, data, TINY, ["one", "two"], 30)
    assert first.shape == (30, 16)
    assert not torch.equal(first, second)
    (alone,) = minibatch_order(TASK, data, TINY, ["two"], 20)
    assert torch.equal(alone, second[:20]), "a shorter run sees the same minibatches"
    (other,) = minibatch_order(replace(TASK, seed=1), data, TINY, ["two"], 20)
    assert not torch.equal(alone, other)
    epoch = first[:12].flatten()  # 12 × 16 of 200 examples
    assert len(epoch.unique()) == 192


def test_rays_look_at_the_same_training_examples_of_a_task():
    data = load(TASK)
    split = probe_split(TASK, data, TINY)
    rows = {tuple(row.tolist()) for row in data.training.inputs}
    assert len({tuple(row.tolist()) for row in split.inputs} & rows) == 40
    assert torch.equal(probe_split(TASK, data, TINY).inputs, split.inputs)
    more = probe_split(TASK, data, replace(TINY, probe_examples=500))
    assert len(more.targets) == 200, "all there are"
    assert torch.equal(more.inputs[:40], split.inputs)
