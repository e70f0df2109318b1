"""What a network is compared on: batches of other sizes too, and never where it draws random numbers."""

import pytest
import torch
from cases import Wired
from torch import nn
from torch.nn import functional as F
from zoo import ZOO

import mmstudy as mm
from mmstudy.tracing.calls import Call, resized, shortened

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def network(between) -> Wired:
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 3)}
    return Wired(lambda net, x: net.b(between(net.a(x).relu(), x)), **parts).double()


def test_random_numbers_in_evaluation_mode_leave_nothing_to_compare():
    old = network(lambda h, x: F.dropout(h, 0.5, True) * (1 + 1 / h.shape[-1]))
    for operator in ("lemon", "net2net"):
        with pytest.raises(ValueError, match="the network draws random numbers in evaluation mode, so that nothing"):
            mm.expand(old, INPUTS, operator, {"a": 16})
    row = mm.coverage(old, INPUTS)["a"]
    assert row.exact == ()
    assert "draws random numbers" in row.reason


def test_random_numbers_that_change_no_output_are_no_reason():
    old = network(lambda h, x: h + 0 * torch.rand_like(h))
    assert len(mm.expand(old, INPUTS, "lemon", {"a": 16}).a.bias) == 16


def test_random_numbers_that_seldom_change_an_output_are_seen():
    old = network(lambda h, x: h * (2.0 if torch.rand(()) < 0.3 else 1.0))
    torch.manual_seed(1)
    seen = [float(torch.rand(())) < 0.3]
    torch.manual_seed(0)
    seen.append(float(torch.rand(())) < 0.3)
    assert not any(seen)  # two draws do not show it
    with pytest.raises(ValueError, match="the network draws random numbers in evaluation mode, so that nothing"):
        mm.expand(old, INPUTS, "lemon", {"a": 16})


@pytest.mark.parametrize("result", [lambda y: y.argmax(-1), lambda y: (y > 0, {"class": y.argmax(-1)})])
def test_classes_alone_show_no_small_change(result):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 3)}
    old = Wired(lambda net, x: result(net.b(net.a(x).relu())), **parts).double()
    for operator in ("lemon", "net2net"):
        with pytest.raises(ValueError, match=r"whole numbers only .*let it return what they are"):
            mm.expand(old, INPUTS, operator, {"a": 16})
    assert mm.coverage(old, INPUTS)["a"].exact == ()
    assert len(mm.expand(old, INPUTS, "random", {"a": 16}).a.bias) == 16  # which promises nothing


@pytest.mark.parametrize("larger", [True, False])
def test_what_is_exact_on_batches_of_one_size_alone_is_refused(larger):
    old = network(lambda h, x: h / h.sum(-1, keepdim=True) if (len(x) > 10) == larger and len(x) != 6 else h)
    count = 12 if larger else 3
    with pytest.raises(ValueError, match=rf"lemon a→16 is not exact here, on a batch of shape \({count}, 5\): the out"):
        mm.expand(old, INPUTS, "lemon", {"a": 16})
    with pytest.raises(ValueError, match=rf"not exact here, even without noise|on a batch of shape \({count}, 5\)"):
        mm.expand(old, INPUTS, "net2net", {"a": 16})
    assert "lemon" not in mm.coverage(old, INPUTS)["a"].exact


def test_coverage_takes_further_batches():
    old = network(lambda h, x: h / h.sum(-1, keepdim=True) if len(x) == 7 else h)
    assert "lemon" in mm.coverage(old, INPUTS)["a"].exact
    row = mm.coverage(old, INPUTS, also=[INPUTS[[*range(6), 0]]])["a"]
    assert "on a batch of shape (7, 5)" in row.refused["lemon"]
    with pytest.raises(TypeError, match="also must be a list"):
        mm.coverage(old, INPUTS, also=INPUTS)


def test_batches_that_the_old_network_does_not_take_are_left_out():
    old = network(lambda h, x: h * torch.arange(6).double().unsqueeze(1))
    assert len(mm.expand(old, INPUTS, "lemon", {"a": 16}).a.bias) == 16


