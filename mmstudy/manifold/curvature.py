"""The size of the set as its curvature at the parent foretells it: the limit of all other sizes for low levels.

One trace, from Hessian-vector products, and no search: the cheapest size, and blind to what the loss does further out.
"""

import math

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.estimate import Budget

PRODUCT = 2 * estimate.STEP  # cost of H v: a gradient, and a backward pass through it
FEW = 0.5  # relative standard error of the trace above which the radius says nothing


def curvature(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    *,
    iterations: int = 10,
) -> xr.Dataset:
    """The radius at which the loss, were it quadratic, would meet the level on average over directions.

    size = √(2ε·D / tr H), ε = ℓ − L(θ_p); E[uᵀHu] = tr H / D for uniform unit directions u. tr H = E[vᵀHv] with random
    signs v (Hutchinson 1990), `budget.samples` of them; steps, step size and momentum play no part.

    Larger is a larger set. A length in parameter space, from 0; it grows as √ε, and is right for levels so low that
    the loss is quadratic up to them; away from a minimum the slope counts too, and is left out. Neuron permutation
    changes nothing; rescaling ReLUs changes it (and can make it as small as one likes: Dinh et al. 2017,
    arXiv 1703.04933). Duplicating a neuron adds flat directions to the mean over D: a parameter that does not curve
    the loss multiplies the size by √((D+1)/D), so that larger networks come out larger. Kinks of ReLUs have no
    curvature that H could see.

    Args:
        parents: (m, dim).
        level: ℓ, one height for all.
        iterations: of the power method for `top`; 0 leaves it out (NaN).

    Returns:
        As every estimator (`estimate.report`); `size_se` is the delta method's, size · trace_se / (2 · trace);
        `samples` are the vᵀHv, whose mean is `trace`; also `trace_se`; `top`, the eigenvalue of the largest magnitude,
        approached from below. Status: ok; few_samples (the trace's relative standard error is above ½); saddle (the
        trace is not positive: the size is NaN); unbounded (every vᵀHv is zero to rounding: the size is infinite);
        outside; nan.

    Raises:
        ValueError: a negative number of iterations, and what `estimate.starting` refuses.
    """
    if iterations < 0:
        raise ValueError(f"the power method needs iterations ≥ 0; got {iterations}")
    status, loss = estimate.starting(objective, parents, level, generator)
    count, dim = budget.samples, parents.shape[1]
    samples, product = quadratic_forms(objective, parents, count, generator)
    trace, trace_se = samples.mean(1), estimate.standard_error(samples)
    rounding = torch.finfo(parents.dtype).eps * math.sqrt(dim) * product.double().norm(dim=-1)
    flat = (samples.abs() <= rounding).all(1)
    gap = (level - loss).clamp(min=0)
    size = (2 * gap * dim / trace.where(trace > 0, torch.nan)).sqrt().where(~flat, torch.inf)
    kinds = {"nan": trace.isnan(), "unbounded": flat, "saddle": trace <= 0, "few_samples": trace_se > FEW * trace}
    met = [(status == "ok") & where.cpu().numpy() for where in kinds.values()]
    status = np.select(met, list(kinds), status)  # the first that holds
    more = {"trace": trace, "trace_se": trace_se, "top": top(objective, parents, product, iterations)}
    cost = objective.examples * (estimate.PASS + PRODUCT * (count + iterations))
    return estimate.report(objective, level, size, size * trace_se / (2 * trace), samples, status, cost, **more)


def quadratic_forms(
    objective: Objective, parents: Float[Tensor, "m dim"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m count"], Float[Tensor, "m count dim"]]:
    """vᵀHv, float64, whose mean is an estimate of tr H, and Hv, for random signs v that all parents share."""
    signs = torch.randint(2, (count, parents.shape[1]), generator=generator).to(parents) * 2 - 1
    signs = signs.repeat(len(parents), 1, 1)
    product = objective.hessian_vector(parents, signs)
    return (signs * product).sum(-1, dtype=torch.float64), product


def top(
    objective: Objective, parents: Float[Tensor, "m dim"], product: Float[Tensor, "m n dim"], iterations: int
) -> Float[Tensor, " m"]:
    """The eigenvalue of largest magnitude by the power method, from the longest of the products H v that are there."""
    longest = product.norm(dim=-1).argmax(1)
    vector = product.take_along_dim(longest[:, None, None], 1).squeeze(1)
    value = parents.new_full(longest.shape, torch.nan)
    for _ in range(iterations):
        vector = vector / vector.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vector.dtype).tiny)
        image = objective.hessian_vector(parents, vector.unsqueeze(1)).squeeze(1)
        vector, value = image, (vector * image).sum(-1)
    return value
