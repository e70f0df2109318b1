import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mmstudy.batched.objective import of_landscape
from mmstudy.core.seeds import generator
from mmstudy.manifold import rays
from mmstudy.manifold.estimate import Budget
from mmstudy.validation import landscapes


def mean_radius(radius, points=100_000):
    """Over all angles, by the midpoint rule."""
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * 2 * math.pi / points
    return radius(angle).mean().item()


ELLIPSE = torch.tensor([0.04, 0.25], dtype=torch.float64)
TRUTHS = {
    "ellipse": (
        landscapes.ellipsoid(ELLIPSE), [0.0, 0.0],
        mean_radius(lambda a: landscapes.ellipsoid_radius(ELLIPSE, torch.stack([a.cos(), a.sin()], -1), 0.03)),
    ),
    "ring": (landscapes.ring(), [1.0, 0.0], mean_radius(lambda a: landscapes.ring_radius(a, 1.0, 1.0, 0.03))),
}  # fmt: skip


@pytest.mark.parametrize("name", TRUTHS)
def test_the_mean_extent_within_five_percent_and_honest_errors(name):
    """200 repetitions of 200 rays."""
    landscape, start, truth = TRUTHS[name]
    objective, start = of_landscape(landscape, 2), torch.tensor([start], dtype=torch.float64)
    found = [rays.rays(objective, start, 0.03, Budget(200), generator(name, i)) for i in range(200)]
    sizes, errors = (np.array([one[v].item() for one in found]) for v in ("size", "size_se"))
    covered = int((abs(sizes - truth) < 1.96 * errors).sum())
    assert binom.ppf(0.001, 200, 0.95) <= covered
    assert np.median(abs(sizes / truth - 1)) < 0.05
    assert sizes.mean() == pytest.approx(truth, rel=0.02)  # rays that graze the ring's hole may miss it
    few = rays.rays(objective, start, 0.03, Budget(50), generator(name))
    many = rays.rays(objective, start, 0.03, Budget(3200), generator(name))
    assert few["size_se"].item() / many["size_se"].item() == pytest.approx(8, rel=0.35)


def test_the_estimator_carries_the_worst_status_and_refuses_where_there_is_none():
    valley = of_landscape(landscapes.ellipsoid(torch.tensor([1.0, 0.0], dtype=torch.float64)), 2)
    parents = torch.tensor([[0.0, 0.0], [9.0, 0.0], [math.nan, 0.0]], dtype=torch.float64)
    axes = lambda parents, count, generator: torch.eye(2, dtype=torch.float64).expand(len(parents), -1, -1)  # noqa: E731
    found = rays.rays(valley, parents, 0.5, Budget(2), generator("worst"), axes)
    assert found["status"].values.tolist() == ["unbounded", "outside", "nan"]
    assert found["size"].notnull().values.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="the level must be a finite loss; got nan"):
        rays.rays(valley, parents, math.nan, Budget(2), generator("worst"))
    with pytest.raises(ValueError, match=r"samples .* must be at least 2; got 1"):
        Budget(1)
