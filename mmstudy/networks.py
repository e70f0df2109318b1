"""The networks of the study: plain modules that read like a textbook."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class MLP(nn.Module):
    """A multilayer perceptron with a width per hidden layer: x → relu(W₁x + b₁) → … → Wx + b."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int):
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"an MLP needs at least one hidden layer, each of width ≥ 1; got widths={tuple(widths)}")
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([inputs, *widths]))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


def initialize(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every parameter anew from U(−1/√fan_in, 1/√fan_in), in place; returns the network.

    PyTorch's own default for linear layers, but from a generator of ours, so that a seed names a network.
    """
    bound = 1.0
    for _, parameter in network.named_parameters():  # a layer's bias follows its weight and shares its bound
        if parameter.ndim > 1:
            bound = parameter[0].numel() ** -0.5
        draw = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_((2 * draw - 1) * bound)
    return network


def count_parameters(network: nn.Module) -> int:
    """The number of trainable scalars; a tied tensor counts once."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_flops(network: nn.Module, example: Float[Tensor, "1 ..."]) -> int:
    """Floating-point operations of one forward pass on one example (a multiply-add counts as two)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    return counter.get_total_flops()
