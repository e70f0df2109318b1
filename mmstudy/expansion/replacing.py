"""A network is copied and its tensors replaced: hooks, attributes and the order in memory stay as they were.

A copy shares the parameters that stay until it is to be kept: so what is only tried takes little memory.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmstudy.core import arguments

Network = TypeVar("Network", bound=nn.Module)


def sharing(network: Network) -> Network:
    """A copy of the network with the same parameters, none of which may be changed in place; buffers are its own.

    Raises:
        ValueError: it cannot be copied.
    """
    return _copied(network, network.parameters())


def parted(network: Network, old: nn.Module) -> Network:
    """A copy that shares no parameter with the old network, but those that are new with the network itself.

    Parameters keep their hooks and attributes, which a deep copy drops.
    """
    theirs = {id(parameter) for parameter in old.parameters()}
    new = _copied(network, (p for p in network.parameters() if id(p) not in theirs))
    for before, now in zip(network.parameters(), new.parameters(), strict=True):
        if now is not before:
            _keep(before, now)
    return new


def _copied(network: Network, shared: Iterable[Tensor]) -> Network:
    """A deep copy that takes these tensors as they are.

    Raises:
        ValueError: something that the network keeps cannot be copied; the message names it.
    """
    try:
        return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})
    except Exception as error:  # whatever an object does that was not made to be copied
        where = ", ".join(_uncopied(network)) or "something that it keeps"
        raise ValueError(
            f"the network cannot be copied, as {where} cannot: {arguments.first_line(error)}. Take it out (after "
            "pruning: torch.nn.utils.prune.remove), or give it a __deepcopy__"
        ) from error


def _uncopied(network: nn.Module) -> Iterator[str]:
    """The attributes of modules of which there is no copy."""
    for path, module in network.named_modules():
        for key, value in vars(module).items():
            if key == "_modules":
                continue
            try:
                copy.deepcopy(value, {id(other): other for other in network.modules()})
            except Exception:  # as above
                names = list(value) if isinstance(value, dict) and key.startswith("_") and value else [key]
                yield f"{path}.{' or '.join(map(str, names))}".lstrip(".")


def _keep(old: Tensor, new: Tensor) -> None:
    """Let a tensor have the attributes and, if it is trained, the gradient hooks of another one."""
    vars(new).update(vars(old))
    if new.requires_grad:
        for hook in (old._backward_hooks or {}).values():
            new.register_hook(hook)
        for hook in (old._post_accumulate_grad_hooks or {}).values():
            new.register_post_accumulate_grad_hook(hook)


def put(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, wherever it is used; it is stored in the same order."""
    path, _, leaf = name.rpartition(".")
    old = getattr(network.get_submodule(path), leaf)
    if old.ndim == tensor.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor if old.is_contiguous() else tensor.contiguous(memory_format=torch.channels_last)
    new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    _keep(old, new)
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for key, value in own.items():
                if value is old:
                    own[key] = new  # type: ignore[assignment]  # a parameter for a parameter
