"""What the benchmarks say: goals, a table and a figure, from the dataset that `bench.py` gathers."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

matplotlib.rcParams |= {"backend": "agg", "svg.hashsalt": "mmstudy"}
import matplotlib.pyplot as plt  # noqa: E402
import seaborn as sns  # noqa: E402

from mmstudy.core import results  # noqa: E402
from mmstudy.figures.style import COLORS, plain_log  # noqa: E402

WAYS = ["reference", "one process", "processes"]
GOALS = {  # (what, network, how many) → the least ratio
    ("training", "MLP 64", 8): 3.5,
    ("training", "convolutional", 8): 1.5,
    ("training", "ViT", 8): 1.3,
    ("points", "MLP 16", 64): 8.0,
    ("points", "MLP 64", 64): 4.0,
}
NEVER_SLOWER = 0.95  # whatever is trained or evaluated
NOISY = 0.1  # scatter of a case's ratio, or share of the cores that others took, beyond which a ratio tells nothing
MEASURED = ("training", "short training", "points", "parameters", "directions", "examples")


def doubtful(dataset: xr.Dataset) -> xr.DataArray:
    """Which cases were measured on a machine that was too busy."""
    return (dataset["noise"] > NOISY) | (dataset["others"] > NOISY)


def goals(dataset: xr.Dataset) -> list[str]:
    """Each goal with what was measured: ✓, ✗, or ? where they scatter too much to tell."""
    rows = dataset[["ratio", "bound"]].assign(doubtful=doubtful(dataset)).to_dataframe().reset_index()
    rows, lines = rows[rows["what"].isin(MEASURED)], []
    for (what, network, count), least in GOALS.items():
        found = rows.query("what == @what and network == @network and count == @count")
        if found.empty:  # a quick run leaves cases out
            continue
        case = found.iloc[0]
        mark = "?" if case["doubtful"] else "✓" if case["ratio"] >= least else "✗"
        bound = f"; {case['bound']:.2f}× if a step were nothing but its convolutions" if case["bound"] > 0 else ""
        lines.append(f"{mark} {what}, {network}, {count}: {case['ratio']:.2f}× (≥ {least}×{bound})")
    slower = rows[~rows["doubtful"] & (rows["ratio"] < NEVER_SLOWER)].sort_values("ratio")
    mark = "✗" if len(slower) else "?" if rows["doubtful"].any() else "✓"
    those = "; ".join(f"{r.what}, {r.network}, {r.count}: {r.ratio:.2f}×" for r in slower.itertuples(name="Row"))
    lines.append(f"{mark} never slower than the loop (≥ {NEVER_SLOWER}×), but for: {those or 'none'}")
    return [*lines, f"{rows['doubtful'].sum()} of {len(rows)} cases say nothing (?): the machine was busy"]


def table(dataset: xr.Dataset) -> str:
    """The results as Markdown."""
    typical = (dataset["seconds"].median("repetition", skipna=False) * 1e3).values
    lines = [
        "| what | network | count | examples | reference | reference, ms | one process, ms | one per core, ms | ratio"
        " | noise | others | memory, MiB: reference, batch |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for i in range(dataset.sizes["case"]):
        case = dataset.isel(case=i)
        ratio = f"{case['ratio'].item():.2f}" + " ?" * doubtful(case).item()
        memory = ", ".join(f"{float(case['memory'].sel(way=w)):.0f}" for w in WAYS[:2])
        cells = [case[name].item() for name in ("what", "network", "count", "examples", "reference")]
        shares = [f"{case[name].item():.0%}" for name in ("noise", "others")]
        cells += [*(f"{time:.3g}" for time in typical[i]), ratio, *shares, memory]
        lines.append("| " + " | ".join(map(str, cells)).replace("nan, nan", "").replace("nan", "") + " |")
    return "\n".join(lines)


def draw(dataset: xr.Dataset) -> Figure:
    """Ratios of training and of points, how the time scales, and the peers."""
    fastest = dataset["seconds"].median("repetition", skipna=False).sel(way=WAYS[1:]).min("way")
    shown = dataset[["ratio"]].assign(ms=1e3 * fastest).where(~doubtful(dataset))
    frame = shown.to_dataframe().reset_index()
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    training = axes[0, 0]
    of_training = frame[frame["what"] == "training"]
    look = {
        "hue": "network",
        "style": "network",
        "markers": True,
        "palette": COLORS[: of_training["network"].nunique()],
    }
    sns.lineplot(of_training, x="count", y="ratio", ax=training, **look)
    plain_log(training.xaxis)
    training.set(xlabel="networks", ylabel="loop / batch", title="a step of training", ylim=0)
    training.legend(frameon=False, fontsize="small")
    points = frame[frame["what"] == "points"]
    _bars(axes[0, 1], points["network"], points["ratio"], COLORS[0])
    axes[0, 1].set(xlabel="loop / batch", title="the loss at 64 points")
    others = frame[~frame["what"].isin(MEASURED)]
    _bars(
        axes[0, 2], others["reference"] + ", " + others["what"] + ", " + others["network"], others["ratio"], COLORS[1]
    )
    axes[0, 2].set(xlabel="other / batch", title="beside others")
    axes[0, 2].tick_params("y", labelsize="small")
    for axis in axes[0]:
        (axis.axhline if axis is training else axis.axvline)(1, color="0.6", lw=0.8, zorder=0)
    sweeps = {"parameters": "parameters", "directions": "count", "examples": "examples"}
    for axis, (what, along) in zip(axes[1], sweeps.items(), strict=True):
        some = frame[frame["what"] == what]
        known = some[some["ms"].notna()]
        for place in some[along][some["ms"].isna()]:
            axis.annotate("?", (place, 0.02), xycoords=("data", "axes fraction"), ha="center")
        axis.plot(known[along], known["ms"], "o-", color=COLORS[0], label="batch")
        axis.plot(known[along], known["ms"] * known["ratio"], "s--", color="0.5", label="loop")
        axis.set(xlabel=what, ylabel="ms", title=f"time against {what}")
        if len(known):
            axis.set_xlim(0.8 * some[along].min(), 1.25 * some[along].max())
            plain_log(axis.xaxis)
            plain_log(axis.yaxis)
    axes[1, 0].legend(frameon=False)
    return figure


def _bars(axis, names: pd.Series, ratios: pd.Series, color) -> None:
    """A bar for each case, the first on top; a ? for one that says nothing."""
    rows = range(len(names))
    axis.barh(rows, ratios.fillna(0), color=color)
    for row in rows:
        if np.isnan(ratios.iloc[row]):
            axis.text(0.1, row, "?", va="center")
    axis.set_yticks(rows, names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def arguments(description: str, quick: str) -> argparse.ArgumentParser:
    """What every benchmark can be asked: to be quick, which this explains, and where its results go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    default = Path(__file__).parents[1] / "outputs" / "bench"
    parser.add_argument("--out", type=Path, default=default, help="the folder of the results")
    return parser


def write(name: str, dataset: xr.Dataset, text: str, figure: Figure, out: Path) -> None:
    """The data, the text and the figure of a benchmark, as files of this name; the text is printed too."""
    results.save(dataset, out / f"{name}.nc")
    (out / f"{name}.md").write_text(text)
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    figure.savefig(out / f"{name}.png", dpi=150, metadata={"Software": None})
    print(text)
