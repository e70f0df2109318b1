import copy

import pytest
import torch
from cases import Wired, batch, change, convolutional, mlp, of_family
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.deeper import Block
from mmstudy.tracing.trace import trace
from mmstudy.validation.preservation import FAMILIES

DOUBLE = torch.float64
BLOCKS = {"ResNet, batch norm": "stages.0", "ResNet, group norm": "stages.1", "ViT": "blocks", "decoder": "blocks"}


def grown(operator, places, numbers, network, inputs, seed=0):
    return Candidate(operator, places, numbers, seed).grow(network, inputs)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[key], value) for key, value in b.state_dict().items())


def test_an_identity_layer_is_the_identity():
    for dtype in (torch.float32, DOUBLE):
        network, (inputs, _) = mlp((6, 4), dtype=dtype), batch(dtype=dtype)
        new = grown("deeper_identity", ("hidden.0", "hidden.1"), (2, 1), network, inputs).network
        assert [tuple(layer.weight.shape) for layer in new.hidden] == [(6, 7), (6, 6), (6, 6), (4, 6), (4, 4)]
        for place in (1, 2, 4):
            assert torch.equal(new.hidden[place].weight, torch.eye(len(new.hidden[place].weight), dtype=dtype))
            assert (new.hidden[place].bias == 0).all()
        assert change(network, new, inputs) == 0
        assert [layer.in_features for layer in new.hidden] == [7, 6, 6, 6, 4]
        assert new.hidden[1].weight is not new.hidden[2].weight


def test_an_identity_undoes_its_batch_normalization_by_the_statistics_of_the_batch():
    """In evaluation mode alone: in training the statistics are those of each batch."""
    _, network, inputs, _ = of_family("MLP, batch norm", 40)
    new = grown("deeper_identity", ("hidden.1",), (2,), network, inputs).network
    assert change(network, new, inputs) < 1e-13
    assert change(network, new, torch.randn(9, 64, dtype=DOUBLE)) < 1e-13  # of any inputs
    with evaluating(network), torch.no_grad():
        x = inputs
        for layer in network.hidden[:2]:
            x = layer(x).relu()
    for norm in (new.hidden[2][1], new.hidden[3][1]):
        torch.testing.assert_close(norm.running_mean, x.mean(0))
        torch.testing.assert_close(norm.running_var, x.var(0, correction=0))
        torch.testing.assert_close(norm.weight, (norm.running_var + norm.eps).sqrt())
        torch.testing.assert_close(norm.bias, norm.running_mean)
    assert change(network, new, inputs[:10], training=True) > 1e-3


def test_an_identity_convolution_is_a_dirac():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(64, 2)).double()
    inputs = torch.randn(3, 1, 4, 4, dtype=DOUBLE)
    new = grown("deeper_identity", ("0",), (1,), network, inputs).network
    assert torch.equal(new[1].weight, nn.init.dirac_(torch.empty(4, 4, 3, 3, dtype=DOUBLE)))
    assert new[1].in_channels == new[1].out_channels == 4
    assert len(new) == 7
    assert change(network, new, inputs) < 1e-14


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh])
def test_an_identity_before_what_does_not_repeat_is_refused(activation):
    """σ(σ(x)) = σ(x) for a ReLU, not for these."""

    def forward(net, x):
        for layer in net.hidden:
            x = net.activation(layer(x))
        return net.head(x)

    layers = nn.ModuleList([nn.Linear(7, 5), nn.Linear(5, 5)])
    network = Wired(forward, hidden=layers, head=nn.Linear(5, 2), activation=activation())
    with pytest.raises(ValueError, match=r"deeper_identity hidden\.0\+1 is not exact here: the outputs change by"):
        grown("deeper_identity", ("hidden.0",), (1,), network, batch()[0])
    network.activation = nn.ReLU()
    assert change(network, grown("deeper_identity", ("hidden.0",), (1,), network, batch()[0]).network, batch()[0]) == 0


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("operator", ["identity_block", "zero_residual"])
def test_a_silent_block_adds_nothing_and_its_branches_end_in_zeros(name, operator):
    _, network, inputs, _ = of_family(name, 6)
    place = f"{BLOCKS[name]}.1"
    expansion = grown(operator, (place,), (1,), network, inputs)
    block, model = expansion.network.get_submodule(f"{BLOCKS[name]}.2"), network.get_submodule(place)
    for training in (False, True):
        assert change(copy.deepcopy(network), copy.deepcopy(expansion.network), inputs, training) < 1e-13
    ends = {"norm2.weight", "norm2.bias"} if "ResNet" in name else {
        f"{layer}.{kind}" for layer in ("attention.out", "down") for kind in ("weight", "bias")
    }  # fmt: skip
    old, new = dict(model.named_parameters()), dict(block.named_parameters())
    assert {key for key, tensor in new.items() if not tensor.any()} >= ends
    for key in new.keys() - ends:
        if operator == "identity_block":
            assert torch.equal(new[key], old[key])
        elif old[key].ndim > 1:
            assert not torch.equal(new[key], old[key])
            assert new[key].abs().max() <= new[key][0].numel() ** -0.5
        elif "norm" in key:
            assert (new[key] == (1 if "weight" in key else 0)).all()
    with torch.no_grad():
        x = torch.randn(2, 16, 4, 4, dtype=DOUBLE).relu() if name == "ResNet, group norm" else None
        if x is not None:
            assert torch.equal(block.eval()(x), x)
    assert change(network, expansion.network, inputs) < 1e-13
    assert expansion.inserted == expansion.fresh == {f"{BLOCKS[name]}.2.{key}" for key in new}


