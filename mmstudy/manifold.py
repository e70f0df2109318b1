"""Estimators of the size of the minima manifold around a parent: children and rays.

M_ℓ(θ_p) = {θ : L ≤ ℓ on the whole segment θ_p → θ}: star-shaped about the parent. Everything is batched over
parents; lengths are Euclidean distances in parameter space unless a name says otherwise.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mmstudy.connectivity import PointLoss
from mmstudy.ensemble import Ensemble, train, vectors

GRID = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # multiples of a direction that are scanned for the first crossing
STATUSES = ("converged", "at_limit", "unbounded", "outside", "nan")


def children(
    parents: Ensemble,
    inputs: Tensor,
    targets: Tensor,
    order: Int[Tensor, "m k steps batch"],
    step_sizes: Float[Tensor, " m"],
    momentum: float = 0.9,
    milestones: Iterable[int] = (),
) -> Iterator[tuple[int, Float[Tensor, "m k dim"], Float[Tensor, "m k since"]]]:
    """K copies of each of M parents, each trained on with minibatches of its own (Frankle et al. 2020).

    Args:
        order: which examples each child sees.
        step_sizes: one constant step size for each parent.
        milestones: steps after which to yield; the last step always does.

    Yields:
        (step, the children's parameters, the minibatch losses that each met since the last milestone).
    """
    m, k, steps, _ = order.shape
    copies = parents[torch.arange(m).repeat_interleave(k)]
    rates = step_sizes.repeat_interleave(k).expand(steps, m * k)
    for step, grown, seen in train(copies, inputs, targets, order.flatten(0, 1), rates, momentum, milestones):
        yield step, vectors(grown).unflatten(0, (m, k)), seen.unflatten(0, (m, k))


def spread(parents: Float[Tensor, "m dim"], young: Float[Tensor, "m k dim"]) -> xr.Dataset:
    """The size of the set that the children reached, in several senses, with jackknife standard errors.

    - reach: mean distance from the parent; gyration: root mean square distance from the children's centre;
      diameter: the largest distance between two children;
    - effective_dimension: participation ratio (Σλ)² / Σλ² of their covariance's spectrum, between 1 and K − 1;
    - log_volume: ln of the K-volume of the simplex whose corners are the parent and its children.

    Under permutations of neurons all of them stay; under ReLU rescaling none but effective_dimension nearly does.

    Raises:
        ValueError: fewer than two children.
    """
    if young.shape[1] < 2:
        raise ValueError(f"the spread of children needs at least 2 of them; got {young.shape[1]}")
    away = (young - parents.unsqueeze(1)).double()
    gram = away @ away.mT  # (m, k, k): all that follows is in it
    values = _spread(gram)
    k = gram.shape[-1]
    without = [[j for j in range(k) if j != i] for i in range(k)] if k > 2 else []
    left_out = [_spread(gram[:, keep][:, :, keep]) for keep in without]
    variables = {}
    for name, value in values.items():
        variables[name] = ("parent", value.numpy())
        if name == "log_volume":  # its dimension changes with every child left out, so that a jackknife means nothing
            continue
        again = torch.stack([other[name] for other in left_out]) if left_out else torch.full((1, len(value)), math.nan)
        error = ((k - 1) * again.var(0, correction=0)).sqrt()
        variables[f"{name}_se"] = ("parent", error.numpy())
    return xr.Dataset(variables)


def _spread(gram: Float[Tensor, "m k k"]) -> dict[str, Float[Tensor, " m"]]:
    k = gram.shape[-1]
    squares = gram.diagonal(dim1=1, dim2=2)
    between = (squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * gram).clamp(min=0)
    centring = torch.eye(k, dtype=gram.dtype, device=gram.device) - 1 / k
    spectrum = torch.linalg.eigvalsh(centring @ gram @ centring).clamp(min=0)
    sizes = {
        "reach": squares.sqrt().mean(1),
        "gyration": (spectrum.sum(1) / k).sqrt(),
        "diameter": between.amax((1, 2)).sqrt(),
        "effective_dimension": spectrum.sum(1) ** 2 / (spectrum**2).sum(1),
        "log_volume": torch.linalg.slogdet(gram).logabsdet / 2 - math.lgamma(k + 1),
    }
    return {name: size.cpu() for name, size in sizes.items()}


def disagreement(logits: Float[Tensor, "m k n classes"]) -> Float[Tensor, " m"]:
    """Functional spread: the share of examples on which two children predict different classes, mean over pairs.

    Unlike a distance it does not respond to the symmetries of the parameterization.
    """
    guess = logits.argmax(-1)  # (m, k, n)
    pairs = list(combinations(range(guess.shape[1]), 2))
    return torch.stack([(guess[:, i] != guess[:, j]).double().mean(1) for i, j in pairs]).mean(0)


def filter_normalized(parents: Ensemble, count: int, generator: torch.Generator) -> Float[Tensor, "m count dim"]:
    """Random directions in which every filter has the norm of the parent's filter (Li et al. 2018, arXiv 1712.09913).

    A filter is one row of a weight; biases and other vectors get zero, as in the paper. A multiple of such a
    direction is a relative change, so that it does not respond to ReLU rescaling.
    """
    pieces = []
    for parameter in parents.parameters.values():
        flat = parameter.detach().flatten(2) if parameter.ndim > 2 else torch.zeros_like(parameter).unsqueeze(-1)
        draw = torch.randn((count, *flat.shape[1:]), generator=generator).to(flat)  # the same for all parents
        unit = draw / draw.norm(dim=-1, keepdim=True)
        pieces.append((unit * flat.norm(dim=-1)[:, None, :, None]).flatten(2))
    return torch.cat(pieces, dim=-1)


def rays(
    loss: PointLoss,
    parents: Float[Tensor, "m dim"],
    directions: Float[Tensor, "m rays dim"],
    level: float,
    grid: Sequence[float] = GRID,
    refinements: int = 8,
    tolerance: float = 0.02,
) -> xr.Dataset:
    """How far one can go from each parent along each direction before the loss first passes the level.

    All points of a coarse grid are evaluated at once; the first grid point above the level and the one before it
    bracket the crossing, which is halved `refinements` times for all rays at once; a straight line through the
    losses at the last bracket's ends gives the multiple returned. A set that is left and entered again within one
    grid interval is not seen.

    Args:
        loss: points (..., dim) → losses (...), a landscape or `connectivity.point_loss`.
        directions: of any length; `grid` counts in multiples of it.
        tolerance: the bracket's width, relative to its upper end, at which a ray counts as converged.

    Returns:
        Dataset over (parent, ray) with `multiple` (of the direction), `radius` (multiple × length) and `status`:
        converged; at_limit (the bracket is still wider than the tolerance); unbounded (below the level as far as
        the grid goes, the radius is that far); outside (the parent itself is above the level, the radius is 0);
        nan (the loss at the crossing, or at the parent, is not a number). `evaluations` counts points per ray.

    Raises:
        ValueError: a direction of length zero, or a grid that does not ascend from above zero.
    """
    multiples = torch.as_tensor(grid, dtype=parents.dtype, device=parents.device)
    if len(multiples) == 0 or multiples[0] <= 0 or (multiples.diff() <= 0).any():
        raise ValueError(f"the grid must ascend from above zero; got {tuple(grid)}")
    length = directions.norm(dim=-1)
    if (length == 0).any():
        raise ValueError(f"{int((length == 0).sum())} of {length.numel()} directions have length zero")

    def along(t: Float[Tensor, "m rays points"]) -> Float[Tensor, "m rays points"]:
        return loss(parents[:, None, None] + t.unsqueeze(-1) * directions.unsqueeze(2)).to(parents.dtype)

    origin = loss(parents.unsqueeze(1)).to(parents.dtype).expand(length.shape)  # (m, rays)
    t = torch.cat([multiples.new_zeros(1), multiples]).expand(*length.shape, -1)
    values = torch.cat([origin.unsqueeze(-1), along(t[..., 1:])], dim=-1)
    beyond = ~(values <= level)  # a loss that is not a number is no minimum
    first = beyond.int().argmax(-1, keepdim=True)  # 0: outside, or nowhere beyond
    bounded, outside = beyond.any(-1), beyond[..., 0]
    high, f_high = t.gather(-1, first).squeeze(-1), values.gather(-1, first).squeeze(-1)
    before = (first - 1).clamp(min=0)
    low, f_low = t.gather(-1, before).squeeze(-1), values.gather(-1, before).squeeze(-1)
    for _ in range(refinements):
        middle = (low + high) / 2
        f_middle = along(middle.unsqueeze(-1)).squeeze(-1)
        inside = f_middle <= level
        low, f_low = torch.where(inside, middle, low), torch.where(inside, f_middle, f_low)
        high, f_high = torch.where(inside, high, middle), torch.where(inside, f_high, f_middle)
    share = ((level - f_low) / (f_high - f_low)).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
    crossing = low + share * (high - low)
    multiple = torch.where(outside, 0.0, torch.where(bounded, crossing, multiples[-1]))
    wide = (high - low) > tolerance * high
    status = np.select(  # the first that holds
        [where.cpu().numpy() for where in (origin.isnan(), outside, ~bounded, f_high.isnan(), wide)],
        ["nan", "outside", "unbounded", "nan", "at_limit"],
        "converged",
    )
    return xr.Dataset(
        {
            "multiple": (("parent", "ray"), multiple.cpu().numpy()),
            "radius": (("parent", "ray"), (multiple * length).cpu().numpy()),
            "status": (("parent", "ray"), status),
        },
        attrs={"evaluations": len(multiples) + refinements, "level": float(level)},
    )
