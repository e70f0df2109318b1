"""The pictures of the manifold around networks, for the third notebook: a Dataset in, a Figure out."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mmstudy.figures import OPERATOR_COLORS


def _operators(dataset: xr.Dataset) -> list[str]:
    present = set(dataset["operator"].values.tolist())
    return [name for name in OPERATOR_COLORS if name in present]


def plain(name: object) -> str:
    """An operator's name in words."""
    return str(name).replace("_", " ")


def operator_rows(axis, names: list[str]) -> None:
    """One row per operator, the first on top, its name in its colour."""
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    for tick, name in zip(axis.get_yticklabels(), names, strict=True):
        tick.set_color(OPERATOR_COLORS[name])


def _strip(axis, values: np.ndarray, row: float, color) -> None:
    """Dots on one row, spread a little in a fixed pattern so that equal values remain countable."""
    values = np.ravel(values)
    shift = 0.13 * np.sin(2.4 * np.arange(values.size))
    axis.plot(values, row + shift, "o", ms=2.6, mec=color, mfc=color, mew=0.6, alpha=0.65)


def with_zero(axis, linear: float, ticks: list[float]) -> None:
    """An axis that is logarithmic but for the numbers around zero, and ends where its data do."""
    low, high = axis.get_data_interval()
    getattr(axis.axes, f"set_{axis.axis_name}scale")("symlog", linthresh=linear)
    axis.set_ticks(ticks, [_word(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())
    getattr(axis.axes, f"set_{axis.axis_name}lim")(min(2 * low, -linear / 2), 2 * high)


def _word(tick: float) -> str:
    """A number, or a power of ten where that is shorter."""
    if not tick or 0.01 <= abs(tick) < 1000:
        return f"{tick:g}".replace("-", "−")
    exponent = f"{np.log10(abs(tick)):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if tick < 0 else ''}10{exponent}"


def plain_log(axis) -> None:
    """A logarithmic y-axis whose ticks read 0.1, 1, 10, whatever the range, without crowding."""
    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    wide, narrow = high > 50 * low, high < 5 * low
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def manifold_plane(dataset: xr.Dataset) -> Figure:
    """The loss on the plane through a parent and two of its children, a panel per operator, on one scale.

    `dataset` has `plane_loss` over (operator, row, column), `corner` over (operator, corner, axis), parent first,
    and `level`; coordinates `row` and `column` are distances from the parent.
    """
    names = _operators(dataset)
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.1 * len(names) + 0.8, 3.1), sharex=True, sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    losses, level = dataset["plane_loss"], float(dataset["level"])
    lowest = float(losses.min())
    shades = lowest + (level - lowest) * np.array([0, 0.25, 0.5, 0.75, 1, 2, 4, 8, 16])
    greys = plt.get_cmap("Greys_r")(np.linspace(0.3, 0.97, len(shades) - 1))
    for axis, name in zip(axes.flat, names, strict=True):
        one, color = dataset.sel(operator=name), OPERATOR_COLORS[name]
        picture = axis.contourf(one["column"], one["row"], one["plane_loss"], shades, colors=greys)
        axis.contour(one["column"], one["row"], one["plane_loss"], [level], colors=[color], linewidths=2)
        (x0, y0), *young = one["corner"].values
        axis.plot(*np.transpose(young), "^", ms=6, mfc=color, mec="w", mew=0.8, zorder=4)
        axis.plot(x0, y0, "o", ms=6, mfc=color, mec="w", mew=0.8, zorder=4)
        axis.set_title(plain(name), color=color)
        axis.set_aspect("equal")
    figure.supxlabel("distance from the parent (●) towards the first child (▲)", fontsize="medium")
    axes[0, 0].set_ylabel("distance across, towards the second")
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, label="loss (nats); coloured line: the level")
    bar.set_ticks(shades, labels=[f"{shade:.2g}" for shade in shades])
    return figure


def manifold_rays(dataset: xr.Dataset) -> Figure:
    """Above: the loss along rays of each kind, the crossing of the level marked; below: how far all rays go.

    `dataset` has `along` and `distance` over (operator, kind, ray, point), `radius` and `status` over (operator,
    seed, kind, ray), of which `along` shows the first seed, and `level`.
    """
    names, kinds = _operators(dataset), dataset["kind"].values
    figure, axes = plt.subplots(
        2, len(kinds), figsize=(2.5 * len(kinds) + 1, 4.8), sharex="col", sharey="row", layout="constrained",
        height_ratios=(1.5, 1), squeeze=False,
    )  # fmt: skip
    level = float(dataset["level"])
    depth = level - float(dataset["along"].min())
    for (above, below), kind in zip(axes.T, kinds, strict=True):
        mine = dataset.sel(kind=kind)
        for row, name in enumerate(names):
            one, color = mine.sel(operator=name), OPERATOR_COLORS[name]
            above.plot(one["distance"].T, one["along"].T, color=color, lw=0.6, alpha=0.8)
            crossed = one.isel(seed=0)
            crossed = crossed["radius"].where(crossed["status"] == "converged")
            above.plot(crossed, np.full(crossed.shape, level), "o", ms=3, mfc=color, mec="w", mew=0.4, zorder=4)
            radius = one["radius"].values
            _strip(below, radius, row, color)
            mean, error = radius.mean(), radius.mean(1).std(ddof=1) / len(radius) ** 0.5
            below.errorbar(mean, row + 0.32, xerr=error, fmt="|", ms=7, color="k", lw=1)
        above.axhline(level, color="k", lw=0.8, ls="--", zorder=0)
        above.set_ylim(level - 1.3 * depth, level + 2.5 * depth)
        words, counts = np.unique(mine["status"], return_counts=True)
        above.set_title("\n".join([str(kind), *(f"{n} {w}" for w, n in zip(words, counts, strict=True))][:3]),
                        fontsize="medium")  # fmt: skip
        below.set_xlim(left=0)
    axes[0, 0].set_ylabel("loss (nats), dashed: level")
    operator_rows(axes[1, 0], names)
    figure.supxlabel(
        "distance from the parent (parameter space); black: mean ± standard error over seeds", fontsize="medium"
    )
    return figure
