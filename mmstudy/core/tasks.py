"""Tasks: what is to be learnt and by which base network; the data of a task, and its base network before training."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmstudy.core import networks
from mmstudy.core.arguments import MOST_WHOLE, described, fits, number, one_of, whole
from mmstudy.core.datasets import DATASETS, Data, Dataset, Split
from mmstudy.core.families import FAMILIES
from mmstudy.core.results import checksum
from mmstudy.core.seeds import generator

MOST_WIDTH = 10**6


@dataclass(frozen=True)
class Task:
    """What is to be learnt and by which base network.

    `label_noise` is the share of training and validation labels that are replaced by another class (of a text: of
    single tokens to be predicted); test labels are always true. `train_size` examples are trained on.

    `widths` is the shape of the base network in its `family` (`families.FAMILIES`): "MLP", the widths of the hidden
    layers; "ResNet", the channels of each stage; "ViT" and "decoder", (width of the stream, heads, blocks).

    Raises:
        ValueError: a dataset that `DATASETS` doesn't know, a noise share outside [0, 1), an unknown family, a width
            out of range, or widths that are no shape of the family, or of a network that would not fit into memory.
        TypeError: widths that are no tuple of whole numbers, or another of the fields of another kind.
    """

    dataset: str
    widths: tuple[int, ...]
    train_size: int
    label_noise: float = 0.0
    seed: int = 0
    family: str = "MLP"

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str):
            raise TypeError(f"a dataset is named, as {next(iter(DATASETS))!r} is; got {described(self.dataset)}")
        if self.dataset not in DATASETS:
            own = f'enter your own as tasks.DATASETS["{self.dataset}"]'
            raise ValueError(f"unknown dataset {self.dataset!r}; known: {', '.join(DATASETS)}; {own}")
        whole(self.train_size, "the number of training examples", -MOST_WHOLE)
        whole(self.seed, "the seed of a task", -MOST_WHOLE)
        if not 0 <= number(self.label_noise, "label_noise") < 1:
            raise ValueError(f"label_noise is a share in [0, 1); got {self.label_noise}")
        if not isinstance(self.widths, tuple):
            raise TypeError(f"widths must be a tuple, such as (16, 16); got {self.widths!r}")
        for width in self.widths:
            whole(width, "a width", 1, MOST_WIDTH)
        fits(4 * sum(a * b for a, b in pairwise(self.widths)), f"a network of widths {self.widths}")
        family = FAMILIES[one_of(self.family, FAMILIES, "family")]
        if wrong := family.wrong(self.widths):
            raise ValueError(f"widths of a {self.family} are {family.shape}: {wrong}; got {self.widths}")

    def __str__(self) -> str:
        noise = f", {self.label_noise:.0%} flipped" if self.label_noise else ""
        family = "" if self.family == "MLP" else f"{self.family} "
        return f"{self.dataset} {self.train_size}{noise}, {family}{'-'.join(map(str, self.widths))}, seed {self.seed}"


def load(task: Task, device: str | torch.device = "cpu") -> Data:
    """The task's data, deterministic: three disjoint parts.

    Numbers are standardized per feature with the training part's mean and deviation, bytes per channel of the image
    that they are the pixels of; tokens stay what they are.

    Raises:
        ValueError: more training examples than there are, or a dataset that is not as `Dataset` says.
    """
    dataset = _checked(task.dataset, DATASETS[task.dataset]())
    inputs, targets, test, validation, image, vocabulary, augmented = dataset
    most = len(inputs) - test - validation
    if not 1 <= task.train_size <= most:
        raise ValueError(f"{task.dataset} has 1 to {most} training examples; got train_size={task.train_size}")
    order = torch.randperm(len(inputs), generator=generator("split", task.dataset, task.seed))
    parts = order[:test], order[test : test + validation], order[test + validation :][: task.train_size]
    if not vocabulary:
        inputs = _standardized(inputs, parts[2], image)
    test_split, *seen = (Split(inputs[p], targets[p]) for p in parts)
    classes = vocabulary or int(targets.max()) + 1
    validation_split, training_split = (
        Split(s.inputs, _flip(s.targets, classes, task, name))
        for s, name in zip(seen, ("validation", "train"), strict=True)
    )
    return Data(training_split, validation_split, test_split, image, vocabulary, augmented).to(device)


def base(task: Task, data: Data) -> nn.Module:
    """The task's base network before any training, on the device of the data.

    Raises:
        ValueError: the family doesn't fit the data: tokens, or images of unknown shape.
    """
    classes = max(int(part.targets.max()) for part in data) + 1  # a small training part may lack some
    network = FAMILIES[task.family].build(task.widths, classes, data)
    return networks.initialize(network, generator("initialize", task)).to(data.training.inputs.device)


def fingerprint(data: Data) -> str:
    """A hash of all examples: data of the same name that differ are told apart."""
    return checksum(tensor for part in data for tensor in part)[:16]


def _standardized(inputs: Tensor, training: Tensor, image: tuple[int, int, int] | None) -> Tensor:
    """Numbers on the scale that those with the indices `training` have, per feature; of pixels, per channel."""
    if inputs.dtype == torch.uint8 and image:
        pixels = inputs.unflatten(1, (image[0], -1)).float()  # (n, channels, pixels of a channel)
        deviation, mean = torch.std_mean(pixels[training], (0, 2), correction=0, keepdim=True)
        deviation[deviation == 0] = 1.0
        return pixels.sub_(mean).div_(deviation).flatten(1)
    mean, deviation = inputs[training].mean(0), inputs[training].std(0, correction=0)
    deviation[deviation == 0] = 1.0  # a pixel that never changes stays at zero
    return ((inputs - mean) / deviation).float()


def _checked(name: str, dataset: Dataset) -> Dataset:
    inputs, targets, test, validation, image, vocabulary, augmented = dataset
    wanted = "and targets (n, T), tokens" if vocabulary else "and targets (n,)"
    if inputs.dim() < 2 or targets.shape != (inputs.shape if vocabulary else inputs.shape[:1]):
        shapes = f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}"
        raise ValueError(
            f"dataset {name!r} needs inputs (n, {'T' if vocabulary else 'features'}) {wanted}; got {shapes}"
        )
    if targets.dtype != torch.int64 or targets.min() < 0 or targets.max() < 1:
        raise ValueError(f"targets of {name!r} must be int64 classes 0, 1, …; got {described(targets)}")
    if vocabulary:
        for tokens, what in ((inputs, "inputs"), (targets, "targets")):
            if tokens.dtype != torch.int64 or tokens.min() < 0 or tokens.max() >= vocabulary:
                raise ValueError(f"{what} of {name!r} must be int64 tokens below {vocabulary}; got {described(tokens)}")
    elif not inputs.is_floating_point() and not (inputs.dtype == torch.uint8 and image):
        kinds = "numbers such as float32, or pixels of an image (uint8)"
        raise ValueError(f"inputs of {name!r} must be {kinds}, or say a vocabulary; got {inputs.dtype}")
    if not inputs.isfinite().all():
        raise ValueError(f"inputs of {name!r} must be finite; got {int((~inputs.isfinite()).sum())} that are not")
    if image and inputs.shape[1:] != (math.prod(image),):
        raise ValueError(f"an image of {name!r} has {image} numbers, and a row of inputs {tuple(inputs.shape[1:])}")
    if augmented and not image:
        raise ValueError(f"{name!r} is augmented, shifted and mirrored: it must say the shape of its images")
    if test < 1 or validation < 1:
        raise ValueError(f"{name!r} needs test and validation examples; got test={test}, validation={validation}")
    return dataset


def _flip(targets: Tensor, classes: int, task: Task, part: str) -> Tensor:
    stream = generator("label noise", task.dataset, task.seed, part)
    flipped = torch.rand(targets.shape, generator=stream) < task.label_noise
    shift = torch.randint(1, classes, targets.shape, generator=stream)
    return torch.where(flipped.to(targets.device), (targets + shift.to(targets.device)) % classes, targets)
