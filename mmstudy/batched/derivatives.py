"""Derivatives that would be wrong while networks run on copies of their numbers: put right, or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

RECOMPUTED = (
    "the network computes a part of its forward pass again for the gradient (torch.utils.checkpoint, or another hook "
    "on saved tensors), when the parameters that are measured are no longer in it: turn activation checkpointing off "
    "for measuring"
)


@contextmanager
def trusted() -> Iterator[None]:
    """Refuse a forward pass that keeps something else for its gradient than what it computed.

    Raises:
        ValueError: activation checkpointing, or another hook on saved tensors.
        RuntimeError: what the network itself raises.
    """
    if not torch.is_grad_enabled():
        yield
        return
    try:
        with disable_saved_tensors_hooks(RECOMPUTED):
            yield
    except RuntimeError as error:
        if RECOMPUTED in str(error):
            raise ValueError(RECOMPUTED) from error
        raise


class PaddingKept(TorchFunctionMode):
    """Embeddings whose padding row has no gradient in any network; torch's rule for several frees all but the first."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.embedding:
            return function(*args, **(kwargs or {}))
        return _embedded(*args, **(kwargs or {}))


def _embedded(
    inputs: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *more: Any,
    **options: Any,
) -> Tensor:
    if padding_idx is not None and max_norm is None:
        rows = torch.arange(len(weight), device=weight.device).unsqueeze(1)
        weight, padding_idx = torch.where(rows == padding_idx % len(weight), weight.detach(), weight), None
    return F.embedding(inputs, weight, padding_idx, max_norm, *more, **options)


class ComposedWeightNorm(TorchFunctionMode):
    """w = v g / ‖v‖ of `torch.nn.utils.weight_norm` in operations whose second derivatives are right."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch._weight_norm:
            return function(*args, **(kwargs or {}))
        v, g, dim = (*args, 0)[:3]
        others = [i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim]
        return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))
