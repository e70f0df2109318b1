"""What is drawn for a task, the same for all its candidates: minibatch orders, and the examples that rays look at."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from mmstudy.batched import training
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Split, Task
from mmstudy.study.protocol import Protocol


def minibatch_order(
    task: Task, data: Data, protocol: Protocol, names: Iterable[object], steps: int
) -> Int[Tensor, "names steps batch"]:
    """Minibatch orders, one for each name."""
    generators = [generator("minibatches", task, name) for name in names]
    return training.minibatches(generators, len(data.training.inputs), steps, protocol.batch)


def probe_split(task: Task, data: Data, protocol: Protocol) -> Split:
    """The training examples that rays look at: `probe_examples` of them, or all there are."""
    inputs, targets = data.training
    some = torch.randperm(len(inputs), generator=generator("probe examples", task))[: protocol.probe_examples]
    return Split(inputs[some], targets[some])
