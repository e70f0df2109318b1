import pytest
import torch
from cases import batch, mlp
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.study import evaluation, measurements, predictors, sweep


def test_gradient_norm_is_that_of_autograd():
    inputs, targets = batch()
    network = mlp()
    nn.functional.cross_entropy(network(inputs), targets).backward()
    norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert predictors.gradient_norm(en.stack([network]), (inputs, targets)).item() == pytest.approx(
        float(norm), rel=1e-5
    )


def test_gradient_norms_of_many_networks_are_those_of_each():
    inputs, targets = batch()
    nets = [mlp(seed=i) for i in range(3)]
    together = predictors.gradient_norm(en.stack(nets), (inputs, targets))
    each = torch.cat([predictors.gradient_norm(en.stack([net]), (inputs, targets)) for net in nets])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=0)
    assert len(set(together.tolist())) == 3


def test_the_gradient_vanishes_at_a_minimum_and_not_beside_it():
    network, (inputs, _) = mlp(), batch(1)
    network.head.weight.data.zero_()
    network.head.bias.data.copy_(torch.tensor([50.0, 0, 0, 0]))  # sure of class 0
    at_minimum, beside = (
        predictors.gradient_norm(en.stack([network]), (inputs, torch.tensor([label]))).item() for label in (0, 1)
    )
    assert at_minimum < 1e-6
    assert beside > 1


def test_every_measure_declares_its_sign_and_is_described_and_costed():
    assert set(predictors.DIRECTION.values()) == {-1, 1}
    assert predictors.DIRECTION.keys() <= sweep.WORDS.keys()
    assert set(measurements.SIZES) <= predictors.DIRECTION.keys()
    assert evaluation.FAMILIES.keys() <= predictors.DIRECTION.keys()
    assert evaluation.COST_OF.keys() <= predictors.DIRECTION.keys()
    assert {*evaluation.COST_OF.values(), "children_cost"} <= sweep.WORDS.keys()
    for choice in (evaluation.HEADLINE, evaluation.RIVAL):
        assert choice["measure"] in predictors.DIRECTION


def test_losses_point_down_and_sizes_up():
    for name, sign in predictors.DIRECTION.items():
        assert sign == (-1 if "loss" in name else 1), name
