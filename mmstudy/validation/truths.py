"""Landscapes whose size is known, and how well every estimator finds it: bias, error, coverage, cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective, of_landscape
from mmstudy.core import progress
from mmstudy.core.seeds import generator
from mmstudy.manifold.estimate import Budget, standard_error
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.manifold.simplex import ellipsoid_log_simplex
from mmstudy.validation import landscapes as ls
from mmstudy.validation.singular import (
    ellipsoid_coefficient,
    factorization_coefficient,
    monomials,
    monomials_coefficient,
)

LEVEL = 0.03
MIDPOINTS = 100_000
SAME = 1e-3  # a difference that no interval needs to hold: where there is no chance, its width is zero


@dataclass(frozen=True)
class Case:
    """A landscape, a parent on it, and what an estimator should find there."""

    estimator: str
    landscape: str
    objective: Objective
    parent: Float[Tensor, " dim"]
    truth: float
    budget: Budget
    level: float = LEVEL
    options: Mapping[str, object] = field(default_factory=dict)

    def estimate(self, *words: object) -> xr.Dataset:
        """One estimate; other words, other random draws."""
        source = generator("truth", self.estimator, self.landscape, *words)
        return ESTIMATORS[self.estimator].estimate(
            self.objective, self.parent.unsqueeze(0), self.level, self.budget, source, **self.options
        )


def cases() -> list[Case]:
    """Every estimator on landscapes where its truth is known in closed form or by quadrature."""
    h = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    many, flat = torch.logspace(-1, 1, 12, dtype=torch.float64), torch.tensor([4.0, 1.0, 0.25, 0, 0]).double()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator("turn"), dtype=torch.float64)).Q
    turned = of_landscape(lambda points: ls.ellipsoid(many)(points @ turn.to(points)), 12)
    bowl, noisy = of_landscape(ls.ellipsoid(h), 3), of_landscape(ls.ellipsoid(h), 3, noise=0.2)
    ring, shell = of_landscape(ls.ring(), 2), of_landscape(ls.ring(), 3)
    ellipse, valley = of_landscape(ls.ellipsoid(h[1:]), 2), of_landscape(ls.ellipsoid(flat), 5)
    target = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    product = of_landscape(ls.factorization(target, 2), 8)
    balanced = ls.factorization_minimum(target, 2)
    x, w = torch.randn(40, 2, generator=generator("copies"), dtype=torch.float64), torch.tensor([1.0, -0.5]).double()
    copies, copied = of_landscape(ls.duplicated(x, w, 1.0), 6), ls.duplicated_minimum(w, 0.6, 0.4)
    quartic = of_landscape(monomials((1, 1, 2)), 3)

    def on_shell(dim: int) -> Tensor:
        return torch.eye(dim, dtype=torch.float64)[0]

    def zeros(dim: int) -> Tensor:
        return torch.zeros(dim, dtype=torch.float64)

    walk = Budget(64, 200, step_size=0.2, momentum=0.5)
    variance = ls.stationary_variance(h, 0.2, walk.step_size, walk.momentum)
    few, lines, chains = Budget(8), Budget(200), Budget(16, 800)
    start = (ls.ellipsoid_log_volume(h, LEVEL), ls.shell_log_volume(3, 1.0, 1.0, LEVEL))
    rough = {"scale": many[None] ** -0.4}
    volume = ls.ellipsoid_log_volume(many, LEVEL)
    radius = math.sqrt(2 * LEVEL * 12 / float(many.sum()))
    near: dict[str, Any] = {  # so near, a curved set is flat
        "budget": Budget(24, 100),
        "level": 1e-12,
        "options": {"radius": 1e-3},
    }
    slow = Budget(32, 60, step_size=0.2, momentum=0.5)
    drift = ls.stationary_variance(h[1:], 0.15, slow.step_size, slow.momentum)
    shaken, aim = of_landscape(ls.ellipsoid(h[1:]), 2, noise=0.15), ls.gaussian_density(drift)
    seen = _mean(lambda a: aim(_unit(a)) * ls.ellipsoid_radius(h[1:], _unit(a), LEVEL))
    return [
        Case("children", "ellipsoid", noisy, zeros(3), variance.sum().sqrt().item(), walk, level=1e3),
        Case("extent", "ellipse", shaken, zeros(2), seen, slow),
        Case("rays", "ellipse", ellipse, zeros(2), _mean(lambda a: ls.ellipsoid_radius(h[1:], _unit(a), LEVEL)), lines),
        Case("rays", "ring", ring, on_shell(2), _mean(lambda a: ls.ring_radius(a, 1.0, 1.0, LEVEL)), lines),
        Case("volume", "ellipsoid", bowl, zeros(3), start[0], Budget(400)),
        Case("volume", "shell", shell, on_shell(3), start[1], Budget(1000)),
        Case("volume", "ellipsoid, D = 12, shape roughly known", _plain(many), zeros(12), volume, lines, options=rough),
        Case("simplex", "ellipsoid", bowl, zeros(3), ellipsoid_log_simplex(h, 2, LEVEL), few, options={"corners": 2}),
        Case("dimension", "ellipsoid, 2 of 5 flat", valley, zeros(5), 2.0, **near),
        Case("dimension", "U V = M", product, balanced, float(ls.factorization_dimension(2, 2, 2, 2)), **near),
        Case("dimension", "duplicated neurons", copies, copied, 4.0, **near),
        Case("curvature", "ellipsoid, D = 12, turned", turned, zeros(12), radius, Budget(64)),
        Case("llc", "ellipsoid", bowl, zeros(3), ellipsoid_coefficient(h), chains),
        Case("llc", "ellipsoid, 2 of 5 flat", valley, zeros(5), ellipsoid_coefficient(flat), chains),
        Case("llc", "one of 3 directions quartic", quartic, zeros(3), monomials_coefficient((1, 1, 2)), chains),
        Case("llc", "U V = M", product, balanced, factorization_coefficient(2, 2, 2, 2), chains),
    ]


def repeated(case: Case, repetitions: int) -> xr.Dataset:
    """Estimates with draws of their own: `size`, `size_se`, `status`, `cost`, `error` over repetition.

    Where a size is the mean of its samples, all repetitions are drawn as one and regrouped (those of `llc` then share
    the temperature that it found). `error` is size / truth − 1, of a logarithm the difference to the truth.
    """
    estimator = ESTIMATORS[case.estimator]
    if estimator.averages:
        n = case.budget.samples
        whole = replace(case, budget=replace(case.budget, samples=repetitions * n)).estimate(0).isel(parent=0)
        groups = torch.as_tensor(whole["samples"].values).view(n, repetitions).T
        found = xr.Dataset(
            {
                "size": ("repetition", groups.mean(1)),
                "size_se": ("repetition", standard_error(groups)),
                "status": ("repetition", [whole["status"].item()] * repetitions),
                "cost": ("repetition", [whole["cost"].item() / repetitions] * repetitions),
            }
        )
    else:
        keep = ["size", "size_se", "status", "cost"]
        found = xr.concat([case.estimate(i)[keep].isel(parent=0) for i in range(repetitions)], "repetition")
    return found.assign(error=found["size"] - case.truth if estimator.logarithm else found["size"] / case.truth - 1)


def truth_table(known: Sequence[Case], repetitions: int) -> xr.Dataset:
    """How well each case is found, over `case`.

    `truth`, `estimate` (mean over repetitions), `bias` and its standard error, `error` (median absolute), `coverage`
    (share of the repetitions whose 95% interval holds the truth), `unsettled` (share whose status is not ok), `cost`.
    """
    rows = []
    for case in progress.through(known, "truths"):
        found = repeated(case, repetitions)
        covered = (abs(found["size"] - case.truth) <= 1.96 * found["size_se"]) | (abs(found["error"]) <= SAME)
        summary = {
            "truth": case.truth,
            "estimate": found["size"].mean(),
            "bias": found["error"].mean(),
            "bias_se": found["error"].std(ddof=1) / repetitions**0.5,
            "error": abs(found["error"]).median(),
            "coverage": covered.mean(),
            "unsettled": (found["status"] != "ok").mean(),
            "cost": found["cost"].mean(),
        }
        rows.append(xr.Dataset(summary))
    coords = {
        "estimator": ("case", [case.estimator for case in known]),
        "landscape": ("case", [case.landscape for case in known]),
        "drawn": ("case", [case.budget.samples for case in known]),
    }
    return xr.concat(rows, "case").assign_coords(coords)


def growth(known: Sequence[Case], samples: Sequence[int], repetitions: int) -> xr.Dataset:
    """The root mean square error as samples grow, `error` over (case, drawn)."""
    errors = [
        [
            float((repeated(replace(case, budget=replace(case.budget, samples=n)), repetitions)["error"] ** 2).mean())
            ** 0.5
            for n in samples
        ]
        for case in progress.through(known, "growth")
    ]
    coords = {
        "drawn": list(samples),
        "estimator": ("case", [case.estimator for case in known]),
        "landscape": ("case", [case.landscape for case in known]),
    }
    return xr.Dataset({"error": (("case", "drawn"), errors)}, coords)


def _plain(curvatures: Tensor) -> Objective:
    return of_landscape(ls.ellipsoid(curvatures), len(curvatures))


def _unit(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def _mean(radius) -> float:
    """Over all angles, by the midpoint rule."""
    return radius((torch.arange(MIDPOINTS, dtype=torch.float64) + 0.5) * 2 * math.pi / MIDPOINTS).mean().item()
