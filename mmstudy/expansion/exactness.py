"""Whether a network is the same function after it has grown: how much its outputs change, beside how they vary.

Both networks are run in float64, where that is possible, so that the rounding of their calls hides nothing. What is
left is the rounding of the new numbers themselves, which is measured.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.core.networks import evaluating, named_tensors
from mmstudy.core.seeds import generator
from mmstudy.tracing.calls import Call, tensors

SLACK = 4.0  # how many times the change may be what rounding makes, once measured
PRECISION = 1e-13  # what a long sum in float64 may lose
CALL = 16.0  # units in the last place of an output that a call may lose


def broken(
    old: nn.Module,
    new: nn.Module,
    call: Call,
    origin: Mapping[str, str],
    replaced: Mapping[str, Tensor] | None = None,
    coarsest: float = 0.0,
) -> str | None:
    """What is to be said of a network that is another function than the old one; None if it is the same.

    The outputs may change by what rounding of the parameters that are new makes of them, or one unit in the last place
    of how much they vary among the examples: not of how large they are.

    Args:
        origin: parameter of the new network → the old one that it is, or comes from.
        replaced: tensors of the new network as they shall be instead.
        coarsest: eps of the coarsest type of numbers in which the networks compute, whatever that of their parameters.
    """
    own = dict(old.named_parameters())
    made = [name for name, p in new.named_parameters() if not torch.equal(p, own[origin[name]])]
    eps = max(coarsest, *(torch.finfo(p.dtype).eps for p in new.parameters() if p.is_floating_point()))
    with torch.no_grad():
        try:
            one, two = copy.deepcopy(old).double(), copy.deepcopy(new).double()
            found = _found(one, two, call.mapped(_double), made, max(eps, PRECISION), replaced or {})
            least = torch.finfo(torch.float64).eps
        except Exception:  # not every network, nor every device, computes in float64
            now = named_tensors(new)
            typed = {name: tensor.to(now[name]) for name, tensor in (replaced or {}).items()}
            found, least = _found(old, new, call, made, eps, typed), eps
    for (gap, spread, largest), (rounding, _, _) in zip(*found, strict=True):
        allowed = max(SLACK * rounding, max(eps, PRECISION) * spread, CALL * least * largest)
        if not gap <= allowed:  # it may be NaN
            size = spread or largest or 1.0
            return (
                f"the outputs change by {gap / size:.1e} of how much they vary; rounding explains {allowed / size:.0e}"
            )
    return None


def _found(old: nn.Module, new: nn.Module, call: Call, made: list[str], eps: float, replaced: Mapping[str, Tensor]):
    """The `changes` from the old network to the new one, and to the new one from itself, moved as if by rounding."""
    with evaluating(old), evaluating(new):
        before, after = call.of(old), call.under(new, replaced)
        own, stream = dict(new.named_parameters()), generator("rounding")
        moved = {name: own[name] * (1 + eps * _signs(own[name], stream)) for name in made if name not in replaced}
        return changes(before, after), changes(after, call.under(new, {**replaced, **moved}))


def _signs(like: Tensor, stream: torch.Generator) -> Tensor:
    return (2 * torch.randint(2, like.shape, generator=stream) - 1).to(like)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def changes(before: Any, after: Any) -> list[tuple[float, float, float]]:
    """Of each tensor of two networks' outputs: its largest change, how much it varies, its largest value.

    Whole numbers and masks (the largest class, the experts of a token) count only where there are no other outputs.

    It varies by the standard deviation among examples, the root of the mean square over outputs; a single example's by
    that among its outputs. Infinities that stay are no change; NaN that comes or goes makes the change NaN.

    Raises:
        ValueError: there is no number to compare, or the shapes differ.
    """
    pair = [[t.detach() for t in tensors(outputs) if t.numel()] for outputs in (before, after)]
    if any(t.is_floating_point() or t.is_complex() for some in pair for t in some):
        pair = [[t for t in some if t.is_floating_point() or t.is_complex()] for some in pair]
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