def test_the_running_statistics_of_a_new_block_are_those_of_no_data():
    _, network, inputs, _ = of_family("ResNet, batch norm", 6)
    for operator in ("zero_residual", "deeper_random"):
        block = grown(operator, ("stages.0.1",), (1,), network, inputs).network.stages[0][2]
        for norm in (block.norm1, block.norm2):
            assert (norm.running_mean == 0).all()
            assert (norm.running_var == 1).all()
    block = grown("identity_block", ("stages.0.1",), (1,), network, inputs).network.stages[0][2]
    assert torch.equal(block.norm1.running_mean, network.stages[0][1].norm1.running_mean)


@pytest.mark.parametrize("operator", ["stack", "interleave"])
def test_copies_of_blocks_lie_where_the_papers_put_them(operator):
    _, network, inputs, _ = of_family("decoder", 4)
    first, second = network.blocks
    for numbers, layout in {
        (1, 1): {"stack": (0, 1, 0, 1), "interleave": (0, 0, 1, 1)},
        (2, 2): {"stack": (0, 1, 0, 1, 0, 1), "interleave": (0, 0, 0, 1, 1, 1)},
    }.items():
        for places in (("blocks.0", "blocks.1"), ("blocks.1", "blocks.0")):
            expansion = grown(operator, places, numbers, network, inputs)
            blocks = expansion.network.blocks
            found = [[same(block, model) for model in (first, second)] for block in blocks]
            assert found == [[which == 0, which == 1] for which in layout[operator]]
            assert len({block.up.weight.data_ptr() for block in blocks}) == len(blocks)  # copies, not the same
            for i, which in enumerate(layout[operator]):
                assert expansion.origin[f"blocks.{i}.up.weight"] == f"blocks.{which}.up.weight"
            assert expansion.fresh == frozenset()
            assert len({name.split(".")[1] for name in expansion.inserted}) == len(layout[operator]) - 2
    alone = grown(operator, ("blocks.0",), (1,), network, inputs).network
    assert [same(block, first) for block in alone.blocks] == [True, True, False]


def test_numbers_may_differ_from_place_to_place():
    _, network, inputs, _ = of_family("ResNet, group norm", 4)
    expansion = grown("interleave", ("stages.0.0", "stages.1.1", "stages.0.1"), (2, 1, 1), network, inputs)
    origin = [expansion.origin[f"stages.0.{i}.conv1.weight"] for i in range(5)]
    assert origin == [f"stages.0.{i}.conv1.weight" for i in (0, 0, 0, 1, 1)]
    assert [expansion.origin[f"stages.1.{i}.conv1.weight"][9] for i in range(3)] == ["0", "1", "1"]


