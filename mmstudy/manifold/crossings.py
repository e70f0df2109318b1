"""How far one can go along rays before the loss passes the level, every ray with points of its own choice.

r(u) is the distance to the *first* crossing along u, as the manifold is star-shaped about the parent. Each ray chooses
where to look next from what it has seen; all rays that are still under way look at once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmstudy.batched import engine
from mmstudy.batched.objective import Objective

COARSE = 0.2  # a bracket so wide, relative to its upper end, is enough to look between it and the start
STUBBORN = 3  # moves of one end in a row, after which the middle is taken
STATUSES = ("converged", "at_limit", "unbounded", "outside", "nan")


@dataclass(frozen=True)
class Crossings:
    """Where each ray of each parent first passes the level.

    `multiple` of the direction; `radius`, multiple × length; `low` and `high`, the last bracket of the multiple;
    `evaluations`; `reentered`: a point beyond the crossing was seen below the level. `status`: converged; at_limit (the
    bracket is wider than the tolerance); unbounded (below the level as far as rays go, the radius is that far); outside
    (the parent is above the level, the radius is 0); nan (the loss beyond the crossing, or at the parent, is not a
    number).
    """

    multiple: Float[Tensor, "m rays"]
    radius: Float[Tensor, "m rays"]
    low: Float[Tensor, "m rays"]
    high: Float[Tensor, "m rays"]
    evaluations: Int[Tensor, "m rays"]
    reentered: Bool[Tensor, "m rays"]
    status: np.ndarray

    @property
    def looks(self) -> np.ndarray:
        """Evaluations of all rays of each parent, (m,)."""
        return self.evaluations.sum(1).cpu().numpy()


def crossings(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    directions: Float[Tensor, "m rays dim"],
    level: float,
    first: float = 1.0,
    max_multiple: float = 16.0,
    tolerance: float = 0.01,
    evaluations: int = 12,
    checks: int = 3,
    origin: Float[Tensor, " m"] | None = None,
) -> Crossings:
    """The first crossing of the level along each direction, to a relative tolerance, in at most so many evaluations.

    The search keeps a bracket [low, high] of the crossing and looks where a power of the distance through its ends
    says, a parabola as long as there is only one; a little beyond, so that the other end closes in; in the middle where
    that fails. A coarse bracket found, `checks` points between the start and its lower end are looked at all at
    once: one above the level is a crossing that the search has jumped over, and it goes on there. What is left and
    entered again between two points that were looked at is not seen.

    Args:
        directions: of any length; multiples of a direction are what is searched.
        first: where every ray looks first.
        max_multiple: how far rays go, in multiples of their direction.
        origin: the parents' losses, where they are known.

    Raises:
        ValueError: no direction, one of length zero or one that is not finite; parents, directions or losses that do
            not belong together; another argument out of range.
    """
    if math.isnan(level):
        raise ValueError("level must be a number; got nan")
    if not 0 < first <= max_multiple or not 0 < tolerance < 1 or not 0 <= checks < evaluations:
        raise ValueError(
            "needs 0 < first ≤ max_multiple, a tolerance in (0, 1) and fewer checks than evaluations; got first="
            f"{first}, max_multiple={max_multiple}, tolerance={tolerance}, checks={checks}, evaluations={evaluations}"
        )
    length = directions.norm(dim=-1)
    if not length.numel():
        raise ValueError(f"there is no direction: directions has the shape {tuple(directions.shape)}")
    if wrong := int((~length.isfinite() | (length == 0)).sum()):
        raise ValueError(f"{wrong} of {length.numel()} directions have length zero or are not finite")
    many, dim = parents.shape
    if directions.shape != (many, directions.shape[1], dim) or (origin is not None and origin.shape != (many,)):
        losses = "" if origin is None else f" and losses of the shape {tuple(origin.shape)}"
        raise ValueError(
            f"{many} parents of {dim} parameters need directions of the shape ({many}, rays, {dim}), and one loss each;"
            f" got directions of the shape {tuple(directions.shape)}{losses}"
        )
    origin = objective(parents) if origin is None else origin
    search = _Search(objective, parents, directions, level, origin, first, max_multiple, tolerance)
    search.run(evaluations - checks, max(COARSE, tolerance))
    search.check(checks)
    search.run(evaluations, tolerance)
    return search.result(length)


class _Search:
    """The state of all rays: (n,) tensors, n = parents × rays, the parent varying slowest."""

    def __init__(self, objective, parents, directions, level, origin, first, max_multiple, tolerance):
        m, r, dim = directions.shape
        self.objective, self.parents, self.directions = objective, parents, directions.reshape(-1, dim)
        self.shape, self.level, self.max_multiple, self.tolerance = (m, r), level, max_multiple, tolerance
        self.owner = torch.arange(m, device=parents.device).repeat_interleave(r)
        self.origin = origin[self.owner]  # float64, as all that follows
        self.target = (level - self.origin).clamp(min=0).sqrt()
        self.low, self.s_low = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        self.high, self.s_high = torch.full_like(self.origin, math.inf), torch.full_like(self.origin, math.inf)
        self.next = torch.full_like(self.origin, first)
        self.last = torch.zeros_like(self.origin)  # how often low (+) or high (−) has moved in a row
        self.spent = torch.zeros_like(self.owner)
        self.reentered = torch.zeros_like(self.owner, dtype=torch.bool)

    def run(self, max_evaluations: int, tolerance: float) -> None:
        """Look on until every ray's bracket is so narrow, or it has spent so many evaluations."""
        while len(some := torch.nonzero(self._under_way(tolerance) & (self.spent < max_evaluations)).squeeze(1)):
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

    def result(self, length: Tensor) -> Crossings:
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

        def shaped(values: Tensor) -> Tensor:
            return values.view(self.shape)

        return Crossings(
            multiple=shaped(multiple),
            radius=shaped(multiple * length.flatten()),
            low=shaped(self.low),
            high=shaped(self.high),
            evaluations=shaped(self.spent),
            reentered=shaped(self.reentered),
            status=status.reshape(self.shape),
        )

    def _inside(self) -> Tensor:
        return self.origin <= self.level

    def _unbounded(self) -> Tensor:
        return self._inside() & (self.low >= self.max_multiple)

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
            torch.clamp(1.05 * parabola.nan_to_num(math.inf), 1.5 * low, 4 * low), low.new_tensor(self.max_multiple)
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
