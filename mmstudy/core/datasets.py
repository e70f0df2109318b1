"""The datasets of the study: found in packages or drawn from a fixed random stream; some images come from OpenML.

Only those are downloaded, and only when they are asked for (`openml`).

A dataset of your own is entered from outside: `DATASETS["mine"] = lambda: Dataset(inputs, targets, 1000, 300)`.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmstudy.core import openml
from mmstudy.core.extras import needed
from mmstudy.core.seeds import generator

DIGITS_TEST, DIGITS_VALIDATION = 1000, 297  # of 1,797 scans; the rest may be trained on
MADE_TEST, MADE_VALIDATION, MADE_TRAIN = 20_000, 2_000, 4_000  # examples of a dataset that is made, not found
MADE = MADE_TEST + MADE_VALIDATION + MADE_TRAIN
ARMS, TURNS, ANGLE_NOISE = 5, 1.5, 0.25  # of the spiral; the noise in radians
TEACHER_SHAPE, TEACHER_GAIN, TEACHER_BAYES = (20, 32, 10), 2.0, 0.75  # …; of weights; best accuracy possible
TEXT = Path(torch.__file__).with_name("_torch_docs.py")  # the docstrings of torch, as a text
ALPHABET = "\nabcdefghijklmnopqrstuvwxyz0123456789 ,.:`()>\"_[]-={}*\\'+/#<"  # and a token for all the rest
TEXT_WINDOW = 33  # characters: 32 inputs, and for each the one that follows
TEXT_TEST, TEXT_VALIDATION = 3000, 500  # windows, of some 13,000


class Split(NamedTuple):
    """Examples: inputs (n, features) float32 and targets (n,) int64; of a text, tokens and the next ones, (n, T)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Data:
    """The three disjoint parts of a task, and what an example is. Test data never touch a predictor.

    To go through it is to go through the parts.
    """

    training: Split
    validation: Split
    test: Split
    image: tuple[int, int, int] | None = None  # (channels, height, width) that a row of inputs holds
    vocabulary: int | None = None  # how many tokens there are, if inputs are tokens
    augmented: bool = False  # whether training may see the images shifted and mirrored

    def __iter__(self) -> Iterator[Split]:
        return iter((self.training, self.validation, self.test))

    def to(self, device: str | torch.device) -> "Data":
        """The same data on a device."""
        training, validation, test = (Split(part.inputs.to(device), part.targets.to(device)) for part in self)
        return replace(self, training=training, validation=validation, test=test)


class Dataset(NamedTuple):
    """All examples of a dataset, and how many are kept for the test and validation parts.

    Inputs are (n, features), numbers; targets (n,), int64, are classes counted from 0. `image` is the shape (channels,
    height, width) of the image or signal that a row of features holds, for networks that look at neighbours. Its pixels
    may be bytes (uint8). It is `augmented` if training may see it shifted and mirrored.

    With a `vocabulary` V, an example is a sentence: inputs and targets (n, T) are int64 tokens from 0 to V − 1.
    """

    inputs: Tensor
    targets: Tensor
    test: int
    validation: int
    image: tuple[int, int, int] | None = None
    vocabulary: int | None = None
    augmented: bool = False


@cache
def _digits() -> Dataset:
    """1,797 scans of handwritten digits, 8 × 8 pixels (Alpaydin & Kaynak 1998, shipped with scikit-learn)."""
    with needed("study"):
        from sklearn.datasets import load_digits

    scans = load_digits()
    return Dataset(torch.tensor(scans.data), torch.tensor(scans.target), DIGITS_TEST, DIGITS_VALIDATION, (1, 8, 8))


def pixel_tokens(count: int, seed: int = 0) -> Split:
    """Digits as sentences for a language model: 63 pixels (0 to 16), row by row, and for each the one that follows.

    Inputs and targets are (count, 63) int64.
    """
    scans = _digits().inputs.long()
    some = scans[torch.randperm(len(scans), generator=generator("sentences", seed))[:count]]
    return Split(some[:, :-1], some[:, 1:])


@cache
def _mnist1d() -> Dataset:
    """MNIST-1D by its authors' generator (Greydanus & Kobak 2020, arXiv 2011.14439), 40 numbers an example."""
    with needed("study"):
        from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = MADE
    arguments.train_split = 1.0
    with _global_random_state_kept():
        made = make_dataset(arguments)
    return Dataset(torch.tensor(made["x"]), torch.tensor(made["y"]), MADE_TEST, MADE_VALIDATION, (1, 1, 40))


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


@cache
def _permuted_mnist1d() -> Dataset:
    """MNIST-1D with its 40 positions in another order, the same for all examples: neighbours say nothing any more."""
    plain = _mnist1d()
    order = torch.randperm(plain.inputs.shape[1], generator=generator("permutation", "permuted_mnist1d"))
    return plain._replace(inputs=plain.inputs[:, order])


