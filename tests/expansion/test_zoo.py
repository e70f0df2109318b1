"""Networks as people write them: each place grows exactly, on another batch too, or is refused by name."""

import re

import pytest
import torch
from cases import change, uneven
from zoo import ZOO

import mmstudy as mm
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.couplings import fixed_groups, of_trace
from mmstudy.tracing.trace import trace


def example(name):
    """The network in float64, and two batches."""
    animal = ZOO[name]
    network = uneven(initialize(animal.build(), generator("zoo", name))).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = [animal.inputs(count) for count in animal.examples]
    return animal, network, [x.double() if x.is_floating_point() else x for x in batches]


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if not animal.whole])
def test_what_grows_keeps_the_function_and_what_does_not_says_why(name):
    animal, network, (inputs, other) = example(name)
    traced = trace(network, inputs)
    groups = of_trace(traced)
    for place, part in animal.refused.items():
        size = groups[place].size if place in groups else 9
        with pytest.raises(ValueError, match=rf"{re.escape(place)} cannot grow.*{part}"):
            Candidate("lemon", (place,), (2 * size,)).grow(network, inputs, traced=traced, also=[other])
    for place, operator in animal.grows.items():
        places = tuple(place.split("&"))  # some must grow together
        candidate = Candidate(operator, places, tuple(2 * groups[each].size for each in places))
        new = candidate.grow(network, inputs, traced=traced, also=[other]).network
        for batch in (inputs, other):
            assert change(network, new, batch) < 1e-12, place
        assert not mm.receipt(network, new, inputs, also=[other]).wrong, place


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if not animal.whole])
def test_no_parameter_vanishes_without_a_reason(name):
    _, network, (inputs, _) = example(name)
    traced = trace(network, inputs)
    fixed = fixed_groups(traced)
    somewhere = {use.tensor for group in of_trace(traced).values() for use in group.uses}
    somewhere |= {tensor for each in fixed.values() for tensor in each.tensors}
    assert {tensor for tensor, _ in network.named_parameters()} <= somewhere
    assert all(each.why for each in fixed.values())


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if animal.whole])
def test_a_network_that_cannot_be_followed_at_all_is_refused_by_its_reason(name):
    animal = ZOO[name]
    network, inputs = animal.build(), animal.inputs(4)
    with pytest.raises((NotImplementedError, ValueError), match=animal.whole):
        trace(network, inputs)
