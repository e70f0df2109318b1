"""Numbers as the abstract writes them: means with their intervals, comparisons with their verdicts."""

import xarray as xr

from mmstudy.study import intervals


def number(value: xr.DataArray) -> str:
    """A number with its sign, to two digits: "−0.17"; "?" for one that is not known."""
    return f"{float(value):+.2f}".replace("-", "−").replace("nan", "?")


def signed(one: xr.Dataset, unit: str = "") -> str:
    """A mean and its interval, of what `intervals` returns for one thing: "+0.36 [+0.18, +0.50]"."""
    mean, low, high = (number(one[name]) for name in ("mean", "low", "high"))
    return f"{mean}{unit and ' ' + unit} [{low}, {high}]"


def interval(values: xr.DataArray, unit: str = "") -> str:
    """The mean over tasks and its interval."""
    return signed(intervals.over_tasks(values), unit)


def points(values: xr.DataArray) -> str:
    """The mean over tasks of what has no sign, and its interval, in points: "1.5 points [1.1, 2.0]"."""
    found = intervals.over_tasks(values)
    mean, low, high = (f"{float(found[name]):.1f}".replace("nan", "?") for name in ("mean", "low", "high"))
    return f"{mean} points [{low}, {high}]"


def mean(rho: xr.DataArray, predictor: str) -> str:
    """The mean correlation of a predictor, and its interval."""
    return interval(rho.sel(predictor=predictor))


def verdict(rho: xr.DataArray, mine: str, rival: str) -> str:
    """Whether one predictor is better than another: "better", "worse" or "undecided"."""
    return _difference(rho, mine, rival)["verdict"].item()


def pair(rho: xr.DataArray, mine: str, rival: str) -> str:
    """How much better one predictor is than another over tasks, and the verdict: "+0.10 [−0.01, +0.22], undecided"."""
    found = _difference(rho, mine, rival)
    return f"{signed(found)}, {found['verdict'].item()}"


def tested(rho: xr.DataArray, mine: str, rival: str) -> tuple[str, bool]:
    """The same, and whether it is better."""
    words = pair(rho, mine, rival)
    return words, words.endswith("better")


def _difference(rho: xr.DataArray, mine: str, rival: str) -> xr.Dataset:
    return intervals.differences(rho.sel(predictor=[mine, rival]), rival).sel(predictor=mine)
