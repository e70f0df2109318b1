"""The figures of the results: a Dataset in, a Figure out. Operators and families have a colour and a marker each."""

from collections import Counter
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETRIGHTBASE

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import COLORS, operator_color, operator_marker, plain
from mmstudy.study.evaluation import bootstrap, front

FAMILY_COLORS = {"static": "0.55", "early loss": COLORS[1], "size": COLORS[0]}
FAMILY_MARKERS = {"static": "s", "early loss": "^", "size": "o"}
FAMILY_LINES = {"static": ":", "early loss": "--", "size": "-"}
OTHER_MARKERS = {"static": "DXP", "early loss": "v<>", "size": "ph8"}  # of more predictors of one family in a figure
FAR = 3.0  # times the distance between quartiles, beyond which a point is not drawn but counted


def gain_against_size(dataset: xr.Dataset) -> Figure:
    """One panel a task: the gain of each candidate against one size measure.

    Hollow: the children's centre lies above the level, so that there is no size; with an arrow: most rays were cut off,
    so that the size is a lower bound. What lies far from the rest is counted at the border.

    `dataset` has `size`, `gain`, `gain_se`, `outside` and `unbounded` (shares) over (task, candidate), `spearman` over
    task; coordinate `operator`.
    """
    tasks = dataset["task"].values
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.4 * rows + 0.5), squeeze=False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        one = dataset.sel(task=task)
        for operator in sorted(set(one["operator"].values), key=list(OPERATORS).index):
            mine = one.isel(candidate=(one["operator"] == operator).values)
            look = {"color": operator_color(operator), "alpha": 0.85}
            axis.errorbar(mine["size"], mine["gain"], mine["gain_se"], fmt="none", lw=0.7, **look)
            for hollow in (False, True):
                some = mine.isel(candidate=((mine["outside"] > 0.5) == hollow).values)
                face = {"mfc": "w"} if hollow else {}
                axis.plot(some["size"], some["gain"], operator_marker(operator), ls="", ms=3.5, **look, **face)
            bound = mine.isel(candidate=(mine["unbounded"] > 0.5).values)
            axis.plot(bound["size"], bound["gain"], ls="", marker=CARETRIGHTBASE, ms=3.5, color="k", mew=0, alpha=0.6)
        axis.axhline(0, color="0.7", lw=0.7, zorder=0)
        _without_far_ones(axis, one["size"].values, one["gain"].values)
        data, widths, seed = str(task).rsplit(", ", 2)
        axis.set_title(f"{data}\n{widths}, {seed}: ρ = {float(one['spearman']):+.2f}", fontsize="medium")
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    figure.supylabel("gain over the base trained on (points of test accuracy)", fontsize="medium")
    figure.supxlabel(f"{dataset['size'].attrs['long_name']}", fontsize="medium")
    present = sorted(set(dataset["operator"].values), key=list(OPERATORS).index)
    marks = [
        *(Line2D([], [], ls="", marker=operator_marker(o), color=operator_color(o), label=plain(o)) for o in present),
        Line2D([], [], ls="", marker="o", mfc="w", color="0.3", label="centre above the level: no size"),
        Line2D([], [], ls="", marker=CARETRIGHTBASE, color="k", label="most rays cut off: a lower bound"),
    ]
    figure.legend(handles=marks, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    figure.tight_layout()
    return figure


def _without_far_ones(axis, x: np.ndarray, y: np.ndarray) -> None:
    """Limits around the bulk of the points, with a word on how many lie beyond, and how far."""
    far = []
    for values, limit, sides in ((x, axis.set_xlim, ("left", "right")), (y, axis.set_ylim, ("below", "above"))):
        known = values[np.isfinite(values)]
        low, high = np.quantile(known, (0.25, 0.75))
        reach = FAR * max(high - low, 1e-9)
        inner = known[(known >= low - reach) & (known <= high + reach)]
        margin = 0.07 * max(np.ptp(inner), 1e-9)
        limit(inner.min() - margin, inner.max() + margin)
        for side, beyond in zip(sides, (known[known < inner.min()], known[known > inner.max()]), strict=True):
            if beyond.size:
                furthest = beyond[np.abs(beyond - np.median(inner)).argmax()]
                far.append(f"{beyond.size} {side}, to {furthest:.2g}".replace("-", "−"))
    look = {"transform": axis.transAxes, "ha": "right", "va": "bottom", "fontsize": "x-small"}
    axis.text(0.99, 0.01, "\n".join(far), bbox={"fc": "w", "ec": "none", "alpha": 0.7, "pad": 1}, **look)


def pareto(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """Correlation with the gain against cost, alone and rank-averaged with log parameters, with intervals.

    `dataset` has `spearman` and `partial` over (task, predictor), with `cost`, `family`, `combined` along predictor,
    and `ceiling` over task.

    Args:
        named: word → the predictor that it points to.
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
                look = {"ms": 3, "mec": color, "mfc": face, "alpha": 0.4}
                axis.plot(100 * some["cost"], some["mean"], FAMILY_MARKERS[family], **look)
            best = mine.isel(predictor=front(mine["cost"].values, mine["mean"].values)).sortby("cost")
            error = np.abs(np.stack([best["low"], best["high"]]) - best["mean"].values)
            axis.errorbar(
                100 * best["cost"], best["mean"], error,
                fmt=FAMILY_MARKERS[family] + FAMILY_LINES[family], color=color, ms=5, lw=1.2, elinewidth=0.7, capsize=2,
                label=family,
            )  # fmt: skip
        for i, (word, predictor) in enumerate(named.items()):
            one = summary.sel(predictor=predictor)
            if one["mean"].notnull():
                axis.annotate(
                    word, (100 * float(one["cost"]), float(one["mean"])), (0.08 + 0.1 * i, 0.9 - 0.06 * i),
                    textcoords="axes fraction", fontsize="small",
                    arrowprops={"arrowstyle": "->", "lw": 0.7, "color": "0.2"},
                )  # fmt: skip
        axis.axhline(0, color="0.8", lw=0.7, zorder=0)
        axis.axvline(10, color="0.8", lw=0.7, ls=":", zorder=0)
        axis.set_xlabel("cost (% of training a candidate in full)")
    ceiling = float(dataset["ceiling"].mean())
    axes[0].axhline(ceiling, color="k", lw=0.8, ls="--")
    axes[0].annotate("noise ceiling", (0.99, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes[0].set_ylabel("Spearman ρ with the gain, mean over tasks")
    axes[1].set_ylabel("partial ρ given log parameter count")
    axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="lines: best\nat each cost")
    figure.tight_layout()
    return figure


def classes(dataset: xr.Dataset) -> Figure:
    """Correlation across all candidates and within each class of operators, for a few predictors.

    `dataset` has `spearman` over (group, task, predictor).
    """
    summary = bootstrap(dataset["spearman"])
    figure, axis = plt.subplots(figsize=(8, 3.6))
    count, used = summary.sizes["predictor"], Counter[str]()
    for i, name in enumerate(summary["predictor"].values):
        one = summary.sel(predictor=name)
        where = np.arange(summary.sizes["group"]) + (i - (count - 1) / 2) * 0.8 / count
        error = np.abs(np.stack([one["low"], one["high"]]) - one["mean"].values)
        family = str(one["family"].item())
        shape = FAMILY_MARKERS[family] if not used[family] else OTHER_MARKERS[family][used[family] - 1]
        used[family] += 1
        look = {"color": FAMILY_COLORS[family], "mfc": FAMILY_COLORS[family] if one["combined"] else "w"}
        axis.errorbar(where, one["mean"], error, fmt=shape, ms=4.5, elinewidth=0.8, capsize=2, label=name, **look)
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
    names = [str(task).replace(", ", "\n").replace(" ", "\n", 1) for task in table.columns]
    axis.set_xticklabels(names, rotation=0, fontsize="small")
    figure.tight_layout()
    return figure
