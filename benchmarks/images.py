"""How long the profile `paper` would take here: tasks of it at their full size, but for few steps, on made-up images.

    python benchmarks/images.py [--quick] [--out outputs/bench]

What a task costs does not depend on what the images show, so that none need to be fetched: they are patterns, one for
each class, under noise. Timed are a step of training the candidates of one architecture (with the networks that they
are compared with), together and one by one, and `trials.measure` of them all for few steps, with its looks in full
size. From these follow the hours of one architecture; a pool has ten to thirty. Nothing that is measured here says what
the images show.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
import yaml
from matplotlib.figure import Figure
from report import arguments, write
from work import DEVICE

from mmstudy.batched import ensemble as en
from mmstudy.batched import training
from mmstudy.core import datasets, networks, openml, progress, results, tasks
from mmstudy.core.seeds import generator
from mmstudy.expansion import pools
from mmstudy.study import design, draws, starting, trials
from mmstudy.study.protocol import Protocol

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
PROFILE = yaml.safe_load((ROOT / "notebooks/profiles/paper.yml").read_text())
SHOWN, QUICK_SHOWN = (2, 6, 0, 4), (2, 6)  # of its tasks: the smaller of each family first, then the larger
SMALL = {"deep ResNet": (4, 4, 2), "ViT": (12, 3, 1)}  # shapes, for a quick run
QUICK = {
    "steps": 20, "bins": 5, "batch": 8, "seeds": 2, "validations": 2, "test_examples": 20, "child_steps": 2,
    "children": 3, "probe_examples": 10, "random_rays": 1, "traces": 1, "doublings": 2, "short": 0.5,
    "progress": (0.0, 0.5, 1.0),
}  # fmt: skip
WORDS = {
    "together": ("s", "a step of training all networks of one architecture as a batch"),
    "alone": ("s", "a step of training them one after another, by the same code"),
    "rest": ("s", "what else a piece takes: predictors, looks, scores, short runs"),
    "base": ("s", "a step of training the base network"),
    "memory": ("GiB", "most memory of the GPU in use at once"),
    "networks": ("1", "networks of one architecture: candidates and references, times seeds"),
    "parameters": ("1", "parameters of the base network"),
    "hours": ("h", "estimate for one architecture, trained in full length"),
}


def images(name: str, examples: int) -> datasets.Dataset:
    """So many images of the shape and the classes of a dataset of `openml.SOURCES`: a pattern each class, and noise."""
    source, stream = openml.SOURCES[name], generator("benchmark", "images", name)
    shape = (source.classes, int(np.prod(source.image)))
    targets = torch.arange(examples) % source.classes
    patterns = torch.randint(64, 192, shape, generator=stream)
    noise = torch.randint(-64, 64, (examples, shape[1]), generator=stream)
    kept = max(1, examples // 6), max(1, examples // 12)  # for test and validation, as of the real ones
    return datasets.Dataset((patterns[targets] + noise).to(torch.uint8), targets, *kept, source.image, augmented=True)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that it takes."""
    began = time.perf_counter()
    found = function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - began


def step(start: en.Ensemble, task: tasks.Task, data: datasets.Data, protocol: Protocol, steps: int) -> float:
    """Seconds of a step of training, after as many to warm up."""
    order = draws.minibatch_order(task, data, protocol, range(len(start)), 2 * steps)
    rates = training.constant(protocol.step_size, 2 * steps)
    take = draws.take(data, protocol)
    run = training.train(start, data.training, order, rates, protocol.momentum, [steps], take=take)
    next(run)
    return timed(lambda: next(run))[1] / steps


