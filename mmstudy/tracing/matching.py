"""Permutation matching: the order of a network's hidden units that brings its weights closest to another network's.

Networks that differ only in the order of their hidden units are the same function, but a straight line between them
crosses a barrier. `matched` removes that difference before networks are compared.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmstudy.core.networks import evaluating, named_tensors
from mmstudy.core.seeds import generator
from mmstudy.tracing.calls import Call, called
from mmstudy.tracing.couplings import Coupling, Use, couplings
from mmstudy.tracing.layouts import UNITS, Layout, extent
from mmstudy.tracing.trees import tensors

Order = dict[str, Tensor]  # coupling → the unit that takes each place


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: its axes as products of finer ones, and the coupling of the units on each (None: no one's).

    Where ranges of an axis belong to several couplings, the tensor is cut between them.
    """

    place: tuple[slice, ...]
    shape: tuple[int, ...]
    owners: tuple[str | None, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor, with the finer axes."""
        return tensor[self.place].reshape(self.shape)


def matched(network: nn.Module, reference: nn.Module, batch: Any, seed: int = 0) -> nn.Module:
    """A copy of `network` with its hidden units in the order in which they resemble those of `reference` most.

    Weight matching by coordinate descent: Ainsworth, Hayase, Srinivasa 2023, Git Re-Basin (arXiv 2209.04836,
    algorithm 1). Each coupling is one permutation, and all tensors that it touches take part, running statistics too;
    but for ranges inside each unit of another coupling (halves of heads), which keep their order.
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
    new = copy.deepcopy(network)
    ordered(named_tensors(new), _pieces(groups, own), order)
    _check(network, new, call)
    return new


def weight_matching(
    groups: Mapping[str, Coupling], reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor], seed: int = 0
) -> Order:
    """The order of units, by coupling, that maximizes Σ ⟨reference, ordered tensor⟩, by coordinate descent."""
    pieces = _pieces(groups, tensors)
    a, b = ([piece.of(some[name].detach().cpu().double()) for name, piece in pieces] for some in (reference, tensors))
    each = list(zip(a, b, (piece for _, piece in pieces), strict=True))
    names = [name for name in groups if any(name in piece.owners for _, piece in pieces)]
    order = {name: torch.arange(groups[name].size) for name in names}
    unknown = set(names)
    for name in names:
        order[name] = _assigned(name, each, order, unknown)
        unknown.discard(name)
    stream = generator("weight matching", seed)
    best, improved = _similarity(each, order), True
    while improved:
        improved = False
        for i in torch.randperm(len(names), generator=stream).tolist():
            trial = order | {names[i]: _assigned(names[i], each, order, set())}
            value = _similarity(each, trial)
            if value > best * (1 + 1e-12) + 1e-12:  # more than rounding
                order, best, improved = trial, value, True
    return order


def _assigned(name: str, each: Sequence[tuple[Tensor, Tensor, Piece]], order: Order, unknown: set[str]) -> Tensor:
    """The best order of one coupling's units, given that of the others."""
    likeness: Tensor | float = 0.0
    before = order | {name: torch.arange(len(order[name]))}
    for a, b, piece in each:
        for axis, owner in enumerate(piece.owners):
            if owner == name:
                other = _ordered(b, piece, before, order, axis)
                rows = [_signature(t, piece, axis, unknown) for t in (a, other)]
                likeness = likeness + rows[0] @ rows[1].mT
    _, best = linear_sum_assignment(likeness, maximize=True)
    return torch.as_tensor(best)


def _signature(tensor: Tensor, piece: Piece, axis: int, unknown: set[str]) -> Tensor:
    """One row for each unit; values along axes of unknown order are sorted."""
    loose = [i for i, owner in enumerate(piece.owners) if owner in unknown and i != axis]
    known = [i for i in range(tensor.ndim) if i != axis and i not in loose]
    rows = tensor.permute(axis, *known, *loose).reshape(len(tensor.movedim(axis, 0)), -1, _count(piece, loose))
    return (rows.sort(-1).values if loose else rows).flatten(1)


