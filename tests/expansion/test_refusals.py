"""What cannot grow, and why, by the names that a user types; numbers that keep= protects; weights that are computed."""

import copy

import pytest
import torch
from cases import Wired
from torch import nn
from torch.nn.utils import parametrizations, prune

import mmstudy as mm

X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def wired(forward, **parts) -> Wired:
    torch.manual_seed(0)
    return Wired(forward, **parts).double()


def layers(net, x):
    return net.b(net.a(x).relu())


def test_pruned_weights_are_reported():
    network = wired(layers, a=nn.Linear(5, 8), b=nn.Linear(8, 3), c=nn.Linear(3, 3))
    prune.l1_unstructured(network.a, "weight", amount=0.4)
    network(X)
    assert "its weights are no parameter" in str(mm.coverage(network, X))
    with pytest.raises(ValueError, match=r"a cannot grow: .*its weights are no parameter"):
        mm.expand(network, X, "lemon", {"a": 12})


def test_a_layer_that_has_no_rule_is_refused_by_its_own_name():
    network = wired(lambda net, x: net.b(net.r(x[None])[0][0]), r=nn.LSTM(5, 8), b=nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"r cannot grow: what the operation does to units is not known .*lstm"):
        mm.expand(network, X, "lemon", {"r": 9})
    with pytest.raises(ValueError, match=r"an empty pool: .*what cannot grow: .*lstm"):
        mm.candidate_pool(network, X)


def test_a_protected_number_is_refused_where_it_must_change():
    def forward(net, x):
        return net.b(net.norm(net.a(x)))

    network = wired(forward, a=nn.Linear(5, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"norm\.eps must change, and keep= protects it"):
        mm.expand(network, X, "lemon", {"a": 12}, keep=["norm.eps"])
    with pytest.raises(ValueError, match=r"a\.out_features must change, and keep= protects it"):
        mm.expand(network, X, "lemon", {"a": 12}, keep=["a.*"])
    assert network.norm.eps == 1e-5


def test_a_spectral_norm_is_not_moved_by_looking_at_it():
    network = wired(
        lambda net, x: net.b(net.a(net.c(x)).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 8), c=nn.Linear(5, 5)
    )
    network.c = parametrizations.spectral_norm(network.c).double()
    before = copy.deepcopy(network.train().state_dict())
    new = mm.expand(network, X, "lemon", {"a": 12})
    for state in (network.state_dict(), new.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in before.items() if name.startswith("c."))


def test_complex_weights_are_refused_as_such():
    parts = {
        "a": nn.Linear(5, 6),
        "w": nn.ParameterList([torch.ones(6, 4, dtype=torch.complex64)]),
        "b": nn.Linear(4, 2),
    }
    network = Wired(lambda net, x: net.b((net.a(x).to(torch.complex64) @ net.w[0]).real), **parts)
    found = mm.coverage(network, torch.ones(3, 5))
    assert all("complex numbers" in found[place].reason for place in ("a", "w"))
