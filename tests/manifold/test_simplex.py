import math

import numpy as np
import pytest
import torch
from cases import batch, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import binom

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.simplex import barycentric, ellipsoid_log_simplex, log_volume, simplex
from mmstudy.validation import landscapes

H = torch.tensor([4.0, 0.5, 9.0, 1.0, 0.2, 25.0], dtype=torch.float64)


def measured(landscape, parents, level, samples=8, steps=60, seed="simplex", **options):
    parents = torch.as_tensor(parents)
    objective = of_landscape(landscape, parents.shape[-1])
    return simplex(objective, parents, level, Budget(samples=samples, steps=steps), generator(seed), **options)


def origin(dim, dtype=torch.float64):
    return torch.zeros(1, dim, dtype=dtype)


def quartic(curvatures):
    """The square of an ellipsoid's loss: with as many chance errors as a loss that is no quadratic has."""
    return lambda points: landscapes.ellipsoid(curvatures)(points) ** 2


def moments(*powers) -> float:
    """E[Π xᵢ^aᵢ] of the uniform distribution on a simplex with one corner at the origin."""
    k = len(powers)
    return math.prod(map(math.factorial, powers)) * math.factorial(k) / math.factorial(k + sum(powers))


def quartic_log_simplex(curvatures, level) -> float:
    """For two corners, by a search over G = W H Wᵀ, with the exact moments E[(xᵀGx)²] / 4 = ℓ."""

    def minus(free):
        a, c, b = math.exp(free[0]), math.exp(free[1]), free[2]  # [[a, b], [b, c]]
        terms = a**2 * moments(4, 0) + c**2 * moments(0, 4) + (2 * a * c + 4 * b**2) * moments(2, 2)
        mean = (terms + 4 * a * b * moments(3, 1) + 4 * b * c * moments(1, 3)) / 4
        scale = (level / mean) ** 0.5  # of G
        return -math.log(max(1e-12, scale**2 * (a * c - b**2))) / 2

    best = -minimize(minus, [0.0, 0.0, -0.1], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun
    return best - float(curvatures.sort().values[:2].log().sum()) / 2 - math.log(2)


def test_one_edge_and_a_triangle_by_hand():
    """∫₀¹ ½ h (x w)² dx = h w²/6 = ℓ; in an isotropic loss the best triangle is isosceles."""
    assert ellipsoid_log_simplex(H, 1, 0.5) == pytest.approx(math.log((6 * 0.5 / 0.2) ** 0.5))
    area = max(
        w * w * math.sin(angle) / 2  # legs w at this angle: E[L] = ½ (2 w² E[x²] + 2 w² cos E[xy]) = ℓ
        for angle in np.linspace(0.1, 3.1, 30_001)
        for w in [(2 * 0.5 / (2 * moments(2, 0) + 2 * math.cos(angle) * moments(1, 1))) ** 0.5]
    )
    assert ellipsoid_log_simplex(torch.ones(7), 2, 0.5) == pytest.approx(math.log(area), abs=1e-7)
    assert ellipsoid_log_simplex(torch.tensor([1.0, 0.0]), 2, 0.5) == math.inf


@given(corners=st.integers(1, 5), level=st.floats(0.01, 5), seed=st.integers(0, 999))
def test_no_simplex_beats_the_truth_and_one_meets_it(corners, level, seed):
    covariance = (torch.eye(corners, dtype=torch.float64) + 1) / ((corners + 1) * (corners + 2))

    def to_level(w):
        return w * (level / (0.5 * ((covariance @ w) * w * H).sum())) ** 0.5

    truth = ellipsoid_log_simplex(H, corners, level)
    random = torch.randn(corners, 6, generator=generator("beat", seed), dtype=torch.float64)
    flattest = torch.zeros(corners, 6, dtype=torch.float64)
    flattest[range(corners), H.argsort()[:corners]] = H.sort().values[:corners].rsqrt()
    best = torch.linalg.solve(torch.linalg.cholesky(covariance).mT, flattest)
    assert log_volume(to_level(random)).item() <= truth + 1e-9
    assert log_volume(to_level(best)).item() == pytest.approx(truth, abs=1e-9)


@given(k=st.integers(1, 6), sets=st.integers(1, 3), seed=st.integers(0, 999))
def test_every_set_of_points_has_the_moments_of_the_simplex(k, sets, seed):
    x = barycentric(sets, (k + 1) * (k + 2), k, generator("points", seed))
    second = (x.mT @ x) / x.shape[1]
    wanted = (torch.eye(k, dtype=torch.float64) + 1) / ((k + 1) * (k + 2))
    assert torch.allclose(x.mean(1), torch.full((sets, k), 1 / (k + 1), dtype=torch.float64))
    assert torch.allclose(second, wanted.expand(sets, k, k))


def test_the_points_are_uniform():
    x = barycentric(2000, 64, 3, generator("uniform"))
    for power in (3, 4):
        means = (x**power).mean(1)[:, 0]
        assert abs(means.mean().item() / moments(power, 0, 0) - 1) < 0.02  # matching leaves a bias of about 1/points
    outside = (x < 0).any(-1) | (x.sum(-1) > 1)
    assert outside.double().mean() < 0.12 and x.min() > -0.2 and x.sum(-1).max() < 1.2  # few, and near


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("corners", [1, 2, 3, 5])
def test_ellipsoids_within_a_hundredth(corners, dtype):
    found = measured(landscapes.ellipsoid(H.to(dtype)), origin(6, dtype), 0.5, corners=corners, points=28)
    truth = ellipsoid_log_simplex(H, corners, 0.5)
    assert found["status"].item() == "ok"
    assert found["size"].item() == pytest.approx(truth, abs=0.01)
    assert found["best"].item() <= truth + 1e-4
    assert found["mean_loss"].item() == pytest.approx(0.5, rel=1e-4)
    assert found["effective_edge"].item() == pytest.approx(
        math.exp((found["size"].item() + math.lgamma(corners + 1)) / corners)
    )


@settings(max_examples=15, deadline=None)
@given(
    axes=st.lists(st.floats(0.3, 3), min_size=3, max_size=8),
    level=st.floats(0.01, 10),
    factor=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_rotated_and_stretched_ellipsoids(axes, level, factor, seed):
    dim, h = len(axes), torch.tensor(axes, dtype=torch.float64) ** -2
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator("turn", seed), dtype=torch.float64))[0]
    found = measured(
        lambda p: landscapes.ellipsoid(h)(p @ turn / factor), origin(dim), level, samples=3, corners=2, seed=str(seed)
    )
    assert found["size"].item() == pytest.approx(ellipsoid_log_simplex(h, 2, level) + 2 * math.log(factor), abs=0.02)


