import linecache
import re
from math import prod

import pytest
import torch
from cases import CASES, Wired, batch, convolutional, mlp, of_family
from torch import nn
from torch.nn import functional as F

from mmstudy.core.networks import evaluating
from mmstudy.tracing.axes import leaves
from mmstudy.tracing.couplings import Use, couplings, fixed, of_trace
from mmstudy.tracing.graph import Value, data
from mmstudy.tracing.layouts import UNITS, length
from mmstudy.tracing.trace import RULES, register_rule, trace
from mmstudy.validation.preservation import FAMILIES


def groups(network: nn.Module, *shape: int) -> dict[str, int]:
    """Name → size of the couplings, for inputs of a shape, without the batch."""
    return {name: group.size for name, group in couplings(network, torch.randn(3, *shape)).items()}


def between(function, **parts) -> nn.Module:
    """x → b(function(a(x))) with five units between, on tokens of three numbers."""
    return Wired(
        lambda net, x: net.b(function(net, net.a(x))), a=nn.Linear(3, 5), b=parts.pop("b", nn.Linear(5, 2)), **parts
    )


def shapes_of_the_graph(network: nn.Module, inputs: torch.Tensor) -> list[tuple[str, tuple[int, ...]]]:
    with evaluating(network):
        program = torch.export.export(network, (inputs,), strict=False)
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            made = node.meta["val"]
            found += [(str(node.target), tuple(t.shape)) for t in (made if isinstance(made, list | tuple) else [made])]
    return found


@pytest.mark.parametrize("name", [*CASES, *FAMILIES])
def test_axes_have_the_sizes_of_the_tensors(name):
    if name in CASES:
        network, inputs = CASES[name].network(), CASES[name].inputs()
    else:
        _, network, inputs, _ = of_family(name, 3)
    traced = trace(network, inputs)
    found = [(operation, tuple(axis.size for axis in axes)) for operation, axes, _ in traced.results]
    assert found == shapes_of_the_graph(network, inputs)
    for tensor, axes in traced.tensors.items():
        assert [axis.size for axis in axes] == list(network.state_dict()[tensor].shape)
    for axes in (*traced.tensors.values(), *(each.axes for each in traced.results)):
        for axis in axes:
            assert length(axis, {}) == axis.size
            assert len({leaf for leaf in leaves(axis) if leaf.parts or leaf.ranges or leaf.same_as}) == 0


