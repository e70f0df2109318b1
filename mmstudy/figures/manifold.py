"""The pictures of the manifold around networks, for the third notebook: a Dataset in, a Figure out."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import COLUMN, LINES, for_a_column, operator_color, operator_marker, operator_rows, plain


def _operators(dataset: xr.Dataset) -> list[str]:
    present = set(dataset["operator"].values.tolist())
    return [name for name in OPERATORS if name in present]


def _strip(axis, values: np.ndarray, row: float | int, **look) -> None:
    """Dots on one row, spread a little in a fixed pattern so that equal values remain countable."""
    values = np.ravel(values)
    shift = 0.13 * np.sin(2.4 * np.arange(values.size))
    axis.plot(values, row + shift, ls="", ms=2, mew=0, alpha=0.65, **look)


@for_a_column
def manifold_plane(dataset: xr.Dataset) -> Figure:
    """The loss on the plane through a parent and two of its children, a panel per operator, on one scale.

    `dataset` has `plane_loss` over (operator, row, column), `corner` over (operator, corner, axis), parent first,
    and `level`; coordinates `row` and `column` are distances from the parent.
    """
    names = _operators(dataset)
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(COLUMN, 0.6 + 1.1 * rows), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    losses, level = dataset["plane_loss"], float(dataset["level"])
    lowest = float(losses.min())
    shades = lowest + (level - lowest) * np.array([0, 0.25, 0.5, 0.75, 1, 2, 4, 8, 16])
    greys = plt.get_cmap("Greys_r")(np.linspace(0.3, 0.97, len(shades) - 1))
    for axis, name in zip(axes.flat, names, strict=False):
        one, color = dataset.sel(operator=name), operator_color(name)
        picture = axis.contourf(one["column"], one["row"], one["plane_loss"], shades, colors=greys)
        axis.contour(one["column"], one["row"], one["plane_loss"], [level], colors=[color], linewidths=1.5)
        (x0, y0), *children = one["corner"].values
        axis.plot(*np.transpose(children), "^", ms=4, mfc=color, mec="w", mew=0.6, zorder=4)
        axis.plot(x0, y0, "o", ms=4, mfc=color, mec="w", mew=0.6, zorder=4)
        axis.set_title(plain(name), color=color)
        axis.set_aspect("equal")
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("distance from the parent (●) towards the first child (▲)", fontsize=7)
    figure.supylabel("distance across, towards the second", fontsize=7)
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, label="loss (nats); coloured line: the level")
    bar.set_ticks(shades.tolist(), labels=[f"{shade:.2g}" for shade in shades])
    return figure


@for_a_column
def manifold_rays(dataset: xr.Dataset) -> Figure:
    """Left: the loss along rays of each kind, the crossing of the level marked; right: how far all rays go.

    `dataset` has `along` and `distance` over (operator, kind, ray, point), `radius` and `status` over (operator,
    seed, kind, ray), of which `along` shows the first seed, and `level`.
    """
    names, kinds = _operators(dataset), dataset["kind"].values
    figure, axes = plt.subplots(
        len(kinds), 2, figsize=(COLUMN, 0.7 + 1.25 * len(kinds)), sharex=True, sharey="col", layout="constrained",
        squeeze=False,
    )  # fmt: skip
    level = float(dataset["level"])
    depth = level - float(dataset["along"].min())
    for (left, right), kind in zip(axes, kinds, strict=True):
        mine = dataset.sel(kind=kind)
        for row, name in enumerate(names):
            one, color, marker = mine.sel(operator=name), operator_color(name), operator_marker(name)
            left.plot(one["distance"].T, one["along"].T, color=color, lw=0.6, ls=LINES[row % len(LINES)], alpha=0.8)
            first = one.isel(seed=0)
            crossed = first["radius"].where(first["status"] == "converged")
            look = {"ls": "", "marker": marker, "ms": 3, "mfc": color, "mec": "w", "mew": 0.3}
            left.plot(crossed, np.full(crossed.shape, level), zorder=4, **look)
            radius = one["radius"].values
            _strip(right, radius, row, color=color, marker=marker)
            mean, error = radius.mean(), radius.mean(1).std(ddof=1) / len(radius) ** 0.5
            right.errorbar(mean, row + 0.32, xerr=error, fmt="|", ms=4, color="k", lw=0.8)
        left.axhline(level, color="k", lw=0.7, ls="--", zorder=0)
        words, counts = np.unique(mine["status"], return_counts=True)
        left.set_title(kind)
        right.set_title(", ".join(f"{n} rays {w}" for w, n in zip(words, counts, strict=True)))
        operator_rows(right, names)
        right.yaxis.tick_right()
        right.tick_params(axis="y", length=0)
    axes[0, 0].set_ylim(level - 1.3 * depth, level + 2.5 * depth)
    axes[0, 0].set_xlim(left=0)
    figure.supylabel("loss (nats), dashed: the level", fontsize=7)
    label = "distance from the parent (parameter space); left: first seed,\nright: all; black: mean ± s.e. over seeds"
    figure.supxlabel(label, fontsize=7)
    return figure
