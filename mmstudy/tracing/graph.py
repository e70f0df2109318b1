"""The vocabulary of a trace: what is known of a tensor, and what is noted about the units on its axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mmstudy.tracing.axes import Axis, fix, unify
from mmstudy.tracing.layouts import NONE, Structure, structure

# What a tensor does with the units on one of its axes.
WEIGHT = "weight"  # makes each unit from the layer's input
BIAS = "bias"  # is added to each unit
SCALE, SHIFT = "scale", "shift"  # multiplies, then is added to, each unit, most often behind a normalization
MEAN, VARIANCE = "mean", "variance"  # running statistics of each unit
CONSUMED = "consumed"  # sums over the units

SIZE = "it has the size of the data"
UNKNOWN = "what the operation does to units is not known"


@dataclass
class Value:
    """A tensor of the graph: its axes, the parameters that wrote it, the parameter that it is.

    `writers` are those of an affine operation, or what follows it if that is linear in them, unit by unit.
    """

    axes: list[Axis]
    writers: tuple[str, ...] = ()
    tensor: str | None = None
    moved: tuple[str, float] | None = None  # the parameter or buffer that it is, but for this number that was added
    passed: tuple[str, ...] = ()  # the writers of what it was before functions that keep a zero a zero
    normal: bool = False  # a normalization that is written by hand has made it, and perhaps scaled it
    learned: bool = False  # parameters, or buffers of numbers, reach it
    trained: bool = False  # parameters do
    given: bool = False  # the network's inputs reach it

    @property
    def name(self) -> str | None:
        """The parameter or buffer that it is, perhaps but for a number that was added."""
        return self.tensor or (self.moved[0] if self.moved else None)

    @property
    def computed(self) -> bool:
        """Whether it is made of parameters alone, and is none itself: a masked or merged weight."""
        return self.learned and not self.given and not self.tensor

    @property
    def shape(self) -> list[int]:
        """The sizes of its axes."""
        return [axis.size for axis in self.axes]


@dataclass
class Note:
    """What one operation does with one axis of a parameter or buffer; `fan_in` is that of the layer that draws it."""

    tensor: str
    axis: Axis
    role: str
    fan_in: int | None = None  # inputs of each unit; None: the tensor is not a layer's
    reads: tuple[str, ...] = ()  # CONSUMED: the parameters that wrote what is consumed
    shift: float = 0.0  # SCALE: the number that is added to it before


@dataclass
class Normalization:
    """Units that are normalized together, hence see each other: x → (x − mean) / √(variance + eps) · scale + shift."""

    axis: Axis
    kind: str  # layer: the mean over these units is taken off; rms: it is not; group: as layer, over positions too
    scale: str | None
    shift: str | None
    eps: float | None
    module: str


@dataclass
class Pairing:
    """Units of two activations that are multiplied and summed (queries and keys); `writers` made the first one."""

    axis: Axis
    writers: tuple[str, ...]
    queries: tuple[Axis, ...]  # all axes of the first one
    scaled: bool  # the sum is divided by the root of the number of units


class Result(NamedTuple):
    """What an operation gives."""

    operation: str
    axes: list[Axis]
    numbers: tuple[float, ...]  # that the operation is given beside tensors, but for places and sizes


@dataclass
class Trace:
    """All that the walk through the graph noted."""

    tensors: dict[str, list[Axis]] = field(default_factory=dict)  # parameters and buffers, by name
    parameters: set[str] = field(default_factory=set)  # the names of the former
    notes: list[Note] = field(default_factory=list)
    normalizations: list[Normalization] = field(default_factory=list)
    pairings: list[Pairing] = field(default_factory=list)
    sums: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # (module path, silencers of one summand)
    seen: dict[str, list[Axis]] = field(default_factory=dict)  # module path → axes of all that it touches
    results: list[Result] = field(default_factory=list)  # of all operations, in order
    kept: dict[Axis, dict[int, list]] = field(default_factory=dict)  # see `couplings.Coupling.kept`
    unread: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensors that no operation reads, their shapes
    padding: dict[str, int] = field(default_factory=dict)  # embedding → its row that stays zero and never learns
    coarsest: float = 0.0  # the largest eps of the types of numbers in which the network computes
    confirms: bool = True  # whether a trace confirms the sizes that calls of a grown network have found to do
    protected: tuple[str, ...] = ()  # patterns of paths of numbers that modules keep and that must stay
    module: str = ""  # path of the module whose operation is being followed
    operation: object = ""  # the operation itself

    def structure(self, sizes: Mapping[Axis, int] = NONE) -> list[tuple[str, tuple[Structure, ...]]]:
        """(operation or tensor, its axes as made of the finest ones), in order; some may be given other sizes."""
        every = (*((result.operation, result.axes) for result in self.results), *self.tensors.items())
        return [(name, tuple(structure(axis, sizes) for axis in axes)) for name, axes in every]

    def fix(self, *axes: Axis, why: str) -> None:
        """None of the units on these axes may be added to, because of the operation that is being followed."""
        fix(*axes, why=self.because(why))

    def because(self, why: str) -> str:
        """A reason, with the operation that is being followed and its module."""
        return f"{why} ({self.operation} in {self.module or 'the network itself'})"

    def silencers(self, value: Value) -> tuple[str, ...]:
        """The parameters that make a value zero where they are zero; buffers, such as a constant factor, stay."""
        several = (tuple(name for name in some if name in self.parameters) for some in (value.writers, value.passed))
        return next(filter(None, several), ())

    def note(self, value: Value | None, axis: int, role: str, fan_in: int | None = None, reads: Value | None = None):
        """Record the role that one axis of a parameter or buffer has; of other values nothing is recorded."""
        if value is not None and value.tensor:
            self.notes.append(Note(value.tensor, value.axes[axis], role, fan_in, reads.writers if reads else ()))

    def note_moved(self, value: Value, role: str) -> None:
        """Record the role of a parameter or buffer to which a number was added, not as a bias: as what comes of it."""
        if value.moved:
            name, shift = value.moved
            self.notes = [note for note in self.notes if (note.tensor, note.role) != (name, BIAS)]
            self.notes += [Note(name, axis, role, shift=shift) for axis in value.axes]


Rule = Callable[..., Value | Sequence[Value | None]]  # (trace, shape of the result, *arguments) → its result


class Rules(dict[object, Rule]):
    """What operations do, by operation. A rule unifies axes, notes what parameters do to units, returns the result."""

    def of(self, *names: str) -> Callable[[Rule], Rule]:
        """Register a rule for operations of ATen by name, e.g. "linear", in all their overloads."""
        packets = [getattr(torch.ops.aten, name) for name in names]
        return self.also(*(getattr(packet, overload) for packet in packets for overload in packet.overloads()))

    def also(self, *operations: object) -> Callable[[Rule], Rule]:
        """Register a rule for the operations themselves."""

        def register(function: Rule) -> Rule:
            self.update(dict.fromkeys(operations, function))
            return function

        return register


def data(sizes: Iterable[int], why: str = SIZE) -> list[Axis]:
    """Axes that belong to the data: they cannot grow."""
    return [Axis(size, why=why) for size in sizes]


def alike(left: Iterable[Axis], right: Iterable[Axis]) -> None:
    """Unify axes pair by pair."""
    for a, b in zip(left, right, strict=True):
        unify(a, b)
