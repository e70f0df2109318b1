import copy
from dataclasses import replace
from functools import cache
from math import prod, sqrt

import pytest
import torch
from cases import CASES, INPUTS, Wired, batch, change, convolutional, mlp, of_family, uneven
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmstudy.core.networks import ViT, named_tensors
from mmstudy.core.seeds import generator
from mmstudy.expansion import plans
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.growth import Growth, repeatable
from mmstudy.expansion.operators import OPERATORS
from mmstudy.expansion.plans import NEW, matrix, plan, transform, transported, units_first
from mmstudy.expansion.reading import Read
from mmstudy.expansion.replacing import put
from mmstudy.expansion.surgery import rebuilt
from mmstudy.tracing.couplings import Use, couplings
from mmstudy.tracing.layouts import UNITS

DOUBLE = torch.float64


def tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}


def in_turn(old: int, new: int) -> torch.Tensor:
    """Whole rounds of copies, then units that are new."""
    source = torch.arange(new) % old
    source[new // old * old :] = NEW
    return source


@given(outer=st.integers(1, 3), units=st.integers(1, 4), inner=st.integers(1, 3), axis=st.integers(0, 2))
def test_units_come_first_and_each_keeps_what_is_its_own(outer, units, inner, axis):
    shape = [2, 3, 2]
    shape[axis] = outer * units * inner
    tensor = torch.arange(prod(shape)).view(shape)
    rows = units_first(tensor, Use("w", axis, ((outer, UNITS, inner),), "weight", None, ()), units)
    for unit in range(units):
        mine = [o * units * inner + unit * inner + i for o in range(outer) for i in range(inner)]
        expected = tensor.index_select(axis, torch.tensor(mine))
        assert set(rows[unit].flatten().tolist()) == set(expected.flatten().tolist())


def test_plans_of_copies_split_evenly_and_what_is_new_is_nothing():
    group = couplings(mlp((3, 4)), batch()[0])["hidden.0"]
    made = plan(group, torch.tensor([0, 1, 2, 0, 0, NEW]))
    third = 1 / 3
    assert made.make.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(
        made.read,
        torch.tensor([[third, 0, 0], [0, 1, 0], [0, 0, 1], [third, 0, 0], [third, 0, 0], [0, 0, 0]], dtype=DOUBLE),
    )
    torch.testing.assert_close(made.read.mT @ made.make, torch.eye(3, dtype=DOUBLE))
    assert (made.size, made.variance, made.fresh.tolist()) == (6, 1.0, [False] * 5 + [True])


def test_an_mlp_is_transformed_as_the_equation_says():
    """W₁' = make W₁, b₁' = make b₁, W₂' = W₂ readᵀ, and nothing else changes."""
    network = mlp((3, 4), dtype=DOUBLE)
    group = couplings(network, batch(dtype=DOUBLE)[0])["hidden.0"]
    stream = generator("plan")
    source = torch.randint(3, (8,), generator=stream)
    made = plan(group, source, torch.rand(8, generator=stream))
    old = tensors(network)
    before = copy.deepcopy(old)
    new = transform(old, made)
    assert new.keys() == {"hidden.0.weight", "hidden.0.bias", "hidden.1.weight"}
    torch.testing.assert_close(new["hidden.0.weight"], made.make @ old["hidden.0.weight"])
    torch.testing.assert_close(new["hidden.0.bias"], made.make @ old["hidden.0.bias"])
    torch.testing.assert_close(new["hidden.1.weight"], old["hidden.1.weight"] @ made.read.mT)
    assert all(torch.equal(before[name], tensor) for name, tensor in old.items())


def test_the_transformation_is_differentiable_in_tensors_and_plans():
    network = mlp((3, 4), dtype=DOUBLE)
    made = plan(couplings(network, batch(dtype=DOUBLE)[0])["hidden.0"], torch.tensor([0, 1, 2, 1]))
    made.make.requires_grad_()
    weight = tensors(network)["hidden.0.weight"].requires_grad_()
    new = transform({"hidden.0.weight": weight}, made)["hidden.0.weight"]
    slope = torch.randn_like(new)
    by_weight, by_make = torch.autograd.grad(new, (weight, made.make), slope)
    torch.testing.assert_close(by_weight, made.make.detach().mT @ slope)
    torch.testing.assert_close(by_make, slope @ weight.detach().mT)


class Normalized(nn.Module):
    """Units, a normalization across them, and what reads them through it."""

    def __init__(self, kind: str, eps: float):
        super().__init__()
        self.make = nn.Linear(INPUTS, 6)
        if kind == "group":
            self.norm = nn.GroupNorm(2, 6, eps)
        else:
            self.norm = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind](6, eps)
        self.read = nn.Linear(6, 3)

    def forward(self, x):
        return self.read(self.norm(self.make(x)))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("size", [7, 9, 12, 13, 18])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_lemon_is_exact_at_any_width_even_where_eps_is_felt(kind, size, scale):
    """Wang et al. 2023, section 4.2: averages (or zeros) for the rest; scale and eps times the change of variance."""
    network = uneven(Normalized(kind, 1e-4)).double()
    inputs = scale * batch(dtype=DOUBLE)[0]
    network.make.bias.data *= scale
    grown = plan(couplings(network, inputs)["make"], in_turn(6, size))
    new = rebuilt(network, grown, inputs)
    whole = size // 6
    assert grown.variance == pytest.approx(whole * 6 / size, rel=1e-15)
    assert new.norm.eps == pytest.approx(1e-4 * grown.variance, rel=1e-15)
    assert change(network, new, inputs) < 1e-12
    rest = new.make(inputs)[:, whole * 6 :]
    average = network.make(inputs).mean(1, keepdim=True) if kind == "layer" else torch.zeros(1, 1, dtype=DOUBLE)
    torch.testing.assert_close(rest, average.expand_as(rest))
    new.norm.eps = network.norm.eps
    if size % 6:
        assert change(network, new, inputs) > (1e-4 if scale < 1e-2 else 1e-8)  # so eps is indeed felt


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_units_that_are_normalized_together_are_copied_as_a_whole(kind):
    network, inputs = Normalized(kind, 1e-5), batch()[0]
    group = couplings(network, inputs)["make[1]" if kind == "group" else "make"]
    n = group.size
    with pytest.raises(ValueError, match=rf"the {n} units of make.*so that {n + 1} of them.*multiple of {n}"):
        plan(group, torch.arange(n + 1) % n)
    assert plan(group, torch.arange(n + 1) % n, keep=False).variance == 1
    assert plan(group, torch.arange(2 * n) % n).variance == 1
    if kind == "group":
        with pytest.raises(ValueError, match="take a multiple of 3"):
            plan(group, in_turn(n, n + 1))


