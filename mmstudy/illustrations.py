"""The pictures of the operators and of the manifold, for the first two notebooks: a Dataset in, a Figure out."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from mmstudy.figures import COLORS, OPERATOR_COLORS

# --- what the operators do (notebook 1) -----------------------------------------------------------------------


def _operators(dataset: xr.Dataset) -> list[str]:
    present = set(dataset["operator"].values.tolist())
    return [name for name in OPERATOR_COLORS if name in present]


def _operator_rows(axis, names: list[str]) -> None:
    """One row per operator, the first on top, its name in its colour."""
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    for tick, name in zip(axis.get_yticklabels(), names, strict=True):
        tick.set_color(OPERATOR_COLORS[name])


def _strip(axis, values: np.ndarray, row: float, color, filled: bool = True) -> None:
    """Dots on one row, spread a little in a fixed pattern so that equal values remain countable."""
    values = np.ravel(values)
    shift = 0.13 * np.sin(2.4 * np.arange(values.size))
    axis.plot(values, row + shift, "o", ms=2.6, mec=color, mfc=color if filled else "none", mew=0.6, alpha=0.65)


def _plain_log(axis) -> None:
    """A logarithmic axis whose ticks read 0.1, 1, 10, whatever the range, without crowding."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


CEILING = 1.6  # of a training loss relative to the base's: what lies higher is named, not drawn


def expansion(dataset: xr.Dataset) -> Figure:
    """What each operator does to outputs, loss and gradient, and how the training goes on from there.

    `dataset` has `output_change`, `loss`, `gradient_norm`, `gradient_norm_new` over (candidate, seed), `curve` and
    `closest` over (candidate, seed, step), `base_loss`, `base_gradient_norm`, `base_curve` over step; coordinate
    `operator` along candidate.
    """
    names = _operators(dataset)
    relative = dataset["curve"] / dataset["base_curve"]
    figure = plt.figure(figsize=(9, 5.8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1), hspace=0.05)
    strips = top.subplots(1, 3, sharey=True)
    curve, closest = bottom.subplots(1, 2)
    for row, name in enumerate(names):
        color = OPERATOR_COLORS[name]
        mine = dataset.isel(candidate=(dataset["operator"] == name).values)
        _strip(strips[0], mine["output_change"].values, row, color)
        _strip(strips[1], mine["loss"].values, row, color)
        _strip(strips[2], mine["gradient_norm"].values, row - 0.2, color)
        _strip(strips[2], mine["gradient_norm_new"].values, row + 0.2, color, filled=False)
        for axis, values in ((curve, relative), (closest, dataset["closest"])):
            values = values.isel(candidate=(dataset["operator"] == name).values)
            low, middle, high = values.quantile((0.1, 0.5, 0.9), ("candidate", "seed")).values
            axis.plot(dataset["step"], middle, "-o", ms=2.5, lw=1.3, color=color)
            axis.fill_between(dataset["step"], low, high, color=color, alpha=0.15, lw=0)
            if axis is curve and middle.min() > CEILING:
                note = f"{name.replace('_', ' ')}: from {middle[0]:.0f} to {middle[-1]:.0f}, above the frame"
                axis.annotate(note, (0.02, 0.97), xycoords="axes fraction", va="top", color=color)
    strips[0].set_xscale("symlog", linthresh=1e-7)
    strips[0].set_xticks([0, 1e-6, 1e-4, 1e-2, 1], ["0", "10⁻⁶", "10⁻⁴", "10⁻²", "1"])
    strips[0].minorticks_off()
    strips[0].set_xlabel("largest change of an output\n(share of the largest output)")
    strips[1].axvline(float(dataset["base_loss"]), color="k", lw=0.8, ls="--")
    _plain_log(strips[1].xaxis)
    strips[1].set_xlabel("loss right after (nats)\ndashed: base")
    strips[2].axvline(float(dataset["base_gradient_norm"]), color="k", lw=0.8, ls="--")
    _plain_log(strips[2].xaxis)
    strips[2].set_xlabel("gradient norm right after (nats)\ndashed: base; ● all, ○ new parameters")
    _operator_rows(strips[0], names)
    for axis in strips[1:]:
        axis.tick_params(axis="y", length=0, labelleft=False)
    for axis in (curve, closest):
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axis.set_xlim(0, float(dataset["step"].max()) * 1.15)
        axis.set_xlabel("steps after the expansion (line: median, band: 80%)")
    curve.axhline(1, color="k", lw=0.8, ls="--")
    curve.set_ylim(0.9 * float(relative.quantile(0.01)), CEILING)
    curve.set_ylabel("training loss\n(share of the base's, trained on)")
    closest.set_yscale("log")
    closest.set_ylabel("distance of the closest two units\n(share of their mean length)")
    return figure


