"""Configurations of classes that nobody knows: found by building, changed by as little as will do, or left alone."""

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from cases import change
from torch import nn

from mmstudy.expansion import rebuilding
from mmstudy.expansion.candidate import Candidate

DOUBLE = torch.float64


@dataclass
class Sizes:
    """Some numbers are equal by chance, some are gaps, which the class fills."""

    depth: int = 2
    width: int = 6
    inner: int | None = None
    kinds: list[str] = field(default_factory=lambda: ["plain", "scaled"])
    classes: int = 2
    horizon: int = 6


class Block(nn.Module):
    def __init__(self, sizes: Sizes, kind: str):
        super().__init__()
        self.scale = 0.5 if kind == "scaled" else 1.0
        inner = sizes.inner or 4 * sizes.width
        self.norm, self.up, self.down = nn.LayerNorm(sizes.width), nn.Linear(sizes.width, inner), None
        self.down = nn.Linear(inner, sizes.width)

    def forward(self, x):
        return x + self.scale * self.down(self.up(self.norm(x)).relu())


class Stack(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        if len(sizes.kinds) != sizes.depth:
            raise ValueError("a kind for each block")
        self.settings, self.stem = sizes, nn.Linear(3, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, kind) for kind in sizes.kinds)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks[: self.settings.depth]:
            x = block(x)
        return self.head(x)


def network(**sizes) -> Stack:
    torch.manual_seed(0)
    return Stack(Sizes(**sizes)).double()


def inputs() -> torch.Tensor:
    return torch.randn(5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def rebuilt(new: Stack) -> Stack:
    """What the class builds of the configuration, with the tensors."""
    other = Stack(copy.deepcopy(new.settings)).double()
    other.load_state_dict(new.state_dict())
    return other


GROWN = {
    "depth": ("identity_block", {"blocks.1": 1}, {"depth": 3, "kinds": ["plain", "scaled", "scaled"]}),
    "width": ("lemon", {"stem": 12}, {"width": 12, "inner": 24}),
    "width of the branches": ("lemon", {"blocks.0.up": 30, "blocks.1.up": 30}, {"inner": 30}),
}


@pytest.mark.parametrize("what", GROWN)
def test_the_class_builds_the_grown_network_from_its_configuration(what):
    old, (operator, where, expected) = network(), GROWN[what]
    grown = Candidate(operator, tuple(where), tuple(where.values())).grow(old, inputs())
    assert vars(grown.network.settings) == {**vars(Sizes()), **expected}
    assert vars(old.settings) == vars(Sizes())
    assert grown.configuration == "Stack builds the grown network from its configuration"
    assert {f"settings.{key}" for key in expected} <= {each.split(":")[0] for each in grown.changed}
    assert change(old, grown.network, inputs()) < 1e-13
    assert change(grown.network, rebuilt(grown.network), inputs()) == 0


def test_where_no_configuration_fits_it_stays_as_it_is_and_that_is_said():
    old = network()
    grown = Candidate("lemon", ("blocks.0.up",), (30,)).grow(old, inputs())
    assert vars(grown.network.settings) == vars(Sizes())
    assert grown.configuration.startswith(
        "no configuration of Stack with these numbers changed builds the grown network"
    )
    assert change(old, grown.network, inputs()) < 1e-13


def test_a_part_of_a_network_may_have_the_configuration():
    old = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), network()).double()
    x = torch.randn(5, 4, dtype=DOUBLE)
    grown = Candidate("identity_block", ("2.blocks.0",), (1,)).grow(old, x)
    assert "2.settings.depth: 2 → 3" in grown.changed
    assert grown.network[2].settings.kinds == ["plain", "plain", "scaled"]
    assert change(grown.network[2], rebuilt(grown.network[2]), inputs()) == 0


def test_what_builds_something_else_is_no_configuration():
    old = network()
    assert [part.path for part in rebuilding.configured(old)[0]] == [""]
    old.settings.width = 7
    assert rebuilding.configured(old) == (
        [],
        ["Stack does not build what it was from its settings, which stays as it is"],
    )
    grown = Candidate("identity_block", ("blocks.0",), (1,)).grow(old, inputs())
    assert grown.configuration == "Stack does not build what it was from its settings, which stays as it is"
    assert grown.changed == ("settings.depth: 2 → 3",)  # the loop needs it, and nothing else


