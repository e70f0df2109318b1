"""Whether a network is the same function after it has grown: how much its outputs change, beside how they vary."""

from typing import Any

import torch

from mmstudy.tracing.calls import tensors


def changes(before: Any, after: Any) -> list[tuple[float, float, float]]:
    """Of each tensor of two networks' outputs: its largest change, how much it varies, its largest value.

    It varies by the standard deviation among examples, the root of the mean square over outputs; a single example's by
    that among its outputs. Infinities that stay are no change; NaN that comes or goes makes the change NaN.

    Raises:
        ValueError: there is no number to compare, or the shapes differ.
    """
    pair = [[t.detach() for t in tensors(outputs) if t.numel()] for outputs in (before, after)]
    shapes = [[tuple(t.shape) for t in some] for some in pair]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise ValueError(f"outputs of shapes {shapes[0] or 'of no tensor'} cannot be compared with {shapes[1]}")
    found = []
    for old, new in zip(*pair, strict=True):
        a, b = ((torch.view_as_real(t) if t.is_complex() else t).cpu().double() for t in (old, new))
        gap = (b - a).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
        finite = a.where(a.isfinite(), 0)
        several = a.ndim > 0 and len(a) > 1
        spread = finite.std(0, correction=0).square().mean().sqrt() if several else finite.std(correction=0)
        found.append((float(gap.max()), float(spread), float(finite.abs().max())))
    return found


def change(before: Any, after: Any) -> float:
    """The largest change of an output, over how much it varies (or, where it does not, over its largest value)."""
    ratios = [gap / (spread or largest or 1.0) for gap, spread, largest in changes(before, after)]
    return float(torch.tensor(ratios, dtype=torch.float64).max())  # NaN if one of them is
