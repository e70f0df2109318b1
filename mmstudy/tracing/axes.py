"""Axes as unknowns: two that an operation ties together become one; a view splits one into a product, a cut in ranges.

A small unification, like that of types in a compiler. Every axis of every tensor starts as an unknown of its own; each
operation says which are the same. In the end, the axes that share an unknown must change together.

An axis is finer than it looks in two ways. As a *product* it runs through all combinations of other axes (what a
reshape does); as *ranges* it runs through one axis after the other (what `cat` does, and what a slice leaves: before
it, itself, behind it). Each range is an axis of its own and may grow where it lies. Both may be nested: a product whose
first factor has ranges is the ranges of products, (a + b) × c = a × c + b × c, since the first factor is the slowest.

Two axes with ranges are unified by cutting each where the other has a border, and then range by range. So slices that
overlap make ranges of what they have in common and of what they have not. What cannot be told in this way is refused
here, and fixed by whoever follows the operation: a border within the units of the slowest axis of a product, as of a
reshape that mixes ranges, and a slice with a step. Whether the code cuts at the new borders after a range has grown is
not known here; the grown network is run and traced again to see it.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import prod

ONE = "it is an axis of size 1 that an operation added"


class Axis:
    """A set of units, ordered; once `parts` is set, the product of finer axes, the slowest first (row-major).

    Once `ranges` is set instead, these axes one after the other. `why` says why none of its units may be added to; it
    is empty where they may.
    """

    def __init__(self, size: int, parts: Sequence["Axis"] | None = None, why: str = ""):
        self.size, self.parts, self.why = size, parts, why
        self.ranges: Sequence[Axis] | None = None
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


def joined(axes: Sequence[Axis]) -> Axis:
    """The axis that runs through one after the other; those of no size say nothing."""
    some = [axis for axis in axes if axis.size] or list(axes[:1])
    if len(some) == 1:
        return some[0]
    result = Axis(sum(axis.size for axis in some))
    result.ranges = some
    return result


def factors(axis: Axis) -> list[Axis]:
    """The axes whose product this axis is, the slowest first: each a leaf, or one with ranges."""
    axis = axis.root()
    return [axis] if axis.parts is None else [factor for part in axis.parts for factor in factors(part)]


def leaves(axis: Axis) -> list[Axis]:
    """The finest axes that this axis is made of, the slowest and the first ones first."""
    found = []
    for factor in factors(axis):
        found += [factor] if factor.ranges is None else [leaf for part in factor.ranges for leaf in leaves(part)]
    return found


def terms(axis: Axis) -> list[list[Axis]]:
    """The ranges of an axis, in order, each as its factors; but for axes of size 1, the first of them is a leaf."""
    return _terms(factors(axis))


def _terms(found: list[Axis]) -> list[list[Axis]]:
    larger = [factor for factor in found if factor.size != 1]
    if not larger or larger[0].ranges is None:
        return [found]
    return [term for part in larger[0].ranges for term in _terms([*factors(part), *larger[1:]])]


def fix(*axes: Axis, why: str) -> None:
    """These axes belong to the data (or to something that cannot grow): none of their units may be added to."""
    for axis in axes:
        for leaf in leaves(axis):
            leaf.why = leaf.why or why


def split(axis: Axis, outer: int) -> tuple[Axis, Axis]:
    """Refine a leaf, or an axis with ranges, into (outer, the rest).

    Raises:
        ValueError: `outer` does not divide the axis, or a border of its ranges lies between.
    """
    if axis.size % outer:
        raise ValueError(f"an axis of {axis.size} cannot be split into {outer} parts")
    slow, fast = Axis(outer, why=axis.why), Axis(axis.size // outer, why=axis.why)
    if axis.ranges is None:
        axis.parts = [slow, fast]
    else:
        unify(axis, product([slow, fast]))
    return slow, fast


def cut(axis: Axis, places: Iterable[int]) -> None:
    """Refine an axis so that ranges of it end at these places, one of which may make room for another.

    Raises:
        ValueError: a place lies between two units of an axis that is the slowest one there.
    """
    waiting = list(places)
    while waiting:
        refused = [(place, together) for place in waiting if (together := _cut(axis, place))]
        if len(refused) == len(waiting):
            place, together = refused[0]
            raise ValueError(f"an axis of {axis.size} cannot be cut at {place}: {together} units belong together")
        waiting = [place for place, _ in refused]


def _cut(axis: Axis, place: int) -> int:
    """Let a range end at this place; if it cannot, how many places belong together there, else 0."""
    start = 0
    for term in terms(axis):
        leaf, *rest = [factor for factor in term if factor.size != 1] or term
        inner = prod(factor.size for factor in rest)
        if start < place < start + leaf.size * inner:
            count, left = divmod(place - start, inner)
            if left:
                return inner
            leaf.ranges = [Axis(count, why=leaf.why), Axis(leaf.size - count, why=leaf.why)]
        start += leaf.size * inner
    return 0


def between(axis: Axis, start: int, end: int) -> Axis:
    """What of an axis lies between two places at which it can be cut.

    Raises:
        ValueError: it cannot; see `cut`.
    """
    cut(axis, (start, end))
    ends = _ends(terms(axis))
    return joined([product(term) for term, last in zip(terms(axis), ends, strict=True) if start < last <= end])


def _ends(some: Sequence[Sequence[Axis]]) -> list[int]:
    """Where each range ends."""
    return list(accumulate(prod(factor.size for factor in term) for term in some))


def unify(a: Axis, b: Axis) -> None:
    """Declare two axes the same; where one is a product, the other is split alike, where it has ranges, cut.

    Raises:
        ValueError: their sizes differ, or their products or ranges cannot be aligned.
    """
    if a.size != b.size:
        raise ValueError(f"an axis of {a.size} cannot be the same as one of {b.size}")
    while (left := _ends(terms(a))) != (right := _ends(terms(b))):  # a cut may be felt elsewhere in the same axis
        cut(a, right)
        cut(b, left)
    if len(left) == 1:
        _unify_products(a, b)
    elif a.root() is not b.root():
        for one, other in zip(terms(a), terms(b), strict=True):
            _unify_products(product(one), product(other))


def _unify_products(a: Axis, b: Axis) -> None:
    left, right = factors(a), factors(b)
    while left and right:
        x, y = left[0].root(), right[0].root()
        if x.parts is not None or y.parts is not None:  # refined by an earlier step of this very loop
            left[:1], right[:1] = factors(x), factors(y)
        elif x.size == y.size:
            _same(x, y)
            del left[0], right[0]
        elif x.size == 1 or y.size == 1:
            del (left if x.size == 1 else right)[0]
        elif x.size > y.size:
            left[:1] = split(x, y.size)
        else:
            right[:1] = split(y, x.size)


def _same(x: Axis, y: Axis) -> None:
    """Declare two factors of one size the same."""
    if x.ranges is not None and y.ranges is not None:
        unify(x, y)
    elif x.ranges is not None:
        _same(y, x)
    elif x is not y:
        x.same_as = y
        for leaf in leaves(y):
            leaf.why = x.why or leaf.why


def regroup(axes: Iterable[Axis], shape: Sequence[int]) -> list[Axis]:
    """The axes of a tensor that was reshaped, row-major, to `shape`.

    Raises:
        ValueError: a new axis would begin or end inside an old one at a place that does not divide it, or its ranges.
    """
    waiting = [factor for axis in axes for factor in factors(axis) if factor.size != 1]
    result = []
    for size in shape:
        taken: list[Axis] = []
        rest = size
        while rest > 1:
            factor = waiting.pop(0).root()
            if factor.parts is not None:  # it occurs twice, and has been split meanwhile
                waiting[:0] = factors(factor)
                continue
            if factor.size > rest:
                factor, remaining = split(factor, rest)
                waiting.insert(0, remaining)
            if rest % factor.size:
                raise ValueError(f"an axis of {size} cannot be made of whole axes of {factor.size}")
            taken.append(factor)
            rest //= factor.size
        result.append(product(taken) if taken else Axis(1, why=ONE))
    return result
