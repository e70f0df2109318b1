"""Whatever can change between two calls is noticed: each case gave wrong numbers once, replayed or not must agree."""

import enum
import functools
import os
import sys
import threading
from collections import UserDict
from datetime import datetime
from secrets import randbelow
from time import perf_counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from cases import batch, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mmstudy.batched import ensemble as en
from mmstudy.batched import replay
from mmstudy.batched.objective import of_networks
from mmstudy.batched.replay import recorded
from mmstudy.batched.watch import Opaque, watch
from mmstudy.core.seeds import generator

STEPS = 3 * replay.AFTER


def examples(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    random = generator("watched", seed)
    return torch.randn(size, 5, generator=random), torch.randint(3, (size,), generator=random)


def by_numpy(model, batch) -> Tensor:
    """The hardest examples, chosen by numpy."""
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return each[torch.as_tensor(each.detach().numpy().argsort()[-4:].copy())].mean()


def by_tolist(model, batch) -> Tensor:
    """Each example's first numbers, as many as its target says: lengths of sequences."""
    outputs = model(batch[0])
    return sum(row[: length + 1].square().sum() for row, length in zip(outputs, batch[1].tolist(), strict=True)) / 12


def by_key(model, batch) -> Tensor:
    """The hardest examples, chosen by Python's sort."""
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return torch.stack(sorted(each, key=lambda loss: -loss)[:4]).mean()


@pytest.mark.parametrize("loss_fn", [by_numpy, by_tolist, by_key])
@pytest.mark.parametrize("what", ["losses", "gradients"])
def test_a_loss_that_reads_numbers_out_is_called_every_time(loss_fn, what):
    network = nn.Linear(5, 3)

    def measure(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if what == "losses":
            return (loss_fn(network, (x, y)),)
        with torch.enable_grad():
            return torch.autograd.grad(loss_fn(network, (x, y)), list(network.parameters()))

    again = recorded(measure)
    for seed in range(STEPS):
        data = examples(seed)
        torch.testing.assert_close(again(*data), replay.called(measure, data), rtol=0, atol=0)


class Noticed(nn.Module):
    """A network with state of many kinds."""

    temperature = 5.0  # where a network has none of its own

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.temperature = 1.0
        self.options = {"scales": [1.0, 1.0]}
        self.own = SimpleNamespace(scale=1.0)
        self.register_buffer("mask", torch.ones(3))

    def forward(self, x):
        scale = self.options["scales"][1] * self.own.scale / self.temperature
        return self.linear(x) * self.mask * scale


class Doubled(Noticed):
    """The same network with twice the output."""

    def forward(self, x):
        return 2 * super().forward(x)


class Copying(UserDict):
    """A mapping that shows copies of what it holds."""

    def values(self):
        return list(self.data.values())


class Smoothed:
    """A loss that keeps its smoothing."""

    def __init__(self):
        self.smoothing = 0.0

    def __call__(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=self.smoothing)


SCALE = 1.0


def with_global(model, batch) -> Tensor:
    return SCALE * F.cross_entropy(model(batch[0]), batch[1])


def anneal_global() -> None:
    global SCALE
    SCALE = SCALE + 1.0


class Rate(float):
    """A number with more to it."""


class Named(str):
    """A name with more to it, and no dictionary."""

    __slots__ = ("scale",)


class Schedule(enum.Enum):
    """A choice that keeps a number."""

    LINEAR = "linear"


class Meta(type):
    """A class of classes, whose attributes they have."""

    scale = 1.0


class Switch(metaclass=Meta):
    """A class that keeps nothing itself."""


class Decayed(nn.Module):
    """A network that reads what is trained, and slopes."""

    def __init__(self):
        super().__init__()
        self.linear, self.rate, self.schedule, self.name = nn.Linear(5, 3), Rate(2.0), Schedule.LINEAR, Named("x")
        self.rate.scale = self.schedule.scale = self.name.scale = Meta.scale = 1.0
        self.linear.weight.grad = torch.ones(3, 5)

    def forward(self, x):
        decay = sum(p.square().sum() for p in self.parameters() if p.requires_grad)
        slope = sum(p.grad.sum() for p in self.parameters() if p.grad is not None)
        scale = self.rate.scale * self.schedule.scale * self.name.scale * Switch.scale * self.rate
        return scale * self.linear(x) + decay * slope


CHANGES = {
    "an attribute of a module": lambda net, loss: setattr(net, "temperature", 3.0),
    "a number in a list in a dict": lambda net, loss: net.options["scales"].__setitem__(1, 2.0),
    "an attribute of something that a module keeps": lambda net, loss: setattr(net.own, "scale", 2.0),
    "an attribute gone, and another come": lambda net, loss: setattr(net, "other", vars(net).pop("temperature")),
    "another class": lambda net, loss: setattr(net, "__class__", Doubled),
    "a buffer replaced": lambda net, loss: setattr(net, "mask", torch.tensor([1.0, 0.0, 1.0])),
    "a buffer written to": lambda net, loss: net.mask.mul_(0.5),
    "an attribute of the loss": lambda net, loss: setattr(loss, "smoothing", 0.3),
    "a module replaced": lambda net, loss: setattr(net, "linear", nn.Linear(5, 3)),
    "the mode": lambda net, loss: net.eval(),
    "a hook": lambda net, loss: net.linear.register_forward_hook(lambda module, inputs, output: output * 2),
    "a hook before": lambda net, loss: net.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
    "a method put in its place": lambda net, loss: setattr(net, "forward", lambda x: net.linear(x) * 7),
}

CHANGES_OF_DECAYED = {
    "a parameter frozen": lambda net, loss: net.linear.weight.requires_grad_(False),
    "a gradient replaced": lambda net, loss: setattr(net.linear.weight, "grad", torch.full((3, 5), 2.0)),
    "a gradient written to": lambda net, loss: net.linear.weight.grad.mul_(3),
    "a gradient come": lambda net, loss: setattr(net.linear.bias, "grad", torch.ones(3)),
    "a gradient gone": lambda net, loss: setattr(net.linear.weight, "grad", None),
    "an attribute of a number": lambda net, loss: setattr(net.rate, "scale", 3.0),
    "an attribute of an enum's member": lambda net, loss: setattr(net.schedule, "scale", 3.0),
    "an attribute of a text, in a slot": lambda net, loss: setattr(net.name, "scale", 3.0),
    "an attribute of a metaclass": lambda net, loss: setattr(Meta, "scale", 3.0),
}


@pytest.mark.parametrize("change", [*CHANGES, *CHANGES_OF_DECAYED])
def test_a_change_is_noticed(change):
    network, loss_fn = Noticed() if change in CHANGES else Decayed(), Smoothed()
    function = recorded(lambda x, y: (loss_fn(network, (x, y)),))
    for seed in range(2 * STEPS):
        if seed == STEPS:
            (CHANGES | CHANGES_OF_DECAYED)[change](network, loss_fn)
        data = examples(seed)
        torch.testing.assert_close(function(*data)[0], loss_fn(network, data).detach(), rtol=0, atol=0)


def test_a_global_that_is_annealed_is_noticed():
    network = nn.Linear(5, 3)
    function = recorded(lambda x, y: (with_global(network, (x, y)),))
    for seed in range(3 * STEPS):
        if seed % STEPS == STEPS - 1:
            anneal_global()
        data = examples(seed)
        torch.testing.assert_close(function(*data)[0], with_global(network, data).detach(), rtol=0, atol=0)


variable = os.getenv
SETTINGS = ModuleType("settings_of_a_user")
sys.modules[SETTINGS.__name__] = SETTINGS
TEACHER = nn.Linear(5, 3)


def scaled(factor: float, model, batch) -> Tensor:
    return factor * F.cross_entropy(model(batch[0]), batch[1])


def scale_of(module: ModuleType) -> float:
    return module.scale


def by_import(model, batch) -> Tensor:
    import settings_of_a_user

    return scaled(settings_of_a_user.scale, model, batch)


def by_printing(model, batch) -> Tensor:
    loss = scaled(1.0, model, batch)
    return loss * (1 + str(loss).count("1"))


ELSEWHERE = {
    "a module's attribute": lambda model, batch: scaled(SETTINGS.scale, model, batch),
    "that of a module passed on": lambda model, batch: scaled(scale_of(SETTINGS), model, batch),
    "an import": by_import,
    "the environment": lambda model, batch: scaled(float(os.environ["SCALE_OF_A_TEST"]), model, batch),
    "the environment, under a name of one's own": lambda model, batch: scaled(
        float(variable("SCALE_OF_A_TEST")), model, batch
    ),
    "a clock": lambda model, batch: scaled(1.0 + 0 * perf_counter(), model, batch),
    "a date": lambda model, batch: scaled(1.0 + 0 * datetime.now().microsecond, model, batch),
    "a secret": lambda model, batch: scaled(1.0 + 0 * randbelow(9), model, batch),
    "a printout": by_printing,
    "a teacher of other data": lambda model, batch: (model(batch[0]) - TEACHER(batch[0])).square().mean(),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_lies_elsewhere_is_noticed(name, monkeypatch):
    network, loss_fn = nn.Linear(5, 3), ELSEWHERE[name]
    function = recorded(lambda x, y: (loss_fn(network, (x, y)),))
    for seed in range(3 * STEPS):
        if seed % STEPS == 0:
            SETTINGS.scale = 1.0 + seed
            monkeypatch.setenv("SCALE_OF_A_TEST", str(1.0 + seed))
            TEACHER.weight.data = torch.full((3, 5), 0.1 * seed)
        data = examples(seed)
        torch.testing.assert_close(function(*data)[0], loss_fn(network, data).detach(), rtol=0, atol=0)


def test_a_function_of_torch_that_is_replaced_is_noticed(monkeypatch):
    network = nn.Linear(5, 3)

    def loss_fn(model, batch) -> Tensor:
        return F.mse_loss(nn.functional.softplus(model(batch[0])), torch.ones(len(batch[1]), 3))

    function = recorded(lambda x, y: (loss_fn(network, (x, y)),))
    for seed in range(3 * STEPS):
        if seed == STEPS:
            monkeypatch.setattr(F, "mse_loss", F.l1_loss)
        if seed == 2 * STEPS:
            monkeypatch.setattr(F, "softplus", torch.relu)
        data = examples(seed)
        torch.testing.assert_close(function(*data)[0], loss_fn(network, data).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "clock"),
    [("a clock", r"time\.perf_counter"), ("a date", r"datetime\.datetime"), ("a secret", r"secrets\.randbelow")],
)
def test_a_clock_is_no_constant(name, clock):
    with pytest.raises(Opaque, match=clock):
        watch(ELSEWHERE[name])


@pytest.mark.parametrize("change", CHANGES_OF_DECAYED)
def test_numbers_enums_and_gradients_hinder_no_recording(change):
    network, loss_fn = Decayed(), Smoothed()
    same = watch(functools.partial(loss_fn, network))
    assert same()
    CHANGES_OF_DECAYED[change](network, loss_fn)
    assert not same()


def test_half_precision_of_another_kind_is_its_own_call():
    network = nn.Linear(5, 3)
    function = recorded(lambda x: (network(x),))
    for seed in range(2 * STEPS):
        kind = torch.bfloat16 if seed < STEPS else torch.float16
        with torch.autocast("cpu", kind):
            assert function(examples(seed)[0])[0].dtype == kind


def test_a_hook_that_collects_sees_every_call():
    network, seen = nn.Linear(5, 3), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(float(output.detach().sum())))
    function = recorded(lambda x: (network(x),))
    for seed in range(STEPS):
        function(examples(seed)[0])
    assert len(seen) == STEPS
    assert len(set(seen)) == STEPS


def test_autocast_is_its_own_call():
    network = nn.Linear(5, 3)
    function = recorded(lambda x: (network(x),))
    for seed in range(2 * STEPS):
        x = examples(seed)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=seed < STEPS):
            expected = network(x).detach()
            torch.testing.assert_close(function(x)[0], expected, rtol=0, atol=0)
            assert function(x)[0].dtype == expected.dtype


