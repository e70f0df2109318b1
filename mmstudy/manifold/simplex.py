"""How large a simplex of low loss fits at a parent, trained from random corners; and the truth for a quadratic loss.

The log-volume is climbed at a fixed mean loss: gradients leave the scale alone, and the scale follows the level. All
simplexes of all parents move at once; a number of each is (m, n, 1, 1): parents, samples, and the axes of its corners.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor
from torch.linalg import matrix_norm

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.estimate import PASS, STEP, Budget

Corners = Float[Tensor, "m n k dim"]  # relative to the parent
Number = Float[Tensor, "m n 1 1"]

SEARCH = 12  # gradients that a search for the scale takes, before and after the climb
FRESH = 2  # a simplex is measured at this many times as many points as it was trained at
MEMORY = 6  # moves that L-BFGS learns the curvature from
REACH = 0.5  # a step is at most this share of the corners' norm
TOLERANCE = 0.005  # in log-volume: one that rose by more over the last tenth of the steps has not converged


def simplex(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    *,
    corners: int = 3,
    points: int = 64,
    max_radius: float = 1024.0,
) -> xr.Dataset:
    """The log-volume of the largest simplex at the parent whose mean loss is the level (Benton et al. 2021).

    max ln V(W) subject to E[L(θ_p + Σ xₖ wₖ)] = ℓ, V = √det(W Wᵀ) / K!, x ~ Dirichlet(1, …, 1) without the parent's
    share. The paper (arXiv 2102.13042) trains a weighted sum of loss and ln V; here every parent's mean loss is the
    level. Each of `budget.samples` simplexes starts at random and climbs `budget.steps` steps of L-BFGS, which chooses
    their length; it has points of its own to be trained at, and others to be measured at.

    More is larger; any real number, in ln of (parameter distance)^K for every dimension D, though a larger D offers
    more directions to choose the flattest from. Permuted neurons only change the random starts. ReLU rescaling: it
    responds as distances do. Duplicated neurons open flat directions, along which it has no bound. Few points or steps
    bias it down, so compare at equal ones.

    Args:
        objective: its exact gradients are used.
        corners: K, those that are trained.
        points: at which a simplex is trained; with too few it is low there and high elsewhere. All of them, m × n ×
            points × D numbers, are held at once, and twice as many to measure it.
        max_radius: how far from the parent a corner may be.

    Returns:
        `estimate.report`, its size the mean over simplexes; also `best`, the largest, whose corners relative
        to the parent are `edges` (parent, corner, coordinate); `effective_edge` (K! V)^(1/K), a
        distance; `mean_loss` at further points. Its status is the worst that a simplex met: nan (no finite number);
        unbounded (a corner is as far as `max_radius`: the size is a lower bound); at_limit (it still rose, or the
        level was not met); ok.

    Raises:
        ValueError: corners not in 1 … D, fewer points than a quadratic has coefficients, or `max_radius` not positive.
    """
    (m, dim), n = parents.shape, budget.samples
    if corners > dim:
        raise ValueError(f"a simplex needs at least as many parameters as corners; got {dim} for corners={corners}")
    if corners < 1 or 2 * points < (corners + 1) * (corners + 2) or not max_radius > 0:
        wanted = f"1 to {dim} corners (the dimension), at least (corners + 1)(corners + 2)/2 points and max_radius > 0"
        raise ValueError(f"needs {wanted}; got corners={corners}, points={points}, max_radius={max_radius}")
    status, loss = estimate.starting(objective, parents, level, generator)
    trained, fresh, others = (barycentric(n, c * points, corners, generator) for c in (1, FRESH, FRESH))
    draw = torch.randn(n, corners, dim, generator=generator, dtype=torch.float64)
    w = (draw / draw.norm(dim=-1, keepdim=True)).to(parents).expand(m, -1, -1, -1)

    losses = _Losses(objective, parents, level, loss.view(-1, 1, 1, 1), max_radius)
    w, _ = losses.to_level(w, trained)
    w, rise = _climb(losses, w, trained, budget.steps)
    w, moved = losses.to_level(w, fresh)
    size, mean_loss = log_volume(w), objective(losses.points(w, others)).mean(-1)

    numbers = (size.isfinite() & mean_loss.isfinite()).all(1)
    settled = (rise.mean((1, 2, 3)) <= TOLERANCE) & (moved <= TOLERANCE).all(1)
    wrong = [~numbers, _far(w, max_radius).flatten(1).any(1), ~settled]
    worst = np.select([x.cpu().numpy() for x in wrong], ["nan", "unbounded", "at_limit"], "ok")
    steps, passes = n * points * (budget.steps + (1 + FRESH) * SEARCH), n * points * FRESH + 1
    cost = objective.examples * (STEP * steps + PASS * passes)
    edge = ((size.mean(1) + math.lgamma(corners + 1)) / corners).exp()
    more = {"best": size.amax(1), "effective_edge": edge, "mean_loss": mean_loss.mean(1)}
    status = np.where(status == "ok", worst, status)
    found = estimate.report(objective, level, size.mean(1), estimate.standard_error(size), size, status, cost, **more)
    largest = w[torch.arange(m), size.nan_to_num(-math.inf).argmax(1)]
    return found.assign(edges=(("parent", "corner", "coordinate"), largest.double().cpu().numpy()))


def ellipsoid_log_simplex(curvatures: Float[Tensor, " dim"], corners: int, level: float) -> float:
    """ln V of the largest simplex at the origin with E[½ Σ hᵢ θᵢ²] = ℓ, infinite with a flat direction.

    E[x xᵀ] = (I + 11ᵀ)/((K+1)(K+2)) =: A, so E[L] = ½ tr(A W H Wᵀ). A^½ W spans the K flattest directions, each
    with 2ℓ/K of that trace: ln V = ½ [K ln(2ℓ(K+1)(K+2)/K) − ln(K+1) − Σ ln hᵢ] − ln K!, over the K smallest hᵢ.
    """
    k, flattest = corners, curvatures.double().sort().values[:corners]
    share = k * math.log(2 * level * (k + 1) * (k + 2) / k) - math.log(k + 1)
    return (share - float(flattest.log().sum())) / 2 - math.lgamma(k + 1)


def log_volume(w: Float[Tensor, "*many k dim"]) -> Float[Tensor, "*many"]:
    """ln of the volume of the simplex between the origin and the rows: ½ ln det(W Wᵀ) − ln K!, float64."""
    return torch.linalg.slogdet(_gram(w))[1] / 2 - math.lgamma(w.shape[-2] + 1)


def barycentric(sets: int, count: int, corners: int, generator: torch.Generator) -> Float[Tensor, "sets count corners"]:
    """Uniform points of a simplex, by their shares of the corners that are not the origin.

    Each set is moved a little to have the mean and covariance of the whole (Barraquand 1995), some of it to just
    outside: a quadratic loss then has its exact mean, and only the rest is left to chance.
    """
    draw = torch.empty(sets, count, corners + 1, dtype=torch.float64).exponential_(generator=generator)
    shares = (draw / draw.sum(-1, keepdim=True))[..., 1:]
    away, k = shares - shares.mean(1, keepdim=True), corners + 1
    wanted = (torch.eye(corners, dtype=torch.float64) - 1 / k) / (k * (k + 1))
    found = torch.linalg.cholesky(away.mT @ away / count)
    return torch.linalg.solve_triangular(found, away.mT, upper=False).mT @ torch.linalg.cholesky(wanted).mT + 1 / k


_size = partial(matrix_norm, keepdim=True)  # of all corners together


@dataclass(frozen=True)
class _Losses:
    """The mean losses of simplexes at the parents, against the level."""

    objective: Objective
    parents: Float[Tensor, "m dim"]
    level: float
    origin: Float[Tensor, "m 1 1 1"]  # the parents' losses
    max_radius: float

    def points(self, w: Corners, shares: Float[Tensor, "n count k"]) -> Float[Tensor, "m n count dim"]:
        return self.parents[:, None, None] + shares.to(w) @ w

    def look(self, w: Corners, shares: Float[Tensor, "n count k"]) -> tuple[Corners, Corners, Number]:
        """The simplexes scaled towards the level, and there the log-volume's gradient at a fixed mean loss, and itself.

        With g = ∇E[L], c = ⟨g, W⟩, the gradient is (W Wᵀ)⁻¹W − (K/c) g, which has nothing along W. The scale takes a
        step of Newton's method in logarithms, at its end at once if the loss grows as a power.
        """
        values, gradients = self.objective.gradient(self.points(w, shares))
        value, gradient = values.mean(-1)[..., None, None], shares.to(w).mT @ gradients / shares.shape[1]
        rise, k = _dot(gradient, w).double(), w.shape[-2]
        gap, aim = value - self.origin, self.level - self.origin
        power = torch.where((gap > 0) & (aim > 0), (aim / gap).log() * gap, self.level - value) / rise
        stretch = torch.where(rise > 0, power, torch.where(value <= self.level, 1.0, -1.0)).nan_to_num(-1).clamp(-1, 1)
        stretch = torch.minimum(stretch, (self.max_radius / _longest(w)).log())
        inward = torch.where(rise > 0, (k / rise).to(w) * gradient, k / _dot(w, w) * w)
        outward, factor = torch.linalg.solve_ex(_gram(w), w.double())[0].to(w), stretch.exp().to(w)
        return w * factor, (outward - inward) / factor, log_volume(w)[..., None, None] + k * stretch

    def to_level(self, w: Corners, shares: Float[Tensor, "n count k"]) -> tuple[Corners, Float[Tensor, "m n"]]:
        """The simplexes at the scale at which their mean loss is the level, and how much the last move changed ln V.

        Newton's method; where that leaves what is known to hold the crossing, the middle of this.
        """
        at = torch.zeros_like(w[..., :1, :1], dtype=torch.float64)  # ln of the scale
        low, high = at - math.inf, at + math.inf
        for _ in range(SEARCH):
            stretched = self.look(w * at.exp().to(w), shares)[0]
            there = (_size(stretched) / _size(w)).double().log()
            low, high = at.where(there >= at, low), at.where(there < at, high)
            inside = ((there > low) & (there < high)) | low.isinf() | high.isinf()
            there = there.where(inside, (low + high) / 2)
            moved, at = (there - at).abs(), there
        return w * at.exp().to(w), w.shape[-2] * moved.flatten(1)


def _climb(losses: _Losses, w: Corners, shares: Float[Tensor, "n count k"], steps: int) -> tuple[Corners, Number]:
    """Where so many steps lead, and how much the log-volume rose over the last tenth of them.

    A step that does not rise is taken back, and one of a quarter tried; a tiny one is kept, whatever it does.
    """
    w, gradient, best = losses.look(w, shares)
    rate = _size(w) / _size(_gram(w).to(w) @ gradient)
    shrink, heights = torch.ones_like(rate), [best]
    pairs: list[tuple] = []
    for _ in range(steps - 1):
        step = _uphill(gradient, _gram(w).to(w), rate, pairs)
        step = step * shrink * (REACH * _size(w) / _size(step)).clamp(max=1)
        new, new_gradient, height = losses.look(w + step, shares)
        numbers = height.isfinite() & _size(new_gradient).isfinite()
        good = ~_far(w, losses.max_radius) & numbers & ((height > best - 1e-4) | (shrink < 0.05))
        move, fall = (new - w).where(good, 0), (gradient - new_gradient).where(good, 0)
        bent, curved = _dot(move, fall), _dot(move, fall) > 1e-8 * _size(move) * _size(fall)
        rate = torch.where(curved, bent / _dot(fall, _gram(w).to(w) @ fall), rate)
        # moves, how much the gradient fell over each, and 1/⟨move, fall⟩
        pairs = [*pairs, (move, fall, torch.where(curved, 1 / bent, 0))][-MEMORY:]
        w, gradient, best = new.where(good, w), new_gradient.where(good, gradient), height.where(good, best)
        shrink = torch.where(good, 1, shrink / 4)
        heights.append(best)
    return w, best - heights[-1 - -(-steps // 10)] if steps > 1 else best + math.inf


def _uphill(gradient: Corners, gram: Float[Tensor, "m n k k"], rate: Number, pairs: list[tuple]) -> Corners:
    """The direction of L-BFGS (Nocedal 1980); its first guess of the inverse curvature is a multiple of W Wᵀ."""
    shares = []
    for move, fall, inverse in reversed(pairs):
        shares.append(inverse * _dot(move, gradient))
        gradient = gradient - shares[-1] * fall
    gradient = rate * (gram @ gradient)
    for (move, fall, inverse), share in zip(pairs, reversed(shares), strict=True):
        gradient = gradient + (share - inverse * _dot(fall, gradient)) * move
    return gradient


def _longest(w: Corners) -> Number:
    return w.norm(dim=-1).amax(-1).double()[..., None, None]


def _far(w: Corners, max_radius: float) -> Bool[Tensor, "m n 1 1"]:
    return _longest(w) >= 0.999 * max_radius


def _gram(w: Tensor) -> Tensor:
    return w.double() @ w.double().mT


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)
