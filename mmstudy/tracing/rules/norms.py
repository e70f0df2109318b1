"""Normalizations that are written by hand, operation by operation, recognized in the graph.

    x · (mean(x²) + eps)^(−1/2)                       RMS norm (Zhang, Sennrich 2019, arXiv 1910.07467)
    (x − mean(x)) · (mean((x − mean(x))²) + eps)^(−1/2)   layer norm (Ba et al. 2016, arXiv 1607.06450)

An average over units fixes them. These ones do not, if nothing but the normalization reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

CASTS = ("to", "_to_copy", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy")


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
    centred, taken = _without(x), _mean_taken_off(_without(x))
    dim = _along(variance)
    if _name(variance) == "mean":
        squared = _without(variance.args[0])
        inner |= {squared, *_between(variance.args[0], squared)}
        other = _square_of(squared)
        if other is None or not (other is centred or (taken and _mean_taken_off(other) == taken)):
            return
        inner |= {centred, other} if taken else set()
    elif _name(variance) != "var" or not taken or _without(variance.args[0]) is not taken[0]:
        return
    if dim is None or (taken and _along(taken[1]) != dim):
        return
    averages = {variance, taken[1]} if taken else {variance}
    around = inner | averages | {end}
    if all(_only_read_in(part, around) for part in inner | averages):
        of, kind = (taken[0], "layer") if taken else (centred, "rms")
        found.norms[end] = Norm(of, dim, kind, eps, _scale(end))
        found.averages.update(averages)


def _factors(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(x, r) of node = x · r with r = v^(−1/2), or of node = x / r with r = v^(1/2)."""
    if _name(node) in ("mul", "mul_", "div", "div_") and all(isinstance(part, fx.Node) for part in node.args[:2]):
        a, b = node.args[:2]
        if _name(node).startswith("div"):
            pairs, power = [(a, b)], 0.5
        else:
            pairs, power = [(a, b), (b, a)], -0.5
        yield from ((x, root) for x, root in pairs if _power(_without(root)) == power)


def _power(node: fx.Node) -> float | None:
    """The exponent of a root."""
    if _name(node) in ("rsqrt", "sqrt"):
        return 0.5 if _name(node) == "sqrt" else -0.5
    if _name(node) == "pow" and node.args[1] in (-0.5, 0.5):
        return float(node.args[1])
    return -0.5 if _name(node) == "reciprocal" and _name(_without(node.args[0])) == "sqrt" else None


def _variance(root: fx.Node) -> tuple[set[fx.Node], fx.Node, float]:
    """(the nodes on the way, what the root is taken of but for a number that is added, this number)."""
    inner, eps, node = set(_between(root, _without(root))), 0.0, _without(root)
    if _name(node) == "reciprocal":
        inner |= {node, *_between(node.args[0], _without(node.args[0]))}
        node = _without(node.args[0])
    inner.add(node)
    node = node.args[0]
    while _name(node) in (*CASTS, "add", "add_"):
        if _name(node) not in CASTS:
            numbers = [part for part in node.args[:2] if isinstance(part, int | float)]
            if len(numbers) != 1 or node.kwargs:
                break
            eps += float(numbers[0])
        inner.add(node)
        node = node.args[0]
    return inner, node, eps


def _square_of(node: fx.Node) -> fx.Node | None:
    """The node whose square this is."""
    name, args = _name(node), node.args
    if (name == "pow" and args[1] == 2) or name == "square":
        return _without(args[0])
    if name == "mul" and all(isinstance(part, fx.Node) for part in args[:2]):
        one, other = _without(args[0]), _without(args[1])
        return one if one is other else None
    return None


def _mean_taken_off(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, its mean) of x − mean(x)."""
    if _name(node) != "sub" or node.kwargs or not all(isinstance(part, fx.Node) for part in node.args[:2]):
        return None
    x, mean = _without(node.args[0]), _without(node.args[1])
    return (x, mean) if _name(mean) == "mean" and _without(mean.args[0]) is x else None


def _along(average: fx.Node) -> int | None:
    """The one axis that an average is taken over and that stays, with size 1; a variance must divide by n."""
    if _name(average) not in ("mean", "var"):
        return None
    dims, options = average.args[1] if len(average.args) > 1 else None, average.kwargs
    keep = options.get("keepdim", average.args[-1])
    biased = _name(average) == "mean" or options.get("correction") == 0 or average.args[2:3] == (False,)
    shape, source = average.meta["val"].shape, average.args[0].meta["val"].shape
    if isinstance(dims, list | tuple) and len(dims) == 1 and keep is True and biased and len(shape) == len(source):
        return int(dims[0]) % len(source)
    return None


def _scale(end: fx.Node) -> fx.Node | None:
    """The parameter that the only reader of a result multiplies it by."""
    node = end
    while len(node.users) == 1:
        (user,) = node.users
        if _name(user) in ("mul", "mul_"):
            others = [_without(part) for part in user.args[:2] if isinstance(part, fx.Node) and part is not node]
            return others[0] if len(others) == 1 and others[0].op == "placeholder" else None
        if _name(user) not in CASTS:
            break
        node = user
    return None


def _without(node: fx.Node) -> fx.Node:
    """What a node is, but for its type."""
    while _name(node) in CASTS:
        node = node.args[0]
    return node


def _between(node: fx.Node, source: fx.Node) -> Iterator[fx.Node]:
    while node is not source:
        yield node
        node = node.args[0]


def _only_read_in(node: fx.Node, around: set[fx.Node]) -> bool:
    """Whether all that reads a node is among these, perhaps behind a change of type."""
    return all(user in around or (_name(user) in CASTS and _only_read_in(user, around)) for user in node.users)


def _name(node: object) -> str:
    """The name of an operation of ATen, e.g. "mul" for all of its overloads."""
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    return packet.__name__ if isinstance(packet, torch._ops.OpOverloadPacket) else ""
