"""Where the answer holds: by noise and number of examples, against networks from scratch, in other forms of the size.

A Dataset in, a Figure out.
"""

from collections.abc import Mapping
from itertools import pairwise
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmstudy.figures.style import (
    COLUMN,
    NUMBER,
    for_a_column,
    interval,
    numbered,
    plain,
    root_scale,
    short_tasks,
    signed,
)
from mmstudy.study.derived import LEVELS

BUDGET_LOOKS: dict[str, dict[str, Any]] = {
    "equal steps": {"color": "k", "marker": "o", "mfc": "k"},
    "equal flops": {"color": "0.5", "marker": "D", "mfc": "w"},
}
LEVEL_LOOKS = {  # of the extent: not of predictors, so without the colours of families
    level: {"color": shade, "marker": marker, "linestyle": line}
    for level, shade, marker, line in zip(
        LEVELS, ("0", "0.3", "0.5", "0.65"), "os^D", ("-", "--", "-.", ":"), strict=True
    )
}


@for_a_column
def regimes(dataset: xr.Dataset, named: Mapping[str, str]) -> Figure:
    """A map of ρ, kinds of tasks × predictors; negative: hatched.

    A kind of task is a share of flipped labels and a number of training examples, with the number of such tasks.

    `dataset` has `mean` and `tasks` over (predictor, label_noise, train_size): `summaries.by_regime`.

    Args:
        named: predictor → its name in words; the others keep theirs.
    """
    kinds = dataset.stack(kind=("label_noise", "train_size")).transpose("kind", "predictor")
    kinds = kinds.isel(kind=(kinds["tasks"].max("predictor") > 0).values)
    rows = [
        f"{100 * noise:g}%, {examples:,} ({tasks:.0f})"
        for (noise, examples), tasks in zip(kinds["kind"].values, kinds["tasks"].max("predictor").values, strict=True)
    ]
    figure, axis = plt.subplots(figsize=(COLUMN, 1.0 + 0.15 * len(rows)), layout="constrained")
    numbered(axis, kinds["mean"].values, "vlag", (-1, 1))
    for i, (one, other) in enumerate(pairwise(kinds["label_noise"].values)):
        if one != other:
            axis.axhline(i + 0.5, color="w", lw=2)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylabel("flipped labels, training examples (tasks)")
    axis.xaxis.tick_top()
    names = dataset["predictor"].values.tolist()
    axis.set_xticks(range(len(names)), [fill(named.get(name, plain(name)), 10) for name in names], fontsize=NUMBER)
    return figure


