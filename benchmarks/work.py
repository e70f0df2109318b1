"""What is timed: the same work done one network after another and as one batch.

The loop is what one would write: `torch.optim.SGD` and `cross_entropy`, one network after another, with all cores. The
batch runs in one process with all cores and, as the study runs it, in one process of one thread per core, each with
its share of the networks. Training is timed in the midst of a run, short training from its start, before the batch has
recorded its step.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import psutil
import torch
from torch import Tensor, nn

from mmstudy.batched.ensemble import stack, vectors
from mmstudy.batched.objective import Objective, of_networks
from mmstudy.batched.training import constant, minibatches, train
from mmstudy.core.networks import MLP, ViT, count_parameters, initialize
from mmstudy.core.processes import cores
from mmstudy.core.seeds import generator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CORES = cores()
SHAPES = {"convolutional": (1, 8, 8), "ViT": (1, 8, 8)}  # of an example; a perceptron's has 40 numbers
TRAINING = ("training", "short training")
STEP_SIZE, MOMENTUM, MINIBATCH = 0.01, 0.9, 128
ROUNDS = 16  # of so many steps as are timed, in a run
Batch = tuple[Tensor, Tensor]  # inputs, targets


@dataclass(frozen=True)
class Work:
    """So many networks to train, or points to evaluate one network at; done so many times (steps, evaluations)."""

    what: str  # training, points, or what points are scaled by
    network: str
    count: int
    examples: int = 128
    times: int = 2


def build(name: str, seed: int = 0) -> nn.Module:
    """A network by name; "MLP 64" has two hidden layers of 64."""
    if name == "ViT":
        network = ViT((1, 8, 8), (2, 2), 32, 2, 4, 10)
    elif name == "convolutional":
        convolutions = [
            layer for a, b in ((1, 8), (8, 16), (16, 16)) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())
        ]
        network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    else:
        network = MLP(40, [int(name.split()[1])] * 2, 10)
    return initialize(network, generator("benchmark", name, seed)).to(DEVICE)


def examples(name: str, count: int) -> Batch:
    """Random inputs and targets for a network by name."""
    stream = generator("benchmark", "examples", count)
    inputs = torch.randn(count, *SHAPES.get(name, (40,)), generator=stream)
    return inputs.to(DEVICE), torch.randint(10, (count,), generator=stream).to(DEVICE)


def around(network: nn.Module, count: int) -> Tensor:
    """So many points about a network, (count, dim)."""
    here = nn.utils.parameters_to_vector(network.parameters()).detach()
    return here + 0.01 * torch.randn(count, len(here), generator=generator("benchmark", "points")).to(here)


def objective(network: nn.Module, batch: Batch) -> Objective:
    """The loss of one network on this batch."""
    return of_networks(stack([network]), batch)


def looped(work: Work) -> Callable[[], Tensor]:
    """The work, one network after another; returns the networks' parameters or the losses."""
    if work.what not in TRAINING:
        network, points, (x, y) = build(work.network).eval(), *_points(work)

        def evaluate() -> Tensor:
            with torch.no_grad():
                for _ in range(work.times):
                    losses = []
                    for point in points:
                        nn.utils.vector_to_parameters(point, network.parameters())
                        losses.append(nn.functional.cross_entropy(network(x), y))
            return torch.stack(losses)

        return evaluate
    networks, (x, y), order = _training(work)

    def learn() -> Tensor:
        for network, mine in zip(networks, order, strict=True):
            optimizer = torch.optim.SGD(network.parameters(), STEP_SIZE, MOMENTUM)
            for some in mine:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[some]), y[some]).backward()
                optimizer.step()
        return torch.stack([nn.utils.parameters_to_vector(n.parameters()).detach() for n in networks])

    return learn


