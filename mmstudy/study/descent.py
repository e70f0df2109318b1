"""Double descent with width: the test error of perceptrons of many widths, and what expanding each of them gains.

Networks of all widths are trained as one batch. A narrow one is a wide one whose further units have no weights:
these get no gradient, as nothing comes in and nothing is read, and stay without weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring
from mmstudy.core import networks, tasks
from mmstudy.core.networks import MLP
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.study.growing import trained
from mmstudy.study.protocol import Protocol
from mmstudy.tracing.couplings import couplings

FITTED = 1.0  # percent of the training examples that a network which interpolates may get wrong


def padded(network: nn.Module, width: int) -> MLP:
    """The same function as a perceptron with so many units in every hidden layer, the new ones without weights."""
    layers = _layers(network)
    wide = MLP(layers[0].in_features, [width] * (len(layers) - 1), layers[-1].out_features)
    for old, new in zip(layers, _layers(wide), strict=True):
        rows, columns = old.weight.shape
        nn.init.zeros_(new.weight)
        nn.init.zeros_(new.bias)
        with torch.no_grad():
            new.weight[:rows, :columns] = old.weight
            new.bias[:rows] = old.bias
    return wide


def unpadded(network: nn.Module, width: int) -> MLP:
    """What `padded` came from, of so many units in every hidden layer.

    Raises:
        ValueError: a unit beyond them has a weight.
    """
    layers = _layers(network)
    small = MLP(layers[0].in_features, [width] * (len(layers) - 1), layers[-1].out_features)
    for old, new in zip(_layers(small), layers, strict=True):
        rows, columns = old.weight.shape
        if any(rest.any() for rest in (new.weight[rows:], new.weight[:, columns:], new.bias[rows:])):
            raise ValueError(f"the network is no padded one of width {width}: a unit beyond has weights")
        with torch.no_grad():
            old.weight.copy_(new.weight[:rows, :columns])
            old.bias.copy_(new.bias[:rows])
    return small


def _layers(network: nn.Module) -> list[nn.Linear]:
    """The layers of a perceptron, the head last."""
    assert isinstance(network, MLP)
    return [*network.hidden, network.head]


def descent(
    task: Task, protocol: Protocol, widths: Sequence[int], factor: int, operators: Sequence[str], seeds: int
) -> xr.Dataset:
    """Perceptrons of many widths trained from scratch, then trained on, or expanded in all hidden layers and trained.

    Returns over (width, seed) `train_error` and `test_error` from scratch, in percent, and `train_loss`, in nats; over
    (operator, width, seed) `gain`, the points of test accuracy that the expansion is ahead of the network trained on,
    NaN where it would be wider than all others; over width the number of `parameters`.

    Raises:
        ValueError: a task whose networks are no perceptrons.
    """
    if task.family != "MLP":
        raise ValueError(f"double descent is looked for in perceptrons, and {task} is a {task.family}")
    data, most, depth = tasks.load(task), max(widths), len(task.widths)
    features, classes = data.training.inputs.shape[1], int(data.training.targets.max()) + 1
    ways = [(width, seed) for width in widths for seed in range(seeds)]
    fresh = [
        networks.initialize(MLP(features, [width] * depth, classes), generator("descent", task, width, seed))
        for width, seed in ways
    ]
    whose = [seed for _, seed in ways]
    scratch = _trained(task, data, [padded(one, most) for one in fresh], whose, protocol, "descent")
    small = [unpadded(one, width) for one, (width, _) in zip(scratch.members(), ways, strict=True)]
    places = tuple(couplings(fresh[0], data.training.inputs))
    growing = [(i, width, seed) for i, (width, seed) in enumerate(ways) if factor * width <= most]
    starts = [small[i] for i, _, _ in growing] + [
        Candidate(operator, places, (factor * width,) * depth, seed).expand(small[i], data.training)
        for operator in operators
        for i, width, seed in growing
    ]
    whose = [seed for _ in range(1 + len(operators)) for _, _, seed in growing]
    ended = _trained(task, data, [padded(one, most) for one in starts], whose, protocol, "descent, grown")
    found = _errors(ended, data)["test_error"].reshape(1 + len(operators), -1, seeds)
    gain = np.full((len(operators), len(widths), seeds), np.nan)
    gain[:, [i for i, width in enumerate(widths) if factor * width <= most]] = found[0] - found[1:]
    table = {name: (("width", "seed"), each.reshape(-1, seeds)) for name, each in _errors(scratch, data).items()}
    gains = {"gain": (("operator", "width", "seed"), gain)}
    sizes = {"parameters": ("width", [networks.count_parameters(one) for one in fresh[::seeds]])}
    return xr.Dataset(table | gains | sizes, {"width": list(widths), "operator": list(operators), "seed": range(seeds)})


def _trained(
    task: Task, data: Data, starts: Sequence[MLP], seeds: Sequence[int], protocol: Protocol, name: str
) -> en.Ensemble:
    """The networks of these seeds, trained in full; those of one seed see the same minibatches."""
    return trained(task, data, en.stack(starts), protocol, protocol.steps, name, seeds)[protocol.steps][0]


def _errors(ended: en.Ensemble, data: Data) -> dict[str, np.ndarray]:
    """Errors in percent and the training loss; NaN of what has diverged."""
    train, test = (scoring.evaluate(ended, part) for part in (data.training, data.test))
    whole = en.vectors(ended).isfinite().all(1)
    found = {"train_error": 100 * (1 - train["accuracy"]), "test_error": 100 * (1 - test["accuracy"])}
    found["train_loss"] = train["nll"]
    return {name: each.where(whole, torch.nan).numpy() for name, each in found.items()}


def threshold(train_error: xr.DataArray) -> float:
    """The smallest width from which on the mean training error stays at `FITTED` or below; NaN if there is none.

    Args:
        train_error: over (width, seed), the widths rising.
    """
    fits = (train_error.mean("seed") <= FITTED).values
    beyond = np.logical_and.accumulate(fits[::-1])[::-1]
    return float(train_error["width"].values[beyond][0]) if beyond.any() else np.nan