def _count(piece: Piece, axes: list[int]) -> int:
    return int(torch.tensor([piece.shape[i] for i in axes]).prod()) if axes else 1


def ordered(tensors: Mapping[str, Tensor], pieces: Sequence[tuple[str, Piece]], order: Order) -> None:
    """Put the units of these tensors in order, in place."""
    with torch.no_grad():
        for name, piece in pieces:
            part = tensors[name][piece.place]
            part.copy_(_ordered(piece.of(tensors[name]), piece, order).reshape(part.shape))


def _ordered(
    tensor: Tensor, piece: Piece, order: Order, elsewhere: Order | None = None, axis: int | None = None
) -> Tensor:
    """A part of a tensor, its units in order; by `elsewhere` on all axes but one."""
    for i, owner in enumerate(piece.owners):
        if owner is not None:
            which = order if elsewhere is None or i == axis else elsewhere
            tensor = tensor.index_select(i, which[owner].to(tensor.device))
    return tensor


def _similarity(each: Sequence[tuple[Tensor, Tensor, Piece]], order: Order) -> float:
    return float(sum((a * _ordered(b, piece, order)).sum() for a, b, piece in each))


Spans = dict[tuple[int, int], dict[tuple[int, int], str]]  # range of an axis → (from, to) of its factors → coupling


def _pieces(groups: Mapping[str, Coupling], tensors: Mapping[str, Tensor]) -> list[tuple[str, Piece]]:
    """All parts of tensors of numbers that have units of some coupling, with the names of the tensors."""
    found: list[tuple[str, Piece]] = []
    for tensor, axes in _spans(groups, tensors).items():
        whole = [axes.get(axis) or {(0, size): {}} for axis, size in enumerate(tensors[tensor].shape)]
        for ranges in itertools.product(*whole):
            shape, owners = [], list[str | None]()
            for (start, end), own in ((ends, spans[ends]) for ends, spans in zip(ranges, whole, strict=True)):
                size = end - start
                cuts = sorted({1, size, *(cut for span in own for cut in span)})
                for low, high in pairwise(cuts) if size > 1 else [(1, 1)]:
                    shape.append(high // low)
                    owners.append(own.get((low, high)))
            if any(owners):
                found.append((tensor, Piece(tuple(slice(*ends) for ends in ranges), tuple(shape), tuple(owners))))
    return found


def _spans(groups: Mapping[str, Coupling], tensors: Mapping[str, Tensor]) -> dict[str, dict[int, Spans]]:
    """Tensor → axis → the ranges on it, in order, and the couplings in each."""
    uses: dict[tuple[str, int], list[tuple[str, Use]]] = {}
    for name, group in groups.items():
        if not any(isinstance(part, tuple) for use in group.uses for term in use.layout for part in term):
            for use in group.uses:
                if tensors[use.tensor].is_floating_point():
                    uses.setdefault((use.tensor, use.axis), []).append((name, use))
    found: dict[str, dict[int, Spans]] = {}
    for (tensor, axis), some in uses.items():
        terms = [(name, *each) for name, use in some for each in _placed(use.layout, groups[name].size)]
        borders = sorted({0, *(end for _, _, end, _ in terms)})
        spans: Spans = {ends: {} for ends in pairwise(borders)}
        for name, start, end, term in terms:
            if UNITS in term:
                outer = prod(term[: term.index(UNITS)])
                spans[start, end][outer, outer * groups[name].size] = name
        found.setdefault(tensor, {})[axis] = spans
    return found


def _placed(layout: Layout, size: int) -> Iterator[tuple[int, int, tuple]]:
    """(start, end, factors) of each range of an axis with `size` units."""
    start = 0
    for term in layout:
        end = start + extent((term,), size)
        yield start, end, term
        start = end


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