KEEPING = {
    "relu": lambda net, x: x.relu(),
    "relu in place": lambda net, x: F.relu(x, inplace=True),
    "gelu": lambda net, x: F.gelu(x),
    "silu": lambda net, x: F.silu(x),
    "tanh": lambda net, x: x.tanh(),
    "sigmoid": lambda net, x: x.sigmoid(),
    "leaky relu": lambda net, x: F.leaky_relu(x, 0.2),
    "elu": lambda net, x: F.elu(x),
    "softplus": lambda net, x: F.softplus(x),
    "clamped": lambda net, x: F.hardtanh(x),
    "exp": lambda net, x: x.exp(),
    "power": lambda net, x: x**2,
    "root": lambda net, x: (x.abs() + 1).sqrt(),
    "reciprocal root": lambda net, x: (x.abs() + 1).rsqrt(),
    "negative": lambda net, x: 1 - (-x),
    "dropout": lambda net, x: F.dropout(x, 0.5, net.training),
    "with itself": lambda net, x: x * x + x.relu() - x / 2,
    "largest": lambda net, x: torch.maximum(x, x.new_zeros(())),
    "masked": lambda net, x: x.masked_fill(x < 0, 0.0),
    "one of two": lambda net, x: torch.where(x > 0, x, x.exp()),
    "cast": lambda net, x: x.to(torch.float64).to(torch.float32),
    "softmax over tokens": lambda net, x: x.softmax(1),
    "mean of tokens": lambda net, x: x.mean(1, keepdim=True),
    "largest of tokens": lambda net, x: x.amax(1),
    "sum of tokens": lambda net, x: x.sum(1),
    "first token": lambda net, x: x[:, 0],
    "half of the tokens": lambda net, x: x[:, ::2],
    "token by token": lambda net, x: sum(x.unbind(1)),
    "halves": lambda net, x: torch.cat(x.chunk(2, 1), 0),
    "other tokens": lambda net, x: torch.cat([x, x.relu()], 1),
    "transposed": lambda net, x: x.transpose(1, 2).contiguous().mT,
    "swapped": lambda net, x: x.swapaxes(0, 1).permute(1, 0, 2),
    "flattened tokens": lambda net, x: x.flatten(0, 1),
    "one more axis": lambda net, x: x.unsqueeze(2).expand(-1, -1, 7, -1).squeeze(0),
    "pooled": lambda net, x: F.max_pool1d(x.mT, 2).mT,
    "pooled to one": lambda net, x: F.adaptive_avg_pool1d(x.mT, 1).mT,
    "mixed tokens": lambda net, x: torch.ones(1, 4, 4).expand(len(x), -1, -1) @ x,
    "mixed tokens, and themselves": lambda net, x: torch.baddbmm(x, torch.ones(1, 4, 4).expand(len(x), -1, -1), x),
    "sine": lambda net, x: x.sin(),
    "mish": lambda net, x: F.mish(x),
    "hard swish": lambda net, x: F.hardswish(x),
    "relu6": lambda net, x: F.relu6(x),
    "softsign": lambda net, x: F.softsign(x),
    "power of itself": lambda net, x: x.abs() ** x,
    "interpolated": lambda net, x: torch.lerp(x, x.relu(), 0.3),
    "zeros alike": lambda net, x: x + torch.zeros_like(x),
    "sums of tokens so far": lambda net, x: x.cumsum(1),
    "tokens in order": lambda net, x: x.sort(1).values,
    "the largest tokens": lambda net, x: x.topk(2, 1).values,
    "the largest token": lambda net, x: x.max(1).values,
    "variance of tokens": lambda net, x: x.var(1, keepdim=True),
    "rolled tokens": lambda net, x: x.roll(1, 1),
    "reversed tokens": lambda net, x: x.flip(1),
    "padded tokens": lambda net, x: F.pad(x, (0, 0, 1, 1)),
    "chosen tokens": lambda net, x: x[:, torch.tensor([2, 0])],
    "stacked": lambda net, x: torch.stack([x, x.relu()], 2).sum(2),
    "repeated tokens": lambda net, x: x.repeat(1, 2, 1),
    "moved": lambda net, x: x.movedim(-1, 0).movedim(0, -1),
    "uneven tokens": lambda net, x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "einsum over tokens": lambda net, x: torch.einsum("btd,st->bsd", x, torch.ones(2, 4)),
    "rotated": lambda net, x: x * torch.arange(4.0).outer(torch.ones(1)).cos(),
    "without gradients": lambda net, x: no_gradient(x),
    "norm by hand": lambda net, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "norm by hand, divided": lambda net, x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "layer norm by hand": lambda net, x: centred(x) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt(),
    "layer norm by hand, squares": lambda net, x: centred(x) / (centred(x).pow(2).mean(-1, True) + 1e-6).sqrt(),
}


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def no_gradient(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return x.sin()


@pytest.mark.parametrize("function", KEEPING.values(), ids=KEEPING)
def test_operations_that_keep_units_apart_let_them_grow(function):
    assert groups(between(function), 4, 3) == {"a": 5}


MIXING = {
    "softmax": lambda net, x: x.softmax(-1),
    "log-softmax": lambda net, x: x.log_softmax(-1),
    "mean": lambda net, x: x - x.mean(-1, keepdim=True),
    "sum": lambda net, x: x / x.sum(-1, keepdim=True),
    "largest": lambda net, x: x / x.amax(-1, keepdim=True),
    "norm by hand, its mean used again": lambda net, x: used_again(x),
    "root of a sum of squares": lambda net, x: x * x.pow(2).sum(-1, keepdim=True).rsqrt(),
    "unbiased variance": lambda net, x: centred(x) / x.var(-1, keepdim=True).sqrt(),
    "fourth root": lambda net, x: x * x.pow(2).mean(-1, keepdim=True).sqrt().rsqrt(),
    "sums so far": lambda net, x: x.cumsum(-1),
    "in order": lambda net, x: x.sort().values,
    "rolled": lambda net, x: x.roll(1, -1),
    "reversed": lambda net, x: x.flip(-1),
    "chosen": lambda net, x: x[..., torch.tensor([2, 0, 1, 3, 4])],
    "padded": lambda net, x: F.pad(x, (1, -1)),
    "masked weights": lambda net, x: F.linear(x, net.b.weight * torch.ones(2, 5), net.b.bias).repeat(1, 1, 3)[..., :5],
    "multiplied and summed": lambda net, x: torch.baddbmm(x, x @ x.mT, x),
    "mean of all": lambda net, x: x - x.mean(),
    "one unit, selected": lambda net, x: x * x.select(-1, 2).unsqueeze(-1),
    "four units": lambda net, x: F.linear(x[..., 1:], torch.ones(5, 4)),
    "with a constant": lambda net, x: x + torch.arange(5.0),
    "product of units": lambda net, x: (x @ x.mT) @ x,
    "of a fixed number": lambda net, x: x * torch.ones(5),
}


RANGES = {  # the sizes of groups, in the order of their ranges
    "uneven": (lambda net, x: torch.cat(x.split([2, 3], -1), -1), [2, 3]),
    "joined": (lambda net, x: torch.cat([x[..., :2], x[..., 2:]], -1), [2, 3]),
    "narrowed": (lambda net, x: torch.cat([x.narrow(-1, 0, 1), x.narrow(-1, -4, 4)], -1), [1, 4]),
    "split at places": (lambda net, x: torch.cat(x.tensor_split([1, 3], -1), -1), [1, 2, 2]),
    "one unit for all": (lambda net, x: x * x[..., :1], [4]),
    "overlapping": (lambda net, x: torch.cat([x[..., :3], x[..., 1:]], -1)[..., :5], [1, 2]),
    "the other way round": (lambda net, x: torch.cat([x[..., 3:], x[..., :3]], -1), [3, 2]),
    "added the other way round": (lambda net, x: x + torch.cat([x[..., 3:], x[..., :3]], -1), [1]),
    "some of them": (lambda net, x: torch.cat([x[..., :2].relu(), x[..., 2:]], -1), [2, 3]),
    "with data": (lambda net, x: torch.cat([x[..., :3], torch.ones(len(x), 4, 2)], -1), [3]),
    "a range of a range": (lambda net, x: torch.cat([x[..., 1:][..., :2], x[..., :3]], -1), [1, 2]),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_an_axis_are_groups_of_their_own(name):
    function, expected = RANGES[name]
    found = groups(between(function), 4, 3)
    assert list(found.values()) == expected


def test_a_slice_with_a_step_and_a_cut_within_heads_fix_what_they_cut():
    def within(net, x):
        return x.unflatten(-1, (3, 4)).flatten(2)[..., :6]

    network = Wired(lambda net, x: net.b(within(net, net.a(x))), a=nn.Linear(3, 12), b=nn.Linear(6, 2))
    reasons = fixed(network, torch.randn(3, 4, 3))
    assert "it is cut at a fixed place: an axis of 12 cannot be cut at 6: 4 units belong together" in reasons["a[0]"]
    assert groups(between(lambda net, x: x[..., ::2], b=nn.Linear(3, 2)), 4, 3) == {}


def used_again(x: torch.Tensor) -> torch.Tensor:
    mean = x.pow(2).mean(-1, keepdim=True)
    return x * mean.rsqrt() + mean


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_operations_that_mix_units_or_know_their_number_fix_them(function):
    assert groups(between(function), 4, 3) == {}


def test_units_that_leave_the_network_cannot_grow():
    network = Wired(lambda net, x: (net.a(x), net.b(net.a(x))), a=nn.Linear(3, 5), b=nn.Linear(5, 2))
    assert groups(network, 3) == {}


def test_all_outputs_are_followed():
    layers = {"a": nn.Linear(3, 5), "b": nn.Linear(5, 2), "c": nn.Linear(5, 1)}
    network = Wired(lambda net, x: (net.b(net.a(x).relu()), net.c(net.a(x))), **layers)
    (group,) = couplings(network, torch.randn(3, 3)).values()
    assert [(use.tensor, use.axis, use.role) for use in group.uses] == [
        ("a.weight", 0, "weight"), ("a.bias", 0, "bias"), ("b.weight", 1, "consumed"), ("c.weight", 1, "consumed"),
    ]  # fmt: skip


def around(use: Use) -> tuple[int, int]:
    """(outer, inner) of an axis that is their product with the units between."""
    (term,) = use.layout
    place = term.index(UNITS)
    return prod(term[:place]), prod(term[place + 1 :])


def layout(network: nn.Module, name: str, *shape: int) -> dict[tuple[str, int, str], tuple[int, int]]:
    """(tensor, axis, role) → (outer, inner) of the coupling."""
    group = couplings(network, torch.randn(3, *shape))[name]
    return {(use.tensor, use.axis, use.role): around(use) for use in group.uses}


def test_flattened_channels_lie_on_the_next_layer_in_runs_of_positions():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 20, 4))
    assert layout(network, "0", 2, 6, 7)["3.weight", 1, "consumed"] == (1, 20)


