"""What a call of a network takes, and so how many networks and examples go into one.

Small calls are bound by overhead, which a batch of networks pays once; large ones are bound by arithmetic, which a
batch only scatters over more memory. What one call costs is measured once for every shape and remembered; the rule
looks at operations and bytes, never at a clock, so that the same seed gives the same numbers on a busy machine too.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from mmstudy.batched.engine import Batch, LossFn, attention, count, loss_of, mapped, take, tensors

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
        with torch.no_grad(), torch.random.fork_rng():
            before = _dice(device)
            with attention(device), counting as flops, _Allocated() as memory:
                loss = loss_of(network, loss_fn)(*first, batch)
            draws = not torch.equal(before, _dice(device))
        plain = None if network.training and draws else loss
        batches = _batches(network, loss_fn, first, batch, shared, plain)
        known[key] = Cost(flops.get_total_flops(), memory.total, batches)
    return known[key]


def _dice(device: torch.device) -> Tensor:
    """The state of torch's random numbers, of the CPU and of the device."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def _batches(
    network: nn.Module,
    loss_fn: LossFn,
    tensors: list[dict[str, Tensor]],
    batch: Batch,
    shared: bool,
    plain: Tensor | None,
) -> bool:
    """Whether two such networks can run as one; recurrent layers, say, and choices that depend on numbers cannot.

    Nor can what comes to another loss then than alone, `plain`: it seeds random numbers of its own, say, or catches the
    errors that `vmap` raises. None: it draws random numbers, as it should, and so tells nothing.
    """
    parameters, buffers = tree_map(lambda t: torch.stack([t, t]), tensors)
    given = batch if shared else tree_map(lambda t: torch.stack([t, t]) if isinstance(t, Tensor) else t, batch)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            together = mapped(network, loss_fn, parameters, buffers, given, shared)
    except RuntimeError:
        return False
    return plain is None or all(_agree(plain, each) for each in together)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two losses are one but for rounding; NaN agrees with NaN."""
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape
    rounding = max(1e-4, 16 * torch.finfo(one.dtype).eps) * float(one.detach().nan_to_num().abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=rounding + 1e-6, equal_nan=True)


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
