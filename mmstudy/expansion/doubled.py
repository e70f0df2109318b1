"""A network that computes in float64, whose parameters take that much memory only while they are read."""

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmstudy.core.memory import storage
from mmstudy.core.seeds import generator
from mmstudy.expansion.reading import Read, Source, kept, read
from mmstudy.expansion.replacing import put

CHUNK = 2**18  # numbers that are moved at once: as many as stay in the cache


class Outside(TorchDispatchMode):
    """Notes the tensors of a network that operations read while a copy of it is called, by `doubled` or `watchable`.

    They are read past the copy, by functions that hold the network or a part of it.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.read: dict[str, None] = {}
        self.views: dict[int, Tensor] = {}  # of the copy's tensors, which lie where the network's do
        own: list[tuple[str, Tensor]] = list(network.named_buffers())
        own += [(name, p) for name, p in network.named_parameters() if p.is_floating_point()]  # copies share others
        self.names = {place: name for name, tensor in own if (place := storage(tensor))}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[override]
        inside = False
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Read) or id(leaf) in self.views:
                inside = True
            elif isinstance(leaf, Tensor) and (name := self.names.get(storage(leaf))):
                self.read[name] = None
        made = operation(*args, **(kwargs or {}))
        if inside:
            self.views |= {id(leaf): leaf for leaf in tree_leaves(made) if self._is_view(leaf)}
        return made

    def _is_view(self, made: object) -> bool:
        return isinstance(made, Tensor) and not isinstance(made, Read) and storage(made) in self.names


def doubled(
    network: nn.Module, instead: Mapping[str, Tensor] | None = None, moved: Collection[str] = (), eps: float = 0.0
) -> nn.Module:
    """A copy of the network in float64, which shares its parameters' memory: for calls without gradients.

    Args:
        instead: tensors by name, in float64, as they shall be instead.
        moved: parameters that shall be moved as if by rounding with this `eps`; see `rounding`.
    """
    instead, known = instead or {}, dict[int, Tensor]()
    for name, own in network.named_parameters():
        if name in instead:
            known[id(own)] = instead[name].detach()
        elif own.is_floating_point():
            source = rounding(own, torch.float64, eps, name) if name in moved else _doubling(own.detach())
            known[id(own)] = read(own, source, torch.float64)
        else:
            known[id(own)] = own.detach()
    new = copy.deepcopy(network, known).double()
    for name, _ in list(new.named_buffers()):
        if name in instead:
            put(new, name, instead[name])
    return new


def watchable(network: nn.Module) -> nn.Module:
    """A copy of the network in its own types of numbers, which shares its parameters' memory: for `Outside`."""
    floating = [own for own in network.parameters() if own.is_floating_point()]
    known: dict[int, Tensor] = {id(own): read(own, kept(own.detach()), own.dtype) for own in floating}
    return copy.deepcopy(
        network, known | {id(own): own.detach() for own in network.parameters() if id(own) not in known}
    )


def _doubling(tensor: Tensor) -> Source:
    """What makes the tensor in float64."""
    return _in_parts(tensor, tensor.double, lambda first, last: tensor[first:last].double())


def _in_parts(tensor: Tensor, whole: Callable[[], Tensor], rows: Callable[[int, int], Tensor]) -> Source:
    """What makes something of a tensor: in parts, unless each would make the tensor anew, as it is made when read."""
    return Source(whole, None if isinstance(tensor, Read) else rows)


def rounding(parameter: Tensor, kind: torch.dtype, eps: float, name: str) -> Source:
    """What makes a parameter in a type of numbers, each of them moved by eps of itself, up or down.

    Which way is drawn at random, by the name.
    """
    tensor = parameter.detach()
    draws = torch.randint(256, (-(-tensor.numel() // 8),), generator=generator("rounding", name), dtype=torch.uint8)
    factors = torch.tensor([1 - eps, 1 + eps], dtype=kind, device=tensor.device)

    def moved(some: Tensor, first: int) -> Tensor:
        """Some of the numbers, of which that many come before."""
        new = some.to(kind, copy=True, memory_format=torch.contiguous_format)
        for part in new.view(-1).split(CHUNK):
            bits = np.unpackbits(draws[first // 8 : -(-(first + len(part)) // 8)].numpy())[first % 8 :][: len(part)]
            part.mul_(factors.index_select(0, torch.from_numpy(bits).int().to(part.device)))
            first += len(part)
        return new

    def rows(first: int, last: int) -> Tensor:
        return moved(tensor[first:last], first * (tensor.numel() // len(tensor)))

    return _in_parts(tensor, partial(moved, tensor, 0), rows)