@pytest.mark.parametrize(
    ("norm", "missing"),
    [
        (nn.LayerNorm(6, elementwise_affine=False), "scale"),
        (nn.RMSNorm(6), r"eps \(None\)"),
        (Wired(lambda net, x: nn.functional.layer_norm(x, (x.shape[-1],), net.w), w=torch.ones(6)), r"eps \(1e-05\)"),
    ],
)
def test_a_norm_that_cannot_make_up_for_a_change_of_variance_is_refused(norm, missing):
    network, inputs = nn.Sequential(nn.Linear(INPUTS, 6), norm, nn.Linear(6, 2)), batch()[0]
    group = couplings(network, inputs)["0"]
    with pytest.raises(ValueError, match=f"1 has no {missing}.*for 9 units; take a multiple of 6"):
        rebuilt(network, plan(group, in_turn(6, 9)), inputs)
    assert change(network, rebuilt(network, plan(group, in_turn(6, 12)), inputs), inputs) < 1e-5


def test_a_new_unit_without_a_past_has_scale_and_variance_one():
    network, inputs = uneven(convolutional()), batch()[0]
    new = rebuilt(network, plan(couplings(network, inputs)["1"], torch.tensor([0, 1, 2, NEW])), inputs)
    assert new[1].weight[3].abs().sum() == new[2].bias[3] == new[2].running_mean[3] == 0
    assert new[2].weight[3] == new[2].running_var[3] == 1
    assert (new[6].weight[:, 15:] == 0).all()
    assert torch.equal(new[6].weight[:, :15], network[6].weight)