@pytest.mark.parametrize("operator", ["zero_residual", "identity_block", "deeper_random", "stack", "interleave"])
def test_behind_a_block_that_changes_the_shape_the_nearest_that_does_not_is_the_model(operator):
    _, network, inputs, _ = of_family("ResNet, batch norm", 4)
    expansion = grown(operator, ("stages.1.0",), (1,), network, inputs)
    assert expansion.inserted == {name for name in expansion.origin if name.startswith("stages.1.1.")}
    assert all(expansion.origin[name] == name for name in expansion.inserted)  # the model had that place
    assert expansion.origin["stages.1.2.conv1.weight"] == "stages.1.1.conv1.weight"
    block = expansion.network.stages[1][1]
    assert block.conv1.weight.shape == (8, 8, 3, 3)
    assert isinstance(block.shortcut, nn.Identity)


def test_a_random_layer_is_square_and_has_the_default_scale():
    network, (inputs, _) = mlp((60, 50)), batch()
    new = grown("deeper_random", ("hidden.0",), (2,), network, inputs, seed=4).network
    assert [layer.in_features for layer in new.hidden] == [7, 60, 60, 60]
    for layer in new.hidden[1:3]:
        for draws in (layer.weight.detach() * 60**0.5, layer.bias.detach() * 60**0.5):
            assert 0.9 < draws.abs().max() <= 1 + 1e-6
            assert abs((draws**2).mean() - 1 / 3) * (draws.numel() * 45 / 4) ** 0.5 < 4
    assert not torch.equal(new.hidden[1].weight, new.hidden[2].weight)
    assert torch.equal(new.hidden[3].weight, network.hidden[1].weight)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_tells_branches_from_layers(name):
    family, network, inputs, _ = of_family(name, 3)
    traced = trace(network, inputs)
    for place in family.deeper:
        block = Block(network, place, traced, generator("block"))
        if "MLP" in name:
            assert block.branches == []
        elif "ResNet" in name:
            shortcut = ["shortcut.1.weight", "shortcut.1.bias"] * (place == "stages.1.0")
            assert block.branches == ["norm2.weight", "norm2.bias", *shortcut]
        else:
            assert block.branches == ["attention.out.weight", "attention.out.bias", "down.weight", "down.bias"]
        assert set(block.notes) <= set(network.get_submodule(place).state_dict())


REFUSED = [
    ("deeper_identity", "ViT", "blocks.0", r"blocks\.0 is a residual block: zero_residual or identity_block"),
    ("zero_residual", "MLP", "hidden.1", r"hidden\.1 adds nothing to a stream: it is no residual block"),
    ("identity_block", "MLP", "hidden.1", r"hidden\.1 adds nothing to a stream: it is no residual block"),
    ("deeper_random", "MLP", "head", r"head is no place to insert behind; lists .* here: hidden\.0 to hidden\.2$"),
    ("stack", "MLP", "hidden.3", r"hidden\.3 is no place"),
    ("stack", "MLP", "hidden.-1", r"hidden\.-1 is no place"),
    ("stack", "MLP", "hidden", r"hidden is no place"),
    ("stack", "ResNet, batch norm", "stages.0.0.conv1", r"stages\.0\.0\.conv1 is no .*stages\.1\.0 to stages\.1\.1"),
    ("deeper_identity", "ResNet, batch norm", "stages.1.0.shortcut.0", r"does not fit where it was to be inserted"),
]


@pytest.mark.parametrize(("operator", "name", "place", "message"), REFUSED)
def test_places_where_nothing_can_be_inserted_are_refused_by_name(operator, name, place, message):
    _, network, inputs, _ = of_family(name, 3)
    with pytest.raises(ValueError, match=message):
        grown(operator, (place,), (1,), network, inputs)


BRANCHES = {
    "scaled": lambda net, x: x + 0.5 * net.down(net.up(x).relu()),
    "dropped and divided": lambda net, x: x - F.dropout(net.down(net.up(x)).tanh(), 0.5, net.training) / 2,
    "gated": lambda net, x: x + net.up(x).sigmoid().mean(-1, keepdim=True) * net.down(net.up(x).relu()),
}


