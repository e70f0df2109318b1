"""What all figures share: the palette, the words, the axes, and how a figure is saved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mmstudy.expansion.operators import OPERATORS

COLORS = sns.color_palette("colorblind")
SIGNED = LinearSegmentedColormap.from_list("signed", ["#08306b", "0.6", "#ffdc8c"])  # also without colours
COLUMN = 8.5 / 2.54  # inches: the width of half a page
SMALL: dict[Any, float] = {  # sizes that can be read in a column
    "font.size": 7, "axes.labelsize": 7, "axes.titlesize": 7, "legend.fontsize": 6.5, "legend.title_fontsize": 6.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "axes.linewidth": 0.6, "lines.linewidth": 1.0,
    "lines.markersize": 3.5, "lines.markeredgewidth": 0.7, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5, "xtick.minor.width": 0.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.pad": 2, "ytick.major.pad": 2,
    "axes.titlepad": 3, "axes.labelpad": 2, "legend.handletextpad": 0.4, "legend.columnspacing": 1.2,
    "legend.frameon": False, "legend.borderaxespad": 0.2, "hatch.linewidth": 0.4,
}  # fmt: skip
NO_OPERATOR = {"color": "0.3", "marker": "o"}
LINES: list[Any] = ["-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3))]  # of operators that share a panel
NUMBER = 6  # points, of numbers inside a figure
SPELT = {
    "sam": "SAM", "grasp": "GraSP", "snip": "SNIP", "ntk": "NTK", "synflow": "SynFlow", "flops": "FLOPs",
    "fisher": "Fisher", "hessian": "Hessian", "jacobian": "Jacobian", "tiny": "TINY",
}  # fmt: skip

matplotlib.rcParams["svg.hashsalt"] = "mmstudy"
matplotlib.rcParams["svg.fonttype"] = "none"  # letters stay letters: a file of half the size, which can be searched
sns.set_theme(
    context="paper", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 150}
)


def for_a_column(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Of a function that draws a figure as wide as `COLUMN`: its letters and lines fit that width."""

    @wraps(draw)
    def drawn(*arguments, **options) -> Figure:
        with matplotlib.rc_context(SMALL):
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()  # ticks take their sizes when they are drawn
            shows = matplotlib.is_interactive()
        matplotlib.interactive(shows)  # a notebook's backend sets it with the first figure, and would lose it here
        return figure

    return drawn


def save_figure(figure: Figure, folder: str | Path, name: str, pixels: int = 1000) -> None:
    """Write the figure as .svg and .png, with the same bytes for the same picture.

    Args:
        pixels: the width of the .png, if 150 in an inch are not more; what is much higher than wide has fewer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    width, height = figure.get_size_inches()
    dpi = max(150, min(pixels / width, 1.5 * pixels / height))  # a figure for a column is shown larger on a screen
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=dpi, metadata={"Software": None})
    plt.close(figure)


def operator_color(name: str) -> str:
    """The colour of an operator; black for what is none, such as the base."""
    return OPERATORS[name].color if name in OPERATORS else "k"


def operator_marker(name: str) -> str | tuple[int, int, int]:
    """The marker of an operator, which tells it from others without colours."""
    return OPERATORS[name].marker


def operator_look(name: str) -> dict[str, Any]:
    """Colour and marker of an operator; a grey disc for what is none, such as the base."""
    return {"color": operator_color(name), "marker": operator_marker(name)} if name in OPERATORS else NO_OPERATOR


def operator_marks(names: Iterable[str]) -> list[Line2D]:
    """A mark of each operator that is there, for a legend."""
    present = {*names}
    return [Line2D([], [], ls="", label=plain(name), **operator_look(name)) for name in OPERATORS if name in present]


def label_ends(axis, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names at the right ends of lines, moved apart where they would lie on each other.

    Args:
        ends: name → (height of the line's end in data coordinates, colour).
    """
    axis.figure.canvas.draw()
    to_axes = axis.transData + axis.transAxes.inverted()
    heights = {name: float(to_axes.transform((1, height))[1]) for name, (height, _) in ends.items()}
    order, least = sorted(heights, key=heights.__getitem__), NUMBER * 1.3 / (axis.bbox.height * 72 / axis.figure.dpi)
    up = list(accumulate((heights[name] for name in order), lambda at, height: max(height, at + least)))
    down = list(accumulate((heights[name] for name in order[::-1]), lambda at, height: min(height, at - least)))
    for name, low, high in zip(order, down[::-1], up, strict=True):
        at = (low + high) / 2
        axis.annotate(
            plain(name), (1, heights[name]), (1.05, at), xycoords="axes fraction", va="center", fontsize=NUMBER,
            color=ends[name][1], arrowprops={"arrowstyle": "-", "lw": 0.5, "color": ends[name][1], "relpos": (0, 0.5)},
        )  # fmt: skip


