"""What element-wise operations, reductions and views do to axes: they keep, sum, split, merge and move them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmstudy.tracing.axes import ONE, Axis, fix, product, regroup, unify
from mmstudy.tracing.graph import BIAS, SCALE, SHIFT, SIZE, VARIANCE, Rules, Trace, Value, data
from mmstudy.tracing.rules import norms

RULES = Rules()


def pointwise(t: Trace, shape: list[int], *operands: Any, **options: Any) -> Value:
    """An operation that works element by element, whatever it computes: what shares an axis of it is the same.

    A parameter gives each unit a number of its own, as a scale does.
    """
    tensors = [value for value in (*operands, *options.values()) if isinstance(value, Value)]
    for value in tensors:
        for i in range(len(value.axes)):
            t.note(value, i, SCALE)
    result = broadcast(shape, *tensors)
    if len(tensors) == 1 and _keeps_zero(t.operation, operands, options):
        result.passed = t.silencers(tensors[0])
    return result


RULES.of("hardswish", "hardswish_", "log_sigmoid", "where", "masked_fill", "masked_fill_")(pointwise)  # not tagged so
RULES.of("leaky_relu", "leaky_relu_")(pointwise)  # nor these, by torch 2.11


def _keeps_zero(operation: Any, operands: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether f(0) = 0, tried out."""
    if torch.Tag.nondeterministic_seeded in operation.tags:
        return False
    zeros = [torch.zeros(()) if isinstance(value, Value) else value for value in operands]
    try:
        return not bool(operation(*zeros, **options).any())
    except (RuntimeError, TypeError):  # of whole numbers alone, for one
        return False


@RULES.of("rsqrt", "sqrt")
def _root(t, shape, x):
    for i in range(len(x.axes)):
        t.note(x, i, VARIANCE)
    t.note_moved(x, VARIANCE)  # most often by an eps
    return Value(x.axes)


@RULES.of(*norms.CASTS, "dropout", "dropout_", "feature_dropout", "alpha_dropout", "detach_")
def _kept(t, shape, x, *options, **more):
    return Value(x.axes, x.writers, x.tensor, x.moved, x.passed, x.normal)


@RULES.of("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def _made_like(t, shape, x, *options, **more):
    return Value(x.axes)


@RULES.of("copy_", "fill_", "zero_")
def _overwritten(t, shape, x, *operands, **options):
    return broadcast(shape, x, *operands)


@RULES.of("add", "add_", "sub", "sub_", "rsub")
def _sum(t, shape, x, y, **options):
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Value) and one.tensor:
            after = isinstance(other, Value) and other.normal
            for i in range(len(one.axes)):
                t.note(one, i, SHIFT if after else BIAS)
        elif isinstance(one, Value) and isinstance(other, Value) and not other.tensor:
            t.sums.append((t.module, t.silencers(one)))
    result = broadcast(shape, x, y)
    if isinstance(x, Value) and x.tensor and not isinstance(y, Value) and not options:
        result.moved = x.tensor, y if str(t.operation).startswith("aten.add") else -y
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Value) and isinstance(other, Value) and one.normal and other.tensor:
            result.writers = (*one.writers, other.tensor)
    if isinstance(x, Value) and isinstance(y, Value) and x.writers and x.writers == y.writers:
        result.writers = x.writers
    return result


@RULES.of("neg", "neg_")
def _negative(t, shape, x):
    result = pointwise(t, shape, x)
    result.writers = x.writers
    return result


@RULES.of("mul", "mul_", "div", "div_")
def _multiplied(t, shape, x, y, **options):
    tensors = [value for value in (x, y) if isinstance(value, Value)]
    for value in tensors:
        for i in range(len(value.axes)):
            t.note(value, i, SCALE)
        t.note_moved(value, SCALE)
    result = broadcast(shape, x, y)
    result.writers = tuple(name for value in tensors if (name := value.name))
    result.passed = next(filter(None, map(t.silencers, tensors)), ())
    result.normal = any(value.normal for value in tensors) and bool(result.writers)
    if not result.writers:
        result.writers = _scaled(x, y) or (_scaled(y, x) if str(t.operation).startswith("aten.mul") else ())
    return result


def _scaled(x: object, factor: object) -> tuple[str, ...]:
    """The writers of x times a factor: those of x, unless parameters reach the factor too."""
    return x.writers if isinstance(x, Value) and not (isinstance(factor, Value) and factor.trained) else ()


@RULES.of("prelu")
def _prelu(t, shape, x, slope):
    if slope.shape != [1]:
        unify(slope.axes[0], x.axes[1])
    t.note(slope, 0, SCALE)
    return Value(x.axes, passed=t.silencers(x))


def broadcast(shape: list[int], *operands: object) -> Value:
    """A value of this shape whose axes are those of the operands, aligned from the right."""
    axes = data([1] * len(shape))
    for value in operands:
        if isinstance(value, Value):
            for i, axis in enumerate(value.axes, len(shape) - len(value.axes)):
                if axes[i].size == axis.size and not (axis.size == 1 and axes[i].fixed):
                    unify(axes[i], axis)
                    continue
                if axes[i].size != axis.size:
                    fix(axis if axis.size == 1 else axes[i], why="it is of size 1, and repeated along a longer axis")
                if axis.size > 1 or axes[i].size == 1:
                    axes[i] = axis
    return Value(axes)


@RULES.of("softmax", "_softmax", "log_softmax")
def _softmax(t, shape, x, dim, *options):
    t.fix(x.axes[dim], why="a softmax sums over it")
    return Value(x.axes)


