"""The pictures of the estimators, for the second notebook: a Dataset in, a Figure out. Estimator = colour."""

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.figures.style import COLORS, COLUMN, NUMBER, for_a_column, plain_log
from mmstudy.manifold.estimators import ESTIMATORS

LANDSCAPE_LOOKS = {
    "ring": {"color": COLORS[9], "marker": "o", "mfc": COLORS[9], "ls": "-"},
    "ellipsoid": {"color": COLORS[5], "marker": "s", "mfc": "w", "ls": "--"},
}
NEAR = 0.1  # of ln ratio: what is called 1
SIDE = COLUMN / 2  # inches


def estimator_color(name: object) -> str:
    """The colour of an estimator; black for what is none."""
    return ESTIMATORS[str(name)].color if str(name) in ESTIMATORS else "k"


@for_a_column
def estimators_gallery(dataset: xr.Dataset) -> Figure:
    """What each estimator looks at, on one landscape with a curve of minima, and the volume seen in a shell.

    `dataset` has `loss` and `density`, `parabola` (the loss as the curvature foretells it) over (row, column) with
    these coordinates, `level`, `parent` over axis; `child` over (child, axis), `centre` of some of them over axis,
    `reach` (where rays from it along these children end) over (way, axis), `ray` (where it ends) over (ray, axis),
    `corner` over (corner, axis), `start` and `reached` (the lowest point of a line through it) over (line, axis), with
    `success` over line; `seen` over (point, space), where rays from (1, 0, 0) leave the shell.
    """
    figure = plt.figure(figsize=(COLUMN, 4 * SIDE), layout="constrained")
    axes = [figure.add_subplot(4, 2, i + 1) for i in range(7)]
    names = ["children", "extent", "rays", "simplex", "dimension", "curvature", "llc"]
    level, parent = float(dataset["level"]), dataset["parent"].values
    near = 1.05 * max(float(dataset[name].max()) for name in ("child", "ray", "reached"))
    for axis, name in zip(axes, names, strict=True):
        axis.contourf(dataset["column"], dataset["row"], dataset["loss"], [-1, level], colors=["0.87"])
        axis.set_title(name, color=estimator_color(name))
        axis.set(aspect="equal", xlabel="u", ylabel="v", xlim=(0, near), ylim=(0, near))
    children, extent, rays, simplex, dimension, curvature, llc = axes
    children.plot(*dataset["child"].values.T, ".", ms=3, color=estimator_color("children"))
    for end in dataset["reach"].values:
        extent.plot(*np.transpose([dataset["centre"].values, end]), color=estimator_color("extent"), lw=0.7)
    extent.plot(*dataset["centre"].values, "o", ms=6, mfc="none", color=estimator_color("extent"), zorder=3)
    extent.set_title("extent (○: centre of children)", color=estimator_color("extent"))
    for end in dataset["ray"].values:
        rays.plot(*np.transpose([parent, end]), color=estimator_color("rays"), lw=0.7)
    simplex.fill(*dataset["corner"].values.T, color=estimator_color("simplex"), alpha=0.5, lw=0)
    far = 1.05 * max(float(dataset["corner"].max()), near)
    simplex.set(xlim=(0, far), ylim=(0, far))
    for start, end, success in zip(*(dataset[n].values for n in ("start", "reached", "success")), strict=True):
        look: dict[str, Any] = {"color": estimator_color("dimension"), "lw": 0.8, "ls": "-" if success else ":"}
        dimension.plot(*np.transpose([start, end]), **look)
        dimension.plot(*end, "o" if success else "x", ms=3, color=estimator_color("dimension"))
    dimension.set_title("dimension (dotted, ×: not reached)", color=estimator_color("dimension"))
    curvature.contour(
        dataset["column"], dataset["row"], dataset["parabola"], [level], colors=[estimator_color("curvature")]
    )
    shade = sns.light_palette(estimator_color("llc"), as_cmap=True)
    shown = dataset["density"].where(dataset["density"] > 0.02 * dataset["density"].max())
    llc.pcolormesh(dataset["column"], dataset["row"], shown, cmap=shade, shading="nearest", rasterized=True)
    for axis in axes:
        axis.plot(*parent, "ko", ms=3)
    solid = figure.add_subplot(4, 2, 8, projection="3d")
    x, y, z = dataset["seen"].values.T
    solid.scatter(x, y, z, s=2, c=z, cmap="crest", rasterized=True)
    solid.scatter([1], [0], [0], color="k", s=10)
    solid.set_title("volume: what is seen\nof a shell of minima", color=estimator_color("volume"))
    solid.set(box_aspect=(1, 1, 1), xticks=[-1, 0, 1], yticks=[-1, 0, 1], zticks=[-1, 0, 1])
    solid.set(xlabel="u", ylabel="v", zlabel="w")
    for axis in (solid.xaxis, solid.yaxis, solid.zaxis):
        axis.labelpad = -12
        axis.set_tick_params(pad=-4, labelsize=NUMBER)
    solid.view_init(elev=18, azim=-115)
    return figure


