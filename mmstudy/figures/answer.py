"""The answer in three figures: is size related to the gain, since when, and what does one choose by it?

A Dataset in, a Figure out. They are as wide as a column, and need no colours.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from mmstudy.expansion.operators import OPERATORS, of_kind
from mmstudy.figures.families import family_look, family_marks, looks
from mmstudy.figures.style import (
    COLUMN,
    NUMBER,
    for_a_column,
    interval,
    number_points,
    plain,
    root_scale,
    signed,
)
from mmstudy.study.intervals import front

KIND_COLORS = {kind: OPERATORS[names[0]].color for kind, names in of_kind().items()}
KIND_MARKERS = dict(zip(KIND_COLORS, "o^s", strict=True))
CENSORED = 0.5  # of its rays: from here on, a size is shown as a lower bound


@for_a_column
def relation(dataset: xr.Dataset) -> Figure:
    """The gain of each candidate against its size, both as ranks in its task; one panel for each group of tasks.

    Hollow: more than half of the rays did not meet the level, so that the size is a lower bound. Crosses: the rays
    start above the level, so that the size is 0; those of a task share one rank. The line is the mean gain of each
    tenth of the sizes.

    A row has the panels whose names begin alike ("true labels, …"), a column those that end alike.

    `dataset` has `gain`, `size`, `censored`, `none` over candidate, with the coordinates `operator` and `panel_of`;
    `trend` over (panel, tenth); `mean`, `low`, `high`, `tasks` over panel: ρ. `summaries.relation` makes it.
    """
    places = {panel: tuple(panel.partition(", ")[::2]) for panel in dataset["panel"].values.tolist()}
    rows, columns = (sorted({place[i] for place in places.values()}, reverse=True) for i in range(2))
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(COLUMN, 0.75 + len(rows) * (COLUMN / 2 + 0.3)), squeeze=False, sharex=True,
        sharey=True, layout="constrained",
    )  # fmt: skip
    kinds = np.array([OPERATORS[name].kind for name in dataset["operator"].values.tolist()])
    bound, none = dataset["censored"].values > CENSORED, dataset["none"].values
    for panel, (row, column) in places.items():
        axis, one = axes[rows.index(row), columns.index(column)], dataset.sel(panel=panel)
        here = dataset["panel_of"].values == panel
        for kind, color in KIND_COLORS.items():
            _points(axis, dataset.isel(candidate=here & (kinds == kind)), color, KIND_MARKERS[kind])
        axis.plot(dataset["tenth"], one["trend"], "-o", color="w", lw=2.0, ms=3.5)
        axis.plot(dataset["tenth"], one["trend"], "-o", color="k", lw=1.2, ms=2.5)
        count = int(one["tasks"])
        words = f"{count} task{'s' * (count > 1)}" + f", size 0: {none[here].mean():.0%}" * bool(none[here].any())
        axis.set_title(f"{panel}\n{words}\n{_with_interval(one)}", fontsize=NUMBER)
    for axis in axes.flat:
        axis.set_visible(bool(axis.get_title()))
    axes[0, 0].set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0, 0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0, 0].set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.supxlabel("size, rank in its task (0 smallest, 1 largest)", fontsize=7)
    figure.supylabel("gain in accuracy, rank in its task", fontsize=7)
    marks = [
        Line2D([], [], ls="", marker=KIND_MARKERS[kind], color=KIND_COLORS[kind], mew=0, label=kind)
        for kind in KIND_COLORS
        if kind in kinds
    ]
    if bound.any():
        word = "most rays cut off: a lower bound"
        marks.append(Line2D([], [], ls="", marker="o", mfc="none", color="0.3", label=word))
    if none.any():
        marks.append(Line2D([], [], ls="", marker="x", color="0.3", label="size 0: centre above the level"))
    marks.append(Line2D([], [], color="k", lw=1.2, marker="o", ms=2.5, label="mean of each tenth"))
    figure.legend(handles=marks, loc="outside upper center", ncols=2)
    return figure


def _points(axis, some: xr.Dataset, color, marker: str) -> None:
    """Candidates of one kind: filled, hollow where the size is a lower bound, a cross where there is none."""
    bound, none = some["censored"].values > CENSORED, some["none"].values
    looks = (
        (~bound & ~none, {"marker": marker, "mfc": color, "mew": 0, "alpha": 0.45}),
        (bound & ~none, {"marker": marker, "mfc": "none", "mew": 0.4, "alpha": 0.8}),
        (none, {"marker": "x", "mew": 0.5, "alpha": 0.8}),
    )
    for mine, look in looks:
        axis.plot(some["size"].values[mine], some["gain"].values[mine], ls="", ms=2.2, mec=color, **look)


def _with_interval(one: xr.Dataset) -> str:
    mean, low, high = (float(one[name]) for name in ("mean", "low", "high"))
    return f"ρ = {signed(mean)}" + (f" [{signed(low)}, {signed(high)}]" if np.isfinite(low) else "")


@for_a_column
def build_up(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """How well the gain is known after each share of the training: ρ of a few measures, with intervals over tasks.

    `dataset` has `mean`, `low`, `high` over (measure, progress), with the coordinate `family`, and `ceiling`, a number:
    `summaries.along_training`, then `intervals.over_tasks`.

    Args:
        named: measure → its name in words; the others keep theirs.
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 3.1), layout="constrained")
    measures, places = dataset["measure"].values.tolist(), np.arange(dataset.sizes["progress"])
    for i, (measure, look) in enumerate(zip(measures, looks(dataset["family"].values), strict=True)):
        one = dataset.sel(measure=measure)
        apart = (i - (len(measures) - 1) / 2) * 0.5 / len(measures)
        axis.errorbar(
            places + apart, one["mean"], interval(one), label=named.get(measure, plain(measure)),
            elinewidth=0.6, capsize=0, **look,
        )  # fmt: skip
    axis.axhline(float(dataset["ceiling"]), color="k", lw=0.8, ls=(0, (1, 1)), label="noise ceiling")
    axis.axhline(0, color="0.7", lw=0.6, zorder=0)
    axis.set_xticks(places, [f"{100 * share:g}" for share in dataset["progress"].values])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.set_xlabel("measured after this share of the training (%)")
    axis.set_ylabel("Spearman ρ with the gain, mean over tasks")
    lines, words = axis.get_legend_handles_labels()
    figure.legend([*lines[1:], lines[0]], [*words[1:], words[0]], loc="outside upper center", ncols=2)  # ceiling last
    return figure


