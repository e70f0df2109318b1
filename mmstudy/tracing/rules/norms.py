"""Normalizations that are written by hand, operation by operation, recognized in the graph.

    x · (mean(x²) + eps)^(−1/2)                       RMS norm (Zhang, Sennrich 2019, arXiv 1910.07467)
    (x − mean(x)) · (mean((x − mean(x))²) + eps)^(−1/2)   layer norm (Ba et al. 2016, arXiv 1607.06450)

An average over units fixes them. These ones do not, if nothing but the normalization reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

CASTS = ("to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy")
VIEWS = ("view", "reshape", "unsqueeze")


@dataclass(frozen=True)
class Norm:
    """A normalization of the node `of` along `dim`, and the parameter that scales its result, if there is one."""

    of: fx.Node
    dim: int
    kind: str  # as in `graph.Normalization`
    eps: float
    scale: fx.Node | None


@dataclass(frozen=True)
class ByHand:
    """The normalizations of a graph by the nodes of their results, and the averages that belong to them."""

    norms: dict[fx.Node, Norm] = field(default_factory=dict)
    averages: set[fx.Node] = field(default_factory=set)


def written_by_hand(graph: fx.Graph) -> ByHand:
    """All normalizations that a graph computes step by step."""
    found = ByHand()
    for node in graph.nodes:
        for x, root in _factors(node):
            _recognize(found, node, x, root)
    return found


def _recognize(found: ByHand, end: fx.Node, x: fx.Node, root: fx.Node) -> None:
    """Enter `end` = x · root, if `root` is one over the root of the mean of x²."""
    inner, variance, eps = _variance(root)
    centred, dim = _without(x), _along(variance)
    taken = [pair for pair in (_mean_taken_off(centred),) if pair]  # (x, its mean), as often as it is computed
    if _name(variance) == "mean":
        squared = _without(_args(variance)[0])
        inner |= {squared, *_between(_args(variance)[0], squared)}
        other = _square_of(squared)
        if other is None:
            return
        if other is not centred:
            again = _mean_taken_off(other)
            if not taken or not again or again[0] is not taken[0][0]:
                return
            taken.append(again)
            inner.add(other)
    elif _name(variance) != "var" or not taken or _without(_args(variance)[0]) is not taken[0][0]:
        return
    if dim is None or any(_along(mean) != dim for _, mean in taken):
        return
    averages = {variance, *(mean for _, mean in taken)}
    inner |= {centred} if taken else set()
    around = inner | averages | {end}
    if all(_only_read_in(part, around) for part in inner | averages):
        of, kind = (taken[0][0], "layer") if taken else (centred, "rms")
        found.norms[end] = Norm(of, dim, kind, eps, _scale(end))
        found.averages.update(averages)


def _factors(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(x, r) of node = x · r with r = v^(−1/2), or of node = x / r with r = v^(1/2)."""
    if _name(node) in ("mul", "mul_", "div", "div_") and all(isinstance(part, fx.Node) for part in _args(node)[:2]):
        a, b = _args(node)[:2]
        if _name(node).startswith("div"):
            pairs, power = [(a, b)], 0.5
        else:
            pairs, power = [(a, b), (b, a)], -0.5
        yield from ((x, root) for x, root in pairs if _power(_without(root)) == power)


def _power(node: fx.Node) -> float | None:
    """The exponent of a root."""
    if _name(node) in ("rsqrt", "sqrt"):
        return 0.5 if _name(node) == "sqrt" else -0.5
    if _name(node) == "pow" and _args(node)[1] in (-0.5, 0.5):
        return float(_args(node)[1])
    return -0.5 if _name(node) == "reciprocal" and _name(_without(_args(node)[0])) == "sqrt" else None


