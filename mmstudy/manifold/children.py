"""Children: copies of a parent trained apart, and the size of the set that they reach."""

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mmstudy.batched.connectivity import segment
from mmstudy.batched.objective import Objective
from mmstudy.batched.training import constant, sgd
from mmstudy.manifold import estimate
from mmstudy.manifold.estimate import PASS, STEP, Budget

ALPHAS = (0.25, 0.5, 0.75, 1.0)  # where the segment to a child is looked at


def children(
    objective: Objective, parents: Float[Tensor, "m dim"], level: float, budget: Budget, generator: torch.Generator
) -> xr.Dataset:
    """The total standard deviation of a parent's connected children, √(Σ ‖θ_k − θ̄‖² / (K − 1)); more is larger.

    SGD explorers (Frankle et al. 2020, arXiv 1912.05671): `budget.samples` children train `budget.steps` steps with
    draws of their own, at a constant step size; those are kept to whom the loss stays below the level on a grid of the
    segment. On a quadratic with gradient noise their law is a Gaussian (`landscapes.stationary_variance`). A distance
    in parameter space: permutations leave it, ReLU rescaling and duplication don't.

    Returns:
        `estimate.report` with each child's distance from its parent as samples (NaN: not connected); the jackknife's
        standard error; `connected` and `between`, the shares of children connected to the parent, and of neighbouring
        pairs of connected children that are connected to each other; `reach`, the mean distance from the parent.
        Status unconnected where fewer than two children are connected; together where training has not parted them, as
        with minibatches that hold all examples.
    """
    k = budget.samples
    start, _ = estimate.starting(objective, parents, level, generator)
    family, alphas = grown(objective, parents, budget, generator), torch.tensor(ALPHAS)
    family = family.where(family.isfinite(), math.nan)
    inside = (segment(objective, parents.unsqueeze(1).expand_as(family), family, alphas) <= level).all(-1)
    after = inside & inside.roll(-1, dims=1)
    across = (segment(objective, family, family.roll(-1, dims=1), alphas[:-1]) <= level).all(-1)
    size, error = deviation(family, inside)
    distance = (family - parents.unsqueeze(1)).double().norm(dim=-1).where(inside, math.nan)
    few, same = (inside.sum(1) < 2).cpu().numpy(), ~parted(family).cpu().numpy()
    return estimate.report(
        objective,
        level,
        size,
        error,
        distance,
        np.where(start == "ok", np.select([same, few], ["together", "unconnected"], "ok"), start),
        cost=STEP * objective.batch * k * budget.steps + PASS * objective.examples * (1 + k * (2 * len(ALPHAS) - 1)),
        connected=inside.double().mean(1),
        between=(across & after).sum(1) / after.sum(1),
        reach=distance.nanmean(1),
    )


def grown(
    objective: Objective, parents: Float[Tensor, "m dim"], budget: Budget, generator: torch.Generator
) -> Float[Tensor, "m k dim"]:
    """The `budget.samples` children of each parent, at the end of their training.

    All are one where nothing can part them: minibatches that hold all examples, and no dropout.
    """
    seeds = torch.randint(2**62, (budget.samples,), generator=generator)
    streams = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    draws = objective.draws(streams, budget.steps)
    rates = torch.full((len(parents),), budget.step_size)
    with torch.random.fork_rng():
        if _inseparable(objective, parents, draws):  # else they would differ by the order of sums
            draws = draws[:1]
        torch.manual_seed(streams[0].initial_seed())  # dropout draws from it
        ((_, family, _),) = offspring(objective, parents, draws, rates, budget.momentum)
    return family.expand(-1, budget.samples, -1)


def parted(children: Float[Tensor, "m k dim"]) -> Bool[Tensor, " m"]:
    """Whether training has parted the children of each parent; the mean of equal points may differ from them."""
    return (children != children[:, :1]).flatten(1).any(1)