def test_tries_are_bounded(monkeypatch):
    monkeypatch.setattr(rebuilding, "BUILDS", 2)
    grown = Candidate("lemon", ("stem",), (12,)).grow(network(), inputs())
    assert grown.configuration.startswith("no configuration of Stack")


class Fading(nn.Module):
    """Blocks whose scales are those of their places, so that an old block that moves would get another one."""

    def __init__(self, settings: Sizes):
        super().__init__()
        self.settings, self.stem, self.head = settings, nn.Linear(3, settings.width), nn.Linear(settings.width, 2)
        self.blocks = nn.ModuleList(Block(settings, "plain") for _ in range(settings.depth))
        for place, block in enumerate(self.blocks):
            block.scale = 1 / (place + 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks[: self.settings.depth]:
            x = block(x)
        return self.head(x)


def test_what_would_be_loaded_as_another_function_is_refused_and_the_number_that_differs_is_named():
    torch.manual_seed(0)
    old = Fading(Sizes()).double()
    with pytest.raises(
        ValueError, match=r"settings.depth: 2 → 3: Fading builds another .*blocks.2.scale: 0.3333 → 0.5"
    ):
        Candidate("identity_block", ("blocks.0",), (1,)).grow(old, inputs())
    grown = Candidate("identity_block", ("blocks.1",), (1,)).grow(old, inputs())
    assert [block.scale for block in grown.network.blocks] == [1, 1 / 2, 1 / 3]  # as it will be loaded
    assert "blocks.2.scale: 0.5 → 0.3333" in grown.changed
    assert change(old, grown.network, inputs()) < 1e-13


class Single(Sizes):
    """There is one of it, however often it is copied."""

    def __deepcopy__(self, memo):
        return self


def test_a_configuration_that_a_copy_shares_with_the_network_is_not_changed():
    settings = Single()
    with pytest.raises(ValueError, match="does not run in the new network"):
        Candidate("identity_block", ("blocks.0",), (1,)).grow(Stack(settings).double(), torch.randn(5, 3, dtype=DOUBLE))
    assert settings == Single()


class Counting(Stack):
    """It counts, and keeps numbers that its configuration does not know, in itself and in each block."""

    def __init__(self, sizes: Sizes):
        super().__init__(sizes)
        self.steps, self.temperature, self.kernel = 0, 1.0, (3, 3)
        for place, block in enumerate(self.blocks):
            block.rate, block.reach = 0.1, place / sizes.depth

    def forward(self, x):
        return super().forward(x) / self.temperature


@pytest.mark.parametrize("what", GROWN)
def test_numbers_that_were_set_after_construction_stay_with_their_blocks(what):
    old, (operator, where, expected) = Counting(Sizes()).double(), GROWN[what]
    old.steps, old.temperature, old.kernel, old.blocks[1].rate = 1000, 0.5, (5, 5), 0.3
    grown = Candidate(operator, tuple(where), tuple(where.values())).grow(old, inputs())
    new = grown.network
    assert vars(new.settings) == {**vars(Sizes()), **expected}
    assert change(old, new, inputs()) < 1e-13
    assert (new.steps, new.temperature, new.kernel) == (1000, 0.5, (5, 5))
    assert [block.rate for block in new.blocks] == [0.1, 0.3, 0.3][: len(new.blocks)]  # a copy keeps what it copies
    assert [block.reach for block in new.blocks] == [place / new.settings.depth for place in range(len(new.blocks))]
    inserted = Candidate("identity_block", ("blocks.0",), (1,)).grow(old, inputs()).network
    assert [block.rate for block in inserted.blocks] == [0.1, 0.1, 0.3]


@dataclass
class Rates:
    """Two of these numbers are an eps, and all are equal by chance."""

    rate: float = 1e-3
    eps: float = 1e-3
    decay: float = 1e-3
    late_eps: float = 1e-3
    width: int = 6


class TwoNorms(nn.Module):
    def __init__(self, rates: Rates):
        super().__init__()
        self.rates, self.stem, self.head = rates, nn.Linear(3, rates.width), nn.Linear(rates.width, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(rates.width, eps=eps) for eps in (rates.eps, rates.late_eps))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.norms[0](x) + self.norms[1](x))


def test_of_equal_fractions_only_those_follow_by_which_the_class_sets_what_has_changed():
    torch.manual_seed(0)
    old = TwoNorms(Rates()).double()
    grown = Candidate("zero_incoming", ("stem",), (9,)).grow(old, inputs())
    less = 1e-3 * 6 / 9
    assert grown.network.rates == Rates(eps=less, late_eps=less, width=9)
    assert [norm.eps for norm in grown.network.norms] == [less, less]
    assert change(old, grown.network, inputs()) < 1e-13


