"""Hooks on gradients: networks that run as one, on copies of their numbers, would run none of them."""

from collections.abc import Callable, Sequence
from itertools import chain

from torch import nn


def on_gradients(network: nn.Module) -> list[tuple[str, Callable]]:
    """The hooks that see or change gradients of a network, each with where it is; those of frozen parameters rest."""
    found: list[tuple[str, Callable]] = []
    for name, own in network.named_parameters():
        if own.requires_grad:
            kept = (own._backward_hooks, own._post_accumulate_grad_hooks)
            found += [
                (f"{name} has a gradient hook", hook) for hook in chain(*(hooks.values() for hooks in kept if hooks))
            ]
    for name, module in network.named_modules():
        place = f"{name or 'the network itself'} ({type(module).__name__}) has a backward hook"
        found += [(place, hook) for hook in chain(module._backward_hooks.values(), module._backward_pre_hooks.values())]
    return found


def first(networks: Sequence[nn.Module]) -> nn.Module:
    """The network that gives an ensemble its forward pass: one with hooks on gradients, if there is any."""
    return next(filter(on_gradients, networks), networks[0])


def refuse(network: nn.Module) -> None:
    """Refuse a network whose gradients, taken on copies of its numbers, would not be those that its hooks make.

    Raises:
        ValueError: it has such a hook.
    """
    if found := on_gradients(network):
        raise ValueError(
            f"{found[0][0]}, which would not run: training and gradients take copies of the parameters. Remove the "
            "hook; freeze a parameter with requires_grad_(False), mask one inside its module (torch.nn.utils."
            "parametrize), or take a size that needs no gradients, such as rays"
        )