def test_a_depthwise_convolution_makes_what_it_reads():
    network = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 1, 1))
    assert groups(network, 2, 9) == {"0": 6}
    assert layout(network, "0", 2, 9) == {
        ("0.weight", 0, "weight"): (1, 1), ("0.bias", 0, "bias"): (1, 1),
        ("1.weight", 0, "weight"): (1, 1), ("1.bias", 0, "bias"): (1, 1), ("2.weight", 1, "consumed"): (1, 1),
    }  # fmt: skip


def test_a_grouped_convolution_has_groups_and_units_within():
    network = nn.Sequential(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 4, 3, groups=2), nn.Conv1d(4, 1, 1))
    assert groups(network, 2, 9) == {"0[0]": 2, "0[1]": 3, "1[1]": 2}
    assert layout(network, "0[0]", 2, 9)["0.weight", 0, "weight"] == (1, 3)
    assert layout(network, "0[0]", 2, 9)["1.weight", 0, "weight"] == (1, 2)
    assert layout(network, "0[0]", 2, 9)["2.weight", 1, "consumed"] == (1, 2)
    assert layout(network, "0[1]", 2, 9)["0.weight", 0, "weight"] == (2, 1)
    assert layout(network, "0[1]", 2, 9)["1.weight", 1, "consumed"] == (1, 1)
    assert layout(network, "1[1]", 2, 9)["1.weight", 0, "weight"] == (2, 1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("fused")])
