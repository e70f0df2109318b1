import copy

import pytest
import torch
from cases import CLASSES, INPUTS, WIDTHS, batch, convolutional, mlp
from torch import nn

from mmstudy.core.networks import (
    MLP,
    Attention,
    Decoder,
    ResNet,
    ViT,
    count_flops,
    count_parameters,
    evaluating,
    initialize,
)
from mmstudy.core.seeds import generator


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_an_mlp_is_its_equation(widths):
    network, (inputs, _) = mlp(widths, dtype=torch.float64), batch(dtype=torch.float64)
    values, weights = inputs, dict(network.named_parameters())
    for i in range(len(widths)):
        values = (values @ weights[f"hidden.{i}.weight"].T + weights[f"hidden.{i}.bias"]).clamp(min=0)
    expected = values @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(inputs), expected, rtol=1e-12, atol=1e-14)


def test_inputs_of_any_shape_are_flattened():
    inputs, _ = batch()
    image = MLP(6, (3,), 2)
    assert torch.equal(image(inputs[:, :6].view(-1, 2, 3)), image(inputs[:, :6]))


@pytest.mark.parametrize("make", [mlp, convolutional])
def test_a_seed_names_a_network(make):
    first, again, other = (initialize(make(), generator("start", seed)) for seed in (0, 0, 1))
    before = torch.get_rng_state()
    initialize(first, generator("start", 0))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or set(a.unique().tolist()) <= {0.0, 1.0}  # a normalization is no draw


def test_parameters_fill_the_range_that_the_fan_in_gives():
    network = initialize(MLP(400, (100, 25), 10), generator("bounds"))
    for layer in (*network.hidden, network.head):
        bound = layer.in_features**-0.5
        draws = layer.weight.detach() / bound
        assert 0.98 < draws.abs().max() <= 1
        assert abs(draws.mean()) * (3 * draws.numel()) ** 0.5 < 4  # z-score: a uniform draw has variance 1/3
        assert abs((draws**2).mean() - 1 / 3) * (draws.numel() * 45 / 4) ** 0.5 < 4  # and its square 4/45
        assert 0.5 < layer.bias.abs().max() / bound <= 1  # the bias shares the bound of its weight


def test_a_tied_tensor_counts_once_and_a_frozen_one_not_at_all():
    network = mlp((6, 6))
    whole = INPUTS * 6 + 6 + 6 * 6 + 6 + 6 * CLASSES + CLASSES
    assert count_parameters(network) == whole
    tied = copy.deepcopy(network)
    tied.hidden.append(nn.Linear(6, 6, bias=False))
    tied.hidden[2].weight = tied.hidden[1].weight
    assert count_parameters(tied) == whole
    network.head.weight.requires_grad_(False)
    assert count_parameters(network) == whole - 6 * CLASSES


def test_flops_are_those_counted_by_hand():
    example, _ = batch(1)
    assert count_flops(mlp((6, 4)), example) == 2 * (INPUTS * 6 + 6 * 4 + 4 * CLASSES)
    positions, kernel, filters = INPUTS - 2, 3, 3
    assert count_flops(convolutional().eval(), example) == 2 * (positions * kernel * filters + 15 * CLASSES)


@pytest.mark.parametrize("widths", [(), (3, 0), (-1,)])
def test_widths_that_make_no_network_are_refused(widths):
    with pytest.raises(ValueError, match="widths must be at least one number") as error:
        MLP(2, widths, 2)
    assert str(widths) in str(error.value)


