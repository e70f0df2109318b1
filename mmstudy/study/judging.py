"""How good are the choices of policies? They choose from the pool of each task and are judged by its gains."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mmstudy.study import intervals, statistics
from mmstudy.study.policies import Choice


def pools(
    experiment: xr.Dataset,
    predicted: xr.Dataset,
    signals: Mapping[str, xr.DataArray],
    trial: xr.DataArray,
    score: str = "accuracy",
    checkpoint: str = "last",
) -> xr.Dataset:
    """The expansions of all tasks as policies see them (`policies`), and `gain` (mean over seeds) to judge them by.

    `signals` over (candidate, progress) keep their names; `progress` along the predictors of `predicted` becomes
    `trained`, 0 of what is measured right after expansion or in a run of its own. `trial` over candidate is what its
    full training shows on data that a choice may be based on, such as the validation accuracy in the end; test data are
    no such data. More is better in all of them.

    Raises:
        ValueError: the tables have different rows.
    """
    gain = statistics.gains(experiment)["gain"].sel(score=score, checkpoint=checkpoint, drop=True)
    value = predicted["value"].reset_coords(drop=True)
    value = value.assign_coords(cost=predicted["cost"].variable, trained=predicted["progress"].fillna(0).variable)
    columns = {name: signal.reset_coords(drop=True) for name, signal in signals.items()}
    columns |= {"trial": trial.reset_coords(drop=True), "gain": gain, "value": value}
    xr.align(experiment, *columns.values(), join="exact", exclude={"predictor", "progress"})
    return statistics.expansions(experiment[["parameters"]].assign(columns))


def compare(policies: Mapping[str, Callable[[xr.Dataset], Choice]], tasks: xr.Dataset) -> xr.Dataset:
    """Run every policy on every task, and judge its choice by `gain`, which it does not see.

    `tasks` as of `pools`; candidates without a gain are left out, since nobody could judge them. `functools.partial`
    gives a policy its arguments.

    Returns over (policy, task): `regret`, the expected gain lost against the best candidate, in units of the gain;
    `regret_share`, in ranges of the task's gains; `spearman` and `decision` of the final order (as in
    `statistics.scores`); `turned`, the chance that this Spearman is below 0; `cost`, `finish`, and `total`, their sum,
    in trainings of the whole pool.

    Raises:
        ValueError: no candidate of a task has a gain.
    """
    tables = {}
    for name, task in statistics.by_task(tasks):
        one = task.isel(candidate=np.isfinite(task["gain"].values))
        if not one.sizes["candidate"]:
            raise ValueError(f"task {name!r}: no candidate has a gain")
        seen = one.drop_vars("gain")
        rows = {word: _judged(policy(seen), one["gain"].values) for word, policy in policies.items()}
        tables[name] = pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy").to_xarray()
    return xr.concat(tables.values(), xr.DataArray([*tables], dims="task", name="task")).transpose("policy", "task")


def _judged(choice: Choice, gain: np.ndarray) -> dict[str, float]:
    y = np.round(gain, statistics.DECIMALS)
    regret = float(y.max() - choice.chance @ y)
    rho = statistics.spearman(choice.order, y)
    return {
        "regret": regret,
        "regret_share": regret / (float(np.ptp(y)) or 1.0),
        "spearman": float(rho.mean()),
        "decision": float(statistics.ordered_rightly(choice.order, y, *np.triu_indices(len(y), 1)).mean()),
        "turned": float((rho < 0).mean()),
        "cost": choice.cost,
        "finish": choice.finish,
        "total": choice.cost + choice.finish,
    }


def summary(compared: xr.Dataset, **options: Any) -> xr.Dataset:
    """Each policy over the tasks: `regret` with its interval `low`, `high`, `worst` and `worst_task` (`intervals`).

    Means over tasks: `regret_share`, `spearman`, `decision`, `cost`, `finish`, `total`; and `sign_error`, the share of
    tasks whose order is turned. `options` are those of `intervals.over_tasks`.
    """
    regret = intervals.over_tasks(compared["regret"], larger_is_better=False, **options).rename(mean="regret")
    names = ["regret_share", "spearman", "decision", "turned", "cost", "finish", "total"]
    return regret.merge(compared[names].mean("task").rename(turned="sign_error"))
