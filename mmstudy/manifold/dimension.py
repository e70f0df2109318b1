"""The dimension of the set as seen from afar: how small a random affine subspace can be and still meet it.

Subspaces in general position meet where their dimensions add up to at least D. So the smallest that reaches the level
tells the dimension of what it reaches.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.estimate import Budget

Rotation = list[tuple[Float[Tensor, "samples dim"], Float[Tensor, "samples dim"]]]  # (signs, unit normals) by round

ROUNDS = 3  # of the rotation
AWAY = 3.0  # of the distance at which a random ray leaves the set
FURTHEST = 2.0**20  # where rays end that never leave it


def dimension(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    *,
    radius: float | None = None,
) -> xr.Dataset:
    """D − d*, d* the threshold dimension of random affine subspaces that reach the level.

    From a random point at `radius` from the parent the loss is minimized within nested random subspaces; d is the
    smallest of them, by bisection, with L ≤ ℓ, and d* its mean: the area above the curve of success against d, which
    is the threshold where half succeed if that curve is symmetric. Li et al. 2018, arXiv 1804.08838, whose starts are
    initializations; Larsen et al. 2022, arXiv 2107.05802.

    Larger is a larger set. Unit: dimensions, 0 to D. For a flat subspace and a level near its minimum it is the
    subspace's dimension; a higher level or a nearer start make it larger. With too few steps it is too small, and of a
    curved set, seen from outside, the smaller the further the start. What it sees need not be connected to the parent.
    Neuron permutation changes the draws only; rescaling ReLUs changes what is near. A duplicated neuron adds its flat
    directions to size and D alike: across different D compare `threshold`, where less is larger.

    Args:
        parents: (m, dim).
        level: ℓ, one height for all.
        budget: `samples` starts, each with ⌈log₂(D + 1)⌉ descents of so many `steps`; line searches set their size.
        radius: of all starts. By default each start is AWAY times as far as where the loss leaves the level on the
            way there: a unit of length of the parent's own, in which a set twice as wide is no larger.

    Returns:
        As every estimator (`estimate.report`), a sample being D − d of one start; also `threshold`, d*, and
        `start_radius`, the mean. Status: ok; at_limit (a start failed even with d = D: steps are the limit, not
        geometry; its sample is 0); unbounded (every start is within the level already: d = 0); outside; nan.

    Raises:
        ValueError: a radius that is not positive and finite, and what `estimate.starting` refuses.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise ValueError(f"the starts' radius must be positive and finite; got {radius}")
    status, loss = estimate.starting(objective, parents, level, generator)
    count, dim = budget.samples, parents.shape[1]
    draw = torch.randn((count, dim), generator=generator, dtype=torch.float64)
    unit = (draw / draw.norm(dim=1, keepdim=True)).to(parents)
    rotation = _rotation(count, dim, generator, parents)
    looks: int | np.ndarray
    if radius is not None:
        away, looks = parents.new_full((len(parents), count), radius), 0
    else:
        along = unit.expand(len(parents), -1, -1)
        lines = crossings(objective, parents, along, level, max_multiple=FURTHEST, checks=0, origin=loss)
        away, looks = AWAY * lines.radius.to(parents), lines.looks
    here = parents.unsqueeze(1) + away.unsqueeze(-1) * unit
    enough = _thresholds(objective, here, level, budget.steps, rotation)
    samples = (dim - enough).clamp(min=0).double()
    kinds = {"unbounded": (enough == 0).all(1), "at_limit": (enough > dim).any(1)}
    met = [(status == "ok") & where.cpu().numpy() for where in kinds.values()]
    status = np.select(met, list(kinds), status)
    size, descent = samples.mean(1), estimate.STEP + budget.steps * (estimate.PASS + estimate.STEP)
    cost = objective.examples * ((1 + count + looks) * estimate.PASS + count * _bisections(dim) * descent)
    more = {"threshold": dim - size, "start_radius": away.mean(1)}
    return estimate.report(objective, level, size, estimate.standard_error(samples), samples, status, cost, **more)


