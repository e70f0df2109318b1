"""What is drawn for a task, the same for all its candidates: minibatch orders, and examples that are looked at."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from mmstudy.batched import augmentation, engine, training
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Split, Task
from mmstudy.study.protocol import Protocol

SHOWN, FEWEST = 2**18, 256  # numbers in what operators are shown, where there are so many; but so many examples


def minibatch_order(
    task: Task, data: Data, protocol: Protocol, names: Iterable[object], steps: int
) -> Int[Tensor, "names steps batch"]:
    """Minibatch orders, one for each name; of variants of the images, if the task is augmented: for `take` of it."""
    some, examples = list(names), len(data.training.inputs)
    generators = [generator("minibatches", task, name) for name in some]
    order = training.minibatches(generators, examples, steps, protocol.batch)
    if not augmented(data, protocol):
        return order
    return augmentation.varied(order, examples, [generator("variants", task, name) for name in some])


def augmented(data: Data, protocol: Protocol) -> bool:
    """Whether training sees the images shifted and mirrored."""
    return protocol.augment and data.augmented


def take(data: Data, protocol: Protocol) -> augmentation.Take:
    """What makes a minibatch of a part of an order."""
    if data.image and augmented(data, protocol):
        return augmentation.take(data.image, data.training.inputs.device)
    return engine.take


def shown(data: Data) -> Split:
    """The training examples that networks are grown on, in one call: all, but of large images only the first ones."""
    inputs, targets = data.training
    some = max(FEWEST, SHOWN // inputs[0].numel())
    return Split(inputs[:some], targets[:some])


def probe_split(task: Task, data: Data, protocol: Protocol) -> Split:
    """The training examples that rays look at: `probe_examples` of them, or all there are."""
    inputs, targets = data.training
    some = torch.randperm(len(inputs), generator=generator("probe examples", task))[: protocol.probe_examples]
    return Split(inputs[some], targets[some])
