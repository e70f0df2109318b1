"""Random networks of concatenations and cuts: each range grows exactly where it lies, and its history with it."""

from itertools import accumulate, pairwise

import pytest
import torch
from cases import Wired, change, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.optimizers import carried
from mmstudy.expansion.receipt import receipt
from mmstudy.tracing.couplings import couplings, of_trace
from mmstudy.tracing.trace import trace

INPUTS = 3
WAYS = ("lemon", "zero_outgoing", "zero_incoming", "bert2bert")


class Program(nn.Module):
    """Layers whose outputs are joined and cut by steps, the borders computed from the layers' weights.

    A value is known by the layers whose units it holds, in order. Steps: ("join", one value, another), ("cut", value,
    first layer, last layer), ("relu", value); the last value of all is read by the head.
    """

    def __init__(self, widths, steps):
        super().__init__()
        self.layers, self.steps = nn.ModuleList(nn.Linear(INPUTS, width) for width in widths), steps
        self.head = nn.Linear(sum(widths[i] for i in self.values(None)[-1][0]), 2)

    def values(self, x):
        """(layers, tensor) of every value; without tensors if there is no input."""
        found = [((i,), None if x is None else layer(x)) for i, layer in enumerate(self.layers)]
        for kind, place, *rest in self.steps:
            layers, value = found[place % len(found)]
            if kind == "join":
                others, other = found[rest[0] % len(found)]
                found.append((layers + others, None if x is None else torch.cat([value, other], -1)))
            elif kind == "cut":
                first, last = sorted((rest[0] % len(layers), rest[1] % len(layers)))
                sizes = [len(self.layers[i].weight) for i in layers]
                ends = [0, *accumulate(sizes)]
                piece = None if x is None else value[..., ends[first] : ends[last + 1]]
                found.append((layers[first : last + 1], piece))
            else:
                found.append((layers, None if x is None else value.relu()))
        return found

    def forward(self, x):
        return self.head(self.values(x)[-1][1])


NUMBERS = st.integers(0, 9)
STEPS = st.one_of(
    st.tuples(st.just("join"), NUMBERS, NUMBERS),
    st.tuples(st.just("join"), NUMBERS, NUMBERS),
    st.tuples(st.just("cut"), NUMBERS, NUMBERS, NUMBERS),
    st.tuples(st.just("relu"), NUMBERS),
)


@settings(max_examples=15)
@given(
    widths=st.lists(st.integers(2, 5), min_size=2, max_size=3),
    steps=st.lists(STEPS, min_size=3, max_size=6),
    more=st.integers(1, 4),
)
def test_every_range_of_a_random_network_grows_exactly_where_it_lies(widths, steps, more):
    network = initialize(Program(widths, steps), generator("program", *widths)).double()
    inputs = torch.randn(4, INPUTS, dtype=torch.float64, generator=generator("program inputs"))
    read = dict.fromkeys(network.values(None)[-1][0])
    traced = trace(network, inputs)
    groups = of_trace(traced)
    assert sorted(groups) == sorted(f"layers.{i}" for i in read)  # no more, no fewer: what is read, by its layer
    place = max(groups)
    (reader,) = groups[place].of("consumed")
    each = network.values(None)[-1][0]
    ends = [0, *accumulate(widths[i] for i in each)]
    mine = [range(*span) for i, span in zip(each, pairwise(ends), strict=True) if f"layers.{i}" == place]
    for way in WAYS[:2] if len(steps) % 2 else WAYS[2:]:
        size = groups[place].size + more
        new = Candidate(way, (place,), (size,)).grow(network, inputs, traced=traced).network
        assert change(network, new, inputs) < 1e-12
        assert new.head.weight.shape[1] == network.head.weight.shape[1] + more * len(mine)
        assert reader.axis == 1


def joined(net, x):
    return net.head(torch.cat([net.one(x).relu(), x, net.two(x).tanh()], -1))


def of_two() -> nn.Module:
    parts = {"one": nn.Linear(3, 4), "two": nn.Linear(3, 5), "head": nn.Linear(12, 2)}
    return uneven(initialize(Wired(joined, **parts), generator("joined"))).double()


def test_new_units_are_read_behind_the_old_ones_of_their_range():
    network, inputs = of_two(), torch.randn(6, 3, dtype=torch.float64)
    (reader,) = couplings(network, inputs)["one"].of("consumed")
    assert reader.layout == (("units",), (8,))
    new = Candidate("zero_outgoing", ("one",), (7,)).expand(network, inputs)
    old = network.head.weight
    expected = torch.cat([old[:, :4], torch.zeros(2, 3, dtype=torch.float64), old[:, 4:]], 1)
    assert torch.equal(new.head.weight, expected)
    random = Candidate("random", ("two",), (6,)).expand(network, inputs)
    assert torch.equal(random.head.weight[:, :12], old)
    assert 0 < random.head.weight[:, 12].abs().max() <= 13**-0.5  # the default scale, of all that the layer reads now


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, 0.9)])
def test_the_history_of_an_optimizer_stays_with_its_units(make):
    network, inputs = of_two(), torch.randn(6, 3, dtype=torch.float64)
    optimizer = make(network.parameters())
    network(inputs).square().sum().backward()
    optimizer.step()
    expansion = Candidate("zero_outgoing", ("one",), (7,)).grow(network, inputs)
    state = carried(optimizer, network, expansion).state[expansion.network.head.weight]
    for key, old in optimizer.state[network.head.weight].items():
        if old.ndim == 2:
            assert torch.equal(state[key][:, :4], old[:, :4])
            assert torch.equal(state[key][:, 7:], old[:, 4:])


def test_the_receipt_of_a_range_that_has_grown_counts_it_once():
    network, inputs = of_two(), torch.randn(6, 3, dtype=torch.float64)
    group = couplings(network, inputs)["two"]
    found = receipt(network, Candidate("lemon", ("two",), (9,)).expand(network, inputs), inputs)
    assert not found.wrong
    assert found.parameters == (group.parameters(5), group.parameters(9)) == (62, 62 + 4 * (3 + 1 + 2))
    assert found.differences["float64", "evaluation"][0] < 1e-14
    assert not any(found.still.values())


def test_ranges_that_one_number_serves_grow_one_after_another():
    def forward(net, x):
        y = net.body(x)
        return net.head(y[..., : net.width].relu()) + net.other(y[..., net.width :].tanh())

    parts = {"body": nn.Linear(3, 9), "head": nn.Linear(4, 2), "other": nn.Linear(5, 2)}
    network = uneven(Wired(forward, **parts, width=4)).double()
    inputs = torch.randn(6, 3, dtype=torch.float64)
    grown = Candidate("lemon", ("body[0]", "body[1]"), (6, 8)).grow(network, inputs)
    assert change(network, grown.network, inputs) < 1e-12
    assert grown.changed == ("width: 4 → 6",)
    assert grown.network.body.weight.shape == (14, 3)


def test_a_border_that_does_not_follow_is_refused():
    def forward(net, x):
        y = net.body(x)
        return net.head(y[..., :4].relu()) + net.other(F.silu(y[..., 4:9]))

    parts = {"body": nn.Linear(3, 9), "head": nn.Linear(4, 2), "other": nn.Linear(5, 2)}
    network, inputs = Wired(forward, **parts), torch.randn(6, 3)
    for place, size in (("body[0]", 6), ("body[1]", 8)):
        for operator in ("lemon", "random"):
            with pytest.raises(ValueError, match=r"cannot grow from \d to \d: the network does not run with the pred"):
                Candidate(operator, (place,), (size,)).grow(network, inputs)
