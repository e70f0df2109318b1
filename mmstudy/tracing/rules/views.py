"""What element-wise operations, reductions and views do to axes: they keep, sum, split, merge and move them."""

import operator
from typing import cast

from torch import Tensor

from mmstudy.tracing.axes import ONE, Axis, product, regroup, unify
from mmstudy.tracing.graph import BIAS, SCALE, VARIANCE, Rules, Trace, Value, alike, data

RULES = Rules()


@RULES.of("relu", "relu_", "gelu", "silu", "tanh", "leaky_relu", "elu", "neg", "abs")
def _keeps_zero(t, shape, x, *options, **more):
    result = cast(Value, _pointwise(t, shape, x, *options, **more))
    result.passed = x.silencers
    return result


@RULES.of("sigmoid", "softplus", "hardtanh", "exp", "pow", "reciprocal")
def _pointwise(t, shape, x, *options, **more):
    if any(isinstance(option, Value) for option in options):
        raise ValueError("one of its options is a tensor")
    return Value(x.axes)


@RULES.of("rsqrt", "sqrt")
def _root(t, shape, x):
    if name := x.tensor or x.moved:  # a variance, most often with its eps
        t.notes = [note for note in t.notes if (note.tensor, note.role) != (name, BIAS)]
        for i in range(len(x.axes)):
            t.note(Value(x.axes, tensor=name), i, VARIANCE)
    return Value(x.axes)


@RULES.of("dropout", "clone", "contiguous", "to", "_to_copy", "detach", "alias")
def _kept(t, shape, x, *options, **more):
    return Value(x.axes, x.writers, x.tensor, passed=x.passed)


@RULES.of("add", "add_", "sub", "rsub")
def _sum(t, shape, x, y, **options):
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Value) and one.tensor:
            for i in range(len(one.axes)):
                t.note(one, i, BIAS)
        elif isinstance(one, Value) and isinstance(other, Value) and not other.tensor:
            t.sums.append((t.module, one.silencers))
    result = _broadcast(shape, x, y)
    if isinstance(x, Value) and not isinstance(y, Value):
        result.moved = x.tensor
    return result


@RULES.of("mul", "mul_", "div")
def _multiplied(t, shape, x, y, **options):
    tensors = [value for value in (x, y) if isinstance(value, Value)]
    for value in tensors:
        for i in range(len(value.axes)):
            t.note(value, i, SCALE)
    result = _broadcast(shape, x, y)
    result.writers = tuple(value.tensor for value in tensors if value.tensor)
    result.passed = next((value.silencers for value in tensors if value.silencers), ())
    return result


@RULES.of(
    "maximum", "minimum", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "bitwise_and"
)
def _elementwise(t, shape, *operands):
    return _broadcast(shape, *operands)


def _broadcast(shape: list[int], *operands: object) -> Value:
    axes = data([1] * len(shape))
    for value in operands:
        if isinstance(value, Value):
            for i, axis in enumerate(value.axes, len(shape) - len(value.axes)):
                if axes[i].size == axis.size and not (axis.size == 1 and axes[i].fixed):
                    unify(axes[i], axis)
                elif axis.size > 1 or axes[i].size == 1:
                    axes[i] = axis
    return Value(axes)


@RULES.of("softmax", "_softmax", "log_softmax")
def _softmax(t, shape, x, dim, *options):
    t.fix(x.axes[dim], why="a softmax sums over it")
    return Value(x.axes)


@RULES.of("mean", "sum", "amax")
def _reduction(t, shape, x, dims=None, keepdim=False, **options):
    dims = range(len(x.axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x.axes) for d in dims}
    t.fix(*(x.axes[d] for d in gone), why="it is reduced to one number")
    kept = [Axis(1, why=ONE) if i in gone else axis for i, axis in enumerate(x.axes)]
    return Value(kept if keepdim else [axis for i, axis in enumerate(x.axes) if i not in gone])


