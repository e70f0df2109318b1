"""How K networks of one shape run as one: vectorized where the calls are small, one by one where they are large.

Small calls are bound by overhead, which a batch of networks pays once; large ones are bound by arithmetic, which a
batch only scatters over more memory. What one call costs is measured once for every shape and remembered; the rule
looks at operations and bytes, never at a clock, so that the same seed gives the same numbers on a busy machine too.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from mmstudy.batched import hooks
from mmstudy.batched.derivatives import PaddingKept, trusted
from mmstudy.batched.replay import ALONE, recorded
from mmstudy.batched.tape import Function
from mmstudy.core import arguments

Batch = Any  # a tree (tuple, dict, …) of tensors whose first axis counts examples
Model = Callable[..., Any]  # what a loss function may call as it would call the module
LossFn = Callable[[Model, Batch], Tensor]  # → the mean loss over the batch's examples, a scalar

LARGE_CALL = 3e7  # floating-point operations of one network's call from which a CPU gains nothing by batching
BYTES = 2**23  # what a batch of networks may allocate on a CPU: beyond its caches a larger batch gains nothing
MOST_BYTES = 2**28  # what a single network may
SHARE = 0.4  # of a GPU's free memory, for either
EXAMPLES = 512  # per network and call, where memory allows
FEW = 16  # examples, from which the memory of more is foretold

_costs: WeakKeyDictionary = WeakKeyDictionary()  # network → loss function → question → answer; keeps neither alive


@dataclass(frozen=True)
class Cost:
    """What one network's loss on so many examples takes."""

    flops: int
    memory: int  # bytes allocated on the way
    batches: bool  # whether `vmap` knows all of its operations


def loss_of(network: nn.Module, loss_fn: LossFn) -> Callable[..., Tensor]:
    """The loss as a function of (parameters, buffers, batch), as `torch.func` wants it.

    Raises:
        TypeError: a loss that is no function of (model, batch), such as `nn.CrossEntropyLoss()`.
    """
    arguments.function(loss_fn)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        return loss_fn(lambda *args, **kw: called_with(network, {**parameters, **buffers}, args, kw), batch)

    return loss


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


def learnt(network: nn.Module, loss_fn: LossFn) -> dict:
    """What calls of this very network with this loss have shown, by question: it holds until the network is changed."""
    return _costs.setdefault(network, WeakIdKeyDictionary()).setdefault(loss_fn, {})


def forget(network: nn.Module) -> None:
    """Drop what earlier calls have shown of a network, which may have been changed since."""
    _costs.pop(network, None)


def cost(
    network: nn.Module, parameters: dict, buffers: dict, batch: Batch, loss_fn: LossFn, shared: bool = True
) -> Cost:
    """What the loss of one network takes on this batch: measured once for every shape, then remembered.

    Remembered for this very network: two may differ in a number that neither their class nor their printout shows.

    Args:
        shared: whether several networks would share the batch, or have one each: what selects examples by a mask, say,
            can be a batch only with the same mask for all.
    """
    leaves, tree = tree_flatten(batch)
    first = next(iter(parameters.values()))
    device, shapes = first.device, tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
    key = (shared, network.training, first.dtype, device, str(tree), shapes)
    known = learnt(network, loss_fn)
    if key not in known:
        first = [{name: t[0].detach().clone() for name, t in tensors.items()} for tensors in (parameters, buffers)]
        counting = FlopCounterMode(display=False)
        counting.mod_tracker = _AllModules()  # type: ignore[assignment]  # of a tracker of modules, this is what counts
        with torch.no_grad(), torch.random.fork_rng(), _attention(device), counting as flops, _Allocated() as memory:
            loss_of(network, loss_fn)(*first, batch)
        known[key] = Cost(flops.get_total_flops(), memory.total, _batches(network, loss_fn, first, batch, shared))
    return known[key]


def _batches(network: nn.Module, loss_fn: LossFn, tensors: list[dict[str, Tensor]], batch: Batch, shared: bool) -> bool:
    """Whether two such networks can run as one; recurrent layers, say, and choices that depend on numbers cannot."""
    parameters, buffers = tree_map(lambda t: torch.stack([t, t]), tensors)
    given = batch if shared else tree_map(lambda t: torch.stack([t, t]) if isinstance(t, Tensor) else t, batch)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            mapped(network, loss_fn, parameters, buffers, given, shared)
    except RuntimeError:
        return False
    return True


class _AllModules(nullcontext):
    """Counts for all modules together: to tell them apart takes hooks, under which a network can take no gradients."""

    parents = ("Global",)


class _Allocated(TorchDispatchMode):
    """Adds up the bytes of what every operation returns: an upper bound on what is alive at once."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.total += t.nbytes
        return out


def at_once(taken: Cost, device: torch.device) -> int:
    """How many networks go into one call: as many as fit into memory.

    One where they can't be a batch, or where a call of one is so large that a CPU has nothing to gain.
    """
    if not taken.batches or (device.type == "cpu" and taken.flops > LARGE_CALL):
        return 1
    return max(1, _allowed(BYTES, device) // max(1, taken.memory))


def examples_at_once(
    network: nn.Module, parameters: dict, buffers: dict, batch: Batch, loss_fn: LossFn, limit: int = EXAMPLES
) -> int:
    """On how many of these examples, at most `limit`, one network is evaluated in one call.

    What a few take tells what all would.
    """
    few = min(FEW, count(batch))
    taken = cost(network, parameters, buffers, take(batch, slice(few)), loss_fn)
    allowed = _allowed(MOST_BYTES, tensors(batch)[0].device)
    return min(limit, max(1, allowed * few // max(1, taken.memory)))


def _allowed(bytes_of_cpu: int, device: torch.device) -> int:
    return bytes_of_cpu if device.type == "cpu" else int(SHARE * torch.cuda.mem_get_info(device)[0])


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
            with _attention(next(iter(parameters.values())).device):
                return vmap(loss, in_dims=axes, randomness="different")(parameters, buffers, batch)
        alone = [{n: t.squeeze(0) for n, t in tensors.items()} for tensors in (parameters, buffers)]  # faster than t[0]
        return loss(*alone, batch if shared else take(batch, 0)).unsqueeze(0)


def _attention(device: torch.device) -> AbstractContextManager[None]:
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