@pytest.mark.parametrize("operator", ["zero_residual", "identity_block"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_may_be_scaled_or_gated_before_it_is_added(branch, operator):
    blocks = [Wired(BRANCHES[branch], up=nn.Linear(6, 8), down=nn.Linear(8, 6)) for _ in range(2)]
    network = nn.Sequential(nn.Linear(7, 6), *blocks, nn.Linear(6, 2))
    new = grown(operator, ("1",), (2,), network, batch()[0]).network
    assert len(new) == 6
    assert (new[2].down.weight == 0).all()
    assert (new[2].up.weight != 0).all()
    assert change(network, new, batch()[0]) == 0


@pytest.mark.parametrize("operator", ["zero_residual", "identity_block"])
def test_a_branch_that_is_rectified_before_it_is_added_would_never_learn_from_zeros(operator):
    blocks = [
        Wired(lambda net, x: x + net.down(net.up(x).relu()).relu(), up=nn.Linear(6, 8), down=nn.Linear(8, 6))
        for _ in range(2)
    ]
    network = nn.Sequential(nn.Linear(7, 6), *blocks, nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"a copy of 1 that does nothing would never learn .*down\.weight, down\.bias"):
        grown(operator, ("1",), (2,), network, batch()[0])


def test_what_is_no_single_layer_cannot_be_made_square():
    network = nn.Sequential(nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 5)), nn.ReLU(), nn.Linear(5, 2))
    for operator in ("deeper_identity", "deeper_random"):
        with pytest.raises(ValueError, match="0 is no single layer: it has 2 weights"):
            grown(operator, ("0",), (1,), network, batch()[0])
        with pytest.raises(ValueError, match="1 is no single layer: it has 0 weights"):
            grown(operator, ("1",), (1,), network, batch()[0])
    assert len(grown("deeper_random", ("0.2",), (1,), network, batch()[0]).network[0]) == 4
    strided = convolutional()
    with pytest.raises(ValueError, match=r"a copy of 1 does not fit.*turns \(32, 3, 5\) into \(32, 3, 3\)"):
        grown("deeper_random", ("1",), (1,), strided, batch()[0])


def test_a_block_needs_a_model_that_keeps_the_shape_of_its_input():
    network = Wired(lambda net, x: net.head[0](x), head=nn.ModuleList([nn.Linear(7, 5)]))
    with pytest.raises(ValueError, match=r"stack needs a block that keeps the shape .* none beside head\.0 does"):
        grown("stack", ("head.0",), (1,), network, batch()[0])


