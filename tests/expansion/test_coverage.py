"""The coverage report: nothing vanishes, what it calls exact is exact, and it reads well."""

import pytest
import torch
from cases import Wired, batch, change, mlp, of_family
from torch import nn

import mmstudy as mm
from mmstudy.core.networks import TransformerBlock
from mmstudy.expansion import coverage, exactness, plans
from mmstudy.expansion.reading import Read


class Reader(nn.Module):
    """Two blocks alike, an operation without a rule, a parameter that is no one's, a head that is never read."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(TransformerBlock(8, 2, 2, 4, 12, causal=False) for _ in range(2))
        self.side, self.back, self.other = nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(4, 7)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x + self.back(torch.fft.rfft(self.side(x), 8).abs())) * self.temperature


@pytest.fixture(scope="module")
def covered():
    network = Reader()
    return network, mm.coverage(network, torch.randn(4, 6, 3))


def test_every_parameter_is_in_a_row_and_every_row_grows_or_has_a_reason(covered):
    network, found = covered
    rows = [row for row in found.rows if row.units]
    assert {name for name, _ in network.named_parameters()} <= {name for row in rows for name in row.tensors}
    assert all(row.grows or row.reason for row in found.rows)
    assert len({row.location for row in found.rows}) == len(found.rows)


def test_what_is_refused_is_refused_by_operation_and_module_with_what_would_help(covered):
    _, found = covered
    assert "not known (aten.fft_rfft.default in the network itself)" in found["side"].reason
    assert "mm.register_rule" in found["side"].help
    assert found["head"].reason == "it is an axis of the network's output"
    assert "no operation of this call reads it" in found["other.weight"].reason
    assert "no layer makes units" in found["temperature"].reason


def test_groups_that_grow_say_what_changes_with_them_and_how_much(covered):
    _, found = covered
    assert "blocks.*.down (2)" in found["embedding"].together
    row = found["blocks.1.up"]
    assert (row.units, row.each, row.together) == (12, 8 + 1 + 8, "blocks.1.up → blocks.1.down")
    assert {"lemon", "zero_outgoing"} <= set(row.exact)
    assert "normalized together" in found["embedding"].refused["zero_outgoing"]
    assert found["blocks.0 … blocks.1"].exact == ("zero_residual", "identity_block")


def test_what_is_called_exact_is_exact(covered):
    network, found = covered
    network, inputs = network.double(), torch.randn(3, 5, 3, dtype=torch.float64)
    for location in ("embedding", "blocks.1.up"):
        for operator in found[location].exact:
            new = mm.expand(network, inputs, operator, {location: 2 * found[location].units})
            assert change(network, new, inputs) < 1e-12


def test_it_reads_well_as_text_and_as_a_table(covered):
    _, found = covered
    text = str(found)
    assert all(len(line) <= 110 or "together" not in line for line in text.splitlines())
    assert "side   5 units" in text
    assert "blocks.*.up (2 alike)   12 units" in text
    assert "blocks.*.up → blocks.*.down" in text
    assert "blocks.1" not in text.replace("blocks.0 … blocks.1", "")
    assert found.table.loc["side", "units"] == 5
    assert found.table.loc["blocks.1.up", "units"] == 12
    assert "<td" in found._repr_html_()
    assert "<script" not in found._repr_html_()


def test_a_pool_of_a_network_that_nobody_here_wrote_holds_what_grows(covered):
    network, found = covered
    network, inputs = network.double(), torch.randn(4, 6, 3, dtype=torch.float64)
    options = {"factors": (2,), "extra_layers": (1,), "matched": (2,), "wider": ("zero_outgoing", "random")}
    pool = mm.candidate_pool(network, inputs, covered=found, deeper=("deeper_identity", "zero_residual"), **options)
    assert "zero_outgoing blocks.0.up ×2" in pool
    assert "random embedding ×2" in pool
    assert "zero_residual blocks.1 +1" in pool
    assert not [label for label in pool if label.startswith(("zero_outgoing embedding", "deeper_identity"))]
    assert [label for label in pool if "≈" in label]
    with pytest.raises(ValueError, match="the coverage leaves no candidate"):
        mm.candidate_pool(network, inputs, covered=found, deeper=["deeper_identity"], wider=[], factors=())


def test_with_targets_operators_that_learn_are_tried_too():
    network, (inputs, targets) = mlp((6, 4)), batch()
    found = mm.coverage(network, (inputs, targets))
    assert found.growing == ("hidden.0", "hidden.1")
    assert "gradmax" in found["hidden.0"].exact


def test_a_layer_in_a_list_may_get_wider_and_be_followed_by_another():
    network, examples = mlp((6, 4)), batch()
    covered = mm.coverage(network, examples)
    pool = mm.candidate_pool(network, examples, covered=covered)
    assert {"net2net hidden.0 ×2", "deeper_identity hidden.0 +1"} <= pool.keys()


def test_groups_that_one_size_serves_grow_at_once_and_are_in_the_pool_so():
    def forward(net, x):
        one, two = (layer(x).view(-1, net.width).relu() for layer in (net.one, net.two))
        return net.head(net.same(net.stem(one)).relu() + net.other(two))

    torch.manual_seed(0)
    parts = {"one": (3, 6), "two": (3, 6), "stem": (6, 5), "same": (5, 4), "other": (6, 4), "head": (4, 2)}
    network = Wired(forward, width=6, **{name: nn.Linear(*sizes) for name, sizes in parts.items()})
    inputs = torch.randn(7, 3)
    found = mm.coverage(network, inputs)
    assert found.joint == ("one", "two") and not {"one", "two"} & {*found.growing}
    assert "lemon" in found["one"].jointly and found["one"].jointly == found["two"].jointly
    assert "growing at once with two, exact by" in " ".join(str(found).split())
    pool = mm.candidate_pool(network, inputs, covered=found, factors=[2], wider=["lemon", "random"], matched=())
    assert {"lemon one&two ×2", "random one&two ×2", "lemon stem ×2"} <= pool.keys()
    assert not {"lemon one ×2", "random two ×2"} & pool.keys()
    grown = pool["lemon one&two ×2"].grow(network, inputs)
    assert change(network, grown.network, inputs) < 1e-6
    assert grown.changed == ("width: 6 → 12",)


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"unknown location 'hiden\.0'; did you mean 'hidden\.0'"):
        mm.coverage(mlp(), batch())["hiden.0"]


def test_what_need_not_stay_may_grow():
    network = Wired(
        lambda net, x: {"logits": net.head(net.body(x).relu()), "hidden": net.body(x)},
        body=nn.Linear(3, 6), head=nn.Linear(6, 2),
    )  # fmt: skip
    inputs = torch.randn(4, 3)
    assert mm.coverage(network, inputs)["body"].reason == "it is an axis of the network's output"
    assert "lemon" in mm.coverage(network, inputs, output="logits")["body"].exact


def test_a_reason_names_its_own_group_where_another_one_of_its_kind_was_tried(covered):
    reasons = [
        reason for row in covered[1].rows if row.location.startswith("blocks.1.") for reason in row.refused.values()
    ]
    assert any("blocks.1." in reason for reason in reasons) and not any("blocks.0." in reason for reason in reasons)


def test_groups_among_other_operations_are_tried_each():
    layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(3, 4), "down": nn.Linear(4, 3)}) for _ in range(3))
    network = Wired(
        lambda net, x: sum(
            layer["down"](way(layer["up"](x)))
            for layer, way in zip(net.layers, (torch.relu, torch.sigmoid, torch.relu), strict=True)
        ),
        layers=layers,
    )
    found = mm.coverage(network, torch.randn(5, 3))
    assert ["zero_incoming" in found[f"layers.{i}.up"].exact for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("shifts", [(0.0, 0.5, 0.0), (0, 1, 0)])
def test_groups_of_which_another_number_is_taken_are_tried_each(shifts):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(3, 4), "down": nn.Linear(4, 2)}) for _ in shifts)
    network = Wired(
        lambda net, x: sum(
            layer["down"](torch.relu(layer["up"](x)) + shift) for layer, shift in zip(net.layers, shifts, strict=True)
        ),
        layers=layers,
    )
    found = mm.coverage(network, torch.randn(5, 3))
    assert ["zero_incoming" in found[f"layers.{i}.up"].exact for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("name", ["MLP, batch norm", "ViT", "decoder"])
def test_a_large_network_is_tried_roughly_and_says_the_same(name, monkeypatch):
    """Also where all that grows is made when it is read, and on few examples and words."""
    _, network, inputs, targets = of_family(name)
    thorough, tried = mm.coverage(network, (inputs, targets)), []

    def broken(grown, reference):
        tried.append((reference, {type(p) for p in grown.network.parameters()}))
        return held(grown, reference)

    held = exactness.Grown.broken
    monkeypatch.setattr(exactness, "LARGE", 0)
    monkeypatch.setattr(plans, "SMALL", 0)
    monkeypatch.setattr(exactness.Grown, "broken", broken)
    rough = mm.coverage(network, (inputs, targets))
    references, kinds = zip(*tried, strict=True)
    assert all(each.roughly and len(each.call.tensors[0]) <= 2 * coverage.EXAMPLES for each in references)
    assert any(Read in some for some in kinds)
    assert Read not in {type(p) for p in network.parameters()}
    assert [(row.location, row.exact) for row in rough.rows] == [(row.location, row.exact) for row in thorough.rows]


def test_a_network_that_does_not_run_on_a_few_words_is_tried_on_all(monkeypatch):
    def forward(net, words):
        assert words.shape[1] >= 6
        return net.up(torch.tanh(net.table(words))).mean(1)

    network = Wired(forward, table=nn.Embedding(9, 4), up=nn.Linear(4, 3))
    monkeypatch.setattr(exactness, "LARGE", 0)
    found = mm.coverage(network, torch.randint(9, (5, 7)))
    assert "bert2bert" in found["table"].exact
