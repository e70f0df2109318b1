"""Functions of tensors, taken down as a list of operations and repeated without the Python that led to them.

A step of training a small network spends most of its time between its operations: finding modules, their parameters,
the rules of `vmap` and those of autograd. All that is the same at every step, and what it comes to is the same list,
as long as nothing changes that the Python reads. Where that is in doubt, the function is called as ever.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmstudy.batched.tape import Function, Tape, refuse_what_no_list_can_say
from mmstudy.batched.watch import Opaque, watch
from mmstudy.core import precision
from mmstudy.core.threads import ALONE

AFTER = 20  # calls on tensors of the same shapes; to take down one takes as long as about so many save
MOST_SHAPES = 64  # for which one function is kept
SEED = 7_203_915_624_108_837_351  # none that a function sets itself
MOST_CHANGES = 8  # of what a function reads, after which it is recorded no more

_switch = {"on": os.environ.get("MMSTUDY_REPLAY", "1") != "0"}


@contextmanager
def off() -> Iterator[None]:
    """Every function is called as it is for a while; so it is for good with MMSTUDY_REPLAY=0 in the environment."""
    before = _switch["on"]
    _switch["on"] = False
    try:
        yield
    finally:
        _switch["on"] = before


def recorded(function: Function, sets_mode_of: nn.Module | None = None) -> Function:
    """`function`, which is taken down once it has been called `AFTER` times on tensors of the same shapes.

    It may change the tensors it is given, and draw torch's random numbers. The list is repeated as long as nothing has
    changed that the function reads (`watch`). A function that reads numbers out, changes what it reads, prints, draws
    Python's or numpy's random numbers or those of a generator, runs through hooks, or comes to something else than its
    list is called as ever.

    Nothing that it returns has a gradient.

    Args:
        function: tensors in, a tuple of tensors out.
        sets_mode_of: a network whose training mode the function sets, whatever it was.
    """
    calls: Counter = Counter()
    known: dict[tuple, Function | None] = {}
    unchanged: list[Callable[[], bool]] = []  # of what the lists in `known` stand for
    changes = 0

    def forget() -> None:
        nonlocal changes
        changes += 1
        for kept in (calls, known, unchanged):
            kept.clear()

    def learn(key: tuple, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        try:
            same = watch(function, sets_mode_of)
        except Opaque:
            same = None
        found = called(function, inputs)
        if same is None or not same():  # it changes what it reads
            known[key] = None
            return found
        if len(known) >= MOST_SHAPES:
            known.pop(next(iter(known)))
        known[key] = take_down(function, inputs)
        if known[key] is not None and not unchanged:
            unchanged.append(same)
        if not same():
            forget()
        return found

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        if not _switch["on"] or changes > MOST_CHANGES:
            return called(function, inputs)
        key = (*_modes(), *[(t.shape, t.stride(), t.storage_offset() == 0, t.dtype, t.device) for t in inputs])
        operations = known.get(key, called)
        if operations is None:
            return called(function, inputs)
        if operations is not called:
            if unchanged[0]():
                return operations(*[t.detach() if t.requires_grad else t for t in inputs])
            forget()
        calls[key] += 1
        if calls[key] <= AFTER:
            return called(function, inputs)
        del calls[key]
        with ALONE:
            return learn(key, inputs)

    return call


def called(function: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a function returns, without gradients."""
    with torch.no_grad():
        return function(*inputs)


def take_down(function: Function, inputs: tuple[Tensor, ...]) -> Function | None:
    """The operations of `function` on tensors like these, as a function; None where they depend on the numbers.

    Only copies of the tensors are touched, and the state of the random numbers is left alone.
    """
    tape = Tape()
    try:
        with torch.random.fork_rng(), _dice_kept(), torch.no_grad():
            _refuse_reading(function, inputs)
            given, one, other = (_copies(inputs, factor) for factor in (1.0, 1.01, 1.01))
            with tape:
                tape.start(given, [t.storage_offset() == 0 for t in inputs])
                before, outputs, after = _dice(), function(*given), _dice()
            operations = tape.stop(outputs)
            torch.manual_seed(SEED)
            expected = function(*one)
            torch.manual_seed(SEED)
            found = operations(*other)  # on other numbers
            alike = all(map(_alike, (*expected, *one), (*found, *other)))
    except Exception:  # any doubt: what the function itself has to say, it will
        return None
    return operations if alike and before == after else None


def _refuse_reading(function: Function, inputs: tuple[Tensor, ...]) -> None:
    """Raise where the function reads numbers out of what it computes, or changes a tensor of its own.

    There are no numbers in fake tensors for `.tolist()`, `.numpy()`, a comparison that Python sorts by, or a printout.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        _Reading(),
        patch.object(FakeTensor, "__repr__", _unprinted),
    ):
        function(*[mode.from_tensor(tensor.detach()) for tensor in inputs])


def _unprinted(tensor: FakeTensor, **options: object) -> str:
    raise NotImplementedError("the function prints a tensor")


class _Reading(TorchDispatchMode):
    """Refuses what no list of operations can say, before it is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        refuse_what_no_list_can_say(function, args, kwargs or {})
        changed = [a.name for a in function._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        named = dict(zip([a.name for a in function._schema.arguments], args, strict=False)) | (kwargs or {})
        for leaf in tree_leaves([named.get(name) for name in changed]):
            if isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor):
                raise NotImplementedError(f"{function} changes a tensor that the function has not been given")
        return function(*args, **(kwargs or {}))


def _modes() -> tuple:
    """Settings of torch that decide which operations a function comes to."""
    return (
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        *precision.settings(),
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _copies(tensors: tuple[Tensor, ...], factor: float) -> list[Tensor]:
    """Copies in the same layout (there is none of a tensor that lies on itself), times a factor but for integers."""
    copies = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t) for t in tensors]
    return [t.mul_(factor) if t.is_floating_point() else t for t in copies]


def _dice() -> tuple:
    """The states of Python's and of numpy's random numbers."""
    kind, key, *more = np.random.get_state()  # noqa: NPY002 (it is read, for those who draw from it)
    return random.getstate(), kind, np.asarray(key).tobytes(), *more


@contextmanager
def _dice_kept() -> Iterator[None]:
    """What is drawn from Python's and from numpy's random numbers meanwhile is drawn again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
