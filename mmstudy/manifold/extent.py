"""Extent: how far the manifold reaches from the middle of what training explores, along the ways that it explores.

The size that the study tests as a predictor of gains (`study.probes`).
"""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.children import grown, parted
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.directions import from_centre
from mmstudy.manifold.estimate import PASS, STEP, Budget

CENSORED = 0.1  # the share of rays that may be cut off, above which the size is a lower bound and no estimate


def extent(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    *,
    max_multiple: float = 1024.0,
) -> xr.Dataset:
    """The mean distance to the level from the children's centre, along ± the directions to the children.

    size = Σ_k (r(θ_k − θ̄) + r(θ̄ − θ_k)) / 2K, r(v) the distance from θ̄ along v to the first crossing of the level, θ̄
    the mean of K = `budget.samples` children, each trained `budget.steps` steps with draws of its own.

    More is larger; a distance in parameter space, from 0. Directions come from training, so that those count most in
    which minibatches move the network, which are the flat ones. Permuting neurons leaves it; ReLU rescaling and
    duplication change it as they change distances, and training.

    Args:
        max_multiple: how far a ray goes, in multiples of the child's distance from the centre; 16 in the study.

    Returns:
        `estimate.report`; a sample is the mean of a child's two rays; also `censored`, the share of rays that are below
        the level as far as they go, `connected`, the share of children that the level set holds, with the segment from
        the centre, and `centre_loss`. Status: ok; censored (more than a tenth of the rays are cut off: the size is a
        lower bound); at_limit (a ray's crossing is known to a coarse bracket only); together (training has not
        parted the children, so that there is no direction); outside (the parent, or the children's centre, is above the
        level); nan.
    """
    k = budget.samples
    start, _ = estimate.starting(objective, parents, level, generator)
    family = grown(objective, parents, budget, generator)
    ways, apart = ways_of(family)
    centre = torch.where(family.isfinite().all(2).all(1, keepdim=True), family.mean(1), parents)
    loss = objective(centre)
    lines = crossings(objective, centre, ways, level, max_multiple=max_multiple, origin=loss)
    radius, met = lines.radius, lines.status
    censored = torch.as_tensor((met == "unbounded").mean(1))
    unlike = {  # the first that holds
        "nan": ~family.isfinite().all(2).all(1).cpu().numpy() | (met == "nan").any(1),
        "together": ~apart.cpu().numpy(),
        "outside": (met == "outside").any(1),
        "censored": (censored > CENSORED).numpy(),
        "at_limit": (met == "at_limit").any(1),
    }
    worst = np.select(list(unlike.values()), list(unlike), "ok")
    samples = radius.unflatten(1, (2, k)).mean(1)
    return estimate.report(
        objective,
        level,
        radius.mean(1),
        estimate.standard_error(samples),
        samples,
        np.where(start == "ok", worst, start),
        cost=STEP * objective.batch * k * budget.steps + PASS * objective.examples * (2 + lines.looks),
        censored=censored,
        connected=(lines.multiple[:, :k] >= 1).double().mean(1),
        centre_loss=loss,
    )


def ways_of(family: Float[Tensor, "m k dim"]) -> tuple[Float[Tensor, "m 2*k dim"], Tensor]:
    """± the directions from the centre to the children, and of which families (m,) all children have one.

    Where a child has none, or has diverged, all are ones, so that rays can be sent and their lengths thrown away.
    """
    ways = from_centre(family)
    length = ways.norm(dim=-1)
    apart = parted(family) & (length.isfinite() & (length > 0)).all(1)
    return torch.where(apart.view(-1, 1, 1), ways, 1.0), apart
