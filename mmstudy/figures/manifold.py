"""The pictures of the manifold around networks, for the third notebook: a Dataset in, a Figure out."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import operator_color, operator_marker, operator_rows, plain


def _operators(dataset: xr.Dataset) -> list[str]:
    present = set(dataset["operator"].values.tolist())
    return [name for name in OPERATORS if name in present]


def _strip(axis, values: np.ndarray, row: float | int, color) -> None:
    """Dots on one row, spread a little in a fixed pattern so that equal values remain countable."""
    values = np.ravel(values)
    shift = 0.13 * np.sin(2.4 * np.arange(values.size))
    axis.plot(values, row + shift, "o", ms=2.6, mec=color, mfc=color, mew=0.6, alpha=0.65)


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
        one, color = dataset.sel(operator=name), operator_color(name)
        picture = axis.contourf(one["column"], one["row"], one["plane_loss"], shades, colors=greys)
        axis.contour(one["column"], one["row"], one["plane_loss"], [level], colors=[color], linewidths=2)
        (x0, y0), *children = one["corner"].values
        axis.plot(*np.transpose(children), "^", ms=6, mfc=color, mec="w", mew=0.8, zorder=4)
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
            one, color = mine.sel(operator=name), operator_color(name)
            above.plot(one["distance"].T, one["along"].T, color=color, lw=0.6, alpha=0.8)
            crossed = one.isel(seed=0)
            crossed = crossed["radius"].where(crossed["status"] == "converged")
            look = {"ls": "", "marker": operator_marker(name), "ms": 4, "mfc": color, "mec": "w", "mew": 0.4}
            above.plot(crossed, np.full(crossed.shape, level), zorder=4, **look)
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
