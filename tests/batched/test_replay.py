"""A function that is recorded is the function: in what it returns, what it changes, and the dice that it throws."""

import random

import numpy as np
import pytest
import torch
from cases import batch, mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mmstudy.batched import costs, replay, tape, training
from mmstudy.batched import ensemble as en
from mmstudy.batched.replay import recorded, take_down
from mmstudy.core.seeds import generator

STEPS = 3 * replay.AFTER


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator("recording", seed), dtype=torch.float64)


CALLS: dict = {}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Every call of a function as it is, counted from outside: a count inside would be a state that it changes."""
    called = replay.called

    def counting(function, inputs):
        CALLS.setdefault(function, []).append(1)
        return called(function, inputs)

    monkeypatch.setattr(replay, "called", counting)
    CALLS.clear()


def counted(function):
    """The function, recorded, and how often it has been called as it is."""
    return recorded(function), CALLS.setdefault(function, [])


def slope(x: Tensor, of) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        here = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(of(here), here, create_graph=x.requires_grad)


FUNCTIONS = {
    "views": lambda x: (x.T.reshape(2, -1)[1].view(-1, 3) @ x[1:3, ::2].T, x.unflatten(0, (2, 2)).flip(0)),
    "what was given": lambda x: (x, x.view(-1), x[1], x * 1 + 0),
    "several outputs of one operation": lambda x: (*x.max(1), *x.split([1, 3]), *x.unbind(1)),
    "in place": lambda x: (
        x.clone().mul_(2).add_(1)[:, 1:].relu_(),
        torch.zeros(4, 6).to(x).index_fill_(1, x.long().abs()[0, :1] % 6, 1),
    ),
    "its own tensors": lambda x: (x + torch.arange(6), x @ torch.eye(6).to(x), torch.full_like(x, 3)),
    "types": lambda x: (
        x.float(),
        x.to(torch.long),
        (x > 0).double() * x,
        torch.complex(x, x).conj().imag.contiguous(),
    ),
    "a gradient": lambda x: slope(x, lambda y: y.tanh().square().sum()),
    "two gradients": lambda x: slope(x, lambda y: slope(y, lambda z: (z**3).sum())[0].sum()),
    "a choice by element": lambda x: (torch.where(x > 0, x, 1 / x), x.clamp(min=0), x.gather(1, x.argsort(1))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_numbers_of_the_same_shapes_go_in(name):
    function = FUNCTIONS[name]
    operations = take_down(function, (drawn(4, 6),))
    assert operations is not None
    for seed in range(3):
        given = drawn(4, 6, seed=seed)
        for found, expected in zip(operations(given.clone()), function(given.clone()), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_layouts_are_those_that_come(rows, columns, offset, across):
    """Slices, transposed tensors and tensors from the middle of others, in turn, through one recorded function."""
    function, times = counted(lambda x: (x.t().flatten() * 2, x.sum(0), x.reshape(-1)[-1:]))
    for seed in range(STEPS):
        whole = drawn(columns + 3, rows + 3, seed=seed).T if across else drawn(rows + 3, columns + 3, seed=seed)
        given = whole[offset * (seed % 2) :, offset:][:rows, :columns]
        for found, expected in zip(
            function(given), (given.T.flatten() * 2, given.sum(0), given.reshape(-1)[-1:]), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(times) <= 2 * (replay.AFTER + 1)


def test_it_is_taken_down_after_so_many_calls_for_each_shape():
    function, times = counted(lambda x: (x + 1,))
    for _ in range(STEPS):
        function(drawn(3))
    assert len(times) == replay.AFTER + 1  # the last time to see whether it changes what it reads
    function(drawn(4)), function(drawn(3).float()), function(drawn(6)[::2])
    assert len(times) == replay.AFTER + 4
    assert not function(drawn(3).requires_grad_())[0].requires_grad


def test_what_it_changes_is_changed_once():
    seen = drawn(5)

    def moving(average: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        average[1:].mul_(0.9).add_(0.1 * x)
        return (average.sum(),)

    function, times = counted(moving)
    average, expected = torch.zeros(6).double(), torch.zeros(6).double()
    for step in range(STEPS):
        assert function(average, seen * step) == moving(expected, seen * step)
    torch.testing.assert_close(average, expected, rtol=0, atol=0)
    assert len(times) == replay.AFTER + 1  # the last time to see whether it changes what it reads


def test_random_numbers_are_those_of_the_function_and_new_every_time():
    def noisy(x: Tensor) -> tuple[Tensor, ...]:
        return F.dropout(x, 0.5), torch.rand_like(x), torch.randn(3)

    function, times = counted(noisy)
    torch.manual_seed(1)
    found = [function(drawn(50)) for _ in range(STEPS)]
    torch.manual_seed(1)
    expected = [noisy(drawn(50)) for _ in range(STEPS)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len({tuple(mask.tolist()) for mask, *_ in found}) == STEPS
    assert len(times) == replay.AFTER + 1  # the last time to see whether it changes what it reads


def chosen(x: Tensor) -> tuple[Tensor, ...]:
    return (x + 1,) if x.sum() > 0 else (x - 1,)


def python(x: Tensor) -> tuple[Tensor, ...]:
    return (x * random.random(),)


def numpys(x: Tensor) -> tuple[Tensor, ...]:
    return (x * float(np.random.default_rng().random() < 2) + np.random.rand(),)  # noqa: NPY002


def masked(x: Tensor) -> tuple[Tensor, ...]:
    return (x[x > 0].sum() / x[x > 0].numel(),)


def number(x: Tensor) -> tuple[Tensor, ...]:
    return (x * x.max().item(),)


def found(x: Tensor) -> tuple[Tensor, ...]:
    return (x[x.nonzero().squeeze(1)],)


def elsewhere(x: Tensor) -> tuple[Tensor, ...]:
    return (torch.from_numpy(x.numpy() * 2),)


STEP = [0]


def stateful(x: Tensor) -> tuple[Tensor, ...]:
    STEP[0] += 1
    return (x * STEP[0],)


@pytest.mark.parametrize("function", [chosen, python, numpys, masked, number, found, elsewhere, stateful])
def test_what_depends_on_more_than_shapes_is_not_recorded(function):
    assert take_down(function, (drawn(7),)) is None
    again, times = counted(function)
    for seed in range(STEPS):
        again(drawn(7, seed=seed))
    assert len(times) >= STEPS
    if function in (chosen, masked, number, found, elsewhere):
        torch.testing.assert_close(again(drawn(7, seed=99)), function(drawn(7, seed=99)), rtol=0, atol=0)


def test_an_error_is_the_functions_own():
    def failing(x: Tensor) -> tuple[Tensor, ...]:
        if len(times) > replay.AFTER:
            raise ZeroDivisionError("in the function")
        return (x,)

    function, times = counted(failing)
    for _ in range(replay.AFTER):
        function(drawn(2))
    with pytest.raises(ZeroDivisionError, match="in the function"):
        function(drawn(2))


def test_what_takes_too_much_memory_is_not_recorded(monkeypatch):
    monkeypatch.setattr(tape, "MOST_BYTES", 8 * 80)
    assert take_down(lambda x: (x.exp().sin(),), (drawn(30),)) is not None
    assert take_down(lambda x: (x.exp().sin().cos(),), (drawn(30),)) is None
    assert take_down(lambda x: (x.exp().sin()[1:].view(-1),), (drawn(30),)) is not None  # a view takes none


def test_views_of_the_middle_of_something_stay_in_their_place():
    """Of an input, of what was computed, and of what was found."""
    found = drawn(9, seed=1)

    def middle(x: Tensor) -> tuple[Tensor, ...]:
        y = x + 1
        return (
            x[3:8].view(5, 1) * 1,
            (y[2:6] * 1).view(2, 2).t(),
            found[4:].unsqueeze(1) + x[5:],
            (x[1:] + 0).view(4, 2)[1:],
        )

    operations = take_down(middle, (drawn(9),))
    given = drawn(9, seed=2)
    torch.testing.assert_close(operations(given), middle(given), rtol=0, atol=0)


STEPS_OF = {  # of a random program: tensors (4, 6) in, one out
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: b - a,
    "product": lambda a, b: a * b,
    "its own square": lambda a, b: a * a,
    "exponential": lambda a, b: a.clamp(max=3).exp(),
    "ReLU": lambda a, b: torch.relu(b),
    "mask": lambda a, b: torch.where(a > 0, a, b),
    "matrix product": lambda a, b: a @ b.T @ b / 10,
    "a view": lambda a, b: a.view(6, 4).T,
    "a row": lambda a, b: a[1].expand(4, 6),
    "turned over": lambda a, b: a.T.reshape(4, 6) + a,
    "a tensor and its transpose": lambda a, b: (lambda square: (square + square.T) @ a / 100)(a @ b.T),
    "written to": lambda a, b: a.mul_(0.5),
    "copied and written to": lambda a, b: a.clone().add_(b),
}


@given(st.data())
def test_memory_is_written_over_only_when_nobody_reads_it_again(data):
    """Random programs, views and writing in place included, come to the same bits; their input stays as it is."""
    names = data.draw(st.lists(st.sampled_from(sorted(STEPS_OF)), min_size=1, max_size=12))
    takes = [data.draw(st.tuples(st.integers(0, i + 1), st.integers(0, i + 1))) for i in range(len(names))]
    kept = data.draw(st.sets(st.integers(0, len(names) + 1), min_size=1))

    def program(x: Tensor) -> tuple[Tensor, ...]:
        found = [x + 1, x * 2]
        for name, (a, b) in zip(names, takes, strict=True):
            first = found[a].contiguous() if name in ("a view", "written to") else found[a]
            found.append(STEPS_OF[name](first, found[b]))
        return tuple(found[i] for i in kept)

    operations = take_down(program, (drawn(4, 6),))
    assert operations is not None
    given = drawn(4, 6, seed=1)
    before = given.clone()
    torch.testing.assert_close(operations(given), program(given), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(given, before, rtol=0, atol=0)


def test_elementwise_operations_need_no_memory_of_their_own():
    def chain(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        hidden = (x @ weight + 1).relu()
        return (((hidden @ weight - 1).tanh() * 2).exp().sum(),)

    inputs = drawn(50, 50), drawn(50, 50, seed=1) / 50
    operations, taken, copied = take_down(chain, inputs), {}, {}
    for name, function in {"plain": chain, "recorded": operations}.items():
        with costs._Allocated() as memory:
            function(*inputs)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            function(*inputs)
        taken[name] = memory.total // inputs[0].nbytes
        copied[name] = sum(event.count for event in seen.key_averages() if event.key == "aten::copy_")
    assert taken == {"plain": 8, "recorded": 2}
    assert copied["recorded"] == copied["plain"]  # torch's relu.out, say, is a ReLU and a copy


def test_a_tensor_that_lies_on_itself_goes_in():
    function, _ = counted(lambda x: (x + 1,))
    for seed in range(STEPS):
        given = drawn(1, 3, seed=seed).expand(4, 3)
        torch.testing.assert_close(function(given)[0], given + 1, rtol=0, atol=0)


class Net(nn.Module):
    """Batch normalization, dropout and a convolution."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 1, 5, 5)))


