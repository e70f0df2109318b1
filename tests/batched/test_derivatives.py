"""Gradients are those of the single networks, whatever torch makes of several, or there are none."""

import pytest
import torch
from cases import CLASSES, INPUTS, batch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks


class Recomputing(nn.Module):
    """Saves memory by activation checkpointing, and may make a choice that networks of a batch cannot make."""

    def __init__(self, alone: bool, reentrant: bool):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(INPUTS, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.alone, self.reentrant = alone, reentrant

    def forward(self, x):
        hidden = checkpoint(self.second, self.first(x), use_reentrant=self.reentrant)
        assert not self.alone or hidden.isfinite().all()
        return self.third(hidden.tanh())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("alone", "reentrant"), [(True, False), (False, False), (True, True)])
def test_a_network_that_computes_again_for_its_gradient_is_refused_where_one_is_taken(alone, reentrant):
    networks = [Recomputing(alone, reentrant), Recomputing(alone, reentrant)]
    assert mm.size(networks, batch(), method="rays", samples=4)["size"].notnull().all()
    for method in ("extent", "curvature"):
        with pytest.raises(ValueError, match="turn activation checkpointing off"):
            mm.size(networks, batch(), method=method)
    networks[0](batch()[0]).sum().backward()  # as ever


class Padded(nn.Module):
    """The mean of a sentence's words, in which the last number stands for none."""

    def __init__(self, **options):
        super().__init__()
        self.words, self.head = nn.Embedding(6, 5, **options), nn.Linear(5, CLASSES)

    def forward(self, tokens):
        return self.head(self.words(tokens).mean(1))


def test_the_row_of_the_padding_has_no_gradient_in_any_network():
    tokens, targets = torch.randint(6, (20, 4), generator=torch.Generator().manual_seed(0)), batch(20)[1]
    networks = [Padded(padding_idx=-1) for _ in range(3)]
    stacked = en.stack(networks)
    objective = of_networks(stacked, (tokens, targets), minibatch=10)
    draws = torch.stack([torch.arange(k, 10 + k) for k in range(3)])
    points, owner = en.vectors(stacked), torch.arange(3)
    shared = objective.gradient(points.unsqueeze(1))[1].squeeze(1)
    own = objective.noisy_gradient(points, owner, draws)[1]
    for k, network in enumerate(networks):
        for found, some in ((shared[k], slice(None)), (own[k], draws[k])):
            loss = nn.functional.cross_entropy(network(tokens[some]), targets[some])
            expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
            torch.testing.assert_close(found, expected)


class Own(torch.autograd.Function):
    """A linear map that remembers its module for the backward pass, not the weight."""

    @staticmethod
    def forward(context, inputs, weight, module):
        context.save_for_backward(inputs)
        context.module = module
        return inputs @ weight.T

    @staticmethod
    def backward(context, slope):
        (inputs,) = context.saved_tensors
        return slope @ context.module.weight, slope.T @ inputs, None


class Remembering(nn.Module):
    """A network with an operation of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, 5), nn.Linear(5, CLASSES, bias=False)

    def forward(self, x):
        return Own.apply(self.first(x).tanh(), self.second.weight, self.second)


@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_that_is_not_that_of_a_plain_call_is_refused_where_one_is_taken(count):
    networks = [Remembering() for _ in range(count)]
    before = [p.clone() for network in networks for p in network.parameters()]
    assert mm.size(networks, batch(), method="rays", samples=4)["size"].notnull().all()
    with pytest.raises(ValueError, match="network 0: the gradient of a plain call has a norm of"):
        mm.size(networks, batch(), samples=2)
    assert all(map(torch.equal, before, [p for network in networks for p in network.parameters()]))


def test_a_gradient_that_only_a_plain_call_has_is_refused_where_one_is_taken():
    tokens = torch.randint(6, (20, 4), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="Padded has a gradient in a plain call, but not"):
        mm.size(Padded(max_norm=0.1), (tokens, batch(20)[1]), samples=2)
