"""Growing by one loss convention, `loss_fn(model, batch)`, whatever a batch is and whatever a network returns."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.calls import Call
from mmstudy.tracing.trees import tensors

STREAM = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(16, 3, generator=STREAM), torch.randn(16, 4, generator=STREAM)


@dataclass
class Outputs:
    logits: Tensor
    extra: Tensor


class Two(nn.Module):
    """Two inputs, one of them by keyword; what is returned is `kind` of two tensors."""

    def __init__(self, kind=dict):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)
        self.kind = kind

    def forward(self, left, *, right):
        hidden = (self.one(left) + self.two(right)).relu()
        return self.kind(logits=self.head(hidden), extra=left.sum(1))


KINDS = {"dict": dict, "dataclass": Outputs, "UserDict": UserDict, "tuple": lambda logits, extra: (logits, extra)}
BATCH = {"left": LEFT, "right": RIGHT, "y": torch.arange(16) % 2}


def loss(model, batch) -> Tensor:
    return F.cross_entropy(tensors(model(batch["left"], right=batch["right"]))[0], batch["y"])


def outputs(network: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return tensors(network(LEFT, right=RIGHT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_several_inputs_and_outputs_grows(kind):
    network = Two(KINDS[kind])
    assert {name: group.size for name, group in mm.couplings(network, BATCH, loss).items()} == {"one": 5}
    for operator in ("lemon", "zero_outgoing", "firefly", "ligo"):
        new = mm.expand(network, UserDict(BATCH), operator, {"one": 8}, loss_fn=loss)
        again = Candidate(operator, ("one",), (8,)).expand(network, BATCH, loss)
        assert all(torch.equal(p, q) for p, q in zip(new.parameters(), again.parameters(), strict=True))
        assert len(new.one.bias) == 8
        if operator not in ("firefly", "ligo"):
            for before, after in zip(outputs(network), outputs(new), strict=True):
                torch.testing.assert_close(before, after)


def test_every_tensor_that_a_network_returns_must_stay():
    """The first one is exact; a unit of zero behind a sigmoid is felt in the other alone."""

    class Hidden(Two):
        def forward(self, left, *, right):
            return {"extra": left.sum(1), "logits": self.head((self.one(left) + self.two(right)).sigmoid())}

    def first(model, batch):
        return model(batch["left"], right=batch["right"])["logits"].mean()

    with pytest.raises(ValueError, match="zero_incoming one→8 is not exact here"):
        mm.expand(Hidden(), BATCH, "zero_incoming", {"one": 8}, loss_fn=first)


def test_a_call_is_a_batch_without_targets():
    call = Call((LEFT,), {"right": RIGHT})
    assert len(Candidate("lemon", ("one",), (8,)).expand(Two(), call).one.bias) == 8
    with pytest.raises(ValueError, match="learns from data: give it inputs and targets"):
        Candidate("ligo", ("one",), (8,)).expand(Two(), call)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_several_inputs_and_outputs_are_matched(kind):
    network, order = Two(KINDS[kind]), torch.tensor([3, 4, 0, 1, 2])
    for parameter in network.parameters():
        parameter.data *= 4
    other = Two(KINDS[kind])
    other.load_state_dict(network.state_dict())
    for layer in (other.one, other.two):
        layer.weight.data, layer.bias.data = layer.weight.data[order], layer.bias.data[order]
    other.head.weight.data = other.head.weight.data[:, order]
    apart, near = (mm.line(network, other, BATCH, match=match, loss_fn=loss)["loss"] for match in (False, True))
    assert apart.max() - apart.min() > 1e-3
    assert near.max() - near.min() < 1e-5


INPUTS, TARGETS = torch.randn(40, 3), torch.randn(40, 2)


def consistent(model, batch) -> Tensor:
    """Calls the model twice, once on inputs that are moved a little."""
    inputs, targets = batch
    return (model(inputs) - targets).square().mean() + (model(inputs + 0.1) - model(inputs)).square().mean()


@pytest.mark.parametrize("operator", ["firefly", "ligo"])
def test_operators_learn_from_a_loss_that_calls_the_model_more_than_once(operator):
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    new, other = (mm.expand(network, (INPUTS, TARGETS), operator, {"0": 9}, loss_fn=f) for f in (consistent, squares))
    assert (new[0].weight - other[0].weight).abs().max() > 1e-6  # each learned from its own


def squares(model, batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def test_an_operator_learns_without_targets_by_a_loss_that_needs_none():
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    new = Candidate("ligo", ("0",), (9,)).expand(network, INPUTS, lambda model, x: (model(x) - x).square().mean())
    assert len(new[0].bias) == 9


def test_gradmax_takes_one_call_alone():
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="gradmax needs a loss that calls the layers around 0 once"):
        mm.expand(network, (INPUTS, TARGETS), "gradmax", {"0": 9}, loss_fn=consistent)


WRONG = {
    "no call": (lambda n: mm.couplings(n, BATCH, lambda model, b: b["left"].mean()), "never called the model"),
    "targets of others": (lambda n: mm.couplings(n, {**BATCH, "y": TARGETS}, loss), r"'y': float32 \(40, 2\).* fails"),
    "a loss of another batch": (
        lambda n: mm.couplings(n, (LEFT, RIGHT), loss),
        "the loss of the network on this batch",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_batch_that_the_loss_does_not_take_is_refused(kind):
    call, message = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        call(Two())


class Graph(nn.Module):
    """A layer on a graph: nodes, and edges between them, of which there are more."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, nodes, edges):
        h = self.stem(nodes).relu()
        return self.head(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def test_tensors_of_a_batch_need_not_share_an_axis():
    torch.manual_seed(0)
    network, batch = Graph().double(), {"nodes": torch.randn(5, 3).double(), "edges": torch.randint(5, (2, 8))}
    assert "lemon" in mm.coverage(network, batch)["stem"].exact
    new = mm.expand(network, batch, "lemon", {"stem": 9})
    torch.testing.assert_close(new(**batch), network(**batch), atol=1e-12, rtol=0)
    assert not mm.receipt(network, new, batch).wrong
    table = mm.pool_table(network, batch, mm.candidate_pool(network, batch))
    assert (table["flops"] > 0).all()

    def loss_fn(model, batch):
        return model(batch["nodes"], batch["edges"]).square().mean()

    assert "lemon" in mm.coverage(network, batch, loss_fn)["stem"].exact
    with pytest.raises(ValueError, match="share a first axis"):
        mm.size(network, batch, loss_fn)
