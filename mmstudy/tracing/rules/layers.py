"""What layers do to axes: the operations that have parameters, which make, read and normalize units."""

from math import prod

from mmstudy.tracing.axes import Axis, product, unify
from mmstudy.tracing.graph import (
    BIAS,
    CONSUMED,
    MEAN,
    SCALE,
    SHIFT,
    VARIANCE,
    WEIGHT,
    Normalization,
    Pairing,
    Rules,
    Trace,
    Value,
    alike,
    data,
)

RULES = Rules()


def _layer(t: Trace, x: Value, weight: Value, bias: Value | None, made: int, read: int, summed: Axis) -> Value:
    """An affine layer: `weight` makes units on its axis `made` from those on its axis `read`, which are summed."""
    unify(summed, weight.axes[read])
    fan_in = prod(weight.shape) // weight.axes[made].size
    t.note(weight, read, CONSUMED, fan_in, reads=x)
    t.note(weight, made, WEIGHT, fan_in)
    if bias is not None:
        unify(bias.axes[-1], weight.axes[made])
        t.note(bias, -1, BIAS, fan_in)
    writers = tuple(v.tensor for v in (weight, bias) if v is not None and v.tensor)
    return Value([], writers)


@RULES.of("linear")
def _linear(t, shape, x, weight, bias=None):
    result = _layer(t, x, weight, bias, 0, 1, x.axes[-1])
    result.axes = [*x.axes[:-1], weight.axes[0]]
    return result


@RULES.of("addmm")
def _addmm(t, shape, bias, x, weight):
    result = _layer(t, x, weight, bias, 1, 0, x.axes[-1])
    result.axes = [*x.axes[:-1], weight.axes[1]]
    return result


@RULES.of("conv1d", "conv2d")
def _convolution(t, shape, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    t.fix(*weight.axes[2:], why="it is the extent of a kernel")
    summed = x.axes[1]
    if groups > 1:
        summed, group = Axis(weight.shape[1]), Axis(groups)
        unify(x.axes[1], product([group, summed]))
        unify(weight.axes[0], product([group, Axis(weight.shape[0] // groups)]))
    result = _layer(t, x, weight, bias, 0, 1, summed)
    result.axes = [x.axes[0], weight.axes[0], *data(shape[2:])]
    return result


@RULES.of("embedding")
def _embedding(t, shape, weight, tokens, padding_idx=-1, *options, **more):
    t.fix(weight.axes[0], why="it is the number of rows of a table")
    if padding_idx >= 0:
        t.padding[weight.tensor] = padding_idx
    t.note(weight, 1, WEIGHT)
    return Value([*tokens.axes, weight.axes[1]], (weight.tensor,))


@RULES.of("batch_norm")
def _batch_norm(t, shape, x, scale, shift, mean, variance, *options):
    for value, role in ((scale, SCALE), (shift, SHIFT), (mean, MEAN), (variance, VARIANCE)):
        if value is not None:
            unify(value.axes[0], x.axes[1])
            t.note(value, 0, role)
    return Value(x.axes, _named(scale, shift))


@RULES.of("layer_norm")
def _layer_norm(t, shape, x, normalized, scale=None, shift=None, eps=1e-5, *options):
    return _normalization(t, "layer", x, x.axes[-len(normalized) :], scale, shift, eps)


@RULES.of("rms_norm")
def _rms_norm(t, shape, x, normalized, scale=None, eps=None):
    return _normalization(t, "rms", x, x.axes[-len(normalized) :], scale, None, eps)


@RULES.of("group_norm")
def _group_norm(t, shape, x, groups, scale=None, shift=None, eps=1e-5, *options):
    each = Axis(shape[1] // groups)
    unify(x.axes[1], product([Axis(groups), each]))
    for value, role in ((scale, SCALE), (shift, SHIFT)):
        if value is not None:
            unify(value.axes[0], x.axes[1])
            t.note(value, 0, role)
    names = _names(scale, shift)
    t.normalizations.append(Normalization(each, "group", names[0], names[1], eps, t.module))
    return Value(x.axes, _named(scale, shift))


def _normalization(t, kind, x, axes, scale, shift, eps) -> Value:
    for value, role in ((scale, SCALE), (shift, SHIFT)):
        if value is not None:
            for i, axis in enumerate(axes):
                unify(value.axes[i], axis)
                t.note(value, i, role)
    names = _names(scale, shift)
    t.normalizations.append(Normalization(product(axes), kind, names[0], names[1], eps, t.module))
    return Value(x.axes, _named(scale, shift))


@RULES.of("scaled_dot_product_attention")
def _attention(t, shape, q, k, v, mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    *batch, queries, _ = q.axes
    *key_batch, keys, _ = k.axes
    if enable_gqa:  # each head of keys serves as many consecutive heads of queries
        share = Axis(batch[-1].size // key_batch[-1].size)
        unify(batch[-1], product([key_batch[-1], share]))
        unify(batch[0], key_batch[0])
    else:
        alike(q.axes[:-2], k.axes[:-2])
    alike(k.axes[:-1], v.axes[:-1])
    t.fix(queries, keys, why="it counts positions")
    _pair(t, q, k, scaled=scale is None)
    if mask is not None:
        t.fix(*mask.axes, why="it is an axis of a mask")
    return Value([*batch, queries, v.axes[-1]])


@RULES.of("cross_entropy_loss", "nll_loss", "nll_loss_nd", "mse_loss")
def _loss(t, shape, outputs, targets, weight=None, *options, **more):
    for value in (outputs, targets, weight):
        if isinstance(value, Value):
            t.fix(*value.axes, why="a loss is taken of it")
    return Value(data(shape))


@RULES.of("matmul", "bmm", "mm")
def _matmul(t, shape, x, y):
    if y.tensor:
        result = _layer(t, x, y, None, -1, -2, x.axes[-1])
        result.axes = [*x.axes[:-1], y.axes[-1]]
        return result
    alike(x.axes[:-2], y.axes[:-2])
    unify(x.axes[-1], y.axes[-2])
    t.fix(x.axes[-1], why="activations are multiplied and summed over it, and how the sum is scaled is not known")
    return Value([*x.axes[:-1], y.axes[-1]])


def _pair(t: Trace, q: Value, k: Value, scaled: bool) -> None:
    width, key_width = q.axes[-1], k.axes[-1]
    unify(width, key_width)
    if q.writers and not set(q.writers) & set(k.writers):
        t.pairings.append(Pairing(width, q.writers, scaled))
    else:  # what makes up for more units in the sum cannot be put into the queries alone
        t.fix(width, why="queries and keys are summed over it, and no layer writes the queries alone")


def _names(*values: Value | None) -> list[str | None]:
    return [value.tensor if value is not None else None for value in values]


def _named(*values: Value | None) -> tuple[str, ...]:
    return tuple(name for name in _names(*values) if name)
