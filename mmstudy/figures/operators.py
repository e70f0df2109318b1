"""The figures of what operators do, for the first notebook: a Dataset in, a Figure out."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmstudy.expansion.operators import OPERATORS, of_kind
from mmstudy.figures.style import (
    COLUMN,
    LINES,
    NUMBER,
    SIGNED,
    for_a_column,
    label_ends,
    operator_color,
    operator_marker,
    operator_rows,
    plain,
    plain_log,
    with_zero,
)
from mmstudy.validation import preservation

LOSS = "training loss above the base's,\ntrained on (share of it)"
EXCESSES = [-0.1, -0.01, 0, 0.01, 0.1, 1, 10]
CLOSEST = "distance of the closest two units\n(share of their mean length)"
STEPS = "steps after the expansion (line: median, band: all seeds)"
STATES = {"carried": "-", "fresh": ":"}  # of Adam
MARKERS = dict(zip(preservation.FAMILIES, "osD^vP", strict=True))  # family of networks → marker


@for_a_column
def expansion_weights(dataset: xr.Dataset) -> Figure:
    """The weights around one hidden layer, in the base and after each wider operator: a row is a unit.

    `dataset` has `incoming` over (network, unit, input) and `outgoing` over (network, output, unit), NaN where a
    network has no such unit.
    """
    base, inputs, outputs = dataset.sel(network="base"), dataset.sizes["input"], dataset.sizes["output"]
    old = int(base["incoming"].notnull().all("input").sum())
    names = ["base", *(name for name in OPERATORS if name in dataset["network"].values)]
    rows = -(-len(names) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(COLUMN, 1.25 * rows + 0.5), layout="constrained")
    limit = max(float(np.abs(base[name]).max()) for name in ("incoming", "outgoing"))
    gap = np.full((dataset.sizes["unit"], 1), np.nan)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat, strict=False):
        one = dataset.sel(network=name)
        both = np.hstack([one["incoming"].values, gap, one["outgoing"].values.T])
        image = axis.imshow(both, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
        axis.set_title(plain(name).replace(" ", "\n"), color=operator_color(name), fontsize=6.5)
        axis.set_xticks([inputs / 2 - 0.5, inputs + 0.5 + outputs / 2], ["in", "out"])
        axis.set_yticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        if name != "base":
            axis.axhline(old - 0.5, color="k", lw=0.9)
    label = "weight; a row is a unit, new ones are below the line\n(in: incoming, out: outgoing)"
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=40, extend="both", label=label)
    return figure


@for_a_column
def expansion_blocks(dataset: xr.Dataset) -> Figure:
    """The blocks of a residual network after each deeper operator, from the first (below) to the last; layers below.

    `dataset` has `source`, `state` and `added` over (deepened, block), absent blocks with the state "", and
    `inserted_weight` over (layer, row, column): the weights of the layer that each operator inserts into a perceptron.
    """
    ways, layers = dataset["deepened"].values, dataset["layer"].values
    figure = plt.figure(figsize=(COLUMN, 1.7 + 0.36 * dataset.sizes["block"]), layout="constrained")
    left, right = figure.subfigures(2, 1, height_ratios=(0.5 + 0.36 * dataset.sizes["block"], 1.2), squeeze=False).flat
    right.suptitle("a layer inserted into a perceptron: its weights", fontsize=7)
    axis = left.subplots()
    shades = plt.get_cmap("Greys")(np.linspace(0.12, 0.5, int(dataset["source"].max()) + 1))
    for column, way in enumerate(ways):
        one = dataset.sel(deepened=way)
        for row in np.flatnonzero(one["state"] != "").tolist():
            _tile(axis, column, row, one.isel(block=row), operator_color(way), shades)
    axis.set(xlim=(-0.5, len(ways) - 0.5), ylim=(-0.5, dataset.sizes["block"] - 0.5), yticks=[])
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(ways)), [plain(way).replace(" ", "\n") for way in ways])
    for tick, way in zip(axis.get_xticklabels(), ways, strict=True):
        tick.set_color(operator_color(way))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(ylabel="blocks, from input to output →")
    axis.set_xlabel("+: what the block adds to the stream, relative to the stream")
    panels = right.subplots(1, len(layers))
    limit = float(np.abs(dataset["inserted_weight"]).max())
    for panel, layer in zip(panels, layers, strict=True):
        weight = dataset["inserted_weight"].sel(layer=layer)
        image = panel.imshow(weight, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        panel.set_title(plain(layer), color=operator_color(layer), fontsize=6.5)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    right.colorbar(image, ax=panels, ticks=[-1, 0, 1], aspect=15)
    return figure


def _tile(axis, column: int, row: int, block: xr.Dataset, color, shades: np.ndarray) -> None:
    state, source, added = str(block["state"].item()), int(block["source"]), float(block["added"])
    old, drawn = state == "old", state == "drawn"
    face = "w" if drawn else shades[source]
    edge = {"ec": "0.4", "lw": 0.5} if old else {"ec": color, "lw": 1.5}
    axis.add_patch(Rectangle((column - 0.42, row - 0.4), 0.84, 0.8, fc=face, hatch="////" if drawn else None, **edge))
    word = str(source) if old else "drawn" if drawn else f"copy of {source}"
    amount = f"{added:.2f}" if added else "0"
    look = {"ha": "center", "va": "center", "fontsize": NUMBER, "bbox": {"fc": face, "ec": "none", "pad": 1}}
    axis.text(column, row, f"{word}\n+ {amount}", **look)


@for_a_column
def expansion_contracts(dataset: xr.Dataset) -> Figure:
    """What every operator did to trained networks of every family, at every place: a row each, a marker per family.

    `dataset` has `change`, `loss_change`, `gradient_new`, `gradient_old`, `rank` and `rank_before` over case, missing
    where an operator does not apply; coordinates `operator` and `family` along case.
    """
    names = [name for kind in of_kind().values() for name in kind]
    families = [name for name in MARKERS if name in dataset["family"].values]
    panels = {
        "largest change\nof an output\n(share of the largest)": dataset["change"],
        "change of the loss\n(nats)": dataset["loss_change"],
        "gradient norm,\nnew parameters\n(share of all others')": dataset["gradient_new"] / dataset["gradient_old"],
        "effective rank\nof the layer\n(share of that before)": dataset["rank"] / dataset["rank_before"],
    }
    figure, axes = plt.subplots(2, 2, figsize=(COLUMN, 1.2 + 0.3 * len(names)), sharey=True, layout="constrained")
    figure.set_layout_engine("constrained", wspace=0.05)
    for axis, (label, values) in zip(axes.flat, panels.items(), strict=True):
        for row, name in enumerate(names):
            for lane, family in enumerate(families):
                mine = values[((dataset["operator"] == name) & (dataset["family"] == family)).values]
                height = row + 0.76 * ((lane + 0.5) / len(families) - 0.5)
                look = {"marker": MARKERS[family], "mec": operator_color(name), "mfc": "none", "mew": 0.5, "ms": 2.2}
                axis.plot(mine, np.full(mine.size, height), ls="", **look)
        axis.set_xlabel(label)
        for edge in np.cumsum([len(kind) for kind in of_kind().values()])[:-1] - 0.5:
            axis.axhline(edge, color="0.8", lw=0.7)
    (change, loss), (gradient, rank) = axes
    with_zero(change.xaxis, 1e-7, [0, 1e-6, 1e-3, 1])
    with_zero(loss.xaxis, 1e-4, [-1, -1e-2, 0, 1e-2, 1])
    with_zero(gradient.xaxis, 1e-2, [0, 1e-2, 1e-1, 1])
    loss.axvline(0, color="0.8", lw=0.7, zorder=0)
    rank.axvline(1, color="0.8", lw=0.7, zorder=0)
    for first in axes[:, 0]:
        operator_rows(first, names)
    for axis in axes.flat:
        axis.tick_params(axis="y", length=0)
    marks = [
        plt.Line2D([], [], ls="", marker=MARKERS[family], mec="k", mfc="none", mew=0.6, label=family)
        for family in families
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3)
    return figure


def _course(axis, steps: xr.DataArray, values: xr.DataArray, name: str, **look) -> float:
    """The median over seeds of what an operator's networks do, all of them as a band; its last value."""
    low, middle, high = values.sel(grown=name).quantile((0, 0.5, 1), "seed").values
    axis.plot(steps, middle, color=operator_color(name), marker=operator_marker(name), **look)
    axis.fill_between(steps, low, high, color=operator_color(name), alpha=0.12, lw=0)
    return float(middle[-1])


