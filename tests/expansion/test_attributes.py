from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from cases import Wired, change
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.expansion import unchanged
from mmstudy.expansion.attributes import TRIES, needed
from mmstudy.expansion.candidate import Candidate

EXACT = 0.1


class Attention(nn.Module):
    """Of 4 heads, the fifth in a row of layers; it keeps a horizon that has nothing to do with either."""

    def __init__(self, more: dict[str, int]):
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(3, 24), nn.Linear(8, 3)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def test_an_index_that_equals_the_number_of_heads_stays():
    network, inputs = Attention({"layer_idx": 4, "top_k": 8}), torch.randn(5, 6, 3)
    grown = Candidate("lemon", ("qkv[1]",), (5,)).grow(network, inputs)
    assert (grown.network.heads, grown.network.layer_idx, grown.network.top_k) == (5, 4, 8)
    assert grown.changed == ("heads: 4 → 5",)
    assert change(network, grown.network, inputs) < 1e-5


@dataclass(frozen=True)
class Frozen:
    """A configuration that nobody may change."""

    hidden: int = 6
    horizon: int = 6


class Held(nn.Module):
    """It finds the width of its layer in what it holds; beside it stands a number that is as large by chance."""

    def __init__(self, held, read, key="held"):
        super().__init__()
        self.first, self.head, self.read = nn.Linear(3, 6), nn.Linear(6, 2), read
        setattr(self, key, held)

    def forward(self, x):
        return self.head(self.first(x).view(-1, self.read(self)).relu())


