"""Networks read in float64: the same numbers as a converted copy, on the memory of the old ones."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mmstudy.expansion import doubled as doubling
from mmstudy.expansion.doubled import doubled, rounding
from mmstudy.expansion.exactness import Reference
from mmstudy.tracing.calls import Call

STREAM = torch.Generator().manual_seed(0)
ROWS, SENTENCES = torch.randn(4, 6, generator=STREAM), torch.randn(2, 5, 6, generator=STREAM)


class Tied(nn.Module):
    """One tensor is read twice, another one asked for its type."""

    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, words):
        x = self.body(self.table(words).to(self.body.weight.dtype))
        return x @ self.table.weight.T


NETWORKS = {
    "a perceptron with batch norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), ROWS),
    "an LSTM": (lambda: nn.LSTM(6, 4, batch_first=True), SENTENCES),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SENTENCES),
    "a table changed in place": (lambda: nn.Embedding(9, 4, max_norm=0.5), torch.arange(5)),
    "computed weights": (lambda: weight_norm(nn.Linear(6, 4)), ROWS),
    "tied tensors": (Tied, torch.arange(6).view(2, 3)),
    "half precision": (lambda: nn.Linear(6, 4).bfloat16(), ROWS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_those_of_a_converted_copy_and_nothing_is_touched(name):
    build, x = NETWORKS[name]
    torch.manual_seed(0)
    network = build().eval()
    x, before = x.double() if x.is_floating_point() else x, copy.deepcopy(network.state_dict())
    with torch.no_grad():
        found, expected = doubled(network)(x), copy.deepcopy(network).double()(x)
    pairs = zip(found[:1], expected[:1], strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(a.dtype == torch.float64 and torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_network_of_another_type_alone_has_no_outputs_in_float64():
    network = nn.Linear(6, 4)
    network.register_forward_pre_hook(lambda module, given: (given[0].float(),))
    reference = Reference(network, Call((ROWS,)))
    assert reference.double is None
    assert reference.plain.dtype == torch.float32


def test_parameters_are_moved_by_rounding_at_random_and_the_same_whenever_they_are_read():
    network, eps = nn.Linear(300, 70), 1e-3
    with torch.no_grad():
        new = doubled(network, {"bias": torch.ones(70, dtype=torch.float64)}, ["weight"], eps)
        once, again = (new.weight + 0.0 for _ in range(2))
    moved = once / network.weight.double() - 1
    assert torch.equal(once, again)
    assert torch.allclose(moved.abs(), torch.full_like(moved, eps))
    assert abs(float((moved > 0).double().mean()) - 0.5) < 0.02  # 21,000 draws: five standard errors
    assert torch.equal(new.bias, torch.ones(70, dtype=torch.float64))
    assert not torch.equal(rounding(network.weight, torch.float64, eps, "another name").whole(), once)


def test_rows_are_moved_as_the_whole_is(monkeypatch):
    """Whatever the number of rows, and where they begin: 7 numbers in a row are no whole bytes."""
    table = nn.Parameter(torch.randn(50, 7))
    monkeypatch.setattr(doubling, "CHUNK", 40)
    source = rounding(table, torch.float64, 1e-3, "table")
    whole = source.whole()
    for first, last in [(0, 50), (0, 1), (3, 4), (17, 40), (49, 50)]:
        assert torch.equal(source.rows(first, last), whole[first:last])
