"""The data: three disjoint parts of a dataset, standardized, as float32 tensors on a device.

A dataset of your own is entered from outside: `DATASETS["mine"] = lambda: Dataset(inputs, targets, 1000, 300)`.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmstudy.core.arguments import described, whole
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


class Dataset(NamedTuple):
    """All examples of a dataset, and how many are kept for the test and validation parts.

    Inputs are (n, features), numbers; targets (n,), int64, are classes counted from 0.
    """

    inputs: Tensor
    targets: Tensor
    test: int
    validation: int


@dataclass(frozen=True)
class Task:
    """What is to be learnt and by which base network.

    `label_noise` is the share of training and validation labels that are replaced by another class; test labels are
    always true. `train_size` examples are trained on. `widths` are those of the base network's hidden layers.

    Raises:
        ValueError: a dataset that `DATASETS` doesn't know, a noise share outside [0, 1), or a width below 1.
        TypeError: widths that are no tuple of whole numbers.
    """

    dataset: str
    widths: tuple[int, ...]
    train_size: int
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            own = f'enter your own as tasks.DATASETS["{self.dataset}"]'
            raise ValueError(f"unknown dataset {self.dataset!r}; known: {', '.join(DATASETS)}; {own}")
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise is a share in [0, 1); got {self.label_noise}")
        if not isinstance(self.widths, tuple):
            raise TypeError(f"widths must be a tuple, such as (16, 16); got {self.widths!r}")
        for width in self.widths:
            whole(width, "a width", 1)

    def __str__(self) -> str:
        noise = f", {self.label_noise:.0%} flipped" if self.label_noise else ""
        return f"{self.dataset} {self.train_size}{noise}, {'-'.join(map(str, self.widths))}, seed {self.seed}"


def load(task: Task, device: str | torch.device = "cpu") -> Data:
    """The task's data: deterministic, standardized per feature with the training part's mean and deviation.

    Raises:
        ValueError: more training examples than there are, or a dataset that is not as `Dataset` says.
    """
    inputs, targets, test, validation = _checked(task.dataset, DATASETS[task.dataset]())
    most = len(inputs) - test - validation
    if not 1 <= task.train_size <= most:
        raise ValueError(f"{task.dataset} has 1 to {most} training examples; got train_size={task.train_size}")
    order = torch.randperm(len(inputs), generator=generator("split", task.dataset, task.seed))
    parts = order[:test], order[test : test + validation], order[test + validation :][: task.train_size]
    mean, deviation = inputs[parts[2]].mean(0), inputs[parts[2]].std(0, correction=0)
    deviation[deviation == 0] = 1.0  # a pixel that never changes stays at zero
    splits = [Split(((inputs[p] - mean) / deviation).float().to(device), targets[p].to(device)) for p in parts]
    test_split, *seen = splits
    classes = int(targets.max()) + 1
    validation_split, training_split = (
        Split(s.inputs, _flip(s.targets, classes, task, name))
        for s, name in zip(seen, ("validation", "train"), strict=True)
    )
    return Data(training_split, validation_split, test_split)


def fingerprint(data: Data) -> str:
    """A hash of all examples: data of the same name that differ are told apart."""
    digest = hashlib.sha256()
    for part in data:
        for tensor in part:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _checked(name: str, dataset: Dataset) -> Dataset:
    inputs, targets, test, validation = dataset
    if inputs.dim() < 2 or targets.shape != inputs.shape[:1]:
        shapes = f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}"
        raise ValueError(f"dataset {name!r} needs inputs (n, features) and targets (n,); got {shapes}")
    if targets.dtype != torch.int64 or targets.min() < 0 or targets.max() < 1:
        raise ValueError(f"targets of {name!r} must be int64 classes 0, 1, …; got {described(targets)}")
    if not inputs.isfinite().all():
        raise ValueError(f"inputs of {name!r} must be finite; got {int((~inputs.isfinite()).sum())} that are not")
    if test < 1 or validation < 1:
        raise ValueError(f"{name!r} needs test and validation examples; got test={test}, validation={validation}")
    return dataset


def _flip(targets: Tensor, classes: int, task: Task, part: str) -> Tensor:
    stream = generator("label noise", task.dataset, task.seed, part)
    flipped = torch.rand(len(targets), generator=stream) < task.label_noise
    shift = torch.randint(1, classes, (len(targets),), generator=stream)
    return torch.where(flipped.to(targets.device), (targets + shift.to(targets.device)) % classes, targets)


@cache
def _digits() -> Dataset:
    """1,797 scans of handwritten digits, 8 × 8 pixels (Alpaydin & Kaynak 1998, shipped with scikit-learn)."""
    with needed("study"):
        from sklearn.datasets import load_digits

    scans = load_digits()
    return Dataset(torch.tensor(scans.data), torch.tensor(scans.target), DIGITS_TEST, DIGITS_VALIDATION)


def pixel_tokens(count: int, seed: int = 0) -> Split:
    """Digits as sentences for a language model: 63 pixels (0 to 16), row by row, and for each the one that follows.

    Inputs and targets are (count, 63) int64.
    """
    scans = _digits()[0].long()
    some = scans[torch.randperm(len(scans), generator=generator("sentences", seed))[:count]]
    return Split(some[:, :-1], some[:, 1:])


@cache
def _mnist1d() -> Dataset:
    """MNIST-1D by its authors' generator (Greydanus & Kobak 2020, arXiv 2011.14439), 40 numbers an example."""
    with needed("study"):
        from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = MNIST1D_TEST + MNIST1D_VALIDATION + MNIST1D_TRAIN
    arguments.train_split = 1.0
    with _global_random_state_kept():
        made = make_dataset(arguments)
    return Dataset(torch.tensor(made["x"]), torch.tensor(made["y"]), MNIST1D_TEST, MNIST1D_VALIDATION)


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


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits, "mnist1d": _mnist1d}
