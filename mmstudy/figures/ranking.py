"""Rankings: what each candidate is expected to gain and how sure that is, and what became of such advice."""

from itertools import product
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmstudy.figures.style import COLUMN, NUMBER, for_a_column, operator_look, operator_marks, plain
from mmstudy.ranking.report import LEVEL, OWN

ROW = 0.13  # inches
NEUTRAL = "0.3"
FILL: dict[str, Literal["full", "none"]] = {"trained": "full", "probed": "none", "diverged": "none"}
INTERVAL = f"{LEVEL:.0%} interval"
AROUND: dict[str, dict[str, Any]] = {  # what encloses a point
    "chosen": {"marker": "o", "ms": 7.5},
    "best": {"marker": "s", "ms": 8},
}


@for_a_column
def ranking(data: xr.Dataset) -> Figure:
    """The expected gain of each candidate over training on, best on top, with its interval.

    Filled: trained to the end, so that the gain is known. Colours and markers are those of operators. Candidates that
    diverged have no gain: crosses at the left.

    `data` is that of `ranking.report.Ranking`.
    """
    names = [plain(name) for name in data["candidate"].values]
    figure, axis = plt.subplots(figsize=(COLUMN, 0.7 + ROW * len(names)), layout="constrained")
    axis.axvline(0, color="0.8", lw=0.8, zorder=0)
    low, high, gain = (data[name].values for name in ("low", "high", "gain"))
    statuses = data["status"].values.tolist()
    for place, (operator, status) in enumerate(zip(data["operator"].values.tolist(), statuses, strict=True)):
        look = operator_look(operator)
        if status == "diverged":
            axis.plot(np.nanmin([*low, 0.0]), place, "x", color=look["color"])
            continue
        axis.plot([low[place], high[place]], [place, place], color=look["color"], lw=1)
        axis.plot(gain[place], place, ls="", mfc="w" if status == "probed" else look["color"], **look)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.spines["left"].set_visible(False)
    losses = "loss" in str(data.attrs.get("score", ""))
    axis.set_xlabel(f"gain in the validation {'loss (lower: positive)' if losses else 'score'} over training on")
    words = {"trained": "trained to the end", "probed": "expected", "diverged": "diverged"}
    marks = [
        Line2D([], [], ls="", marker="x" if status == "diverged" else "o", fillstyle=FILL[status], color=NEUTRAL,
               label=word)
        for status, word in words.items() if status in statuses
    ]  # fmt: skip
    marks.append(Line2D([], [], color=NEUTRAL, lw=1, label=INTERVAL))
    figure.legend(handles=marks, ncols=2, loc="outside upper center")
    return figure


@for_a_column
def advice(told: xr.Dataset) -> Figure:
    """What was foretold of each candidate against what became of it: a row for each case, a column for each budget.

    Points are the expected gains of candidates that were not trained to the end, with their intervals; on the line,
    what was foretold is what came. A title has the share of the training that the advice took, and how many candidates
    it trained to the end. A ring is around what the advice chose, a square around the best one, by test data.

    `told` is that of `study.advice.outcomes`.
    """
    cases = list(dict.fromkeys(told["case"].values.tolist()))
    columns = told["anchored"].values.tolist()
    figure, axes = plt.subplots(len(cases), len(columns), figsize=(COLUMN, 0.8 + 1.6 * len(cases)), squeeze=False)
    figure.set_layout_engine("constrained", wspace=0.06, hspace=0.04)
    for (i, case), (j, anchored) in product(enumerate(cases), enumerate(columns)):
        axis, one = axes[i, j], told.isel(row=told["case"].values == case).sel(anchored=anchored)
        _foretold(axis, one)
        axis.margins(x=0.1)
        trained = int((one["trained"].values & (one["label"].values != OWN)).sum())
        words = f"{plain(case).rsplit(', seed ', 1)[0]}\n{float(one['share'].values[0]):.0%}, {trained} to the end"
        axis.set_title(words, fontsize=NUMBER)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        if j == 0:
            axis.set_ylabel("expected gain")
        if i + 1 == len(cases):
            axis.set_xlabel("gain (validation)")
    marks: dict[str, Any] = {str(mark.get_label()): mark for mark in operator_marks(told["operator"].values.tolist())}
    expected = [Line2D([], [], color=NEUTRAL, ls="", marker=mark, ms=size) for mark, size in (("o", 3), ("|", 7))]
    marks[f"expected, {INTERVAL}"] = tuple(expected)
    marks |= {word: Line2D([], [], color="k", ls="", fillstyle="none", **look) for word, look in AROUND.items()}
    marks["came = expected"] = Line2D([], [], color="0.8", lw=0.8)
    figure.legend(marks.values(), marks.keys(), ncols=3, loc="outside upper center")
    return figure


def _foretold(axis, one: xr.Dataset) -> None:
    """The candidates of one case at one budget."""
    came = (one["final_score"] - one["final_score"].values[one["label"].values == OWN]).values
    gain, low, high = (one[name].values for name in ("gain", "low", "high"))
    axis.axline((0, 0), slope=1, color="0.8", lw=0.8, zorder=0)
    for row in np.flatnonzero(~one["trained"].values & (one["label"].values != OWN)):
        look = operator_look(str(one["operator"].values[row]))
        axis.plot([came[row]] * 2, [low[row], high[row]], color=look["color"], lw=0.6, alpha=0.6)
        axis.plot(came[row], gain[row], ls="", ms=3, mew=0, **look)
    places = {"chosen": int(one["chosen"].values.argmax()), "best": int(np.nanargmax(one["test_score"].values))}
    for word, place in places.items():
        axis.plot(came[place], gain[place], ls="", color="k", fillstyle="none", **AROUND[word])