@pytest.mark.parametrize("size", [4, 6, 7])
def test_queries_make_up_for_the_root_of_the_width(size):
    """softmax(q k / √n) stays: copies are counted in the sum, hence shared out, and √n grows."""
    _, network, inputs, _ = of_family("ViT", 5)
    at = "blocks.0.attention"
    group = couplings(network, inputs)[f"{at}.query[1]"]
    grown = plan(group, torch.arange(size + 1) % group.size)
    (query, _), (key, _) = (
        [use for use in group.uses if use.tensor.startswith(f"{at}.{layer}")] for layer in ("query", "key")
    )
    torch.testing.assert_close(matrix(grown, query), grown.read * sqrt((size + 1) / 4))
    torch.testing.assert_close(matrix(grown, key), grown.make)
    assert change(network, rebuilt(network, grown, inputs), inputs) < 1e-12


def head_of_keys(weight: torch.Tensor, heads: int, keys: int) -> list[tuple[torch.Tensor, int]]:
    """The rows of each head of queries, and the head of keys that it reads, as grouped-query attention is defined."""
    rows = weight.detach().unflatten(0, (heads, -1))
    return [(rows[i], i // (heads // keys)) for i in range(heads)]


@pytest.mark.parametrize("name", ["few keys", "few keys, repeated"])
@pytest.mark.parametrize("place", ["q[0]", "q[1]"])
@pytest.mark.parametrize("more", [1, 3])
def test_each_query_keeps_its_own_key(name, place, more):
    case = CASES[name]
    network, inputs = case.network().double(), case.inputs(dtype=DOUBLE)
    group = couplings(network, inputs)[place]
    source = torch.arange(group.size + more) % group.size
    new = rebuilt(network, plan(group, source), inputs)
    assert change(network, new, inputs) < 1e-12
    old_keys, new_keys = (net.k.weight.detach().unflatten(0, (net.keys, -1)) for net in (network, new))
    before = head_of_keys(network.q.weight, network.heads, network.keys)
    after = head_of_keys(new.q.weight, new.heads, new.keys)
    sizes = {"q[0]": ((2 + more) * 3, 2 + more), "q[1]": (2 * (3 + more), 2)}[place]
    assert (new.heads, new.keys) == sizes == (len(after), len(new_keys))
    for rows, key in after:
        matches = [old for old, (original, _) in enumerate(before) if torch.equal(rows, original)]
        assert [torch.equal(new_keys[key], old_keys[before[old][1]]) for old in matches] == [True]


KEPT = [  # (family, place, size, module, attribute, what it becomes)
    ("ViT", "embedding", 18, "norm", "normalized_shape", (18,)),
    ("ViT", "embedding", 18, "blocks.1.norm2", "normalized_shape", (18,)),
    ("ViT", "embedding", 18, "", "image", (1, 8, 8)),
    ("ViT", "blocks.0.attention.query[0]", 5, "blocks.0.attention", "heads", 5),
    ("ViT", "blocks.0.attention.query[0]", 5, "blocks.0.attention", "key_heads", 5),
    ("ViT", "blocks.0.attention.query[0]", 5, "blocks.1.attention", "heads", 3),
    ("ViT", "blocks.0.attention.query[1]", 5, "blocks.0.attention", "heads", 3),
    ("decoder", "blocks.0.attention.query[0]", 3, "blocks.0.attention", "heads", 6),
    ("decoder", "blocks.0.attention.query[0]", 3, "blocks.0.attention", "key_heads", 3),
    ("decoder", "blocks.0.attention.query[1]", 3, "blocks.0.attention", "heads", 6),
    ("decoder", "blocks.0.attention.query[1]", 3, "blocks.0.attention", "key_heads", 2),
    ("decoder", "blocks.0.attention.query[2]", 6, "blocks.0.attention", "heads", 4),
    ("decoder", "embedding", 24, "norm", "normalized_shape", (24,)),
    ("ResNet, group norm", "stem[0]", 6, "norm", "num_groups", 6),
    ("ResNet, group norm", "stem[0]", 6, "norm", "num_channels", 12),
    ("ResNet, group norm", "stem[0]", 6, "stages.0.0.norm1", "num_groups", 4),
    ("ResNet, group norm", "stem[1]", 4, "norm", "num_groups", 4),
    ("ResNet, group norm", "stem[1]", 4, "norm", "num_channels", 16),
    ("ResNet, batch norm", "stem", 6, "norm", "num_features", 6),
]


@cache
def wide(family: str, place: str, size: int) -> nn.Module:
    _, network, inputs, _ = of_family(family, 3)
    group = couplings(network, inputs)[place]
    return rebuilt(network, plan(group, torch.arange(size) % group.size, keep=False), inputs)


@pytest.mark.parametrize(("family", "place", "size", "module", "attribute", "expected"), KEPT)
def test_sizes_that_modules_keep_follow_and_others_stay(family, place, size, module, attribute, expected):
    new = wide(family, place, size)
    assert getattr(new.get_submodule(module), attribute) == expected


def test_equal_sizes_are_told_apart_by_running_the_network():
    """Everything is 4: the image and its patches, the stream, the heads, their width."""
    network = uneven(ViT((1, 8, 8), (4, 4), 16, 1, 4, 4, ratio=1)).double()
    inputs = torch.randn(4, 64, dtype=DOUBLE)
    groups = couplings(network, inputs)
    at = "blocks.0.attention"
    for place, (heads, shape, stream) in {
        f"{at}.query[0]": (8, (32, 16), 16), f"{at}.query[1]": (4, (32, 16), 16), f"{at}.value[1]": (4, (16, 16), 16),
        "embedding": (4, (16, 32), 32), "blocks.0.up": (4, (16, 16), 16),
    }.items():  # fmt: skip
        new = rebuilt(network, plan(groups[place], torch.arange(2 * groups[place].size) % groups[place].size), inputs)
        attention = new.blocks[0].attention
        assert (attention.heads, attention.key_heads, tuple(attention.query.weight.shape)) == (heads, heads, shape)
        assert (new.image, new.norm.normalized_shape) == ((1, 8, 8), (stream,))
        assert change(network, new, inputs) < 1e-12


def test_what_layers_print_of_their_sizes_is_true():
    for name, place in (("ViT", "embedding"), ("ResNet, group norm", "stages.1.0.conv2[0]"), ("MLP", "hidden.1")):
        _, network, inputs, _ = of_family(name, 3)
        group = couplings(network, inputs)[place]
        new = rebuilt(network, plan(group, torch.arange(2 * group.size) % group.size), inputs)
        for module in new.modules():
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            if isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
    case = CASES["depthwise"]
    group = couplings(case.network(), case.inputs())["0"]
    depthwise = rebuilt(case.network(), plan(group, torch.arange(12) % 8), case.inputs())[2]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (12, 12, 12)
    assert depthwise.weight.shape == (12, 1, 3, 3)


def test_a_size_that_nothing_keeps_cannot_grow():
    heads = 3
    network = Wired(
        lambda net, x: net.out(net.a(x).unflatten(-1, (heads, -1)).relu().flatten(1)),
        a=nn.Linear(INPUTS, 12), out=nn.Linear(12, 2), width=12,
    )  # fmt: skip
    inputs = batch()[0]
    groups = couplings(network, inputs)
    assert {name: group.size for name, group in groups.items()} == {"a[0]": 3, "a[1]": 4}
    with pytest.raises(ValueError, match=r"a\[0\] cannot grow from 3 to 5.*its modules \(Wired.width = 12\)"):
        rebuilt(network, plan(groups["a[0]"], torch.arange(5) % 3), inputs)
    assert rebuilt(network, plan(groups["a[1]"], torch.arange(5) % 4), inputs).a.out_features == 15


def test_a_tied_tensor_is_put_wherever_it_is_used():
    _, network, inputs, _ = of_family("decoder", 3)
    new = rebuilt(network, plan(couplings(network, inputs)["embedding"], in_turn(16, 20)), inputs)
    assert new.head.weight is new.embedding.weight
    assert network.head.weight is network.embedding.weight is not new.head.weight
    put(new, "embedding.weight", torch.ones(17, 20))
    assert new.head.weight is new.embedding.weight
    assert isinstance(new.head.weight, nn.Parameter)
    assert (new.head.weight == 1).all()


def test_frozen_parameters_stay_frozen():
    network = mlp()
    network.hidden[0].weight.requires_grad_(False)
    new = rebuilt(network, plan(couplings(network, batch()[0])["hidden.0"], torch.arange(9) % 6), batch()[0])
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in network.parameters()]


def test_a_tensor_that_makes_and_reads_with_nothing_between_cannot_be_split():
    network = Wired(lambda net, x: (x @ net.w.t()).relu() @ net.w, w=torch.ones(6, 5))
    inputs = torch.randn(3, 5)
    with pytest.raises(ValueError, match="w makes and reads the units of w; nothing between can be split"):
        rebuilt(network, plan(couplings(network, inputs)["w"], torch.arange(9) % 6), inputs)


SMALL = mlp((3, 4), dtype=DOUBLE)
GROUP = couplings(SMALL, batch(dtype=DOUBLE)[0])["hidden.0"]


@given(seed=st.integers(0, 99), size=st.integers(4, 9), squares=st.booleans())
def test_averages_are_carried_as_gradients_of_even_copies_flow(seed, size, squares):
    """g_old = Mᵀ g_new, evenly: makers get 1/k each, readers the whole; squares of that for squares."""
    stream = generator("averages", seed)
    source = torch.cat([torch.arange(3), torch.randint(3, (size - 3,), generator=stream)])
    made = plan(GROUP, source)
    old = {name: torch.rand(p.shape, generator=stream, dtype=DOUBLE) for name, p in SMALL.named_parameters()}
    new = transported(old, made, squares)
    copies = torch.tensor([(source == of).sum() for of in source], dtype=DOUBLE)
    share = 1 / copies**2 if squares else 1 / copies
    torch.testing.assert_close(new["hidden.0.weight"], old["hidden.0.weight"][source] * share.unsqueeze(1))
    torch.testing.assert_close(new["hidden.0.bias"], old["hidden.0.bias"][source] * share)
    torch.testing.assert_close(new["hidden.1.weight"], old["hidden.1.weight"][:, source])
    assert new.keys() == {"hidden.0.weight", "hidden.0.bias", "hidden.1.weight"}


def test_new_units_begin_without_momentum_and_with_mean_squares():
    made = plan(GROUP, torch.tensor([0, 1, 2, NEW, NEW]))
    old = {name: torch.rand_like(p) for name, p in SMALL.named_parameters()}
    momentum, squares = transported(old, made, False), transported(old, made, True)
    for name, axis in (("hidden.0.weight", 0), ("hidden.0.bias", 0), ("hidden.1.weight", 1)):
        for averages, expected in ((momentum, torch.zeros_like(old[name])), (squares, old[name])):
            kept, new = averages[name].split([3, 2], axis)
            torch.testing.assert_close(kept, old[name])
            torch.testing.assert_close(new, expected.mean(axis, keepdim=True).expand_as(new))


@pytest.mark.parametrize("operator", ["bert2bert", "lemon", "hypercloning", "zero_incoming"])
def test_tensors_that_are_made_when_read_are_the_same_each_time(operator, monkeypatch):
    network, x = uneven(ViT((1, 8, 8), (4, 4), 16, 1, 4, 4, ratio=1)).double(), torch.randn(3, 64, dtype=DOUBLE)
    group = max(couplings(network, x).values(), key=lambda group: len(group.uses))  # the stream
    stream = generator("made when read")
    made, touch = OPERATORS[operator].apply(Growth(network, group, 2 * group.size, stream, x))
    before = stream.get_state()
    at_once = rebuilt(network, made, x, touch)
    monkeypatch.setattr(plans, "SMALL", 0)
    stream.set_state(before)
    sparing = rebuilt(network, made, x, repeatable(touch, stream), sparing=True)
    grown = {use.tensor for use in group.uses}
    assert {name for name, p in sparing.named_parameters() if isinstance(p, Read)} == grown
    with torch.no_grad():
        assert torch.equal(sparing(x), sparing(x))
        torch.testing.assert_close(sparing(x), network(x))
        once = {name: sparing.get_parameter(name) + 0 for name in grown}
        assert all(torch.equal(sparing.get_parameter(name) + 0, tensor) for name, tensor in once.items())
    for name, tensor in named_tensors(at_once).items():
        assert sparing.get_parameter(name).shape == tensor.shape
        if touch is None:
            assert torch.equal(once.get(name, tensor), tensor)


def test_what_is_big_is_made_at_once_while_there_is_room(monkeypatch):
    """Neither what is small; of 1,652 bytes there is room for the tensor of 1,600, not for that of 960 too."""
    network = mlp((3, 40, 5, 2))
    made = plan(couplings(network, batch()[0])["hidden.1"], in_turn(40, 80))

    def when_read(small: int, big: int) -> set[str]:
        monkeypatch.setattr(plans, "SMALL", small)
        monkeypatch.setattr(plans, "BIG", big)
        new = rebuilt(network, made, batch()[0], sparing=True)
        assert [p.shape for p in new.parameters()] == [p.shape for p in rebuilt(network, made, batch()[0]).parameters()]
        return {name for name, p in new.named_parameters() if isinstance(p, Read)}

    weights, bias = {"hidden.1.weight", "hidden.2.weight"}, {"hidden.1.bias"}
    assert sum(p.nbytes for p in network.parameters()) == 1652
    assert when_read(0, 10**6) == weights | bias
    assert when_read(330, 10**6) == weights
    assert when_read(0, 500) == {"hidden.1.weight"} | bias
    assert when_read(330, 500) == {"hidden.1.weight"}


def test_a_touch_that_is_repeated_draws_other_numbers_for_each_tensor():
    uses = [Use(name, 0, ((UNITS,),), "weight", None, ()) for name in "abc"]
    stream = generator("repeatable")
    touch = repeatable(lambda use, tensor: tensor + torch.rand(tensor.shape, generator=stream), stream)
    drawn = [touch(uses[i], torch.zeros(3)).tolist() for i in (0, 1, 0, 2, 1, 2)]
    assert drawn[0] == drawn[2] and drawn[1] == drawn[4] and drawn[3] == drawn[5]
    assert len({x for some in drawn for x in some}) == 9
    assert repeatable(None, stream) is None


SHIFTED = {
    "1 + w": (lambda w: 1.0 + w, 1),
    "w − 3": (lambda w: w - 3, -3),
    "3 − w": (lambda w: 3 - w, -3),
    "w": (lambda w: w, 0),
}


NORMS = {
    "by hand": lambda net, x, scale: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + net.eps) * scale,
    "a layer": lambda net, x, scale: nn.functional.layer_norm(x, scale.shape, scale, None, net.eps),
    "an RMS layer": lambda net, x, scale: nn.functional.rms_norm(x, scale.shape, scale, net.eps),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SHIFTED)
