"""The networks, operators and places that every test of expansion runs through."""

import torch
from torch import nn

from mmstudy.expand import DEEPER, WIDER, Candidate
from mmstudy.networks import MLP, initialize
from mmstudy.seeds import generator

INPUTS, CLASSES = 7, 4
WIDTHS = {"one hidden layer": (5,), "two": (6, 4), "three": (4, 8, 3)}
CANDIDATES = [
    Candidate(operator, where, amount, seed=3)
    for where in (("hidden.0",), ("hidden.1",), ("hidden.0", "hidden.1"))
    for operator, amount in [*((o, 1.5) for o in WIDER), *((o, 4) for o in WIDER), *((o, 1) for o in DEEPER)]
] + [Candidate(operator, ("hidden.1",), 2) for operator in DEEPER]


def mlp(widths=(6, 4), seed=0, dtype=torch.float32) -> MLP:
    """A small network with nothing special about its weights."""
    return initialize(MLP(INPUTS, widths, CLASSES).to(dtype), generator("case", seed))


def batch(count=32, seed=0, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs (count, INPUTS) and targets (count,)."""
    stream = generator("batch", seed)
    inputs = torch.randn(count, INPUTS, generator=stream, dtype=dtype)
    return inputs, torch.randint(CLASSES, (count,), generator=stream)


def convolutional(seed=0) -> nn.Module:
    """A network that is no MLP: convolution, normalization with running statistics, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, INPUTS)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(15, CLASSES),
    )  # fmt: skip
