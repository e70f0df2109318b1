"""Hooks on gradients run, or what would leave them out is refused by name."""

import pytest
import torch
from cases import batch, change, masked, mlp
from torch import nn

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.batched import hooks, training
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.estimators import ESTIMATORS

BATCH = batch(40)


def stored(seed: int = 0) -> nn.Module:
    network = mlp(seed=seed)
    network.head.weight.register_post_accumulate_grad_hook(lambda weight: weight.grad.zero_())
    return network


def backward(seed: int = 0) -> nn.Module:
    network = mlp(seed=seed)
    network.head.register_full_backward_hook(lambda module, given, slopes: (given[0] * 0,))
    return network


def before(seed: int = 0) -> nn.Module:
    network = mlp(seed=seed)
    network.head.register_full_backward_pre_hook(lambda module, slopes: (slopes[0] * 0,))
    return network


KINDS = {masked: "head.weight has a gradient hook", stored: "head.weight has a gradient hook"} | dict.fromkeys(
    (backward, before), r"head \(Linear\) has a backward hook"
)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_sizes_that_need_gradients_refuse_hooks_and_others_measure(method):
    network = masked()
    if ESTIMATORS[method].gradients:
        with pytest.raises(ValueError, match=KINDS[masked]):
            mm.size(network, BATCH, method=method)
        with pytest.raises(ValueError, match=KINDS[masked]):
            mm.sizes([mlp(), network], BATCH, methods=["rays", method])
    else:
        plain = mm.size(mlp(), BATCH, method=method, samples=4)
        assert mm.size(network, BATCH, method=method, samples=4).equals(plain)


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_of_hook_is_named_wherever_networks_train_together(make):
    network = make()
    other = mlp(seed=1) if make in (masked, stored) else network  # with other hooks of modules the form is another
    one, joined = en.stack([other, network]), en.concatenate([en.stack([other]), en.stack([network])])
    for ensemble in (one, joined):
        order = training.minibatches([generator("hooks")] * 2, 40, 3, 8)
        with pytest.raises(ValueError, match=KINDS[make]):
            list(training.train(ensemble, BATCH, order, training.constant(0.1, 3)))
        objective, points = of_networks(ensemble, BATCH), en.vectors(ensemble)
        assert objective(points[:, None]).isfinite().all()
        with pytest.raises(ValueError, match=KINDS[make]):
            objective.gradient(points[:, None])
        with pytest.raises(ValueError, match=KINDS[make]):
            objective.hessian_vector(points, torch.ones_like(points)[:, None])


def test_hooks_of_a_frozen_parameter_rest():
    network = masked()
    network.head.weight.requires_grad_(False)
    assert not hooks.on_gradients(network)
    assert mm.size(network, BATCH, samples=2)["status"].item() == "ok"


def test_losses_between_networks_need_no_gradients():
    assert mm.line(masked(), mlp(seed=1), BATCH)["loss"].equals(mm.line(mlp(), mlp(seed=1), BATCH)["loss"])


def test_copies_that_are_ranked_keep_their_hooks():
    from mmstudy.ranking.rows import unchanged

    network = masked()
    copied = unchanged(network).network
    assert change(network, copied, BATCH[0]) == 0
    assert copied.head.weight is not network.head.weight
    en.classification(copied, BATCH).backward()
    assert not copied.head.weight.grad.any()
    assert copied.hidden[0].weight.grad.any()