def test_a_branch_by_the_size_of_the_batch_needs_no_second_batch():
    animal = ZOO["a branch by the size of the batch"]
    old, inputs = animal.build(), animal.inputs(4)
    for place in animal.refused:
        with pytest.raises(ValueError, match="on a batch of shape"):
            mm.expand(old, inputs, "lemon", {place: 2 * mm.couplings(old, inputs)[place].size})


def test_the_sizes_and_lengths_that_are_tried():
    def shapes(*given):
        return [[tuple(t.shape) for t in call.tensors] for call in resized(Call(given))]

    assert shapes(torch.zeros(6, 5), torch.zeros(6), torch.zeros(2)) == [
        [(12, 5), (12,), (2,)],
        [(3, 5), (3,), (2,)],
    ]
    assert shapes(torch.zeros(1, 5)) == [[(2, 5)]]
    tokens, mask = torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4)
    assert shapes(tokens, mask)[2:] == [[(2, 2), (2, 2)], [(2, 8), (2, 8)]]
    assert resized(Call((3.0,))) == []
    smaller = resized(Call((tokens, mask)), once=True)
    assert [[tuple(t.shape) for t in call.tensors] for call in smaller] == [[(1, 4), (1, 4)], [(2, 2), (2, 2)]]
    assert [tuple(call.tensors[0].shape) for call in resized(Call((tokens[:1, :1],)), once=True)] == [(2, 1), (1, 2)]
    sequence = torch.zeros(2, 4, 3)  # which axis is the length, the network says
    assert shapes(sequence)[2:] == [[(2, 2, 3)], [(2, 8, 3)], [(2, 4, 1)], [(2, 4, 6)]]
    assert shapes(torch.zeros(2, 3, 4, 6))[2:] == [[(2, 3, 2, 3)], [(2, 3, 8, 12)], [(2, 1, 2, 6)], [(2, 6, 8, 6)]]
    assert shapes(torch.zeros(2, 5), tokens, sequence)[2] == [(2, 5), (2, 2), (2, 2, 3)]


def test_a_call_with_few_examples_and_words():
    def shapes(*given):
        return [[tuple(t.shape) for t in call.tensors] for call in shortened(Call(given), examples=2, words=3)]

    tokens, mask = torch.arange(20).view(4, 5), torch.ones(4, 5)
    assert shapes(tokens, mask) == [[(2, 3), (2, 3)], [(2, 5), (2, 5)]]
    assert torch.equal(shortened(Call((tokens,)), 2, 3)[0].arguments[0], tokens[:2, :3])
    assert shapes(tokens[:1, :3]) == [[(1, 3)]]
    assert shapes(torch.zeros(5, 3, 8, 8)) == [[(2, 3, 8, 8)]]
    assert shapes(3.0) == []


class Branching(nn.Module):
    """A layer whose units are divided by their number where the input is long."""

    def __init__(self, layer: nn.Module, axis: int, longest: int):
        super().__init__()
        self.layer, self.head, self.axis, self.longest = layer, nn.Linear(6, 2), axis, longest

    def forward(self, x):
        h = self.layer(x).relu()
        h = h if self.axis == 1 else h.movedim(1, -1)
        return self.head(h / h.shape[-1] if x.shape[self.axis] > self.longest else h)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 6), nn.Conv1d(3, 6, 1), nn.Conv2d(3, 6, 1)], ids=lambda each: type(each).__name__
)
def test_a_branch_by_the_length_of_a_sequence_or_the_side_of_an_image_is_seen(layer):
    shape = (4, 10, 3) if isinstance(layer, nn.Linear) else (4, 3, *[10] * (layer.weight.ndim - 2))
    network = Branching(layer, 1 if isinstance(layer, nn.Linear) else -1, 16)
    with pytest.raises(ValueError, match=r"not exact here, on a batch of shape .*20"):
        mm.expand(network, torch.randn(shape), "lemon", {"layer": 12})
    network.longest = 100
    mm.expand(network, torch.randn(shape), "lemon", {"layer": 12})
