"""Losses that people really have: weighted, masked, misread; each gave a wrong number or a crash once."""

import dataclasses

import pytest
import torch
from cases import batch, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mmstudy.batched import costs, engine, scoring, training
from mmstudy.batched import ensemble as en
from mmstudy.batched.connectivity import plane
from mmstudy.batched.determinism import check
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator


def data(examples: int = 1500, classes: int = 2) -> tuple[Tensor, Tensor]:
    """Examples of which the first 700 are of class 1."""
    random = generator("losses")
    targets = torch.zeros(examples, dtype=torch.long)
    targets[:700] = 1
    return torch.randn(examples, 5, generator=random) + targets.unsqueeze(1), targets


def weighted(model, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 20.0]))


def ignoring(model, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], ignore_index=1)


def masked(model, batch) -> Tensor:
    wanted = batch[1] == 1
    return F.cross_entropy(model(batch[0])[wanted], batch[1][wanted]) if wanted.any() else model(batch[0]).sum() * 0


def without_branch(model, batch) -> Tensor:
    """A masked mean by a boolean index, which depends on numbers."""
    wanted = batch[0][:, 0] > -9
    return F.cross_entropy(model(batch[0])[wanted], batch[1][wanted])


def mean(model, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def classifiers(count: int = 2) -> list[nn.Module]:
    nets = [nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(count)]
    with torch.no_grad():
        for seed, net in enumerate(nets):
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator("classifier", seed)) / 2)
    return nets


@pytest.mark.parametrize("loss_fn", [weighted, ignoring, masked, mean])
def test_a_loss_that_is_no_mean_over_examples_is_that_of_the_whole(loss_fn):
    nets, examples = classifiers(), data()
    with torch.no_grad():
        expected = torch.stack([loss_fn(net, examples) for net in nets]).double()
    stacked = en.stack(nets)
    torch.testing.assert_close(en.losses(stacked, examples, loss_fn), expected, rtol=1e-5, atol=1e-6)
    objective = of_networks(stacked, examples, loss_fn, minibatch=32)
    torch.testing.assert_close(objective(en.vectors(stacked)), expected, rtol=1e-5, atol=1e-6)
    assert len(objective.terms) == 1
    value, gradient = objective.gradient(en.vectors(stacked))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    for net, found in zip(nets, gradient, strict=True):
        plain = torch.autograd.grad(loss_fn(net, examples), list(net.parameters()))
        torch.testing.assert_close(found, torch.cat([g.flatten() for g in plain]), rtol=1e-4, atol=1e-5)
    check(stacked, examples, loss_fn)


def test_weights_are_noticed_where_all_examples_have_one_loss():
    """A new head of zeros: the parts agree with the whole, whatever the weights; a step further they don't."""
    net, examples = classifiers(1)[0], data()
    with torch.no_grad():
        net[2].weight.zero_(), net[2].bias.zero_()
    assert len(of_networks(en.stack(net), examples, weighted, minibatch=32).terms) == 1


@pytest.mark.parametrize("loss_fn", [masked, without_branch])
def test_a_masked_loss_trains_two_networks(loss_fn):
    nets, examples = classifiers(), data(64)
    order = training.minibatches([generator("order", k) for k in range(2)], 64, 4, 16)
    check(en.stack(nets), examples, loss_fn)
    ((_, found, _),) = training.train(
        en.stack(nets), examples, order, training.constant(0.1, 4), loss_fn=loss_fn, momentum=0.0
    )
    for k, net in enumerate(nets):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for some in order[k]:
            optimizer.zero_grad()
            loss_fn(net, (examples[0][some], examples[1][some])).backward()
            optimizer.step()
        expected = torch.cat([p.detach().flatten() for p in net.parameters()])
        torch.testing.assert_close(en.vectors(found)[k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6, 3), (6, 1)), ((6, 3), (3,))])
def test_regression_does_not_broadcast(shapes):
    outputs, targets = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match="targets must have the shape of the outputs"):
        en.regression(lambda x: outputs, (outputs, targets))


@pytest.mark.parametrize(
    ("outputs", "targets"), [((6, 5, 4), (6, 4)), ((6, 5, 4), (6,)), ((6, 2), (6, 1)), ((3,), (3,))]
)
def test_classification_has_its_classes_last(outputs, targets):
    with pytest.raises(ValueError, match="classes must be the outputs' last axis"):
        en.classification(lambda x: torch.zeros(outputs), (torch.zeros(6, 1), torch.zeros(targets, dtype=torch.long)))