@cache
def _spiral() -> Dataset:
    """Points of a spiral in the plane; the class is the arm (the task is that of Lang & Witbrock 1988, with five arms).

    An arm makes one and a half turns as its radius grows from 0 to 1. The angle of a point is off by Gaussian noise of
    0.25 radian, so that the best possible accuracy, that of the nearest arm by angle, is 98.8%
    (`spiral_bayes_accuracy`).
    """
    stream = generator("dataset", "spiral")
    targets = torch.arange(MADE) % ARMS
    radius = torch.rand(MADE, generator=stream, dtype=torch.float64).sqrt()  # evenly over the disc
    noise = ANGLE_NOISE * torch.randn(MADE, generator=stream, dtype=torch.float64)
    angle = 2 * math.pi * (targets / ARMS + TURNS * radius) + noise
    inputs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return Dataset(inputs, targets, MADE_TEST, MADE_VALIDATION)


def spiral_bayes_accuracy() -> float:
    """P(|noise − 2πk| < π / 5 for some whole k): the noise of the angle leaves a point nearest to its own arm."""
    half = math.pi / ARMS

    def below(angle: float) -> float:
        return 0.5 * (1 + math.erf(angle / (ANGLE_NOISE * math.sqrt(2))))

    return sum(below(2 * math.pi * k + half) - below(2 * math.pi * k - half) for k in range(-3, 4))


@cache
def _teacher() -> Dataset:
    """Gaussian inputs, and labels drawn from the softmax of a fixed random network: 20 → 32 tanh → 10 classes.

    The best possible accuracy is 75%: see `teacher_probabilities`.
    """
    stream = generator("dataset", "teacher")
    inputs = torch.randn(MADE, TEACHER_SHAPE[0], generator=stream, dtype=torch.float64)
    targets = torch.multinomial(teacher_probabilities(inputs), 1, generator=stream).squeeze(1)
    return Dataset(inputs, targets, MADE_TEST, MADE_VALIDATION)


def teacher_probabilities(inputs: Tensor) -> Tensor:
    """The teacher's probability of every class, (n, 10), at the temperature where the best accuracy is 75%.

    The best a classifier can do is to name the likeliest class: its accuracy is the mean of the largest probability.
    It falls as the temperature rises, and the temperature at which its mean over the inputs is 0.75 is bisected.
    """
    stream = generator("teacher network")
    first, second = (
        torch.randn(a, b, generator=stream, dtype=torch.float64) / a**0.5 for a, b in pairwise(TEACHER_SHAPE)
    )
    logits = (TEACHER_GAIN * inputs.double() @ first).tanh() @ second
    low, high = 1e-3, 1e3
    for _ in range(60):
        temperature = (low * high) ** 0.5
        best = (logits / temperature).softmax(1).amax(1).mean()
        low, high = (temperature, high) if best > TEACHER_BAYES else (low, temperature)
    return (logits / temperature).softmax(1)


@cache
def _text() -> Dataset:
    """Windows of 33 characters of the docstrings of torch, a file that comes with it: 32, and for each the next one.

    Lower-case, 61 tokens. Windows don't overlap, and of equal ones only one is kept, so that no window is in two
    parts. The parts are drawn over windows, not over blocks of the document: then they have one distribution, as those
    of the other datasets have, and a gain is not one from a chapter to another. The text is that of the torch which is
    installed: another version is another dataset.

    Raises:
        FileNotFoundError: torch came without the file.
    """
    if not TEXT.exists():
        raise FileNotFoundError(f"the dataset 'text' is read from {TEXT.name}, which this torch lacks: {TEXT}")
    known = {character: token for token, character in enumerate(ALPHABET)}
    text = TEXT.read_text(encoding="utf-8").lower()
    tokens = torch.tensor([known.get(character, len(ALPHABET)) for character in text])
    windows = tokens[: len(tokens) // TEXT_WINDOW * TEXT_WINDOW].view(-1, TEXT_WINDOW).unique(dim=0)
    return Dataset(windows[:, :-1], windows[:, 1:], TEXT_TEST, TEXT_VALIDATION, vocabulary=len(ALPHABET) + 1)


@cache
def _images(name: str) -> Dataset:
    """Images of OpenML: a sixth of them for the test, a twelfth for validation, drawn anew for each task."""
    inputs, targets = openml.load(name)
    many, source = len(inputs), openml.SOURCES[name]
    return Dataset(inputs, targets, many // 6, many // 12, source.image, augmented=source.augmented)


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "mnist1d": _mnist1d,
    "permuted_mnist1d": _permuted_mnist1d,
    "spiral": _spiral,
    "teacher": _teacher,
    "text": _text,
    **{name: partial(_images, name) for name in openml.SOURCES},
}
