import copy
from functools import partial

import pytest
import torch
from cases import batch, masked, mlp
from torch import nn, optim
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from mmstudy.batched import costs
from mmstudy.batched.ensemble import classification
from mmstudy.ranking import together
from mmstudy.ranking import training as tr
from mmstudy.ranking.training import Training

STEPS = 30
DATA = [batch(8, seed) for seed in range(5)]
OPTIMIZERS = {
    kind.__name__: partial(kind, lr=rate)
    for kind, rate in zip(together.ELEMENTWISE, (0.1, *[1e-2] * 7, 1.0), strict=True)
} | {"momentum": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2)}
SCHEDULES = {
    "warm": lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 10)),
    "cycle": lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=STEPS),
}


def dropping(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 4))


def normalizing(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 4))
    network[3].requires_grad_(False)
    return network


def begun(how: Training, make=mlp, count: int = 3) -> list[tr.Run]:
    networks = [make(seed=seed) for seed in range(count)]
    return [tr.begun(n, how.optimizer([p for p in n.parameters() if p.requires_grad]), how) for n in networks]


def close(first: tr.Run, second: tr.Run, rtol: float = 1e-3) -> None:
    """The same state of networks, optimizers and schedules, but for rounding."""
    assert first.losses == pytest.approx(second.losses, rel=rtol)
    for name, value in first.network.state_dict().items():
        torch.testing.assert_close(value, second.network.state_dict()[name], rtol=rtol, atol=1e-5)
    one, other = (run.optimizer.state_dict() for run in (first, second))
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for i, state in one["state"].items():
        torch.testing.assert_close(state, other["state"][i], rtol=10 * rtol, atol=1e-5)
    if first.schedule:
        told = [{k: v for k, v in run.schedule.state_dict().items() if k != "_is_initial"} for run in (first, second)]
        assert told[0] == told[1]


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_together_each_becomes_what_it_would_alone(optimizer, schedule, tmp_path):
    if schedule == "cycle" and optimizer in ("Adagrad", "Adadelta", "SGD"):
        pytest.skip("has no momentum to cycle")
    how = Training(classification, DATA, OPTIMIZERS[optimizer], SCHEDULES.get(schedule), clip=0.5)
    runs, others = begun(how), begun(how)
    assert together.fit([run.network for run in runs], [run.optimizer for run in runs], DATA[0], classification)
    tr.advance(runs, how, STEPS, tmp_path / "together.pt")
    for run, other in zip(runs, others, strict=True):
        tr.advance([other], how, STEPS, tmp_path / "alone.pt")
        close(run, other)
    assert runs[0].losses != runs[1].losses


def test_statistics_follow_and_frozen_parameters_stay(tmp_path):
    how = Training(classification, DATA, OPTIMIZERS["momentum"], accumulate=2)  # Adam would scale the rounding up
    runs, others = begun(how, normalizing), begun(how, normalizing)
    tr.advance(runs, how, STEPS, tmp_path / "together.pt")
    for run, other in zip(runs, others, strict=True):
        tr.advance([other], how, STEPS, tmp_path / "alone.pt")
        close(run, other)


def test_one_that_was_trained_with_others_goes_on_alone(tmp_path):
    how = Training(classification, DATA, OPTIMIZERS["AdamW"], SCHEDULES["warm"])
    runs, others = begun(how), begun(how)
    tr.advance(runs, how, 15, tmp_path / "together.pt")
    alone = begun(how)[1]
    tr.resume([alone], tmp_path / "together.pt", slice(1, 2))
    tr.advance([alone], how, STEPS, tmp_path / "alone.pt")
    tr.advance([others[1]], how, STEPS, tmp_path / "other.pt")
    close(alone, others[1])


@pytest.mark.parametrize("make", [mlp, dropping])
def test_with_pauses_it_is_the_same_to_the_last_bit(make, tmp_path):
    how = Training(classification, DATA, OPTIMIZERS["AdamW"], SCHEDULES["warm"])
    once = begun(how, make)
    tr.advance(once, how, 60, tmp_path / "once.pt")
    for steps in (1, 25, 59, 60):
        again = begun(how, make)
        tr.resume(again, tmp_path / "paused.pt")
        torch.manual_seed(steps)  # what others draw meanwhile
        tr.advance(again, how, steps, tmp_path / "paused.pt")
    for one, other in zip(once, again, strict=True):
        assert one.losses == other.losses
        for name, value in one.network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[name])


