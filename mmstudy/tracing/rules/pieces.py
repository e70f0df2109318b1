"""What cutting, picking and joining do to axes: each piece of an axis is a range of it, or all have the same units."""

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from mmstudy.tracing.axes import Axis, between, joined, leaves, product, unify
from mmstudy.tracing.graph import BIAS, Rules, Trace, Value, alike, data

RULES = Rules()
CUT = "it is cut at a fixed place"
MOVED = "its units are moved, repeated or picked by their numbers"


@RULES.of("slice")
def _sliced(t, shape, x, dim=0, start=None, end=None, step=1):
    first, _, step = slice(start, end, step).indices(x.axes[dim].size)
    return _range(t, x, dim, first, shape[dim], step)


@RULES.of("narrow")
def _narrowed(t, shape, x, dim, start, count):
    if isinstance(start, Value):
        t.fix(x.axes[dim], why="it is cut at a place that is computed")
        start = 0
    return _range(t, x, dim, start % x.axes[dim].size, count)


@RULES.of("select")
def _selected_one(t, shape, x, dim, place):
    t.fix(x.axes[dim], why=CUT)
    return Value([axis for i, axis in enumerate(x.axes) if i != dim % len(x.axes)], x.writers, x.tensor)


def _range(t: Trace, x: Value, dim: int, start: int, count: int, step: int = 1) -> Value:
    """`x` from a place of an axis on: a range of it, which is fixed if it cannot be cut there, or is data anyway."""
    dim %= len(x.axes)
    axis = x.axes[dim]
    if count == axis.size:
        return Value(x.axes, x.writers, x.tensor)
    why = CUT
    if count and step == 1 and not _data(axis):
        try:
            return Value([*x.axes[:dim], between(axis, start, start + count), *x.axes[dim + 1 :]], x.writers, x.tensor)
        except ValueError as error:
            why = f"{CUT}: {error}"
    t.fix(axis, why=why)
    return Value([*x.axes[:dim], Axis(count, why=t.because(why)), *x.axes[dim + 1 :]], x.writers, x.tensor)


def _data(axis: Axis) -> bool:
    """Whether none of it can grow anyway."""
    return all(leaf.fixed for leaf in leaves(axis))


