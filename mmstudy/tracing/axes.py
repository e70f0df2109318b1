"""Axes as unknowns: two axes that an operation ties together become one, and a view splits one into a product.

A small unification, like that of types in a compiler. Every axis of every tensor starts as an unknown of its own; each
operation says which are the same. In the end, the axes that share an unknown must change together.
"""

from collections.abc import Iterable, Sequence
from math import prod

ONE = "it is an axis of size 1 that an operation added"


class Axis:
    """A set of units, ordered; once `parts` is set, the product of finer axes, the slowest first (row-major).

    `why` says why none of its units may be added to; it is empty where they may.
    """

    def __init__(self, size: int, parts: Sequence["Axis"] | None = None, why: str = ""):
        self.size, self.parts, self.why = size, parts, why
        self.same_as: Axis | None = None

    @property
    def fixed(self) -> bool:
        """Whether it cannot grow."""
        return bool(self.why)

    def root(self) -> "Axis":
        """The axis that stands for all that are the same."""
        axis = self
        while axis.same_as is not None:
            axis = axis.same_as
        return axis


def product(axes: Sequence[Axis]) -> Axis:
    """The axis that runs through all combinations, the last one fastest."""
    return axes[0] if len(axes) == 1 else Axis(prod(axis.size for axis in axes), list(axes))


def leaves(axis: Axis) -> list[Axis]:
    """The finest axes whose product this axis is, the slowest first."""
    axis = axis.root()
    if axis.parts is not None:
        return [leaf for part in axis.parts for leaf in leaves(part)]
    return [axis]


def fix(*axes: Axis, why: str) -> None:
    """These axes belong to the data (or to something that cannot grow): none of their units may be added to."""
    for axis in axes:
        for leaf in leaves(axis):
            leaf.why = leaf.why or why


def split(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """Refine a leaf into (outer, the rest).

    Raises:
        ValueError: `outer` does not divide the axis.
    """
    if axis.size % outer:
        raise ValueError(f"an axis of {axis.size} cannot be split into {outer} parts")
    axis.parts = [Axis(outer, why=axis.why), Axis(axis.size // outer, why=axis.why)]
    return axis.parts[0], axis.parts[1]


def unify(a: Axis, b: Axis) -> None:
    """Declare two axes the same; where one is a product, the other is split alike.

    Raises:
        ValueError: their sizes differ, or their products cannot be aligned.
    """
    if a.size != b.size:
        raise ValueError(f"an axis of {a.size} cannot be the same as one of {b.size}")
    left, right = leaves(a), leaves(b)
    while left and right:
        x, y = left[0].root(), right[0].root()
        if x.parts is not None or y.parts is not None:  # refined by an earlier step of this very loop
            left[:1], right[:1] = leaves(x), leaves(y)
        elif x.size == y.size:
            if x is not y:
                x.same_as, y.why = y, x.why or y.why
            del left[0], right[0]
        elif x.size == 1 or y.size == 1:
            del (left if x.size == 1 else right)[0]
        elif x.size > y.size:
            left[:1] = split(x, y.size)
        else:
            right[:1] = split(y, x.size)


def regroup(axes: Iterable[Axis], shape: Sequence[int]) -> list[Axis]:
    """The axes of a tensor that was reshaped, row-major, to `shape`.

    Raises:
        ValueError: a new axis would begin or end inside an old one at a place that does not divide it.
    """
    waiting = [leaf for axis in axes for leaf in leaves(axis) if leaf.size != 1]
    result = []
    for size in shape:
        taken: list[Axis] = []
        rest = size
        while rest > 1:
            leaf = waiting.pop(0)
            if leaf.parts is not None:  # it occurs twice, and has been split meanwhile
                waiting[:0] = leaves(leaf)
                continue
            if leaf.size > rest:
                leaf, remaining = split(leaf, rest)
                waiting.insert(0, remaining)
            if rest % leaf.size:
                raise ValueError(f"an axis of {size} cannot be made of whole axes of {leaf.size}")
            taken.append(leaf)
            rest //= leaf.size
        result.append(product(taken) if taken else Axis(1, why=ONE))
    return result
