"""What an expansion is held against: networks of its shape that know nothing, or only little, of the base network."""

import copy

import torch
from torch import nn

from mmstudy.core import networks


def from_scratch(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """A network of the same shape with all weights drawn anew, as a new network of its class has them.

    Weights and biases are drawn by `networks.initialize`. Modules without a matrix, such as normalizations, are reset:
    scale 1, shift 0, running mean 0, running variance 1. What is tied stays tied. The argument is left as it is.

    Raises:
        ValueError: a module that has parameters, but neither a matrix nor a `reset_parameters`.
    """
    fresh = copy.deepcopy(network)
    for name, module in fresh.named_modules():
        own = list(module.parameters(recurse=False))
        if own and own[0].ndim > 1:
            continue  # `initialize` draws it
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif own:
            raise ValueError(
                f"how {name!r}, a {type(module).__name__}, starts is not known: give it reset_parameters()"
            )
    return networks.initialize(fresh, generator)


def shrink_perturb(
    network: nn.Module, generator: torch.Generator, shrink: float = 0.4, noise: float = 0.1
) -> nn.Module:
    """A network between the given one and one from scratch: θ ← shrink · θ + noise · θ′, with θ′ of `from_scratch`.

    A start that trains as fast as the old weights and generalizes as well as new ones (Ash & Adams 2020, arXiv
    1910.08475). The default values are those in the README of the authors' code. Running statistics stay as they are,
    and so does the argument.

    Args:
        shrink: 1 keeps the weights, 0 forgets them.
        noise: the weight of the new network; with shrink=0 and noise=1 it is the result.
    """
    changed, fresh = copy.deepcopy(network), from_scratch(network, generator)
    with torch.no_grad():
        for parameter, new in zip(changed.parameters(), fresh.parameters(), strict=True):
            parameter.mul_(shrink).add_(new, alpha=noise)
    return changed