def test_one_that_diverges_leaves_the_others_alone(tmp_path):
    how = Training(classification, DATA, OPTIMIZERS["momentum"], clip=1.0)
    runs, others = begun(how), begun(how)
    with torch.no_grad():
        for run in (runs[1], others[1]):
            next(run.network.parameters()).fill_(1e38)
    tr.advance(runs, how, STEPS, tmp_path / "together.pt")
    assert [run.diverged for run in runs] == [False, True, False]
    for i in (0, 2):
        tr.advance([others[i]], how, STEPS, tmp_path / "alone.pt")
        close(runs[i], others[i])


def test_networks_that_drop_units_may_train_together():
    networks = [dropping(seed) for seed in range(3)]
    assert together.fit(networks, [optim.Adam(n.parameters()) for n in networks], DATA[0], classification)


class Counting(nn.Module):
    """Adds how often it was called: alone, each network counts its own calls."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.inner, self.calls = mlp(seed=seed), 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x) * self.calls


class Idle(nn.Module):
    """Has a layer that nothing reads: alone, no optimizer touches it."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.inner, self.idle = mlp(seed=seed), nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x)


class Choosing(nn.Module):
    """Branches on its own numbers."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.inner = mlp(seed=seed)

    def forward(self, x):
        found = self.inner(x)
        return found if found.sum() > 0 else -found


class Own(optim.SGD):
    """An optimizer that nobody here knows."""


def sgd(network: nn.Module, rate: float = 0.1) -> optim.Optimizer:
    return optim.SGD(network.parameters(), rate)


def watched(seed: int = 0) -> nn.Module:
    network = mlp(seed=seed)
    network.head.register_full_backward_hook(lambda module, given, slopes: None)
    return network


UNFIT = {
    "a hook on a gradient": (masked, sgd),
    "a hook on a module's gradients": (watched, sgd),
    "another shape": (lambda seed: mlp((6 + seed, 4)), sgd),
    "an optimizer that takes the whole": (mlp, lambda network: optim.LBFGS(network.parameters())),
    "an unknown optimizer": (mlp, lambda network: Own(network.parameters(), 0.1)),
    "no optimizer": (mlp, lambda network: None),
    "a parameter without a gradient": (Idle, sgd),
    "a choice by numbers": (Choosing, sgd),
    "numbers that calls change": (Counting, sgd),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_known_to_be_right_trains_alone(case):
    make, optimizer = UNFIT[case]
    networks = [make(seed=seed) for seed in range(2)]
    assert not together.fit(networks, [optimizer(n) for n in networks], DATA[0], classification)


def test_optimizers_of_other_options_or_states_are_not_one():
    networks = [mlp(seed=seed) for seed in range(2)]
    assert not together.fit(
        networks, [sgd(n, rate) for n, rate in zip(networks, (0.1, 0.2), strict=True)], DATA[0], classification
    )
    optimizers = [optim.Adam(n.parameters()) for n in networks]
    classification(networks[0], DATA[0]).backward()
    optimizers[0].step()
    assert not together.fit(networks, optimizers, DATA[0], classification)


def test_a_loss_that_looks_at_the_module_trains_alone():
    def loss(model, some):
        found = F.cross_entropy(model(some[0]), some[1])
        return found + sum(p.square().sum() for p in model.parameters()) if isinstance(model, nn.Module) else found

    networks = [mlp(seed=seed) for seed in range(2)]
    assert not together.fit(networks, [sgd(n) for n in networks], DATA[0], loss)


def test_large_networks_train_alone(monkeypatch):
    networks = [mlp(seed=seed) for seed in range(2)]
    optimizers = [sgd(n) for n in networks]
    assert together.fit(networks, optimizers, DATA[0], classification)
    monkeypatch.setattr(costs, "LARGE_CALL", 0)
    assert not together.fit(networks, optimizers, DATA[0], classification)


def test_asking_changes_nothing():
    networks = [normalizing(seed) for seed in range(2)]
    optimizers = [optim.AdamW([p for p in n.parameters() if p.requires_grad]) for n in networks]
    before = [copy.deepcopy(n.state_dict()) for n in networks]
    state = torch.get_rng_state()
    together.fit(networks, optimizers, DATA[0], classification)
    assert torch.equal(state, torch.get_rng_state())
    for network, old in zip(networks, before, strict=True):
        assert all(torch.equal(old[name], value) for name, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
