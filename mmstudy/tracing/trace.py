"""Follow the axes of every tensor through a network, operation by operation.

`trace` exports the network (torch.export) and walks its graph: every tensor is a `Value` with one `Axis` for each
dimension, and the rule of each operation (`RULES`) says which axes are the same. An operation without a rule that is
known to work element by element keeps axes apart; any other fixes what it touches, and is named as the reason.
"""

import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mmstudy.core.networks import evaluating
from mmstudy.tracing.axes import Axis, fix
from mmstudy.tracing.calls import called, unnoticed
from mmstudy.tracing.exporting import PREFIX, exported
from mmstudy.tracing.graph import SIZE, UNKNOWN, Normalization, Result, Rules, Trace, Value, alike, data
from mmstudy.tracing.rules import contractions, layers, norms, pieces, views
from mmstudy.tracing.settling import settle

DISTINCT = 2  # numbers in a buffer, so that another one does not have them by chance
RULES = Rules({**layers.RULES, **contractions.RULES, **pieces.RULES, **views.RULES})


def register_rule(operation: Any, rule: Any) -> None:
    """Say what an operation does to the units of what it is called with; this holds from the next trace on.

    Args:
        operation: of ATen, in one overload (`torch.ops.aten.cumsum.default`) or in all (`torch.ops.aten.cumsum`), or a
            custom one. Reasons in `couplings.fixed` and coverage reports name it.
        rule: (trace, shape, *arguments of the operation) → a `Value`, or a list of them; see `graph`. The shape is that
            of the result, a tuple of integers, and the Value has one axis for each of them.

    Raises:
        TypeError: no operation, as functions of torch and modules are none, or no function that takes its arguments.
    """
    if not callable(rule):
        raise TypeError(f"a rule must be a function (trace, shape, *arguments) → Value; got {rule!r}")
    operation = getattr(operation, "_opoverload", operation)  # a custom one, as it stands in a graph
    if isinstance(operation, torch._ops.OpOverloadPacket):
        overloads = [getattr(operation, name) for name in operation.overloads()]
    elif isinstance(operation, torch._ops.OpOverload):
        overloads = [operation]
    else:
        raise TypeError(f"an operation is e.g. torch.ops.aten.cumsum.default, as graphs name it; got {operation!r}")
    if not any(_takes(rule, overload) for overload in overloads):
        raise TypeError(
            f"a rule for {operation} must be a function (trace, shape, *arguments) that takes the arguments of "
            f"{overloads[0]._schema}; got {rule!r}"
        )
    RULES.also(*overloads)(rule)


def _takes(rule: Any, operation: torch._ops.OpOverload) -> bool:
    """Whether a rule can be called with some of an operation's arguments, those that have no default among them."""
    given = [argument for argument in operation._schema.arguments if not argument.kwarg_only]
    named = [a.name for a in operation._schema.arguments if a.kwarg_only and not a.has_default_value()]
    least = sum(not argument.has_default_value() for argument in given)
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # a function that does not say what it takes
        return True
    for count in range(least, len(given) + 1):
        with suppress(TypeError):
            signature.bind(None, None, *[None] * count, **dict.fromkeys(named))
            return True
    return False


def trace(network: nn.Module, batch: Any) -> Trace:
    """Follow the axes of every tensor through the network in evaluation mode.

    The network's hooks do not run meanwhile, and its modules' attributes stay.

    Args:
        batch: an example: a tensor (batch, ...), or what else `called` understands; only shapes and types matter.

    Raises:
        NotImplementedError: the network runs but has no graph.
        TypeError: no network, or no batch.
        ValueError: the network cannot be called on the batch.
    """
    call = called(network, batch)
    with unnoticed(network), evaluating(network):  # training would write running statistics into the graph
        program = exported(network, call)
    canonical = _first_names(network)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {node: canonical[name.removeprefix(PREFIX)] for node, name in names.items()}
    result, read = Trace(), set()
    given: list[Value] = []
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name not in names:
            given.append(_data_of(node, "it is an axis of the network's inputs", given=True))
            continue
        name, axes = names[node.name], [Axis(size) for size in node.meta["val"].shape]
        trained = node.name in signature.inputs_to_parameters
        given.append(Value(axes, tensor=name, learned=node.meta["val"].is_floating_point(), trained=trained))
        result.tensors[name] = axes
        if trained:
            result.parameters.add(name)
        if not node.meta["val"].is_floating_point():
            complex_ = node.meta["val"].is_complex()
            kind = "complex numbers, which are not followed" if complex_ else "whole numbers, which are no weights"
            fix(*axes, why=f"it holds {kind}")
        if node.users:
            read.add(name)
        for alias in (alias for alias, first in canonical.items() if first == name):
            result.seen.setdefault(alias.rpartition(".")[0], []).extend(axes)
    outputs = _walk(result, program.graph_module, given)
    fix(*(axis for value in _values(outputs) for axis in value.axes), why=OUTPUT)
    named = dict(network.named_buffers())
    for name in [name for name in result.tensors if name in named and name not in read]:
        if original := _copied(name, named, read):
            alike(result.tensors[name], result.tensors[original])
            result.notes += [replace(note, tensor=name) for note in result.notes if note.tensor == original]
            read.add(name)
    settle(result)
    own = (*network.named_parameters(), *network.named_buffers())
    result.unread = {name: tuple(t.shape) for name, t in own if t.is_floating_point() and name not in read}
    return result


def _copied(name: str, buffers: Mapping[str, Tensor], read: Collection[str]) -> str:
    """A buffer that is read and holds the same numbers as one that is not, which is kept beside it; empty: none does.

    Of numbers that are not all alike: zeros and ones are the same by chance.
    """
    own = buffers[name]
    if not own.is_floating_point() or own.is_meta or len(own.unique()) < DISTINCT:
        return ""
    return next((other for other, tensor in buffers.items() if other in read and _same(own, tensor)), "")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


