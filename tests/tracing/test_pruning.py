"""Groups held against those of torch-pruning (Fang et al. 2023, arXiv 2301.12900), where that package is installed.

It finds what must be pruned together by following gradients backward, not operations forward.
"""

import pytest
import torch
from cases import CASES
from torch import nn
from zoo import ZOO

from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.tracing.couplings import Coupling, couplings
from mmstudy.tracing.layouts import places

pruning = pytest.importorskip("torch_pruning", exc_type=ImportError)

OUT = {
    nn.Linear: "prune_linear_out_channels",
    nn.Conv1d: "prune_conv_out_channels",
    nn.Conv2d: "prune_conv_out_channels",
    nn.ConvTranspose2d: "prune_conv_out_channels",
}
NAMES = ["U-Net", "DenseNet", "inception", "flattened", "in place", "used twice", "depthwise", "squeeze and excite"]
ELSEWHERE = {"inner[0]", "inner[1]", "rise[0]", "rise[1]"}  # it does not keep groups of a group norm whole

Places = dict[tuple[str, bool], set[int]]  # (module, whether it reads) → places on that axis of its weight


def ours(group: Coupling, network: nn.Module, unit: int) -> Places:
    """Where one unit of a group lies."""
    found: Places = {}
    for use in group.uses:
        path, _, kind = use.tensor.rpartition(".")
        module = network.get_submodule(path)
        if kind == "weight":
            reads = use.axis == (0 if isinstance(module, nn.ConvTranspose2d) else 1)
            found.setdefault((path, reads), set()).update(places(use.layout, group.size)[unit].tolist())
    return found


def theirs(network: nn.Module, inputs: torch.Tensor, path: str, unit: set[int]) -> Places:
    """What torch-pruning takes away together with these outputs of a module."""
    module, names = network.get_submodule(path), {id(m): name for name, m in network.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(network, example_inputs=inputs)
    found: Places = {}
    for dependency, at in graph.get_pruning_group(module, getattr(pruning, OUT[type(module)]), idxs=sorted(unit)):
        pruned = dependency.target.module
        if id(pruned) in names and getattr(pruned, "weight", None) is not None:
            reads = dependency.handler.__name__ == "prune_in_channels" and not isinstance(pruned, nn.BatchNorm2d)
            found.setdefault((names[id(pruned)], reads), set()).update(int(i) for i in at)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_another_way_to_find_them(name):
    if name in CASES:
        network, inputs = CASES[name].network(), CASES[name].inputs(2)
    else:
        network, inputs = ZOO[name].build(), ZOO[name].inputs(2)
        if name == "DenseNet":  # behind a layer: where the data themselves are concatenated, it counts from their end
            network = nn.Sequential(nn.Conv2d(2, 2, 1), network)
        network = initialize(network, generator("pruning", name))
    compared = 0
    for place, group in couplings(network, inputs).items():
        if place in ELSEWHERE:
            continue
        for unit in (0, group.size - 1):
            mine = ours(group, network, unit)
            path, at = next((path, at) for (path, reads), at in mine.items() if not reads)
            assert theirs(network, inputs, path, at) == mine, (place, unit)
            compared += 1
    assert compared