def test_heads_of_a_fused_attention_grow_in_all_three_parts_and_their_widths_not(name):
    network, inputs = CASES[name].network(), CASES[name].inputs()
    heads = couplings(network, inputs)["qkv[1]"]
    assert [(use.tensor, around(use)) for use in heads.uses if use.axis == 0] == [
        ("qkv.weight", (3, 4)), ("qkv.bias", (3, 4))
    ]  # fmt: skip
    assert [(use.tensor, around(use)) for use in heads.of("consumed")] == [("out.weight", (1, 4))]


@pytest.mark.parametrize("name", ["few keys", "few keys, repeated"])
def test_shared_keys_are_the_slow_axis_of_the_queries(name):
    network, inputs = CASES[name].network(), CASES[name].inputs()
    uses = {
        place: {use.tensor: around(use) for use in group.uses} for place, group in couplings(network, inputs).items()
    }
    assert uses["q[0]"]["q.weight"] == (1, 12)  # heads of keys, the heads of queries of each, their width
    assert uses["q[0]"]["k.weight"] == uses["q[0]"]["v.weight"] == (1, 4)
    assert uses["q[1]"].keys() == {"q.weight", "q.bias", "out.weight"}
    assert uses["q[1]"]["q.weight"] == uses["q[1]"]["out.weight"] == (2, 4)
    assert uses["q[2]"]["q.weight"] == (6, 1)
    assert uses["q[2]"]["k.weight"] == (2, 1)
    assert uses["v[1]"]["v.weight"] == (2, 1)
    assert uses["v[1]"]["out.weight"] == (6, 1)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_only_queries_that_a_layer_wrote_can_make_up_for_more_width(scale):
    def attend(net, x):
        return net.out(F.scaled_dot_product_attention(net.query(x), net.key(x), net.value(x), scale=scale))

    sizes = {"query": (3, 5), "key": (3, 5), "value": (3, 4), "out": (4, 2)}
    layers = {name: nn.Linear(*size) for name, size in sizes.items()}
    network = Wired(attend, **layers)
    assert groups(network, 6, 3) == {"query": 5, "value": 4}
    (pairing,) = couplings(network, torch.randn(3, 6, 3))["query"].pairings
    assert (pairing.writers, pairing.scaled) == (("query.weight", "query.bias"), scale is None)
    assert groups(Wired(attend, **layers | {"query": nn.Sequential(nn.Linear(3, 5), nn.ReLU())}), 6, 3) == {"value": 4}
    assert groups(Wired(attend, **layers | {"key": layers["query"]}), 6, 3) == {"value": 4}  # they read themselves