def _steps_after(axes, steps: xr.DataArray) -> None:
    """Steps after an expansion along x, 0 among them."""
    for axis in axes:
        with_zero(axis.xaxis, 1, [t for t in (0, 1, 10, 100, 1000) if t <= steps.max()])
        axis.set_xlim(right=1.3 * float(steps.max()))


@for_a_column
def expansion(dataset: xr.Dataset, names: Sequence[str]) -> Figure:
    """The first steps of training after a few operators, and how far apart the closest two units are meanwhile.

    `dataset` has `curve` and `closest` over (grown, seed, step), `base_curve` over (seed, step).
    """
    figure, axes = plt.subplots(2, 1, figsize=(COLUMN, 4.0), sharex=True, layout="constrained")
    excess, steps = dataset["curve"] / dataset["base_curve"] - 1, dataset["step"]
    ends: list[dict] = [{}, {}]
    for name, style in zip(names, LINES[: len(names)], strict=True):
        for axis, values, end in zip(axes, (excess, dataset["closest"]), ends, strict=True):
            end[name] = _course(axis, steps, values, name, ls=style), operator_color(name)
    axes[0].axhline(0, color="k", lw=0.8, zorder=0)
    with_zero(axes[0].yaxis, 1e-2, EXCESSES)
    with_zero(axes[1].yaxis, 1e-6, [0, 1e-6, 1e-4, 1e-2, 1])
    _steps_after(axes, steps)
    axes[0].set_ylabel(LOSS)
    axes[1].set_ylabel(CLOSEST)
    figure.supxlabel(STEPS, fontsize=7)
    for axis, end in zip(axes, ends, strict=True):
        label_ends(axis, end)
    return figure


