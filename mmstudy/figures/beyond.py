"""What lies beyond the answer: what size depends on, when to grow, churn, double descent, and which score to go by.

A Dataset in, a Figure out. They are as wide as a column, and need no colours.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mmstudy.figures.families import looks
from mmstudy.figures.style import (
    COLUMN,
    NUMBER,
    for_a_column,
    interval,
    numbered,
    operator_color,
    operator_marker,
    plain,
)
from mmstudy.study import intervals

MARKERS, SHADES = "osD^v", ("0", "0.35", "0.55", "0.2", "0.45")  # of tasks and of rules: neither has a colour
ERROR_LOOKS: dict[str, dict[str, Any]] = {
    "test": {"color": "k", "marker": "o"},
    "train": {"color": "0.5", "marker": "D", "ls": "--"},
}
SCORE_WORDS = {"accuracy": "accuracy", "nll": "likelihood", "ece": "calibration"}
CHECKPOINT_LOOKS: dict[str, dict[str, Any]] = {
    "last": {"marker": "o", "mfc": "k"},
    "best validation": {"marker": "D", "mfc": "w"},
}


@for_a_column
def explorers(dataset: xr.Dataset) -> Figure:
    """What the number of children K and their steps T do to the size: two maps for each share of the training.

    Above, ρ of the size with the gain, the mean over tasks; below, ρ between the sizes of two draws of children.

    `dataset` has `size_spearman` and `size_agreement` over (task, progress, child_steps, children): `beyond.runs`.
    """
    shares, steps, children = (dataset[name].values.tolist() for name in ("progress", "child_steps", "children"))
    rows = {"size_spearman": "with the gain", "size_agreement": "between draws"}
    figure, axes = plt.subplots(
        len(rows), len(shares), figsize=(COLUMN, 0.5 + len(rows) * (0.3 + 0.2 * len(steps))), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for line, (name, words) in zip(axes, rows.items(), strict=True):
        table = dataset[name].mean("task").transpose("progress", "child_steps", "children")
        for axis, share in zip(line, shares, strict=True):
            numbered(axis, table.sel(progress=share).values, "vlag", (-1, 1))
            axis.set_title(f"ρ {words}, at {100 * share:g}%")
            axis.set_xticks(range(len(children)), children)
            axis.set_yticks(range(len(steps)), steps)
    figure.supxlabel("children K", fontsize=7)
    figure.supylabel("steps T of each", fontsize=7)
    return figure


@for_a_column
def growing(lead: xr.Dataset, rules: xr.Dataset) -> Figure:
    """Growing now or later (above), and what to grow next (below), each task with its interval over seeds.

    Args:
        lead: `mean`, `low`, `high` over (task, way): points of accuracy against growing after all of the training.
        rules: the same over (task, rule): points against a choice by lot, after the last round.
    """
    figure, axes = plt.subplots(2, 1, figsize=(COLUMN, 3.6), layout="constrained")
    words = ("lead over growing at 100%\n(points of accuracy)", "lead over random choice\n(points of accuracy)")
    for axis, table, dim, label in zip(axes, (lead, rules), ("way", "rule"), words, strict=True):
        names, tasks = table[dim].values.tolist(), table["task"].values.tolist()
        for i, task in enumerate(tasks):
            one, apart = table.sel(task=task), (i - (len(tasks) - 1) / 2) * 0.2
            axis.errorbar(
                np.arange(len(names)) + apart, one["mean"], interval(one), ls="", marker=MARKERS[i % len(MARKERS)],
                color=SHADES[i % len(SHADES)], elinewidth=0.7, label=task.rsplit(", seed", 1)[0],
            )  # fmt: skip
        axis.axhline(0, color="0.7", lw=0.6, zorder=0)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.tick_params(axis="x", length=0)
        axis.set_ylabel(label)
    axes[0].set_xlabel("grown after this share of the base's training")
    axes[1].set_xlabel("what chooses each of the expansions in a row")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=1)
    return figure


@for_a_column
def churn(along: xr.Dataset, left: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """How churn orders the gains along the training (above), and what is left of it given other numbers (below).

    Args:
        along: `mean`, `low`, `high` over (measure, labels, progress), with the coordinate `family` along measure.
        left: the same over (given, labels).
        named: measure → its name in words; the others keep theirs.
    """
    places, words = np.arange(along.sizes["progress"]), along["labels"].values.tolist()
    size = COLUMN, 3.6
    figure, axes = plt.subplots(2, len(words), sharey="row", squeeze=False, figsize=size, layout="constrained")
    for axis, labels in zip(axes[0], words, strict=True):
        for measure, look in zip(along["measure"].values.tolist(), looks(along["family"].values), strict=True):
            one = along.sel(labels=labels, measure=measure)
            axis.errorbar(
                places, one["mean"], interval(one), label=named.get(measure, plain(measure)), elinewidth=0.6, **look
            )
        axis.set_title(labels)
        axis.set_xticks(places, [f"{100 * share:g}" for share in along["progress"].values])
        axis.set_xlabel("share of the training (%)", fontsize=NUMBER)
    names = left["given"].values.tolist()
    for axis, labels in zip(axes[1], words, strict=True):
        one, rows = left.sel(labels=labels), np.arange(len(names))
        axis.errorbar(rows, one["mean"], interval(one), ls="", marker="o", color="k", elinewidth=0.8)
        axis.set_xticks(rows, [plain(name).replace(" ", "\n", 1) for name in names], rotation=90)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_xlabel("given")
    for axis in axes.flat:
        axis.axhline(0, color="0.7", lw=0.6, zorder=0)
    axes[0, 0].set_ylabel("ρ with the gain")
    axes[1, 0].set_ylabel("partial ρ of churn\nwith the gain")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


@for_a_column
def descent(dataset: xr.Dataset, threshold: float) -> Figure:
    """Errors of networks of many widths from scratch, and what expanding each of them gains (below).

    Test and training error have limits of their own: where the one rises and falls again is a few points. The dotted
    line is the interpolation threshold, where the training error vanishes; NaN: there is none.

    `dataset` has `descent_train_error`, `descent_test_error` over (width, seed), `descent_gain` over (operator, width,
    seed): `beyond.runs`. Intervals are over seeds.
    """
    figure, axes = plt.subplots(3, 1, figsize=(COLUMN, 4.6), sharex=True, layout="constrained")
    *errors, below = axes
    width = dataset["width"].values
    for axis, (name, look) in zip(errors, ERROR_LOOKS.items(), strict=True):
        one = intervals.over_seeds(dataset[f"descent_{name}_error"])
        axis.errorbar(width, one["mean"], interval(one), elinewidth=0.7, **look)
        axis.set_ylabel(f"{name} error (%)")
    for operator in dataset["operator"].values.tolist():
        one = intervals.over_seeds(dataset["descent_gain"].sel(operator=operator))
        below.errorbar(
            width, one["mean"], interval(one), elinewidth=0.7, label=plain(operator), color=operator_color(operator),
            marker=operator_marker(operator),
        )  # fmt: skip
    below.axhline(0, color="0.7", lw=0.6, zorder=0)
    for axis in axes:
        if np.isfinite(threshold):
            axis.axvline(threshold, color="k", lw=0.8, ls=(0, (1, 1)), zorder=0)
    below.set_xscale("log")
    below.xaxis.set_major_locator(FixedLocator(width.tolist()))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter("{x:g}")
    below.set_xlabel("units in each hidden layer")
    below.set_ylabel("gain of doubling\n(points of accuracy)")
    below.legend()
    return figure


@for_a_column
def scores(dataset: xr.Dataset) -> Figure:
    """Whether accuracy and likelihood agree on the candidates of a task, against how well these fit in the end.

    Left: their correlation in each task, of the last checkpoint and of that with the best validation accuracy. Right:
    how often two scores have the same favourite.

    `dataset` has `spearman`, `same` over (task, checkpoint, pair) and `training_loss` over task:
    `likelihood.agreement`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(COLUMN, 2.2), width_ratios=(1.4, 1), layout="constrained")
    pairs = dataset["pair"].values.tolist()
    for i, (checkpoint, look) in enumerate(CHECKPOINT_LOOKS.items()):
        one = dataset.sel(checkpoint=checkpoint)
        left.plot(dataset["training_loss"], one["spearman"].sel(pair="accuracy, nll"), ls="", mec="k", **look)
        share = 100 * one["same"].mean("task")
        right.plot(share, np.arange(len(pairs)) + (i - 0.5) * 0.25, ls="", mec="k", **look)
    left.axhline(0, color="0.7", lw=0.6, zorder=0)
    left.set_xscale("log")
    left.set_xlabel("training loss in the end (nats)")
    left.set_ylabel("ρ of the gains in\naccuracy and likelihood")
    words = [",\n".join(SCORE_WORDS[score] for score in pair.split(", ")) for pair in pairs]
    right.set_yticks(range(len(pairs)), words)
    right.set_ylim(len(pairs) - 0.5, -0.5)
    right.set_xlim(-5, 105)
    right.set_xlabel("one favourite\n(% of tasks)")
    marks = [Line2D([], [], ls="", mec="k", label=name, **look) for name, look in CHECKPOINT_LOOKS.items()]
    figure.legend(handles=marks, title="checkpoint", loc="outside upper center", ncols=2)
    return figure
