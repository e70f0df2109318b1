"""Which axes of which tensors must change together: found by tracing the network, never written down by hand.

A *coupling* is one group of hidden units. The tensors that produce the units and the tensors that consume them share
an axis; a network gets wider when that axis grows in all of them at once.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Axis = tuple[str, int]  # (parameter name, axis)

LINEAR = torch.ops.aten.linear.default
RELU = {torch.ops.aten.relu.default}
DATA_SHAPE = {torch.ops.aten.flatten.using_ints, torch.ops.aten.view.default, torch.ops.aten.reshape.default}


@dataclass
class Coupling:
    """A group of hidden units: `produced` and `consumed` list the axes that index them; `size` is their number.

    `rectified` says that every consumer sees the units through a ReLU, hence as non-negative numbers.
    """

    size: int
    produced: list[Axis]
    consumed: list[Axis] = field(default_factory=list)
    rectified: bool = True


def couplings(network: nn.Module, inputs: Tensor) -> dict[str, Coupling]:
    """The couplings of `network`, by the path of the module that produces the units (e.g. "hidden.0").

    Args:
        network: any module whose forward pass consists of operations known here.
        inputs: an example batch (batch, ...); only its shape matters.

    Raises:
        NotImplementedError: the network uses an operation that is not known; the message names it.
    """
    program = torch.export.export(network, (inputs,), strict=False)
    parameter = program.graph_signature.inputs_to_parameters  # placeholder name → parameter name
    units: dict[str, Coupling | None] = {}  # node → the group on its last axis; None: data, which has no group
    positive: set[str] = set()  # nodes known to be non-negative
    found: dict[str, Coupling] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            units[node.name] = None
        elif node.op == "output":
            outputs = {id(units[n.name]) for n in node.args[0]}
        elif node.target == LINEAR:
            source, weight, *bias = (n.name for n in node.args)
            if (group := units[source]) is not None:
                group.consumed.append((parameter[weight], 1))
                group.rectified &= source in positive
            produced = [(parameter[name], 0) for name in (weight, *bias)]
            size = network.get_parameter(parameter[weight]).shape[0]
            units[node.name] = found[parameter[weight].rpartition(".")[0]] = Coupling(size, produced)
        elif node.target in RELU:
            units[node.name] = units[node.args[0].name]
            positive.add(node.name)
        elif node.target in DATA_SHAPE and units[node.args[0].name] is None:
            units[node.name] = None
        else:
            raise NotImplementedError(
                f"couplings cannot follow the operation {node.target} (node {node.name!r}); "
                "known are linear and relu layers, and reshaping of the input"
            )
    return {path: group for path, group in found.items() if id(group) not in outputs}
