"""What products that are summed do to axes: of activations with weights, and with each other (attention)."""

from math import prod
from string import ascii_letters

from mmstudy.tracing.axes import Axis, product, unify
from mmstudy.tracing.graph import CONSUMED, WEIGHT, Pairing, Rules, Trace, Value, alike
from mmstudy.tracing.rules.layers import COMPUTED, layer
from mmstudy.tracing.rules.views import broadcast

RULES = Rules()


@RULES.of("matmul", "bmm", "mm")
def _matmul(t, shape, x, y):
    if y.tensor and len(y.axes) == 1:  # a parameter that makes one number of all units
        unify(x.axes[-1], y.axes[0])
        t.note(y, 0, CONSUMED, y.axes[0].size, reads=x)
        return Value(x.axes[:-1], (y.tensor,))
    if y.tensor:
        result = layer(t, x, y, None, -1, -2, x.axes[-1])
        result.axes = [*x.axes[:-1], y.axes[-1]]
        return result
    if x.computed or y.computed:
        t.fix(*x.axes[-2:], *y.axes[-2:], why=COMPUTED)
    made = [*x.axes[-2:-1], *(y.axes[-1:] if len(y.axes) > 1 else [])]  # a vector has no axis that stays
    batch = broadcast(shape[: len(shape) - len(made)], Value(x.axes[:-2]), Value(y.axes[:-2]))
    unify(x.axes[-1], y.axes[-2] if len(y.axes) > 1 else y.axes[0])
    t.fix(x.axes[-1], why="activations are multiplied and summed over it, and how the sum is scaled is not known")
    return Value([*batch.axes, *made])


@RULES.of("baddbmm")
def _matmul_and_sum(t, shape, x, y, z, **options):
    return broadcast(shape, x, _matmul(t, shape, y, z))


@RULES.of("einsum")
def _einsum(t, shape, equation, operands, *options, **more):
    """Axes of one letter are the same; a parameter's letters are made if they are in the result, else they are read."""
    terms, right = _letters(equation.replace(" ", ""), [len(value.axes) for value in operands])
    if any(len(set(term)) < len(term) for term in (*terms, right)):
        raise ValueError(f"{equation!r} takes a diagonal")
    named: dict[str, Axis] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            unify(named.setdefault(letter, axis), axis)
    weights = [(term, value) for term, value in zip(terms, operands, strict=True) if value.tensor]
    if len(weights) == 1 and len(operands) == 2:
        _weighted(t, *weights[0], right, next(value for value in operands if not value.tensor))
    else:
        summed = [axis for letter, axis in named.items() if letter not in right]
        t.fix(*summed, why="activations are multiplied and summed over it, and how the sum is scaled is not known")
        for value in operands:
            if value.tensor or value.computed:
                t.fix(*value.axes, why=COMPUTED)
    writers = [value.tensor for _, value in weights if value.tensor]
    return Value([named[letter] for letter in right], tuple(writers) if len(operands) == 2 else ())


def _letters(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, where an ellipsis has letters too, aligned from the right."""
    left, arrow, right = equation.partition("->")
    if not arrow:
        raise ValueError(f"{equation!r} leaves axes unnamed")
    free = [letter for letter in ascii_letters if letter not in equation]
    terms, most = left.split(","), 0
    for i, (term, number) in enumerate(zip(terms, dims, strict=True)):
        if "..." in term:
            more = number - len(term) + 3
            terms[i], most = term.replace("...", "".join(reversed(free[:more]))), max(most, more)
    return terms, right.replace("...", "".join(reversed(free[:most])))


def _weighted(t: Trace, term: str, weight: Value, right: str, x: Value) -> None:
    """Note what a parameter does with its letters, in a product with activations."""
    fan_in = prod(axis.size for letter, axis in zip(term, weight.axes, strict=True) if letter not in right)
    for i, letter in enumerate(term):
        t.note(weight, i, WEIGHT if letter in right else CONSUMED, fan_in, reads=None if letter in right else x)


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


def _pair(t: Trace, q: Value, k: Value, scaled: bool) -> None:
    width, key_width = q.axes[-1], k.axes[-1]
    unify(width, key_width)
    both = " and ".join(name for name in q.writers if name in k.writers)
    if q.writers and not both:
        t.pairings.append(Pairing(width, q.writers, tuple(q.axes), scaled))
    else:  # what makes up for more units in the sum cannot be put into the queries alone
        alone = f"both are made by {both}" if both else "no layer writes the queries alone"
        t.fix(width, why=f"queries and keys are summed over it, and {alone}")