def _layers(*sizes: tuple[int, int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(*size) for size in sizes)


def _side_by_side(net, x):
    for layer, norm in zip(net.layers, net.norms):  # noqa: B905 the loop of a user who is sure of the lengths
        x = norm(layer(x).relu())
    return net.head(x)


def _by_number(net, x):
    x = net.layers[0](x).relu()
    x = net.layers[1](x).relu()
    return net.head(net.layers[2](x).relu())


def _counted(net, x):
    for layer in net.layers[: net.count]:
        x = layer(x).relu()
    return net.head(x)


def _counted_by_a_literal(net, x):
    for layer in net.layers[:3]:
        x = layer(x).relu()
    return net.head(x)


def _counted_in_training(net, x):
    for layer in net.layers[:3] if net.training else net.layers:
        x = layer(x).relu()
    return net.head(x)


def _first_again(net, x):
    for _ in net.layers:
        x = net.layers[0](x).relu()
    return net.head(x)


LOOPS = {  # how the list is called, where a layer is inserted, the member that does not run afterwards
    "side by side": (_side_by_side, "layers.0", "layers.2, which runs in the old network, does not run"),
    "side by side, at the end": (_side_by_side, "layers.2", "layers.3, a copy of layers.2, is inserted and does not"),
    "by number": (_by_number, "layers.1", "layers.2, which runs"),
    "by number, at the end": (_by_number, "layers.2", "layers.3, a copy of layers.2, is inserted and"),
    "counted": (_counted_by_a_literal, "layers.0", "layers.2, which runs"),
    "counted, at the end": (_counted_by_a_literal, "layers.2", "layers.3, a copy of layers.2, is inserted and"),
    "counted in training": (_counted_in_training, "layers.0", "in training mode layers.2, which runs"),
    "counted in training, at the end": (_counted_in_training, "layers.2", "mode layers.3, a copy of layers.2, is"),
    "the first again and again": (_first_again, "layers.0", "layers.1, a copy of layers.0, is inserted and"),
}


@pytest.mark.parametrize("operator", ["deeper_identity", "deeper_random", "stack"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_member_that_does_not_run_is_no_deeper_network(loop, operator):
    """As much exact as it seems where the inserted layer never runs, and where a trained one is dropped for it."""
    forward, place, message = LOOPS[loop]
    norms = nn.ModuleList(nn.LayerNorm(7) for _ in range(3))
    network = Wired(forward, layers=_layers((7, 7), (7, 7), (7, 7)), norms=norms, head=nn.Linear(7, 2), count=3)
    hooks = [dict(module._forward_pre_hooks) for module in network.modules()]
    with pytest.raises(ValueError, match=message):
        grown(operator, (place,), (1,), network, batch()[0])
    assert [dict(module._forward_pre_hooks) for module in network.modules()] == hooks


@pytest.mark.parametrize("operator", ["stack", "deeper_random"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_blocks_may_be_left_out_at_random_in_training(operator, rate):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382)."""

    def forward(net, x):
        for layer in net.layers:
            x = x if net.training and torch.rand(()) < rate else layer(x).relu()
        return net.head(x)

    for seed in range(5):
        torch.manual_seed(seed)
        network = Wired(forward, layers=_layers((7, 7), (7, 7), (7, 7)), head=nn.Linear(7, 2))
        assert len(grown(operator, ("layers.1",), (1,), network, batch()[0]).network.layers) == 4


def test_what_never_ran_need_not_run_and_a_list_may_be_called_twice():
    def twice(net, x):
        for layer in [*net.layers, *net.layers]:
            x = layer(x).relu()
        return net.head(x)

    network = Wired(twice, layers=_layers((7, 7), (7, 7)), head=nn.Linear(7, 2), spare=nn.Dropout())
    new = grown("deeper_identity", ("layers.0",), (2,), network, batch()[0]).network
    assert len(new.layers) == 4
    assert change(network, new, batch()[0]) < 1e-6
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in new.modules())


def test_a_list_that_has_something_for_each_member_is_refused_by_what_fails():
    def scaled(net, x):
        for i, layer in enumerate(net.layers):
            x = layer(x).relu() * net.scales[i]
        return net.head(x)

    parts = {"layers": _layers((7, 7), (7, 7)), "head": nn.Linear(7, 2)}
    network = Wired(scaled, scales=nn.ParameterList([torch.ones(7), torch.ones(7)]), **parts)
    with pytest.raises(ValueError, match=r"a copy of layers\.1 does not fit where it was to be inserted: .*range"):
        grown("deeper_random", ("layers.1",), (1,), network, batch()[0])


def test_the_old_network_and_its_modes_are_left_alone():
    _, network, inputs, _ = of_family("ResNet, batch norm", 6)
    network.train()
    network.stages[0][0].eval()
    modes, before = [m.training for m in network.modules()], copy.deepcopy(network.state_dict())
    new = grown("identity_block", ("stages.0.0",), (1,), network, inputs).network
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in new.parameters()}


def test_a_place_is_named_once():
    with pytest.raises(ValueError, match=r"interleave names a location twice: \('blocks\.0', 'blocks\.0'\)"):
        Candidate("interleave", ("blocks.0", "blocks.0"), (1, 2))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_may_be_transposed_or_work_in_groups(layer, groups):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), layer(4, 4, 3, padding=1, groups=groups), nn.ReLU()
    )
    images = torch.randn(2, 1, 5, 5)
    new = mm.expand(network, images, "deeper_identity", {"2": 1})
    assert torch.equal(new(images), network(images))
    assert new[3].groups == groups
    drawn = mm.expand(network, images, "deeper_random", {"2": 1})
    assert drawn[3].weight.shape == network[2].weight.shape
    assert drawn[3].weight.count_nonzero() == network[2].weight.numel()


@pytest.mark.parametrize("operator", ["deeper_identity", "deeper_random"])
def test_a_transposed_convolution_with_other_outputs_than_inputs_is_refused(operator):
    network = nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"0 has not as many outputs as inputs, .* transposed, or works in groups"):
        mm.expand(network, torch.randn(2, 4, 5, 5), operator, {"0": 1})