@for_a_column
def choices(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """What the candidate that a policy chooses falls short of the best one, against what it costs, with intervals.

    Numbered policies, the cheapest first, those of one cost side by side; a grey line joins those that no other beats,
    a dash is the worst task. The regret stands beside the name. The axis of the regret is that of its square root.

    `dataset` has `regret`, `low`, `high`, `worst` and `total` over policy, with the coordinate `family` of what a
    policy looks at (of no family: nothing, or all of the training): `judging.summary`.

    Args:
        named: policy → its name in words; the others keep theirs.
    """
    table = dataset.sortby("total")
    figure, (axis, key) = plt.subplots(
        2, 1, figsize=(COLUMN, 3.3 + 0.075 * table.sizes["policy"]), layout="constrained",
        height_ratios=(2.9, 0.1 + 0.075 * table.sizes["policy"]),
    )  # fmt: skip
    total, regret = 100 * _apart(table["total"].values), table["regret"].values
    on = np.flatnonzero(front(table["total"].values, -regret))
    axis.plot(total[on], regret[on], color="0.6", lw=0.9, drawstyle="steps-post", zorder=1)
    lines = _along(np.repeat(total[on], 2)[1:], np.repeat(regret[on], 2)[:-1])  # where no number may lie
    half = -(-len(total) // 2)
    for i, policy in enumerate(table["policy"].values.tolist()):
        one, look = table.isel(policy=i), family_look(table["family"].values[i])
        low, high = np.nan_to_num([float(one["low"]), float(one["high"])], nan=regret[i])
        axis.plot([total[i]] * 2, [max(low, 0), high], color=look["color"], lw=0.7, zorder=2)
        axis.plot(total[i], float(one["worst"]), "_", color=look["color"], ms=4)
        lines = np.vstack([lines, _along(total[[i, i]], np.array([max(low, 0), high])), [total[i], one["worst"]]])
        axis.plot(total[i], regret[i], ls="", zorder=3, **look | {"markersize": 3.5})
        at = 0.52 * (i // half), 1 - (i % half) / half
        key.text(*at, str(i + 1), va="top", fontsize=NUMBER, color=look["color"])
        key.text(at[0] + 0.05, at[1], f"{named.get(policy, plain(policy))}: {regret[i]:.2f}", va="top", fontsize=NUMBER)
    key.set_axis_off()
    axis.set_xscale("log")
    root_scale(axis.yaxis)
    ticks = [t for t in (0, 0.1, 0.5, 1, 2, 5, 10, 20, 50) if t <= 1.2 * float(table["worst"].max())]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ylim(-0.01, 1.1 * float(table["worst"].max()))
    axis.set_xticks([2, 5, 10, 20, 50, 100], [2, 5, 10, 20, 50, 100])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylabel("regret (points of test accuracy)")
    axis.set_xlabel("total cost (% of training the whole pool)")
    marks = family_marks(table["family"].values)
    marks.append(Line2D([], [], ls="", marker="_", color="0.3", ms=4, label="worst task"))
    marks.append(Line2D([], [], color="0.6", lw=0.9, label="beaten by none"))
    figure.legend(handles=marks, loc="outside upper center", ncols=3)
    colors = [family_look(family)["color"] for family in table["family"].values]
    number_points(axis, total, regret, colors, lines)
    return figure


def _along(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points along a broken line, close to each other on any axis."""
    share = np.linspace(0, 1, 40 * (len(x) - 1) + 1) * (len(x) - 1)
    return np.column_stack([np.interp(share, np.arange(len(x)), each) for each in (x, y)])


def _apart(costs: np.ndarray) -> np.ndarray:
    """Costs that are equal, or nearly so, moved apart by 3%."""
    same = np.isclose(costs[:, None], costs, rtol=0.01)
    place = np.tril(same, -1).sum(1)
    return costs * 1.03 ** (place - (same.sum(1) - 1) / 2)
