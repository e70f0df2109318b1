"""The row of an embedding that stands for padding never learns: what grows leaves it zero, and draws the rest alike."""

import pytest
import torch
from cases import change
from torch import nn
from torch.nn.functional import cross_entropy

from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS, named


class Words(nn.Module):
    """The mean of embedded words, of which number 2 is padding."""

    def __init__(self, padding: int | None):
        super().__init__()
        self.embedding = nn.Embedding(6, 4, padding_idx=padding)
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.body(self.embedding(words).mean(1)).tanh())


def words(padding: int | None) -> Words:
    torch.manual_seed(0)
    network = Words(None).double()
    with torch.no_grad():
        network.embedding.weight[2] = 0
    network.embedding.padding_idx = padding
    return network


TEXT, TOPICS = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 2, 2], [2, 2, 2]]), torch.tensor([0, 1, 2, 0])
WIDER = [name for name in named(widens=True) if name not in ("gradmax", "bert2bert_advanced")]  # no layer, no next one


@pytest.mark.parametrize("operator", WIDER)
def test_the_row_for_padding_stays_zero(operator):
    network = words(2)
    new = Candidate(operator, ("embedding",), (8,)).expand(network, (TEXT, TOPICS))
    assert new.embedding.weight.shape == (6, 8)
    assert (new.embedding.weight[2] == 0).all()
    if OPERATORS[operator].preserves == "exactly":
        assert change(network, new, TEXT) < 1e-12
    cross_entropy(new(TEXT), TOPICS).backward()
    assert (new.embedding.weight.grad[2] == 0).all()


@pytest.mark.parametrize("operator", [name for name in WIDER if not OPERATORS[name].learns])
def test_the_other_rows_and_the_draws_after_them_are_those_without_padding(operator):
    """But for operators that look at gradients, in which padding has no part."""
    chain = Candidate(operator, ("embedding", "body"), (8, 16), seed=1)
    with_padding, without = (chain.expand(words(padding), (TEXT, TOPICS)) for padding in (2, None))
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(with_padding.embedding.weight[rest], without.embedding.weight[rest])
    for layer in ("body", "head"):
        assert torch.equal(with_padding.get_parameter(f"{layer}.weight"), without.get_parameter(f"{layer}.weight"))


@pytest.mark.parametrize("operator", ["net2net", "bert2bert", "lemon", "zero_outgoing", "firefly"])
def test_a_row_for_padding_that_somebody_filled_is_grown_as_the_others_and_not_drawn(operator):
    network = words(2)
    with torch.no_grad():
        network.embedding.weight[2] = torch.randn(4, generator=generator("padding"), dtype=torch.float64)
    new = Candidate(operator, ("embedding",), (8,)).expand(network, (TEXT, TOPICS))
    row = new.embedding.weight[2]
    assert torch.equal(row[:4], network.embedding.weight[2])
    assert set(row[4:].tolist()) <= ({0.0} if operator == "zero_outgoing" else set(row[:4].tolist()))