@RULES.of(
    "mean", "sum", "amax", "amin", "prod", "all", "any", "argmax", "argmin", "logsumexp", "var", "std", "count_nonzero"
)
def _reduction(t, shape, x, dims=None, *options, **more):
    dims = more.pop("dim", dims)
    gone = _dims(x, None if isinstance(dims, bool) else dims)
    t.fix(*(x.axes[d] for d in gone), why="it is reduced to one number")
    return _reduced(x, gone, keepdim=len(shape) == len(x.axes))


def averaged(t: Trace, shape: list[int], x: Value, dims: Sequence[int], *options: Any, **more: Any) -> Value:
    """An average over units that is a part of their normalization, and therefore fixes none of them."""
    return _reduced(x, _dims(x, dims), keepdim=True)


@RULES.of("max", "min")
def _extreme(t, shape, x, dim=None, *options):
    if isinstance(dim, Value):
        return broadcast(shape, x, dim)
    if dim is None:
        return _reduction(t, shape, x)
    return [_reduction(t, list(part.shape), x, dim) for part in shape]


@RULES.of("linalg_vector_norm", "norm")
def _norm(t, shape, x, order=2, dims=None, *options, **more):
    return _reduction(t, shape, x, dims)


def _dims(x: Value, dims: int | Sequence[int] | None) -> set[int]:
    dims = range(len(x.axes)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return {d % len(x.axes) for d in dims}


def _reduced(x: Value, gone: set[int], keepdim: bool) -> Value:
    kept = [Axis(1, why=ONE) if i in gone else axis for i, axis in enumerate(x.axes)]
    return Value(kept if keepdim else [axis for i, axis in enumerate(x.axes) if i not in gone])


@RULES.of("cumsum", "cumsum_", "cumprod", "logcumsumexp", "sort", "argsort", "topk", "kthvalue", "cummax", "cummin")
def _along(t, shape, x, *options, **more):
    """Along one axis of the result, or of several results; `topk` and others have another length there."""
    dim = more.get("dim", next((option for option in options if type(option) is int), -1))
    if _is(t, "topk", "kthvalue"):
        dim = more.get("dim", options[1] if len(options) > 1 else -1)
    t.fix(x.axes[dim], why="its units are put in order or added up along it")
    results = [shape] if not shape or isinstance(shape[0], int) else [list(part.shape) for part in shape]
    found = []
    for each in results:
        axes = list(x.axes) if len(each) == len(x.axes) else _reduced(x, {dim % len(x.axes)}, keepdim=False).axes
        found.append(Value([a if a.size == size else Axis(size, why=SIZE) for a, size in zip(axes, each, strict=True)]))
    return found[0] if results == [shape] else found


def _is(t: Trace, *names: str) -> bool:
    return str(t.operation).split(".")[1] in names


POOLS = [f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)]
POOLS += [f"max_pool{d}d_with_indices" for d in (1, 2, 3)]
MODES = {"nearest": "123", "linear": "1", "bilinear": "2", "trilinear": "3", "bicubic": "2"}
RESIZED = [f"upsample_{mode}{d}d" for mode, sizes in MODES.items() for d in sizes]


@RULES.of(*POOLS, *RESIZED)
def _pooling(t, shape, x, *options, **more):
    places = next(int(d) for d in "123" if f"{d}d" in str(t.operation))
    results = [shape] if isinstance(shape[0], int) else [list(part.shape) for part in shape]
    found = [Value([*x.axes[:-places], *data(each[-places:])]) for each in results]
    return found[0] if isinstance(shape[0], int) else found


@RULES.of("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as")
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


@RULES.of("expand", "expand_as", "broadcast_to")
def _expanded(t, shape, x, *options, **more):
    old = [None] * (len(shape) - len(x.axes)) + x.axes
    like = options[0].axes if options and isinstance(options[0], Value) else []  # `expand_as`
    new = like or [Axis(size, why="a tensor is expanded along it") for size in shape]
    axes = [a if a is not None and a.size == n.size else n for a, n in zip(old, new, strict=True)]
    return Value(axes, x.writers, x.tensor)


@RULES.of("repeat_interleave")
def _repeated(t, shape, x, repeats, dim, **options):
    axes = list(x.axes)
    axes[dim] = product([axes[dim], Axis(repeats)])
    return Value(axes)


@RULES.of("repeat", "tile")
def _tiled(t, shape, x, repeats):
    old = [*data([1] * (len(shape) - len(x.axes))), *x.axes]
    times = [1] * (len(shape) - len(repeats)) + list(repeats)
    counts = [Axis(n, why="a tensor is repeated along it") for n in times]
    pairs = zip(times, counts, old, strict=True)
    return Value([a if n == 1 else product([c, a]) if a.size > 1 else c for n, c, a in pairs])


@RULES.of("movedim")
def _moved(t, shape, x, source, target):
    source, target = ([d] if isinstance(d, int) else list(d) for d in (source, target))
    source, target = ([d % len(shape) for d in some] for some in (source, target))
    rest = iter([axis for i, axis in enumerate(x.axes) if i not in source])
    placed = dict(zip(target, (x.axes[i] for i in source), strict=True))
    return Value([placed[i] if i in placed else next(rest) for i in range(len(shape))], x.writers, x.tensor)


@RULES.of("arange", "zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full", "eye", "linspace")
def _made(t, shape, *options, **more):
    return Value(data(shape, why=t.because("a tensor is made with a size that is written in numbers")))


@RULES.of("_assert_tensor_metadata")
def _nothing(t, shape, *options, **more):
    return []
