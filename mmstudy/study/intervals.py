"""From one number per task to a mean over tasks with an interval: tasks are the clusters that are drawn."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from scipy import stats

FEWEST = 3  # tasks, or seeds, for an interval
CHUNK = 1000  # resamples that are in memory at once


def over_tasks(
    table: xr.DataArray, n_resamples: int = 9999, seed: int = 0, larger_is_better: bool = True
) -> xr.Dataset:
    """The mean over tasks, its 95% BCa interval (Efron 1987) by drawing tasks, and the worst task beside it.

    `table` runs over task and any other dimensions. NaN in it means that something does not apply to a task (no pairs
    of one size): such a task is left out of that mean, and `tasks` counts the others.

    Returns over the other dimensions `mean`; `low`, `high`; `worst`, `worst_task`; `tasks`. The interval is NaN, and
    means that nothing can be said, for fewer than three tasks and where all tasks are equal: draws of such tasks would
    never differ. With few tasks it is too short: of 12 Gaussian ones, it holds the truth in 90 of 100 cases, not 95.

    Raises:
        ValueError: a value is infinite.
    """
    table = table.transpose("task", ...)
    values = table.values.astype(float).reshape(table.sizes["task"], -1)  # (task, column)
    if np.isinf(values).any():
        raise ValueError(f"infinite values in the tasks {table['task'].values[np.isinf(values).any(1)].tolist()}")
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0)
    low, high = _intervals(values, known, n_resamples, seed)
    sign = 1 if larger_is_better else -1
    worst = np.where(known, sign * values, np.inf).argmin(0)
    columns = {
        "mean": np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0),
        "low": low,
        "high": high,
        "worst": values[worst, np.arange(len(worst))],
        "worst_task": np.where(count > 0, table["task"].values[worst], ""),
        "tasks": count,
    }
    like = table.isel(task=0, drop=True)
    return xr.Dataset({name: like.copy(data=column.reshape(like.shape)) for name, column in columns.items()})


def _intervals(
    values: Float[np.ndarray, "task column"], known: Bool[np.ndarray, "task column"], n_resamples: int, seed: int
) -> Float[np.ndarray, "2 column"]:
    """Ends of the interval of each column, over the tasks that it has; every column sees the same draws."""
    ends = np.full((2, values.shape[1]), np.nan)
    for has in np.unique(known, axis=1).T:
        same = (known == has[:, None]).all(0)
        inside = values[has]
        if len(inside) < FEWEST:
            continue
        # what differs in its last digits only is equal: draws of rounding errors would make an interval
        same &= np.ptp(inside, axis=0) > 1e-9 * np.abs(inside).max(0)
        if same.any():
            found = stats.bootstrap(
                (inside[:, same],), _mean, axis=0, vectorized=True, method="BCa", n_resamples=n_resamples,
                batch=min(CHUNK, n_resamples), random_state=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
            ends[:, same] = found
    return ends


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean without its last digits: BCa counts the draws whose mean is equal to that of all."""
    return np.round(values.mean(axis=axis), 12)


def over_seeds(table: xr.DataArray) -> xr.Dataset:
    """The mean over seeds and its 95% interval by Student's t, which few seeds allow if they scatter like a Gaussian.

    Returns over the other dimensions `mean`, `low`, `high`; NaN where a seed is. It says what other seeds of these
    tasks would give, and nothing of other tasks.

    Raises:
        ValueError: fewer than three seeds.
    """
    count = table.sizes["seed"]
    if count < FEWEST:
        raise ValueError(f"an interval over seeds needs at least {FEWEST} of them; got {count}")
    mean, error = table.mean("seed", skipna=False), table.std("seed", ddof=1, skipna=False) / count**0.5
    arm = stats.t.ppf(0.975, count - 1) * error
    return xr.Dataset({"mean": mean, "low": mean - arm, "high": mean + arm})


def decided(table: xr.Dataset) -> xr.Dataset:
    """Of intervals of one difference in several tasks: the `mean` over tasks, and how many leave 0 out on each side.

    Args:
        table: `low`, `high`, `mean` over task and other dimensions.

    Returns:
        Over the other dimensions `mean`; `tasks better`, `tasks worse`, those whose interval is above and below 0.
    """
    counts = {f"tasks {side}": (verdict(table) == side).sum("task") for side in ("better", "worse")}
    return xr.Dataset({"mean": table["mean"].mean("task"), **counts}).reset_coords(drop=True)


def verdict(table: xr.Dataset, larger_is_better: bool = True) -> xr.DataArray:
    """What intervals of a difference say of it: better or worse where they leave 0 out on that side, else undecided.

    Args:
        table: `low` and `high`, over any dimensions; NaN where there is no interval.
    """
    up, down = table["low"] > 0, table["high"] < 0
    better, worse = (up, down) if larger_is_better else (down, up)
    return better.copy(data=np.select([better.values, worse.values], ["better", "worse"], "undecided"))


def differences(table: xr.DataArray, rival: Any, dim: str = "predictor", **options: Any) -> xr.Dataset:
    """Every other entry of a dimension minus the rival, paired by task: `over_tasks` of it, and a verdict.

    `verdict` over the dimension: whether it is better or worse than the rival, or undecided, as `verdict` says.
    `options` are those of `over_tasks`.

    Raises:
        KeyError: there is no such rival.
    """
    result = over_tasks(table.drop_sel({dim: rival}) - table.sel({dim: rival}, drop=True), **options)
    return result.assign(verdict=verdict(result, options.get("larger_is_better", True)))


def front(cost: np.ndarray, merit: np.ndarray) -> np.ndarray:
    """Which points no other point beats: cheaper or as cheap, and better. Boolean, in the order given."""
    order = np.lexsort((-merit, cost))
    best = np.maximum.accumulate(merit[order])
    leads = np.concatenate([[True], best[1:] > best[:-1]])
    on = np.zeros(len(order), bool)
    on[order[leads]] = True
    return on