def _thresholds(
    objective: Objective, start: Float[Tensor, "m n dim"], level: float, steps: int, rotation: Rotation
) -> Int[Tensor, "m n"]:
    """The smallest dimension in which descent from each start reaches the level; D + 1 where none does.

    Subspaces are nested, and a larger one goes on from where a smaller one failed.
    """
    dim, here, axis = start.shape[-1], start, torch.arange(start.shape[-1], device=start.device)
    low = torch.zeros(start.shape[:-1], dtype=torch.long, device=start.device)
    high = torch.full_like(low, dim + 1)
    for _ in range(_bisections(dim)):
        middle = (low + high + 1) // 2
        within = _projection(rotation, axis < middle.unsqueeze(-1))
        end, loss = _descend(objective, here, level, steps, within)
        reached = loss <= level
        low, high = low.where(reached, middle), middle.where(reached, high)
        here = here.where(reached.unsqueeze(-1), end)
    return high.where(~(objective(start) <= level), 0)


def _bisections(dim: int) -> int:
    return math.ceil(math.log2(dim + 1))


def _descend(
    objective: Objective,
    start: Float[Tensor, "m n dim"],
    level: float,
    steps: int,
    within: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "m n dim"], Float[Tensor, "m n"]]:
    """Nonlinear conjugate gradients (Polak & Ribière 1969) within a subspace: where they end, and the loss there.

    Along each direction, the first trial is the minimum of a parabola that is as low as the level; the step goes to
    the minimum of the parabola through the loss there, and is not taken, but tried shorter, if that is no lower.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, dtype=torch.float64)

    def ahead(by: Tensor) -> Tensor:
        return here + by.unsqueeze(-1).to(here) * along

    here, (loss, gradient), tiny = start, objective.gradient(start), torch.finfo(torch.float64).tiny
    gradient = within(gradient)
    along, trust = -gradient, torch.ones_like(loss)
    for _ in range(steps):
        fall = -dot(gradient, along)  # ≥ 0
        trial = trust * 2 * (loss - level).clamp(min=0) / fall.clamp(min=tiny)
        bend = objective(ahead(trial)) - loss + trial * fall  # ½ trial² × curvature
        ratio = torch.where(bend > 0, trial * fall / (2 * bend), 4.0).nan_to_num(0.1).clamp(0.1, 10)
        there = ahead(torch.where(bend.isnan(), 0.1, ratio) * trial)
        new, turned = objective.gradient(there)
        turned, lower = within(turned), new < loss
        keep = (dot(turned, turned - gradient) / dot(gradient, gradient).clamp(min=tiny)).clamp(min=0)
        onward = keep.unsqueeze(-1).to(here) * along - turned
        trust = torch.where(lower, (2 * trust).clamp(max=1), trust / 8)
        here, gradient = there.where(lower.unsqueeze(-1), here), turned.where(lower.unsqueeze(-1), gradient)
        along = onward.where((lower & (dot(onward, turned) < 0)).unsqueeze(-1), -gradient)
        loss = new.where(lower, loss)
    return here, loss


def _rotation(count: int, dim: int, generator: torch.Generator, like: Tensor) -> Rotation:
    """Draws of a random rotation for each sample, which takes O(D log D) to apply where a matrix takes D²."""
    rounds = []
    for _ in range(ROUNDS):
        signs = torch.randint(2, (count, dim), generator=generator) * 2 - 1
        normal = torch.randn((count, dim), generator=generator, dtype=torch.float64)
        rounds.append((signs.to(like), (normal / normal.norm(dim=1, keepdim=True)).to(like)))
    return rounds


def _projection(rotation: Rotation, keep: Bool[Tensor, "m n dim"]) -> Callable[[Tensor], Tensor]:
    """The orthogonal projection onto the rotated axes that are kept."""

    def project(vector: Tensor) -> Tensor:
        for signs, normal in reversed(rotation):
            vector = signs * _hartley(_mirror(vector, normal))
        vector = vector * keep
        for signs, normal in rotation:
            vector = _mirror(_hartley(signs * vector), normal)
        return vector

    return project


def _hartley(vector: Tensor) -> Tensor:
    """The discrete Hartley transform: orthogonal, and its own inverse."""
    waves = torch.fft.fft(vector, norm="ortho")
    return waves.real - waves.imag


def _mirror(vector: Tensor, normal: Tensor) -> Tensor:
    return vector - 2 * (vector * normal).sum(-1, keepdim=True) * normal
