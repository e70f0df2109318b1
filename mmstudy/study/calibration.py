"""What calibration cases (`advice`) teach: the prior of a ranking's regression, and how wide its intervals must be."""

import numpy as np
import xarray as xr

from mmstudy.core import progress
from mmstudy.expansion.pools import Size
from mmstudy.ranking.asked import pool_of
from mmstudy.ranking.policy import Plan
from mmstudy.ranking.posterior import Pool, Prior, fit, posterior
from mmstudy.ranking.report import LEVEL, OWN
from mmstudy.ranking.rows import Row

BUDGETS = {False: 0.1, True: 0.25}  # without and with anchors


def by_case(told: xr.Dataset) -> dict[str, xr.Dataset]:
    """The rows of each case, its own network last."""
    found = {}
    for name in dict.fromkeys(told["case"].values.tolist()):
        one = told.isel(row=told["case"].values == name)
        found[name] = one.isel(row=np.argsort(one["label"].values == OWN, kind="stable"))
    return found


def pools(told: xr.Dataset, anchored: bool) -> list[tuple[Pool, np.ndarray]]:
    """Each case's pool as it was seen early, and its final scores."""
    found = []
    for one in by_case(told.sel(anchored=anchored)).values():
        columns = (one[name].values.tolist() for name in ("label", "early_loss", "early_score"))
        rows = [Row(label, 0, loss, loss, score, 0.0) for label, loss, score in zip(*columns, strict=True)]
        sizes = [Size(int(count), 0) for count in one["parameters"].values]
        pool = pool_of(rows, sizes, one["operator"].values.tolist(), Plan(0, int(anchored), 0.0))
        found.append((pool, one["final_score"].values.astype(float)))
    return found


def priors(told: xr.Dataset) -> dict[bool, Prior]:
    """The priors under which the final scores of these cases are most likely."""
    return {anchored: fit(pools(told, anchored)) for anchored in BUDGETS}


def misses(told: xr.Dataset) -> xr.DataArray:
    """How far gains came out from what was expected, in half-widths of the interval, over (row, anchored).

    Each case is expected under the prior that all the other cases teach. NaN where the gain was known.

    Raises:
        ValueError: fewer than two cases.
    """
    names = [*by_case(told)]
    if len(names) < 2:
        raise ValueError(f"at least two cases needed, to leave one out; got {len(names)}")
    columns = []
    for anchored in BUDGETS:
        seen, trained, found = pools(told, anchored), [*by_case(told.sel(anchored=anchored)).values()], []
        for i, (pool, final) in enumerate(progress.through(seen, "cases left out")):
            known = trained[i]["trained"].values | pool.own.astype(bool)
            expected = posterior(
                pool, np.where(trained[i]["trained"].values, final, np.nan), fit(seen[:i] + seen[i + 1 :])
            )
            gain, low, _ = expected.gains(LEVEL)
            away = np.abs(final - final[-1] - gain)
            found.append(np.divide(away, gain - low, out=np.full(len(known), np.nan), where=~known))
        columns.append(np.concatenate(found))
    case = [name for name, one in by_case(told).items() for _ in range(one.sizes["row"])]
    return xr.DataArray(np.stack(columns, axis=1), {"case": ("row", case), "anchored": [*BUDGETS]}, ("row", "anchored"))


def left_out(missed: xr.DataArray) -> xr.DataArray:
    """The share of each case's open gains that the intervals held, over (case, anchored), of `misses`; NaN of none."""
    held = (missed <= 1).where(missed.notnull()).groupby("case").mean()
    return held.sel(case=[*dict.fromkeys(missed["case"].values.tolist())]).rename("coverage")


def stretches(missed: xr.DataArray) -> dict[bool, float]:
    """How much wider intervals must be to hold `LEVEL` of the gains of a case that is like none of these, of `misses`.

    The quantile of the misses at (k + 1)/k times that level, each of the k cases counting alike: conformal prediction
    for groups, whose rows are right or wrong together (Dunn, Wasserman & Ramdas 2023, arXiv 1809.07441).
    """
    count = len(set(missed["case"].values.tolist()))
    level = min(1.0, LEVEL * (count + 1) / count)
    found = {}
    for anchored in BUDGETS:
        one = missed.sel(anchored=anchored).dropna("row").sortby("case")
        weight = (1 / one.groupby("case").count()).sel(case=one["case"]).values
        order = np.argsort(one.values)
        reached = np.cumsum(weight[order]) / weight.sum()
        found[anchored] = round(float(one.values[order][np.searchsorted(reached, level - 1e-12)]), 4)
    return found