@dataclass
class Gates(Sizes):
    """It has two sequences with a part for each block."""

    gates: tuple[float, ...] = (0.25, 1.0)
    heads: int = 2


class Gated(Stack):
    def __init__(self, sizes: Gates):
        super().__init__(sizes)
        for place, block in enumerate(self.blocks):
            block.scale = sizes.gates[place]


def test_a_count_and_two_sequences_that_go_with_a_list_change_together_and_what_is_equal_by_chance_stays():
    torch.manual_seed(0)
    old = Gated(Gates()).double()
    new = Candidate("identity_block", ("blocks.0",), (1,)).grow(old, inputs()).network
    kinds, gates = ["plain", "plain", "scaled"], (0.25, 0.25, 1.0)
    assert new.settings == Gates(depth=3, kinds=kinds, gates=gates)
    assert [block.scale for block in new.blocks] == [0.25, 0.25, 1]
    assert change(old, new, inputs()) < 1e-13


class Widths(NamedTuple):
    """Two numbers that have names."""

    stem: int = 6
    branch: int = 12


@dataclass
class Named:
    """Its numbers are in a tuple that has names."""

    widths: Widths = field(default_factory=Widths)


class Short(nn.Module):
    def __init__(self, settings: Named):
        super().__init__()
        self.settings, self.shape, widths = settings, settings.widths, settings.widths
        self.layers = nn.Sequential(nn.Linear(3, widths.stem), nn.ReLU(), nn.Linear(widths.stem, widths.branch))
        self.head = nn.Linear(widths.branch, 2)

    def forward(self, x):
        return self.head(self.layers(x).relu())


def test_a_tuple_that_has_names_keeps_them():
    torch.manual_seed(0)
    old = Short(Named()).double()
    new = Candidate("lemon", ("layers.2",), (18,)).grow(old, inputs()).network
    assert new.settings.widths.branch == new.shape.branch == 18
    assert change(old, new, inputs()) < 1e-13


def test_nothing_is_drawn_for_what_is_only_built_whoever_puts_functions_in_the_place_of_torch_s(monkeypatch):
    drawn, torch_s = [], nn.init.normal_

    def normal_(tensor, mean=0.0, std=1.0, generator=None):
        return torch_s(tensor, mean, std, generator)

    class Drawing(nn.Module):
        def __init__(self, sizes: Sizes):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(sizes.width))
            nn.init.normal_(self.weight)
            self.register_buffer("phases", nn.init.normal_(torch.zeros(2)))
            drawn.append(bool(self.weight.any()))

    monkeypatch.setattr(nn.init, "normal_", normal_)
    assert Drawing(Sizes()).weight.any()
    module = rebuilding.built(Drawing, Sizes(), "cpu")
    assert drawn == [True, False]
    assert module.phases.all()  # which may be no parameters, and not be saved


@dataclass
class Heads:
    width: int = 8
    heads: int = 2


class Attending(nn.Module):
    """Attention whose tensors have the same shapes however many heads there are."""

    def __init__(self, sizes: Heads):
        super().__init__()
        self.settings, self.heads, self.each = sizes, sizes.heads, sizes.width // sizes.heads
        self.stem, self.norm, self.head = (
            nn.Linear(3, sizes.width),
            nn.LayerNorm(sizes.width),
            nn.Linear(sizes.width, 2),
        )
        self.q, self.k, self.v, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, self.each)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


@pytest.mark.parametrize("hidden", [0.0, 1e-7])
def test_what_zeros_hide_is_counted_in_the_configuration(hidden):
    """Branches that end in zeros (Goyal et al. 2017, arXiv 1706.02677) show nothing of the number of their heads."""
    torch.manual_seed(0)
    old, x = Attending(Heads()).double(), torch.randn(4, 5, 3, dtype=DOUBLE)
    with torch.no_grad():
        old.out.weight.mul_(hidden)
    before, versions = copy.deepcopy(old.state_dict()), [p._version for p in old.parameters()]
    new = Candidate("lemon", ("stem", "q[0]"), (16, 4)).expand(old, x)
    assert (new.heads, new.each, new.settings) == (4, 4, Heads(16, 4))
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in before.items())
    assert [p._version for p in old.parameters()] == versions  # graphs that need them still have a backward pass
