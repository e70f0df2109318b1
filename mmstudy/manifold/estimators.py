"""The estimators of size, each with all there is to say of it: `ESTIMATORS`. And whether a reader's number is usual.

To add one, enter it here or, from outside, in the dictionary: `ESTIMATORS["mine"] = Estimator(...)`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
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
SIGNS = (+1, -1)


@dataclass(frozen=True)
class Estimator:
    """One definition of size, and all there is to say of it.

    Attributes:
        estimate: (objective, parents, level, budget, generator, **options) → what `estimate.report` makes.
        description: what it measures, in a few words.
        unit: of the size.
        source: the paper.
        color: in figures.
        sign: +1 where a larger number is a larger manifold, −1 where a smaller one is.
        lowest: the least value that is possible.
        highest: the largest value that is possible, a key of `HIGHEST`.
        averages: the size is the mean of its samples.
        logarithm: the size is a logarithm, so that two of them are compared by their difference.
        gradients: it takes gradients of the loss, to train or for the curvature.
        budget: for a first look at networks.
        options: for a first look at networks.
    """

    estimate: Callable[..., xr.Dataset]
    description: str
    unit: str
    source: str
    color: str
    sign: int = +1
    lowest: float = 0.0
    highest: str = "∞"
    averages: bool = False
    logarithm: bool = False
    gradients: bool = True
    budget: Budget = field(default_factory=Budget)
    options: Mapping[str, float | int] = field(default_factory=dict)

    def __post_init__(self):
        if self.sign not in SIGNS or self.highest not in HIGHEST:
            allowed = f"sign is one of {SIGNS} and highest one of {', '.join(HIGHEST)}"
            raise ValueError(f"of an estimator, {allowed}; got sign={self.sign!r}, highest={self.highest!r}")

    def measure(
        self,
        objective: Objective,
        parents: Float[Tensor, "m dim"],
        level: float,
        generator: torch.Generator,
        budget: Budget | None = None,
    ) -> xr.Dataset:
        """One estimate with the options, and the budget if no other is given, of a first look."""
        return self.estimate(objective, parents, level, budget or self.budget, generator, **self.options)

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
        larger = (value > usual[1]) == (self.sign > 0)
        return f"unusual: a {'larger' if larger else 'smaller'} manifold than in {usual[0]:.3g} to {usual[1]:.3g}"


ESTIMATORS: dict[str, Estimator] = {  # the budgets are cheap; chains that do not go far agree sooner
    "children": Estimator(
        children,
        "standard deviation of connected SGD explorers",
        "distance",
        "Frankle et al. 2020, arXiv 1912.05671",
        "#029e73",
        budget=Budget(6, 30),
    ),
    "extent": Estimator(
        extent,
        "mean distance to the level along ± children",
        "distance",
        "ours, after the idea of arXiv 2405.15895",
        "#004d40",
        budget=Budget(8, 30),
    ),
    "rays": Estimator(
        rays,
        "mean distance to the level over directions",
        "distance",
        "Li et al. 2018, arXiv 1712.09913",
        "#0173b2",
        averages=True,
        gradients=False,
        budget=Budget(24),
    ),
    "volume": Estimator(
        volume,
        "log-volume of what is seen from the parent",
        "ln distance^D",
        "Scherlis & Belrose 2025, arXiv 2501.18812",
        "#56b4e9",
        lowest=-math.inf,
        logarithm=True,
        gradients=False,
    ),
    "simplex": Estimator(
        simplex,
        "log-volume of the largest simplex of low loss",
        "ln distance^K",
        "Benton et al. 2021, arXiv 2102.13042",
        "#cc78bc",
        lowest=-math.inf,
        averages=True,
        logarithm=True,
        budget=Budget(2, 15),
        options={"corners": 2, "points": 24},
    ),
    "dimension": Estimator(
        dimension,
        "D − the threshold dimension of random subspaces",
        "dimensions",
        "Li et al. 2018, arXiv 1804.08838",
        "#de8f05",
        highest="D",
        averages=True,
        budget=Budget(4, 20),
    ),
    "curvature": Estimator(
        curvature,
        "radius at which a parabola meets the level",
        "distance",
        "Hutchinson 1990; the Laplace limit of the others",
        "#d55e00",
        budget=Budget(32),
    ),
    "llc": Estimator(
        llc,
        "local learning coefficient",
        "1",
        "Lau et al. 2023, arXiv 2308.12108",
        "#ca9161",
        sign=-1,
        highest="D/2",
        averages=True,
        budget=Budget(4, 200),
        options={"reach": 2.0},
    ),
}


def sizes(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budgets: Mapping[str, Budget] | None = None,
    seed: int = 0,
) -> dict[str, xr.Dataset]:
    """Every size of the same parents at the same level, each estimator with a budget and a stream of its own.

    Args:
        budgets: by the names of the estimators wanted; all of them, with those of a first look, by default.
        seed: of all draws.

    Raises:
        ValueError: a budget for what is no estimator.
    """
    budgets = {name: each.budget for name, each in ESTIMATORS.items()} if budgets is None else budgets
    if unknown := sorted(budgets.keys() - ESTIMATORS.keys()):
        raise ValueError(f"unknown estimators {unknown}; known: {', '.join(ESTIMATORS)}")
    more = (seed,) if seed else ()
    return {
        name: ESTIMATORS[name].measure(objective, parents, level, generator(name, *more), budget)
        for name, budget in budgets.items()
    }


def table() -> pd.DataFrame:
    """The estimators, their units, directions, ranges and sources, for people."""
    rows = {
        name: (
            e.description,
            e.unit,
            "larger" if e.sign > 0 else "smaller",
            f"{e.lowest:g} to {e.highest}".replace("-inf", "−∞"),
            e.source,
        )
        for name, e in ESTIMATORS.items()
    }
    return pd.DataFrame(rows, ["description", "unit", "a larger number is a … manifold", "valid range", "source"]).T


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
