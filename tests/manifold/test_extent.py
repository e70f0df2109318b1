"""The extent along ± children, against a plain loop, at its edges, and under symmetries."""

import math

import pytest
import torch
from cases import batch, counted, mlp

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.children import grown
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.extent import CENSORED, extent, ways_of
from mmstudy.validation import landscapes, symmetries

BUDGET = Budget(5, 20)


def objective_of(networks):
    return of_networks(en.stack(networks), batch(32), minibatch=8), en.vectors(en.stack(networks))


def test_it_is_the_mean_of_rays_along_children_scanned_one_by_one():
    objective, parents = objective_of([mlp(seed=i) for i in range(2)])
    level = float(objective(parents).max()) + 0.3
    found = extent(objective, parents, level, BUDGET, generator("e"), max_multiple=16.0)
    family = grown(objective, parents, BUDGET, generator("e"))
    for i in range(2):
        centre, lengths = family[i].mean(0), []
        for way in [*(family[i] - centre), *(centre - family[i])]:
            t = torch.linspace(0, 16, 4001).to(way)
            points = parents.unsqueeze(1).repeat(1, len(t), 1)
            points[i] = centre + t.unsqueeze(1) * way
            above = objective(points)[i] > level
            lengths.append(float(t[int(above.int().argmax()) if above.any() else -1] * way.norm()))
        assert found["size"].values[i] == pytest.approx(sum(lengths) / 10, rel=0.02)
        pairs = [(lengths[j] + lengths[j + 5]) / 2 for j in range(5)]
        assert found["samples"].values[i] == pytest.approx(pairs, rel=0.05)
        error = torch.tensor(pairs).std() / 5**0.5
        assert found["size_se"].values[i] == pytest.approx(float(error), rel=0.2)


def test_its_cost_is_that_of_what_is_evaluated():
    made, parents = objective_of([mlp()])
    points, trained = [], []
    found = extent(counted(made, points, trained), parents, float(made(parents)) + 0.3, BUDGET, generator("e"))
    points = sum(points)
    assert found["cost"].item() == 3 * sum(trained) + points


@pytest.mark.parametrize("ceiling", [32.0, 1.0])
def test_a_share_of_rays_that_are_cut_off_is_a_status(ceiling):
    """A bowl whose children lie near its middle: rays that go a few child distances far are cut off."""
    bowl = of_landscape(landscapes.ellipsoid(torch.tensor([1.0, 1.0, 1.0]).double()), 3, noise=0.1)
    where = torch.zeros(1, 3, dtype=torch.float64)
    one = extent(bowl, where, 0.05, Budget(16, 100), generator("cut"), max_multiple=ceiling)
    share = one["censored"].item()
    assert one["status"].item() == ("censored" if share > CENSORED else "ok")
    assert (ceiling == 1.0) == (share > CENSORED)
    assert one["size"].notnull().all()  # a lower bound
    if ceiling == 1.0:
        whole = extent(bowl, where, 0.05, Budget(16, 100), generator("cut"), max_multiple=64.0)
        assert one["size"].item() < 0.9 * whole["size"].item()


def test_without_noise_children_stay_together_and_have_no_extent():
    bowl = of_landscape(landscapes.ellipsoid(torch.ones(2).double()), 2)
    found = extent(bowl, torch.full((1, 2), 0.1).double(), 1.0, BUDGET, generator("e"))
    assert found["status"].item() == "together"
    assert math.isnan(found["size"].item())


@pytest.mark.parametrize("count", range(2, 10))
def test_the_rounding_of_a_mean_is_no_direction(count):
    """Equal points, of one family, whose mean differs from them in the last digit; a family that has parted."""
    point = torch.randn(2, 1000, generator=generator("equal"))
    family = point.unsqueeze(1).repeat(1, count, 1)
    family[1, 0] += 1e-4
    ways, parted = ways_of(family)
    assert parted.tolist() == [False, True]
    assert (ways[0] == 1).all()
    assert ways[1, 0].norm() == pytest.approx(1e-4 * (1 - 1 / count) * 1000**0.5, rel=1e-2)


def test_diverged_children_and_a_centre_above_the_level_have_no_extent():
    bowl = of_landscape(landscapes.ellipsoid(torch.ones(2).double()), 2, noise=1.0)
    where = torch.full((1, 2), 0.1).double()
    wild = extent(bowl, where, 1.0, Budget(4, 2000, step_size=9.0), generator("e"))
    assert wild["status"].item() == "nan"
    assert math.isnan(wild["size"].item())
    away = extent(bowl, where, 0.011, Budget(3, 60, step_size=0.5), generator("e"))
    assert away["status"].item() == "outside"
    assert math.isnan(away["size"].item())


def test_permuted_neurons_leave_it_and_a_rescaling_does_not():
    network = mlp(seed=3)
    changed = [network, symmetries.permuted(network, generator("p")), symmetries.rescaled(network, generator("r"))]
    objective, parents = objective_of(changed)
    level = float(objective(parents).max()) + 0.3
    size = extent(objective, parents, level, BUDGET, generator("e"))["size"].values
    assert size[1] == pytest.approx(size[0], rel=1e-3)
    assert abs(size[2] / size[0] - 1) > 0.02
