"""What the face asks of networks and a batch before any work: are they fit for each other?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification, measuring
from mmstudy.core import arguments


def fit(networks: Any, batch: Any, loss_fn: Any) -> tuple[list[nn.Module], Batch, list[float]]:
    """Networks as a list, the batch, and each network's loss on it, once all are known to be fit for each other.

    Raises:
        TypeError: one of them is of another kind.
        ValueError: what `arguments`, `classes` and `tried` refuse.
    """
    networks, batch = arguments.networks(networks), arguments.batch(batch)
    loss_fn = arguments.function(loss_fn)
    for each in networks if loss_fn is classification else ():
        classes(each, batch)
    return networks, batch, tried(networks, batch, loss_fn)


def tried(networks: Sequence[nn.Module], batch: Batch, loss_fn: LossFn, normalization: str = "frozen") -> list[float]:
    """The loss of each network on the batch, once every problem that one call shows is ruled out.

    Raises:
        ValueError: targets that the loss would misread, a call that fails, or a loss that is no finite number.
    """
    found = []
    for network in networks:
        quiet = torch.random.fork_rng(devices=[])
        with arguments.explained(batch), torch.no_grad(), quiet, measuring(network, normalization):
            loss = loss_fn(network, batch)
        if not isinstance(loss, Tensor) or loss.ndim or loss.is_complex() or not loss.is_floating_point():
            raise ValueError(f"the loss must be one number, the mean over examples; got {arguments.described(loss)}")
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of {type(network).__name__} on this batch is {loss.item()}: look at its weights"
            )
        found.append(loss.item())
    return found


def classes(network: nn.Module, batch: Batch) -> None:
    """Refuse what the default loss, a classifier's on (inputs, targets), would misread or fail on.

    Raises:
        TypeError: the batch is no pair.
        ValueError: outputs that are no classes, or targets that are no class numbers of their shape and range.
    """
    if not isinstance(batch, tuple) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        wanted = "(inputs, targets); for any other batch pass loss_fn(model, batch)"
        raise TypeError(f"the default loss, cross-entropy, takes {wanted}. Got {arguments.described(batch)}")
    inputs, targets = batch
    with arguments.explained(batch), torch.no_grad(), torch.random.fork_rng(devices=[]), measuring(network):
        outputs = network(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(f"the default loss takes outputs (batch, classes); got {arguments.described(outputs)}")
    found, count = arguments.described(targets), outputs.shape[-1]
    if targets.dtype != torch.long:
        raise ValueError(f"targets must be class numbers, int64; got {found}: call .long(), or pass a loss_fn")
    if targets.shape != outputs.shape[:-1]:
        raise ValueError(f"targets must have the shape {tuple(outputs.shape[:-1])}; got {found}")
    if int(targets.min()) < 0 or int(targets.max()) >= count:
        raise ValueError(f"targets must lie in 0 … {count - 1}, as the network has {count} outputs; got {found}")