@for_a_column
def scratch(dataset: xr.Dataset) -> Figure:
    """Is expanding worth it? What expansions have ahead of the base trained on, and of their own shapes without it.

    Of each task the expansion in the middle, and the middle eight tenths; above, the mean over tasks with its interval.
    The axis is that of square roots.

    `dataset` has `lower`, `middle`, `upper` over (task, reference, budget), and `mean`, `low`, `high` over (reference,
    budget): `summaries.leads_of_tasks`.
    """
    names, references = dataset["task"].values.tolist(), dataset["reference"].values.tolist()
    figure, axes = plt.subplots(
        1, len(references), figsize=(COLUMN, 1.0 + 0.16 * (len(names) + 1)), sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, reference in zip(np.ravel(axes), references, strict=True):
        for apart, (budget, look) in zip((-0.18, 0.18), BUDGET_LOOKS.items(), strict=True):
            one = dataset.sel(reference=reference, budget=budget)
            rows = np.arange(len(names)) + 1.4 + apart
            axis.hlines(rows, one["lower"], one["upper"], color=look["color"], lw=0.6)
            axis.plot(one["middle"], rows, ls="", ms=2.4, mew=0.6, **look)
            axis.errorbar(
                one["mean"], 2 * apart, xerr=interval(one)[:, None], ls="", ms=2, elinewidth=0.9, capsize=1.8, mew=0.6,
                **look,
            )  # fmt: skip
        axis.axvline(0, color="0.4", lw=0.7, zorder=0)
        axis.axhline(0.8, color="0.7", lw=0.6)
        axis.set_title(fill(plain(reference), 11))
        axis.tick_params(axis="x", labelsize=NUMBER)
        axis.tick_params(axis="y", length=0, labelsize=NUMBER)
    first, far = np.ravel(axes)[0], float(np.abs(dataset[["lower", "upper"]].to_array()).max())
    root_scale(first.xaxis)
    end = max(tick for tick in (1, 5, 25) if tick <= max(far, 1))
    first.set_xticks([-end, 0, end], [f"−{end}", "0", f"{end}"])
    first.set_xticks([-5, -1, 1, 5], minor=True)
    first.set_xlim(-1.1 * far, 1.1 * far)
    first.set_yticks([0, *np.arange(len(names)) + 1.4], ["mean over tasks", *short_tasks(names)])
    first.set_ylim(len(names) + 1, -0.8)
    figure.supxlabel("lead of the expansion (points, root scale; small ticks: 1, 5)", fontsize=7)
    marks = [Line2D([], [], ls="", label=budget.replace("flops", "FLOPs"), **b) for budget, b in BUDGET_LOOKS.items()]
    figure.legend(handles=marks, loc="outside upper center", ncols=2)
    return figure


@for_a_column
def sensitivity(dataset: xr.Dataset, kind: str, form: str, margin: float | int) -> Figure:
    """What the choices inside the extent do: to ρ (left), and to the share of rays that meet no level (right).

    Above: all kinds of rays, forms and levels at one margin; below: one kind and form, against the margin. Where all of
    its rays meet their level, the panel of the share is left out.

    `dataset` has `mean`, `low`, `high` over (kind, form, level, margin), and `censored` over (kind, level, margin):
    `summaries.extents`, and means over its tasks.
    """
    figure = plt.figure(figsize=(COLUMN, 3.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False).flat
    one, places = dataset.sel(kind=kind, form=form), np.arange(dataset.sizes["margin"])
    cut = float(one["censored"].max()) > 0.005
    maps, lines = above.subplots(1, 2), below.subplots(1, 1 + cut, squeeze=False)[0]
    kinds, forms, levels = (dataset[name].values.tolist() for name in ("kind", "form", "level"))
    at = dataset.sel(margin=margin)
    rho = at["mean"].transpose("kind", "form", "level").values.reshape(-1, len(levels))
    share = 100 * at["censored"].transpose("kind", "level").values
    numbered(maps[0], rho, "vlag", (-1, 1), signed)
    numbered(maps[1], share, "Greys", (0, 150), "{:.0f}".format)
    maps[0].set_yticks(range(len(rho)), [f"{plain(k)}, {f}" for k in kinds for f in forms])
    maps[1].set_yticks(range(len(kinds)), [""] * len(kinds))
    maps[0].set_title(f"mean ρ, margin {margin:g} nat")
    maps[1].set_title("rays cut off (%)")
    for i, level in enumerate(levels):
        line, look = one.sel(level=level), LEVEL_LOOKS[level]
        apart = places + (i - (len(levels) - 1) / 2) * 0.12
        lines[0].errorbar(apart, line["mean"], interval(line), elinewidth=0.6, label=level, **look)
        if cut:
            lines[1].plot(apart, 100 * line["censored"], **look)
    for axis in maps:
        axis.set_xticks(range(len(levels)), levels, rotation=90)
    for axis in lines:
        axis.set_xticks(places, [f"{value:g}" for value in dataset["margin"].values])
    lines[0].yaxis.set_major_locator(MaxNLocator(5))
    lines[0].axhline(0, color="0.7", lw=0.6, zorder=0)
    lines[0].set_ylabel(f"mean ρ\n({plain(kind)}, {form})")
    if cut:
        lines[1].set_ylabel("rays cut off (%)")
        lines[1].set_ylim(-4, 104)
    below.supxlabel("margin of the level above the reference loss (nat)", fontsize=7)
    below.legend(*lines[0].get_legend_handles_labels(), ncols=len(levels), loc="outside upper center")
    return figure