OUTPUT = "it is an axis of the network's output"


def _first_names(network: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer → the first name of the same tensor."""
    first: dict[int, str] = {}
    both = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(id(tensor), name) for name, tensor in both}


def _walk(result: Trace, module: fx.GraphModule, given: list[Value]) -> Any:
    """Follow every operation of a graph that is called with these values; what it returns."""
    values: dict[fx.Node, Any] = {}
    waiting, by_hand, used = iter(given), norms.written_by_hand(module.graph), _used(module.graph)
    for node in (node for node in module.graph.nodes if node in used):
        if node.op == "placeholder":
            values[node] = next(waiting)
        elif node.op == "get_attr":
            values[node] = _attribute(module, node)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: values[n])
        else:
            values[node] = _follow(result, node, values, by_hand)
    raise AssertionError("a graph returns something")


def _used(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a graph without those that nothing reads, such as what was made for its length alone.

    What reads a parameter stays all the same, since that belongs to units; so does what writes into something.
    """
    roots = [node for node in graph.nodes if node.op in ("placeholder", "output") or _writes(node)]
    roots += [node for node in graph.nodes if any(each.op == "placeholder" for each in node.all_input_nodes)]
    found = set[fx.Node]()
    while roots:
        if (node := roots.pop()) not in found:
            found.add(node)
            roots += node.all_input_nodes
    return found


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """A graph inside the graph, or a constant."""
    held: Any = module
    for name in str(node.target).split("."):
        held = getattr(held, name)
    return Value(data(held.shape)) if isinstance(held, Tensor) else held


def _values(tree: Any) -> list[Value]:
    return [part for part in tree_leaves(tree) if isinstance(part, Value)]


def _parts(made: Any) -> list[Any]:
    """The results of an operation, one or several."""
    return list(made) if isinstance(made, list | tuple) else [made] if isinstance(made, Tensor | Value) else []


def _data_of(node: fx.Node, why: str = SIZE, given: bool = False) -> Any:
    """The result of a node, its axes those of data."""
    made = node.meta.get("val")
    found = [Value(data(part.shape, why), given=given) if isinstance(part, Tensor) else None for part in _parts(made)]
    return found[0] if isinstance(made, Tensor) else found


def _follow(result: Trace, node: fx.Node, values: Mapping[fx.Node, Any], by_hand: norms.ByHand) -> Any:
    stack = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())
    result.module, result.operation = f"{stack[-1][0]}.".removeprefix(PREFIX).rstrip("."), node.target
    args, kwargs = _arguments(node, values)
    inner = [place for place, part in enumerate(args) if isinstance(part, fx.GraphModule)]
    if len(inner) == 1 and str(node.target).startswith("wrap_with_"):  # runs it as it is, without gradients for one
        return list(_walk(result, args[inner[0]], list(args[inner[0] + 1 :])))
    operands = _values((args, kwargs))
    value = _ruled(result, node, args, kwargs, node in by_hand.averages)
    if found := by_hand.norms.get(node):
        scale = values[found.scale].tensor if found.scale is not None else None
        axis = values[found.of].axes[found.dim]
        result.normalizations.append(Normalization(axis, found.kind, scale, None, found.eps, result.module))
        value.normal = True
    learned, trained, given = (any(getattr(o, kind) for o in operands) for kind in ("learned", "trained", "given"))
    for one, made in zip(_parts(value), _parts(node.meta.get("val")), strict=True):
        if one is None:
            continue
        one.learned, one.trained, one.given = one.learned or learned, one.trained or trained, one.given or given
        if learned and given and made.is_floating_point():
            result.coarsest = max(result.coarsest, torch.finfo(made.dtype).eps)
        result.seen.setdefault(result.module, []).extend(one.axes)
        result.results.append(Result(str(node.target), one.axes, _numbers(node)))
    return value


def _numbers(node: fx.Node) -> tuple[float, ...]:
    """The numbers that an operation is given: fractions, and whole ones too if it computes with each element."""
    kinds = (int, float) if torch.Tag.pointwise in getattr(node.target, "tags", ()) else (float,)
    return tuple(each for each in tree_leaves((node.args, node.kwargs)) if type(each) in kinds)


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[return-value]


def _ruled(result: Trace, node: fx.Node, args: tuple, kwargs: dict[str, Any], average: bool) -> Any:
    """What the rule of an operation says of its result; where there is none, or it does not hold, what is safe."""
    made = node.meta.get("val")
    rule = RULES.get(node.target)
    if average:  # of squares, inside a normalization: that is in no one's way
        rule = views.averaged
    elif rule is None and isinstance(made, Tensor) and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = views.pointwise
    if rule is None:
        return _unknown(result, node, _values((args, kwargs)), UNKNOWN)
    try:
        value = rule(result, list(made.shape) if isinstance(made, Tensor) else made, *args, **kwargs)
        shapes = [[list(part.shape) for part in _parts(some) if part is not None] for some in (value, made)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"by its rule the result has the shape {shapes[0]}, and it is {shapes[1]}")
    except Exception as error:  # a use of the operation that its rule did not foresee
        first = str(error).strip().partition("\n")[0]
        return _unknown(result, node, _values((args, kwargs)), f"the operation cannot be followed here: {first}")
    return value


def _unknown(result: Trace, node: fx.Node, operands: list[Value], why: str) -> Any:
    """Fix all that an operation reads and returns; if no parameter reaches it, it is data that leads to data."""
    result.fix(*(axis for value in operands for axis in value.axes), why=why)
    return _data_of(node, result.because(why)) if any(value.learned for value in operands) else _data_of(node)
