"""Rays: how far one can go from a parent before the loss passes the level, every ray with points of its own choice.

r(u) is the distance to the *first* crossing along u, as the manifold is star-shaped about the parent. Each ray chooses
where to look next from what it has seen; all rays that are still under way look at once.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mmstudy.batched import engine
from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.directions import uniform
from mmstudy.manifold.estimate import Budget

COARSE = 0.2  # a bracket so wide, relative to its upper end, is enough to look between it and the start
STUBBORN = 3  # moves of one end in a row, after which the middle is taken
STATUSES = ("converged", "at_limit", "unbounded", "outside", "nan")
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
    most: float = 1024.0,
) -> xr.Dataset:
    """The mean extent E[r(u)] over directions that are drawn for it; more is larger, in units of parameter distance.

    Permuting neurons leaves it. Uniform directions are dominated by the many stiff ones, and respond to ReLU rescaling
    and duplication as distances do. Of filter-normalized ones, `multiple`, in which a direction is one unit, does not
    respond to a rescaling that all units of a layer share.

    Args:
        directions: from `directions`, such as `uniform` or `partial(filter_normalized, ensemble)`.
        first, most: as in `crossings`.

    Returns:
        `estimate.report` with the mean radius as size; also `multiple` (mean), `q10`, `median`, `q90` of the radius.
        Its status is the worst that a ray met: nan, unbounded (the size is a lower bound), at_limit, or ok.
    """
    start, loss = estimate.starting(objective, parents, level)
    along = directions(parents, budget.samples, generator)
    lines = crossings(objective, parents, along, level, first, most, origin=loss)
    radius = torch.as_tensor(lines["radius"].values)
    met = lines["status"].values
    worst = np.select(
        [(met == s).any(1) for s in ("nan", "unbounded", "at_limit")], ["nan", "unbounded", "at_limit"], "ok"
    )
    q10, median, q90 = radius.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=1)
    return estimate.report(
        objective,
        level,
        radius.mean(1),
        estimate.standard_error(radius),
        radius,
        np.where(start == "ok", worst, start),
        cost=objective.examples * estimate.PASS * (1 + lines["evaluations"].sum("ray").values),
        multiple=torch.as_tensor(lines["multiple"].values).mean(1),
        q10=q10,
        median=median,
        q90=q90,
    )


def crossings(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    directions: Float[Tensor, "m rays dim"],
    level: float,
    first: float = 1.0,
    most: float = 16.0,
    tolerance: float = 0.01,
    evaluations: int = 12,
    checks: int = 3,
    origin: Float[Tensor, " m"] | None = None,
) -> xr.Dataset:
    """The first crossing of the level along each direction, to a relative tolerance, in at most so many evaluations.

    The search keeps a bracket [low, high] of the crossing and looks where a power of the distance through its ends
    says, a parabola as long as there is only one; a little beyond, so that the other end closes in; in the middle where
    that fails. A coarse bracket found, `checks` points between the start and its lower end are looked at all at
    once: one above the level is a crossing that the search has jumped over, and it goes on there. What is left and
    entered again between two points that were looked at is not seen.

    Args:
        directions: of any length; multiples of a direction are what is searched.
        first: where every ray looks first.
        most: how far rays go.
        origin: the parents' losses, where they are known.

    Returns:
        Dataset over (parent, ray): `multiple` of the direction, `radius` (multiple × length), `low` and `high` (the
        last bracket), `evaluations`, `reentered` (a point beyond the crossing was seen below the level), `status`:
        converged; at_limit (the bracket is wider than the tolerance); unbounded (below the level as far as `most`, the
        radius is that far); outside (the parent is above the level, the radius is 0); nan (the loss beyond the
        crossing, or at the parent, is not a number).

    Raises:
        ValueError: a direction of length zero or one that is not finite; first, most, tolerance, checks out of range.
    """
    if not 0 < first <= most or not 0 < tolerance < 1 or not 0 <= checks < evaluations:
        raise ValueError(
            f"needs 0 < first ≤ most, a tolerance in (0, 1) and fewer checks than evaluations; got first={first}, "
            f"most={most}, tolerance={tolerance}, checks={checks}, evaluations={evaluations}"
        )
    length = directions.norm(dim=-1)
    if wrong := int((~length.isfinite() | (length == 0)).sum()):
        raise ValueError(f"{wrong} of {length.numel()} directions have length zero or are not finite")
    origin = objective(parents) if origin is None else origin
    search = _Search(objective, parents, directions, level, origin, first, most, tolerance)
    search.run(evaluations - checks, max(COARSE, tolerance))
    search.check(checks)
    search.run(evaluations, tolerance)
    return search.result(length)


class _Search:
    """The state of all rays: (n,) tensors, n = parents × rays, the parent varying slowest."""

    def __init__(self, objective, parents, directions, level, origin, first, most, tolerance):
        m, r, dim = directions.shape
        self.objective, self.parents, self.directions = objective, parents, directions.reshape(-1, dim)
        self.shape, self.level, self.most, self.tolerance = (m, r), level, most, tolerance
        self.owner = torch.arange(m, device=parents.device).repeat_interleave(r)
        self.origin = origin[self.owner]  # float64, as all that follows
        self.target = (level - self.origin).clamp(min=0).sqrt()
        self.low, self.s_low = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        self.high, self.s_high = torch.full_like(self.origin, math.inf), torch.full_like(self.origin, math.inf)
        self.next = torch.full_like(self.origin, first)
        self.last = torch.zeros_like(self.origin)  # how often low (+) or high (−) has moved in a row
        self.spent = torch.zeros_like(self.owner)
        self.reentered = torch.zeros_like(self.owner, dtype=torch.bool)

    def run(self, most_evaluations: int, tolerance: float) -> None:
        """Look on until every ray's bracket is so narrow, or it has spent so many evaluations."""
        while len(some := torch.nonzero(self._under_way(tolerance) & (self.spent < most_evaluations)).squeeze(1)):
            t = self.next[some]
            s, below = self._look(some, t)
            self.spent[some] += 1
            self._move(some, t, s, below)

    def check(self, count: int) -> None:
        """Look at points between the start and the lower end; where one is above the level, go back before it."""
        some = torch.nonzero(self._inside() & (self.low > 0)).squeeze(1)
        if not count or not len(some):
            return
        shares = torch.arange(1, count + 1, device=some.device, dtype=torch.float64) / (count + 1)
        t = self.low[some].unsqueeze(1) * shares
        s, below = self._look(some.repeat_interleave(count), t.flatten())
        s, below = s.view(-1, count), below.view(-1, count)
        self.spent[some] += count
        jumped = ~below.all(1)
        where, at = some[jumped], (~below[jumped]).int().argmax(1, keepdim=True)  # the first above the level
        before = (at - 1).clamp(min=0)
        start = (at == 0).squeeze(1)
        self.high[where], self.s_high[where] = _pick(t[jumped], at), _pick(s[jumped], at)
        self.low[where] = _pick(t[jumped], before).where(~start, 0)
        self.s_low[where] = _pick(s[jumped], before).where(~start, 0)
        self.reentered[where], self.last[where] = True, 0
        self.next[where] = (self.low[where] + self.high[where]) / 2

    def result(self, length: Tensor) -> xr.Dataset:
        outside, unbounded = self.origin > self.level, self._unbounded()
        multiple = _between(self.low, self.s_low, self.high, self.s_high, self.target).nan_to_num(0.0)
        multiple = torch.minimum(torch.maximum(multiple, self.low), self.high)
        multiple = multiple.where(self.s_high.isfinite(), self.low).where(self._inside(), 0)
        status = np.select(  # the first that holds
            [
                x.cpu().numpy()
                for x in (self.origin.isnan(), outside, unbounded, self.s_high.isnan(), self._wide(self.tolerance))
            ],
            ["nan", "outside", "unbounded", "nan", "at_limit"],
            "converged",
        )
        flat = {
            "multiple": multiple,
            "radius": multiple * length.flatten(),
            "low": self.low,
            "high": self.high,
            "evaluations": self.spent,
            "reentered": self.reentered,
        }
        dataset = xr.Dataset({n: (("parent", "ray"), x.view(self.shape).cpu().numpy()) for n, x in flat.items()})
        return dataset.assign(status=(("parent", "ray"), status.reshape(self.shape))).assign_attrs(
            level=float(self.level)
        )

    def _inside(self) -> Tensor:
        return self.origin <= self.level

    def _unbounded(self) -> Tensor:
        return self._inside() & (self.low >= self.most)

    def _wide(self, tolerance: float) -> Tensor:
        return self.high.isinf() | (self.high - self.low > tolerance * self.high)

    def _under_way(self, tolerance: float) -> Tensor:
        return self._inside() & ~self._unbounded() & self._wide(tolerance)

    def _look(self, some: Int[Tensor, " k"], t: Float[Tensor, " k"]) -> tuple[Tensor, Tensor]:
        """√(L − L(parent)) at these multiples of these rays, and whether L ≤ level; NaN is above."""
        rows = []
        for part in engine.pieces(len(some), self.objective.at_once):  # points exist only while they are needed
            which, owner = some[part], self.owner[some[part]]
            step = t[part].to(self.parents).unsqueeze(1) * self.directions[which]
            rows.append(self.objective.at_points(self.parents[owner] + step, owner))
        loss = torch.cat(rows) if rows else t.new_zeros(0)
        return (loss - self.origin[some]).clamp(min=0).sqrt(), loss <= self.level

    def _move(self, some: Tensor, t: Tensor, s: Tensor, below: Tensor) -> None:
        """Take in what was seen, and choose where to look next."""
        self.reentered[some] |= below & (t > self.high[some])
        self.low[some], self.s_low[some] = t.where(below, self.low[some]), s.where(below, self.s_low[some])
        self.high[some], self.s_high[some] = self.high[some].where(below, t), self.s_high[some].where(below, s)
        side = torch.where(below, 1.0, -1.0).to(t)
        last = self.last[some]
        self.last[some] = run = torch.where(last * side > 0, last + side, side)

        low, s_low, high, s_high = (x[some] for x in (self.low, self.s_low, self.high, self.s_high))
        parabola = low * self.target[some] / s_low  # through the start
        further = torch.minimum(
            torch.clamp(1.05 * parabola.nan_to_num(math.inf), 1.5 * low, 4 * low), low.new_tensor(self.most)
        )
        between = _between(low, s_low, high, s_high, self.target[some])
        between = between * (
            1 + 0.4 * self.tolerance * side * 4.0 ** (run.abs() - 1)
        )  # to where the other end comes in
        middle = (low + high) / 2
        good = (between > low) & (between < high) & (run.abs() <= STUBBORN)
        self.next[some] = torch.where(high.isinf(), further, torch.where(good, between, middle))


def _between(low: Tensor, s_low: Tensor, high: Tensor, s_high: Tensor, target: Tensor) -> Tensor:
    """Where s meets its target: along a power of t through the bracket's ends, a straight line where one is at zero."""
    straight = low + (target - s_low) / (s_high - s_low) * (high - low)
    power = (s_high / s_low).log() / (high / low).log()
    return torch.where((low > 0) & (s_low > 0) & (power > 0), low * (target / s_low) ** (1 / power), straight)


def _pick(rows: Tensor, column: Tensor) -> Tensor:
    return rows.gather(1, column).squeeze(1)