def batched(work: Work, part: int = 0, parts: int = 1) -> Callable[[], Tensor]:
    """The work, or one part of its networks or points, as a batch; returns what `looped` does."""
    if work.what not in TRAINING:
        points, batch = _points(work)
        loss, mine = objective(build(work.network), batch), points[None, part::parts]
        return lambda: [loss(mine)[0] for _ in range(work.times)][-1]
    rounds = ROUNDS if work.what == "training" else 1
    networks, data, order = _training(work, part, parts, rounds)
    start, order, steps = stack(networks), order.cpu(), rounds * work.times

    def runs() -> Iterator[Tensor]:
        while True:
            marks = range(work.times, steps, work.times)
            for _, trained, _ in train(start, data, order, constant(STEP_SIZE, steps), MOMENTUM, marks):
                yield vectors(trained)

    return partial(next, runs())


def _points(work: Work) -> tuple[Tensor, Batch]:
    return around(build(work.network), work.count), examples(work.network, work.examples)


def _training(work: Work, part: int = 0, parts: int = 1, rounds: int = 1) -> tuple[list[nn.Module], Batch, Tensor]:
    which = range(work.count)[part::parts]
    streams = [generator("benchmark", "order", i) for i in which]
    order = minibatches(streams, 1024, rounds * work.times, MINIBATCH).to(DEVICE)
    return [build(work.network, i).train() for i in which], examples(work.network, 1024), order


@cache
def _prepared(work: Work, part: int, parts: int) -> Callable[[], Tensor]:
    torch.set_num_threads(1)
    return batched(work, part, parts)


def _share(*share: object) -> None:
    _prepared(*share)()


def in_processes(work: Work, workers: list[ProcessPoolExecutor]) -> Callable[[], None]:
    """The work as a batch in each of several processes."""
    parts = min(len(workers), work.count)

    def run() -> None:
        for future in [workers[i].submit(_share, work, i, parts) for i in range(parts)]:
            future.result()

    return run


def interleaved(ways: dict[str, Callable[[], object]], repetitions: int) -> dict:
    """Seconds that each way takes, (repetitions), after two to warm up, the ways taking turns; and what others took.

    `others` is the share of the cores that other processes used meanwhile: where it is not small, threads that wait
    for each other are slower by far, and ratios mean nothing.
    """
    seconds, began, before = {name: [] for name in ways}, time.perf_counter(), cpu_of_others()
    for repetition in range(-2, repetitions):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if repetition >= 0:
                seconds[name].append(time.perf_counter() - start)
    others = (cpu_of_others() - before) / (time.perf_counter() - began) / CORES
    return {"seconds": seconds, "others": max(0.0, others)}


def cpu_of_others() -> float:
    """CPU seconds that all processes but this one and its children have used so far."""
    everybody, mine = psutil.cpu_times(), psutil.Process()
    family = [process.cpu_times() for process in (mine, *mine.children(recursive=True))]
    return everybody.user + everybody.nice + everybody.system - sum(t.user + t.system for t in family)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference between two results, over the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


def measure(work: Work, workers: list, repetitions: int, seconds: float) -> dict:
    """One case: the loop against the batch, repetitions of so many seconds of the loop each."""
    once = looped(work)
    apart = difference(once().double(), batched(work)().double())
    if work.what != "short training":
        took = min(interleaved({"loop": once}, 2)["seconds"]["loop"]) / work.times
        work = replace(work, times=max(1, round(seconds / took)))
    ways = {"reference": looped(work), "one process": batched(work)}
    if workers:
        ways["processes"] = in_processes(work, workers)
    return row(work, interleaved(ways, repetitions), apart)


def row(work: Work, timed: dict, apart: float, reference: str = "loop") -> dict:
    """A case as it is written down; `apart` is the difference of both results."""
    seconds = {way: [s / work.times for s in spent] for way, spent in timed["seconds"].items()}
    size = {"parameters": count_parameters(build(work.network)), "memory": {}}
    return asdict(work) | size | timed | {"seconds": seconds, "difference": apart, "reference": reference}
