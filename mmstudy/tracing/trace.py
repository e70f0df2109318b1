"""Follow the axes of every tensor through a network, operation by operation.

`trace` exports the network (torch.export) and walks its graph: every tensor is a `Value` with one `Axis` for each
dimension, and the rule of each operation (see `layers`, `views`) says which axes are the same.
"""

import torch
from torch import Tensor, fx, nn

from mmstudy.core.networks import evaluating
from mmstudy.tracing.axes import Axis, fix
from mmstudy.tracing.graph import Trace, Value
from mmstudy.tracing.rules import layers, views

RULES = {**layers.RULES, **views.RULES}


def trace(network: nn.Module, inputs: Tensor) -> Trace:
    """Follow the axes of every tensor through the network in evaluation mode.

    Args:
        inputs: an example batch (batch, ...); only its shape and type matter.

    Raises:
        NotImplementedError: an operation is not known; the message names it.
    """
    with evaluating(network):  # training would write running statistics into the graph
        program = torch.export.export(network, (inputs,), strict=False)
    canonical = _first_names(network)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    result, values = Trace(), {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            axes = [Axis(size) for size in node.meta["val"].shape]
            name = names.get(node.name)
            if name is None:
                fix(*axes)
                values[node] = Value(axes)
            else:
                values[node] = Value(axes, tensor=canonical[name])
                result.tensors[canonical[name]] = axes
                if node.name in signature.inputs_to_parameters:
                    result.parameters.add(canonical[name])
                for alias in (alias for alias, first in canonical.items() if first == canonical[name]):
                    result.seen.setdefault(alias.rpartition(".")[0], []).extend(axes)
        elif node.op == "output":
            for source in node.all_input_nodes:
                fix(*values[source].axes)
        else:
            values[node] = _follow(result, node, values)
    return result


def _first_names(network: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer → the first name of the same tensor."""
    first: dict[int, str] = {}
    both = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(id(tensor), name) for name, tensor in both}


def _follow(result: Trace, node: fx.Node, values: dict[fx.Node, Value]) -> Value | list[Value]:
    stack = list((node.meta.get("nn_module_stack") or {"": ("",)}).values())
    result.module = stack[-1][0]
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
