"""Which tensors of a residual block are at the ends of its branches, found by trying: with zeros there it does nothing.

Of several that would do, those are taken at which a gradient arrives, so that the block learns.

The other tensors are drawn at random meanwhile, so that what is found does not hang on the numbers that a trained block
happens to have.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import generator
from mmstudy.expansion.attributes import fewest
from mmstudy.tracing.calls import Call

DRAWS = 2  # sets of random tensors; all must agree
SAME = 1e-10  # a change, as a share of the stream, that is rounding in float64

Stream = Callable[[Any], tuple[Tensor, Tensor]]  # what a block puts out → its stream before and after


def silencers(block: nn.Module, call: Call, stream: Stream, among: Sequence[str]) -> list[str]:
    """The names of the tensors that make a block do nothing where they are zero: the fewest, and of these the last.

    First the parameters of one module count as one, and of two that would do, the one that is called later is taken;
    then as few of these are zero as will do. Nothing is found (an empty list) if the block does something even where
    all its parameters are zero, as with a normalization behind its branches, or if it would never learn. A block that
    does not compute in float64 is tried in its own type.

    Args:
        stream: what a block puts out → what runs into it and out of it.
        among: the parameters that may be zero.
    """
    names: dict[str, list[str]] = {}
    for name in among:
        names.setdefault(name.rpartition(".")[0], []).append(name)
    own = {path: block.get_submodule(path) for path in names}
    order: list[str] = []
    hooks = [m.register_forward_pre_hook(lambda m, given, p=path: order.append(p)) for path, m in own.items()]
    try:
        with evaluating(block), torch.no_grad():
            copy.deepcopy(call).of(block)
    finally:
        for hook in hooks:
            hook.remove()
    paths = list(dict.fromkeys([*reversed(order), *own]))

    def tried(double: bool) -> list[str]:
        trials = [_drawn(block, number, double) for number in range(DRAWS)]
        given = call.mapped(lambda t: t.double() if t.is_floating_point() else t) if double else call

        def needed(groups: Sequence[list[str]]) -> list[str]:
            """The fewest groups that will do, of equals the first ones."""

            def silent(chosen: frozenset[int]) -> bool:
                zero = {name for i in chosen for name in groups[i]}
                return all(_does_nothing(trial, zero, given, stream) for trial in trials)

            everything = tuple(range(len(groups)))
            if not groups or not silent(frozenset(everything)):
                return []
            found = fewest(frozenset(), True, everything, silent)
            return [name for i in sorted(found if silent(found) else everything) for name in groups[i]]

        ends = [[name] for name in needed([names[path][::-1] for path in paths])]
        share = partial(_learning, trials, given, stream)
        last = needed(ends)[::-1]
        best = last if share(last) == 1 else max(last, needed(ends[::-1]), key=share)
        return best if share(best) else []

    for double in (True, False):
        try:
            return tried(double)
        except Exception:  # a block that takes no other numbers than its own, or none at all where it is zero
            continue
    return []


class _Reads(TorchDispatchMode):
    """Takes off a list of tensors, by number (`id`), those that operations are given."""

    def __init__(self, waiting: dict[int, str]):
        super().__init__()
        self.waiting = waiting

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[override]
        for leaf in tree_leaves((args, kwargs or {})):
            self.waiting.pop(id(leaf), None)
        return operation(*args, **(kwargs or {}))


def unread(block: nn.Module, call: Call) -> list[str]:
    """The names of the parameters that no operation reads in a call of the block."""
    waiting = {id(parameter): name for name, parameter in block.named_parameters()}
    with evaluating(block), torch.no_grad(), _Reads(waiting):
        copy.deepcopy(call).of(block)
    return list(waiting.values())


def _drawn(block: nn.Module, number: int, double: bool) -> nn.Module:
    """A copy, in float64 if so, whose parameters are random: matrices of a layer's scale, vectors around ½."""
    new, stream = copy.deepcopy(block).eval(), generator("silencing", number)
    new = new.double() if double else new
    for parameter in new.parameters():
        draw = torch.rand(parameter.shape, generator=stream, dtype=torch.float64).to(parameter)
        wide = parameter.ndim > 1
        parameter.data = (2 * draw - 1) * (parameter[0].numel() ** -0.5) if wide else draw
    return new


@contextmanager
def _zeroed(block: nn.Module, zero: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """These tensors of a block are zero for a while."""
    own = dict(block.named_parameters())
    kept = {name: own[name].data for name in zero}
    try:
        for name in zero:
            own[name].data = torch.zeros_like(kept[name])
        yield [own[name] for name in kept]
    finally:
        for name, data in kept.items():
            own[name].data = data


def learning(block: nn.Module, zero: Sequence[str], call: Call, stream: Stream) -> float:
    """At which share of these tensors a gradient arrives while they are zero; 1 where nothing has a gradient."""
    with _zeroed(block, zero) as tensors, evaluating(block), torch.enable_grad():
        try:
            some = [tensor.requires_grad_() for tensor in tensors]
            after = stream(copy.deepcopy(call).of(block))[1]
            weights = torch.linspace(1, 2, after.numel()).view(after.shape).to(after)
            slopes = torch.autograd.grad(after, some, weights, allow_unused=True)
        except RuntimeError:
            return 1.0
    return sum(slope is not None and bool(slope.any()) for slope in slopes) / max(len(slopes), 1)


def _learning(trials: Sequence[nn.Module], call: Call, stream: Stream, zero: Sequence[str]) -> float:
    return min(learning(trial, zero, call, stream) for trial in trials)


def _does_nothing(block: nn.Module, zero: Iterable[str], call: Call, stream: Stream) -> bool:
    """Whether the block hands on what it gets while these tensors are zero."""
    with _zeroed(block, zero), torch.no_grad():
        before, after = stream(copy.deepcopy(call).of(block))
    before = before.to(after)
    same = SAME if after.dtype == torch.float64 else torch.finfo(after.dtype).eps
    return before.shape == after.shape and float((after - before).abs().max()) <= same * float(before.abs().max())
