"""Analytic loss landscapes of known size: the truth that the estimators are tested on.

A landscape is a function from points (..., dim) to losses (...); next to each stands the exact radius of its
sub-level set along a direction, and its volume.
"""

import math
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


def log_ball(dimension: int) -> float:
    """ln V_D, the unit ball's volume: D/2 · ln π − ln Γ(D/2 + 1)."""
    return dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)


def ellipsoid_log_volume(curvatures: Float[Tensor, " dim"], level: float) -> float:
    """ln of the volume of {L ≤ level}: ln V_D + ½ Σ ln(2ℓ/hᵢ), infinite with a flat direction."""
    return log_ball(len(curvatures)) + 0.5 * float((2 * level / curvatures.double()).log().sum())


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


def shell_log_volume(dim: int, radius: float, stiffness: float, level: float, points: int = 100_001) -> float:
    """ln of the volume that is seen from a minimum of the ring or, in more dimensions, the shell, by quadrature.

    vol = A_{D−2}/D ∫₀^π r(φ)^D sin(φ)^{D−2} dφ, φ the angle to the outward normal and A_{D−2} = 2π^{(D−1)/2}/Γ((D−1)/2)
    the surface of the unit sphere in D − 1 dimensions; r from `ring_radius`. The midpoint rule, as r jumps where the
    ray first meets the hole.
    """
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * math.pi / points
    surface = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
    exponent = dim * ring_radius(angle, radius, stiffness, level).log() + (dim - 2) * angle.sin().log()
    return surface - math.log(dim) + float(exponent.logsumexp(0)) + math.log(math.pi / points)


def barrier(height: float = 1.0) -> Landscape:
    """L(θ) = height · (θ₁² − 1)²: two minima at θ₁ = ±1, cut from each other by a barrier of `height` at 0."""
    return lambda points: height * (points[..., 0] ** 2 - 1) ** 2