def test_a_triangle_in_a_quartic_within_five_percent_of_its_area():
    found = measured(quartic(H), origin(6), 0.3, samples=64, corners=2)
    truth = quartic_log_simplex(H, 0.3)
    assert found["size"].item() == pytest.approx(truth, abs=0.05)
    assert abs(found["size"].item() - truth) < 4 * found["size_se"].item() + 0.005


def test_intervals_cover_and_the_error_falls_as_one_over_the_root_of_the_samples():
    """An edge in a quartic, ∫₀¹ ¼ h² (x w)⁴ dx = h² w⁴/20 = ℓ: 200 repetitions of 32 simplexes."""
    h = torch.tensor([1.0, 0.2, 2.0], dtype=torch.float64)
    truth = math.log(20 * 0.3 / 0.2**2) / 4
    found = measured(quartic(h), origin(3), 0.3, samples=200 * 32, steps=30, corners=1, points=64)
    groups = found["samples"].values.reshape(200, 32)
    error = groups.std(1, ddof=1) / 32**0.5
    z = (groups.mean(1) - truth) / error
    covered = int((abs(z) < 1.96).sum())
    assert 0.9 * 200 <= covered <= 0.99 * 200, f"{covered} of 200 intervals cover the truth"
    assert binom.ppf(0.001, 200, 0.94) <= covered
    assert abs(z.mean()) < 4 / 200**0.5
    assert 0.8 < z.std() < 1.2
    assert error.mean() / found["size_se"].item() == pytest.approx(200**0.5, rel=0.05)


def test_the_longest_edge_in_a_ring():
    """From (1, 0), where the mean loss of the edge in a direction passes the level, over directions about the chord.

    A few starts end at a shorter edge, which is a maximum of its own: hence the median.
    """
    x = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000

    def mean(length, angle):
        points = torch.stack([1 + x * length * math.cos(angle), x * length * math.sin(angle)], dim=-1)
        return landscapes.ring()(points).mean().item()

    lengths = [brentq(lambda t, a=a: mean(t, a) - 0.02, 1e-3, 3.0) for a in np.linspace(0.45, 0.9, 46) * math.pi]
    found = measured(landscapes.ring(), [[1.0, 0.0]], 0.02, samples=32, corners=1, points=128)
    assert found["samples"].median().item() == pytest.approx(math.log(max(lengths)), abs=0.05)