class Tempered(nn.Module):
    """A learnable temperature, a number without dimensions, and a parameter without numbers."""

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        self.linear, self.empty = nn.Linear(5, 2), nn.Parameter(torch.zeros(0, 3))
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, x):
        return self.linear(x) / self.temperature + self.empty.sum()


@pytest.mark.parametrize("count", [1, 2])
def test_parameters_without_dimensions_or_numbers(count):
    nets, examples = [Tempered(2.0 + k) for k in range(count)], data(40)
    stacked = en.stack(nets)
    assert en.vectors(stacked).shape == (count, 13)
    with torch.no_grad():
        expected = torch.stack([mean(net, examples) for net in nets]).double()
    again = en.at(stacked, en.vectors(stacked))
    torch.testing.assert_close(en.losses(again, examples), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scoring.example_losses(stacked, examples).mean(1), expected, rtol=1e-5, atol=1e-6)
    order = training.minibatches([generator("order", k) for k in range(count)], 40, 3, 8)
    ((_, trained, _),) = training.train(stacked, examples, order, training.constant(0.1, 3))
    for k, (member, net) in enumerate(zip(trained.members(), nets, strict=True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for some in order[k]:
            optimizer.zero_grad()
            mean(net, (examples[0][some], examples[1][some])).backward()
            optimizer.step()
        torch.testing.assert_close(member.temperature, net.temperature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_training_leaves_the_mode_as_it_was(mode):
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train(mode)
    order = training.minibatches([generator("order")], 40, 60, 8)
    for _ in training.train(en.stack(net), data(40), order, training.constant(0.1, 60), milestones=[1, 30]):
        assert [module.training for module in net.modules()] == [mode] * 4
    assert net.training == mode


@dataclasses.dataclass
class Weighted:
    """A loss that is a dataclass, and so has no hash."""

    weight: float

    def __call__(self, model, batch) -> Tensor:
        return self.weight * F.cross_entropy(model(batch[0]), batch[1])


def test_a_dataclass_is_a_loss():
    (net,), examples = classifiers(1), data(40)
    found = en.losses(en.stack(net), examples, Weighted(3.0))
    torch.testing.assert_close(found.item(), 3 * mean(net, examples).item(), rtol=1e-5, atol=1e-6)


def test_a_module_is_no_loss():
    with pytest.raises(TypeError, match=r"function loss_fn\(model, batch\).*CrossEntropyLoss"):
        en.losses(en.stack(classifiers()), data(40), nn.CrossEntropyLoss())


def test_one_network_is_an_ensemble_of_one_and_others_are_refused():
    (net,) = classifiers(1)
    assert len(en.stack(net)) == 1
    for wrong in (None, "network", [net, None], 3):
        with pytest.raises(TypeError, match="Module"):
            en.stack(wrong)


def test_points_belong_to_parents_that_there_are():
    nets = en.stack([nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2)) for _ in range(2)])
    objective, points = of_networks(nets, data(40), minibatch=8), en.vectors(nets)
    for function in (objective, objective.gradient):
        with pytest.raises(ValueError, match="of 2 parents"):
            function(points[[0, 1, 1]])


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_curvature_of_weight_normalization_is_right(dim):
    """torch's own second derivative is wrong on the CPU; finite differences of the gradient say what is right."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 4).double(), dim=None if dim == -1 else dim)
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 2).double())
    examples = tuple(t.double() if t.is_floating_point() else t for t in data(60))
    objective = of_networks(en.stack(net), examples, minibatch=8)
    here = en.vectors(en.stack(net))
    ways = torch.randn(1, 3, here.shape[1], generator=generator("ways"), dtype=torch.float64)
    found = objective.hessian_vector(here, ways)
    step = 1e-5
    ahead, behind = (objective.gradient(here.unsqueeze(1) + sign * step * ways)[1] for sign in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("third", [[2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
def test_corners_on_one_line_span_no_plane(third):
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], third])
    grid = torch.linspace(0, 1, 3)
    with pytest.raises(ValueError, match="on one line"):
        plane(lambda points: points.sum(-1), corners, grid, grid)


def test_costs_of_shared_and_own_batches_are_told_apart():
    nets, examples = en.stack(classifiers()), data(32)
    for shared in (True, False):
        taken = costs.cost(nets.network, nets.parameters, nets.buffers, examples, without_branch, shared)
        assert taken.batches == shared


def test_perceptrons_know_their_whole():
    """What is known to be a mean is not tried, and comes to the bits that it always did."""
    nets, examples = en.stack([mlp(seed=s) for s in range(2)]), batch(1200)
    parts = en.parts_of(nets, examples, en.classification, "frozen")
    assert [engine.count(part) for part in parts] == [512, 512, 176]
