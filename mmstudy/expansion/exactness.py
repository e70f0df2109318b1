"""Whether a network is the same function after it has grown: how much its outputs change, beside how they vary.

Both networks are run in float64, where that is possible, so that the rounding of their calls hides nothing. What is
left is the rounding of the new numbers themselves, which is measured where it may matter.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from mmstudy.core import precision
from mmstudy.core.networks import evaluating, named_tensors
from mmstudy.core.states import restored, seeded, uncompiled
from mmstudy.expansion.differences import CALL, Seen, said
from mmstudy.expansion.doubled import Outside, doubled, rounding, watchable
from mmstudy.expansion.dropout import WithoutDropout
from mmstudy.expansion.reading import read
from mmstudy.expansion.unseen import Given, Run, unseen, with_numbers
from mmstudy.tracing.calls import Call, resized
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.trace import trace
from mmstudy.tracing.trees import tensors

PRECISION = 1e-13  # what a long sum in float64 may lose
LARGE = 2**26  # bytes of a network whose calls in float64 are dear
SEEDS = 8  # of random numbers that may change nothing: a block that is seldom left out


def large(network: nn.Module) -> bool:
    """Whether every call in float64 is dear."""
    return sum(parameter.nbytes for parameter in network.parameters()) > LARGE


class Reference:
    """A network and a call of it; what it puts out is computed once, however many others are held against it.

    Args:
        training: it is called in training mode, but for dropout, and none of its statistics change.
        like: a reference of the same network, whose copy is taken, if it is as rough.
        roughly: others are held against it in their own types of numbers: faster, and blind to what they round.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Call,
        training: bool = False,
        like: "Reference | None" = None,
        roughly: bool = False,
    ):
        self.network, self.call, self.training, self.roughly = network, call, training, roughly
        self._like = None if like is None else ref(like)  # which may have this one: no cycle, that would last
        self.members: dict[str, Trace] = {}  # traces of members of its lists alone, by path, once they are known
        self._numbers: dict[bool, list[Given]] = {}
        self._under_autocast: list[str] = []  # what of the network ran so, on its devices

    @cached_property
    def in_training(self) -> "Reference":
        """The same call in training mode; roughly, if the network is large."""
        return Reference(self.network, self.call, True, self, self._rough)

    @cached_property
    def others(self) -> list["Reference"]:
        """The same network on batches of other sizes and lengths, made of this one: on those on which it gives numbers.

        Roughly, if the network is large: there they are to show another way that it takes, not how it rounds. And what
        is held roughly against this one is so on smaller ones alone.
        """
        calls = resized(self.call, once=self.roughly)
        made = (Reference(self.network, call, like=self, roughly=self._rough) for call in calls)
        return [other for other in made if other.runs and not any(t.isnan().any() for t in tensors(other.plain))]

    @cached_property
    def without_autocast(self) -> "Reference | None":
        """The same call without autocast; None where nothing runs under it, or the network needs it."""
        _ = self.plain
        if not self._under_autocast:
            return None
        with precision.autocast(off=True):
            plain = Reference(self.network, self.call, self.training, roughly=self.roughly)
            if not plain.runs:
                return None
            _ = plain.seen  # which is remembered
        return plain

    @property
    def _rough(self) -> bool:
        return self.roughly or large(self.network)

    @cached_property
    def traced(self) -> Trace:
        """The trace of the call."""
        return trace(self.network, self.call)

    @property
    def double(self) -> Any:
        """The outputs in float64; None where the network, or its device, does not compute in it, or `roughly`."""
        return None if self.roughly else self._watched[0]

    @cached_property
    def seen(self) -> Seen:
        """The outputs that others are held against: in float64 if there are such, else in its own types of numbers."""
        return Seen(self.plain if self.double is None else self.double)

    @property
    def outside(self) -> tuple[str, ...]:
        """The tensors of the network that a copy of it reads: functions that it keeps hold the network itself."""
        return self._watched[1]

    @property
    def sparing(self) -> bool:
        """Whether what is held against it may be sparing of memory: roughly, if the network is the same in that way."""
        if not self.roughly:
            return False
        one, other = tensors(self._watched[0]), tensors(self.plain)
        return len(one) == len(other) and all(map(torch.equal, one, other))

    @cached_property
    def _watched(self) -> tuple[Any, tuple[str, ...]]:
        """What a copy puts out, None if it fails; and what it reads of the network meanwhile."""
        watched = Outside(self.network)
        try:
            _ = self._copy  # which reads the network
            with watched:
                outputs = self._of_copy()
        except Exception:  # whatever a network does with other numbers than its own, or watched
            try:
                outputs = None if watched.read else self._of_copy()
            except Exception:  # as above
                outputs = None
        return outputs, tuple(watched.read)

    @cached_property
    def plain(self) -> Any:
        """The outputs in the network's own types of numbers."""
        with precision.autocast() as self._under_autocast:
            return self.of(self.network)

    @cached_property
    def runs(self) -> bool:
        """Whether the network can be called so."""
        try:
            return self.plain is not None
        except Exception:  # whatever a network does where it was not meant to run
            return False

    @cached_property
    def draws(self) -> bool:
        """Whether the outputs are others with other random numbers; several, where torch draws some for the call."""
        double = self.double is not None
        eps = torch.finfo(torch.float64).eps if double else _eps(self.network)
        network, call = (self._copy, self.call.mapped(_double)) if double else (self.network, self.call)
        for seed in range(1, 1 + SEEDS):
            with _as_asked(network, self.training, seed), restored(network):
                start = torch.get_rng_state()
                after = call.mapped(torch.clone).directly(network)
                drawn = not torch.equal(start, torch.get_rng_state())
            try:
                found = self.seen.changes(after)
            except ValueError:  # their number is drawn too
                return True
            if any(not gap <= max(eps * spread, CALL * eps * largest) for gap, spread, largest in found):
                return True
            if not drawn:
                return False
        return False

    def run(self, double: bool) -> Run:
        """The call of another network, with other tensors than its own, in float64 or in its own types of numbers."""
        call = self.call.mapped(_double) if double else self.call
        return lambda network, instead: _outputs(network, call, self.training, instead)

    def numbers(self, double: bool) -> list[Given]:
        """The operations that are given numbers when the network is called so; found once."""
        if double not in self._numbers:
            self._numbers[double] = with_numbers(self._copy if double else self.network, self.run(double))
        return self._numbers[double]

    def of(self, network: nn.Module) -> Any:
        """What another network puts out when it is called so, in its own types of numbers."""
        return _outputs(network, self.call, self.training)

    def _of_copy(self) -> Any:
        call = self.call if self.roughly else self.call.mapped(_double)
        return _outputs(self._copy, call, self.training)

    @cached_property
    def _copy(self) -> nn.Module:
        """The network in float64, or roughly; it shares the parameters."""
        like = self._like and self._like()
        if like and like.roughly == self.roughly:
            return like._copy
        return watchable(self.network) if self.roughly else doubled(self.network)


