"""What all figures share: the palette, the words, the axes, and how a figure is saved."""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mmstudy.expansion.operators import OPERATORS

COLORS = sns.color_palette("colorblind")
OPERATOR_MARKERS = [*"oph8Hd", *"sP*>^v", *"DX<", (4, 1, 0), (5, 1, 0), (6, 1, 0)]  # in the order of OPERATORS

matplotlib.rcParams["svg.hashsalt"] = "mmstudy"
sns.set_theme(context="paper", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})


def save_figure(figure: Figure, folder: str | Path, name: str) -> None:
    """Write the figure as .svg and .png, with the same bytes for the same picture."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=150, metadata={"Software": None})
    plt.close(figure)


def operator_color(name: str) -> str:
    """The colour of an operator; black for what is none, such as the base."""
    return OPERATORS[name].color if name in OPERATORS else "k"


def operator_marker(name: str) -> str | tuple[int, int, int]:
    """The marker of an operator, which tells it from others without colours."""
    return OPERATOR_MARKERS[list(OPERATORS).index(name) % len(OPERATOR_MARKERS)]


def label_ends(axis, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would lie on each other.

    Args:
        ends: name → (height of the line's end in data coordinates, colour).
    """
    axis.figure.canvas.draw()
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = {name: float(to_axes.transform((1, height))[1]) for name, (height, _) in ends.items()}
    order, least = sorted(heights, key=heights.get), 0.075
    up = list(accumulate((heights[name] for name in order), lambda at, height: max(height, at + least)))
    down = list(accumulate((heights[name] for name in order[::-1]), lambda at, height: min(height, at - least)))
    for name, low, high in zip(order, down[::-1], up, strict=True):
        at = (low + high) / 2
        axis.annotate(
            plain(name), (1, heights[name]), (1.05, at), xycoords="axes fraction", va="center", fontsize="small",
            color=ends[name][1], arrowprops={"arrowstyle": "-", "lw": 0.5, "color": ends[name][1], "relpos": (0, 0.5)},
        )  # fmt: skip


def plain(name: object) -> str:
    """An operator's name in words."""
    return str(name).replace("_", " ")


def operator_rows(axis, names: list[str]) -> None:
    """One row per operator, the first on top, its name in its colour."""
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    for tick, name in zip(axis.get_yticklabels(), names, strict=True):
        tick.set_color(operator_color(name))


def with_zero(axis, linear: float, ticks: list[float]) -> None:
    """An axis that is logarithmic but for the numbers around zero, and ends where its data do."""
    low, high = axis.get_data_interval()
    getattr(axis.axes, f"set_{axis.axis_name}scale")("symlog", linthresh=linear)
    axis.set_ticks(ticks, [_word(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())
    getattr(axis.axes, f"set_{axis.axis_name}lim")(min(2 * low, -linear / 2), 2 * high)


def _word(tick: float) -> str:
    """A number, or a power of ten where that is shorter."""
    if not tick or 0.01 <= abs(tick) < 1000:
        return f"{tick:g}".replace("-", "−")
    exponent = f"{np.log10(abs(tick)):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if tick < 0 else ''}10{exponent}"


def plain_log(axis) -> None:
    """A logarithmic y-axis whose ticks read 0.1, 1, 10, whatever the range, without crowding."""
    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    wide, narrow = high > 50 * low, high < 5 * low
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