def test_a_matrix_that_is_a_parameter_is_a_layer():
    network = CASES["parameters"].network()
    assert layout(network, "w", 7) == {
        ("w", 1, "weight"): (1, 1), ("b", 0, "bias"): (1, 1), ("v", 0, "consumed"): (1, 1)
    }  # fmt: skip
    (group,) = couplings(network, torch.randn(3, 7)).values()
    assert [use.fan_in for use in group.uses] == [7, None, 5]


def test_tokens_and_positions_make_units_and_a_layer_scale_scales_them():
    network = CASES["class token"].network()
    stream = layout(network, "embedding", 5, 3)
    for name in ("token", "position", "down.bias", "embedding.bias"):
        assert any(tensor == name and role == "bias" for tensor, _, role in stream)
    assert ("scale", 0, "scale") in stream
    assert ("position", 0, "bias") not in stream  # the tokens themselves


def test_normalizations_say_what_they_take_off():
    found = {}
    for name in ("RMS norm", "class token"):
        normalizations = couplings(CASES[name].network(), CASES[name].inputs())["embedding"].normalizations
        found[name] = [(n.module, n.kind, n.eps, n.scale, n.shift) for n in normalizations]
    assert found["RMS norm"] == [(f"norm{i}", "rms", 10.0 ** (i - 4), f"norm{i}.weight", None) for i in (1, 2)]
    assert found["class token"] == [(f"norm{i}", "layer", 1e-5, f"norm{i}.weight", f"norm{i}.bias") for i in (1, 2)]
    groups = of_trace(trace(*of_family("ResNet, group norm", 3)[1:3]))
    assert groups["stem[0]"].normalizations == ()  # groups do not see each other
    assert {n.kind for n in groups["stem[1]"].normalizations} == {"group"}


UNKNOWN = {
    "fft_rfft": lambda net, x: torch.fft.rfft(x, 8).abs(),
    "cdist": lambda net, x: torch.cdist(x, x) @ x.detach(),
}
UNFORESEEN = {
    "repeat_interleave": lambda net, x: x.repeat_interleave(2).view(*x.shape, 2)[..., 0],
    "roll": lambda net, x: x.roll(1),
}


