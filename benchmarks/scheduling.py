"""What a Dask cluster costs beside the work itself, and for how many workers that would do.

    python benchmarks/scheduling.py [--quick] [--out outputs/bench]

*Measured*: a thousand pieces of one length, on a cluster of two workers of this machine (scheduler, workers and client
are processes of their own), and on a pool of two processes. Pieces that sleep leave the processor to the scheduler and
the client, as machines of their own would; pieces that compute share two cores with them. And the pieces of one real
task, with the seconds that each took.

*Simulated, on paper*: more workers than there are here. One queue stands for the scheduler and the client: it takes as
long for a piece as the slower of the two was busy with one, measured above. There is one more piece in hand for each
worker, as in Dask, where idle ones take what others have; a worker waits where the queue has sent none. Networks, disks
and memory are left out.
"""

import heapq
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import xarray as xr
from matplotlib.figure import Figure
from report import NOISY, arguments, write
from work import cpu_of_others

from mmstudy.core import cluster, processes, results
from mmstudy.core.tasks import load
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.figures.style import COLORS, plain_log
from mmstudy.study import design, sweep
from mmstudy.study.statistics import expansions

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "outputs/reference/data/experiment.nc"
WORKERS, GOAL = 2, 0.02  # …; the share of the time that scheduling may take
WAYS, KINDS = ("cluster", "pool"), ("sleeps", "computes")
TASK, SMALL = ["spiral", [8, 8], 2000, 0.0, 5], ["digits", [4, 4], 200, 0.0, 0]  # a pilot task; one for a quick run
SMALL_POOL = {"factors": (2,), "extra_layers": (), "matched": ()}
SMALL_PROTOCOL = {"steps": 40, "bins": 10, "batch": 16, "short": 0.25, "progress": (0.0, 1.0), "child_steps": 3}
CROWDS = tuple(2**power for power in range(15))  # of workers, on paper
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
WORDS = {
    "seconds": ("s", "wall-clock time of all pieces"),
    "others": ("1", "share of the cores that other processes used meanwhile"),
    "overhead": ("1", "time beyond that of the pieces themselves, evenly shared, over the latter"),
    "busy": ("s", "processor time for one piece, of the scheduler and of the client"),
    "piece": ("s", "wall-clock time of each piece of a real task"),
    "slowdown": ("1", "simulated: time with scheduling over time without, minus 1"),
    "speedup": ("1", "simulated: time of one worker over that of so many"),
    "length": ("s", "length of a piece"),
}


# ---- Measured --------------------------------------------------------------------------------------------------------


