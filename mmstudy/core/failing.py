"""What may help where a network fails on a batch."""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def advice(network: nn.Module | None, batch: Any) -> str:
    """What to do where a network fails on a batch."""
    return mismatch(network, batch) or (
        "Check shapes, types and values of inputs and targets, and how the network is called on them"
    )


def mismatch(network: nn.Module | None, batch: Any) -> str:
    """What to do where a network and a batch have one device or type of real numbers each, and not the same."""
    own = list(network.parameters()) if network is not None else []
    given = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    for where, kind, what in (("on ", lambda t: t.device, "move"), ("", lambda t: t.dtype, "convert")):
        kinds = [{kind(t) for t in some if what == "move" or t.is_floating_point()} for some in (own, given)]
        if kinds[0] != kinds[1] and all(len(each) == 1 for each in kinds):
            names = [f"{where}{str(*each).removeprefix('torch.')}" for each in kinds]
            return f"The network is {names[0]} and the batch {names[1]}: {what} one of them"
    return ""
