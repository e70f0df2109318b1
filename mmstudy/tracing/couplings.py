"""Which axes of which tensors must change together: found by tracing the network, never written down by hand.

A *coupling* is one group of hidden units: neurons, channels, heads, the width of a residual stream. The tensors that
make the units and those that consume them share an axis; a network gets wider when that axis grows in all of them.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn

from mmstudy.tracing.axes import Axis, leaves, terms
from mmstudy.tracing.graph import BIAS, CONSUMED, WEIGHT, Normalization, Note, Pairing, Trace
from mmstudy.tracing.layouts import Layout, Structure, extent, layout, length, spans
from mmstudy.tracing.trace import trace


@dataclass(frozen=True)
class Use:
    """An axis of a tensor that has the units of a coupling; `layout` says where on it."""

    tensor: str
    axis: int
    layout: Layout
    role: str  # see `tracing`
    fan_in: int | None
    reads: tuple[str, ...]
    shift: float = 0.0  # of a scale: it is this number and the tensor's


@dataclass(frozen=True)
class Coupling:
    """A group of `size` hidden units that must grow together, and everything that touches them."""

    name: str
    uses: tuple[Use, ...]
    normalizations: tuple[Normalization, ...]
    pairings: tuple[Pairing, ...]
    _axis: Axis = field(repr=False)
    _trace: Trace = field(repr=False)

    @property
    def size(self) -> int:
        """The number of units."""
        return self._axis.size

    @property
    def kept(self) -> dict[int, list[tuple[str, tuple[str | int, ...], object]]]:
        """Number of units → (module path, path in it, value) of what modules keep, once `surgery` has found out."""
        return self._trace.kept.setdefault(self._axis, {})

    @property
    def confirms(self) -> bool:
        """Whether a trace confirms the sizes that calls of a grown network have found to do."""
        return self._trace.confirms

    @property
    def protected(self) -> tuple[str, ...]:
        """Patterns of the paths of numbers that modules keep and that must stay, whatever grows."""
        return self._trace.protected

    @property
    def padding(self) -> dict[str, int]:
        """Embedding → its row for padding, which is no example's and never learns."""
        return self._trace.padding

    @property
    def unread(self) -> list[str]:
        """Tensors that no operation of the call reads, and that have an axis as long as one of this coupling's.

        A head for training only, a branch that other batches take: they may belong to these units, and nothing shows
        it, so that they would not grow.
        """
        lengths = {extent(use.layout, self.size) for use in self.uses}
        return [name for name, shape in self._trace.unread.items() if lengths & set(shape)]

    @property
    def other_normalizations(self) -> list[Normalization]:
        """Those in the network that normalize other units than these."""
        return [norm for norm in self._trace.normalizations if norm not in self.normalizations]

    @property
    def operations(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """The operations of the call whose results have the units, in order, each with the numbers that it is given."""
        having = (each for each in self._trace.results if any(self._axis in leaves(axis) for axis in each.axes))
        return tuple((each.operation, each.numbers) for each in having)

    def parameters(self, size: int) -> int:
        """How many parameters the network would have with `size` units."""
        tensors = (self._trace.tensors[name] for name in self._trace.parameters)
        return sum(prod(length(axis, {self._axis: size}) for axis in axes) for axes in tensors)

    def of(self, *roles: str) -> list[Use]:
        """The uses in which the units have one of these roles."""
        return [use for use in self.uses if use.role in roles]

    def makers(self, *roles: str) -> list[Use]:
        """The uses in one of these roles (by default weights and biases) that make units, and do not read them."""
        return [use for use in self.of(*(roles or (WEIGHT, BIAS))) if not self.reads(use)]

    def reads(self, use: Use) -> bool:
        """Whether a tensor reads the units: it sums over them, or it makes the queries that keys are summed with."""
        return use.role == CONSUMED or any(use.tensor in pairing.writers for pairing in self.pairings)

    def structure(self, size: int) -> list[tuple[str, tuple[Structure, ...]]]:
        """What `Trace.structure` says, if there were `size` units."""
        return self._trace.structure({self._axis: size})

    def lengths(self, module: str, size: int) -> dict[int, int]:
        """Lengths of axes, or of runs of what they are made of, that involve the units in a module: now → then."""
        seen = reversed(dict.fromkeys(axis.root() for axis in reversed(self._trace.seen.get(module, ()))))
        each = [span for axis in seen if self._axis in leaves(axis) for span in spans(axis)]
        return {span.size: length(span, {self._axis: size}) for span in each if self._axis in leaves(span)}


def structure(sizes: Iterable[tuple[Coupling, int]]) -> list[tuple[str, tuple[Structure, ...]]]:
    """What `Coupling.structure` says, if several couplings of one trace had other sizes."""
    several = list(sizes)
    return several[0][0]._trace.structure({coupling._axis: size for coupling, size in several})


def couplings(network: nn.Module, batch: Any) -> dict[str, Coupling]:
    """The couplings of `network`, by name, in the order in which the network first makes their units.

    The name is the path of the module that first makes the units, e.g. "hidden.0"; where its axis holds several
    groups, their place is added: in an attention of several heads "query[0]" are the heads, "query[1]" their width.
    What is not among them, and why, says `fixed`. A warning names the tensors that this call never reads: they are in
    no coupling.

    Args:
        batch: an example: a tensor (batch, ...), or what else `calls.called` understands; only shapes and types matter.

    Raises:
        NotImplementedError: the network uses an operation that is not known; the message names it.
        TypeError: no network, or no batch.
        ValueError: the network cannot be called on the batch.
    """
    traced = trace(network, batch)
    if traced.unread:
        warnings.warn(f"{', '.join(traced.unread)}: {UNREAD}, so that no coupling knows of it", stacklevel=2)
    return of_trace(traced)


@dataclass(frozen=True)
class Fixed:
    """Units that cannot grow, the tensors that have them, and the reason."""

    size: int
    tensors: tuple[str, ...]
    why: str


def fixed(network: nn.Module, batch: Any) -> dict[str, str]:
    """What cannot grow: units that layers make, named as in `couplings`, and tensors never read → the reason."""
    return fixed_in(trace(network, batch))


UNREAD = "no operation of this call reads it"


def of_trace(traced: Trace) -> dict[str, Coupling]:
    """The couplings of a network that has been traced already; see `couplings`."""
    found, notes = {}, dict[Axis, list[Note]]()
    for note in traced.notes:
        for leaf in dict.fromkeys(leaves(note.axis)):
            notes.setdefault(leaf, []).append(note)
    for leaf, name in _made(traced, fixed=False).items():
        uses = tuple(dict.fromkeys(use for note in notes[leaf] for use in _uses(traced, note, leaf)))
        together = tuple(n for n in traced.normalizations if leaf in leaves(n.axis))
        paired = tuple(p for p in traced.pairings if leaf in leaves(p.axis))
        if paired or any(use.role == CONSUMED for use in uses):
            found[name] = Coupling(name, uses, together, paired, leaf, traced)
    return found


def fixed_in(traced: Trace) -> dict[str, str]:
    """What cannot grow in a network that has been traced already; see `fixed`."""
    return {name: each.why for name, each in fixed_groups(traced).items()}


def fixed_groups(traced: Trace) -> dict[str, Fixed]:
    """What cannot grow in a network that has been traced already: with `of_trace`, every parameter is somewhere."""
    growing, free = of_trace(traced), _made(traced, fixed=False)
    tied = _made(traced, fixed=True, taken=tuple(free.values()))
    having: dict[Axis, dict[str, None]] = {}
    for name, axes in traced.tensors.items():
        for leaf in (leaf for axis in axes for leaf in leaves(axis)):
            having.setdefault(leaf, {})[name] = None
    found = {}
    for leaf, name in [*free.items(), *tied.items()]:
        if name not in growing:
            found[name] = Fixed(leaf.size, tuple(having.get(leaf, ())), leaf.why or "no layer sums over these units")
    for name, shape in traced.unread.items():
        found[name] = Fixed(max(shape, default=1), (name,), UNREAD)
    held = {use.tensor for group in growing.values() for use in group.uses}
    held |= {name for each in found.values() for name in each.tensors}
    for name in sorted(traced.parameters - held):
        parts = [leaf for axis in traced.tensors[name] for leaf in leaves(axis) if leaf.size > 1]
        whys = [leaf.why for leaf in parts if leaf.why] or ["no layer makes units on its axes"]
        found[name] = Fixed(max((leaf.size for leaf in parts), default=1), (name,), whys[-1])
    return found


def _made(traced: Trace, fixed: bool, taken: tuple[str, ...] = ()) -> dict[Axis, str]:
    """The groups of units that layers make, those that are fixed or the others, with names that are not taken yet."""
    groups: dict[Axis, str] = {}
    for note in traced.notes:
        parts = list(dict.fromkeys(_telling(note.axis)))
        for place, leaf in enumerate(parts):
            if note.role == WEIGHT and leaf.fixed == fixed and leaf not in groups:
                path, suffix = note.tensor.rpartition(".")[0], f"[{place}]" if len(parts) > 1 else ""
                known = not path or path + suffix in (*groups.values(), *taken)
                groups[leaf] = (note.tensor if known else path) + suffix
    return groups


def _telling(axis: Axis) -> list[Axis]:
    """The finest axes that an axis is made of, but for factors of size 1."""
    some = [[part for part in term if part.size > 1] or term for term in terms(axis)]
    parts = [part for term in some for part in term]
    return [leaf for part in parts for leaf in (_telling(part) if part.ranges else [part])]


def _uses(traced: Trace, note: Note, leaf: Axis) -> list[Use]:
    """The places of a leaf of a note's axis, as the tensor itself is laid out."""
    own = traced.tensors[note.tensor]
    result = []
    for number, axis in enumerate(own):
        if axis is note.axis or (leaf in leaves(axis) and note.axis not in own):  # the note is about a view of it
            result.append(Use(note.tensor, number, layout(axis, leaf), note.role, note.fan_in, note.reads, note.shift))
    return result