@pytest.mark.parametrize("name", [*UNKNOWN, *UNFORESEEN])
def test_an_unknown_operation_fixes_the_units_that_it_meets_and_no_others(name):
    function = {**UNKNOWN, **UNFORESEEN}[name]
    layers = {"a": nn.Linear(3, 5), "b": nn.Linear(5, 6), "c": nn.Linear(6, 2)}
    network = Wired(lambda net, x: net.c(net.b(function(net, net.a(x))[..., :5])), **layers)
    inner = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 3), network)
    assert groups(inner, 4, 3) == {"0": 7, "1": 3, "2.b": 6}
    reason = fixed(inner, torch.randn(3, 4, 3))["2.a"]
    known = "cannot be followed here" if name in UNFORESEEN else "what the operation does to units is not known"
    assert re.search(rf"{known}.*aten\.{name}\.\w+ in 2\)", reason)


@pytest.mark.parametrize("operation", ["fft_rfft", "sin", "argsort"])
def test_data_that_no_parameter_reaches_is_data_whatever_is_done_to_it(operation):
    def positions(net, x):
        size = torch.arange(4.0).unsqueeze(1)
        moved = {"fft_rfft": lambda s: torch.fft.rfft(s, 8).abs()[:, :1], "sin": torch.sin, "argsort": torch.argsort}
        return x * moved[operation](size)

    assert groups(between(positions), 4, 3) == {"a": 5}
    table = torch.arange(12).view(4, 3)
    network = Wired(lambda net, x: net.b(net.a(x) + net.table.sum(1, True)), a=nn.Linear(3, 5), b=nn.Linear(5, 2))
    network.register_buffer("table", table)  # whole numbers are no weights
    assert groups(network, 4, 3) == {"a": 5}


def test_a_parameter_that_an_unknown_operation_reads_is_fixed_with_its_reason():
    weights = torch.ones(5, 5)
    network = between(lambda net, x: x * torch.linalg.matrix_exp(net.w)[0], w=weights)
    assert groups(network, 4, 3) == {}
    assert fixed(network, torch.randn(3, 4, 3))["a"].startswith("what the operation does to units is not known")


def test_a_function_of_a_parameter_by_elements_gives_each_unit_its_number():
    network = between(lambda net, x: x * net.s.exp() + net.t.tanh(), s=torch.zeros(5), t=torch.ones(5))
    uses = couplings(network, torch.randn(3, 4, 3))["a"].uses
    assert {(use.tensor, use.role) for use in uses} >= {("s", "scale"), ("t", "scale")}


def test_norms_by_hand_are_normalizations_with_their_scale_and_eps():
    def norm(net, x):
        x = x.to(torch.float64)
        return net.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)).to(torch.float32)

    (found,) = couplings(between(norm, scale=torch.ones(5)), torch.randn(3, 4, 3))["a"].normalizations
    assert (found.kind, found.scale, found.eps, found.axis.size) == ("rms", "scale", 1e-3, 5)

    def shifted(net, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-3)
        return net.scale[:, None] * x + net.shift[:, None]

    layers = {"a": nn.Conv1d(3, 5, 1), "b": nn.Conv1d(5, 2, 1)}
    network = Wired(lambda net, x: net.b(shifted(net, net.a(x))), **layers, scale=torch.ones(5), shift=torch.ones(5))
    group = couplings(network, torch.randn(3, 3, 4))["a"]
    assert [(norm.kind, norm.scale, norm.eps) for norm in group.normalizations] == [("layer", "scale", 1e-3)]
    assert [use.tensor for use in group.of("shift")] == ["shift"]


