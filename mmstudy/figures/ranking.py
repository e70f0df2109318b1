"""Rankings: what each candidate is expected to gain and how sure that is, and what became of such advice."""

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import COLUMN, NUMBER, for_a_column, operator_color, short_tasks
from mmstudy.ranking.report import OWN

ROW = 0.13  # inches
NEUTRAL = "0.3"
FILL = {"trained": "full", "probed": "none", "diverged": "none"}
MARKERS = {"trained": "o", "probed": "o", "diverged": "x"}


@for_a_column
def ranking(data: xr.Dataset) -> Figure:
    """The expected gain of each candidate over training on, best on top, with its interval.

    Filled: trained to the end, so that the gain is known. Colours are those of operators. Candidates that diverged have
    no gain and stand at the left.

    `data` is that of `ranking.report.Ranking`.
    """
    names = data["candidate"].values.tolist()
    figure, axis = plt.subplots(figsize=(COLUMN, 0.55 + ROW * len(names)), layout="constrained")
    axis.axvline(0, color="0.8", lw=0.8, zorder=0)
    low, high, gain = (data[name].values for name in ("low", "high", "gain"))
    for place, operator in enumerate(data["operator"].values.tolist()):
        color = operator_color(operator) if operator in OPERATORS else NEUTRAL
        status = str(data["status"].values[place])
        known = status != "diverged"
        if known:
            axis.plot([low[place], high[place]], [place, place], color=color, lw=1)
        at = gain[place] if known else np.nanmin(low)
        axis.plot(at, place, MARKERS[status], color=color, fillstyle=FILL[status])
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("gain in the validation score over training on")
    shown = [word for word in FILL if word in data["status"].values]
    handles = [Line2D([], [], ls="", marker=MARKERS[word], fillstyle=FILL[word], color=NEUTRAL) for word in shown]
    words = {"trained": "trained to the end", "probed": "expected", "diverged": "diverged"}
    figure.legend(handles, [words[word] for word in shown], ncols=len(shown), loc="outside upper right")
    return figure


@for_a_column
def advice(told: xr.Dataset) -> Figure:
    """What was foretold of each candidate against what became of it: a row for each case, a column for each budget.

    Points are the expected gains of candidates that were not trained to the end, with their intervals; on the line,
    what was foretold is what came. A triangle is the row that the advice chose, a star the best one, by test data.

    `told` is that of `study.advice.outcomes`.
    """
    cases = list(dict.fromkeys(told["case"].values.tolist()))
    columns = told["anchored"].values.tolist()
    figure, axes = plt.subplots(
        len(cases), len(columns), figsize=(COLUMN, 0.5 + 1.65 * len(cases)), squeeze=False, layout="constrained"
    )
    for (i, case), (j, anchored) in product(enumerate(cases), enumerate(columns)):
        axis, one = axes[i, j], told.isel(row=told["case"].values == case).sel(anchored=anchored)
        came = (one["final_score"] - one["final_score"].values[one["label"].values == OWN]).values
        open_rows = ~one["trained"].values & (one["label"].values != OWN)
        gain, low, high = (one[name].values for name in ("gain", "low", "high"))
        axis.axline((0, 0), slope=1, color="0.8", lw=0.8, zorder=0)
        for row in np.flatnonzero(open_rows):
            color = operator_color(str(one["operator"].values[row]))
            axis.plot([came[row]] * 2, [low[row], high[row]], color=color, lw=0.7, alpha=0.6)
            axis.plot(came[row], gain[row], "o", color=color, ms=2)
        chosen, best = int(one["chosen"].values.argmax()), int(np.nanargmax(one["test_score"].values))
        axis.plot(came[chosen], gain[chosen], "v", color="k", ms=4, fillstyle="none")
        axis.plot(came[best], gain[best], "*", color="k", ms=5, fillstyle="none")
        axis.set_title(
            f"{short_tasks([case])[0]}\n{float(one['share'].values[0]):.0%} of the training", fontsize=NUMBER
        )
        if j == 0:
            axis.set_ylabel("expected gain")
        if i + 1 == len(cases):
            axis.set_xlabel("gain in the end")
    marks = {"expected": ("o", NEUTRAL), "chosen": ("v", "k"), "best": ("*", "k")}
    handles = [Line2D([], [], ls="", marker=m, color=c, fillstyle="none") for m, c in marks.values()]
    handles[0].set(fillstyle="full", markersize=3)
    figure.legend(handles, [*marks], ncols=3, loc="outside upper right")
    return figure
