"""Random places of parameter space: where two ways to compute a loss are held against each other."""

from collections.abc import Mapping

import torch
from torch import Tensor


def moved(tensors: Mapping[str, Tensor], far: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of several networks (K, ...), each moved at random by a share of its root mean square.

    Args:
        far: by all of it, and zeros by as much as a new layer's weights may be; otherwise by a tenth, and zeros by
            little.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return {name: _moved(tensor, far) for name, tensor in tensors.items()}


def _moved(tensor: Tensor, far: bool) -> Tensor:
    if not tensor.numel():
        return tensor
    scale = tensor.square().mean().sqrt()
    if far:
        inputs = tensor[0, 0].numel() if tensor.ndim > 2 else 1  # of each unit that a matrix makes; a gate has none
        scale = scale if scale > 0 else inputs**-0.5
    else:
        scale = 0.1 * (scale + 0.01)
    return tensor + scale * torch.randn_like(tensor)