def number_points(axis, x: np.ndarray, y: np.ndarray, colors: Sequence[object], others: np.ndarray) -> None:
    """1, 2, … beside the points, each as near as is free of all points, others, and the numbers before it.

    A thin line leads to those that are not close.

    Args:
        others: places in data coordinates where no number may lie, such as points along lines.
    """
    axis.figure.draw_without_rendering()
    points = axis.transData.transform(np.column_stack([x, y])) * 72 / axis.figure.dpi
    angles = np.arange(24) * np.pi / 12 + np.pi / 4
    around = np.column_stack([np.cos(angles), np.sin(angles)])
    around = np.vstack([distance * around for distance in (6.5, 9, 12)])  # points of a printer
    taken = np.vstack([points, axis.transData.transform(others) * 72 / axis.figure.dpi])
    for i, point in enumerate(points):
        free = np.array([np.hypot(*((taken - spot) / (1.2, 1)).T).min() for spot in point + around])
        best = int(np.argmax(np.minimum(free, 4.5)))  # the first of those that are free: the nearest
        lead = {"arrowstyle": "-", "lw": 0.3, "color": colors[i], "shrinkA": 0, "shrinkB": 0}
        taken = np.vstack([taken, point + around[best]])
        axis.annotate(
            str(i + 1), (x[i], y[i]), tuple(around[best]), textcoords="offset points", fontsize=NUMBER, zorder=4,
            ha="center", va="center", color=colors[i], path_effects=[withStroke(linewidth=1.2, foreground="w")],
            arrowprops=lead if best >= len(angles) else None,
        )  # fmt: skip


def plain(name: object) -> str:
    """An operator's name in words."""
    return str(name).replace("_", " ")


def interval(table: xr.Dataset) -> np.ndarray:
    """Lengths of the two arms of the interval `low` to `high` around `mean`; 0 where there is none."""
    arms = np.stack([table["mean"] - table["low"], table["high"] - table["mean"]])
    return np.maximum(np.nan_to_num(arms), 0)


def short_tasks(names: Iterable[object]) -> list[str]:
    """Tasks in the margin of a figure: examples, share of flipped labels, widths; the seed where they differ in it.

    "Permuted" is mnist1d with its inputs permuted.
    """
    words = [
        plain(name).replace(" flipped", "").replace("permuted mnist1d", "permuted").rsplit(", seed ", 1)
        for name in names
    ]
    firsts = [first for first, *_ in words]
    return [f"{first} ({seed[0]})" if seed and firsts.count(first) > 1 else first for first, *seed in words]


def measure_words(name: str) -> str:
    """A measure's name in words, acronyms and names as they are written."""
    return " ".join(SPELT.get(word, word) for word in plain(name).split(" "))


def signed(value: float | int) -> str:
    """A correlation in little room: .45 or −.45."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−").replace("0.", ".")


def numbered(
    axis, values: np.ndarray, colors: str, ends: tuple[float | int, float | int], word: Callable[[float], str] = signed
) -> None:
    """A map with a number in each cell; what is negative is hatched, what is not known is left white."""
    axis.imshow(values, cmap=colors, vmin=ends[0], vmax=ends[1], aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        value = float(values[row, column])
        text = word(value)
        if text.startswith("−"):
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="/////", ec="0.7", lw=0))
        dark = sum(axis.images[0].cmap(axis.images[0].norm(value))[:3]) < 1.7
        axis.text(
            column, row, text, ha="center", va="center", fontsize=NUMBER, color="w" if dark else "k",
        )  # fmt: skip
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


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


def root_scale(axis) -> None:
    """An axis of square roots, on both sides of zero: small differences are seen beside large ones."""
    root, square = (lambda x: np.sign(x) * np.sqrt(np.abs(x))), (lambda x: np.sign(x) * np.square(x))
    getattr(axis.axes, f"set_{axis.axis_name}scale")("function", functions=(root, square))


def plain_log(axis) -> None:
    """A logarithmic axis whose ticks read 0.1, 1, 10, whatever the range, without crowding."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = axis.get_view_interval()
    wide, narrow = high > 50 * low, high < 5 * low
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
