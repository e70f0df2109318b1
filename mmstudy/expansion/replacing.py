"""A network is copied and its tensors replaced: hooks, attributes and the order in memory stay as they were.

A copy shares the parameters that stay until it is to be kept: so what is only tried takes little memory.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmstudy.core import arguments
from mmstudy.expansion.reading import Read

Network = TypeVar("Network", bound=nn.Module)
Thing = TypeVar("Thing", bound=Tensor | nn.Module)


def sharing(network: Network, pairs: dict[int, Any] | None = None) -> Network:
    """A copy of the network with the same parameters, none of which may be changed in place; buffers are its own.

    Args:
        pairs: takes in the number (`id`) of each thing in the network → what stands for it in the copy.

    Raises:
        ValueError: it cannot be copied.
    """
    pairs = {} if pairs is None else pairs
    pairs |= _themselves(network.parameters())
    return _copied(network, pairs)


def common(network: nn.Module, member: nn.Module, pairs: dict[int, Any]) -> dict[int, Any]:
    """Those of the pairs that `sharing` takes in whose first is no part of this member alone.

    Modules that are registered in the member alone are its own, with their tensors, whoever else knows of them; what
    else it holds is its own if it is found there alone.
    """
    around, waiting = dict[nn.Module, None](), [network]
    while waiting:
        module = waiting.pop()
        if module is not member and module not in around:
            around[module] = None
            waiting += module.children()
    own = [module for module in member.modules() if module not in around]
    closed: dict[int, Tensor | nn.Module] = _themselves([*own, *network.parameters(), *network.buffers()])
    met = dict(closed)
    copy.deepcopy(network, met)  # what is copied, in which nobody enters the member, is found outside
    tensors = [t for module in around for t in (*module._parameters.values(), *module._buffers.values())]
    outside = (met.keys() - closed.keys()) | {id(tensor) for tensor in tensors}
    return {key: pairs[key] for key in outside if key in pairs}


def parted(network: Network, old: nn.Module) -> Network:
    """A copy that shares no parameter with the old network, but those that are new with the network itself.

    Parameters keep their hooks and attributes, which a deep copy drops.
    """
    theirs = {id(parameter) for parameter in old.parameters()}
    new = _copied(network, _themselves(p for p in network.parameters() if id(p) not in theirs))
    for before, now in zip(network.parameters(), new.parameters(), strict=True):
        if now is not before:
            _keep(before, now)
    return new


def _copied(network: Network, known: dict[int, Any]) -> Network:
    """A deep copy, in which what is known already stands for some things of the network.

    Raises:
        ValueError: something that the network keeps cannot be copied; the message names it.
    """
    try:
        return copy.deepcopy(network, known)
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
                copy.deepcopy(value, _themselves(network.modules()))
            except Exception:  # as above
                names = list(value) if isinstance(value, dict) and key.startswith("_") and value else [key]
                yield f"{path}.{' or '.join(map(str, names))}".lstrip(".")


def _themselves(things: Iterable[Thing]) -> dict[int, Thing]:
    """What a deep copy has to know to take things as they are."""
    return {id(thing): thing for thing in things}


def _keep(old: Tensor, new: Tensor) -> None:
    """Let a tensor have the attributes and, if it is trained, the gradient hooks of another one."""
    vars(new).update(vars(old))
    if new.requires_grad:
        for hook in (old._backward_hooks or {}).values():
            new.register_hook(hook)
        for hook in (old._post_accumulate_grad_hooks or {}).values():
            new.register_post_accumulate_grad_hook(hook)


def put(network: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, wherever it is used; it is stored in the same order.

    A parameter of a class of its own stays one.
    """
    path, _, leaf = name.rpartition(".")
    old = getattr(network.get_submodule(path), leaf)
    if old.ndim == tensor.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor if old.is_contiguous() else tensor.contiguous(memory_format=torch.channels_last)
    new = tensor
    if isinstance(old, nn.Parameter) and not isinstance(tensor, Read):
        kind = type(old) if issubclass(type(old), nn.Parameter) else nn.Parameter
        new = Tensor._make_subclass(kind, tensor, old.requires_grad)  # as `nn.Parameter` makes itself
    _keep(old, new)
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for key, value in own.items():
                if value is old:
                    own[key] = new  # type: ignore[assignment]  # a parameter for a parameter
