"""What of an output counts, and what a receipt, a pool and a loss of one's own are told of it."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from cases import Wired, mlp
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

import mmstudy as mm

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def network(returned, **parts) -> Wired:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 3)}
    return Wired(lambda net, x: returned(net.b(h := net.a(x).relu()), h), **layers, **parts)


def namespace(logits, hidden):
    return SimpleNamespace(logits=logits, hidden=hidden)


def test_tensors_of_plain_objects_are_outputs():
    assert mm.couplings(network(lambda y, h: (y, SimpleNamespace(hidden=h))), INPUTS) == {}
    assert mm.couplings(network(lambda y, h: (y, SimpleNamespace(levels=[h]))), INPUTS) == {}
    assert mm.couplings(network(lambda y, h: (y, Normal(h, 1.0, validate_args=False))), INPUTS) == {}
    assert list(mm.couplings(network(namespace), INPUTS, output="logits")) == ["a"]
    with pytest.raises(ValueError, match="a cannot grow: it is an axis of the network's output"):
        mm.expand(network(namespace), INPUTS, "lemon", {"a": 9})


def test_a_place_is_one_in_a_tuple_or_list():
    with pytest.raises(
        TypeError, match=r"output=3 is a place in a tuple or list; the network returns float32 \(4, 4\)"
    ):
        mm.expand(mlp(), torch.randn(4, 7), "lemon", {"hidden.0": 9}, output=3)
    assert list(mm.couplings(network(lambda y, h: [y, h]), INPUTS, output=0)) == ["a"]
    with pytest.raises(TypeError, match="the network returns a SimpleNamespace"):
        mm.couplings(network(namespace), INPUTS, output=0)


def test_a_receipt_and_a_pool_know_which_output_counts():
    old = network(namespace)
    new = mm.expand(old, INPUTS, "lemon", {"a": 16}, output="logits")
    found = mm.receipt(old, new, INPUTS, output="logits", also=[INPUTS[:2]])
    assert found.wrong == []
    assert found.differences[("float64", "evaluation")][0] < 1e-6
    assert any(row.what.endswith("evaluation, float64, on a batch of shape (2, 5)") for row in found.rows)
    assert any("a→" in str(each) for each in mm.candidate_pool(old, INPUTS, output="logits").values())


def test_a_loss_may_ask_its_model_for_its_parameters():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]) + 1e-3 * sum(p.pow(2).sum() for p in model.parameters())

    old = network(lambda y, h: y)
    assert list(mm.couplings(old, (INPUTS, torch.arange(6) % 3), loss)) == ["a"]
    assert not old._forward_pre_hooks


def test_parameters_of_one_storage_are_refused_and_a_receipt_tells_them_apart():
    old = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    new = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    old[1].weight.data = old[0].weight.data
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are several parameters of one storage"):
        mm.expand(old, INPUTS, "lemon", {"0": 9})
    assert any("0.weight = 1.weight" in each for each in mm.receipt(old, new, INPUTS).wrong)


def test_who_saves_a_model_is_told_that_no_configuration_fits():
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    old = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    tokens = {"input_ids": torch.randint(20, (2, 4))}
    heads = "transformer.h.0.attn.c_attn[1]"
    what = "its class builds it from its configuration"
    with pytest.warns(UserWarning, match="its class does not load what is saved of it") as told:
        new = mm.expand(old, tokens, "lemon", {heads: 4}, output="logits")
    assert told[0].filename == __file__
    rows = {row.what: row for row in mm.receipt(old, new, tokens, output="logits").rows}
    assert (rows[what].after, rows[what].right) == ("NO: GPT2LMHeadModel builds another network", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        new = mm.expand(old, tokens, "lemon", {"transformer.h.0.mlp.c_fc": 64}, output="logits")
    rows = {row.what: row for row in mm.receipt(old, new, tokens, output="logits").rows}
    assert rows[what].right