def test_a_tensor_of_the_module_is_updated_once_per_call():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.average, self.calls = torch.zeros(5), torch.zeros(())

        def forward(self, x):
            self.average.mul_(0.9).add_(0.1 * x.mean(0))
            self.calls += 1
            return x - self.average

    recorded_one, plain = Averaging(), Averaging()
    function = recorded(lambda x: (recorded_one(x),))
    for seed in range(STEPS):
        x = examples(seed)[0]
        torch.testing.assert_close(function(x)[0], plain(x), rtol=0, atol=0)
    assert float(recorded_one.calls) == STEPS
    torch.testing.assert_close(recorded_one.average, plain.average, rtol=0, atol=0)


def test_a_generator_of_the_users_own_goes_on():
    mine, other = (torch.Generator().manual_seed(3) for _ in range(2))
    function = recorded(lambda x: (x + torch.rand(x.shape, generator=mine),))
    for seed in range(STEPS):
        x = examples(seed)[0]
        torch.testing.assert_close(function(x)[0], x + torch.rand(x.shape, generator=other), rtol=0, atol=0)


def test_threads_measure_one_network_in_turn():
    networks, data = [mlp(seed=i) for i in range(4)], batch(60)
    ensemble = en.stack(networks)
    here, origin = of_networks(ensemble, data), en.vectors(ensemble)
    points = origin[:, None] + 0.1 * torch.randn(4, 40, origin.shape[-1], generator=generator("points")).to(origin)
    expected = here(points)
    found: dict[int, list] = {}

    def work(which: int) -> None:
        found[which] = [here(points) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    for values in found.values():
        torch.testing.assert_close(values, [expected] * 30, rtol=0, atol=0)


def test_the_lists_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(replay, "AFTER", 0)
    taken = []
    take_down = replay.take_down
    monkeypatch.setattr(replay, "take_down", lambda *given: taken.append(len(given[1][0])) or take_down(*given))
    function = recorded(lambda x: (x + 1,))
    sizes = range(1, replay.MOST_SHAPES + 3)
    for size in sizes:
        function(torch.zeros(size))
    assert taken == list(sizes)
    function(torch.zeros(sizes[-1])), function(torch.zeros(1))
    assert taken == [*sizes, 1]  # the last is still known, the first has been dropped


def test_what_changes_again_and_again_is_recorded_no_more(monkeypatch):
    monkeypatch.setattr(replay, "AFTER", 0)
    taken, state = [], SimpleNamespace(scale=1.0)
    take_down = replay.take_down
    monkeypatch.setattr(replay, "take_down", lambda *given: taken.append(1) or take_down(*given))
    function = recorded(lambda x: (x * state.scale,))
    for step in range(40):
        state.scale = float(step)
        torch.testing.assert_close(function(torch.ones(2))[0], torch.full((2,), float(step)))
    assert len(taken) == replay.MOST_CHANGES + 2  # before the first change, and after each


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(replay, "AFTER", 0)
    monkeypatch.setattr(replay, "take_down", lambda *given: pytest.fail("taken down"))
    function = recorded(lambda x: (x + 1,))
    with replay.off():
        for _ in range(3):
            assert function(torch.ones(1))[0] == 2


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: print(x), "print"),
        (lambda x: x * float(variable("SCALE_OF_A_TEST")), r"os\.getenv"),
        (functools.partial(lambda random, x: torch.rand(3, generator=random), torch.Generator()), "Generator"),
        (functools.partial(lambda file, x: file.read(), open(__file__)), "TextIOWrapper"),  # noqa: SIM115
        (functools.partial(lambda scales, x: scales["a"] * x, Copying(a=[2.0])), "Copying"),
    ],
)
def test_what_cannot_be_watched_is_named(function, why):
    with pytest.raises(Opaque, match=why):
        watch(function)
