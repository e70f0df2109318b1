"""Numbers that serve several couplings, which grow at once; and numbers of which one is an eps."""

import pytest
import torch
from cases import Wired, change
from torch import nn
from torch.nn import functional as F

from mmstudy.expansion.candidate import Candidate

DOUBLE = torch.float64


def _attended(net, x):
    q, k, v = (layer(x).unflatten(-1, (-1, net.width)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def attention() -> tuple[nn.Module, torch.Tensor]:
    """Three heads of width 4, a number that queries, keys and values share."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(3, 12) for name in "qkv"}
    network = Wired(_attended, **layers, out=nn.Linear(12, 2), width=4, horizon=4).double()
    return network, torch.randn(5, 6, 3, dtype=DOUBLE)


@pytest.mark.parametrize("operator", ["lemon", "zero_outgoing"])
def test_the_width_of_heads_grows_for_queries_and_values_at_once(operator):
    network, inputs = attention()
    with pytest.raises(ValueError, match=r"q\[1\] cannot grow from 4 to 6: .*Wired\.width = 4.* name them together"):
        Candidate(operator, ("q[1]",), (6,)).grow(network, inputs)
    grown = Candidate(operator, ("q[1]", "v[1]"), (6, 6)).grow(network, inputs)
    assert (grown.network.width, grown.network.horizon, grown.changed) == (6, 4, ("width: 4 → 6",))
    assert [tuple(layer.weight.shape) for layer in (grown.network.q, grown.network.v)] == [(18, 3), (18, 3)]
    assert change(network, grown.network, inputs) < 1e-14
    slopes = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    carried = grown.carry(slopes, False)
    assert {name: t.shape for name, t in carried.items()} == {n: p.shape for n, p in grown.network.named_parameters()}


def test_what_one_number_cannot_be_for_both_is_refused_as_it_is_alone():
    network, inputs = attention()
    with pytest.raises(ValueError, match=r"q\[1\] cannot grow from 4 to 6: the network does not run"):
        Candidate("lemon", ("q[1]", "v[1]"), (6, 8)).grow(network, inputs)


def _normalized(net, x):
    h = net.up(x)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + net.eps) * net.scale
    return net.down(h) / (1 + net.tolerance)


@pytest.mark.parametrize("keep", [(), ("tolerance", "rate")])
def test_of_equal_numbers_only_the_eps_of_a_normalization_follows_its_variance(keep):
    torch.manual_seed(0)
    layers = {"up": nn.Linear(6, 8), "scale": torch.ones(8), "down": nn.Linear(8, 3)}
    network = Wired(_normalized, **layers, tolerance=1e-3, eps=1e-3, rate=1e-3).double()
    inputs = torch.randn(4, 6, dtype=DOUBLE)
    new = Candidate("zero_incoming", ("up",), (12,)).grow(network, inputs, keep=keep).network
    assert (new.eps, new.tolerance, new.rate) == (1e-3 * 8 / 12, 1e-3, 1e-3)
    assert change(network, new, inputs) < 1e-14
    with pytest.raises(ValueError, match="eps must change, and keep= protects it"):
        Candidate("zero_incoming", ("up",), (12,)).grow(network, inputs, keep=["eps"])