def measured(task: tasks.Task, quick: bool) -> dict[str, float]:
    """One task: what `WORDS` names.

    Raises:
        ValueError: a run diverged, so that its time says nothing.
    """
    looks = tuple(PROFILE["experiment_progress"])
    full = design.protocol(task, **PROFILE["experiment_options"], progress=looks)
    protocol, data = replace(full, **(QUICK if quick else {"steps": 200})), tasks.load(task, DEVICE)
    base, shown = tasks.base(task, data), draws.shown(data)
    shape = {"factors": (2,), "extra_layers": (), "matched": (), "locations": design.locations(base, shown.inputs)[:1]}
    chosen = [*pools.candidate_pool(base, shown.inputs, wider=("net2net", "random"), **shape).items()]
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trained, of_base = timed(lambda: trials.train_base(task, data, protocol))
    piece = trials.Piece(task, data, trained, chosen, protocol)
    _, at_start = timed(lambda: starting.start(piece))
    found, training = timed(lambda: trials.measure(piece))
    whole = at_start + training
    if found["accuracy"].isnull().any():
        raise ValueError(f"a run of {task} diverged")
    count = found.sizes["candidate"] * found.sizes["seed"]
    grown, steps = chosen[0][1].grow(base, shown).network, 3 if quick else 25
    start = en.stack([networks.initialize(grown, generator("benchmark", i)) for i in range(count)])
    together = step(start, task, data, protocol, steps)
    rest = max(0.0, whole - 2 * protocol.steps * together)
    return {
        "networks": count,
        "parameters": networks.count_parameters(base),
        "base": of_base / protocol.steps,
        "together": together,
        "alone": count * step(start[:1], task, data, protocol, steps),
        "rest": rest,
        "hours": (2 * full.steps * together + rest) / 3600,
        "memory": torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else math.nan,
    }


def table(dataset: xr.Dataset) -> str:
    """One line for each task, as Markdown."""
    lines = [
        "| task | networks | together, ms | one by one, ms | the rest, s | memory, GiB | in full, h |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in dataset.to_dataframe().itertuples():
        lines.append(
            f"| {row.Index} | {row.networks:.0f} | {1e3 * row.together:.0f} | {1e3 * row.alone:.0f} | {row.rest:.0f}"
            f" | {row.memory:.1f} | {row.hours:.2f} |"
        )
    return "\n".join([f"On {dataset.attrs['device']}, with images that were made up:", "", *lines, ""])


def draw(dataset: xr.Dataset) -> Figure:
    """A step of training, together and one by one; and the hours of one architecture in full."""
    places = np.arange(dataset.sizes["task"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.5 + 0.7 * len(places)), layout="constrained", sharey=True)
    for i, (way, words) in enumerate({"together": "together", "alone": "one by one"}.items()):
        left.barh(places + 0.4 * i, 1e3 * dataset[way], 0.4, label=words, color=("C0", "0.7")[i])
    left.set(xlabel="ms", title="a step of training", yticks=places + 0.2)
    left.set_yticklabels(dataset["task"].values)
    right.barh(places + 0.2, dataset["hours"], 0.5, color="C1")
    right.set(xlabel="h", title="one architecture in full, estimated")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    """Measure the tasks one after another, write them, print the table."""
    asked = arguments(__doc__, "networks and images in miniature").parse_args()
    listed = list(design.tasks_of({part: PROFILE[f"experiment_{part}"] for part in design.PARTS}))
    some = [listed[i] for i in (QUICK_SHOWN if asked.quick else SHOWN)]
    if asked.quick:
        some = [replace(task, widths=SMALL[task.family], train_size=160) for task in some]
    found = {}
    for task in progress.through(some, "images"):
        tasks.DATASETS[task.dataset] = partial(images, task.dataset, 2 * task.train_size)
        found[str(task)] = measured(task, asked.quick)
        variables = {name: ("task", [row[name] for row in found.values()]) for name in WORDS}
        dataset = results.describe(xr.Dataset(variables, {"task": [*found]}), WORDS)
        dataset.attrs = results.provenance({"quick": asked.quick}, DEVICE)
        write("images", dataset, table(dataset), draw(dataset), asked.out)  # a long task may be one too many


if __name__ == "__main__":
    main()
