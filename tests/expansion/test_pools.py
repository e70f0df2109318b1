import pytest
import torch
from cases import batch, change, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mmstudy as mm
from mmstudy.core.networks import ResNet, count_flops, count_parameters
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import couplings


def test_the_pool_of_the_design():
    network, inputs = mlp((16, 16)), batch()[0]
    pool = pools.candidate_pool(network, inputs)
    assert len(pool) >= 40
    assert len(set(map(str, pool.values()))) == len(pool)
    assert list(pool)[:3] == ["net2net hidden.0 ×1.5", "zero_outgoing hidden.0 ×1.5", "random hidden.0 ×1.5"]
    assert pool["random hidden.0&hidden.1 ×1.5"].sizes == (24, 24)
    assert pool["deeper_identity hidden.1 +2"].sizes == (2,)


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_matched_candidates_have_as_many_parameters_as_what_they_match(factor):
    network, (inputs, targets) = mlp((16, 12)), batch()
    pool = pools.candidate_pool(network, inputs, (factor,), (), (factor,))
    table = pools.pool_table(pool, network, (inputs, targets))
    for operator in ("net2net", "zero_outgoing", "random"):
        one = table.loc[f"{operator} hidden.0 ×{factor:g}", "parameters"]
        other = table.loc[f"{operator} hidden.1 ≈ hidden.0 ×{factor:g}", "parameters"]
        assert abs(one / other - 1) <= 0.02
    assert table["refused"].eq("").all()