@contextmanager
def local_cluster(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a scheduler with two workers, and the scheduler's process."""
    file = folder / "scheduler.json"
    python = [sys.executable, "-m"]
    flags = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
    start = partial(subprocess.Popen, cwd=folder, env=os.environ | THREADS, stderr=subprocess.DEVNULL)
    here = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    started = [start([*python, "distributed.cli.dask_scheduler", *here])]
    try:
        while not (file.exists() and file.read_text()):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        started += [start([*python, "distributed.cli.dask_worker", address, *flags]) for _ in range(WORKERS)]
        yield address, psutil.Process(started[0].pid)
    finally:
        for process in started:
            process.kill()
            process.wait()


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


def computes(seconds: float) -> None:
    """Keep the processor so long, however often it is taken away."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def wait_for_workers(address: str) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(WORKERS, timeout=60)


def of_process(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def timed(executor, piece: Callable[[float], None], length: float, count: int) -> tuple[float, float]:
    """Seconds until all pieces are done, and the share of the cores that others took."""
    list(executor.map(piece, [0.0] * 4 * WORKERS))  # all is imported and checked
    began, strange = time.perf_counter(), cpu_of_others()
    list(executor.map(piece, [length] * count))
    took = time.perf_counter() - began
    return took, max(0.0, cpu_of_others() - strange) / took / processes.cores()


def measured(address: str, scheduler: psutil.Process, lengths: Sequence[float], count: int) -> xr.Dataset:
    """Time and overhead of pieces over (way, kind, length), and the processor time of scheduler and client for one."""
    shape = (len(WAYS), len(KINDS), len(lengths))
    seconds, others, busy = np.full(shape, np.nan), np.full(shape, np.nan), np.full((2, *shape[1:]), np.nan)
    client, silent = psutil.Process(), lambda text: None
    with cluster.executor(None, WORKERS) as pool, cluster.executor(address, say=silent) as crowd:
        for (j, piece), (k, length) in product(enumerate((sleeps, computes)), enumerate(lengths)):
            seconds[1, j, k], others[1, j, k] = timed(pool, piece, length, count)
            before = of_process(scheduler), of_process(client)
            seconds[0, j, k], others[0, j, k] = timed(crowd, piece, length, count)
            busy[:, j, k] = np.subtract((of_process(scheduler), of_process(client)), before) / count
            print(f"{KINDS[j]} {length:g} s: {seconds[0, j, k]:.2f} s, in a pool {seconds[1, j, k]:.2f} s", flush=True)
    axes = {"kind": list(KINDS), "length": list(lengths)}
    found = xr.Dataset(
        {"seconds": (("way", *axes), seconds), "others": (("way", *axes), others), "busy": (("who", *axes), busy)},
        {"way": list(WAYS), "who": ["scheduler", "client"], **axes},
    )
    return found.assign(overhead=found["seconds"] / (count * found["length"] / WORKERS) - 1)


def real_pieces(address: str, folder: Path, quick: bool) -> list[float]:
    """The seconds that each piece of a real task took on the cluster."""
    from distributed import Client, get_task_stream

    (task,) = design.tasks_of({"pilot": [SMALL if quick else TASK]})
    candidates, _ = design.pool(task, load(task), SMALL_POOL if quick else None)
    protocol = design.protocol(task, **(SMALL_PROTOCOL if quick else {}))
    with Client(address, set_as_default=False) as client, get_task_stream(client) as stream:
        sweep.sweep({task: candidates}, {task: protocol}, folder / "cache", scheduler=address)
    spans = [span for each in stream.data for span in each["startstops"] if span["action"] == "compute"]
    return sorted(span["stop"] - span["start"] for span in spans)


# ---- On paper --------------------------------------------------------------------------------------------------------


def simulated(lengths: Sequence[float], workers: int, serve: float) -> float:
    """Seconds until workers have done pieces in this order, each of which one queue sends in `serve` seconds."""
    waiting = deque(lengths)
    sent: deque[tuple[float, float]] = deque()  # (when it arrives, its length)
    busy: list[float] = []  # when the work of each worker ends
    free = end = 0.0  # when the queue will have sent what it was asked for

    def send(asked: float) -> None:
        nonlocal free
        if waiting:
            free = max(free, asked) + serve
            sent.append((free, waiting.popleft()))

    def begin(now: float) -> None:
        if sent:
            arrives, length = sent.popleft()
            heapq.heappush(busy, max(now, arrives) + length)

    for _ in range(2 * workers):  # one to work at, one in hand
        send(0.0)
    for _ in range(workers):
        begin(0.0)
    while busy:
        end = heapq.heappop(busy)
        send(end)
        begin(end)
    return end


def pieces_of_the_study() -> int:
    """How many pieces the committed reference had, its base networks left aside."""
    pool, count = expansions(results.load(REFERENCE)), 0
    for task in dict.fromkeys(pool["task"].values.tolist()):
        one = pool.isel(candidate=(pool["task"] == task).values)
        known = zip(one["label"].values.tolist(), one["description"].values.tolist(), strict=True)
        count += len(pools.architectures({label: Candidate.from_dict(json.loads(text)) for label, text in known}))
    return count


def on_paper(pieces: Sequence[float], serve: float, many: int) -> xr.Dataset:
    """Slowdown by scheduling, and speedup, over (study, worker)."""
    count, typical = pieces_of_the_study(), statistics.median(pieces)
    drawn = np.random.default_rng(0).choice(pieces, count)
    studies = {
        f"{count} pieces, as the full study has, drawn from those measured": sorted(drawn.tolist(), reverse=True),
        f"1,000 pieces of {typical:.1f} s": [typical] * 1000,
        f"{many:,} pieces of {typical:.1f} s": [typical] * many,
    }  # the longest first, as in a sweep
    with_it = np.array([[simulated(each, many, serve) for many in CROWDS] for each in studies.values()])
    without = np.array([[simulated(each, many, 0.0) for many in CROWDS] for each in studies.values()])
    axes = {"study": list(studies), "worker": list(CROWDS)}
    tables = {"slowdown": with_it / without - 1, "speedup": with_it[:, :1] / with_it}
    found = xr.Dataset({name: ((*axes,), table) for name, table in tables.items()}, axes)
    return found.assign_coords(pieces=("study", [len(each) for each in studies.values()]))


# ---- What is said ----------------------------------------------------------------------------------------------------


def report(found: xr.Dataset, count: int) -> str:
    """All of it as Markdown."""
    lines = [f"Measured: {count} pieces, two workers, {processes.cores()} cores.", ""]
    lines += ["| a piece | length, ms | cluster | pool | scheduler, ms a piece | client, ms a piece |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for kind in KINDS:
        for length in found["length"].values:
            one = found.sel(kind=kind, length=length)
            noisy = {way: " ?" * bool(one["others"].sel(way=way) > NOISY) for way in WAYS}
            shares = " | ".join(f"{float(one['overhead'].sel(way=way)):+.1%}{noisy[way]}" for way in WAYS)
            parts = " | ".join(f"{1e3 * float(one['busy'].sel(who=who)):.2f}" for who in ("scheduler", "client"))
            lines.append(f"| {kind} | {1e3 * length:g} | {shares} | {parts} |")
    piece = found["piece"].values
    if (found["others"] > NOISY).any():
        lines += ["", f"?: other processes took more than {NOISY:.0%} of the cores."]
    lines += ["", f"The goal is at most {GOAL:.0%} on the cluster. {met(found)}", ""]
    lines += [
        f"Pieces of a real task ({', '.join(map(str, TASK))}): {len(piece)}, median {np.median(piece):.1f} s, from "
        f"{piece.min():.1f} to {piece.max():.1f} s.",
        "",
        "**On paper** (a simulation, no measurement: nobody has run so many workers): the time that scheduling adds, "
        "and how many times faster than one worker.",
        "",
        "| study | " + " | ".join(f"{many:,}" for many in found["worker"].values) + " |",
        "| --- |" + " ---: |" * found.sizes["worker"],
    ]
    for study in found["study"].values:
        one = found.sel(study=study)
        cells = (
            f"{100 * s:.1f}%, {u:.0f}×" for s, u in zip(one["slowdown"].values, one["speedup"].values, strict=True)
        )
        lines.append(f"| {study} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in limits(found)), ""])


def met(found: xr.Dataset) -> str:
    """From which length on the goal is met, for each kind of piece."""
    words = []
    for kind in KINDS:
        good = (found["overhead"].sel(way="cluster", kind=kind) <= GOAL).values
        first = len(good) - int(np.cumprod(good[::-1]).sum())  # it is met from here on
        least = f"from {1e3 * found['length'].values[first]:g} ms" if first < len(good) else "at no length here"
        words.append(f"by a piece that {kind} {least}")
    return f"It is met {' and '.join(words)}."


def limits(found: xr.Dataset) -> Iterator[str]:
    """Up to how many workers scheduling takes its share at most, and what more would bring."""
    for study in found["study"].values:
        one = found.sel(study=study)
        one = one.isel(worker=(one["worker"] <= 2 * one["pieces"]).values)  # more would have nothing to do
        little, used = one["slowdown"] <= GOAL, one["speedup"] >= 0.5 * one["worker"]
        bounds = (one["worker"].values[: int(np.cumprod(good.values).sum())].max(initial=0) for good in (little, used))
        yield "{}: scheduling adds at most {:.0%} up to {:,} workers; half of their time is used up to {:,}".format(
            study, GOAL, *bounds
        )


def draw(found: xr.Dataset) -> Figure:
    """What was measured at the left, what is on paper at the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way, dash in zip(WAYS, ("-", "--"), strict=True):
        for kind, color, marker in zip(KINDS, COLORS, "os", strict=False):
            one = found["overhead"].sel(way=way, kind=kind)
            look = {"color": color, "marker": marker, "ls": dash, "label": f"{way}, a piece {kind}"}
            left.plot(1e3 * one["length"], 100 * one.clip(1e-4), **look)
    left.axhline(100 * GOAL, color="0.6", lw=0.8, zorder=0)
    left.set(xlabel="length of a piece, ms", ylabel="overhead, %", title="measured")
    left.annotate(f"goal: {GOAL:.0%}", (0, 100 * GOAL), (4, 2), ("axes fraction", "data"), "offset points")
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
    for study, color, marker in zip(found["study"].values, COLORS[2:], "^Dv", strict=False):
        look = {"color": color, "marker": marker, "ms": 3, "label": study}
        right.plot(found["worker"], found["speedup"].sel(study=study), **look)
    right.plot(found["worker"], found["worker"], color="0.6", lw=0.8, zorder=0, label="as many times as workers")
    right.set(xlabel="workers", ylabel="times faster than one", title="on paper (simulated)")
    right.legend(frameon=False, fontsize="small")
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        plain_log(axis)
    return figure


def main() -> None:
    """Measure, simulate, write and print."""
    options = arguments(__doc__, "few short pieces; numbers for show only").parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the cluster ends too
    lengths, count = ((0.002, 0.01), 20) if options.quick else ((0.01, 0.05, 0.1), 1000)
    with tempfile.TemporaryDirectory() as place, local_cluster(Path(place)) as (address, scheduler):
        wait_for_workers(address)
        found = measured(address, scheduler, lengths, count)
        pieces = real_pieces(address, Path(place), options.quick)
    serve = float(found["busy"].sel(kind="sleeps").isel(length=0).max())  # short ones: hardly anything but scheduling
    found = found.assign(piece=("piece", pieces)).merge(on_paper(pieces, serve, 2000 if options.quick else 100_000))
    found = results.describe(found, WORDS)
    found.attrs = results.provenance({"count": count, "quick": options.quick, "task": TASK})
    write("scheduling", found, report(found, count), draw(found), options.out)


if __name__ == "__main__":
    main()
