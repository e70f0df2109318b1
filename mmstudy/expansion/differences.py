"""How far apart the outputs of two networks are, beside how much they vary."""

from collections.abc import Callable
from itertools import pairwise
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from mmstudy.tracing.trees import tensors

SLACK = 4.0  # how many times the change may be what rounding makes, once measured
CALL = 16.0  # units in the last place of an output that a call may lose
APART = 10  # powers of two between numbers of two scales
LOWEST = -2000  # a power of two below those of all numbers

_Parts = tuple[Tensor, list[tuple[Tensor | None, float, float]]]  # see `_parts`


def changes(before: Any, after: Any, like: Any = None) -> list[tuple[float, float, float]]:
    """Of each tensor of two networks' outputs: its largest change, how much it varies, its largest value.

    A tensor that holds numbers of scales far apart (masked logits, a price beside a probability) has one row for each
    scale: what is large hides no change of what is small. Whole numbers and masks (the largest class, the experts of a
    token) count only where there are no other outputs.

    It varies by the standard deviation among examples, the root of the mean square over outputs; a single example's by
    that among its outputs. Infinities that stay are no change; NaN that comes or goes makes the change NaN.

    Args:
        like: outputs that say which numbers are of one scale; by default those before.

    Raises:
        ValueError: there is no number to compare, or the shapes differ.
    """
    return Seen(before, like).changes(after)


class Seen:
    """What a network put out, looked at once however often it is compared; see `changes`."""

    def __init__(self, outputs: Any, like: Any = None):
        self.outputs, self._parts, self._like = outputs, dict[bool, list[_Parts]](), like

    @property
    def whole(self) -> bool:
        """Whether all are whole numbers or masks (classes, tokens), in which small changes do not show."""
        return not any(t.is_floating_point() or t.is_complex() for t in tensors(self.outputs))

    def changes(self, after: Any) -> list[tuple[float, float, float]]:
        """The rows of `changes` for what was put out afterwards.

        Raises:
            ValueError: as there.
        """
        pair = [[t.detach() for t in tensors(outputs) if t.numel()] for outputs in (self.outputs, after)]
        real = any(t.is_floating_point() or t.is_complex() for some in pair for t in some)
        old, new = ([t for t in some if t.is_floating_point() or t.is_complex() or not real] for some in pair)
        shapes = [[tuple(t.shape) for t in some] for some in (old, new)]
        if not shapes[0] or shapes[0] != shapes[1]:
            raise ValueError(f"outputs of shapes {shapes[0] or 'of no tensor'} cannot be compared with {shapes[1]}")
        if real not in self._parts:
            like = old if self._like is None else [t.detach() for t in tensors(self._like) if t.numel()]
            like = [t for t in like if t.is_floating_point() or t.is_complex() or not real]
            self._parts[real] = [_parts(*pair) for pair in zip(old, like, strict=True)]
        found = []
        for (a, parts), b in zip(self._parts[real], map(_real, new), strict=True):
            gap = (b - a).abs()
            if not float(gap.max()) < inf:  # the difference of equal infinities, and of what is NaN in both, is NaN
                gap = gap.masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
            for part, spread, largest in parts:
                found.append((float((gap if part is None else gap[part]).max()), spread, largest))
        return found


def _parts(old: Tensor, like: Tensor) -> _Parts:
    """The numbers, and of each part of one scale its mask (None for all), how much it varies, its largest value."""
    a, found = _real(old), []
    finite = a.where(a.isfinite(), 0)
    for part in _scales(finite if like is old else _real(like)):
        inside = finite if part is None else finite[part]
        spread = _spread(finite) if part is None else _spread_within(finite, part)
        found.append((part, spread, float(inside.abs().max())))
    return a, found


def _real(values: Tensor) -> Tensor:
    return (torch.view_as_real(values) if values.is_complex() else values).cpu().double()


def _scales(values: Tensor) -> list[Tensor | None]:
    """Which numbers are of one scale, as masks; None for all. Zeros, and what is not finite, are of the smallest.

    Between two scales no number lies, over a factor of `APART`. Fewer numbers than there are examples are no scale.
    """
    known = values.isfinite() & (values != 0)
    exponents = torch.frexp(values)[1].where(known, LOWEST)
    counts = torch.bincount(exponents.flatten() - LOWEST)
    counts[0] = 0
    present = (counts.nonzero().flatten() + LOWEST).tolist()
    edges = [two for one, two in pairwise(present) if two - one > APART]
    fewest, kept = max(2, len(values) if values.ndim else 1), list[int]()
    for edge in edges:
        low = kept[-1] if kept else present[0]
        if int(counts[low - LOWEST : edge - LOWEST].sum()) >= fewest:
            kept.append(edge)
    if not kept:
        return [None]
    exponents = exponents.where(known, present[0])
    return [(exponents >= low) & (exponents < high) for low, high in pairwise([present[0], *kept, present[-1] + 1])]


def _spread(values: Tensor) -> float:
    """How much values vary: exactly 0 where they do not. `Tensor.std` takes several times as long over an axis."""
    several = values.ndim > 0 and len(values) > 1
    apart = values - (values[:1] if several else values.flatten()[0])
    return float((apart - (apart.mean(0) if several else apart.mean())).square().mean().sqrt())


def _spread_within(values: Tensor, part: Tensor) -> float:
    """The same of a part of the values."""
    several = values.ndim > 0 and len(values) > 1
    whole = values.where(part, 0)
    count = part.sum(0) if several else part.sum()
    apart = (whole - (whole.sum(0) if several else whole.sum()) / count.clamp(min=1)).where(part, 0)
    return float((apart.square().sum() / part.sum()).sqrt())


def change(before: Any, after: Any) -> float:
    """The largest change of an output, over how much it varies (or, where it does not, over its largest value)."""
    return relative(largest(before, after))


def largest(before: Any, after: Any) -> tuple[float, float, float]:
    """The row of `changes` whose change is the largest beside how much its numbers vary; one that is NaN is larger."""
    return max(changes(before, after), key=lambda row: inf if isnan(relative(row)) else relative(row))


def relative(row: tuple[float, float, float]) -> float:
    """A change over how much the numbers vary (or, where they do not, over the largest of them)."""
    gap, spread, most = row
    return gap / (spread or most or 1.0)


def said(before: Seen, run: Callable[[bool], Any], eps: float, least: float) -> str | None:
    """What is to be said of outputs; `run`: whether the new numbers are moved as if by rounding → the new outputs."""
    after, moved = run(False), None
    for place, (gap, spread, largest) in enumerate(before.changes(after)):
        allowed = max(eps * spread, CALL * least * largest)
        if not gap <= allowed:  # it may be NaN
            moved = moved or changes(after, run(True), before.outputs)
            allowed = max(allowed, SLACK * moved[place][0])
        if not gap <= allowed:
            size = spread or largest or 1.0
            return (
                f"the outputs change by {gap / size:.1e} of how much they vary; rounding explains {allowed / size:.0e}"
            )
    return None
