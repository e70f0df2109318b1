"""Parameters that are made when they are read, large ones in parts: the same numbers as if they were there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmstudy.expansion import reading
from mmstudy.expansion.reading import Source, kept, read

STREAM = torch.Generator().manual_seed(0)
TABLE, BIAS = torch.randn(11, 6, generator=STREAM), torch.randn(6, generator=STREAM).double()
ROWS, WIDE = (torch.randn(2, 3, n, generator=STREAM).double() for n in (6, 11))
PRODUCTS = {
    "a linear layer": lambda table: F.linear(ROWS, table),
    "one with a bias": lambda table: F.linear(ROWS, table, torch.arange(11).double()),
    "a transposed one": lambda table: WIDE @ table,
    "a transposed one with a bias": lambda table: torch.addmm(BIAS, WIDE[0], table),
    "one turned twice": lambda table: WIDE @ table.t().detach().t(),
    "an embedding": lambda table: F.embedding(torch.tensor([[3, 10], [3, 0]]), table, padding_idx=0),
    "an embedding of no word": lambda table: F.embedding(torch.zeros(2, 0, dtype=torch.long), table),
    "an embedding of the transpose": lambda table: F.embedding(torch.tensor([3, 0]), table.t()),
    "of itself": lambda table: table.t() @ table,
    "a sum": lambda table: table + 1,
}


@pytest.fixture
def asked(monkeypatch):
    """The rows of the table that are made, in order; no more than four at once."""
    monkeypatch.setattr(reading, "BIG", 0)
    monkeypatch.setattr(reading, "PART", 4 * 6 * 8)
    return []


def table(asked):
    def rows(first, last):
        asked.append((first, last))
        return TABLE[first:last].double()

    return read(TABLE, Source(TABLE.double, rows), torch.float64)


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_is_computed_is_the_same(name, asked):
    with torch.no_grad():
        torch.testing.assert_close(PRODUCTS[name](table(asked)), PRODUCTS[name](TABLE.double()), rtol=1e-13, atol=1e-13)
    if name in ("of itself", "a sum", "an embedding of no word", "an embedding of the transpose"):
        assert not asked
    elif name == "an embedding":
        assert asked == [(0, 1), (3, 4), (10, 11)]
    else:
        assert asked == [(0, 4), (4, 8), (8, 11)]


def test_no_row_is_made_up(asked):
    with torch.no_grad(), pytest.raises(IndexError):
        F.embedding(torch.tensor([11]), table(asked))


def test_what_is_small_is_made_at_once():
    some = []
    with torch.no_grad():
        F.linear(ROWS, table(some))
    assert not some


def test_a_change_in_place_stays(asked):
    own = table(asked)
    with torch.no_grad():
        own.mul_(2)
        torch.testing.assert_close(F.linear(ROWS, own), F.linear(ROWS, 2 * TABLE.double()))
        own.t().add_(1)
        torch.testing.assert_close(own + 0, 2 * TABLE.double() + 1)
    assert not asked


def test_a_layer_whose_weight_is_there_already():
    layer = nn.Linear(6, 11)
    layer._parameters["weight"] = read(layer.weight, kept(layer.weight.detach()), torch.float32)
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight + 0, layer.bias))
