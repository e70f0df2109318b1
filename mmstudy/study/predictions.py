"""One table of all that could order the candidates: static predictors, and every signal at every share of training."""

import numpy as np
import xarray as xr

from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study import statistics
from mmstudy.study.predictors import PREDICTORS, SIZE
from mmstudy.study.signals import SIGNALS

COORDINATES = ("task", "label", "operator")
COUNTING = "parameters"
DIGITS = 5  # float32 losses of networks that compute the same function agree to six or seven


def predictions(experiment: xr.Dataset) -> xr.Dataset:
    """Every predictor's value for every candidate, turned so that more is expected to be better.

    Returns `value` over (candidate, predictor) and, along predictor, `cost` (share of a candidate's full training, the
    mean over candidates), `family`, `measure`, `progress` (NaN of what is measured right after expansion or in a run of
    its own) and `combined` (whether it is rank-averaged with the parameter count). A predictor is named by its measure,
    the share of the training, as in "TSE @5%", and "+ parameters". What could not be measured is NaN.
    """
    pool = statistics.expansions(experiment)
    columns: dict[str, np.ndarray] = {}
    about: dict[str, tuple[str, str, float, float, bool]] = {}  # measure, family, cost, progress, may be combined

    def add(name: str, value: xr.DataArray, sign: int, row: tuple[str, str, float, float, bool]) -> None:
        columns[name] = sign * _rounded(value.values.astype(float))
        about[name] = row

    full = pool["full_cost"]
    for name, each in PREDICTORS.items():
        if name not in pool:  # entered since
            continue
        cost = float((each.passes * np.minimum(pool["probe_examples"], each.examples) / full).mean())
        add(name, pool[name], each.sign, (name, each.family, cost, np.nan, each.combined))
    for name, signal in SIGNALS.items():
        value = signal.compute(pool)
        own = float((pool["cost"].sel(expense=list(signal.expenses)).sum("expense") / full).mean())
        if signal.separate:
            add(name, value, signal.sign, (name, signal.family, own, np.nan, signal.combined))
            continue
        for share in pool["progress"].values.tolist():
            at = value.sel(progress=share)
            if at.notnull().any():
                row = name, signal.family, share + own, share, signal.combined
                add(f"{name} @{100 * share:g}%", at, signal.sign, row)
    for name, estimator in ESTIMATORS.items():
        for share in pool["progress"].values.tolist() if f"{name}_size" in pool else ():
            then, children = pool.sel(progress=share), float((pool["cost"].sel(expense="children") / full).mean())
            cost = share + children + float((then[f"{name}_size_cost"] / full).mean())
            row = f"{name}_size", SIZE, cost, share, True
            add(f"{name}_size @{100 * share:g}%", then[f"{name}_size"], estimator.sign, row)
    task = pool["task"].values
    counted = statistics.shares(columns[COUNTING], task)
    for name in [name for name, row in about.items() if row[-1]]:
        columns[f"{name} + {COUNTING}"] = (statistics.shares(columns[name], task) + counted) / 2
        about[f"{name} + {COUNTING}"] = about[name]
    fields = dict(
        zip(("measure", "family", "cost", "progress"), list(zip(*about.values(), strict=True))[:4], strict=True)
    )
    coords = {name: ("predictor", list(column)) for name, column in fields.items()}
    coords["combined"] = ("predictor", [name.endswith(f"+ {COUNTING}") for name in columns])
    coords["predictor"] = ("predictor", list(columns))
    values = {"value": (("candidate", "predictor"), np.stack(list(columns.values()), axis=1))}
    return xr.Dataset(values, {name: pool[name] for name in COORDINATES} | coords)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To `DIGITS` significant digits, so that what differs in rounding only is a tie."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.abs(values))) - DIGITS + 1)
        return np.where(np.isfinite(values) & (values != 0), np.round(values / unit) * unit, values)


def affordable(predicted: xr.Dataset, budget: float, combined: bool = False) -> list[str]:
    """Of each measure, the predictor that looks latest for no more than a share of a candidate's full training.

    Args:
        combined: of those averaged with the parameter count instead of those alone.
    """
    table = predicted[["measure", "cost", "combined"]].to_dataframe()
    table = table[(table["combined"] == combined) & (table["cost"] <= budget)].sort_values("cost")
    return table.reset_index().groupby("measure", sort=False)["predictor"].last().tolist()
