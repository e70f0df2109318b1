import copy

import pytest
import torch
from cases import CLASSES, INPUTS, WIDTHS, batch, convolutional, mlp
from torch import nn

from mmstudy.networks import MLP, count_flops, count_parameters, initialize
from mmstudy.seeds import generator


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
        assert not torch.equal(a, c)


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
    with pytest.raises(ValueError, match="at least one hidden layer") as error:
        MLP(2, widths, 2)
    assert str(widths) in str(error.value)