def test_a_parent_that_is_no_minimum():
    """½θ² from θ = −1 to b: (b² − b + 1)/6 = ℓ, through the minimum and beyond, or a little back."""
    found = measured(landscapes.ellipsoid(torch.ones(1)), [[-1.0]], 0.7, samples=20, corners=1)
    b = [(1 + s * 13.8**0.5) / 2 for s in (1, -1)]
    assert found["best"].item() == pytest.approx(math.log(b[0] + 1), abs=1e-3)
    assert found["samples"].min().item() == pytest.approx(math.log(-1 - b[1]), abs=1e-3)


def test_every_simplex_says_how_far_it_can_be_trusted():
    bowl = landscapes.ellipsoid(H)
    flat = landscapes.ellipsoid(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    assert measured(bowl, origin(6), 0.5)["status"].item() == "ok"
    assert measured(flat, origin(3), 0.5)["status"].item() == "unbounded"
    assert measured(lambda p: 0 * p.sum(-1), origin(3), 0.5)["status"].item() == "unbounded"
    stiff = landscapes.ellipsoid(torch.logspace(-4, 0, 60, dtype=torch.float64))
    assert measured(stiff, origin(60), 0.5, steps=20)["status"].item() == "at_limit"
    assert measured(bowl, origin(6), 0.5, steps=1)["status"].item() == "at_limit"
    jump = lambda p: bowl(p) + (p[..., 0] > 0.1)  # noqa: E731
    assert measured(jump, origin(6), 0.5)["status"].item() in ("ok", "at_limit")
    hole = lambda p: torch.where(p.norm(dim=-1) > 0, math.nan, bowl(p))  # noqa: E731
    nowhere = measured(hole, origin(6), 0.5)
    assert nowhere["status"].item() == "nan" and nowhere["size"].isnull().item()


def test_a_loss_that_is_no_number_far_away_leaves_a_simplex_within():
    walled = lambda p: torch.where(p.norm(dim=-1) > 12, math.nan, landscapes.ellipsoid(H)(p))  # noqa: E731
    found = measured(walled, origin(6), 0.5, corners=2)
    assert found["status"].item() != "nan"
    assert found["best"].item() <= ellipsoid_log_simplex(H, 2, 0.5) + 1e-6


def test_parents_do_not_disturb_each_other():
    parents = torch.zeros(4, 6, dtype=torch.float64)
    parents[1], parents[2, 0], parents[3, 1] = 5.0, math.nan, 0.3
    found = measured(landscapes.ellipsoid(H), parents, 0.5)
    assert found["status"].values.tolist() == ["ok", "outside", "nan", "ok"]
    assert found["size"].isnull().values.tolist() == [False, True, True, False]
    for i in (0, 3):
        alone = measured(landscapes.ellipsoid(H), parents[i : i + 1], 0.5)
        assert found["samples"].values[i] == pytest.approx(alone["samples"].values[0], abs=1e-6)


def test_the_cost_is_what_was_evaluated():
    spent = [0]

    def counting(points):
        spent[0] += (3 if points.requires_grad else 1) * points[..., 0].numel()
        return landscapes.ellipsoid(H)(points)

    found = measured(counting, torch.zeros(2, 6, dtype=torch.float64), 0.5, samples=3, steps=7, points=10)
    assert found["cost"].values.tolist() == [spent[0] / 2] * 2


def test_simplexes_of_networks_meet_the_level_and_grow_with_it():
    inputs, targets = batch(32, dtype=torch.float64)
    stacked = en.stack([mlp((5,), seed=i, dtype=torch.float64) for i in range(2)])
    objective, parents = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    level = float(objective(parents).max()) + 0.05  # low enough to be met early, far from where the steps run out
    budget = Budget(samples=4, steps=15)
    low, high = (simplex(objective, parents, level + d, budget, generator("net"), corners=2) for d in (0, 0.4))
    assert np.isin(low["status"].values, ["ok", "at_limit"]).all()
    assert low["mean_loss"].values == pytest.approx(np.full(2, level), rel=0.05)
    assert (high["size"] > low["size"] + 0.3).all()
    alone = simplex(objective, parents[:1], level, budget, generator("net"), corners=2)
    assert alone["size"].item() == pytest.approx(low["size"].values[0], abs=1e-3)


@pytest.mark.parametrize("options", [{"corners": 0}, {"corners": 7}, {"points": 9}, {"max_radius": 0.0}])
def test_what_cannot_be_a_simplex_is_refused(options):
    with pytest.raises(ValueError, match=r"needs 1 to 6 corners|as many parameters as corners"):
        measured(landscapes.ellipsoid(H), origin(6), 0.5, **options)
