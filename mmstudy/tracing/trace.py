"""Follow the axes of every tensor through a network, operation by operation.

`trace` exports the network (torch.export) and walks its graph: every tensor is a `Value` with one `Axis` for each
dimension, and the rule of each operation (see `layers`, `views`) says which axes are the same.
"""

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from mmstudy.core.networks import evaluating
from mmstudy.tracing.axes import Axis, fix
from mmstudy.tracing.calls import Call, called, tensors, unnoticed
from mmstudy.tracing.graph import Trace, Value
from mmstudy.tracing.rules import layers, views

RULES = {**layers.RULES, **views.RULES}


def trace(network: nn.Module, batch: Any) -> Trace:
    """Follow the axes of every tensor through the network in evaluation mode.

    The network's hooks do not run meanwhile, and its modules' attributes stay.

    Args:
        batch: an example: a tensor (batch, ...), or what else `called` understands; only shapes and types matter.

    Raises:
        NotImplementedError: an operation is not known; the message names it. Or the network runs but has no graph.
        TypeError: no network, or no batch.
        ValueError: the network cannot be called on the batch.
    """
    call = called(network, batch)
    with unnoticed(network), evaluating(network):  # training would write running statistics into the graph
        program = _exported(network, call)
    canonical = _first_names(network)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {node: canonical[name.removeprefix(PREFIX)] for node, name in names.items()}
    result, read = Trace(), set()
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            axes = [Axis(size) for size in node.meta["val"].shape]
            name = names.get(node.name)
            if name is None:
                fix(*axes, why="it is an axis of the network's inputs")
                values[node] = Value(axes)
            else:
                values[node] = Value(axes, tensor=name)
                result.tensors[name] = axes
                if node.name in signature.inputs_to_parameters:
                    result.parameters.add(name)
                if node.users:
                    read.add(name)
                for alias in (alias for alias, first in canonical.items() if first == name):
                    result.seen.setdefault(alias.rpartition(".")[0], []).extend(axes)
        elif node.op == "output":
            for source in node.all_input_nodes:
                fix(*values[source].axes, why="it is an axis of the network's output")
        else:
            values[node] = _follow(result, node, values)
    own = (*network.named_parameters(), *network.named_buffers())
    result.unread = {name: tuple(t.shape) for name, t in own if t.is_floating_point() and name not in read}
    return result


PREFIX = "network."  # of names inside `_Called`


class _Called(nn.Module):
    """The network as a function of the tensors of a call, to those of its outputs."""

    def __init__(self, network: nn.Module, call: Call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rest = iter(given)
        return tuple(tensors(self.call.mapped(lambda old: next(rest)).of(self.network)))


def _exported(network: nn.Module, call: Call) -> torch.export.ExportedProgram:
    if _other_type(network, call):  # the shapes that an export computes with do not show it
        _try(network, call)
    try:
        with _sources_forgotten():
            return torch.export.export(_Called(network, call), (tuple(call.tensors),), strict=False)
    except Exception as error:  # whatever the network, or the export, does not take
        _try(network, call)
        first = str(error).strip().partition("\n")[0]
        raise NotImplementedError(f"the network runs, but torch.export cannot follow it: {first}") from error


@contextmanager
def _sources_forgotten() -> Iterator[None]:
    """Take back the source code that torch.fx otherwise keeps for ever of every graph that it makes."""
    kept = fx.graph_module._loader.eval_cache
    before = set(kept)
    try:
        yield
    finally:
        for key in kept.keys() - before:
            del kept[key]
            linecache.cache.pop(key, None)


def _try(network: nn.Module, call: Call) -> None:
    """Raise what is wrong with the call, if it fails by itself."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            call.of(network)
    except Exception as error:
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in call.tensors)
        hint = _other_type(network, call)
        raise ValueError(f"the network cannot be called on this batch ({shapes}): {error}{hint}") from error


def _other_type(network: nn.Module, call: Call) -> str:
    """What to say of a network and a batch that have one type of numbers each, and not the same; else nothing."""
    kinds = [{t.dtype for t in some if t.is_floating_point()} for some in (network.parameters(), call.tensors)]
    if any(len(kind) != 1 for kind in kinds) or kinds[0] == kinds[1]:
        return ""
    own, given = (str(*kind).removeprefix("torch.") for kind in kinds)
    return f". The network is {own} and the batch {given}: convert one of them"


def _first_names(network: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer → the first name of the same tensor."""
    first: dict[int, str] = {}
    both = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(id(tensor), name) for name, tensor in both}


def _follow(result: Trace, node: fx.Node, values: dict[fx.Node, Any]) -> Value | list[Value]:
    stack = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())
    result.module, result.operation = f"{stack[-1][0]}.".removeprefix(PREFIX).rstrip("."), str(node.target)
    if node.target not in RULES:
        raise NotImplementedError(
            f"the operation {node.target} (in {result.module or 'the network itself'}, node {node.name!r}) is not "
            "known, so its effect on units is not either; a rule for it belongs into mmstudy/tracing/rules"
        )
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    made = node.meta.get("val")
    shape = list(made.shape) if isinstance(made, Tensor) else made
    try:
        value = RULES[node.target](result, shape, *args, **kwargs)
    except (ValueError, TypeError, IndexError) as error:  # a use of the operation that its rule did not foresee
        raise NotImplementedError(
            f"the operation {node.target} (in {result.module or 'the network itself'}, node {node.name!r}) cannot be "
            f"followed here: {error}"
        ) from error
    for one in value if isinstance(value, list) else [value]:
        result.seen.setdefault(result.module, []).extend(one.axes)
        result.shapes.append((str(node.target), one.axes))
    return value