@pytest.mark.parametrize("large_call", [0, costs.LARGE_CALL])
def test_training_is_the_same_recorded_or_not(large_call, monkeypatch):
    """Parameters, running statistics and losses, of batches and of one network after another."""
    monkeypatch.setattr(costs, "LARGE_CALL", large_call)
    nets = [Net() for _ in range(3)]
    data = torch.randn(60, 25), torch.randint(3, (60,))
    order = training.minibatches([generator("order", i) for i in range(3)], 60, STEPS, 8)

    def run(after: int) -> list:
        monkeypatch.setattr(replay, "AFTER", after)
        torch.manual_seed(0)
        start, found = en.stack(nets), []
        for _, now, seen in training.train(start, data, order, training.constant(0.05, STEPS), milestones=[STEPS // 2]):
            found += [now.parameters, now.buffers, seen]
            en.losses(now, data)  # somebody switches the mode
        return found

    plain, fast = run(10**9), run(2)
    torch.testing.assert_close(fast, plain, rtol=0, atol=0)
    assert int(fast[4]["body.1.num_batches_tracked"][0]) == STEPS


def test_recording_is_for_what_repeats(monkeypatch):
    """A step of a training run is taken down once, whatever the number of steps."""
    taken = []
    monkeypatch.setattr(replay, "take_down", lambda *given: taken.append(take_down(*given)) or taken[-1])
    nets, data = [mlp(seed=i) for i in range(3)], batch(40)
    order = training.minibatches([generator("order", i) for i in range(3)], 40, STEPS, 8)
    list(training.train(en.stack(nets), data, order, training.constant(0.05, STEPS)))
    assert len(taken) == 1
    assert taken[0] is not None
