"""Couplings are held against what they mean: their units can be renumbered, and the network computes the same."""

import copy

import pytest
import torch
from cases import CASES, INPUTS, WIDTHS, Wired, batch, change, mlp, of_family
from torch import nn

from mmstudy.core.networks import MLP, Decoder, ResNet, ViT, count_parameters
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.couplings import Use, couplings, fixed, fixed_in, of_trace
from mmstudy.tracing.layouts import UNITS, places
from mmstudy.tracing.trace import trace
from mmstudy.validation.preservation import FAMILIES


def example(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of a family or case, in float64, and inputs."""
    if name in CASES:
        return CASES[name].network().double(), CASES[name].inputs(dtype=torch.float64)
    return of_family(name, 5)[1:3]


def renumber(network: nn.Module, uses: list[Use], order: torch.Tensor) -> nn.Module:
    """A copy of the network whose units have another order on these axes."""
    new = copy.deepcopy(network)
    tensors = {**dict(new.named_parameters()), **dict(new.named_buffers())}
    for tensor, axis, layout in {(use.tensor, use.axis, use.layout) for use in uses}:
        old, where = tensors[tensor].detach(), places(layout, len(order))
        old.index_copy_(axis, where.flatten(), old.index_select(axis, where[order].flatten()))
    return new


ALONE = ((UNITS,),)  # an axis of the units alone
SHIFTING = ("k.bias", "key.bias")  # each adds the same to all logits of a query: the softmax does not see it


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_the_units_of_a_coupling_can_be_renumbered_all_together_and_not_otherwise(name):
    network, inputs = example(name)
    for place, group in couplings(network, inputs).items():
        order = torch.arange(group.size).roll(1)
        assert change(network, renumber(network, group.uses, order), inputs) < 1e-13, place
        felt = {(use.tensor, use.axis) for use in group.uses if not use.tensor.endswith(SHIFTING)}
        for left_out in felt:
            rest = [use for use in group.uses if (use.tensor, use.axis) != left_out]
            assert change(network, renumber(network, rest, order), inputs) > 1e-9, (place, left_out)


def test_couplings_of_an_mlp_are_those_written_down_by_hand():
    groups = couplings(mlp((6, 4)), batch()[0])
    assert list(groups) == ["hidden.0", "hidden.1"]
    assert groups["hidden.0"].uses == (
        Use("hidden.0.weight", 0, ALONE, "weight", 7, ()),
        Use("hidden.0.bias", 0, ALONE, "bias", 7, ()),
        Use("hidden.1.weight", 1, ALONE, "consumed", 6, ()),
    )
    assert [use.tensor for use in groups["hidden.1"].of("consumed")] == ["head.weight"]
    assert [group.size for group in groups.values()] == [6, 4]


NAMES = {
    "MLP, batch norm": {"hidden.0.0": 12, "hidden.1.0": 12, "hidden.2.0": 12},
    "ResNet, batch norm": {
        "stem": 4, "stages.0.0.conv1": 4, "stages.0.1.conv1": 4, "stages.1.0.conv1": 8, "stages.1.0.conv2": 8,
        "stages.1.1.conv1": 8,
    },
    "ResNet, group norm": {
        f"{layer}[{i}]": (4, width)[i]
        for layer, width in {
            "stem": 2, "stages.0.0.conv1": 2, "stages.0.1.conv1": 2, "stages.1.0.conv1": 4, "stages.1.0.conv2": 4,
            "stages.1.1.conv1": 4,
        }.items() for i in (0, 1)
    },
    "ViT": {"embedding": 12} | {
        f"blocks.{i}.{what}": size for i in (0, 1) for what, size in
        {"attention.query[0]": 3, "attention.query[1]": 4, "attention.value[1]": 4, "up": 48}.items()
    },
    "decoder": {"embedding": 16} | {
        f"blocks.{i}.{what}": size for i in (0, 1) for what, size in {
            "attention.query[0]": 2, "attention.query[1]": 2, "attention.query[2]": 4, "attention.value[1]": 4,
            "up": 64,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_couplings_of_the_families_are_all_found_and_have_their_names_and_sizes(name):
    network, inputs = example(name)
    found = {place: group.size for place, group in couplings(network, inputs).items()}
    assert found == NAMES[name]
    assert set(FAMILIES[name].wider) <= found.keys()


def test_roles_in_a_residual_network_are_those_written_down_by_hand():
    network, inputs = example("ResNet, batch norm")
    stem = couplings(network, inputs)["stem"]
    roles = {role: {use.tensor for use in stem.of(role)} for role in {use.role for use in stem.uses}}
    norms = ("norm", "stages.0.0.norm2", "stages.0.1.norm2")
    assert roles == {
        "weight": {"stem.weight", "stages.0.0.conv2.weight", "stages.0.1.conv2.weight"},
        "scale": {f"{norm}.weight" for norm in norms},
        "shift": {f"{norm}.bias" for norm in norms},
        "mean": {f"{norm}.running_mean" for norm in norms},
        "variance": {f"{norm}.running_var" for norm in norms},
        "consumed": {
            "stages.0.0.conv1.weight", "stages.0.1.conv1.weight", "stages.1.0.conv1.weight",
            "stages.1.0.shortcut.0.weight",
        },
    }  # fmt: skip
    assert not stem.normalizations  # each channel for itself


def test_queries_read_the_width_of_heads_and_keys_make_it():
    network, inputs = example("decoder")
    groups = couplings(network, inputs)
    at = "blocks.0.attention"
    width, heads = groups[f"{at}.query[2]"], groups[f"{at}.query[0]"]
    assert [use.tensor for use in width.makers()] == [f"{at}.key.weight", f"{at}.key.bias"]
    assert {use.tensor for use in width.uses if width.reads(use)} == {f"{at}.query.weight", f"{at}.query.bias"}
    assert {use.tensor for use in heads.uses if heads.reads(use)} == {f"{at}.out.weight"}
    assert all(pairing.scaled for pairing in width.pairings)


def test_a_tied_tensor_has_one_name_and_makes_and_reads():
    network, inputs = example("decoder")
    embedding = couplings(network, inputs)["embedding"]
    uses = [use for use in embedding.uses if use.tensor == "embedding.weight"]
    assert [(use.axis, use.role) for use in uses] == [(1, "weight"), (1, "consumed")]
    assert uses[1].reads == ("norm.weight", "norm.bias")
    assert not any(use.tensor == "head.weight" for use in embedding.uses)


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_an_axis_belongs_to_one_coupling_and_what_is_free_belongs_to_the_data(widths):
    network = mlp(widths)
    axes = [(use.tensor, use.axis) for group in couplings(network, batch()[0]).values() for use in group.uses]
    assert len(set(axes)) == len(axes)
    every = {(name, axis) for name, p in network.named_parameters() for axis in range(p.ndim)}
    assert every - set(axes) == {("hidden.0.weight", 1), ("head.weight", 0), ("head.bias", 0)}


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_predicted(name):
    family, network, inputs, _ = of_family(name, 3)
    traced = trace(network, inputs)
    groups = of_trace(traced)
    for place, factor in zip(family.wider, (1.5, 2, 1.5, 2, 1.5, 3), strict=False):
        size = round(groups[place].size * factor)
        new = Candidate("random", (place,), (size,)).grow(network, inputs, traced=traced).network
        assert count_parameters(new) == groups[place].parameters(size) > groups[place].parameters(groups[place].size)
        assert groups[place].parameters(groups[place].size) == count_parameters(network)


def test_parameters_are_those_of_the_papers():
    """He et al. 2016 (ResNet-20 with projections: option A's 269,722, 2,560 of projections, 192 of their norms),
    Radford et al. 2019 (GPT-2), and by hand."""
    with torch.device("meta"):
        assert count_parameters(ResNet(3, (16, 32, 64), (3, 3, 3), 10)) == 269_722 + 2_560 + 192
        assert count_parameters(Decoder(50_257, 1_024, 768, 12, 12)) == 124_439_808
        vit = ViT((3, 224, 224), (16, 16), 192, 12, 3, 1000)  # DeiT-Ti less its class token and that one's position
        assert count_parameters(vit) == 5_717_416 - 2 * 192


@pytest.mark.parametrize("size", [7, 18])
def test_parameters_of_an_mlp_that_grows_are_counted_by_hand(size):
    group = couplings(mlp((6, 4)), batch()[0])["hidden.0"]
    assert group.parameters(size) == count_parameters(MLP(INPUTS, (size, 4), 4)) == 7 * size + size + 4 * size + 4 + 20


def test_lengths_are_those_that_involve_the_units():
    network, inputs = example("decoder")
    groups = couplings(network, inputs)
    at = "blocks.0.attention"
    assert groups[f"{at}.query[0]"].lengths(at, 5) == {2: 5, 4: 10, 16: 40}  # heads of keys, of queries; × width
    assert groups["blocks.0.up"].lengths(at, 70) == {}
    assert groups["blocks.0.up"].lengths("blocks.0", 70) == {64: 70}


def test_units_that_nothing_reads_are_no_coupling():
    network = Wired(lambda net, x: net.b(x) + 0 * net.a(x).sum(), a=nn.Linear(3, 5), b=nn.Linear(3, 2))
    assert couplings(network, torch.randn(2, 3)) == {}


FIXED = {
    "head": (lambda: mlp(), lambda: batch()[0], {"head": "it is an axis of the network's output"}),
    "residual on the inputs": (
        lambda: Wired(lambda net, x: net.b(x + net.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 2)),
        lambda: torch.randn(2, 3),
        {"a": "it is an axis of the network's inputs", "b": "it is an axis of the network's output"},
    ),
    "softmax": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Softmax(-1), nn.Linear(5, 2)),
        lambda: torch.randn(2, 3),
        {"0": "a softmax sums over it (aten.softmax.int in 1)", "2": "it is an axis of the network's output"},
    ),
    "nothing reads it": (
        lambda: Wired(lambda net, x: net.b(x) + 0 * net.a(x).sum(), a=nn.Linear(3, 5), b=nn.Linear(3, 2)),
        lambda: torch.randn(2, 3),
        {"a": "it is reduced to one number (aten.sum.default in the network itself)",
         "b": "it is an axis of the network's output"},
    ),
    "never read": (
        lambda: Wired(lambda net, x: net.b(x), a=nn.Linear(3, 5), b=nn.Linear(3, 2)),
        lambda: torch.randn(2, 3),
        {"b": "it is an axis of the network's output", "a.weight": "no operation of this call reads it",
         "a.bias": "no operation of this call reads it"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FIXED)
def test_what_cannot_grow_is_named_with_what_fixed_it(case):
    build, inputs, expected = FIXED[case]
    assert fixed(build(), inputs()) == expected


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_units_that_a_layer_makes_grow_or_have_a_reason(name):
    traced = trace(*example(name))
    growing, reasons = of_trace(traced), fixed_in(traced)
    assert not growing.keys() & reasons.keys()
    assert all(reasons.values())
    made = {note.tensor for note in traced.notes if note.role == "weight"}
    covered = {use.tensor for group in growing.values() for use in group.of("weight")}
    named = {name.partition("[")[0] for name in reasons}
    assert not [tensor for tensor in made - covered if not {tensor, tensor.rpartition(".")[0]} & named]


def test_a_location_that_cannot_grow_is_refused_by_its_reason():
    with pytest.raises(ValueError, match=r"head cannot grow: it is an axis of the network's output; .*hidden\.0"):
        Candidate("random", ("head",), (9,)).grow(mlp(), batch()[0])


class Auxiliary(nn.Module):
    """A head for training only, an average that nobody reads, a branch for large batches."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(3, 6), nn.Linear(6, 2)
        self.other = nn.Linear(6, 2) if kind != "average" else None
        if kind == "average":
            self.register_buffer("average", torch.zeros(6))

    def forward(self, x):
        y = self.body(x).relu()
        if self.kind == "training" and self.training:
            return self.head(y) + self.other(y)
        return self.other(y) if self.kind == "batch" and len(x) > 8 else self.head(y)


@pytest.mark.parametrize(
    ("kind", "never"), [("training", ["other.weight"]), ("batch", ["other.weight"]), ("average", ["average"])]
)
def test_tensors_that_the_call_never_reads_are_named_and_units_that_may_be_theirs_do_not_grow(kind, never):
    network, inputs = Auxiliary(kind), torch.randn(2, 3)
    with pytest.warns(UserWarning, match=rf"{never[0]}.*no operation of this call reads it"):
        groups = couplings(network, inputs)
    assert groups["body"].unread == never
    with pytest.raises(ValueError, match=rf"body cannot grow: {never[0]} may have its 6 units too"):
        Candidate("zero_outgoing", ("body",), (9,)).grow(network, inputs)


def test_tensors_of_other_lengths_and_masks_are_in_nobodys_way():
    network = Auxiliary("training")
    network.other = nn.Linear(5, 2)
    network.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool))
    new = Candidate("zero_outgoing", ("body",), (9,)).expand(network, inputs := torch.randn(2, 3))
    assert change(network, new, inputs) < 1e-6
    assert new.body.out_features == 9
