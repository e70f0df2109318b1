"""Rays: how far one can go from a parent before the loss passes the level, on average over directions."""

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.directions import uniform
from mmstudy.manifold.estimate import Budget

# (parents, count, generator) → directions (m, count, dim)
Directions = Callable[[Tensor, int, torch.Generator], Tensor]


def rays(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    directions: Directions = uniform,
    first: float = 1.0,
    max_multiple: float = 1024.0,
) -> xr.Dataset:
    """The mean extent E[r(u)] over directions that are drawn for it; more is larger, in units of parameter distance.

    Permuting neurons leaves it. Uniform directions are dominated by the many stiff ones, and respond to ReLU rescaling
    and duplication as distances do. Of filter-normalized ones, `multiple`, in which a direction is one unit, does not
    respond to a rescaling that all units of a layer share.

    Args:
        directions: from `directions`, such as `uniform` or `partial(filter_normalized, ensemble)`.
        first, max_multiple: as in `crossings`.

    Returns:
        `estimate.report` with the mean radius as size; also `multiple` (mean), `q10`, `median`, `q90` of the radius.
        Its status is the worst that a ray met: nan, unbounded (the size is a lower bound), at_limit, or ok.
    """
    start, loss = estimate.starting(objective, parents, level, generator)
    along = directions(parents, budget.samples, generator)
    lines = crossings(objective, parents, along, level, first, max_multiple, origin=loss)
    radius, bad = lines.radius, ["nan", "unbounded", "at_limit"]
    worst = np.select([(lines.status == status).any(1) for status in bad], bad, "ok")
    q10, median, q90 = radius.double().quantile(radius.new_tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=1)
    return estimate.report(
        objective,
        level,
        radius.mean(1),
        estimate.standard_error(radius),
        radius,
        np.where(start == "ok", worst, start),
        cost=objective.examples * estimate.PASS * (1 + lines.looks),
        multiple=lines.multiple.mean(1),
        q10=q10,
        median=median,
        q90=q90,
    )
