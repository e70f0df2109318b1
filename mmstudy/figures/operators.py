"""The figures of what operators do, for the first notebook: a Dataset in, a Figure out."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmstudy.expansion.operators import OPERATORS, of_kind
from mmstudy.figures.style import label_ends, operator_color, operator_rows, plain, plain_log, with_zero
from mmstudy.validation import preservation

LINES = ["-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3))]  # of operators that share a panel
MARKERS = dict(zip(preservation.FAMILIES, "osD^vP", strict=True))  # family of networks → marker


def expansion_weights(dataset: xr.Dataset) -> Figure:
    """The weights around one hidden layer, in the base and after each wider operator: a row is a unit.

    `dataset` has `incoming` over (network, unit, input) and `outgoing` over (network, output, unit), NaN where a
    network has no such unit.
    """
    base, inputs, outputs = dataset.sel(network="base"), dataset.sizes["input"], dataset.sizes["output"]
    old = int(base["incoming"].notnull().all("input").sum())
    kinds = [names for names in of_kind().values() if set(names) <= set(dataset["network"].values)]
    figure, axes = plt.subplots(len(kinds), 7, figsize=(10, 2.7 * len(kinds) + 0.6), layout="constrained")
    limit = max(float(np.abs(base[name]).max()) for name in ("incoming", "outgoing"))
    gap = np.full((dataset.sizes["unit"], 1), np.nan)
    for names, row in zip(kinds, axes, strict=True):
        for name, axis in zip(("base", *names), row, strict=True):
            one = dataset.sel(network=name)
            both = np.hstack([one["incoming"].values, gap, one["outgoing"].values.T])
            image = axis.imshow(both, cmap="vlag", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
            idea = fill(OPERATORS[name].idea, 24) if name in OPERATORS else "the trained network"
            axis.set_title(plain(name), color=operator_color(name), fontsize=8.5, pad=24)
            axis.annotate(idea, (0.5, 1.14), xycoords="axes fraction", ha="center", va="top", fontsize=6.5)
            axis.set_xticks([inputs / 2 - 0.5, inputs + 0.5 + outputs / 2], ["incoming", "outgoing"])
            axis.set_yticks([])
            axis.tick_params(length=0, labelsize="small")
            axis.spines[:].set_visible(False)
            if name != "base":
                axis.axhline(old - 0.5, color="k", lw=0.9)
    label = "weight; a row is a unit, new units are below the line"
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.4, aspect=40, extend="both", label=label)
    return figure


def expansion_blocks(dataset: xr.Dataset) -> Figure:
    """The blocks of a residual network after each deeper operator, from the first (below) to the last; layers beside.

    `dataset` has `source`, `state` and `added` over (deepened, block), absent blocks with the state "", and
    `inserted_weight` over (layer, row, column): the weights of the layer that each operator inserts into a perceptron.
    """
    ways, layers = dataset["deepened"].values, dataset["layer"].values
    figure = plt.figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4.2, 1), wspace=0.04)
    left.suptitle("the blocks of a transformer", fontsize="medium")
    right.suptitle("a layer inserted\ninto a perceptron", fontsize="medium")
    axis = left.subplots()
    shades = plt.get_cmap("Greys")(np.linspace(0.12, 0.5, int(dataset["source"].max()) + 1))
    for column, way in enumerate(ways):
        one = dataset.sel(deepened=way)
        for row in np.flatnonzero(one["state"] != ""):
            _tile(axis, column, row, one.isel(block=row), operator_color(way), shades)
    axis.set(xlim=(-0.5, len(ways) - 0.5), ylim=(-0.5, dataset.sizes["block"] - 0.5), yticks=[])
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(ways)), [plain(way) for way in ways])
    for tick, way in zip(axis.get_xticklabels(), ways, strict=True):
        tick.set_color(operator_color(way))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(ylabel="from input to output →", xlabel="+: what the block adds to the stream, relative to the stream")
    panels = right.subplots(len(layers), 1)
    limit = float(np.abs(dataset["inserted_weight"]).max())
    for panel, layer in zip(panels, layers, strict=True):
        weight = dataset["inserted_weight"].sel(layer=layer)
        image = panel.imshow(weight, cmap="vlag", vmin=-limit, vmax=limit, interpolation="nearest")
        panel.set_title(plain(layer), color=operator_color(layer), fontsize="small", pad=3)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    right.colorbar(image, ax=panels, shrink=0.8, aspect=30, label="weight")
    return figure


def _tile(axis, column: int, row: int, block: xr.Dataset, color, shades: np.ndarray) -> None:
    state, source, added = str(block["state"].item()), int(block["source"]), float(block["added"])
    old, drawn = state == "old", state == "drawn"
    face = "w" if drawn else shades[source]
    edge = {"ec": "0.4", "lw": 0.6} if old else {"ec": color, "lw": 1.8}
    axis.add_patch(Rectangle((column - 0.42, row - 0.4), 0.84, 0.8, fc=face, hatch="////" if drawn else None, **edge))
    word = str(source) if old else "drawn" if drawn else f"copy of {source}"
    amount = f"{added:.2f}" if added else "0"
    look = {"ha": "center", "va": "center", "fontsize": 7.5, "bbox": {"fc": face, "ec": "none", "pad": 1}}
    axis.text(column, row, f"{word}\n+ {amount}", **look)


def expansion_contracts(dataset: xr.Dataset) -> Figure:
    """What every operator did to trained networks of every family, at every place: a row each, a marker per family.

    `dataset` has `change`, `loss_change`, `gradient_new`, `gradient_old`, `rank` and `rank_before` over case, missing
    where an operator does not apply; coordinates `operator` and `family` along case.
    """
    names = [name for kind in of_kind().values() for name in kind]
    families = [name for name in MARKERS if name in dataset["family"].values]
    panels = {
        "largest change of an output\n(share of the largest output)": dataset["change"],
        "change of the loss\n(nats)": dataset["loss_change"],
        "gradient norm, new parameters\n(share of all others')": dataset["gradient_new"] / dataset["gradient_old"],
        "effective rank of the layer\n(share of that before)": dataset["rank"] / dataset["rank_before"],
    }
    figure, axes = plt.subplots(1, 4, figsize=(10, 6.6), sharey=True, layout="constrained")
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        for row, name in enumerate(names):
            for lane, family in enumerate(families):
                mine = values[((dataset["operator"] == name) & (dataset["family"] == family)).values]
                height = row + 0.76 * ((lane + 0.5) / len(families) - 0.5)
                look = {"marker": MARKERS[family], "mec": operator_color(name), "mfc": "none", "mew": 0.7, "ms": 3.2}
                axis.plot(mine, np.full(mine.size, height), ls="", **look)
        axis.set_xlabel(label)
        for edge in np.cumsum([len(kind) for kind in of_kind().values()])[:-1] - 0.5:
            axis.axhline(edge, color="0.8", lw=0.7)
        axis.tick_params(axis="y", length=0)
    with_zero(axes[0].xaxis, 1e-7, [0, 1e-6, 1e-4, 1e-2, 1])
    with_zero(axes[1].xaxis, 1e-4, [-1e-1, 0, 1e-1, 10])
    with_zero(axes[2].xaxis, 1e-2, [0, 1e-2, 1e-1, 1])
    axes[1].axvline(0, color="0.8", lw=0.7, zorder=0)
    axes[3].axvline(1, color="0.8", lw=0.7, zorder=0)
    operator_rows(axes[0], names)
    look = {"ls": "", "mec": "k", "mfc": "none", "mew": 0.7, "ms": 4}
    marks = [plt.Line2D([], [], marker=MARKERS[family], label=family, **look) for family in families]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
    return figure


def expansion(dataset: xr.Dataset, names: Sequence[str]) -> Figure:
    """The first steps of training after a few operators, and how far apart the closest two units are meanwhile.

    `dataset` has `curve` and `closest` over (grown, seed, step), `base_curve` over (seed, step).
    """
    relative = dataset["curve"] / dataset["base_curve"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    ends: list[dict] = [{}, {}]
    for name, style in zip(names, LINES[: len(names)], strict=True):
        color = operator_color(name)
        for axis, values, end in zip(axes, (relative, dataset["closest"]), ends, strict=True):
            low, middle, high = values.sel(grown=name).quantile((0, 0.5, 1), "seed").values
            axis.plot(dataset["step"], middle, lw=1.6, ls=style, color=color)
            axis.fill_between(dataset["step"], low, high, color=color, alpha=0.12, lw=0)
            end[name] = (float(middle[-1]), color)
    axes[0].axhline(1, color="k", lw=0.8)
    plain_log(axes[0].yaxis)
    with_zero(axes[1].yaxis, 1e-6, [0, 1e-6, 1e-4, 1e-2, 1])
    for axis in axes:
        with_zero(axis.xaxis, 1, [t for t in (0, 1, 10, 100, 1000) if t <= dataset["step"].max()])
        axis.set_xlim(right=float(dataset["step"].max()))
    axes[0].set_ylabel("training loss\n(share of the base's, trained on)")
    axes[1].set_ylabel("distance of the closest two units\n(share of their mean length)")
    figure.supxlabel("steps after the expansion (line: median over seeds, band: all of them)", fontsize="medium")
    figure.tight_layout(w_pad=9)
    for axis, end in zip(axes, ends, strict=True):
        label_ends(axis, end)
    return figure


def expansion_all(dataset: xr.Dataset) -> Figure:
    """`expansion` of every operator: the first steps of training, and how far apart the closest two units are.

    `dataset` has `curve` and `closest` over (grown, seed, step), `base_curve` over (seed, step).
    """
    relative = dataset["curve"] / dataset["base_curve"]
    figure, axes = plt.subplots(2, len(of_kind()), figsize=(10, 5.6), sharex=True, layout="constrained")
    for (above, below), (kind, names) in zip(axes.T, of_kind().items(), strict=True):
        present = [name for name in names if name in dataset["grown"].values]
        for name, width in zip(present, np.linspace(3.6, 1.2, len(present)), strict=True):  # equal lines stay visible
            for axis, values in ((above, relative), (below, dataset["closest"])):
                low, middle, high = values.sel(grown=name).quantile((0, 0.5, 1), "seed").values
                axis.plot(dataset["step"], middle, lw=width, color=operator_color(name), label=plain(name))
                axis.fill_between(dataset["step"], low, high, color=operator_color(name), alpha=0.12, lw=0)
        above.axhline(1, color="k", lw=0.8, ls="--")
        plain_log(above.yaxis)
        above.set_title(kind, fontsize="medium")
        below.sharey(axes[1, 0])
        with_zero(below.xaxis, 1, [t for t in (0, 1, 10, 100, 1000) if t <= dataset["step"].max()])
        below.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    with_zero(axes[1, 0].yaxis, 1e-6, [0, 1e-6, 1e-4, 1e-2, 1])
    axes[1, 0].set_ylim(top=2 * float(dataset["closest"].max()))
    axes[1, 1].tick_params(labelleft=False)
    axes[1, 2].tick_params(labelleft=False)
    axes[0, 0].set_ylabel("training loss\n(share of the base's, trained on)")
    axes[1, 0].set_ylabel("distance of the closest two units\n(share of their mean length)")
    figure.supxlabel("steps after the expansion (line: median over seeds, band: all of them)", fontsize="medium")
    return figure


def expansion_adam(dataset: xr.Dataset) -> Figure:
    """The loss during the first steps of Adam after an expansion, its state carried along or forgotten.

    `dataset` has `adam` over (continued, adam_state, seed, adam_step); `base_adam`, the base with its own state, and
    `base_fresh`, the base with a fresh one, over (seed, adam_step).
    """
    names = dataset["continued"].values
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.8), sharey=True, layout="constrained")
    steps = dataset["adam_step"]
    for axis, name in zip(np.ravel(axes), names, strict=True):
        color = operator_color(name)
        for base, look in (("base_adam", {"lw": 0.8}), ("base_fresh", {"lw": 0.8, "ls": ":"})):
            axis.plot(steps, dataset[base].T, color="k", **look)
        for state, look in (("carried", {"lw": 1.4}), ("fresh", {"lw": 1.4, "ls": ":"})):
            lines = axis.plot(steps, dataset["adam"].sel(continued=name, adam_state=state).T, color=color, **look)
            lines[0].set_label(f"Adam's state {state}")
        axis.set_title(plain(name), color=color)
        axis.legend(frameon=False, fontsize="small", title="black: the base, trained on", title_fontsize="small")
    axes[0].set_ylabel("training loss (nats)")
    figure.supxlabel("steps after the expansion (a line is a seed)", fontsize="medium")
    return figure
