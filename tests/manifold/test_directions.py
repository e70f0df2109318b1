import pytest
import torch
from cases import batch, mlp
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.manifold import directions
from mmstudy.manifold.crossings import crossings
from mmstudy.validation import landscapes


def test_uniform_directions_are_unit_and_the_same_for_all_parents():
    u = directions.uniform(torch.zeros(3, 5), 4000, generator("uniform"))
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(3, 4000))
    assert torch.equal(u[0], u[2])
    assert u[0].mean(0).abs().max() < 4 / (5 * 4000) ** 0.5
    torch.testing.assert_close(u[0].T @ u[0] / 4000, torch.eye(5) / 5, atol=0.02, rtol=0)


def test_directions_along_children_and_their_differences():
    offspring = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]]])
    away = directions.from_centre(offspring)
    assert away.tolist() == [[[2, -1], [-1, 2], [-1, -1], [-2, 1], [1, -2], [1, 1]]]
    assert directions.differences(offspring).tolist() == [[[3, -3], [0, 3], [-3, 0]]]


def test_a_preconditioner_is_the_root_of_the_inverse_curvature():
    h = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    objective, start = of_landscape(landscapes.ellipsoid(h), 4), torch.zeros(2, 4, dtype=torch.float64)
    scale = directions.preconditioner(objective, start, 3, generator("scale"), floor=0.01)
    exact = torch.tensor([4.0, 1.0, 0.25, 0.04], dtype=torch.float64) ** -0.5  # a flat one is kept at the floor
    torch.testing.assert_close(scale, exact.expand(2, -1))


def test_filter_normalized_directions_have_the_parents_norms():
    stacked = en.stack([mlp(seed=i) for i in range(2)])
    u = directions.filter_normalized(stacked, en.vectors(stacked), 3, generator("filters"))
    assert u.shape == (2, 3, en.vectors(stacked).shape[1])
    for i in range(2):
        for j in range(3):
            network = mlp()
            nn.utils.vector_to_parameters(u[i, j], network.parameters())
            for drawn, parent in zip(network.parameters(), mlp(seed=i).parameters(), strict=True):
                if drawn.ndim > 1:
                    torch.testing.assert_close(drawn.norm(dim=1), parent.norm(dim=1))
                else:
                    assert (drawn == 0).all()


def test_multiples_of_filter_normalized_directions_do_not_see_a_rescaling_of_relus():
    inputs, targets = batch(64)
    plain, scaled = mlp(), mlp()
    for net in (plain, scaled):
        for layer in net.hidden:
            layer.bias.data.zero_()
    scaled.hidden[0].weight.data *= 4
    scaled.hidden[1].weight.data /= 4
    multiples = []
    for net in (plain, scaled):
        stacked = en.stack([net])
        u = directions.filter_normalized(stacked, en.vectors(stacked), 6, generator("same"))
        loss, start = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
        lines = crossings(loss, start, u, float(loss(start)) + 0.3, 0.5, 4.0)
        assert (lines.status == "converged").any()
        multiples.append(lines.multiple.numpy())
    assert multiples[0] == pytest.approx(multiples[1], rel=1e-3)


def test_filters_of_a_convolution_are_its_output_channels():
    nets = [nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2)]
    stacked = en.stack([initialize(net, generator("convolution", i)) for i, net in enumerate(nets)])
    u = directions.filter_normalized(stacked, en.vectors(stacked), 2, generator("filters"))
    drawn = en.at(stacked, u).parameters
    for name, parameter in stacked.parameters.items():
        twice = parameter.repeat_interleave(2, dim=0)  # two directions for each parent
        if parameter.ndim > 2:
            torch.testing.assert_close(drawn[name].flatten(2).norm(dim=2), twice.flatten(2).norm(dim=2))
            assert not torch.equal(drawn[name][0], drawn[name][1])
        else:
            assert (drawn[name] == 0).all()
    assert torch.equal(u, directions.filter_normalized(stacked, en.vectors(stacked), 2, generator("filters")))
