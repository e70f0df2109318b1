"""The figures of the results: a Dataset in, a Figure out. Operator = colour, family of predictors = colour, marker."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import COLORS, operator_color, plain
from mmstudy.study.evaluation import bootstrap, front

FAMILY_COLORS = {"static": "0.55", "early loss": COLORS[1], "size": COLORS[0]}
FAMILY_MARKERS = {"static": "s", "early loss": "^", "size": "o"}


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
        for operator in sorted(set(one["operator"].values), key=list(OPERATORS).index):
            mine = one.isel(candidate=(one["operator"] == operator).values)
            axis.errorbar(
                mine["size"], mine["gain"], mine["gain_se"],
                fmt="o", ms=3.5, lw=0.7, color=operator_color(operator), alpha=0.85, label=plain(operator),
            )  # fmt: skip
        axis.axhline(0, color="0.7", lw=0.7, zorder=0)
        data, widths, seed = str(task).rsplit(", ", 2)
        axis.set_title(f"{data}\n{widths}, {seed}: ρ = {float(one['spearman']):+.2f}", fontsize="medium")
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
    axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="lines: best\nat each cost")
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
    names = [str(task).replace(", ", "\n").replace(" ", "\n", 1) for task in table.columns]
    axis.set_xticklabels(names, rotation=0, fontsize="small")
    figure.tight_layout()
    return figure
