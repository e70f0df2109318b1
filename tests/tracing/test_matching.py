"""Permuted copies are recognized, and a match is the same function."""

import copy

import cases
import pytest
import torch
from zoo import ZOO

from mmstudy.batched.connectivity import interpolated
from mmstudy.batched.ensemble import losses, stack
from mmstudy.core.networks import initialize, named_tensors
from mmstudy.core.seeds import generator
from mmstudy.tracing import matching
from mmstudy.tracing.couplings import couplings
from mmstudy.tracing.matching import matched


def permuted(network, inputs, seed=1):
    """A copy with every coupling's units in a random order."""
    groups, stream = couplings(network, inputs), generator("order", seed)
    order = {name: torch.randperm(group.size, generator=stream) for name, group in groups.items()}
    new = copy.deepcopy(network)
    matching.ordered(named_tensors(new), matching._pieces(groups, named_tensors(network)), order)
    return new


def change_between(first, second, batch):
    """How far the loss between two networks strays from the first one's."""
    along = losses(interpolated(stack([first]), stack([second]), torch.linspace(0, 1, 7)), batch)
    return float((along - along[0]).abs().max())


@pytest.mark.parametrize("name", ["MLP", "MLP, batch norm", "ResNet, batch norm", "ResNet, group norm", "ViT"])
def test_a_permuted_copy_is_matched_back(name):
    _, network, inputs, targets = cases.of_family(name)
    other = permuted(network, inputs)
    assert cases.change(network, other, inputs) < 1e-12
    assert change_between(network, other, (inputs, targets)) > 1e-3
    back = matched(other, network, inputs)
    for expected, found in zip(network.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(expected, found)
    assert change_between(network, back, (inputs, targets)) < 1e-12


@pytest.mark.parametrize("name", ["MLP", "ResNet, batch norm", "ViT"])
def test_a_match_is_the_same_function_and_nearer(name):
    _, network, inputs, _ = cases.of_family(name)
    other = cases.of_family(name, seed=3)[1]
    near = matched(other, network, inputs)
    assert cases.change(other, near, inputs) < 1e-12

    def apart(a, b):
        return sum((x - y).square().sum() for x, y in zip(a.parameters(), b.parameters(), strict=True))

    assert apart(network, near) < apart(network, other)


def test_networks_of_other_widths_are_not_matched():
    inputs, _ = cases.batch()
    with pytest.raises(ValueError, match="one architecture"):
        matched(cases.mlp((6, 4)), cases.mlp((6, 5)), inputs)


@pytest.mark.parametrize("name", ["U-Net", "DenseNet", "inception", "RMS norms, rotary grouped-query attention"])
def test_units_in_ranges_are_matched_back_and_what_lies_within_heads_keeps_its_order(name):
    animal = ZOO[name]
    network = cases.uneven(initialize(animal.build(), generator("matched", name))).double()
    inputs = animal.inputs(4)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    other = permuted(network, inputs)
    assert cases.change(network, other, inputs) < 1e-12
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    back = matched(other, network, inputs)
    for expected, found in zip(network.state_dict().values(), back.state_dict().values(), strict=True):
        assert torch.equal(expected, found)
