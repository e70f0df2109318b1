"""The estimators of size by name, what their numbers mean, and whether a reader's number is usual."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.core.seeds import generator
from mmstudy.manifold.children import children
from mmstudy.manifold.curvature import curvature
from mmstudy.manifold.dimension import dimension
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.extent import extent
from mmstudy.manifold.llc import llc
from mmstudy.manifold.rays import rays
from mmstudy.manifold.simplex import simplex
from mmstudy.manifold.volume import volume

HIGHEST = {"∞": lambda dim: math.inf, "D": float, "D/2": lambda dim: dim / 2}  # in D dimensions


@dataclass(frozen=True)
class Estimator:
    """One definition of size.

    `more` is +1 where a larger number is a larger manifold, −1 where a smaller one is; `highest` is the largest value
    that is possible, a key of `HIGHEST`.
    """

    estimate: Callable[..., xr.Dataset]
    what: str
    unit: str
    more: int = +1
    lowest: float = 0.0
    highest: str = "∞"

    def remark(self, value: float, status: str, dim: int, usual: tuple[float, float] | None = None) -> str:
        """What there is to say of one number: its status, an impossible value, or how it compares with usual ones.

        Args:
            dim: D, the number of parameters.
            usual: the range that comparable networks have, if it is known (`usual_range`).
        """
        if status != "ok":
            return status
        highest = HIGHEST[self.highest](dim)
        if not self.lowest <= value <= highest:
            return f"impossible: not in [{self.lowest:g}, {highest:g}]"
        if usual is None or usual[0] <= value <= usual[1]:
            return "usual" if usual else "possible"
        larger = (value > usual[1]) == (self.more > 0)
        return f"unusual: a {'larger' if larger else 'smaller'} manifold than in {usual[0]:.3g} to {usual[1]:.3g}"


ESTIMATORS: Mapping[str, Estimator] = {
    "children": Estimator(children, "radius of gyration of connected SGD explorers", "distance"),
    "extent": Estimator(extent, "mean distance to the level from the children's centre, along ± children", "distance"),
    "rays": Estimator(rays, "mean distance to the level over directions", "distance"),
    "volume": Estimator(volume, "log-volume of what is seen from the parent", "ln distance^D", lowest=-math.inf),
    "simplex": Estimator(simplex, "log-volume of the largest simplex of low loss", "ln distance^K", lowest=-math.inf),
    "dimension": Estimator(dimension, "D − the threshold dimension of random subspaces", "dimensions", highest="D"),
    "curvature": Estimator(curvature, "radius at which a parabola meets the level", "distance"),
    "llc": Estimator(llc, "local learning coefficient", "1", more=-1, highest="D/2"),
}


# what a first look at networks may cost; a reach near enough for chains to agree, and simplexes that are cheap
FIRST_LOOK = {
    "children": Budget(6, 30),
    "extent": Budget(8, 30),
    "rays": Budget(24),
    "simplex": Budget(2, 15),
    "curvature": Budget(32),
    "dimension": Budget(4, 20),
    "llc": Budget(4, 200),
}
OPTIONS: Mapping[str, Mapping[str, float]] = {"llc": {"reach": 2.0}, "simplex": {"corners": 2, "points": 24}}


def sizes(
    objective: Objective, parents: Float[Tensor, "m dim"], level: float, budgets: Mapping[str, Budget] = FIRST_LOOK
) -> dict[str, xr.Dataset]:
    """Every size of the same parents at the same level, each estimator with a budget and a stream of its own.

    Raises:
        ValueError: a budget for what is no estimator.
    """
    if unknown := sorted(budgets.keys() - ESTIMATORS.keys()):
        raise ValueError(f"unknown estimators {unknown}; known: {', '.join(ESTIMATORS)}")
    return {
        name: ESTIMATORS[name].estimate(objective, parents, level, budget, generator(name), **OPTIONS.get(name, {}))
        for name, budget in budgets.items()
    }


def table() -> pd.DataFrame:
    """The estimators, their units, directions and ranges, for people."""
    rows = {
        name: (
            e.what,
            e.unit,
            "larger" if e.more > 0 else "smaller",
            f"{e.lowest:g} to {e.highest}".replace("-inf", "−∞"),
        )
        for name, e in ESTIMATORS.items()
    }
    return pd.DataFrame(rows, ["what", "unit", "a larger number is a … manifold", "valid range"]).T


def usual_range(values: xr.DataArray, share: float = 0.9) -> tuple[float, float]:
    """The range that holds this share of the values, the rest cut off on both sides alike; NaN left out.

    Raises:
        ValueError: fewer than five values that are numbers.
    """
    known = values.values[values.notnull().values]
    if len(known) < 5:
        raise ValueError(f"a usual range needs at least 5 values; got {len(known)}")
    low, high = xr.DataArray(known).quantile([(1 - share) / 2, (1 + share) / 2]).values
    return float(low), float(high)