def test_the_resnet_of_the_paper_has_its_parameters():
    """ResNet-20 (He et al. 2016, table 6: 0.27 M), with projections in place of padded shortcuts."""
    network = ResNet(3, (16, 32, 64), (3, 3, 3), 10)
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert count_parameters(network) == convolutions + norms + shortcuts + 64 * 10 + 10
    assert count_parameters(network) == pytest.approx(0.27e6, rel=0.03)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_residual_block_with_silent_branch_is_a_relu(norm):
    block = ResNet(1, (8, 16), (2, 2), 10, norm).stages[0][1].eval()
    for parameter in block.norm2.parameters():
        parameter.data.zero_()
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_strides_halve_the_image_in_every_stage_but_the_first():
    network, seen = ResNet(1, (4, 8, 12), (1, 2, 1), 10, image=(8, 8)), []
    for stage in network.stages:
        stage[-1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network(torch.randn(3, 64))
    assert [tuple(shape) for shape in seen] == [(3, 4, 8, 8), (3, 8, 4, 4), (3, 12, 2, 2)]


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_equation(key_heads, causal):
    """softmax(q kᵀ / √D) v, head by head, each query head with its own key head."""
    torch.manual_seed(0)
    layer, x = Attention(12, 4, key_heads, 3, causal).double(), torch.randn(2, 5, 12).double()
    parts = {name: getattr(layer, name)(x) for name in ("query", "key", "value")}
    heads = []
    for head in range(4):
        own, shared = slice(3 * head, 3 * head + 3), head // (4 // key_heads)
        key = slice(3 * shared, 3 * shared + 3)
        scores = parts["query"][..., own] @ parts["key"][..., key].mT / 3**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ parts["value"][..., key])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)), rtol=1e-12, atol=1e-14)


def test_a_patch_is_seen_by_its_own_token_alone():
    vit, image = ViT((1, 8, 8), (2, 2), 12, 1, 3, 10), torch.zeros(1, 64)
    tokens = vit.embedding(image.view(-1, 1, 8, 8))
    image[0, 3 * 8 + 5] = 1.0  # row 3, column 5: the patch in row 1, column 2
    moved = (vit.embedding(image.view(-1, 1, 8, 8)) != tokens).any(1).squeeze(0)
    assert moved.nonzero().tolist() == [[1, 2]]


def test_a_signal_is_cut_into_segments():
    vit = ViT((1, 1, 40), (1, 5), 12, 2, 3, 10)
    assert vit.position.shape == (8, 12)
    assert vit(torch.randn(6, 40)).shape == (6, 10)


def test_a_decoder_sees_no_future_and_is_tied():
    torch.manual_seed(0)
    network, tokens = Decoder(11, 16, 24, 2, 4, 2).eval(), torch.randint(11, (2, 9))
    later = tokens.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    before, after = network(tokens), network(later)
    assert before.shape == (2, 9, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    assert network.head.weight is network.embedding.weight
    assert sum(p.numel() for p in network.state_dict().values()) == count_parameters(network) + 11 * 24


def test_every_layer_is_drawn_and_normalizations_are_left_alone():
    network = ViT((1, 8, 8), (2, 2), 12, 2, 3, 10)
    for parameter in network.parameters():
        parameter.data.fill_(7.0)
    initialize(network, generator("vit"))
    for name, parameter in network.named_parameters():
        assert (parameter == 7).all() == ("norm" in name), name


def test_evaluation_mode_is_lent_and_given_back():
    network = convolutional()
    network[2].eval()
    modes = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    with pytest.raises(RuntimeError), evaluating(network):
        network(torch.zeros(2, INPUTS + 1))
    assert [module.training for module in network.modules()] == modes
    assert True in modes
    assert False in modes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(1, (4, 8), (2,), 10), r"widths \(4, 8\) and blocks \(2,\)"),
        (lambda: ResNet(1, (4,), (0,), 10), r"blocks .*≥ 1; got \(0,\)"),
        (lambda: ResNet(1, (4,), (1,), 10, "layer"), "unknown norm 'layer'; known: batch, group"),
        (lambda: ViT((1, 8, 8), (3, 2), 12, 1, 3, 10), r"image \(8, 8\) cannot be cut into patches \(3, 2\)"),
        (lambda: ViT((1, 8, 8), (2, 2), 12, 1, 5, 10), "width of 12 cannot be split into 5 heads"),
        (lambda: ViT((1, 8, 8), (2, 2), 12, 0, 3, 10), r"depth .*got \(0,\)"),
        (lambda: Decoder(11, 16, 24, 1, 4, 3), "4 heads of queries cannot share 3 heads"),
    ],
)
def test_shapes_that_make_no_network_are_refused_by_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_operations_of_attention_are_counted_though_it_is_fused():
    """A multiply-add is two: in each linear layer for each of 7 tokens, and between tokens for scores and values."""
    network = Decoder(17, 7, 16, 2, 4, key_heads=2)
    layers = sum(m.in_features * m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    between = 2 * 2 * 7 * 7 * 16  # blocks, scores and values, pairs of tokens, width
    assert count_flops(network, torch.arange(7).unsqueeze(0)) == 2 * (7 * layers + between)