@RULES.of("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
def _pooling(t, shape, x, *options):
    return Value([*x.axes[:2], *data(shape[2:])])


@RULES.of("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
def _reshaped(t, shape, x, *options):
    same = [a for a in x.axes if a.size != 1]
    if [a.size for a in same] == [size for size in shape if size != 1]:  # only axes of size 1 come or go
        kept = iter(same)
        return Value([next(kept) if size != 1 else Axis(1, why=ONE) for size in shape], x.writers, x.tensor)
    return Value(regroup(x.axes, shape), x.writers, x.tensor)


@RULES.of("transpose", "swapaxes")
def _transposed(t, shape, x, first, second):
    axes = list(x.axes)
    axes[first], axes[second] = axes[second], axes[first]
    return Value(axes, x.writers, x.tensor)


@RULES.of("t", "numpy_T")
def _reversed(t, shape, x):
    return Value(x.axes[::-1], x.writers, x.tensor)


@RULES.of("mT")
def _matrix_transposed(t, shape, x):
    return _transposed(t, shape, x, -1, -2)


@RULES.of("permute")
def _permuted(t, shape, x, order):
    return Value([x.axes[i] for i in order], x.writers, x.tensor)


@RULES.of("expand")
def _expanded(t, shape, x, *options, **more):
    old = [None] * (len(shape) - len(x.axes)) + x.axes
    axes = [
        a if a is not None and a.size == size else Axis(size, why="a tensor is expanded along it")
        for a, size in zip(old, shape, strict=True)
    ]
    return Value(axes, x.writers, x.tensor)


@RULES.of("repeat_interleave")
def _repeated(t, shape, x, repeats, dim, **options):
    axes = list(x.axes)
    axes[dim] = product([axes[dim], Axis(repeats)])
    return Value(axes)


@RULES.of("slice", "select", "narrow")
def _sliced(t, shape, x, dim=0, *options):
    dim %= len(x.axes)
    if len(shape) == len(x.axes):
        if shape[dim] == x.axes[dim].size:
            return Value(x.axes, x.writers, x.tensor)
        t.fix(x.axes[dim], why="it is cut at a fixed place")
        return Value([*x.axes[:dim], *data([shape[dim]]), *x.axes[dim + 1 :]], x.writers, x.tensor)
    t.fix(x.axes[dim], why="it is cut at a fixed place")
    return Value([*x.axes[:dim], *x.axes[dim + 1 :]], x.writers, x.tensor)


@RULES.of("chunk", "split", "split_with_sizes")
def _chunked(t, shapes, x, size, dim=0):
    return _pieces(t, shapes, x, dim, kept=True)


@RULES.of("unbind")
def _unbound(t, shapes, x, dim=0):
    return _pieces(t, shapes, x, dim, kept=False)


def _pieces(t: Trace, shapes: list[Tensor], x: Value, dim: int, kept: bool) -> list[Value]:
    """`x`, cut along an axis, which each piece has (shorter) or has not."""
    dim, count = dim % len(x.axes), len(shapes)
    if len({tuple(piece.shape) for piece in shapes}) > 1:
        raise ValueError(f"an axis of {x.axes[dim].size} is cut into uneven pieces")
    pieces, each = Axis(count, why="it counts the pieces that an axis is cut into"), Axis(x.axes[dim].size // count)
    unify(x.axes[dim], product([pieces, each]))
    axes = [*x.axes[:dim], *([each] if kept else []), *x.axes[dim + 1 :]]
    return [Value(axes, x.writers, x.tensor) for _ in range(count)]


@RULES.of("cat")
def _concatenated(t, shape, tensors, dim=0):
    dim %= len(shape)
    for value in tensors:
        t.fix(value.axes[dim], why="it is one part of a concatenated axis")
        for i in range(len(value.axes)):  # a parameter among them (a class token) makes units
            t.note(value, i, BIAS)
        alike([a for i, a in enumerate(value.axes) if i != dim], [a for i, a in enumerate(tensors[0].axes) if i != dim])
    return Value([*tensors[0].axes[:dim], *data([shape[dim]]), *tensors[0].axes[dim + 1 :]])


@RULES.of("arange", "zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "new_zeros", "new_ones")
def _made(t, shape, *options, **more):
    return Value(data(shape))


@RULES.of("_assert_tensor_metadata")
def _nothing(t, shape, *options, **more):
    return []


@RULES.also(operator.getitem)
def _item(t, shape, values, index):
    return values[index]
