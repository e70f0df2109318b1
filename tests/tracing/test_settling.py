"""Units that others on their axis would feel are fixed, with a reason that names what is felt."""

import pytest
import torch
from cases import Wired, change, uneven
from torch import nn
from torch.nn import functional as F

from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.couplings import couplings, fixed

TOKENS = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attended(scale=None, **widths) -> nn.Module:
    """Queries and keys of which the first four numbers are turned, two and two, and the others are not."""

    def turned(net, x):
        angles = torch.arange(x.shape[1]).unsqueeze(1) * net.speeds
        rotary, rest, half = x[..., : 2 * len(net.speeds)], x[..., 2 * len(net.speeds) :], len(net.speeds)
        angles = torch.cat([angles, angles], -1)
        other = torch.cat([-rotary[..., half:], rotary[..., :half]], -1)
        return torch.cat([rotary * angles.cos() + other * angles.sin(), rest], -1)

    def forward(net, x):
        q, k = turned(net, net.q(x)), turned(net, net.k(x))
        return net.out(F.scaled_dot_product_attention(q, k, net.v(x), scale=scale))

    sizes = {"q": (5, 7), "k": (5, 7), "v": (5, 3), "out": (3, 2)}
    network = Wired(forward, **{name: nn.Linear(*size) for name, size in sizes.items()})
    network.register_buffer("speeds", torch.tensor([1.0, 0.1]))
    return uneven(network).double()


def test_parts_of_queries_grow_where_their_number_does_not_scale_the_sum():
    reasons = fixed(attended(), TOKENS)
    assert all("the number of all of them scales the sum" in reasons[f"q[{i}]"] for i in range(2))
    network = attended(scale=0.3)
    groups = couplings(network, TOKENS)
    assert {name: group.size for name, group in groups.items()} == {"q[0]": 2, "q[1]": 3, "v": 3}
    for operator in ("lemon", "zero_outgoing", "zero_incoming"):
        for place, group in groups.items():
            new = Candidate(operator, (place,), (group.size + 1,)).expand(network, TOKENS)
            assert change(network, new, TOKENS) < 1e-12, (operator, place)


def test_units_that_are_normalized_and_cut_afterwards_cannot_grow():
    def forward(net, x):
        y = net.norm(net.body(x))
        return net.head(torch.cat([y[..., :3].relu(), y[..., 3:]], -1))

    network = Wired(forward, body=nn.Linear(5, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 2)).double()
    assert couplings(network, TOKENS) == {}
    assert "normalized together with other units" in fixed(network, TOKENS)["body[0]"]


@pytest.mark.parametrize("cut", [lambda y: y.chunk(2, -1), lambda y: (y[..., :4], y[..., 4:])])
def test_queries_whose_layer_writes_a_gate_of_the_same_width_cannot_be_scaled_alone(cut):
    def forward(net, x):
        q, gate = cut(net.both(x))
        return net.out(F.scaled_dot_product_attention(q, net.k(x), net.v(x)) * gate)

    sizes = {"both": (5, 8), "k": (5, 4), "v": (5, 4), "out": (4, 2)}
    network = Wired(forward, **{name: nn.Linear(*size) for name, size in sizes.items()}).double()
    network.wiring = lambda net, x: forward(net, x) + net.out(net.k(x))  # so that keys and gates have the same units
    assert couplings(network, TOKENS) == {}
    assert any("both.weight writes more than the queries" in reason for reason in fixed(network, TOKENS).values())


def test_a_table_of_scales_and_shifts_has_units_in_two_roles():
    def forward(net, x):
        return net.head(net.body(x) * net.table[:4] + net.table[4:])

    network = Wired(forward, body=nn.Linear(5, 4), table=torch.ones(8), head=nn.Linear(4, 2)).double()
    assert couplings(network, TOKENS) == {}
    assert "parts of table have it in different roles (bias, scale)" in fixed(network, TOKENS)["body"]


def test_a_unit_that_is_repeated_along_a_longer_axis_stays_one():
    network = Wired(lambda net, x: net.head(torch.cat([net.gate(x), net.body(x) * net.gate(x)], -1)),
                    body=nn.Linear(5, 4), gate=nn.Linear(5, 1), head=nn.Linear(5, 2)).double()  # fmt: skip
    assert set(couplings(network, TOKENS)) == {"body"}
    assert "repeated along a longer axis" in fixed(network, TOKENS)["gate"]
