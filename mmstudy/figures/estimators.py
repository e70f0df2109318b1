"""The pictures of the estimators, for the second notebook: a Dataset in, a Figure out. Estimator = colour."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.figures.style import COLORS, plain_log
from mmstudy.manifold.estimators import ESTIMATORS

LANDSCAPE_COLORS = {"ring": COLORS[9], "ellipsoid": COLORS[5]}


def estimator_color(name: object) -> str:
    """The colour of an estimator; black for what is none."""
    return ESTIMATORS[str(name)].color if str(name) in ESTIMATORS else "k"


def estimators_gallery(dataset: xr.Dataset) -> Figure:
    """What each estimator looks at, on one landscape with a curve of minima, and the volume seen in a shell.

    `dataset` has `loss` and `density`, `parabola` (the loss as the curvature foretells it) over (row, column) with
    these coordinates, `level`, `parent` over axis; `child` over (child, axis), `centre` of some of them over axis,
    `reach` (where rays from it along these children end) over (way, axis), `ray` (where it ends) over (ray, axis),
    `corner` over (corner, axis), `start` and `reached` (the lowest point of a line through it) over (line, axis), with
    `success` over line; `seen` over (point, space), where rays from (1, 0, 0) leave the shell.
    """
    figure = plt.figure(figsize=(11, 5.6), layout="constrained")
    axes = [figure.add_subplot(2, 4, i + 1) for i in range(7)]
    names = ["children", "extent", "rays", "simplex", "dimension", "curvature", "llc"]
    level, parent = float(dataset["level"]), dataset["parent"].values
    for axis, name in zip(axes, names, strict=True):
        axis.contourf(dataset["column"], dataset["row"], dataset["loss"], [-1, level], colors=["0.87"])
        axis.set_title(name, color=estimator_color(name))
        axis.set(aspect="equal", xlabel="u", ylabel="v", xlim=_ends(dataset["column"]), ylim=_ends(dataset["row"]))
    children, extent, rays, simplex, dimension, curvature, llc = axes
    children.plot(*dataset["child"].values.T, ".", ms=3, color=estimator_color("children"))
    for end in dataset["reach"].values:
        extent.plot(*np.transpose([dataset["centre"].values, end]), color=estimator_color("extent"), lw=0.7)
    extent.plot(*dataset["centre"].values, "o", ms=3, color=estimator_color("extent"))
    for end in dataset["ray"].values:
        rays.plot(*np.transpose([parent, end]), color=estimator_color("rays"), lw=0.7)
    simplex.fill(*dataset["corner"].values.T, color=estimator_color("simplex"), alpha=0.5, lw=0)
    for start, end, success in zip(*(dataset[n].values for n in ("start", "reached", "success")), strict=True):
        look = {"color": estimator_color("dimension"), "lw": 0.8, "ls": "-" if success else ":"}
        dimension.plot(*np.transpose([start, end]), **look)
        dimension.plot(*end, "o" if success else "x", ms=3, color=estimator_color("dimension"))
    curvature.contour(
        dataset["column"], dataset["row"], dataset["parabola"], [level], colors=[estimator_color("curvature")]
    )
    shade = sns.light_palette(estimator_color("llc"), as_cmap=True)
    shown = dataset["density"].where(dataset["density"] > 0.02 * dataset["density"].max())
    llc.pcolormesh(dataset["column"], dataset["row"], shown, cmap=shade, shading="nearest", rasterized=True)
    for axis in axes:
        axis.plot(*parent, "ko", ms=4)
    solid = figure.add_subplot(2, 4, 8, projection="3d")
    x, y, z = dataset["seen"].values.T
    solid.scatter(x, y, z, s=2, c=z, cmap="crest", rasterized=True)
    solid.scatter([1], [0], [0], color="k", s=16)
    solid.set_title("volume: what is seen\nof a shell of minima", color=estimator_color("volume"))
    solid.set(box_aspect=(1, 1, 1), xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
    solid.view_init(elev=18, azim=-115)
    return figure


def _ends(coordinate: xr.DataArray) -> tuple[float, float]:
    return float(coordinate[0]), float(coordinate[-1])


def estimators_rays(dataset: xr.Dataset) -> Figure:
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


def estimators_truth(dataset: xr.Dataset) -> Figure:
    """Left: the error of each case and how often its 95% interval holds the truth; right: error against samples.

    `dataset` has `error`, `bias`, `bias_se`, `coverage` over case, with `estimator` and `landscape` along it; `growth`
    over (grown, samples_drawn), with `grown_estimator` along grown.
    """
    figure, (bias, cover, grow) = plt.subplots(
        1, 3, figsize=(11, 0.9 + 0.27 * dataset.sizes["case"]), layout="constrained", width_ratios=(1.3, 0.8, 1.2)
    )
    rows = np.arange(dataset.sizes["case"])
    colors = [estimator_color(str(name)) for name in dataset["estimator"].values]
    for row, color in zip(rows, colors, strict=True):
        one = {name: 100 * float(dataset[name][row]) for name in ("bias", "bias_se", "error", "coverage")}
        bias.errorbar(one["bias"], row, xerr=1.96 * one["bias_se"], fmt="o", ms=4, color=color, capsize=2)
        bias.plot([-one["error"], one["error"]], [row, row], "|", ms=7, color=color, alpha=0.6)
        cover.plot(one["coverage"], row, "o", ms=4, color=color)
    names = [f"{e}: {land}" for e, land in zip(dataset["estimator"].values, dataset["landscape"].values, strict=True)]
    bias.set_yticks(rows, names, fontsize="small")
    for tick, color in zip(bias.get_yticklabels(), colors, strict=True):
        tick.set_color(color)
    bias.axvspan(-5, 5, color="0.93", zorder=0)
    bias.axvline(0, color="0.6", lw=0.7, zorder=0)
    bias.set_xlabel("bias, % (bars: 95%; ticks: ± median error)")
    cover.axvspan(90, 99, color="0.93", zorder=0)
    cover.set(yticks=rows, yticklabels=[], xlabel="coverage of 95% intervals, %")
    for axis in (bias, cover):
        axis.set_ylim(len(rows) - 0.5, -0.5)
    drawn = dataset["samples_drawn"].values
    for i in range(dataset.sizes["grown"]):
        share = dataset["growth"].isel(grown=i)
        name = str(share["grown_estimator"].values)
        look = {"marker": "os^Dv<>p*"[i % 9], "ms": 3.5, "lw": 1, "color": estimator_color(name)}
        grow.plot(drawn, 100 * share, label=name, **look)
    first = 100 * float(dataset["growth"].isel(samples_drawn=0).max())
    grow.plot(drawn, first * (drawn / drawn[0]) ** -0.5, "k--", lw=0.8, label="1/√samples")
    grow.set(xscale="log", yscale="log", xlabel="samples", ylabel="root mean square error, %")
    plain_log(grow.yaxis)
    grow.legend(frameon=False, fontsize="small")
    return figure


def estimators_symmetries(dataset: xr.Dataset) -> Figure:
    """How much each measure changes under transformations that leave the function unchanged.

    `dataset` has `response` (after / before) over (measure, symmetry), and `changes`, whether that exceeds the
    measure's own noise.
    """
    table = dataset["response"].transpose("measure", "symmetry").to_pandas()
    figure, axis = plt.subplots(figsize=(1.6 + 1.5 * table.shape[1], 0.9 + 0.34 * len(table)), layout="constrained")
    unchanged = ~dataset["changes"].transpose("measure", "symmetry").values
    words = np.where(unchanged, "≈ 1", table.map("{:.3g}".format))
    words[table.isna().values] = "–"
    shown = table.apply(np.log).abs().clip(upper=1)
    sns.heatmap(
        shown.where(~unchanged, 0), annot=words, fmt="", cmap="rocket_r", vmin=0, vmax=1, ax=axis, linewidths=0.5,
        cbar_kws={"label": "|ln(after / before)|, cut off at 1"},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.tick_params(length=0)
    return figure


def estimators_normalization(dataset: xr.Dataset) -> Figure:
    """The loss between two trained networks, under each policy of batch normalization.

    `dataset` has `between` over (policy, alpha) and `barrier` over policy.
    """
    figure, axis = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
    for policy, color, marker in zip(dataset["policy"].values, COLORS, "os^Dv", strict=False):
        one = dataset.sel(policy=policy)
        look = {"color": color, "marker": marker, "ms": 3.5, "markevery": 2}
        axis.plot(one["alpha"], one["between"], label=f"{policy}: barrier {float(one['barrier']):.2g} nats", **look)
    axis.set(xlabel="α, from one network to the other", ylabel="training loss (nats)", ylim=(0, None))
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