def _variance(root: fx.Node) -> tuple[set[fx.Node], fx.Node, float]:
    """(the nodes on the way, what the root is taken of but for a number that is added, this number)."""
    inner, eps, node = set(_between(root, _without(root))), 0.0, _without(root)
    if _name(node) == "reciprocal":
        inner |= {node, *_between(_args(node)[0], _without(_args(node)[0]))}
        node = _without(_args(node)[0])
    inner.add(node)
    node = _args(node)[0]
    while _name(node) in (*CASTS, "add", "add_"):
        if _name(node) not in CASTS:
            numbers = [part for part in _args(node)[:2] if isinstance(part, int | float)]
            if len(numbers) != 1 or node.kwargs:
                break
            eps += float(numbers[0])
        inner.add(node)
        node = _args(node)[0]
    return inner, node, eps


def _square_of(node: fx.Node) -> fx.Node | None:
    """The node whose square this is."""
    name, args = _name(node), _args(node)
    if (name == "pow" and args[1] == 2) or name == "square":
        return _without(args[0])
    if name == "mul" and all(isinstance(part, fx.Node) for part in args[:2]):
        one, other = _without(args[0]), _without(args[1])
        return one if one is other else None
    return None


def _mean_taken_off(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, its mean) of x − mean(x)."""
    if _name(node) != "sub" or node.kwargs or not all(isinstance(part, fx.Node) for part in _args(node)[:2]):
        return None
    x, mean = _without(_args(node)[0]), _without(_args(node)[1])
    return (x, mean) if _name(mean) == "mean" and _without(_args(mean)[0]) is x else None


def _along(average: fx.Node) -> int | None:
    """The one axis that an average is taken over and that stays, with size 1; a variance must divide by n."""
    if _name(average) not in ("mean", "var"):
        return None
    dims, options = _args(average)[1] if len(_args(average)) > 1 else None, dict[str, Any](average.kwargs)
    keep = options.get("keepdim", _args(average)[-1])
    biased = _name(average) == "mean" or options.get("correction") == 0 or _args(average)[2:3] == (False,)
    shape, source = average.meta["val"].shape, _args(average)[0].meta["val"].shape
    if isinstance(dims, list | tuple) and len(dims) == 1 and keep is True and biased and len(shape) == len(source):
        return int(dims[0]) % len(source)
    return None


def _scale(end: fx.Node) -> fx.Node | None:
    """The parameter that the only reader of a result multiplies it by, perhaps with a number added."""
    node = end
    while len(users := _users(node)) == 1:
        (user,) = users
        if _name(user) in ("mul", "mul_"):
            factors = [part for part in _args(user)[:2] if isinstance(part, fx.Node) and part is not node]
            others = [_without(_unmoved(_without(part, (*CASTS, *VIEWS))), (*CASTS, *VIEWS)) for part in factors]
            return others[0] if len(others) == 1 and others[0].op == "placeholder" else None
        if _name(user) not in CASTS:
            break
        node = user
    return None


def _unmoved(node: fx.Node) -> fx.Node:
    """What a number is added to, or the node itself."""
    number = _name(node) in ("add", "sub", "rsub") and isinstance(_args(node)[1], int | float) and not node.kwargs
    return _args(node)[0] if number else node


def _without(node: fx.Node, changes: tuple[str, ...] = CASTS) -> fx.Node:
    """What a node is, but for its type."""
    while _name(node) in changes:
        node = _args(node)[0]
    return node


def _between(node: fx.Node, source: fx.Node) -> Iterator[fx.Node]:
    while node is not source:
        yield node
        node = _args(node)[0]


def _only_read_in(node: fx.Node, around: set[fx.Node]) -> bool:
    """Whether all that reads a node is among these, perhaps behind a change of type."""
    return all(user in around or (_name(user) in CASTS and _only_read_in(user, around)) for user in _users(node))


def _users(node: fx.Node) -> list[fx.Node]:
    """The operations that compute with a node."""
    return [user for user in node.users if _name(user) != "_assert_tensor_metadata"]


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _name(node: object) -> str:
    """The name of an operation of ATen, e.g. "mul" for all of its overloads."""
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    return packet.__name__ if isinstance(packet, torch._ops.OpOverloadPacket) else ""