WITH_PARAMETERS = {
    "transposed convolution": (nn.Sequential(nn.ConvTranspose1d(3, 6, 2), nn.ConvTranspose1d(6, 2, 1)), {"0": 6}),
    "grouped transposed convolution": (
        nn.Sequential(nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 6, 2, groups=2), nn.Conv1d(6, 2, 1)),
        {"0[0]": 2, "0[1]": 2, "1": 3},
    ),
    "three dimensions": (
        nn.Sequential(nn.Unflatten(2, (3, 2, 2)), nn.Conv3d(3, 5, 1), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(5, 2)),
        {"1": 5},
    ),
    "instance norm": (
        nn.Sequential(nn.Conv1d(3, 5, 1), nn.InstanceNorm1d(5, affine=True), nn.Conv1d(5, 2, 1)),
        {"0": 5},
    ),
    "prelu": (nn.Sequential(nn.Conv1d(3, 5, 1), nn.PReLU(5), nn.Conv1d(5, 2, 1)), {"0": 5}),
    "glu": (nn.Sequential(nn.Conv1d(3, 10, 1), nn.GLU(1), nn.Conv1d(5, 2, 1)), {"0[1]": 5}),
    "upsampled": (nn.Sequential(nn.Conv1d(3, 5, 1), nn.Upsample(scale_factor=2), nn.Conv1d(5, 2, 1)), {"0": 5}),
}


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_layers_of_many_kinds_are_followed(name):
    network, expected = WITH_PARAMETERS[name]
    shape = (3, 12) if name == "three dimensions" else (3, 8)
    assert groups(network, *shape) == expected


def test_a_rule_from_outside_takes_effect_at_once():
    network, inputs = between(UNKNOWN["fft_rfft"]), torch.randn(3, 4, 3)
    network.wiring = lambda net, x: net.b(torch.fft.rfft(net.a(x), dim=1).abs())
    assert groups(network, 4, 3) == {}
    operation, before = torch.ops.aten.fft_rfft, dict(RULES)
    try:
        register_rule(operation, lambda t, shape, x, n, dim, *options: Value([x.axes[0], *data(shape[1:2]), x.axes[2]]))
        assert couplings(network, inputs).keys() == {"a"}
        register_rule(operation.default, lambda t, shape, *options: 1 / 0)  # one that fails is no rule
        assert "division by zero (aten.fft_rfft.default" in fixed(network, inputs)["a"]
    finally:
        RULES.clear()
        RULES.update(before)
    with pytest.raises(TypeError, match="a rule must be a function"):
        register_rule(operation, None)
    with pytest.raises(TypeError, match=r"an operation is e\.g\. torch\.ops\.aten"):
        register_rule("fft", lambda *args: None)


@pytest.mark.parametrize("make", [mlp, convolutional])
def test_tracing_leaves_the_network_its_modes_and_the_global_stream_alone(make):
    network = make().train()
    network.get_submodule("2" if make is convolutional else "head").eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stream = torch.get_rng_state()
    first, second = couplings(network, batch()[0]), couplings(network, batch(5, seed=1)[0])
    assert first.keys() == second.keys()
    assert all(first[name].uses == second[name].uses for name in first)  # only shapes matter
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["few keys", "class token", "grouped", "gated"])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_batch_may_have_any_size_even_that_of_the_units(name, count):
    case = CASES[name]
    found = couplings(case.network(), case.inputs(count))
    assert {place: group.size for place, group in found.items()} == case.groups


def test_equal_sizes_are_no_reason_to_take_axes_for_the_same():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    found = couplings(network, torch.randn(4, 4))
    assert [[use.tensor for use in group.uses] for group in found.values()] == [
        ["0.weight", "0.bias", "2.weight"], ["2.weight", "2.bias", "4.weight"]
    ]  # fmt: skip


def test_the_source_of_a_graph_is_not_kept():
    caches = (linecache.cache, torch.fx.graph_module._loader.eval_cache)
    couplings(network := mlp(), batch()[0])
    before = [set(cache) for cache in caches]
    for _ in range(2):
        couplings(network, batch()[0])
    for cache, known in zip(caches, before, strict=True):
        assert not [key for key in cache.keys() - known if "eval_with_key" in key]
