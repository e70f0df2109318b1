"""Losses along a training: a Dataset in, a Figure out."""

from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure

from mmstudy.figures.style import COLORS, COLUMN, for_a_column

LINES, MARKERS = ("-", "--", "-.", ":"), "os^Dv"


@for_a_column
def curves(dataset: xr.Dataset, window: int = 10) -> Figure:
    """The loss of each way to start, step by step: a moving mean over so many steps, and each seed by itself.

    `dataset` has `loss` over (way, seed, step), in nats.
    """
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2), layout="constrained")
    smooth = dataset["loss"].rolling(step=window, min_periods=1).mean()
    for i, (way, losses) in enumerate(smooth.groupby("way", squeeze=False)):
        look = {"color": COLORS[i % len(COLORS)], "ls": LINES[i % len(LINES)]}
        losses = losses.squeeze("way").transpose("step", "seed")
        axis.plot(losses["step"], losses, lw=0.4, alpha=0.5, **look)
        tenth = max(1, losses.sizes["step"] // 10)
        some: dict[str, Any] = {
            "marker": MARKERS[i % len(MARKERS)],
            "markevery": (i * tenth // 4, tenth),
            "label": str(way),
        }
        axis.plot(losses["step"], losses.mean("seed"), **some, **look)
    axis.set_xlabel("step")
    axis.set_ylabel(f"minibatch loss (nats, mean of {window} steps)")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure
