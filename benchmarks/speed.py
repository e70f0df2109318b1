"""How much faster a batch of networks is than a loop: every line of the output is one case, as JSON.

Run by `bench.py`, which sets the environment that the timings need.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm
from work import CORES, DEVICE, Work, around, batched, build, difference, examples, interleaved, looped, measure, row
from work import objective as loss_of

from mmstudy.core import processes

TRAINED = ("MLP 16", "MLP 64", "convolutional", "ViT")
EVALUATED = ("MLP 16", "MLP 64", "MLP 128", "convolutional", "ViT")


def cases(quick: bool) -> list[Work]:
    """What is measured."""
    counts = (8,) if quick else (1, 2, 4, 8, 16, 32, 64)
    training = [Work("training", name, count) for name in TRAINED for count in counts]
    short = [Work("short training", name, 8, times=20) for name in TRAINED[: 1 if quick else 3]]
    points = [Work("points", name, 64) for name in EVALUATED[: 1 if quick else 5]]
    parameters = [Work("parameters", f"MLP {width}", 64) for width in (8, 16, 32, 64, 128, 256)]
    directions = [Work("directions", "MLP 64", count) for count in (1, 4, 16, 64, 256, 1024)]
    sizes = [Work("examples", "MLP 64", 64, count) for count in (32, 128, 512, 2048, 4096)]
    scaling = [work for sweep in (parameters, directions, sizes) for work in (sweep[1:2] if quick else sweep)]
    return training + short + points + scaling


def peak(work: Work, batch: bool) -> float:
    """MiB that the work takes beyond what the process (a fresh one, on a CPU) had before; networks and data count."""
    torch.set_num_threads(1)
    before = torch.cuda.memory_allocated() / 2**20 if DEVICE == "cuda" else _resident()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    (batched if batch else looped)(work)()
    return (torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else _resident()) - before


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(function: Callable[..., float], *given: object) -> float:
    """What a function says in a process of its own; a GPU's memory is counted from where it was."""
    if DEVICE == "cuda":
        return function(*given)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["work"])  # a fresh process without the wait for its imports
    with ProcessPoolExecutor(1, context) as fresh:
        return fresh.submit(function, *given).result()


def convolutions(work: Work) -> float:
    """The share of a step that convolutions take, in one of as many processes as there are cores.

    How networks are batched does not change them: a step can't be shorter than they are.
    """
    torch.set_num_threads(1)
    step = batched(work, 0, CORES)
    for _ in range(12):  # until it is recorded; what follows is of the same run
        step()
    began = time.perf_counter()
    step(), step()
    took = time.perf_counter() - began
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(), step()
    return sum(e.self_cpu_time_total for e in seen.key_averages() if "convolution" in e.key) / 1e6 / took


def compiled(repetitions: int) -> Iterator[dict]:
    """The batched loss by `torch.compile` against that in use, if there is a compiler: one case, as it is slow."""
    work = Work("compile", "MLP 64", 64, times=10)
    network, batch = build(work.network), examples(work.network, work.examples)
    loss, points = loss_of(network, batch), around(network, work.count)
    (term,), owner = loss.terms, torch.zeros(work.count, dtype=torch.long, device=DEVICE)
    plain, fast = (lambda: loss(points[None])[0]), torch.compile(lambda: term(points, owner))
    try:
        with torch.no_grad():
            apart = difference(plain(), fast())
            ways = {
                "reference": lambda: [plain() for _ in range(work.times)],
                "one process": lambda: [fast() for _ in range(work.times)],
            }
            timed = interleaved(ways, repetitions)
    except Exception as error:
        tqdm.write(f"torch.compile: skipped ({type(error).__name__})")
        return
    yield row(work, timed, apart, "not compiled")


def main() -> None:
    """Measure all cases, and print each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases and repetitions")
    quick = parser.parse_args().quick
    repetitions, seconds = (3, 0.02) if quick else (7, 0.3 if DEVICE == "cpu" else 0.1)  # processes must wake up
    torch.set_num_threads(CORES)
    workers = [processes.pool(1) for _ in range(CORES if DEVICE == "cpu" else 0)]
    for work in tqdm(cases(quick), desc="speed", disable=None):
        case = measure(work, workers, repetitions, seconds)
        if work.what in ("training", "points") and work.count in (8, 64) and not quick:
            case["memory"] = {"reference": alone(peak, work, False), "one process": alone(peak, work, True)}
        if (work.what, work.network, work.count, DEVICE) == ("training", "convolutional", 8, "cpu"):
            case["convolutions"] = alone(convolutions, work)
        print(json.dumps(case), flush=True)
    for case in () if quick else compiled(repetitions):
        print(json.dumps(case), flush=True)
    for worker in workers:
        worker.shutdown()


if __name__ == "__main__":
    main()
