"""A training loop of the user's own: how it is called, and what it must give back."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from mmstudy.core import arguments

# (network, state of its optimizer, None at first, steps, seed) → the network, its minibatch losses and, to be handed
# back at the next call, the state: tensors, numbers and strings in lists, tuples and dicts.
Loop = Callable[[nn.Module, Any, int, int], tuple]


def called(train: Loop, network: nn.Module, state: Any, steps: int, seed: int) -> tuple[nn.Module, list[float], Any]:
    """The network after so many steps more, the loss of each, and the state to be handed back.

    Raises:
        ValueError: the loop returns something else than it should.
    """
    shapes, form = _shapes(network), _form(network)
    found = train(network, state, steps, seed)
    if not isinstance(found, tuple) or len(found) not in (2, 3) or not isinstance(found[0], nn.Module):
        wanted = "(network, losses) or (network, losses, optimizer_state)"
        raise ValueError(f"train must return {wanted}; got {arguments.described(found)}")
    if _shapes(found[0]) != shapes:
        raise ValueError(f"train must return the network that it was given; got another, {type(found[0]).__name__}")
    if changed := [name for name, value in _form(found[0]).items() if form[name] != value]:
        was, now = (each[changed[0]] for each in (form, _form(found[0])))
        raise ValueError(f"train must return the network in its type and place: {changed[0]} was {was}, and is {now}")
    try:
        losses = [loss.item() if isinstance(loss, Tensor) else float(loss) for loss in found[1]]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"train must return a number for each step; got {arguments.described(found[1])}") from error
    if len(losses) != steps:
        raise ValueError(f"train was asked for {steps} steps and returned {len(losses)} losses: one for each step")
    after = found[2] if len(found) == 3 else None
    _storable(after)
    return found[0], losses, after


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def _form(network: nn.Module) -> dict[str, str]:
    """Type and device of each tensor."""
    return {name: f"{value.dtype} on {value.device}" for name, value in network.state_dict().items()}


def _storable(state: Any) -> None:
    """Refuse a state that could be written, but not read again.

    Raises:
        ValueError: something in it is no tensor and no plain value.
    """
    for place, part in tree_flatten_with_path(state)[0]:
        if type(part) in (Tensor, nn.Parameter):
            continue  # these can be read, however large
        kept = io.BytesIO()
        try:
            torch.save(part, kept)
            torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
        except Exception as error:  # pickle and torch each raise their own
            where = f" at {keystr(place)}" if place else ""
            wanted = "tensors and plain values (numbers, texts, in lists, tuples and dicts)"
            raise ValueError(
                f"train must hand back {wanted} as its state; got {arguments.described(part)}, of type "
                f"{type(part).__name__},{where}"
            ) from error
