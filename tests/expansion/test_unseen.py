"""Numbers computed from a width, whose effect the batch does not show: refused, unless another batch does show it."""

import pytest
import torch
from cases import Wired
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.expansion.unseen import unseen, with_numbers

LARGE = 8.0  # inputs beyond it are scaled down


def _scaled_down(scale):
    def forward(net, x):
        h = net.body(x).relu()
        large = x.abs().amax(-1, keepdim=True) > LARGE
        return net.head(torch.where(large, scale(h), h))

    return forward


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        h = self.up(x).relu()
        return self.down(h) * h.shape[-1] ** -0.5


class Routed(nn.Module):
    """Experts side by side; each example goes to one."""

    def __init__(self):
        super().__init__()
        self.router, self.head = nn.Linear(6, 3), nn.Linear(6, 2)
        self.experts = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x):
        best = self.router(x).argmax(-1, keepdim=True)
        return self.head(x + sum(expert(x) * (best == i) for i, expert in enumerate(self.experts)))


def network(scale):
    torch.manual_seed(0)
    return Wired(_scaled_down(scale), body=nn.Linear(3, 6), head=nn.Linear(6, 2)).double(), torch.rand(5, 3).double()


WRONG = {  # twice the units make these sums or numbers others
    "divided by a root": lambda h: h / h.shape[-1] ** 0.5,
    "by a tensor": lambda h: h * torch.tensor(1 / h.shape[-1], dtype=h.dtype),
    "cut off": lambda h: h.clamp(max=1 / h.shape[-1]),
    "a whole number": lambda h: h * h.shape[-1],
}


@pytest.mark.parametrize("scale", WRONG.values(), ids=WRONG)
def test_a_number_whose_effect_is_not_seen_is_refused(scale):
    net, inputs = network(scale)
    with pytest.raises(ValueError, match=r"not known to be exact here: .* became .* in aten.* in the network itself"):
        mm.expand(net, inputs, "lemon", {"body": 12})
    with pytest.raises(ValueError, match="not exact here"):  # as a batch shows that is large enough
        mm.expand(net, 20 * inputs, "lemon", {"body": 12})
    with pytest.raises(ValueError, match="not exact here"):
        mm.expand(net, inputs, "lemon", {"body": 12}, also=[20 * inputs])
    mm.expand(net, inputs, "random", {"body": 12})  # which promises nothing


def test_a_number_that_is_right_is_accepted_once_a_batch_shows_its_effect():
    net, inputs = network(lambda h: h * h.shape[-1] / h.shape[-1])
    new = mm.expand(net, inputs, "lemon", {"body": 12}, also=[20 * inputs])
    for batch in (inputs, 20 * inputs, 100 * inputs):
        torch.testing.assert_close(new(batch), net(batch), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"6 became 12 .* Give a batch whose outputs do, by also"):
        mm.expand(net, inputs, "lemon", {"body": 12})


def test_experts_that_no_example_goes_to():
    torch.manual_seed(0)
    net, inputs = Routed().double(), torch.randn(6, 6).double()
    net.router.bias.data = torch.tensor([0.0, 50, 0]).double()
    with pytest.raises(ValueError, match=r"0\.353553 became 0\.25 in aten.mul.Tensor in experts.2,"):
        mm.expand(net, inputs, "lemon", {"experts.2.up": 16})
    with pytest.raises(ValueError, match="not exact here"):
        mm.expand(net, inputs, "lemon", {"experts.1.up": 16})


def test_blocks_that_are_closed_by_zeros_hide_nothing():
    """Their numbers may change: such blocks are nothing on every batch, and their numbers are seen behind the zeros."""

    def forward(net, x):
        h = net.up(net.norm(net.stem(x))).relu()
        return net.head(net.stem(x) + net.down(h / h.shape[-1]))

    torch.manual_seed(0)
    parts = {"stem": nn.Linear(3, 6), "norm": nn.LayerNorm(6), "up": nn.Linear(6, 8), "down": nn.Linear(8, 6)}
    net, inputs = Wired(forward, **parts, head=nn.Linear(6, 2)).double(), torch.randn(5, 3).double()
    for tensor in net.down.parameters():
        nn.init.zeros_(tensor)
    for place, size in (("stem", 12), ("up", 16)):
        new = mm.expand(net, inputs, "lemon", {place: size})
        torch.testing.assert_close(new(inputs), net(inputs), atol=1e-12, rtol=0)


def test_what_no_output_is_computed_from_is_free():
    """Statistics that a network keeps, and outputs that need not stay."""

    def forward(net, x):
        h = net.body(x).relu()
        net.mean = h.sum() / h.shape[-1]
        return {"logits": net.head(h), "energy": h.square() / h.shape[-1]}

    torch.manual_seed(0)
    net, inputs = Wired(forward, body=nn.Linear(3, 6), head=nn.Linear(6, 2)).double(), torch.rand(5, 3).double()
    new = mm.expand(net, inputs, "lemon", {"body": 12}, output="logits")
    torch.testing.assert_close(new(inputs)["logits"], net(inputs)["logits"], atol=1e-12, rtol=0)


def test_numbers_are_followed_through_what_is_written_in_place():
    def written(h):
        out = torch.zeros_like(h)
        out[:2].copy_(h[:2] / h.shape[-1])
        return out

    net, inputs = network(written)
    with pytest.raises(ValueError, match="not known to be exact here: 6 became 12"):
        mm.expand(net, inputs, "lemon", {"body": 12})


ATTENTION = {
    "before it": lambda h, number: F.scaled_dot_product_attention(h, h, h / number),
    "inside": lambda h, number: F.scaled_dot_product_attention(h, h, h, scale=number),
    "behind it": lambda h, number: F.scaled_dot_product_attention(h, h, h) * number,
}


@pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_numbers_are_followed_through_attention(attention, size):
    def with_number(number):
        net, _ = network(lambda h: attention(h.unsqueeze(0), number)[0])
        return net

    inputs = size * torch.rand(5, 3).double()
    before = with_numbers(with_number(0.5), run := lambda net, instead: net(inputs))
    said = unseen(with_number(0.25), [(before, run)])
    if size < LARGE:
        assert said.startswith("0.5 became 0.25 in ")
    else:
        assert said is None


def test_other_operations_than_before_are_not_compared():
    old, inputs = network(lambda h: h * 2.0)
    new, _ = network(lambda h: h + 2.0)
    before = with_numbers(old, run := lambda net, instead: net(inputs))
    assert unseen(new, [(before, run)]).startswith("it computes with other operations than before")
    assert unseen(old, [(before, run)]) is None


def test_coverage_says_it_too():
    net, inputs = network(WRONG["divided by a root"])
    assert "lemon" not in mm.coverage(net, inputs).table.loc["body", "exact"]
