"""The log-volume of a star-shaped set from the lengths of rays, with directions weighted by importance.

vol(M) = V_D · E[r(u)^D] over uniform unit directions u, with V_D the unit ball's volume. In many dimensions a few long
rays carry that mean; directions that are drawn where the rays are long, and weighted for it, spread the load
(Scherlis & Belrose 2025, arXiv 2501.18812). Only logarithms are computed.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.crossings import Crossings, crossings
from mmstudy.manifold.estimate import PASS, Budget

EVALUATIONS = 16  # of a ray: a log-volume wants its length to a finer tolerance than a mean does
FEW = 10  # an effective sample below this says nothing about its own error


def volume(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    scale: Float[Tensor, "m dim"] | None = None,
    max_radius: float = 1024.0,
    tolerance: float = 1e-3,
) -> xr.Dataset:
    """The log-volume of the manifold, from `budget.samples` rays along weighted directions; see `log_volume`.

    Args:
        scale: of each coordinate, such as `directions.preconditioner` gives; uniform directions without it.
        max_radius: how far rays go.
        tolerance: as in `crossings`. An error δr of the rays shows as D·δr/r.
    """
    start, loss = estimate.starting(objective, parents, level, generator)
    scale = torch.ones_like(parents) if scale is None else scale
    unit, log_weight = directions(scale, budget.samples, generator)
    options: dict[str, Any] = {
        "max_multiple": max_radius, "tolerance": tolerance, "evaluations": EVALUATIONS, "origin": loss,
    }  # fmt: skip
    lines = crossings(objective, parents, unit, level, **options)
    found = log_volume(lines, log_weight, parents.shape[1])
    return estimate.report(
        objective,
        level,
        found.size,
        found.size_se,
        lines.radius,
        np.where(start == "ok", found.status, start),
        PASS * objective.examples * (1 + lines.looks),
        effective_radius=found.effective_radius,
        effective_samples=found.effective_samples,
        largest_weight=found.largest_weight,
    )


def directions(
    scale: Float[Tensor, "m dim"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m count dim"], Float[Tensor, "m count"]]:
    """Unit directions u = z/‖z‖, z ~ N(0, diag(scale²)), and the log of the uniform density over theirs.

    Their density on the sphere is angular central Gaussian (Tyler 1987), so that, Λ = diag(scale²),
    ln w(u) = ½ ln|Λ| + D/2 · ln(uᵀΛ⁻¹u). A scale of ones gives uniform directions of weight 1. Only the proportions
    of a scale matter. Every parent's directions come from the same draws.

    Raises:
        ValueError: a scale that is not positive and finite, or no direction wanted.
    """
    if not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"a scale must be positive and finite; its range is {scale.min():g} to {scale.max():g}")
    if count < 1:
        raise ValueError(f"needs at least one direction; got count={count}")
    draw = torch.randn((count, scale.shape[1]), generator=generator, dtype=torch.float64).to(scale.device)
    wide = scale.double().unsqueeze(1)
    unit = draw * wide
    unit = unit / unit.norm(dim=-1, keepdim=True)
    stretch = ((unit / wide) ** 2).sum(-1)
    log_weight = wide.log().sum(-1) + scale.shape[1] / 2 * stretch.log()
    return unit.to(scale), log_weight


class LogVolume(NamedTuple):
    """A log-volume of each parent, and what it rests on.

    `size` and its standard error `size_se` (delta method over rays); `effective_radius`; `effective_samples`
    (Σx)²/Σx², x = w·r^D; `largest_weight`, the share of the largest x; and `status`: ok; few_rays (fewer than 10
    effective samples: neither number nor error can be trusted); at_limit (a ray is known to a coarse bracket only);
    unbounded (a ray left the grid: the volume is at least this); outside (the parent lies above the level: the set is
    empty); nan.
    """

    size: Float[Tensor, " m"]
    size_se: Float[Tensor, " m"]
    effective_radius: Float[Tensor, " m"]
    effective_samples: Float[Tensor, " m"]
    largest_weight: Float[Tensor, " m"]
    status: np.ndarray


def log_volume(lines: Crossings, log_weight: Float[Tensor, "m rays"], dimension: int) -> LogVolume:
    """ln vol of the star-shaped set that rays along unit directions have measured.

    ln V = ln V_D + ln meanᵢ exp(D ln rᵢ + ln wᵢ). More is larger; its unit is ln of (parameter distance)^D, so that it
    does not compare networks of different D, nor after a rescaling of ReLUs; `effective_radius`, that of the ball
    of this volume, exp((ln V − ln V_D)/D), is a distance for every D. An error δr of the rays shows as D·δr/r.

    Args:
        lines: what `crossings` returned for the directions.
        log_weight: of each direction, from `directions`.
        dimension: D, of the parameter space.

    Raises:
        ValueError: fewer than two rays, or weights for another number of rays.
    """
    radius = lines.radius.cpu().double()
    if radius.shape[1] < 2:
        raise ValueError(f"the error of a log-volume needs at least 2 rays; got {radius.shape[1]}")
    if radius.shape != log_weight.shape:
        raise ValueError(f"{tuple(radius.shape)} rays, but weights for {tuple(log_weight.shape)}")
    x = dimension * radius.log() + log_weight.cpu().double()
    count, log_sum = x.shape[1], x.logsumexp(1)
    share = (x - log_sum.unsqueeze(1)).exp()  # of the sum: Σ share = 1
    mean = log_sum - math.log(count)
    effective = 1 / (share**2).sum(1)
    worst = ["nan", "outside", "unbounded", "at_limit"]
    met = [(lines.status == name).any(1) for name in worst]
    return LogVolume(
        size=log_ball(dimension) + mean,
        size_se=share.std(1) * count**0.5,  # std(x) / (mean(x) √n), in shares of the sum
        effective_radius=(mean / dimension).exp(),
        effective_samples=effective,
        largest_weight=share.amax(1),
        status=np.select([*met, effective.numpy() < FEW], [*worst, "few_rays"], "ok"),  # the first that holds
    )


def log_ball(dimension: int) -> float:
    """ln V_D, the unit ball's volume: D/2 · ln π − ln Γ(D/2 + 1)."""
    return dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2 + 1)