def _inseparable(objective: Objective, parents: Float[Tensor, "m dim"], draws: Tensor) -> bool:
    """Whether all children see the same examples at every step, and training draws nothing else at random."""
    if draws.is_floating_point():  # the noise of a landscape
        return False
    seen = draws.sort(-1)[0]
    if (seen != seen[:1]).any():
        return False
    one, owner, losses = parents[:1], torch.zeros(1, dtype=torch.long, device=parents.device), []
    for seed in range(2):
        torch.manual_seed(seed)  # dropout draws from it
        losses.append(objective.noisy_gradient(one, owner, draws[:1, 0])[0])
    return torch.equal(*losses)


def offspring(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    draws: Tensor,
    step_sizes: Float[Tensor, " m"],
    momentum: float = 0.9,
    milestones: Iterable[int] = (),
) -> Iterator[tuple[int, Float[Tensor, "m k dim"], Float[Tensor, "m k since"]]]:
    """K children of each of M parents, each trained with draws of its own; the k-th of all parents share theirs.

    Args:
        draws: (k, steps, ...), what `objective.draws` gives.
        step_sizes: one constant step size for each parent.
        milestones: steps after which to yield; the last step always does.

    Yields:
        (step, the children's parameters, the noisy losses that each met since the last milestone).
    """
    m, (k, steps) = len(parents), draws.shape[:2]
    owner = torch.arange(m, device=parents.device).repeat_interleave(k)
    again = torch.arange(k).repeat(m)

    def gradient(points: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return objective.noisy_gradient(points, owner, draws[again, step])

    rates = constant(1.0, steps).unsqueeze(1) * step_sizes.repeat_interleave(k).cpu()
    for step, points, seen in sgd(gradient, parents[owner], rates, momentum, milestones):
        yield step, points.unflatten(0, (m, k)), seen.unflatten(0, (m, k))


def deviation(
    children: Float[Tensor, "m k dim"], keep: Bool[Tensor, "m k"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """√(Σ ‖θ_k − θ̄‖² / (K − 1)) over the children to keep, and its jackknife standard error.

    The root of the trace of their unbiased covariance. √((K − 1) / K) of it is the radius of gyration that `spread`
    gives.
    """
    n = keep.sum(1, keepdim=True).double()
    weight = keep.double().unsqueeze(-1)
    points = children.double().where(keep.unsqueeze(-1), 0)
    away = (points - (points.sum(1, keepdim=True) / n.unsqueeze(-1))) * weight
    square = away.square().sum(-1)  # (m, k)
    total = square.sum(1, keepdim=True)
    without = ((total - n / (n - 1) * square) / (n - 2)).clamp(min=0).sqrt()  # the centre moves with who is left out
    mean = without.where(keep, 0).sum(1, keepdim=True) / n
    variance = ((without - mean).square().where(keep, 0)).sum(1) * (n.squeeze(1) - 1) / n.squeeze(1)
    return (total / (n - 1)).sqrt().squeeze(1), variance.sqrt()


def spread(parents: Float[Tensor, "m dim"], children: Float[Tensor, "m k dim"]) -> xr.Dataset:
    """The size of the set that the children reached, in several senses, with jackknife standard errors.

    - reach: mean distance from the parent; gyration: root mean square distance from the children's centre,
      √(Σ ‖θ_k − θ̄‖² / K); diameter: the largest distance between two children;
    - effective_dimension: participation ratio (Σλ)² / Σλ² of their covariance's spectrum, between 1 and K − 1;
    - log_volume: ln of the K-volume of the simplex whose corners are the parent and its children.

    Under permutations of neurons all of them stay; under ReLU rescaling none but effective_dimension nearly does.

    Raises:
        ValueError: fewer than two children.
    """
    if children.shape[1] < 2:
        raise ValueError(f"the spread of children needs at least 2 of them; got {children.shape[1]}")
    away = (children - parents.unsqueeze(1)).double()
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
