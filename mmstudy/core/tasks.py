"""The data: three disjoint parts of a real or published dataset, standardized, as float32 tensors on a device."""

import contextlib
import random
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmstudy.core.extras import needed
from mmstudy.core.seeds import generator

DIGITS_TEST, DIGITS_VALIDATION = 1000, 297  # of 1,797 scans; the rest may be trained on
MNIST1D_TEST, MNIST1D_VALIDATION, MNIST1D_TRAIN = 20_000, 2_000, 4_000


class Split(NamedTuple):
    """Examples: inputs (n, features) float32 and targets (n,) int64."""

    inputs: Tensor
    targets: Tensor


class Data(NamedTuple):
    """The three disjoint parts of a task. Test data never touch a predictor."""

    training: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """What is to be learnt and by which base network.

    `label_noise` is the share of training and validation labels that are replaced by another class; test labels are
    always true. `train_size` examples are trained on. `widths` are those of the base network's hidden layers.
    """

    dataset: str
    widths: tuple[int, ...]
    train_size: int
    label_noise: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        noise = f", {self.label_noise:.0%} flipped" if self.label_noise else ""
        return f"{self.dataset} {self.train_size}{noise}, {'-'.join(map(str, self.widths))}, seed {self.seed}"


def load(task: Task, device: str | torch.device = "cpu") -> Data:
    """The task's data: deterministic, standardized per feature with the training part's mean and deviation.

    Raises:
        ValueError: unknown dataset, more training examples than there are, or a noise share outside [0, 1).
    """
    if task.dataset not in SOURCES:
        raise ValueError(f"unknown dataset {task.dataset!r}; known: {', '.join(SOURCES)}")
    if not 0 <= task.label_noise < 1:
        raise ValueError(f"label_noise is a share in [0, 1); got {task.label_noise}")
    inputs, targets, test, validation = SOURCES[task.dataset]()
    most = len(inputs) - test - validation
    if not 1 <= task.train_size <= most:
        raise ValueError(f"{task.dataset} has 1 to {most} training examples; got train_size={task.train_size}")
    order = torch.randperm(len(inputs), generator=generator("split", task.dataset, task.seed))
    parts = order[:test], order[test : test + validation], order[test + validation :][: task.train_size]
    mean, deviation = inputs[parts[2]].mean(0), inputs[parts[2]].std(0, correction=0)
    deviation[deviation == 0] = 1.0  # a pixel that never changes stays at zero
    splits = [Split(((inputs[p] - mean) / deviation).float().to(device), targets[p].to(device)) for p in parts]
    test_split, *seen = splits
    validation_split, training_split = (
        Split(s.inputs, _flip(s.targets, task, name)) for s, name in zip(seen, ("validation", "train"), strict=True)
    )
    return Data(training_split, validation_split, test_split)


def _flip(targets: Tensor, task: Task, part: str) -> Tensor:
    stream = generator("label noise", task.dataset, task.seed, part)
    flipped = torch.rand(len(targets), generator=stream) < task.label_noise
    shift = torch.randint(1, 10, (len(targets),), generator=stream)
    return torch.where(flipped.to(targets.device), (targets + shift.to(targets.device)) % 10, targets)


@cache
def _digits() -> tuple[Tensor, Tensor, int, int]:
    """1,797 scans of handwritten digits, 8 × 8 pixels (Alpaydin & Kaynak 1998, shipped with scikit-learn)."""
    with needed("study"):
        from sklearn.datasets import load_digits

    scans = load_digits()
    return torch.tensor(scans.data), torch.tensor(scans.target), DIGITS_TEST, DIGITS_VALIDATION


def pixel_tokens(count: int, seed: int = 0) -> Split:
    """Digits as sentences for a language model: 63 pixels (0 to 16), row by row, and for each the one that follows.

    Inputs and targets are (count, 63) int64.
    """
    scans = _digits()[0].long()
    some = scans[torch.randperm(len(scans), generator=generator("sentences", seed))[:count]]
    return Split(some[:, :-1], some[:, 1:])


@cache
def _mnist1d() -> tuple[Tensor, Tensor, int, int]:
    """MNIST-1D by its authors' generator (Greydanus & Kobak 2020, arXiv 2011.14439), 40 numbers an example."""
    with needed("study"):
        from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = MNIST1D_TEST + MNIST1D_VALIDATION + MNIST1D_TRAIN
    arguments.train_split = 1.0
    with _global_random_state_kept():
        made = make_dataset(arguments)
    return torch.tensor(made["x"]), torch.tensor(made["y"]), MNIST1D_TEST, MNIST1D_VALIDATION


@contextlib.contextmanager
def _global_random_state_kept():
    """The generator of mnist1d seeds the global streams; they are put back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


SOURCES = {"digits": _digits, "mnist1d": _mnist1d}
