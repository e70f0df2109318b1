"""Analytic loss landscapes of known size: the truth that the estimators are tested on.

A landscape is a function from points (..., dim) to losses (...); next to each stands the exact radius of its
sub-level set along a direction.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Landscape = Callable[[Tensor], Tensor]


def ellipsoid(curvatures: Float[Tensor, " dim"]) -> Landscape:
    """L(θ) = ½ Σ hᵢ θᵢ², minimal at the origin; a curvature of 0 is a flat direction."""
    return lambda points: 0.5 * (curvatures * points**2).sum(-1)


def ellipsoid_radius(
    curvatures: Float[Tensor, " dim"], directions: Float[Tensor, "*many dim"], level: float
) -> Float[Tensor, "*many"]:
    """How far one can go from the origin until the loss is `level`: √(2ℓ / uᵀHu), infinite along a flat direction."""
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return (2 * level / (curvatures * unit**2).sum(-1)).sqrt()


def ring(radius: float = 1.0, stiffness: float = 1.0) -> Landscape:
    """L(θ) = ½ k (‖θ‖ − R)²: a circle of minima in 2-D, a spherical shell in more dimensions."""
    return lambda points: 0.5 * stiffness * (points.norm(dim=-1) - radius) ** 2


def ring_radius(angle: Tensor, radius: float, stiffness: float, level: float) -> Tensor:
    """The first exit from the ring's sub-level set, seen from a minimum θ = (R, 0), at `angle` to the outward normal.

    The set is the annulus R − w ≤ ‖θ‖ ≤ R + w with w = √(2ℓ/k). The ray leaves through the inner circle if it
    meets it (a chord; beyond the hole it would enter again, which does not count), else through the outer one.
    """
    w = (2 * level / stiffness) ** 0.5
    cosine = torch.cos(angle)
    outer = -radius * cosine + ((radius * cosine) ** 2 + (radius + w) ** 2 - radius**2).sqrt()
    discriminant = (radius * cosine) ** 2 + (radius - w) ** 2 - radius**2
    inner = -radius * cosine - discriminant.clamp(min=0).sqrt()
    hits_the_hole = (discriminant >= 0) & (cosine < 0) & (w < radius)
    return torch.where(hits_the_hole, inner, outer)


def barrier(height: float = 1.0) -> Landscape:
    """L(θ) = height · (θ₁² − 1)²: two minima at θ₁ = ±1, cut from each other by a barrier of `height` at 0."""
    return lambda points: height * (points[..., 0] ** 2 - 1) ** 2
