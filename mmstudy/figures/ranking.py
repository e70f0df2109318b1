"""A ranking in one figure: what each candidate is expected to gain, and how sure that is."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmstudy.expansion.operators import OPERATORS
from mmstudy.figures.style import COLUMN, for_a_column, operator_color

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