@for_a_column
def estimators_rays(dataset: xr.Dataset) -> Figure:
    """Sets below a level in the plane, what of them a straight line from the parent reaches, and the rays' lengths.

    `dataset` has `loss` over (landscape, row, column), `parent` over (landscape, axis), `radius` and `exact` over
    (landscape, ray), and `level`; coordinates `angle` along ray, `row` and `column`.
    """
    figure = plt.figure(figsize=(COLUMN, 3.7), layout="constrained")
    shapes, lengths = figure.subfigures(2, 1, height_ratios=(1.25, 1), squeeze=False).flat
    axes, below = shapes.subplots(1, 2, sharey=True), lengths.subplots()
    angle, level = dataset["angle"].values, float(dataset["level"])
    for axis, name in zip(axes, dataset["landscape"].values.tolist(), strict=True):
        one, look = dataset.sel(landscape=name), LANDSCAPE_LOOKS[name]
        axis.contourf(one["column"], one["row"], one["loss"], [-1, level], colors=["0.85"])
        x0, y0 = one["parent"].values
        x, y = x0 + one["radius"] * np.cos(angle), y0 + one["radius"] * np.sin(angle)
        axis.fill(x, y, color=look["color"], alpha=0.5, lw=0)
        some = slice(None, None, max(1, len(angle) // 36))
        axis.plot([np.full_like(x[some], x0), x[some]], [np.full_like(y[some], y0), y[some]], color="k", lw=0.3)
        axis.plot(x0, y0, "ko", ms=3)
        axis.set(aspect="equal", xlabel="θ₁")
        axis.set_title(name)
        below.plot(np.degrees(angle), one["exact"], color=look["color"], ls=look["ls"])
        below.plot(np.degrees(angle[some]), one["radius"][some], **look | {"ls": "", "ms": 2.5}, label=name)
    axes[0].set_ylabel("θ₂")
    shapes.suptitle("grey: below the level; coloured: seen from the parent (●)", fontsize=7)
    below.set(xlabel="direction (degrees); lines: exact, marks: rays", ylabel="distance to the level")
    below.set_xticks(range(0, 361, 90))
    below.set_ylim(top=1.25 * float(dataset["exact"].max()))
    below.legend(ncols=2, loc="upper center")
    return figure


@for_a_column
def estimators_truth(dataset: xr.Dataset) -> Figure:
    """Left: the error of each case and how often its 95% interval holds the truth; right: error against samples.

    `dataset` has `error`, `bias`, `bias_se`, `coverage` over case, with `estimator` and `landscape` along it; `growth`
    over (grown, samples_drawn), with `grown_estimator` along grown.
    """
    rows = np.arange(dataset.sizes["case"])
    figure = plt.figure(figsize=(COLUMN, 3.0 + 0.22 * len(rows)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(0.6 + 0.22 * len(rows), 2.2), squeeze=False).flat
    (bias, cover), grow = above.subplots(1, 2, sharey=True, width_ratios=(1.4, 1)), below.subplots()
    colors = [estimator_color(str(name)) for name in dataset["estimator"].values]
    for row, color in zip(rows, colors, strict=True):
        one = {name: 100 * float(dataset[name][row]) for name in ("bias", "bias_se", "error", "coverage")}
        bias.errorbar(one["bias"], row, xerr=1.96 * one["bias_se"], fmt="o", ms=2.5, color=color, capsize=1.5)
        bias.plot([-one["error"], one["error"]], [row, row], "|", ms=5, color=color, alpha=0.7)
        cover.plot(one["coverage"], row, "o", ms=2.5, color=color)
    names = [f"{e}: {land}" for e, land in zip(dataset["estimator"].values, dataset["landscape"].values, strict=True)]
    bias.set_yticks(rows, [fill(name, 28) for name in names], fontsize=NUMBER)
    for tick, color in zip(bias.get_yticklabels(), colors, strict=True):
        tick.set_color(color)
    bias.axvspan(-5, 5, color="0.93", zorder=0)
    bias.axvline(0, color="0.6", lw=0.7, zorder=0)
    bias.set_xlabel("bias, %\n(bar: its 95% interval;\nticks: ± median error;\ngrey: ± 5%)")
    cover.axvspan(90, 99, color="0.93", zorder=0)
    cover.set_xlabel("coverage of\n95% intervals, %\n(grey: 90 to 99%)")
    for axis in (bias, cover):
        axis.tick_params(axis="y", length=0)
    bias.set_ylim(len(rows) - 0.5, -0.5)
    drawn = dataset["samples_drawn"].values
    for i in range(dataset.sizes["grown"]):
        share = dataset["growth"].isel(grown=i)
        name = str(share["grown_estimator"].values)
        look = {"marker": "os^Dv<>p*"[i % 9], "color": estimator_color(name)}
        grow.plot(drawn, 100 * share, label=name, **look)
    first = 100 * float(dataset["growth"].isel(samples_drawn=0).max())
    grow.plot(drawn, first * (drawn / drawn[0]) ** -0.5, "k--", lw=0.8, label="1/√samples")
    grow.set(xscale="log", yscale="log", xlabel="samples", ylabel="root mean\nsquare error, %")
    plain_log(grow.yaxis)
    grow.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@for_a_column
def estimators_symmetries(dataset: xr.Dataset) -> Figure:
    """How much each measure changes under transformations that leave the function unchanged.

    A ratio that is not 1, but is not more than the measure's own noise either, is marked as not significant (n. s.).

    `dataset` has `response` (after / before) over (measure, symmetry), and `changes`, whether that exceeds the
    measure's own noise.
    """
    table = dataset["response"].transpose("measure", "symmetry").to_pandas()
    figure, axis = plt.subplots(figsize=(COLUMN, 0.8 + 0.24 * len(table)), layout="constrained")
    changes = dataset["changes"].transpose("measure", "symmetry").values.astype(bool)
    words = table.map("{:.3g}".format).values
    unsure = np.where(np.abs(np.log(table)) < NEAR, "≈ 1", np.char.add(words.astype(str), "\nn. s."))
    words = np.where(~changes, unsure, np.where(words == "1", "1, scatter\nchanged", words))
    words[table.isna().values] = "–"
    shown = table.apply(np.log).abs().clip(upper=1)
    sns.heatmap(
        shown.where(changes, 0), annot=words, fmt="", cmap="rocket_r", vmin=0, vmax=1, ax=axis, linewidths=0.5,
        cbar=False, annot_kws={"fontsize": NUMBER},
    )  # fmt: skip
    axis.set_xticklabels([name.replace(" ", "\n") for name in table.columns], fontsize=NUMBER, rotation=0)
    axis.tick_params(axis="y", labelrotation=0)
    axis.set(xlabel="size after / before; the darker, the further from 1", ylabel="")
    axis.tick_params(length=0)
    return figure


@for_a_column
def estimators_normalization(dataset: xr.Dataset) -> Figure:
    """The loss between two trained networks, under each policy of batch normalization.

    `dataset` has `between` over (policy, alpha) and `barrier` over policy.
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    for policy, color, marker in zip(dataset["policy"].values, COLORS, "os^Dv", strict=False):
        one = dataset.sel(policy=policy)
        look = {"color": color, "marker": marker, "markevery": 2}
        axis.plot(one["alpha"], one["between"], label=f"{policy}: barrier {float(one['barrier']):.2g} nats", **look)
    axis.set(xlabel="α, from one network to the other", ylabel="training loss (nats)", ylim=(0, None))
    figure.legend(loc="outside upper center")
    return figure