@RULES.of("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def _chunked(t, shapes, x, size, dim=0):
    lengths = [piece.shape[dim] for piece in shapes]
    if len(set(lengths)) == 1:
        return _pieces(t, shapes, x, dim, kept=True)
    places = pairwise(accumulate(lengths, initial=0))
    return [_range(t, x, dim, start, end - start) for start, end in places]


@RULES.of("unbind")
def _unbound(t, shapes, x, dim=0):
    return _pieces(t, shapes, x, dim, kept=False)


def _pieces(t: Trace, shapes: Sequence[Tensor], x: Value, dim: int, kept: bool) -> list[Value]:
    """`x`, cut evenly along an axis, which each piece has (shorter) or has not."""
    dim, count = dim % len(x.axes), len(shapes)
    pieces, each = Axis(count, why="it counts the pieces that an axis is cut into"), Axis(x.axes[dim].size // count)
    unify(x.axes[dim], product([pieces, each]))
    axes = [*x.axes[:dim], *([each] if kept else []), *x.axes[dim + 1 :]]
    return [Value(axes, x.writers, x.tensor) for _ in range(count)]


@RULES.of("glu")
def _gated(t, shape, x, dim=-1):
    dim %= len(x.axes)
    half = Axis(shape[dim])
    unify(x.axes[dim], product([Axis(2, why="it counts values and gates"), half]))
    return Value([*x.axes[:dim], half, *x.axes[dim + 1 :]], passed=t.silencers(x))


@RULES.of("pixel_shuffle")
def _pixels_shuffled(t, shape, x, factor):
    channels = Axis(shape[-3])
    unify(x.axes[-3], product([channels, Axis(factor**2, why="it counts the pixels that a channel becomes")]))
    return Value([*x.axes[:-3], channels, *data(shape[-2:])])


@RULES.of("pixel_unshuffle")
def _pixels_gathered(t, shape, x, factor):
    pixels = Axis(factor**2, why="it counts the pixels that become a channel")
    return Value([*x.axes[:-3], product([x.axes[-3], pixels]), *data(shape[-2:])])


@RULES.of("channel_shuffle")
def _channels_shuffled(t, shape, x, groups):
    group, each = Axis(groups), Axis(shape[1] // groups)
    unify(x.axes[1], product([group, each]))
    return Value([x.axes[0], product([each, group]), *x.axes[2:]])


@RULES.of("pad", "constant_pad_nd")
def _padded(t, shape, x, sides, *options):
    """`sides`: how much is added before and behind, from the last axis on."""
    axes = list(x.axes)
    for i, (before, behind) in enumerate(zip(sides[::2], sides[1::2], strict=True), start=1):
        if before or behind:
            t.fix(axes[-i], why="it is padded")
            axes[-i : len(axes) - i + 1] = data([shape[-i]])
    return Value(axes)


@RULES.of("roll", "flip")
def _rolled(t, shape, x, first, dims=None):
    """`roll` by so much along some axes, or all; `flip` along some."""
    dims = first if dims is None and str(t.operation).startswith("aten.flip") else dims
    if not dims and dims != 0:
        raise ValueError("the whole tensor is moved")
    dims = [dims] if isinstance(dims, int) else dims
    t.fix(*(x.axes[d] for d in dims), why=MOVED)
    return Value(x.axes)


@RULES.of("index_select")
def _selected(t, shape, x, dim, places):
    dim %= len(x.axes)
    t.fix(x.axes[dim], why=MOVED)
    return Value([*x.axes[:dim], *data([shape[dim]]), *x.axes[dim + 1 :]], x.writers, x.tensor)


@RULES.of("index")
def _indexed(t, shape, x, places):
    at = [i for i, place in enumerate(places) if place is not None]
    t.fix(*(x.axes[i] for i in at), why=MOVED)
    for i in at:
        t.fix(*places[i].axes, why="it picks units by their numbers")
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0  # where the axes of the places go
    count, rest = len(shape) - len(x.axes) + len(at), [axis for i, axis in enumerate(x.axes) if i not in at]
    picked = data(shape[first : first + count], why=t.because(MOVED))
    return Value([*rest[:first], *picked, *rest[first:]], x.writers, x.tensor)


@RULES.of("index_add", "index_add_", "index_copy", "index_copy_")
def _put_by_numbers(t, shape, x, dim, places, given, **options):
    """Rows of one tensor are added to rows of another, or take their place: as messages to the nodes of a graph."""
    dim %= len(x.axes)
    t.fix(x.axes[dim], given.axes[dim], why=MOVED)
    _joined(t, [x, given], dim)
    return Value(x.axes)


@RULES.of("cat", "concat", "concatenate")
def _concatenated(t, shape, tensors, dim=0):
    dim %= len(shape)
    tensors = [value for value in tensors if value.shape != [0]]
    if len(tensors) == 1:  # and nothing, as in a cache that is empty
        return Value(tensors[0].axes)
    _joined(t, tensors, dim)
    whole = joined([value.axes[dim] for value in tensors])
    if _data(whole):
        whole = Axis(shape[dim], why=t.because("it is a concatenated axis"))
    writers = tensors[0].writers if len({value.writers for value in tensors}) == 1 else ()
    return Value([*tensors[0].axes[:dim], whole, *tensors[0].axes[dim + 1 :]], writers)


@RULES.of("stack")
def _stacked(t, shape, tensors, dim=0):
    dim %= len(shape)
    _joined(t, tensors)
    axes = tensors[0].axes
    return Value([*axes[:dim], Axis(len(tensors), why="it counts what is stacked"), *axes[dim:]])


def _joined(t: Trace, tensors: Sequence[Value], dim: int | None = None) -> None:
    """All axes but one are the same; a parameter among them (a class token) makes units."""
    first = tensors[0]
    for value in tensors:
        for i in range(len(value.axes)):
            t.note(value, i, BIAS)
        alike([a for i, a in enumerate(value.axes) if i != dim], [a for i, a in enumerate(first.axes) if i != dim])


@RULES.also(operator.getitem)
def _item(t, shape, values, index):
    return values[index]