def test_a_scale_with_a_number_added_grows_as_what_comes_of_it(name, norm):
    """Also where it must make up: for units that are nothing, and for a reader that makes the units too."""
    scale, shift = SHIFTED[name]

    def forward(net, words):
        return NORMS[norm](net, net.table(words), scale(net.scale)) @ net.table.weight.T

    torch.manual_seed(0)
    network = Wired(forward, table=nn.Embedding(9, 4), scale=torch.rand(4), eps=1e-3).double()
    words = torch.randint(9, (3, 5))
    group = couplings(network, words)["table"]
    assert [(use.role, use.shift) for use in group.uses if use.tensor == "scale"] == [("scale", shift)]
    assert [each.scale for each in group.normalizations] == ["scale"]
    for size in (8, 11):
        new = Candidate("lemon", ("table",), (size,)).expand(network, words)
        assert change(network, new, words) < 1e-12
        shares = (scale(new.scale)[:8].detach() / scale(network.scale).detach().repeat(2)).view(2, 4)
        torch.testing.assert_close(shares.sum(0), torch.full((4,), (8 / size) ** 0.5, dtype=DOUBLE))
    assert bool((scale(new.scale)[8:].abs() == 1).all())  # units that are nothing


def test_an_optimizers_averages_of_a_scale_know_nothing_of_the_number_added():
    group = couplings(mlp((3,)), batch()[0])["hidden.0"]
    use = Use("scale", 0, ((UNITS,),), "scale", None, (), shift=1.0)
    made = plan(replace(group, uses=(use,)), in_turn(3, 7))
    old = {"scale": torch.rand(3, dtype=DOUBLE)}
    grown = transform(old, made)["scale"]
    torch.testing.assert_close(grown, torch.cat([old["scale"], old["scale"], torch.zeros(1, dtype=DOUBLE)]))
    averages = transported(old, made, squares=False)["scale"]
    torch.testing.assert_close(averages, torch.cat([old["scale"] / 2] * 2 + [torch.zeros(1, dtype=DOUBLE)]))
