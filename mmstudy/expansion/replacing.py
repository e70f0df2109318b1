"""A network is copied and its tensors replaced: hooks, attributes and the order in memory stay as they were."""

import copy

import torch
from torch import Tensor, nn


def copied(network: nn.Module) -> nn.Module:
    """A copy of the network whose parameters keep their hooks and attributes, which a deep copy drops."""
    new = copy.deepcopy(network)
    for old, now in zip(network.parameters(), new.parameters(), strict=True):
        _keep(old, now)
    return new


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
