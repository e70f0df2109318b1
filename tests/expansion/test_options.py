"""What a user may say of an expansion: which output must stay, which numbers, and on what else it is checked."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from cases import Wired, mlp
from torch import Tensor, nn

import mmstudy as mm
from mmstudy.expansion.candidate import Candidate

INPUTS = torch.randn(4, 3)


class Cache:
    """Something that a network returns beside tensors."""

    def __init__(self, held: Tensor):
        self.held = held


@dataclass
class Outputs:
    logits: Tensor
    hidden: Tensor
    largest: Tensor
    cache: Cache


class Model(nn.Module):
    """Called by keyword; returns numbers, whole numbers and a cache."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, input_ids=None, attention_mask=None, use_cache=True):
        hidden = self.body(self.embedding(input_ids)).relu() * attention_mask.unsqueeze(-1)
        logits = self.head(hidden)
        return Outputs(logits, hidden, logits.argmax(-1), Cache(hidden))


BATCH = {"input_ids": torch.randint(9, (4, 5)), "attention_mask": torch.ones(4, 5, dtype=torch.long)}


@pytest.mark.parametrize("batch", [BATCH, UserDict(BATCH)])
@pytest.mark.parametrize("output", ["logits", lambda outputs: outputs.logits])
def test_a_model_is_called_by_keyword_and_only_the_chosen_output_must_stay(batch, output):
    network = Model()
    assert list(mm.couplings(network, batch)) == ["embedding"]  # the hidden units are put out
    assert list(mm.couplings(network, batch, output=output)) == ["embedding", "body"]
    new = mm.expand(network, batch, "lemon", {"body": 9}, output=output)
    torch.testing.assert_close(new(**BATCH).logits, network(**BATCH).logits)
    with pytest.raises(ValueError, match="body cannot grow: it is an axis of the network's output"):
        mm.expand(network, batch, "lemon", {"body": 9})
    with pytest.raises(ValueError, match=r"output='nothing' is no part of what the network returns, a Outputs"):
        mm.expand(network, batch, "lemon", {"body": 9}, output="nothing")


class Flagged(nn.Module):
    """Called with flags, numbers and words."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x, mask=None, both=False, factor=1.0, kind="relu"):
        hidden = getattr(self.a(x), kind)() if mask is None else self.a(x) * mask
        return (factor * self.b(hidden), hidden) if both else factor * self.b(hidden)


def test_flags_and_numbers_go_to_the_model_as_they_are():
    network = Flagged().double()
    batch = {"x": INPUTS.double(), "mask": None, "both": False, "factor": 2.0, "kind": "tanh"}
    assert "lemon" in mm.coverage(network, batch)["a"].exact
    new = mm.expand(network, batch, "lemon", {"a": 9}, also=[batch | {"x": INPUTS[:2].double(), "factor": 3.0}])
    torch.testing.assert_close(new(**batch), network(**batch))
    assert not mm.receipt(network, new, batch).wrong
    assert mm.couplings(network, batch | {"both": True}) == {}  # the hidden units are put out
    with pytest.raises(TypeError, match="batch must be a tensor, or a tuple or dict of tensors"):
        mm.expand(network, batch | {"kind": object()}, "lemon", {"a": 9})


def test_a_place_in_a_tuple_is_an_output():
    network = Wired(lambda net, x: (net.b(net.a(x)), net.a(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    assert mm.couplings(network, INPUTS) == {}
    assert list(mm.couplings(network, INPUTS, output=0)) == ["a"]


def test_an_operator_that_learns_needs_a_loss_for_a_batch_by_keyword():
    with pytest.raises(ValueError, match="learns from data"):
        mm.expand(Model(), BATCH, "ligo", {"body": 9}, output="logits")


class Padded(nn.Module):
    """Its horizon merely equals its width."""

    def __init__(self):
        super().__init__()
        self.horizon, self.width = 6, 6
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        y = self.a(x).view(-1, self.width).relu()
        return self.b(y) + self.horizon


@pytest.mark.parametrize("keep", [["horizon"], ["hor*"]])
def test_numbers_that_are_to_be_kept_are_kept(keep):
    network = Padded()
    grown = Candidate("random", ("a",), (8,)).grow(network, INPUTS, keep=keep)
    assert (grown.network.width, grown.network.horizon) == (8, 6)
    assert grown.changed == ("width: 6 → 8",)
    with pytest.raises(ValueError, match="does not run with the predicted shapes"):
        mm.expand(network, INPUTS, "random", {"a": 8}, keep=["width"])


def test_other_batches_are_checked_too():
    def forked(net, x):
        y = net.a(x).relu()
        return net.b(net.c(y) if len(x) > 4 else y)

    network = Wired(forked, a=nn.Linear(3, 6), b=nn.Linear(6, 2), c=nn.Linear(6, 6))
    small, large = torch.randn(3, 3), torch.randn(6, 3)
    other = Wired(lambda net, x: net.b((net.a(x) - (len(x) > 4) * 1.0).relu()), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    new = mm.expand(other, small, "lemon", {"a": 9}, also=[large])
    torch.testing.assert_close(new(large), other(large))
    shifted = Wired(lambda net, x: net.b((net.a(x) + (len(x) > 4) * 1.0).relu()), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"zero_incoming a→9 is not exact here"):  # felt on the other batch alone
        mm.expand(shifted, small, "zero_incoming", {"a": 9}, also=[large])
    with pytest.raises(ValueError, match=r"a cannot grow: .*(c\.weight|batch of shape \(6, 3\))"):
        mm.expand(network, small, "lemon", {"a": 9}, also=[large])


WRONG = {
    "no list": ({"also": INPUTS}, TypeError, "also must be a list"),
    "a word": ({"keep": "horizon"}, TypeError, "keep must be a list"),
    "no patterns": ({"keep": [3]}, TypeError, "keep holds patterns of paths"),
    "a misspelled number": ({"keep": ["*.out_featurs"]}, ValueError, r"'\*\.out_featurs'; did you mean .*out_features"),
    "nothing to keep": ({"keep": ["*.horizon"]}, ValueError, r"keep names no number of the network: '\*\.horizon'"),
    "a constant": ({"output": lambda o: torch.zeros(3)}, ValueError, "does not depend on what the network returns"),
    "no output": ({"output": lambda o: None}, ValueError, "has no number in it: None"),
    "another batch": ({"also": [torch.randn(2, 9)]}, ValueError, "cannot be called|fails"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_by_their_value(case):
    options, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        mm.expand(mlp(), torch.randn(4, 7), "lemon", {"hidden.0": 9}, **options)
