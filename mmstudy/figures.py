"""One function per figure: a Dataset in, a Figure out. Operator = colour, family of predictors = colour and marker."""

from pathlib import Path

import matplotlib

matplotlib.rcParams["svg.hashsalt"] = "mmstudy"
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import seaborn as sns  # noqa: E402
import xarray as xr  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mmstudy.evaluation import bootstrap, front  # noqa: E402

_COLORS = sns.color_palette("colorblind")
OPERATOR_COLORS = {
    "net2net": _COLORS[0],
    "zero_outgoing": _COLORS[2],
    "random": _COLORS[1],
    "deeper_identity": _COLORS[4],
    "deeper_random": _COLORS[3],
}
FAMILY_COLORS = {"static": "0.55", "early loss": _COLORS[1], "size": _COLORS[0]}
FAMILY_MARKERS = {"static": "s", "early loss": "^", "size": "o"}

sns.set_theme(context="paper", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, folder: str | Path, name: str) -> None:
    """Write the figure as .svg and .png, with the same bytes for the same picture."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=150, metadata={"Software": None})
    plt.close(figure)


def gain_against_size(dataset: xr.Dataset) -> Figure:
    """One panel a task: the gain of each candidate against one size measure.

    `dataset` has `size`, `gain`, `gain_se` over (task, candidate), `spearman` over task; coordinate `operator`.
    """
    tasks = dataset["task"].values
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.4 * rows + 0.5), squeeze=False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        one = dataset.sel(task=task)
        for operator, color in OPERATOR_COLORS.items():
            mine = one.isel(candidate=(one["operator"] == operator).values)
            axis.errorbar(
                mine["size"], mine["gain"], mine["gain_se"],
                fmt="o", ms=3.5, lw=0.7, color=color, alpha=0.85, label=operator.replace("_", " "),
            )  # fmt: skip
        axis.axhline(0, color="0.7", lw=0.7, zorder=0)
        axis.set_title(f"{task}\nρ = {float(one['spearman']):+.2f}", fontsize="medium")
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    figure.supylabel("gain over the base trained on (points of test accuracy)", fontsize="medium")
    figure.supxlabel(f"{dataset['size'].attrs['long_name']}", fontsize="medium")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)
    figure.tight_layout()
    return figure


def pareto(dataset: xr.Dataset) -> Figure:
    """Correlation with the gain against cost, alone and rank-averaged with log parameters, with intervals.

    `dataset` has `spearman` and `partial` over (task, predictor), with `cost`, `family`, `combined` along predictor,
    and `ceiling` over task.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.9), sharex=True)
    for axis, measure in zip(axes, ("spearman", "partial"), strict=True):
        summary = bootstrap(dataset[measure])
        for family, color in FAMILY_COLORS.items():
            mine = summary.isel(predictor=((summary["family"] == family) & summary["mean"].notnull()).values)
            if not mine.sizes["predictor"]:
                continue
            for combined, face in ((False, "none"), (True, color)):
                some = mine.isel(predictor=(mine["combined"] == combined).values)
                axis.plot(
                    100 * some["cost"],
                    some["mean"],
                    FAMILY_MARKERS[family],
                    ms=3,
                    mec=color,
                    mfc=face,
                    alpha=0.4,
                )
            best = mine.isel(predictor=front(mine["cost"].values, mine["mean"].values)).sortby("cost")
            error = np.abs(np.stack([best["low"], best["high"]]) - best["mean"].values)
            axis.errorbar(
                100 * best["cost"], best["mean"], error,
                fmt=FAMILY_MARKERS[family] + "-", color=color, ms=5, lw=1.2, elinewidth=0.7, capsize=2, label=family,
            )  # fmt: skip
        axis.axhline(0, color="0.8", lw=0.7, zorder=0)
        axis.axvline(10, color="0.8", lw=0.7, ls=":", zorder=0)
        axis.set_xlabel("cost (% of training a candidate in full)")
    ceiling = float(dataset["ceiling"].mean())
    axes[0].axhline(ceiling, color="k", lw=0.8, ls="--")
    axes[0].annotate("noise ceiling", (0.99, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes[0].set_ylabel("Spearman ρ with the gain, mean over tasks")
    axes[1].set_ylabel("partial ρ given log parameter count")
    axes[1].legend(frameon=False, loc="lower right", title="lines: best at each cost")
    figure.tight_layout()
    return figure


def classes(dataset: xr.Dataset) -> Figure:
    """Correlation across all candidates and within each class of operators, for a few predictors.

    `dataset` has `spearman` over (group, task, predictor).
    """
    summary = bootstrap(dataset["spearman"])
    figure, axis = plt.subplots(figsize=(8, 3.6))
    count = summary.sizes["predictor"]
    palette = sns.color_palette("colorblind", count)
    for i, name in enumerate(summary["predictor"].values):
        one = summary.sel(predictor=name)
        where = np.arange(summary.sizes["group"]) + (i - (count - 1) / 2) * 0.8 / count
        error = np.abs(np.stack([one["low"], one["high"]]) - one["mean"].values)
        axis.errorbar(
            where,
            one["mean"],
            error,
            fmt="o",
            ms=4.5,
            color=palette[i],
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    for edge in np.arange(summary.sizes["group"] - 1) + 0.5:
        axis.axvline(edge, color="0.9", lw=0.7, zorder=0)
    axis.axhline(0, color="0.7", lw=0.7, zorder=0)
    axis.set_xticks(range(summary.sizes["group"]), [str(g).replace("_", " ") for g in summary["group"].values])
    axis.set_ylabel("Spearman ρ with the gain, mean over tasks")
    axis.legend(frameon=False, bbox_to_anchor=(1.0, 0.5), loc="center left", fontsize="small")
    figure.tight_layout()
    return figure


def tasks(dataset: xr.Dataset) -> Figure:
    """A heat map of correlations, predictors × tasks, the noise ceiling in the last row.

    `dataset` has `spearman` over (task, predictor) and `ceiling` over task.
    """
    table = dataset["spearman"].transpose("predictor", "task").to_pandas()
    table.loc["noise ceiling"] = dataset["ceiling"].to_pandas()
    figure, axis = plt.subplots(figsize=(1.1 + 1.15 * table.shape[1], 1.5 + 0.3 * len(table)))
    sns.heatmap(
        table, ax=axis, vmin=-1, vmax=1, cmap="vlag", annot=True, fmt=".2f", annot_kws={"fontsize": "small"},
        linewidths=0.5, cbar_kws={"label": "Spearman ρ with the gain"},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.set_xticklabels([str(t).replace(", ", "\n") for t in table.columns], rotation=0, fontsize="small")
    figure.tight_layout()
    return figure


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
    strips[1].set_xscale("log")
    strips[1].set_xlabel("loss right after (nats)\ndashed: base")
    strips[2].axvline(float(dataset["base_gradient_norm"]), color="k", lw=0.8, ls="--")
    strips[2].set_xscale("log")
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
    curve.set_ylim(0, CEILING)
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

_LAND = {"ring": _COLORS[9], "ellipsoid": _COLORS[8]}


def manifold_landscapes(dataset: xr.Dataset) -> Figure:
    """Sets below a level in the plane, what of them a straight line from the parent reaches, and the rays' lengths.

    `dataset` has `loss` over (landscape, row, column), `parent` over (landscape, axis), `radius` and `exact` over
    (landscape, ray), and `level`; coordinates `angle` along ray, `row` and `column`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", width_ratios=(1, 1, 1.25))
    angle = dataset["angle"].values
    for axis, name in zip(axes, dataset["landscape"].values, strict=False):
        one, color = dataset.sel(landscape=name), _LAND[str(name)]
        below = [-1, float(dataset["level"])]
        axis.contourf(one["column"], one["row"], one["loss"], below, colors=["0.85"])
        x, y = one["parent"].values[:, None] + one["radius"].values * np.stack([np.cos(angle), np.sin(angle)])
        axis.fill(x, y, color=color, alpha=0.5, lw=0)
        some = slice(None, None, max(1, len(angle) // 36))
        axis.plot([one["parent"][0].repeat(len(x[some])), x[some]], [one["parent"][1].repeat(len(y[some])), y[some]],
                  color="k", lw=0.3)  # fmt: skip
        axis.plot(*one["parent"], "ko", ms=4)
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
        1, len(names), figsize=(3.1 * len(names) + 0.8, 3.3), sharex=True, sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    losses, level = dataset["plane_loss"], float(dataset["level"])
    shades = np.geomspace(float(losses.min()), 12 * level, 13)
    for axis, name in zip(axes.flat, names, strict=True):
        one, color = dataset.sel(operator=name), OPERATOR_COLORS[name]
        picture = axis.contourf(
            one["column"], one["row"], one["plane_loss"], shades, cmap="Greys", norm="log", extend="max"
        )
        axis.contour(one["column"], one["row"], one["plane_loss"], [level], colors=[color], linewidths=2)
        (x0, y0), *young = one["corner"].values
        axis.plot(*np.transpose(young), "^", ms=6, mfc=color, mec="w", mew=0.8, zorder=4)
        axis.plot(x0, y0, "o", ms=6, mfc=color, mec="w", mew=0.8, zorder=4)
        axis.set_title(name.replace("_", " "), color=color)
        axis.set_aspect("equal")
    figure.supxlabel("distance from the parent (●) towards the first child (▲)", fontsize="medium")
    axes[0, 0].set_ylabel("distance across, towards the second")
    bar = figure.colorbar(picture, ax=axes, shrink=0.85, label="loss (nats); coloured line: the level")
    ticks = shades[::3]
    bar.set_ticks(ticks, labels=[f"{t:.2g}" for t in ticks])
    bar.minorticks_off()
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
        above.set_ylim(0, 3 * level)
        words, counts = np.unique(mine["status"], return_counts=True)
        above.set_title("\n".join([str(kind), *(f"{n} {w}" for w, n in zip(words, counts, strict=True))][:3]),
                        fontsize="medium")  # fmt: skip
        below.set_xlim(left=0)
    axes[0, 0].set_ylabel("loss (nats), dashed: level")
    _operator_rows(axes[1, 0], names)
    figure.supxlabel("distance from the parent (parameter space)", fontsize="medium")
    return figure
