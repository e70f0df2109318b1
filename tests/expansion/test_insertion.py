"""Depth in networks that this package did not define: how blocks are called, and the numbers that follow."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from cases import Wired, change
from torch import nn
from torch.nn import functional as F

from mmstudy.core.networks import evaluating
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.calls import Call

DOUBLE = torch.float64


class Residual(nn.Module):
    """A pre-norm block with its place among the others, called in a way of its own."""

    def __init__(self, place: int, width: int = 6, answer: str = "tensor"):
        super().__init__()
        self.layer_idx, self.answer, self.most = place, answer, 7
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, mask=None, hidden=None):
        hidden = hidden + self.down(F.gelu(self.up(self.norm(hidden)))) * (1 if mask is None else mask)
        return {"tensor": hidden, "tuple": (hidden, mask), "mapping": {"hidden": hidden}}[self.answer]


def blocks(count: int = 2, **options) -> list[Residual]:
    torch.manual_seed(0)
    return [Residual(place, **options) for place in range(count)]


def by_keyword(net, x):
    for block in net.blocks:
        x = block(mask=torch.ones(len(x), 1, dtype=x.dtype), hidden=x)
        x = x[0] if isinstance(x, tuple) else x["hidden"] if isinstance(x, dict) else x
    return net.head(x)


def of_dict(net, x):
    for block in net.blocks.values():
        x = block(None, x)
    return net.head(x)


def inputs() -> torch.Tensor:
    return torch.randn(5, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("operator", ["identity_block", "zero_residual", "stack", "interleave", "deeper_random"])
def test_many_blocks_take_no_more_calls_than_a_few(operator):
    def calls(number: int) -> int:
        met = []

        def forward(net, x):
            met.append(x)
            return by_keyword(net, x)

        network = Wired(forward, blocks=nn.ModuleList(blocks()), head=nn.Linear(6, 2)).double()
        assert len(Candidate(operator, ("blocks.0",), (number,)).expand(network, inputs()).blocks) == 2 + number
        return len(met)

    assert calls(40) == calls(2)


@pytest.mark.parametrize("operator", ["identity_block", "zero_residual"])
@pytest.mark.parametrize("answer", ["tensor", "tuple", "mapping"])
def test_blocks_may_be_called_by_keyword_and_put_out_more_than_a_tensor(answer, operator):
    network = Wired(by_keyword, blocks=nn.ModuleList(blocks(answer=answer)), head=nn.Linear(6, 2)).double()
    new = Candidate(operator, ("blocks.0",), (2,)).expand(network, inputs())
    assert change(network, new, inputs()) == 0
    assert [block.layer_idx for block in new.blocks] == [0, 1, 2, 3]
    assert [bool(block.down.weight.any()) for block in new.blocks] == [True, False, False, True]
    assert all(block.up.weight.any() for block in new.blocks)
    assert [block.most for block in new.blocks] == [7] * 4


def test_lists_may_have_names_of_their_own():
    named = nn.Sequential()
    for name, block in zip(("first", "second"), (nn.Linear(6, 6), nn.Linear(6, 6)), strict=True):
        named.add_module(name, nn.Sequential(block, nn.ReLU()))
    network = nn.Sequential(named, nn.Linear(6, 2)).double()
    grown = Candidate("interleave", ("0.first",), (2,)).grow(network, inputs())
    assert list(grown.network[0]._modules) == ["first", "first_1", "first_2", "second"]
    assert grown.origin["0.first_2.0.weight"] == "0.first.0.weight"
    keyed = Wired(of_dict, blocks=nn.ModuleDict(zip("ab", blocks(), strict=True)), head=nn.Linear(6, 2)).double()
    grown = Candidate("identity_block", ("blocks.b",), (1,)).grow(keyed, inputs())
    assert list(grown.network.blocks) == ["a", "b", "b_1"]
    assert change(keyed, grown.network, inputs()) == 0
    with pytest.raises(ValueError, match=r"blocks\.c is no place .* blocks\.a to blocks\.b$"):
        Candidate("identity_block", ("blocks.c",), (1,)).grow(keyed, inputs())


def test_what_is_a_place_is_renumbered_and_what_only_looks_like_one_is_not():
    parts = blocks(3)
    for block, width in zip(parts, (0, 1, 5), strict=True):
        block.inner = nn.Module()
        block.inner.place, block.inner.window = block.layer_idx, width
    network = Wired(of_dict, blocks=nn.ModuleDict(zip("abc", parts, strict=True)), head=nn.Linear(6, 2)).double()
    grown = Candidate("stack", ("blocks.a", "blocks.b"), (1, 1)).grow(network, inputs())
    members = list(grown.network.blocks.values())
    assert [m.layer_idx for m in members] == [m.inner.place for m in members] == [0, 1, 2, 3, 4]
    assert [m.inner.window for m in members] == [0, 1, 0, 1, 5]
    assert "blocks.*.layer_idx: 0 … 2 → 0 … 4" in grown.changed
    assert [block.layer_idx for block in network.blocks.values()] == [0, 1, 2]


@pytest.mark.parametrize(("count", "then"), [(2, [0, 0, 1]), (3, [0, 1, 2, 3])])
def test_of_two_blocks_a_number_is_a_place_only_if_its_name_says_so(count, then):
    members = blocks(count)
    for place, block in enumerate(members):
        block.local = place  # of two, a switch
    network = Wired(by_keyword, blocks=nn.ModuleList(members), head=nn.Linear(6, 2)).double()
    new = Candidate("identity_block", ("blocks.0",), (1,)).expand(network, inputs())
    assert [block.local for block in new.blocks] == then
    assert [block.layer_idx for block in new.blocks] == list(range(count + 1))


@dataclass(frozen=True)
class Sizes:
    depth: int = 3
    kinds: tuple[str, ...] = ("a", "b", "a")
    most: int = 3
    more: dict = field(default_factory=lambda: {"layers": 3})


def _by_attribute(net, x):
    for layer in net.layers[: net.count]:
        x = layer(x).relu()
    return net.head(x)


def _by_configuration(net, x):
    for kind, layer in zip(net.sizes.kinds, net.layers[: net.sizes.depth], strict=True):
        x = layer(x).relu() if kind == "a" else layer(x).relu() + 1
    return net.head(x)


def _by_dict(net, x):
    for layer in net.layers[: net.sizes.more["layers"]]:
        x = layer(x).relu()
    return net.head(x)


COUNTS = {
    _by_attribute: ["count: 3 → 4"],
    _by_configuration: ["sizes.depth: 3 → 4", "sizes.kinds: ('a', 'b', 'a') → ('a', 'b', 'b', 'a')"],
    _by_dict: ["sizes.more.layers: 3 → 4"],
}


@pytest.mark.parametrize("loop", COUNTS)
def test_a_loop_that_counts_its_members_counts_the_new_one(loop):
    parts = {"layers": nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), "head": nn.Linear(6, 2)}
    network = Wired(loop, **parts, count=3, sizes=Sizes(), horizon=3).double()
    grown = Candidate("interleave", ("layers.1",), (1,)).grow(network, inputs())
    assert list(grown.changed) == COUNTS[loop]
    assert (grown.network.horizon, grown.network.sizes.most, network.sizes) == (3, 3, Sizes())
    with evaluating(grown.network), torch.no_grad():
        x, kinds = inputs(), ["a", "b", "b", "a"] if loop is _by_configuration else ["a"] * 4
        for kind, layer in zip(kinds, (network.layers[i] for i in (0, 1, 1, 2)), strict=True):
            x = layer(x).relu() + (kind == "b")
        assert torch.equal(network.head(x), grown.network(inputs()))


def test_a_list_may_have_one_module_at_several_places():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(6, 6), relu, nn.Sequential(nn.Linear(6, 6), relu), relu, nn.Linear(6, 2)).double()
    grown = Candidate("interleave", ("2",), (2,)).grow(network, inputs())
    assert [type(member).__name__ for member in grown.network._modules.values()] == [
        "Linear", "ReLU", "Sequential", "Sequential", "Sequential", "ReLU", "Linear",
    ]  # fmt: skip
    with torch.no_grad():
        assert torch.equal(grown.network(inputs()), network[3:](network[2](network[2](network[:3](inputs())))))


def test_a_copy_of_a_member_that_stands_at_several_places_is_a_member_of_its_own():
    block = blocks(1)[0]
    network = Wired(by_keyword, blocks=nn.ModuleList([block, block]), head=nn.Linear(6, 2)).double()
    for operator in ("identity_block", "stack"):
        grown = Candidate(operator, ("blocks.1",), (1,)).grow(network, inputs())
        assert grown.network.blocks[0] is grown.network.blocks[1]
        assert grown.network.blocks[2].up.weight is not grown.network.blocks[0].up.weight
        assert grown.origin["blocks.2.up.weight"] == "blocks.0.up.weight"


def test_members_that_stand_side_by_side_are_no_chain():
    """Experts: each is called on the same, so that one more makes the network wider, not deeper."""

    def experts(net, x):
        return net.head(sum(expert(x) for expert in net.experts))

    network = Wired(experts, experts=nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]), head=nn.Linear(6, 2)).double()
    with pytest.raises(ValueError, match=r"experts\.1, a copy of experts\.0, .* not work on what experts\.0 puts out"):
        Candidate("stack", ("experts.0",), (1,)).grow(network, inputs())


class PostNorm(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.up, self.down, self.output = nn.Linear(6, 9), nn.Linear(9, 6), nn.ModuleDict({"norm": norm})

    def forward(self, x):
        return self.output["norm"](x + self.down(self.up(x).relu()))


@pytest.mark.parametrize("operator", ["identity_block", "zero_residual"])
def test_a_norm_behind_the_branches_is_named_unless_it_does_nothing_to_a_stream_that_it_has_made(operator):
    def network(norm):
        return nn.Sequential(*(PostNorm(norm) for _ in range(2)), nn.Linear(6, 2)).double()

    shifted = nn.LayerNorm(6)
    nn.init.uniform_(shifted.weight, 0.5, 2)
    with pytest.raises(ValueError, match=r"no copy of 1 does nothing: 1\.output\.norm stands behind its branches"):
        Candidate(operator, ("1",), (1,)).grow(network(shifted), inputs())
    plain = network(nn.LayerNorm(6, eps=0.0, elementwise_affine=False))
    assert change(plain, Candidate(operator, ("0",), (1,)).grow(plain, inputs()).network, inputs()) < 1e-14
    assert len(Candidate("interleave", ("1",), (1,)).grow(network(shifted), inputs()).network) == 4


@pytest.mark.parametrize("place", ["1", "2"])
def test_a_norm_that_blocks_share_is_no_obstacle(place):
    class Block(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.up, self.down = norm, nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x)).relu())

    shared = nn.LayerNorm(6)
    network = nn.Sequential(nn.Linear(6, 6), Block(shared), Block(shared), nn.Linear(6, 2)).double()
    grown = Candidate("zero_residual", (place,), (1,)).grow(network, inputs()).network
    assert len(grown) == 5
    assert change(network, grown, inputs()) < 1e-14


class Cached(nn.Module):
    """Attends over its own past, kept in an object by its place; nothing that can be traced."""

    def __init__(self, place: int):
        super().__init__()
        self.place, self.read, self.out = place, nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, cache=None):
        past = cache.keep(self.place, x) if cache else x
        return x + self.out(torch.cumsum(self.read(past).sin(), 1)[:, -x.shape[1] :])


class Cache:
    def __init__(self):
        self.seen: dict[int, torch.Tensor] = {}

    def keep(self, place, x):
        self.seen[place] = torch.cat([self.seen[place], x], 1) if place in self.seen else x
        return self.seen[place]


class Recurrent(nn.Module):
    def __init__(self, count=2):
        super().__init__()
        self.blocks = nn.ModuleList(Cached(place) for place in range(count))

    def forward(self, x, cache=None):
        cache = cache or Cache()
        for block in self.blocks:
            x = block(x, cache=cache)
        return x


def test_with_a_cache_the_next_step_is_the_same_and_a_block_that_cannot_be_traced_is_tried_out():
    torch.manual_seed(0)
    network, x = Recurrent().double(), torch.randn(2, 5, 6, dtype=DOUBLE)
    for operator in ("identity_block", "zero_residual"):
        new = Candidate(operator, ("blocks.0",), (1,)).expand(network, Call((x,)))
        assert [block.place for block in new.blocks] == [0, 1, 2]
        assert not new.blocks[1].out.weight.any()
        assert new.blocks[1].read.weight.any()
        caches = Cache(), Cache()
        for part in (x[:, :3], x[:, 3:4], x[:, 4:]):
            assert torch.equal(network(part, caches[0]), new(part, caches[1]))


def test_the_old_network_is_left_alone_whatever_follows():
    network = Wired(_by_configuration, layers=nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), head=nn.Linear(6, 2))
    network.sizes = Sizes()
    network = network.double()
    before = copy.deepcopy(network.state_dict())
    Candidate("interleave", ("layers.1",), (1,)).grow(network, inputs())
    assert network.sizes == Sizes()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
