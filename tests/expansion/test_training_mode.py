"""A grown network is asked to run in training mode as well, and to be the same function there."""

import copy

import pytest
import torch
from cases import Wired, batch
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.core.networks import MLP
from mmstudy.expansion.exactness import Reference
from mmstudy.expansion.receipt import receipt
from mmstudy.tracing.calls import Call

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()


def network(between, **parts) -> Wired:
    torch.manual_seed(0)
    return Wired(
        lambda net, x: net.b(between(net, net.a(x).relu())), a=nn.Linear(5, 8), b=nn.Linear(8, 3), **parts
    ).double()


def test_what_changes_in_training_alone_is_refused():
    old = network(lambda net, h: h / h.norm(dim=-1, keepdim=True) if net.training else h)
    with pytest.raises(ValueError, match=r"lemon a→16 is not exact here, in training mode: the outputs change by"):
        mm.expand(old, INPUTS, "lemon", {"a": 16})
    covered = mm.coverage(old, INPUTS)["a"]
    assert covered.exact == ("zero_incoming",)  # zeros leave the norm as it is
    assert "in training mode" in covered.refused["lemon"]
    assert len(mm.expand(old, INPUTS, "random", {"a": 16}).a.bias) == 16  # promises nothing


def test_what_fails_in_training_alone_is_refused_whatever_was_promised():
    old = network(lambda net, h: h + torch.zeros(8).double() if net.training else h)
    for operator in ("lemon", "net2net", "random"):
        with pytest.raises(ValueError, match=f"after {operator} a→16 the network fails in training mode: The size"):
            mm.expand(old, INPUTS, operator, {"a": 16})
    new = mm.expand(network(lambda net, h: h), INPUTS, "lemon", {"a": 16})
    new.wiring = old.wiring
    found = receipt(old, new, INPUTS)
    assert any("training, float64: ran before, does not run now" in each for each in found.wrong)
    assert not any("evaluation" in each for each in found.wrong)


def test_a_network_that_does_not_train_need_not_run_then():
    def only_evaluated(net, h):
        if net.training:
            raise RuntimeError("for evaluation alone")
        return h

    old = network(only_evaluated)
    new = mm.expand(old, INPUTS, "lemon", {"a": 16})
    found = receipt(old, new, INPUTS)
    assert found.wrong == []
    assert found.differences[("float64", "training")] == "does not run: for evaluation alone"


DROPOUTS = {
    "module": lambda net, h: nn.Dropout(0.5)(h) if net.training else h,
    "function": lambda net, h: F.dropout(h, 0.5, net.training),
    "by name": lambda net, h: F.dropout(input=h, p=0.5, training=net.training),
    "in place": lambda net, h: F.dropout(h * 1, 0.5, net.training, inplace=True),
    "of torch": lambda net, h: torch.dropout(h, 0.5, net.training),
    "whole features": lambda net, h: F.dropout1d(h, 0.5, net.training),
    "alpha": lambda net, h: F.alpha_dropout(h, 0.5, net.training),
}


@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_in_training_it_is_compared_as_if_there_were_no_dropout(dropout):
    old, before = network(dropout), torch.get_rng_state()
    assert len(mm.expand(old, INPUTS, "lemon", {"a": 16}).a.bias) == 16
    assert torch.equal(before, torch.get_rng_state())
    wrong = network(lambda net, h: dropout(net, h) * (1 + 1 / h.shape[-1] if net.training else 1))
    with pytest.raises(ValueError, match=r"lemon a→16 is not exact here, in training mode: the outputs change by"):
        mm.expand(wrong, INPUTS, "lemon", {"a": 16})


def test_dropout_inside_attention():
    torch.manual_seed(0)

    def forward(net, x):
        x = net.stem(x)
        x = x + net.attention(x, x, x, need_weights=False)[0]
        x = x + F.scaled_dot_product_attention(x, x, x, None, 0.5 * net.training)
        return net.head(x + F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 * net.training))

    parts = {"stem": nn.Linear(5, 8), "attention": nn.MultiheadAttention(8, 2, 0.5, batch_first=True)}
    old = Wired(forward, **parts, head=nn.Linear(8, 3)).double()
    reference = Reference(old, Call((INPUTS.view(2, 3, 5),))).in_training
    assert not reference.draws
    assert torch.equal(reference.plain, old.eval()(INPUTS.view(2, 3, 5)))


def test_other_random_numbers_of_training_are_not_compared():
    old = network(lambda net, h: h * (torch.rand(len(h), 1) < 0.5) * (1 + 1 / h.shape[-1]) if net.training else h)
    assert len(mm.expand(old, INPUTS, "lemon", {"a": 16}).a.bias) == 16


@pytest.mark.parametrize("operator", ["lemon", "deeper_identity"])
def test_statistics_do_not_follow_and_what_is_fitted_to_them_is_exact_in_evaluation_alone(operator):
    torch.manual_seed(0)
    old, (inputs, _) = MLP(7, [6, 6], 4, normalized=True).train(), batch()
    before, random = copy.deepcopy(old.state_dict()), torch.get_rng_state()
    where = {"hidden.0.0": 9} if operator == "lemon" else {"hidden.0": 1}
    new = mm.expand(old, inputs, operator, where)
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert new.training
    assert int(new.hidden[0][1].num_batches_tracked) == 0
