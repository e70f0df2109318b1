"""One task's trials against plain training by torch's own optimizer, network by network."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import TASK, TINY
from torch import nn
from torch.nn import functional as F

from mmstudy.batched import ensemble as en
from mmstudy.core import networks, results, tasks
from mmstudy.core.datasets import Split
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.study import references, trials
from mmstudy.study.draws import minibatch_order, probe_split
from mmstudy.study.probes import probe

DATA = tasks.load(TASK)
PLACE = "hidden.0 ×2"
GROUP = [(f"{name} {PLACE}", Candidate(name, ("hidden.0",), (8,))) for name in ("net2net", "zero_outgoing", "random")]
SHORT = 10  # steps of a short run


@pytest.fixture(scope="module")
def base():
    return trials.train_base(TASK, DATA, TINY)


@pytest.fixture(scope="module")
def measured(base):
    return trials.measure(trials.Piece(TASK, DATA, base, GROUP, TINY))


def base_network(base):
    network = tasks.base(TASK, DATA)
    nn.utils.vector_to_parameters(torch.tensor(base["base"].values), network.parameters())
    return network


def expanded(base, i=0):
    return GROUP[i][1].expand(base_network(base), DATA.training)


def cosine(steps):
    return lambda step: TINY.step_size * (1 + math.cos(math.pi * step / steps)) / 2


def trained(network, name, steps, step_size):
    """A copy of the network after each step, itself first, and the loss of the minibatch; all by plain torch."""
    network = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=TINY.momentum)
    (order,) = minibatch_order(TASK, DATA, TINY, [name], steps)
    states, losses = [copy.deepcopy(network)], []
    for step, some in enumerate(order):
        optimizer.param_groups[0]["lr"] = step_size(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(DATA.training.inputs[some]), DATA.training.targets[some])
        loss.backward()
        optimizer.step()
        states.append(copy.deepcopy(network))
        losses.append(loss.item())
    return states, losses


def score(network, part):
    with torch.no_grad():
        outputs = network(part.inputs)
    accuracy = (outputs.argmax(1) == part.targets).double().mean().item()
    return accuracy, F.cross_entropy(outputs, part.targets).item()


def best_of(states):
    """The first of those with the best validation accuracy, of four looks evenly spread over the training."""
    steps = len(states) - 1
    looks = [states[round(steps * (i + 1) / 4)] for i in range(4)]
    return max(looks, key=lambda network: score(network, DATA.validation)[0])


def point(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def close(found, expected, **options):
    torch.testing.assert_close(found, expected, **({"rtol": 1e-3, "atol": 1e-5} | options))


STARTS = [initialize(tasks.base(TASK, DATA), generator("start", i)) for i in range(2)]


@pytest.fixture(scope="module")
def run():
    """Two networks, each for two seeds; those of the first seed are watched."""
    return trials.in_full(TASK, DATA, en.stack([n for n in STARTS for _ in range(2)]), TINY, watched=range(0, 4, 2))


@pytest.mark.parametrize(("which", "seed"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_scores_are_those_of_plain_training_last_and_at_the_best_validation(run, which, seed):
    states, _ = trained(STARTS[which], seed, 40, cosine(40))
    for c, network in enumerate((states[-1], best_of(states))):
        accuracy, nll = score(network, DATA.test)
        row = 2 * which + seed
        assert float(run.scores["accuracy"][row, c]) == pytest.approx(accuracy, abs=2.5 / len(DATA.test.targets))
        assert float(run.scores["nll"][row, c]) == pytest.approx(nll, rel=1e-4)


def test_the_best_validation_is_not_always_the_last(run):
    assert (run.scores["nll"][:, 0] != run.scores["nll"][:, 1]).any()


def test_looks_are_the_watched_networks_at_the_marks_with_points_that_they_came_through(run):
    assert len(run.looks) == 3 * 2
    assert run.snapshots.shape[:2] == (6, 3)
    found = en.vectors(run.looks)
    for which in range(2):
        states, losses = trained(STARTS[which], 0, 40, cosine(40))
        close(run.losses[which].double(), torch.tensor(losses).double())
        for m, (mark, before) in enumerate(((0, (0, 0, 0)), (10, (10, 7, 4)), (40, (40, 37, 34)))):
            close(found[2 * m + which], point(states[mark]))
            for s, step in enumerate(before):  # as far apart as children train
                close(run.snapshots[2 * m + which, s], point(states[step]))
    assert torch.equal(found[:2], en.vectors(en.stack(STARTS)))
    assert torch.equal(run.snapshots[:, 0], found)


def test_early_snapshots_are_closer_together():
    assert trials._before(5, TINY) == [5, 4, 3]
    assert trials._before(3, TINY) == [3, 2, 1]


def test_watching_changes_nothing_and_unwatched_networks_leave_no_trace(run):
    plain = trials.in_full(TASK, DATA, en.stack([n for n in STARTS for _ in range(2)]), TINY)
    for name in trials.SCORES:
        assert torch.equal(plain.scores[name], run.scores[name])
    assert plain.losses.shape == (0, 40)
    assert len(plain.looks) == 0


def test_another_number_of_steps_has_a_cosine_of_its_own():
    found = trials.in_full(TASK, DATA, en.stack([STARTS[0]] * 2), TINY, steps=23)
    for seed in range(2):
        states, _ = trained(STARTS[0], seed, 23, cosine(23))
        assert float(found.scores["nll"][seed, 0]) == pytest.approx(score(states[-1], DATA.test)[1], rel=1e-4)
        assert float(found.scores["nll"][seed, 1]) == pytest.approx(score(best_of(states), DATA.test)[1], rel=1e-4)


def test_the_base_is_trained_and_then_trained_on_as_the_control(base):
    states, _ = trained(tasks.base(TASK, DATA), "base", 40, cosine(40))
    close(torch.tensor(base["base"].values), point(states[-1]))
    network, split = base_network(base), probe_split(TASK, DATA, TINY)
    assert base["base_loss"].item() == pytest.approx(score(network, split)[1], rel=1e-5)
    assert base["base_nll"].item() == pytest.approx(score(network, DATA.test)[1], rel=1e-5)
    assert base["base_accuracy"].item() == pytest.approx(score(network, DATA.test)[0], abs=1.5 / len(DATA.test.targets))
    for seed in range(2):
        on, _ = trained(network, seed, 40, cosine(40))
        for c, one in enumerate((on[-1], best_of(on))):
            assert float(base["control_nll"][seed, c]) == pytest.approx(score(one, DATA.test)[1], rel=1e-4)


def test_candidates_are_trained_as_long_as_the_control_or_for_as_many_operations(base, measured):
    inputs = DATA.training.inputs[:1]
    small, large = (networks.count_flops(n, inputs) for n in (base_network(base), expanded(base)))
    steps = round(40 * small / large)
    assert 10 < steps < 30
    assert measured["accuracy"].dims == ("candidate", "seed", "checkpoint", "budget")
    for budget, count in enumerate((40, steps)):
        for seed in range(2):
            states, _ = trained(expanded(base, 1), seed, count, cosine(count))
            for c, one in enumerate((states[-1], best_of(states))):
                found = float(measured["nll"][1, seed, c, budget])
                assert found == pytest.approx(score(one, DATA.test)[1], rel=1e-4)
    assert (measured["flops"] == large).all()
    assert (measured["parameters"] == networks.count_parameters(expanded(base))).all()


def test_references_have_the_shape_of_the_candidates_and_a_start_for_each_seed(base, measured):
    assert measured["candidate"].values.tolist() == [label for label, _ in GROUP] + [
        f"scratch {PLACE}",
        f"shrink_perturb {PLACE}",
    ]
    for name, make in (("scratch", references.from_scratch), ("shrink_perturb", references.shrink_perturb)):
        starts = [make(expanded(base), generator(name, TASK, PLACE, seed)) for seed in range(2)]
        assert not torch.equal(point(starts[0]), point(starts[1]))
        row = measured.sel(candidate=f"{name} {PLACE}")
        for seed in range(2):
            states, _ = trained(starts[seed], seed, 40, cosine(40))
            assert float(row["nll"][seed, 0, 0]) == pytest.approx(score(states[-1], DATA.test)[1], rel=1e-4)
        known = {"accuracy", "nll", "ece", "parameters", "flops"}
        assert all(row[each].isnull().all() for each in measured.data_vars.keys() - known), (
            "they are trained, and no more"
        )


def test_short_runs_are_those_of_plain_training(base, measured):
    network = expanded(base, 2)
    states, losses = trained(network, "short", SHORT, cosine(SHORT))
    row = measured.sel(candidate=GROUP[2][0])
    assert float(row["cosine_loss"]) == pytest.approx(np.mean(losses[-2:]), rel=1e-4)
    assert float(row["cosine_training_loss"]) == pytest.approx(score(states[-1], DATA.training)[1], rel=1e-4)
    accuracy, loss = score(states[-1], DATA.validation)
    assert float(row["cosine_validation_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(row["cosine_validation_accuracy"]) == pytest.approx(accuracy, abs=1.5 / len(DATA.validation.targets))
    _, losses = trained(network, "short", SHORT, lambda step: 2 * TINY.step_size)
    bins = np.reshape(losses[:8], (2, 4)).mean(1)  # of four steps each; two are left over
    np.testing.assert_allclose(row["fast_curve"], bins, rtol=1e-4)


def test_the_curve_is_that_of_the_training_with_the_first_seed(base, measured):
    for i, (label, _) in enumerate(GROUP):
        _, losses = trained(expanded(base, i), 0, 40, cosine(40))
        np.testing.assert_allclose(
            measured["curve"].sel(candidate=label), np.reshape(losses, (10, 4)).mean(1), rtol=1e-3
        )


def test_what_is_measured_on_the_way_is_what_a_probe_of_those_networks_says(base, measured):
    assert measured["progress"].values.tolist() == [0, 0.25, 1]
    level = float(base["base_loss"]) + TINY.margin
    for i, (label, _) in enumerate(GROUP):
        states, _ = trained(expanded(base, i), 0, 40, cosine(40))
        for mark, share, before in ((0, 0.0, (0, 0, 0)), (10, 0.25, (10, 7, 4)), (40, 1.0, (40, 37, 34))):
            snapshots = torch.stack([point(states[step]) for step in before])[None]
            alone = probe(TASK, DATA, en.stack([states[mark]]), snapshots, level, TINY).isel(network=0)
            one = measured.sel(candidate=label, progress=share)
            for name in ("reach", "training_loss", "explorer_loss", "ray_loss", "ray_origin"):
                np.testing.assert_allclose(one[name], alone[name], rtol=5e-3, err_msg=f"{name} {share}")


def test_candidates_measured_together_are_those_measured_alone(base, measured):
    alone = trials.measure(trials.Piece(TASK, DATA, base, GROUP[1:2], TINY)).isel(candidate=0)
    together = measured.sel(candidate=GROUP[1][0])
    for name in alone.data_vars:
        np.testing.assert_allclose(alone[name], together[name], rtol=2e-3, atol=1e-5, err_msg=name)


def test_measurements_see_the_training_and_validation_examples_only(base, measured):
    blind = replace(DATA, test=DATA.test._replace(inputs=DATA.test.inputs * 0))
    unseen = trials.measure(trials.Piece(TASK, blind, base, GROUP, TINY))
    changed = {name for name in measured if not measured[name].equals(unseen[name])}
    assert changed == set(trials.SCORES)


def test_a_diverged_run_is_recorded_not_dropped(base, tmp_path):
    """With its rank among references, and statuses of estimators that were asked for."""
    wild = replace(TINY, step_size=1e38, estimators=("rays",))
    measured = trials.measure(trials.Piece(TASK, DATA, base, GROUP, wild))
    assert measured.sizes["candidate"] == 5
    for name in (*trials.SCORES, "reach", "disagreement", "explorer_loss", "training_loss", "ray_loss", "rays_size"):
        assert measured[name].isnull().all(), name
    assert measured["curve"][:, -1].isnull().all()
    assert measured["rays_size_status"].values.tolist() == [["nan"] * 3] * 3 + [[""] * 3] * 2
    results.write(measured, tmp_path / "m.nc")
    assert results.read(tmp_path / "m.nc").equals(measured)
    with pytest.raises(ValueError, match=r"digits 200, 4-4, seed 0 diverged: step_size=1e\+38"):
        trials.train_base(TASK, DATA, wild)


def test_one_diverged_candidate_leaves_the_others_as_they_are(base, measured, monkeypatch):
    """It is looked at, too: its looks are NaN from then on."""
    grow = Candidate.grow

    def exploding(self, *args, **options):
        found = grow(self, *args, **options)
        if self.operator == "random":
            found.network.head.weight.data *= 1e38
        return found

    monkeypatch.setattr(Candidate, "grow", exploding)
    found = trials.measure(trials.Piece(TASK, DATA, base, GROUP, TINY))
    for name in ("nll", "reach", "ray_loss", "curve"):
        np.testing.assert_allclose(found[name][:2], measured[name][:2], rtol=1e-3, err_msg=name)
    assert found["nll"][2, :, :, 0].isnull().all()
    assert found["ray_loss"][2].isnull().all()


def test_a_label_of_one_word_is_a_place(base):
    found = trials.measure(trials.Piece(TASK, DATA, base, [("mine", GROUP[0][1])], TINY))
    assert found["candidate"].values.tolist() == ["mine", "scratch mine", "shrink_perturb mine"]


def test_the_first_test_examples_judge(base):
    found = trials.train_base(TASK, DATA, replace(TINY, test_examples=31))
    part = Split(DATA.test.inputs[:31], DATA.test.targets[:31])
    close(
        torch.tensor([float(found["base_accuracy"]), float(found["base_nll"])]),
        torch.tensor(score(base_network(base), part)),
    )
    assert found["base_accuracy"] != base["base_accuracy"]


def test_networks_with_running_statistics_are_refused(monkeypatch):
    def normalized(task, data):
        return nn.Sequential(nn.BatchNorm1d(data.training.inputs.shape[1]), nn.Linear(64, 10))

    monkeypatch.setattr(trials, "new_base", normalized)
    with pytest.raises(ValueError, match="running_mean"):
        trials.train_base(TASK, DATA, TINY)


def test_candidates_whose_normalizations_differ_are_measured_apart_with_one_set_of_references():
    task = tasks.Task("digits", (4, 2, 1), 60, family="ViT")
    data, protocol = tasks.load(task), replace(TINY, steps=20, batch=8)
    base = trials.train_base(task, data, protocol)
    names = ("net2net", "zero_incoming", "random")
    group = [(f"{name} embedding ×2", Candidate(name, ("embedding",), (8,))) for name in names]
    network = tasks.base(task, data)
    assert trials.alike([candidate.expand(network, data.training) for _, candidate in group]) == [[0, 2], [1]]
    found = trials.measure(trials.Piece(task, data, base, group, protocol))
    references = [f"{name} embedding ×2" for name in trials.REFERENCES]
    assert found["candidate"].values.tolist() == [label for label, _ in group] + references
    for one in group:
        alone = trials.measure(trials.Piece(task, data, base, [one], protocol)).sel(candidate=one[0])
        together = found.sel(candidate=one[0])
        for name in (*trials.SCORES, "training_loss", "ray_loss"):
            np.testing.assert_allclose(together[name], alone[name], rtol=2e-3, atol=1e-4, err_msg=name)