def expansion_weights(dataset: xr.Dataset) -> Figure:
    """The two weight matrices that share a group of units, in the base and after each operator.

    `dataset` has `incoming` over (network, unit, input) and `outgoing` over (network, output, unit), NaN where a
    network has no such unit, and `old`, the number of the base's units.
    """
    count, old = dataset.sizes["network"], int(dataset["old"])
    figure, axes = plt.subplots(
        2, count, figsize=(2.1 * count, 4.4), sharex="row", sharey="row", layout="constrained",
        height_ratios=(dataset.sizes["unit"], dataset.sizes["output"]),
    )  # fmt: skip
    limit = float(max(np.abs(dataset["incoming"]).max(), np.abs(dataset["outgoing"]).max()))
    look = {"cmap": "vlag", "vmin": -limit, "vmax": limit, "interpolation": "nearest", "aspect": "auto"}
    for i, name in enumerate(dataset["network"].values):
        one = dataset.sel(network=name)
        image = axes[0, i].imshow(one["incoming"], **look)
        axes[1, i].imshow(one["outgoing"], **look)
        if i:
            axes[0, i].axhline(old - 0.5, color="k", lw=0.8)
            axes[1, i].axvline(old - 0.5, color="k", lw=0.8)
        axes[0, i].set_title(str(name).replace("_", " "), color=OPERATOR_COLORS.get(str(name), "k"))
        axes[0, i].set_xlabel("input")
        axes[1, i].set_xlabel("unit")
    axes[0, 0].set_ylabel("unit")
    axes[1, 0].set_ylabel("output")
    for axis in axes.flat:
        axis.tick_params(length=2)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.7, label="weight (new units beyond the line)")
    return figure


# --- the manifold seen (notebook 2) ---------------------------------------------------------------------------

LANDSCAPE_COLORS = {"ring": COLORS[9], "ellipsoid": COLORS[5]}


def manifold_landscapes(dataset: xr.Dataset) -> Figure:
    """Sets below a level in the plane, what of them a straight line from the parent reaches, and the rays' lengths.

    `dataset` has `loss` over (landscape, row, column), `parent` over (landscape, axis), `radius` and `exact` over
    (landscape, ray), and `level`; coordinates `angle` along ray, `row` and `column`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", width_ratios=(1, 1, 1.25))
    angle = dataset["angle"].values
    for axis, name in zip(axes, dataset["landscape"].values, strict=False):
        one, color = dataset.sel(landscape=name), LANDSCAPE_COLORS[str(name)]
        below = [-1, float(dataset["level"])]
        axis.contourf(one["column"], one["row"], one["loss"], below, colors=["0.85"])
        x0, y0 = one["parent"].values
        x, y = x0 + one["radius"] * np.cos(angle), y0 + one["radius"] * np.sin(angle)
        axis.fill(x, y, color=color, alpha=0.5, lw=0)
        some = slice(None, None, max(1, len(angle) // 36))
        axis.plot([np.full_like(x[some], x0), x[some]], [np.full_like(y[some], y0), y[some]], color="k", lw=0.3)
        axis.plot(x0, y0, "ko", ms=4)
        axis.set(aspect="equal", xlabel="θ₁", ylabel="θ₂")
        axis.set_title(f"{name}: grey below the level,\ncoloured: seen from the parent", fontsize="medium")
        axes[2].plot(np.degrees(angle), one["exact"], color=color, lw=1.2)
        axes[2].plot(np.degrees(angle[some]), one["radius"][some], "o", ms=3, color=color, label=str(name))
    axes[2].set(xlabel="direction (degrees)", ylabel="distance to the level", xticks=range(0, 361, 90))
    axes[2].set_title("lines: exact, dots: rays", fontsize="medium")
    axes[2].legend(frameon=False)
    return figure


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
        axis.set_title(name.replace("_", " "), color=color)
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
    _operator_rows(axes[1, 0], names)
    figure.supxlabel(
        "distance from the parent (parameter space); black: mean ± standard error over seeds", fontsize="medium"
    )
    return figure