HOLDERS = {
    "list": lambda: Held([6, 6, 2], lambda net: net.held[1]),
    "dict": lambda: Held({"hidden": 6, "horizon": 6}, lambda net: net.held["hidden"]),
    "list in a dict": lambda: Held({"model": {"sizes": [6, 6]}}, lambda net: net.held["model"]["sizes"][1]),
    "object": lambda: Held(SimpleNamespace(hidden=6, horizon=6), lambda net: net.held.hidden),
    "frozen dataclass": lambda: Held(Frozen(), lambda net: net.held.hidden),
    "private attribute": lambda: Held(6, lambda net: net._width, key="_width"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_sizes_are_found_in_what_modules_hold(name):
    network, inputs = HOLDERS[name](), torch.randn(5, 3)
    before = repr(network.__dict__.get("held"))
    grown = Candidate("lemon", ("first",), (8,)).grow(network, inputs)
    assert (network.read(network), grown.network.read(grown.network)) == (6, 8)
    assert [said.partition(": ")[2] for said in grown.changed] == ["6 → 8"]
    assert repr(network.__dict__.get("held")) == before  # and what the old one holds stays
    assert change(network, grown.network, inputs) < 1e-6
    where = grown.changed[0].partition(":")[0]
    assert any(where.startswith(said.partition(":")[0]) for said in unchanged.changed(network, grown.network))
    with pytest.raises(ValueError, match=r"keeps? no such size|does not run"):
        mm.expand(network, inputs, "lemon", {"first": 8}, keep=[where])


class Pair(NamedTuple):
    """Two numbers that have names."""

    heads: int
    width: int


KINDS = {"tuple": (4, 4), "named tuple": Pair(4, 4), "size": torch.Size((4, 4)), "list": [4, 4]}


def _parted(net, x):
    return net.head(net.body(x).view(len(x), *net.sizes).relu().flatten(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("private", [False, True])
def test_of_equal_numbers_in_a_sequence_one_may_follow_and_the_sequence_is_of_the_same_kind(kind, private):
    network, inputs = Wired(_parted, body=nn.Linear(3, 16), head=nn.Linear(16, 2), sizes=KINDS[kind]), torch.randn(5, 3)
    if private:
        network._hidden = SimpleNamespace(sizes=vars(network).pop("sizes"))
        network.wiring = lambda net, x: net.head(net.body(x).view(len(x), *net._hidden.sizes).relu().flatten(1))
    for place, expected in {"body[0]": (8, 4), "body[1]": (4, 8)}.items():
        grown = Candidate("lemon", (place,), (8,)).grow(network, inputs)
        sizes = grown.network._hidden.sizes if private else grown.network.sizes
        assert (type(sizes), tuple(sizes)) == (type(KINDS[kind]), expected)
        assert len(grown.changed) == 1
        assert kind == "list" or grown.changed[0].endswith(f"{KINDS[kind]} → {sizes}")
        assert change(network, grown.network, inputs) < 1e-6


def test_many_equal_numbers_in_tuples_are_told_apart_in_a_bounded_number_of_tries():
    calls = []

    def counted(net, x):
        calls.append(x)
        return _parted(net, x)

    def network(**numbers):
        return Wired(counted, body=nn.Linear(3, 16), head=nn.Linear(16, 2), **numbers)

    inputs = torch.randn(5, 3)
    grown = Candidate("lemon", ("body[1]",), (8,)).grow(network(more=(4,) * 40, sizes=(4, 4)), inputs)
    assert grown.changed == ("sizes: (4, 4) → (4, 8)",)
    calls.clear()
    with pytest.raises(ValueError, match=r"body\[1\] cannot grow from 4 to 8: the network does not run"):
        Candidate("lemon", ("body[1]",), (8,)).grow(network(more=(4,) * 90, sizes=(4, 4)), inputs)
    assert len(calls) < 3 * TRIES


def test_one_configuration_that_modules_share_is_changed_once():
    held = {"hidden": 6}
    network = nn.Sequential(Held(held, lambda net: net.held["hidden"]), nn.Tanh())
    network[1].held = held
    grown = Candidate("lemon", ("0.first",), (8,)).grow(network, torch.randn(5, 3)).network
    assert grown[0].held is grown[1].held == {"hidden": 8}
    assert held == {"hidden": 6}


class Single(SimpleNamespace):
    """There is one of it, however often it is copied."""

    def __deepcopy__(self, memo):
        return self


def test_what_a_copy_shares_with_the_network_is_not_changed():
    network = Held(Single(hidden=6), lambda net: net.held.hidden)
    with pytest.raises(ValueError, match="does not run with the predicted shapes"):
        Candidate("lemon", ("first",), (8,)).grow(network, torch.randn(5, 3))
    assert network.held.hidden == 6


def test_a_size_that_is_written_into_the_code_is_guessed_at():
    network = Held(None, lambda net: 6)
    with pytest.raises(ValueError, match=r"keep no such size: shape '\[-1, 6\]' is invalid.* written into its code\?"):
        Candidate("lemon", ("first",), (8,)).grow(network, torch.randn(5, 3))


def _weighed(net, x):
    return net.head(net.norm(net.body(x)).relu()) / net.horizon


def _stream(**more: int) -> Wired:
    return Wired(_weighed, body=nn.Linear(3, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 2), **more)


@pytest.mark.parametrize("operator", ["lemon", "random"])
def test_a_number_that_the_function_needs_as_it_is_stays(operator):
    network, inputs = _stream(horizon=8, num_classes=8, padding_idx=8), torch.randn(5, 3)
    first = Candidate(operator, ("body",), (12,))
    grown = first.grow(network, inputs)
    assert [getattr(grown.network, name) for name in ("horizon", "num_classes", "padding_idx")] == [8, 8, 8]
    assert grown.changed == ("norm.normalized_shape: (8,) → (12,)",)
    chain = Candidate(operator, ("body",), (12,), then=Candidate(operator, ("body",), (16,)))
    assert chain.grow(network, inputs).changed == (*grown.changed, "norm.normalized_shape: (12,) → (16,)")


def test_a_scale_by_the_old_width_of_heads_stays():
    """Nothing fails if it follows, but the function would be another one."""

    def attended(net, x):
        q, k, v = (layer(x).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=net.width**-0.5)
        return net.out(y.transpose(1, 2).flatten(2)).mean(1)

    network = Wired(attended, q=nn.Linear(3, 12), k=nn.Linear(3, 12), v=nn.Linear(3, 12), out=nn.Linear(12, 2), width=4)
    inputs = torch.randn(5, 6, 3)
    grown = Candidate("bert2bert", ("q[1]",), (8,)).grow(network, inputs)
    assert grown.changed == ()
    assert change(network, grown.network, inputs) < 1e-5


def test_fifty_numbers_that_happen_to_be_equal_are_told_apart_in_a_few_tries():
    """All 2⁵⁰ choices would not fit into any memory."""
    names = [f"number_{i}" for i in range(50)]
    network, inputs = _stream(horizon=8, **dict.fromkeys(names, 8)), torch.randn(5, 3)
    grown = Candidate("lemon", ("body",), (12,)).grow(network, inputs)
    assert grown.changed == ("norm.normalized_shape: (8,) → (12,)",)


@given(st.sets(st.integers(0, 39), max_size=4), st.sets(st.integers(0, 39), max_size=2))
def test_what_is_needed_is_found_and_no_more(must, keeps):
    """`must`: without these the network fails; `keeps`: without these it is another function."""
    tries = []

    def outcome(chosen: frozenset[int]) -> float | None:
        tries.append(chosen)
        return None if not must <= chosen else 0.0 if keeps <= chosen else 1.0

    assert needed(40, outcome, EXACT) == must | keeps
    assert len(tries) == len(set(tries)) <= TRIES


def test_numbers_that_must_stay_are_found_around():
    def outcome(chosen: frozenset[int]) -> float | None:
        return 0.0 if chosen == {1, 3} else 1.0 if chosen == {0, 1} else None

    assert needed(4, outcome, EXACT) == {0, 1}  # the first that runs; nothing beside it makes it exact
    assert needed(4, lambda chosen: 0.0 if chosen == {1, 3} else None, EXACT) == {1, 3}
    assert needed(3, lambda chosen: None, EXACT) is None
    assert needed(0, lambda chosen: float("nan"), EXACT) == frozenset()


def test_what_is_dear_to_know_is_asked_only_of_what_runs_and_of_what_keeps_the_function():
    asked = []

    def outcome(chosen: frozenset[int]) -> float | None:
        return None if not chosen else 0.0 if len(chosen) > 1 else 1.0

    def confirmed(chosen: frozenset[int]) -> bool:
        asked.append(chosen)
        return 2 in chosen

    assert needed(4, outcome, EXACT, confirmed) == {0, 2}
    assert all(outcome(chosen) is not None for chosen in asked)
    assert needed(4, outcome, EXACT, lambda chosen: False) is None


def test_a_search_without_an_end_is_refused_by_its_numbers():
    with pytest.raises(ValueError, match=rf"{TRIES} tries did not tell which of 50 numbers must change"):
        needed(50, lambda chosen: None, EXACT)
