"""All predictors against each other: ranked, seen in several ways, and task by task. A Dataset in, a Figure out."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from mmstudy.figures.families import family_look, family_marks, looks
from mmstudy.figures.style import COLUMN, NUMBER, for_a_column, interval, measure_words, numbered, plain, short_tasks
from mmstudy.study import choices

CHOSEN = {  # the size that the study bets on and its rivals, in words
    choices.HEADLINE: f"size @{choices.HEADLINE.split('@')[1]}",
    choices.RIVAL: choices.RIVAL.replace("minibatch_loss", "loss"),
    choices.VALIDATION_RIVAL: choices.VALIDATION_RIVAL.replace("_", " "),
}


@for_a_column
def ranking(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """Predictors, the best on top: mean ρ over tasks with its interval, and the worst task as a dash.

    Hollow: averaged with the parameter count. Bold: those that are named, the claim and its rivals.

    `dataset` has `mean`, `low`, `high`, `worst` over predictor, with the coordinates `family` and `combined`, and
    `ceiling`, a number: `intervals.over_tasks` of `statistics.scores`.

    Args:
        named: predictor → its name in words, in bold; the others keep theirs.
    """
    table = dataset.sortby("mean", ascending=False)
    count = table.sizes["predictor"]
    figure, axis = plt.subplots(figsize=(COLUMN, 0.9 + 0.132 * count), layout="constrained")
    for i in range(count):
        one = table.isel(predictor=i)
        look = family_look(one["family"].item(), bool(one["combined"]))
        axis.errorbar(one["mean"], i, xerr=interval(one)[:, None], elinewidth=0.8, ls="", **look)
        axis.plot(one["worst"], i, "|", color=look["color"], ms=4)
    axis.axvline(0, color="0.7", lw=0.6, zorder=0)
    axis.axvline(float(table["ceiling"]), color="k", lw=0.8, ls=(0, (1, 1)), zorder=0)
    names = table["predictor"].values.tolist()
    axis.set_yticks(range(count), [named.get(name, measure_words(name)) for name in names])
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in named else "normal")
    axis.set_ylim(count - 0.4, -0.6)
    axis.tick_params(axis="y", length=0, labelsize=NUMBER)
    axis.grid(axis="y", lw=0.3, color="0.9")
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    axis.set_xlabel("Spearman ρ with the gain" + "\n(bold: claim and rivals)" * any(name in named for name in names))
    marks = family_marks(table["family"].values)
    if table["combined"].any():
        marks.append(Line2D([], [], ls="", marker="o", mfc="w", color="0.3", label="hollow: + parameters"))
    marks.append(Line2D([], [], ls="", marker="|", color="0.3", label="worst task"))
    marks.append(Line2D([], [], color="k", lw=0.8, ls=(0, (1, 1)), label="noise ceiling"))
    figure.legend(handles=marks, loc="outside upper center", ncols=3)
    return figure


@for_a_column
def within(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """A few predictors in several ways: across all candidates, within operators, given other numbers, in equal pairs.

    `dataset` has `mean`, `low`, `high` over (view, predictor), with the coordinate `family`: `summaries.views`, then
    `intervals.over_tasks`.

    Args:
        named: predictor → its name in words; the others keep theirs.
    """
    groups, predictors = dataset["view"].values.tolist(), dataset["predictor"].values.tolist()
    height = 0.5 + 0.15 * len(predictors) / 2 + len(groups) * (0.11 * len(predictors) + 0.1)
    figure, axis = plt.subplots(figsize=(COLUMN, height), layout="constrained")
    for i, (name, look) in enumerate(zip(predictors, looks(dataset["family"].values), strict=True)):
        one = dataset.sel(predictor=name)
        rows = np.arange(len(groups)) + (i - (len(predictors) - 1) / 2) * 0.8 / len(predictors)
        label = named.get(name, plain(name))
        axis.errorbar(one["mean"], rows, xerr=interval(one), elinewidth=0.8, label=label, **look | {"linestyle": ""})
    for edge in np.arange(len(groups) - 1) + 0.5:
        axis.axhline(edge, color="0.85", lw=0.5)
    axis.axvline(0, color="0.7", lw=0.6, zorder=0)
    axis.set_yticks(range(len(groups)), [plain(group).replace(" ", "\n", 1) for group in groups])
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("Spearman ρ with the gain, mean over tasks;\nof pairs: rightly − wrongly ordered")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@for_a_column
def tasks(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """A map of correlations, tasks × predictors, the noise ceiling in the last column; negative: hatched.

    `dataset` has `spearman` over (task, predictor) and `ceiling` over task: `statistics.scores` and `reliability`.

    Args:
        named: predictor → its name in words; the others keep theirs.
    """
    rho, words = dataset["spearman"].transpose("task", "predictor"), CHOSEN | dict(named)
    names = [words.get(name, measure_words(name)) for name in rho["predictor"].values.tolist()]
    rows = short_tasks(rho["task"].values)
    figure, axis = plt.subplots(figsize=(COLUMN, 1.3 + 0.14 * len(rows)), layout="constrained")
    numbered(axis, np.column_stack([rho.values, dataset["ceiling"].values]), "vlag", (-1, 1))
    axis.axvline(len(names) - 0.5, color="w", lw=3)
    axis.set_yticks(range(len(rows)), rows)
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(names) + 1), [*names, "noise ceiling"], rotation=90)
    axis.tick_params(length=0, labelsize=NUMBER)
    legend = "numbers: ρ (hatched: < 0); tasks: examples, flipped, widths"
    figure.supxlabel(legend, fontsize=NUMBER)
    return figure