def of_another(network: nn.Module, references: Sequence[Reference]) -> list[Reference]:
    """The calls of references, of another network."""
    first, *others = references
    new = Reference(network, first.call, first.training, roughly=first.roughly)
    return [new, *(Reference(network, each.call, each.training, new, each.roughly) for each in others)]


class Grown:
    """A network that has grown out of another one; its copies in float64 are made once, however often it is called.

    Args:
        origin: parameter of the new network → the old one that it is, or comes from.
        replaced: tensors of the new network as they shall be instead, in float64.
        coarsest: eps of the coarsest type of numbers in which the networks compute, whatever that of their parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        old: nn.Module,
        origin: Mapping[str, str],
        replaced: Mapping[str, Tensor] | None = None,
        coarsest: float = 0.0,
    ):
        self.network, self.old, self.origin, self.replaced = network, old, origin, replaced or {}
        self.eps = max(coarsest, _eps(network))

    @cached_property
    def made(self) -> dict[str, Tensor]:
        """The parameters that are new, of those that are not replaced."""
        before, own = dict(self.old.named_parameters(remove_duplicate=False)), dict(self.network.named_parameters())
        return {n: p for n, p in own.items() if n not in self.replaced and not _same(p, before[self.origin[n]])}

    def broken(self, reference: Reference) -> str | None:
        """What is to be said of the network if it is another function than the reference; None if it is the same.

        The outputs may change by what rounding of the parameters that are new makes of them, or one unit in the last
        place of how much they vary among the examples: not of how large they are.
        """

        def in_double(moved: bool) -> Any:
            network = self._doubled_and_moved if moved else self._doubled
            return _outputs(network, reference.call.mapped(_double), reference.training)

        def in_own(moved: bool) -> Any:
            now = named_tensors(self.network)
            changed = {name: tensor.to(now[name]) for name, tensor in self.replaced.items()}
            made = self.made if moved else {}
            changed |= {name: read(p, rounding(p, p.dtype, self.eps, name), p.dtype) for name, p in made.items()}
            return _outputs(self.network, reference.call, reference.training, changed)

        eps = max(self.eps, PRECISION)
        if reference.double is not None:
            try:
                return said(reference.seen, in_double, eps, torch.finfo(torch.float64).eps)
            except Exception:  # not every network computes in float64
                pass
        return said(reference.seen if reference.double is None else Seen(reference.plain), in_own, eps, self.eps)

    def unseen(self, references: Sequence[Reference]) -> str | None:
        """What is to be said of numbers that changed, and whose effect none of the references shows; see `unseen`."""
        if all(reference.double is not None for reference in references):
            try:
                return unseen(self._doubled, [(each.numbers(True), each.run(True)) for each in references])
            except Exception:  # as above
                pass
        return unseen(self.network, [(each.numbers(False), each.run(False)) for each in references])

    @cached_property
    def _doubled(self) -> nn.Module:
        return doubled(self.network, self.replaced)

    @cached_property
    def _doubled_and_moved(self) -> nn.Module:
        return doubled(self.network, self.replaced, self.made, max(self.eps, PRECISION))


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _eps(network: nn.Module) -> float:
    return max((torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()), default=0.0)


@contextmanager
def _as_asked(network: nn.Module, training: bool, seed: int = 0) -> Iterator[None]:
    with evaluating(network), torch.no_grad(), precision.full(), seeded(network, seed), uncompiled():
        network.train(training)
        with WithoutDropout() if training else nullcontext():
            yield


def _outputs(network: nn.Module, call: Call, training: bool, instead: Mapping[str, Tensor] | None = None) -> Any:
    with _as_asked(network, training):
        return call.under(network, instead) if instead else call.of(network)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
