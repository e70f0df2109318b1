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
    Rules,
    Trace,
    Value,
    data,
)

RULES = Rules()
COMPUTED = "its weights are no parameter: they are computed, e.g. masked, merged or normalized"


def layer(t: Trace, x: Value, weight: Value, bias: Value | None, made: int, read: int, summed: Axis) -> Value:
    """An affine layer: `weight` makes units on its axis `made` from those on its axis `read`, which are summed."""
    unify(summed, weight.axes[read])
    if not weight.tensor:
        t.fix(weight.axes[made], weight.axes[read], why=COMPUTED)
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
    result = layer(t, x, weight, bias, 0, 1, x.axes[-1])
    result.axes = [*x.axes[:-1], weight.axes[0]]
    return result


@RULES.of("addmm")
def _addmm(t, shape, bias, x, weight):
    result = layer(t, x, weight, bias, 1, 0, x.axes[-1])
    result.axes = [*x.axes[:-1], weight.axes[1]]
    return result


@RULES.of("conv1d", "conv2d", "conv3d")
def _convolution(t, shape, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    t.fix(*weight.axes[2:], why="it is the extent of a kernel")
    summed = x.axes[1]
    if groups > 1:
        summed, group = Axis(weight.shape[1]), Axis(groups)
        unify(x.axes[1], product([group, summed]))
        unify(weight.axes[0], product([group, Axis(weight.shape[0] // groups)]))
    result = layer(t, x, weight, bias, 0, 1, summed)
    result.axes = [x.axes[0], weight.axes[0], *data(shape[2:])]
    return result


@RULES.of("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(t, shape, x, weight, bias=None, stride=1, padding=0, more=0, groups=1, dilation=1):
    """Its weight is (inputs, outputs of a group, *kernel)."""
    t.fix(*weight.axes[2:], why="it is the extent of a kernel")
    group, read, made = Axis(groups), Axis(weight.shape[0] // groups), weight.axes[1]
    channels = product([group, made]) if groups > 1 else made
    unify(x.axes[1], product([group, read]) if groups > 1 else read)
    unify(weight.axes[0], x.axes[1])
    if not weight.tensor:
        t.fix(*weight.axes, why=COMPUTED)
    fan_in = read.size * prod(weight.shape[2:])
    if groups > 1:  # the groups themselves are made
        t.note(Value([group], tensor=weight.tensor), 0, WEIGHT, fan_in)
    t.note(Value([read], tensor=weight.tensor), 0, CONSUMED, fan_in, reads=x)
    t.note(weight, 1, WEIGHT, fan_in)
    if bias is not None:
        unify(bias.axes[0], channels)
        t.note(bias, 0, BIAS, fan_in)
    return Value([x.axes[0], channels, *data(shape[2:])], _named(weight, bias))


@RULES.of("embedding")
def _embedding(t, shape, weight, tokens, padding_idx=-1, *options, **more):
    t.fix(weight.axes[0], why="it is the number of rows of a table")
    if padding_idx >= 0:
        t.padding[weight.tensor] = padding_idx
    if not weight.tensor:
        t.fix(weight.axes[1], why=COMPUTED)
    t.note(weight, 1, WEIGHT)
    return Value([*tokens.axes, weight.axes[1]], _named(weight))


@RULES.of("batch_norm", "instance_norm")
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
    number, each = Axis(groups), Axis(shape[1] // groups)
    unify(x.axes[1], product([number, each]))
    t.seen.setdefault(t.module, []).append(number)
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
    if scale is not None:
        t.note_moved(scale, SCALE)
    one, other = scale.name if scale is not None else None, shift.tensor if shift is not None else None
    t.normalizations.append(Normalization(product(axes), kind, one, other, eps, t.module))
    return Value(x.axes, tuple(name for name in (one, other) if name))


@RULES.of("cross_entropy_loss", "nll_loss", "nll_loss_nd", "mse_loss")
def _loss(t, shape, outputs, targets, weight=None, *options, **more):
    for value in (outputs, targets, weight):
        if isinstance(value, Value):
            t.fix(*value.axes, why="a loss is taken of it")
    return Value(data(shape))


def _names(*values: Value | None) -> list[str | None]:
    return [value.tensor if value is not None else None for value in values]


def _named(*values: Value | None) -> tuple[str, ...]:
    return tuple(name for name in _names(*values) if name)
