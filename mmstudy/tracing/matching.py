"""Permutation matching: the order of a network's hidden units that brings its weights closest to another network's.

Networks that differ only in the order of their hidden units are the same function, but a straight line between them
crosses a barrier. `matched` removes that difference before networks are compared.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmstudy.core.networks import evaluating, named_tensors
from mmstudy.core.seeds import generator
from mmstudy.tracing.calls import Call, called, tensors
from mmstudy.tracing.couplings import Coupling, couplings

Order = dict[str, Tensor]  # coupling → the unit that takes each place


@dataclass(frozen=True)
class Layout:
    """A tensor's axes as products of finer ones, and the coupling whose units lie on each of these (None: no one's)."""

    shape: tuple[int, ...]
    owners: tuple[str | None, ...]


def matched(network: nn.Module, reference: nn.Module, batch: Any, seed: int = 0) -> nn.Module:
    """A copy of `network` with its hidden units in the order in which they resemble those of `reference` most.

    Weight matching by coordinate descent: Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin (arXiv 2209.04836,
    algorithm 1). Each coupling is one permutation, and all tensors that it touches take part, running statistics too.
    The paper starts from the identity. Here the first round compares units by what the permutations that are still
    unknown do not change, the sorted values along their axes, so that a permuted copy is always recognized.

    Args:
        batch: examples, as `calls.called` takes them, on which the copy is checked to be the same function.
        seed: of the order in which couplings take their turns.

    Raises:
        ValueError: the networks have other units than each other, or a permutation changes the function.
        NotImplementedError: as in `couplings`.
    """
    call = called(reference, batch)
    groups = couplings(reference, call)
    if _uses(groups) != _uses(couplings(network, call)):
        raise ValueError("the networks have different couplings: only networks of one architecture can be matched")
    theirs, own = named_tensors(reference), named_tensors(network)
    order = weight_matching(groups, theirs, own, seed)
    layouts = _layouts(groups, own)
    new = copy.deepcopy(network)
    with torch.no_grad():
        for name, tensor in named_tensors(new).items():
            if name in layouts:
                tensor.copy_(_ordered(own[name], layouts[name], order).reshape(tensor.shape))
    _check(network, new, call)
    return new


def weight_matching(
    groups: Mapping[str, Coupling], reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor], seed: int = 0
) -> Order:
    """The order of units, by coupling, that maximizes Σ ⟨reference, ordered tensor⟩, by coordinate descent."""
    layouts = _layouts(groups, tensors)
    a = {name: reference[name].detach().cpu().double().reshape(layout.shape) for name, layout in layouts.items()}
    b = {name: tensors[name].detach().cpu().double() for name in layouts}
    order = {name: torch.arange(group.size) for name, group in groups.items()}
    unknown = set(groups)
    for name in groups:
        order[name] = _assigned(name, a, b, layouts, order, unknown)
        unknown.discard(name)
    stream, names = generator("weight matching", seed), list(groups)
    best, improved = _similarity(a, b, layouts, order), True
    while improved:
        improved = False
        for i in torch.randperm(len(names), generator=stream).tolist():
            trial = order | {names[i]: _assigned(names[i], a, b, layouts, order, set())}
            value = _similarity(a, b, layouts, trial)
            if value > best * (1 + 1e-12) + 1e-12:  # more than rounding
                order, best, improved = trial, value, True
    return order


def _assigned(name: str, a: dict, b: dict, layouts: dict[str, Layout], order: Order, unknown: set[str]) -> Tensor:
    """The best order of one coupling's units, given that of the others."""
    likeness: Tensor | float = 0.0
    before = order | {name: torch.arange(len(order[name]))}
    for tensor, layout in layouts.items():
        for axis, owner in enumerate(layout.owners):
            if owner == name:
                other = _ordered(b[tensor], layout, before, order, axis)
                rows = [_signature(t, layout, axis, unknown) for t in (a[tensor], other)]
                likeness = likeness + rows[0] @ rows[1].mT
    _, best = linear_sum_assignment(likeness, maximize=True)
    return torch.as_tensor(best)


def _signature(tensor: Tensor, layout: Layout, axis: int, unknown: set[str]) -> Tensor:
    """One row for each unit; values along axes of unknown order are sorted."""
    loose = [i for i, owner in enumerate(layout.owners) if owner in unknown and i != axis]
    known = [i for i in range(tensor.ndim) if i != axis and i not in loose]
    rows = tensor.permute(axis, *known, *loose).reshape(len(tensor.movedim(axis, 0)), -1, _count(layout, loose))
    return (rows.sort(-1).values if loose else rows).flatten(1)


def _count(layout: Layout, axes: list[int]) -> int:
    return int(torch.tensor([layout.shape[i] for i in axes]).prod()) if axes else 1


def _ordered(
    tensor: Tensor, layout: Layout, order: Order, elsewhere: Order | None = None, axis: int | None = None
) -> Tensor:
    """The tensor in its layout, its units in order; by `elsewhere` on all axes but one."""
    tensor = tensor.reshape(layout.shape)
    for i, owner in enumerate(layout.owners):
        if owner is not None:
            which = order if elsewhere is None or i == axis else elsewhere
            tensor = tensor.index_select(i, which[owner].to(tensor.device))
    return tensor


def _similarity(a: dict, b: dict, layouts: dict[str, Layout], order: Order) -> float:
    return float(sum((a[name] * _ordered(b[name], layout, order)).sum() for name, layout in layouts.items()))


def _layouts(groups: Mapping[str, Coupling], tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    """The layout of every tensor of numbers that has units of some coupling."""
    spans: dict[str, dict[int, dict[tuple[int, int], str]]] = {}
    for name, group in groups.items():
        for use in group.uses:
            if tensors[use.tensor].is_floating_point():
                axes = spans.setdefault(use.tensor, {})
                axes.setdefault(use.axis, {})[use.outer, use.outer * group.size] = name
    found = {}
    for tensor, axes in spans.items():
        shape, owners = [], []
        for axis, size in enumerate(tensors[tensor].shape):
            own = axes.get(axis, {})
            cuts = sorted({1, size, *(cut for span in own for cut in span)})
            for low, high in pairwise(cuts) if size > 1 else [(1, 1)]:
                shape.append(high // low)
                owners.append(own.get((low, high)))
        found[tensor] = Layout(tuple(shape), tuple(owners))
    return found


def _uses(groups: Mapping[str, Coupling]) -> dict[str, tuple]:
    return {name: (group.size, group.uses) for name, group in groups.items()}


def _check(old: nn.Module, new: nn.Module, call: Call) -> None:
    with evaluating(old), evaluating(new), torch.no_grad():
        both = zip(tensors(call.of(old)), tensors(call.of(new)), strict=True)
    for before, after in both:
        change, size = float((after - before).abs().max()), float(before.abs().max())
        precision = torch.finfo(before.dtype).eps if before.is_floating_point() else 0
        if not change <= 1e3 * precision * size:
            raise ValueError(
                f"another order of hidden units changes the outputs, by {change:.1e} of at most {size:.1e}: "
                "the network does something with single units that its couplings do not show"
            )
