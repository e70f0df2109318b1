"""What batching gains on this machine: runs all benchmarks and writes them as data, a table and a figure.

    python benchmarks/bench.py [--quick] [--alone] [--out outputs/bench]

A ratio is the time of the reference over that of the batch, each repetition against the one that took turns with it, as
a machine's speed drifts, and the median of those; above 1 the batch is faster. The batch runs both in one process and
in one process per core: the ratio is that of the faster.
"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from report import WAYS, arguments, draw, goals, table, write

from mmstudy.core import results
from mmstudy.core.processes import cores

HERE = Path(__file__).parent
ROOT = HERE.parent
# glibc keeps what large batches free, instead of asking the system for fresh pages at every call: both ways gain.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
PATIENT = {"GOMP_SPINCOUNT": "1000"}  # a quick run is quick on a busy machine too, but slows the loop of a quiet one
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # the benchmarks set their own

WORDS = {
    "seconds": ("s", "wall-clock time of one step of training all networks, or of evaluating all points once"),
    "ratio": ("1", "time of the reference over that of the batch, in the faster of its two ways"),
    "memory": ("MiB", "peak memory of the work, all its steps, beyond that of the process before"),
    "noise": ("1", "half the interquartile range of the repetitions' ratios over their median"),
    "others": ("1", "share of the cores that other processes used meanwhile"),
    "bound": ("1", "the ratio if a step of training were nothing but its convolutions"),
    "difference": ("1", "largest difference of the two results, over the largest entry"),
    "parameters": ("1", "parameters of the network"),
    "count": ("1", "networks trained, points evaluated, or probes"),
    "examples": ("1", "examples of one evaluation, or of one step of training"),
}


def run(script: str, python: str | Path = sys.executable, *options: str) -> list[dict]:
    """The cases that a benchmark prints, one a line."""
    environment = {name: value for name, value in os.environ.items() if name not in THREADS} | MALLOC
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::UserWarning"}  # on what cannot be batched
    environment |= PATIENT if "--quick" in options else {}
    done = subprocess.run(
        [python, HERE / script, *options], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def peers(folder: Path) -> Path:
    """The Python of the peers' environment, built where it is not there; what cannot be installed is left out."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = (HERE / "peers.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(folder, clear=True, with_pip=True)
    (folder / ".gitignore").write_text("*\n")
    pin = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    (folder / "torch.txt").write_text(pin.group() + "\n")  # the study's own, and no other
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", folder / "torch.txt"]
    pip += ["--prefer-binary", "--only-binary", "numpy,scipy,pandas,matplotlib,scikit-learn"]
    for package in re.findall(r"^[\w-]+==.*$", wanted, re.MULTILINE):
        print(f"peers: installing {package}", file=sys.stderr)
        if subprocess.run([*pip, package], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            print(f"peers: {package} skipped, pip cannot install it", file=sys.stderr)
    stamp.write_text(wanted)
    return python


def gather(cases: list[dict]) -> xr.Dataset:
    """All cases as one dataset over (case, way, repetition)."""
    repetitions = len(cases[0]["seconds"]["reference"])
    seconds, memory = np.full((len(cases), len(WAYS), repetitions), np.nan), np.full((len(cases), len(WAYS)), np.nan)
    for i, case in enumerate(cases):
        for j, way in enumerate(WAYS):
            seconds[i, j], memory[i, j] = case["seconds"].get(way, np.nan), case["memory"].get(way, np.nan)
    names = ("what", "network", "reference", "parameters", "count", "examples")
    dataset = xr.Dataset(
        {"seconds": (("case", "way", "repetition"), seconds), "memory": (("case", "way"), memory)}, {"way": WAYS}
    ).assign_coords({name: ("case", [case[name] for case in cases]) for name in names})
    paired = dataset["seconds"].sel(way="reference", drop=True) / dataset["seconds"].sel(way=WAYS[1:])
    low, ratio, high = (paired.quantile(q, "repetition", skipna=False).drop_vars("quantile") for q in (0.25, 0.5, 0.75))
    best = ratio.idxmax("way")
    dataset["ratio"] = ratio.sel(way=best, drop=True)
    dataset["noise"] = ((high - low) / 2 / ratio).sel(way=best, drop=True)
    dataset["bound"] = dataset["ratio"] / xr.DataArray(
        [case.get("convolutions", np.nan) for case in cases], dims="case"
    )
    more = {name: ("case", [case[name] for case in cases]) for name in ("others", "difference")}
    return dataset.assign(more)


def main() -> None:
    """Run the benchmarks, write them, print the table and the goals."""
    parser = arguments(__doc__, "few cases, no other packages; ratios for show only")
    parser.add_argument("--alone", action="store_true", help="no other packages, as where none can be installed")
    options = parser.parse_args()
    cases = run("speed.py", sys.executable, *["--quick"] * options.quick)
    if not (options.quick or options.alone):
        cases += run("peers.py", peers(ROOT / ".venv-bench"))
    torch.set_num_threads(cores())
    dataset = results.describe(gather(cases), WORDS)
    settings = {"quick": options.quick, "cores": cores()} | MALLOC
    dataset.attrs = results.provenance(settings, "cuda" if torch.cuda.is_available() else "cpu")
    text = "\n".join([table(dataset), "", *(f"- {line}" for line in goals(dataset)), ""])
    write("bench", dataset, text, draw(dataset), options.out)


if __name__ == "__main__":
    main()
