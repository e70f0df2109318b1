"""An axis in numbers: what it is made of, how long it would be, and where the units of one group lie on it."""

from collections.abc import Iterator, Mapping
from math import prod
from types import MappingProxyType

import torch
from jaxtyping import Int
from torch import Tensor

from mmstudy.tracing.axes import Axis, factors, joined, leaves, product, terms

UNITS = "units"
NONE: Mapping[Axis, int] = MappingProxyType({})

Structure = tuple[tuple["int | Structure", ...], ...]  # sizes of ranges, each the product of its factors
Layout = tuple[tuple["int | str | Layout", ...], ...]  # the same, for one group: its UNITS, and how many others


def structure(axis: Axis, sizes: Mapping[Axis, int] = NONE) -> Structure:
    """The ranges of an axis as products of the finest ones, some of which may be given other sizes."""
    return tuple(
        tuple(sizes.get(part, part.size) if part.ranges is None else structure(part, sizes) for part in term)
        for term in terms(axis)
    )


def length(axis: Axis, sizes: Mapping[Axis, int]) -> int:
    """The size of the axis, if some of the finest ones had other sizes."""
    return prod(
        sizes.get(part, part.size) if part.ranges is None else sum(length(each, sizes) for each in part.ranges)
        for part in factors(axis)
    )


def spans(axis: Axis) -> Iterator[Axis]:
    """All that code may know the length of: runs of factors, runs of ranges, and those within."""
    parts = factors(axis)
    for i in range(len(parts)):
        yield from (product(parts[i:j]) for j in range(i + 1, len(parts) + 1))
    for part in parts:
        if part.ranges is not None:
            some = [product(term) for term in terms(part)]
            for i in range(len(some)):
                yield from (joined(some[i:j]) for j in range(i + 2, len(some) + 1))
            for each in some:
                yield from spans(each)


def layout(axis: Axis, leaf: Axis) -> Layout:
    """Where the units of `leaf` lie on an axis: ranges of products, in which a number stands for all other units.

    Heads of width 8, for instance, lie on the axis of a query weight as ((UNITS, 8),), their width as
    ((heads, UNITS),); channels that are flattened before a linear layer lie on its weight as
    ((UNITS, height × width),), and those that are concatenated behind 16 others as ((16,), (UNITS,)).
    """
    found: list[tuple] = []
    for term in terms(axis):
        parts: list = [1]
        mine = next((part for part in term if leaf in leaves(part)), None)  # of a product with itself, the slower one
        for part in term:
            if part is mine:
                parts.append(UNITS if part is leaf else layout(part, leaf))
                mine = None
            elif isinstance(parts[-1], int):
                parts[-1] *= part.size
            else:
                parts.append(part.size)
        merged = tuple(part for part in parts if part != 1) or (1,)
        if found and _others(found[-1]) and _others(merged):
            found[-1] = (found[-1][0] + merged[0],)
        else:
            found.append(merged)
    return tuple(found)


def _others(term: tuple) -> bool:
    return len(term) == 1 and isinstance(term[0], int)


def extent(layout: Layout, size: int) -> int:
    """The size of an axis with `size` units on it."""
    return len(_units(layout, size))


def places(layout: Layout, size: int) -> Int[Tensor, "units times"]:
    """Where on an axis each of `size` units lies, each as often as the others."""
    units = _units(layout, size)
    return units.argsort(stable=True)[(units < 0).sum() :].view(size, -1)


def around_units(layout: Layout) -> tuple[int, int] | None:
    """How many others there are around the units of a plain product, (outer, inner); None of any other layout."""
    if len(layout) > 1 or any(isinstance(part, tuple) for part in layout[0]):
        return None
    at, counts = layout[0].index(UNITS), [part if isinstance(part, int) else 1 for part in layout[0]]
    return prod(counts[:at]), prod(counts[at:])


def others(layout: Layout, size: int) -> Int[Tensor, " places"]:
    """Where on an axis none of the units lies."""
    return (_units(layout, size) < 0).nonzero().flatten()


def _units(layout: Layout, size: int) -> Int[Tensor, " places"]:
    """The unit at each place of an axis; −1: none."""
    found = []
    for term in layout:
        here = torch.tensor([-1])
        for part in term:
            if isinstance(part, tuple):
                along = _units(part, size)
            else:
                along = torch.arange(size) if part == UNITS else torch.full((int(part),), -1)
            here = torch.maximum(here.unsqueeze(1), along).flatten()
        found.append(here)
    return torch.cat(found)
