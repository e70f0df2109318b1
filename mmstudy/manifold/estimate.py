"""What every estimator of size returns, and how much it may spend.

An estimator is a function (objective, parents, level, budget, generator) → Dataset. Parents are points of parameter
space, (m, dim); the level is one height of the loss for all of them. The estimators: `children`, `extent`, `rays`,
`volume`, `simplex`, `dimension`, `curvature`, `llc`.

M_ℓ(θ_p) = {θ : L ≤ ℓ on the whole segment θ_p → θ}: star-shaped about the parent.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.core import arguments

PASS, STEP = 1, 3  # cost of a forward pass and of a training step, in example-evaluations per example


@dataclass(frozen=True)
class Budget:
    """How much an estimator may spend on each parent.

    `samples`: children, rays, directions, chains, subspaces or corners, whatever it averages over; `steps` of
    training for each of them, where it trains, at this step size.
    """

    samples: int = 16
    steps: int = 100
    step_size: float = 0.05
    momentum: float = 0.9

    def __post_init__(self):
        told = "samples (a size without a standard error is no estimate)"
        object.__setattr__(self, "samples", arguments.whole(self.samples, told, 2))
        object.__setattr__(self, "steps", arguments.whole(self.steps, "steps", 1))
        arguments.number(self.step_size, "step_size", 0)
        arguments.momentum(self.momentum)


def starting(
    objective: Objective, parents: Float[Tensor, "m dim"], level: float, generator: torch.Generator
) -> tuple[np.ndarray, Float[Tensor, " m"]]:
    """Each parent's status before anything is measured, and its loss.

    The status: ok, outside (its loss is above the level) or nan.

    Args:
        generator: of the draws that follow.

    Raises:
        TypeError: the generator is none.
        ValueError: no parent, or a level that is not a number.
    """
    arguments.generator(generator)
    if not len(parents):
        raise ValueError("nothing to measure: no parents")
    if not np.isfinite(level):
        raise ValueError(f"the level must be a finite loss; got {level}")
    loss = objective(parents)
    broken = ~loss.isfinite() | ~parents.isfinite().all(1)
    return np.select([broken.cpu().numpy(), (loss > level).cpu().numpy()], ["nan", "outside"], "ok"), loss


def report(
    objective: Objective,
    level: float,
    size: Float[Tensor, " m"],
    error: Float[Tensor, " m"],
    samples: Float[Tensor, "m n"],
    status: np.ndarray,
    cost: int | np.ndarray,
    **more: Tensor,
) -> xr.Dataset:
    """An estimate, as every estimator returns it.

    `size`, its standard error `size_se`, `status` over parent; `samples` over (parent, sample); `cost`,
    example-evaluations per parent. Where the status says that nothing could be measured, the size is NaN. The level,
    and what batch normalization used, are recorded as attributes.

    Args:
        status: of each parent, (m,); "ok" where the number can be trusted.
        cost: what one parent took, in example-evaluations, or what each did.
        more: further variables over parent.
    """
    values = {"size": size, "size_se": error} | more
    dataset = xr.Dataset({name: ("parent", value.double().cpu().numpy()) for name, value in values.items()})
    dataset["samples"] = ("parent", "sample"), samples.double().cpu().numpy()
    never, void = (xr.DataArray(np.isin(status, words), dims="parent") for words in (NEVER, VOID))
    estimate = dataset[["size", "size_se", "samples"]].where(~void)
    whole = dataset.where(~never).assign(estimate)
    whole["status"], whole["cost"] = ("parent", status), ("parent", np.broadcast_to(cost, status.shape).copy())
    return whole.assign_attrs(level=float(level), normalization=objective.normalization)


NEVER = ("outside", "nan")  # statuses of parents at which nothing can be measured
VOID = (
    *NEVER,
    "unconnected",
    "together",
    "no_plateau",
)  # statuses that go without a size; what else was seen may tell why


def standard_error(samples: Float[Tensor, "m n"], keep: Bool[Tensor, "m n"] | None = None) -> Float[Tensor, " m"]:
    """s/√n of independent samples, of those to keep; NaN of fewer than two."""
    keep = torch.ones_like(samples, dtype=torch.bool) if keep is None else keep
    n = keep.sum(1)
    mean = samples.where(keep, 0).sum(1) / n
    square = (samples - mean.unsqueeze(1)).square().where(keep, 0).sum(1)
    return (square / (n - 1) / n).sqrt()
