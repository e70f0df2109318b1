"""What follows from the recorded training and rays of an experiment: functions (experiment) → (candidate, progress)."""

from collections.abc import Callable

import numpy as np
import xarray as xr
from scipy import optimize

from mmstudy.manifold.profiles import read
from mmstudy.study import statistics

WINDOW = 0.2  # the last part of a run whose minibatch losses are averaged
LEVELS = {
    "base": "the base's loss",
    "median": "the pool's median loss",
    "quartile": "its upper quartile",
    "own": "its own",
}


def level(experiment: xr.Dataset, which: str, margin: float) -> xr.DataArray:
    """The loss up to which rays count, (candidate, progress): a loss + margin.

    Of the base network; of the pool at that moment, the median or the upper quartile over a task's candidates of the
    loss at their children's centre; or the candidate's own, at its children's centre.

    Raises:
        ValueError: an unknown level.
    """
    own = centre_loss(experiment)
    if which == "own":
        return own + margin
    if which == "base":
        return experiment["base_loss"] + margin + 0 * own
    if which not in LEVELS:
        raise ValueError(f"unknown level {which!r}; known: {', '.join(LEVELS)}")
    quantile = {"median": 0.5, "quartile": 0.75}[which]
    pool = own.groupby("task").quantile(quantile).drop_vars("quantile")
    return pool.sel(task=own["task"]).drop_vars("task") + margin + 0 * own


def crossings(experiment: xr.Dataset, kind: str, which: str, margin: float = 0.1) -> xr.Dataset:
    """Where the rays of one kind pass a level: `multiple`, `radius` and `censored`, over (candidate, progress, ray).

    NaN where there was nothing to look along, or the network had diverged.
    """
    rays = _rays(experiment, kind)
    order = ("candidate", "progress", "ray")
    losses, origin = rays["ray_loss"].transpose(*order, "place"), rays["ray_origin"].transpose(*order)
    height = level(experiment, which, margin).transpose("candidate", "progress")
    multiple, censored = read(losses.values, origin.values, rays["place"].values, height.values[..., None])
    found = {
        "multiple": multiple,
        "radius": multiple * rays["ray_length"].transpose(*order).values,
        "censored": censored,
    }
    unseen = losses.isnull().all("place")
    return xr.Dataset({name: (order, each.astype(float)) for name, each in found.items()}, origin.coords).where(~unseen)


def _rays(experiment: xr.Dataset, kind: str) -> xr.Dataset:
    return experiment[["ray_loss", "ray_length", "ray_origin"]].isel(ray=(experiment["kind"] == kind).values)


def extent(experiment: xr.Dataset, kind: str, which: str, form: str, margin: float = 0.1) -> xr.DataArray:
    """The mean over rays of how far they go up to a level: `radius`, or `multiple` of their directions."""
    return crossings(experiment, kind, which, margin)[form].mean("ray", skipna=False)


def along_gradient(experiment: xr.Dataset, which: str) -> xr.DataArray:
    """How far one can go down the gradient up to a level, a distance."""
    return crossings(experiment, "gradient", which)["radius"].isel(ray=0)


def recorded(experiment: xr.Dataset, name: str) -> xr.DataArray:
    """A variable as it was measured."""
    return experiment[name]


def _up_to(experiment: xr.Dataset) -> xr.DataArray:
    """How many bins of the curve lie before each share of the training."""
    return (experiment["progress"] * experiment.sizes["bin"]).round().astype(int)


def _mean(experiment: xr.Dataset, weight: xr.DataArray) -> xr.DataArray:
    """The mean of the minibatch losses with a weight for each bin: NaN where one that counts is, or none does."""
    total = weight.sum("bin")
    return experiment["curve"].where(weight > 0, 0.0).dot(weight, "bin") / total.where(total > 0)


def minibatch_loss(experiment: xr.Dataset) -> xr.DataArray:
    """The mean minibatch loss over the last fifth of the training so far, one bin of steps at least."""
    end, bins = _up_to(experiment), xr.DataArray(np.arange(experiment.sizes["bin"]), dims="bin")
    return _mean(experiment, ((bins < end) & (bins >= np.minimum(end * (1 - WINDOW), end - 1))).astype(float))


def training_speed(experiment: xr.Dataset) -> xr.DataArray:
    """The sum of all minibatch losses so far, as a mean over bins: TSE."""
    bins = xr.DataArray(np.arange(experiment.sizes["bin"]), dims="bin")
    return _mean(experiment, (bins < _up_to(experiment)).astype(float))


