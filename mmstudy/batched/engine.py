"""How K networks of one shape run as one, with other tensors in the place of their own; and what a batch is."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from mmstudy.batched import hooks
from mmstudy.batched.derivatives import PaddingKept, trusted
from mmstudy.batched.replay import recorded
from mmstudy.batched.tape import Function
from mmstudy.core import arguments
from mmstudy.core.threads import ALONE

Batch = Any  # a tree (tuple, dict, …) of tensors whose first axis counts examples
Model = Callable[..., Any]  # what a loss function may call as it would call the module
LossFn = Callable[[Model, Batch], Tensor]  # → the mean loss over the batch's examples, a scalar


def loss_of(network: nn.Module, loss_fn: LossFn) -> Callable[..., Tensor]:
    """The loss as a function of (parameters, buffers, batch), as `torch.func` wants it.

    Raises:
        TypeError: a loss that is no function of (model, batch), such as `nn.CrossEntropyLoss()`.
    """
    arguments.function(loss_fn)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        return loss_fn(_Called(network, {**parameters, **buffers}), batch)

    return loss


class _Called:
    """What a loss is given as its model: it can be called, and nothing else."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor]):
        self.__network, self.__tensors = network, tensors

    def __call__(self, *args: Any, **options: Any) -> Any:
        return called_with(self.__network, self.__tensors, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python and torch ask for those
            raise AttributeError(name)
        raise TypeError(f"loss_fn must do no more with its model than call it, as model(inputs); it reads model.{name}")


def called_with(network: nn.Module, tensors: Mapping[str, Tensor], args: tuple = (), options: Any = None) -> Any:
    """The network called with these tensors, each by the first of its names, in the place of its own.

    What is tied stays tied. Of a module that has several names, each tensor is replaced once: `functional_call` alone
    would replace it once for every name, and leave the replacement in the network.
    """
    first: dict[int, str] = {}
    every: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        for name, own in (*module._parameters.items(), *module._buffers.items()):
            if own is not None:
                name = f"{path}.{name}" if path else name
                known = first.setdefault(id(own), name)
                if known in tensors:
                    every[name] = tensors[known]
    return functional_call(network, every, args, options, tie_weights=False)


def count(batch: Batch) -> int:
    """The number of examples in a batch.

    Raises:
        ValueError: no tensor in it, no example, or tensors that disagree about the number.
    """
    shapes = [tuple(leaf.shape) for leaf in tensors(batch)]
    if not shapes or any(shape[:1] != shapes[0][:1] for shape in shapes) or shapes[0][:1] in ((), (0,)):
        raise ValueError(f"a batch is tensors that share a first axis of at least one example; found shapes {shapes}")
    return shapes[0][0]


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def take(batch: Batch, index: Tensor | slice | int) -> Batch:
    """The examples at `index` of every tensor of a batch."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, batch)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of one form as one.

    Raises:
        ValueError: none, or examples of different shapes.
    """
    shapes = {str([tuple(t.shape[1:]) for t in tensors(batch)]) for batch in batches}
    if len(shapes) != 1:
        raise ValueError(f"the loader must give examples of one shape (pad them); found {sorted(shapes) or 'none'}")
    return tree_map(lambda *leaves: torch.cat(leaves), *batches)


def mapped(network: nn.Module, loss_fn: LossFn, parameters: dict, buffers: dict, batch: Batch, shared: bool) -> Tensor:
    """The losses of K networks, (K,), differentiable: on one shared batch, or each on its own (first axis K).

    Raises:
        ValueError: a network that computes something again for its gradient (`derivatives.trusted`).
    """
    single, several = loss_of(network, loss_fn), len(next(iter(parameters.values()))) > 1

    def loss(*given: Any) -> Tensor:
        with trusted(), PaddingKept() if several and torch.is_grad_enabled() else nullcontext():
            return single(*given)

    with ALONE:
        if several:
            axes = (0, 0, None if shared else 0)
            with attention(next(iter(parameters.values())).device):
                return vmap(loss, in_dims=axes, randomness="different")(parameters, buffers, batch)
        alone = [{n: t.squeeze(0) for n, t in tensors.items()} for tensors in (parameters, buffers)]  # faster than t[0]
        return loss(*alone, batch if shared else take(batch, 0)).unsqueeze(0)


def attention(device: torch.device) -> AbstractContextManager[None]:
    """How attention is computed under `vmap`: on a GPU unfused, as for some lengths the fused one has no gradient."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)


def gradients(losses: Callable[..., Tensor], sets_mode_of: nn.Module | None = None) -> Function:
    """(points (n, dim), …) → their losses (n,) and gradients (n, dim), of which none may depend on another point.

    One ordinary backward pass of the summed losses gives every point its own.

    Args:
        sets_mode_of: a network whose training mode the losses set.

    Raises:
        ValueError: that network has hooks on gradients (`hooks.refuse`).
    """
    if sets_mode_of is not None:
        hooks.refuse(sets_mode_of)

    def value_and_gradient(points: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        here = points.detach().requires_grad_()
        with torch.enable_grad():
            loss = losses(here, *more)
            (gradient,) = torch.autograd.grad(loss.sum(), here)
        return loss.detach(), gradient

    return recorded(value_and_gradient, sets_mode_of)


def in_pieces(function: Function, most: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What a function says of at most so many rows of all its inputs at a time, put together."""
    if (rows := inputs[0].shape[0]) <= most:
        return function(*inputs)
    found = [function(*(t[some] for t in inputs)) for some in pieces(rows, most)]
    return tuple(map(torch.cat, zip(*found, strict=True)))


def pieces(total: int, most: int) -> list[slice]:
    """Slices of at most `most` that cover `total`, all but the last of one size."""
    return [slice(a, b) for a, b in pairwise([*range(0, total, most), total])]