class Block(nn.Module):
    """It keeps the shape of its input."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


LISTS = {
    "blocks in a chain": (
        lambda: nn.Sequential(nn.Linear(7, 6), Block(), nn.ReLU(), Block(), nn.Linear(6, 2)),
        ["1", "3"],
    ),
    "a chain of layers": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()), []),
    "a chain of chains": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.Sequential(Block(), Block()), nn.Sequential(Block())),
        ["2", "1.0", "1.1"],
    ),
    "blocks by name": (lambda: nn.ModuleDict({"stem": nn.Linear(7, 6), "a": Block(), "b": Block()}), ["a", "b"]),
    "layers in a list": (lambda: nn.ModuleList([nn.Linear(7, 6), nn.ReLU()]), ["0", "1"]),
    "a list of lists": (lambda: nn.ModuleList([nn.ModuleList([Block()]), nn.ModuleList()]), ["0.0"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_places_are_members_of_lists_and_blocks_of_chains(name):
    build, expected = LISTS[name]
    assert pools.places(build()) == expected


def test_a_chain_of_blocks_gets_deeper():
    network, inputs = LISTS["blocks in a chain"][0]().double(), torch.randn(5, 7).double()
    covered = mm.coverage(network, inputs)
    assert covered["1 … 3"].exact == ("zero_residual", "identity_block")
    pool = mm.candidate_pool(network, inputs, covered=covered, factors=(), matched=(), deeper=["identity_block"])
    assert list(pool) == ["identity_block 1 +1", "identity_block 3 +1", "identity_block 1 +2", "identity_block 3 +2"]
    assert change(network, pool["identity_block 1 +2"].expand(network, inputs), inputs) < 1e-14


def test_the_table_names_others_of_the_same_size():
    network, (inputs, targets) = mlp((16, 12)), batch()
    pool = mm.candidate_pool(network, inputs, factors=(2, 4), extra_layers=(), matched=(2,), wider=["lemon", "random"])
    table = mm.pool_table(network, (inputs, targets), pool)
    assert list(table.columns) == ["operator", "description", "parameters", "flops", "same_size", "refused"]
    assert table.loc["lemon hidden.0 ×2", "same_size"] == "lemon hidden.1 ≈ hidden.0 ×2"
    assert table.loc["random hidden.1 ≈ hidden.0 ×2", "same_size"] == "lemon hidden.0 ×2"
    assert table.loc["lemon hidden.0 ×4", "same_size"] == ""


def test_a_network_in_training_mode_is_counted_as_it_measures():
    network = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).train()
    before = network[1].running_mean.clone()
    table = mm.pool_table(network, batch()[0], {"one": Candidate("lemon", ("0",), (9,))})
    assert table["flops"].tolist() == [2 * (7 * 9 + 9 * 2)]
    assert network.training and torch.equal(network[1].running_mean, before)


@pytest.mark.parametrize("pool", [None, [], {"one": "lemon"}, {}])
def test_a_table_of_no_pool_is_refused(pool):
    with pytest.raises((TypeError, ValueError), match=r"pool must (map labels to Candidates|hold one)"):
        mm.pool_table(mlp(), batch()[0], pool)


def test_a_candidate_that_cannot_be_built_is_of_no_size():
    pool = {"one": Candidate("lemon", ("hidden.9",), (4,)), "two": Candidate("lemon", ("hidden.0",), (9,))}
    table = mm.pool_table(mlp(), batch()[0], pool)
    assert "unknown location" in table.loc["one", "refused"]
    assert table["parameters"].isna().tolist() == [True, False]
    assert table["same_size"].tolist() == ["", ""]


def test_a_smaller_pool_of_some_locations_is_a_part_of_the_whole_one():
    network, inputs = mlp((6, 8, 4)), batch()[0]
    whole = pools.candidate_pool(network, inputs)
    every = "hidden.0&hidden.1&hidden.2"
    some = pools.candidate_pool(network, inputs, locations=("hidden.0", "hidden.2", every))
    assert some.items() <= whole.items()
    assert not [label for label in some if label.split()[1] == "hidden.1" and "+" not in label]
    assert "net2net hidden.2 ≈ hidden.0 ×2" in some
    pair = pools.candidate_pool(network, inputs, (2,), (), (), locations=["hidden.0&hidden.2"], wider=["net2net"])
    assert pair == {"net2net hidden.0&hidden.2 ×2": Candidate("net2net", ("hidden.0", "hidden.2"), (12, 8))}
    with pytest.raises(ValueError, match=r"unknown locations\[1\] 'hidden\.9'"):
        pools.candidate_pool(network, inputs, locations=["hidden.0", "hidden.1&hidden.9"])


def test_a_size_that_no_whole_number_of_units_matches_is_left_out():
    network, inputs = mlp((2, 3)), batch()[0]
    labels = pools.candidate_pool(network, inputs, (), (1,), (1.5,))
    assert not [label for label in labels if "≈" in label]
    assert len(labels) == 4


def test_the_table_counts_what_is_built_and_says_what_is_refused():
    network, (inputs, targets) = mlp((6, 4)), batch()
    pool = pools.candidate_pool(network, inputs, (1.5,), (1,), (), wider=("lemon", "hypercloning"))
    table = pools.pool_table(pool, network, (inputs, targets))
    assert list(table.index) == list(pool)
    for label, candidate in pool.items():
        row = table.loc[label]
        if candidate.operator == "hypercloning":
            assert "no multiple" in row["refused"]
            continue
        built = candidate.expand(network, inputs)
        assert (row["parameters"], row["flops"]) == (count_parameters(built), count_flops(built, inputs[:1]))


def test_a_convolutional_network_has_a_pool_too():
    network = ResNet(1, (4, 8), (1, 1), 3, image=(4, 4))
    inputs = batch()[0].new_zeros(2, 16)
    pool = pools.candidate_pool(network, inputs, (2,), (1,), (2,), deeper=("zero_residual",))
    assert {place for c in pool.values() if c.operator == "zero_residual" for place in c.locations} == {
        "stages.0.0", "stages.1.0",
    }  # fmt: skip
    assert any("&" in label for label in pool)
    with pytest.raises(ValueError, match="empty pool"):
        pools.candidate_pool(network, inputs, (), (), ())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factors": (1e9,)}, ValueError, r"hidden\.0 with 6,000,000,000 units would take .* GB, more than 8"),
        ({"factors": (), "matched": (1e9,)}, ValueError, r"would take .* GB"),
        ({"extra_layers": (10**7,)}, ValueError, r"10,000,000 more layers or blocks behind hidden\.0 would take"),
        ({"factors": (float("nan"),)}, ValueError, r"factors\[0\] must be a finite number > 1; got nan"),
        ({"factors": (2, 1)}, ValueError, r"factors\[1\] must be a finite number > 1; got 1"),
        ({"matched": (0.5,)}, ValueError, r"matched\[0\] must be a finite number > 1; got 0\.5"),
        ({"factors": ([2],)}, TypeError, r"factors\[0\] must be a number"),
        ({"factors": 2}, TypeError, "factors must be a list; got 2"),
        ({"wider": "lemon"}, TypeError, "wider must be a list; got 'lemon'"),
        ({"wider": ("lemmon",)}, ValueError, r"unknown wider\[0\] 'lemmon'; did you mean 'lemon'"),
        ({"deeper": ("lemon",)}, ValueError, r"unknown deeper\[0\] 'lemon'.*deeper_identity"),
        ({"extra_layers": (1.5,)}, TypeError, r"extra_layers\[0\] must be a whole number; got 1\.5"),
        ({"extra_layers": (0,)}, ValueError, r"extra_layers\[0\] must be at least 1"),
        ({"factors": (), "extra_layers": (), "matched": ()}, ValueError, "an empty pool"),
        ({"locations": []}, ValueError, "locations must not be empty"),
        ({"factor": (2,)}, ValueError, "unknown option of candidate_pool 'factor'; did you mean 'factors'"),
    ],
)
def test_options_are_checked_at_the_door_and_what_cannot_fit_is_not_built(options, error, message):
    with pytest.raises(error, match=message):
        mm.candidate_pool(mlp((6, 4)), batch(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": float("nan")}, r"experiment_pool\['factors'\] must be a list; got nan"),
        ({"factors": [-1]}, r"experiment_pool\['factors'\]\[0\] must be a finite number > 1; got -1"),
        ({"extra_layers": "x"}, r"experiment_pool\['extra_layers'\] must be a list"),
        ({"matched": None}, r"experiment_pool\['matched'\] must be a list"),
        ({"wider": ["lemmon"]}, r"experiment_pool\['wider'\]\[0\] 'lemmon'; did you mean 'lemon'"),
        ({"wide": ["lemon"]}, r"unknown option of candidate_pool in experiment_pool 'wide'; did you mean 'wider'"),
        ([2], "experiment_pool must be a mapping"),
    ],
)
def test_options_are_checked_without_a_network_and_named_with_their_parameter(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pools.check_options(options, "experiment_pool")


def test_a_network_without_a_place_to_widen_has_an_empty_pool_and_says_so():
    with pytest.raises(ValueError, match="an empty pool"):
        pools.candidate_pool(nn.Linear(7, 4), batch()[0])


@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(2, 40), st.floats(1.1, 30))
def test_a_matched_size_is_the_nearest_of_all(first, second, factor):
    _, group = couplings(mlp((first, second)), batch(2)[0]).values()
    wanted = round(factor * group.parameters(group.size))
    sizes = range(group.size, round(40 * factor * group.size))
    nearest = min(sizes, key=lambda n: abs(group.parameters(n) - wanted))
    near = abs(group.parameters(nearest) / wanted - 1) <= pools.SAME_SIZE and nearest > group.size
    assert pools._size_for(group, wanted) == (nearest if near else None)


def test_sizes_that_cannot_fit_are_refused_before_anything_is_built():
    for candidate, message in (
        (Candidate("random", ("hidden.0",), (10**9,)), r"hidden\.0 with 1,000,000,000 units would take 134"),
        (Candidate("lemon", ("hidden.0", "hidden.1"), (10**5, 10**5)), r"hidden\.1 with 100,000 units would take 37"),
        (Candidate("stack", ("hidden.1",), (10**7,)), "10,000,000 more layers or blocks behind hidden.1 would take"),
        (Candidate("random", ("hidden.0",), (7,), then=Candidate("random", ("hidden.0",), (10**10,))), "would take"),
    ):
        with pytest.raises(ValueError, match=message):
            candidate.grow(mlp((6, 4)), batch()[0])


class Graph(nn.Module):
    """Convolutions over a graph: nodes, and which of them are neighbours."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, a):
        return a @ self.down((a @ self.up(x)).relu())


class Scaled(nn.Linear):
    def forward(self, x, by):
        return super().forward(x) * by


def test_a_network_that_takes_no_single_example_has_its_operations_over_their_number():
    graph = Graph()
    examples = {"x": torch.randn(5, 6), "a": torch.rand(5, 5)}
    pool = mm.candidate_pool(graph, examples, factors=(2,), wider=["lemon"])
    flops = mm.pool_table(graph, examples, pool)["flops"]["lemon up ×2"]
    wider = mm.expand(graph, examples, "lemon", {"up": 16})
    assert flops == round(count_flops(wider, **examples) / 5) > 0
    assert pools.size_of(Scaled(6, 8), Call((torch.randn(5, 6), torch.tensor(2.0)))).flops == 2 * 6 * 8