@for_a_column
def expansion_all(dataset: xr.Dataset) -> Figure:
    """`expansion` of every operator: the first steps of training, and how far apart the closest two units are.

    `dataset` has `curve` and `closest` over (grown, seed, step), `base_curve` over (seed, step).
    """
    excess, steps = dataset["curve"] / dataset["base_curve"] - 1, dataset["step"]
    figure = plt.figure(figsize=(COLUMN, 6.4), layout="constrained")
    rows, top = figure.subfigures(len(of_kind()), 1, squeeze=False).flat, 2 * float(dataset["closest"].max())
    for row, (kind, names) in zip(rows, of_kind().items(), strict=True):
        loss, closest = row.subplots(1, 2)
        row.suptitle(kind, fontsize=7)
        present = [name for name in names if name in dataset["grown"].values]
        for name, width in zip(present, np.linspace(2.4, 0.8, len(present)), strict=True):  # equal lines stay visible
            _course(loss, steps, excess, name, lw=width, label=plain(name))
            _course(closest, steps, dataset["closest"], name, lw=width)
        loss.axhline(0, color="k", lw=0.8, ls="--")
        with_zero(loss.yaxis, 1e-2, EXCESSES)
        with_zero(closest.yaxis, 1e-6, [0, 1e-6, 1e-4, 1e-2, 1])
        closest.set_ylim(-5e-7, top)
        _steps_after((loss, closest), steps)
        loss.set_ylabel(LOSS, fontsize=NUMBER)
        closest.set_ylabel(CLOSEST.replace("closest two", "closest"), fontsize=NUMBER)
        row.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.supxlabel(STEPS, fontsize=7)
    return figure


@for_a_column
def expansion_adam(dataset: xr.Dataset) -> Figure:
    """The loss during the first steps of Adam after an expansion, its state carried along or forgotten.

    `dataset` has `adam` over (continued, adam_state, seed, adam_step); `base_adam`, the base with its own state, and
    `base_fresh`, the base with a fresh one, over (seed, adam_step).
    """
    names, steps = dataset["continued"].values, dataset["adam_step"]
    figure, axes = plt.subplots(
        1, len(names), figsize=(COLUMN, 2.4), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=True):
        look = {"color": operator_color(name), "marker": operator_marker(name), "markevery": 2, "ms": 2}
        for state, line in STATES.items():
            base = dataset["base_adam" if state == "carried" else "base_fresh"]
            axis.plot(steps, base.mean("seed"), color="k", lw=0.6, ls=line)
            runs = dataset["adam"].sel(continued=name, adam_state=state)
            axis.fill_between(steps, runs.min("seed"), runs.max("seed"), color=look["color"], alpha=0.15, lw=0)
            axis.plot(steps, runs.mean("seed"), lw=0.9, ls=line, **look)
        plain_log(axis.yaxis)
        axis.set_title(plain(name), color=operator_color(name))
        axis.set_xticks([0, 10, 20])
    axes[0, 0].set_ylabel("training loss (nats)")
    figure.supxlabel("steps after the expansion (line: mean, band: all seeds)", fontsize=7)
    marks = [plt.Line2D([], [], color="0.3", ls=line, label=f"Adam's state {state}") for state, line in STATES.items()]
    marks += [
        plt.Line2D([], [], color="k", lw=0.6, ls=line, label=f"base, state {'kept' if state == 'carried' else state}")
        for state, line in STATES.items()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=2)
    return figure