def averaged_speed(experiment: xr.Dataset, decay: float = 0.9) -> xr.DataArray:
    """The minibatch losses so far, the older the less they count: TSE-EMA, with a decay for each bin."""
    end, bins = _up_to(experiment), xr.DataArray(np.arange(experiment.sizes["bin"]), dims="bin")
    return _mean(experiment, (decay ** (end - 1 - bins)).where(bins < end, 0.0))


def extrapolated(experiment: xr.Dataset) -> xr.DataArray:
    """The minibatch loss at the end of the training that a power law a + b·t^(−c) through the bins so far foretells."""
    total = experiment.sizes["bin"]
    rows = []
    for end in _up_to(experiment).values.tolist():
        known = experiment["curve"].transpose("candidate", "bin").values[:, :end]
        rows.append([_power_law(curve, total) for curve in known])
    return xr.DataArray(np.array(rows).T, dims=("candidate", "progress"), coords={"progress": experiment["progress"]})


def _power_law(curve: np.ndarray, end: int) -> float:
    """The value at `end` of the a + b·t^(−c), b ≥ 0, that is nearest to the curve in squares; NaN of under 4 points."""
    if len(curve) < 4 or not np.isfinite(curve).all():
        return np.nan
    t = np.arange(1, len(curve) + 1) - 0.5

    def error(c: float) -> tuple[float, float]:
        power = t**-c
        away = power - power.mean()
        b = max(away @ curve / (away @ away), 0.0)  # of the simple regression of the curve on t^(−c)
        a = curve.mean() - b * power.mean()
        return float(((curve - a - b * power) ** 2).sum()), float(a + b * end**-c)

    found = optimize.minimize_scalar(lambda c: error(c)[0], bounds=(0.05, 3), method="bounded")
    return error(float(found.x))[1]


def thermal_excess(experiment: xr.Dataset) -> xr.DataArray:
    """How much higher the children's minibatch losses are than the loss at their centre.

    A constant step size lets SGD explore the minimum at a temperature; the excess of the mean loss over that of the
    minimum is what the local learning coefficient is estimated from (Lau et al. 2023, arXiv 2308.12108).
    """
    return experiment["explorer_loss"] - centre_loss(experiment)


def centre_loss(experiment: xr.Dataset) -> xr.DataArray:
    """The loss at the children's centre, on the probe examples."""
    return _rays(experiment, "children")["ray_origin"].isel(ray=0, drop=True)


def fast_loss(experiment: xr.Dataset) -> xr.DataArray:
    """The mean minibatch loss over the last fifth of the short run at a constant step of twice the size."""
    bins = experiment.sizes["short_bin"]
    return (
        experiment["fast_curve"]
        .isel(short_bin=slice(min(round(bins * (1 - WINDOW)), bins - 1), None))
        .mean("short_bin", skipna=False)
    )


def flagged(experiment: xr.Dataset, of: Callable[[xr.Dataset], xr.DataArray]) -> xr.DataArray:
    """Validation accuracy and, as far as the two agree on the pool, another signal with the parameter count.

    r(a) + f·(r(s) + r(parameters)): r are ranks inside a task at one moment, as shares of its candidates, a is the
    validation accuracy and s the signal, larger where more gain is expected. The flag f, Spearman's correlation of a
    and s in the pool, is low where labels are noisy, and a low training loss means that noise was learnt.
    """
    order = ("candidate", "progress")
    columns = [experiment["validation_accuracy"], of(experiment), experiment["parameters"] + 0 * experiment["progress"]]
    values = np.stack([column.transpose(*order).values.astype(float) for column in columns])
    task = experiment["task"].values
    accuracy, signal, size = (statistics.shares(column, task) for column in values)
    found = np.empty_like(accuracy)
    for each in np.unique(task):
        rows = task == each
        pairs = zip(signal[rows].T, accuracy[rows].T, strict=True)
        flag = np.concatenate([statistics.spearman(one[None], other) for one, other in pairs])  # at each moment
        found[rows] = accuracy[rows] + flag * (signal + size)[rows]
    unknown = np.isnan(values[:2]).any(0)
    return xr.DataArray(np.where(unknown, np.nan, found), dims=order, coords={"progress": experiment["progress"]})
