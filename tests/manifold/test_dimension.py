import math

import pytest
import torch
from cases import batch, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.dimension import AWAY, _projection, _rotation, dimension
from mmstudy.manifold.estimate import Budget
from mmstudy.validation import landscapes


def stiff(curved, flat, dtype=torch.float64):
    """½ ‖first `curved` coordinates‖²."""
    return landscapes.ellipsoid(torch.cat([torch.ones(curved), torch.zeros(flat)]).to(dtype))


def measured(landscape, point, level, samples=16, steps=40, name=0, **options):
    point = torch.as_tensor(point, dtype=torch.float64) if isinstance(point, list) else point
    objective = of_landscape(landscape, len(point))
    return dimension(objective, point[None], level, Budget(samples, steps), generator("dimension", name), **options)


def exact_threshold(curved, flat, share):
    """E[d] for the stiff landscape, `share` the level over the loss of a start with all its length in stiff directions.

    Of a random unit vector of k + f dimensions, d random directions that may be used leave a squared length in the
    stiff ones that is Beta((k − d)/2, (f + d)/2); P(d fails) is the chance that this exceeds the share.
    """
    return sum(beta.sf(share, (curved - d) / 2, (flat + d) / 2) if flat + d else 1.0 for d in range(curved))


def test_projections_are_orthogonal_of_the_right_dimension_and_nested():
    rotation = _rotation(3, 11, generator("rotation"), torch.zeros(1, dtype=torch.float64))
    unit = torch.eye(11, dtype=torch.float64).unsqueeze(1).expand(11, 3, 11)
    small, large = (
        _projection(rotation, (torch.arange(11) < d).expand(11, 3, 11))(unit).transpose(0, 1) for d in (4, 7)
    )
    torch.testing.assert_close(small, small.mT)
    torch.testing.assert_close(small @ small, small)
    torch.testing.assert_close(large @ small, small)
    assert torch.linalg.matrix_rank(small).tolist() == [4, 4, 4]
    assert torch.linalg.matrix_rank(large).tolist() == [7, 7, 7]
    assert (small[0] - small[1]).norm() > 0.5


@pytest.mark.parametrize("dim", [2, 3, 16, 63, 127])
def test_the_rotation_has_no_favourite(dim):
    """The share of a fixed vector within d random directions has the mean d/D and the variance of a Beta."""
    count, d = 20_000, max(1, dim // 3)
    rotation = _rotation(count, dim, generator("uniform", dim), torch.zeros(1, dtype=torch.float64))
    within = _projection(rotation, (torch.arange(dim) < d).expand(1, count, dim))
    for vector in (torch.eye(dim)[0], torch.ones(dim) / dim**0.5):
        share = within(vector.double().expand(1, count, dim)).square().sum(-1)[0]
        exact = beta(d / 2, (dim - d) / 2)
        assert abs(float(share.mean()) - d / dim) < 4.5 * exact.std() / count**0.5
        assert float(share.var()) == pytest.approx(exact.var(), rel=0.1)


@settings(max_examples=6)
@given(curved=st.integers(1, 9), flat=st.integers(0, 9), radius=st.floats(0.1, 10), scale=st.floats(0.1, 10))
def test_near_its_minimum_a_flat_subspace_has_its_dimension(curved, flat, radius, scale):
    loss = lambda points: scale * stiff(curved, flat)(points)  # noqa: E731
    level = 1e-6 * scale * radius**2
    found = measured(loss, [0.0] * (curved + flat), level, steps=100, radius=radius)
    assert found["status"].item() == "ok"
    assert found["size"].item() == pytest.approx(flat, abs=0.3)
    assert found["start_radius"].item() == pytest.approx(radius)


@pytest.mark.parametrize(("curved", "flat", "level"), [(6, 4, 0.1), (12, 8, 0.02)])
def test_known_thresholds_within_five_percent_and_honest_errors(curved, flat, level):
    """200 repetitions of 32 starts at radius 1: no bias, and 95% intervals that cover."""
    dim = curved + flat
    found = measured(stiff(curved, flat), [0.0] * dim, level, 200 * 32, 2 * curved, radius=1.0)
    parts = torch.as_tensor(found["samples"].values).view(200, 32)
    exact = dim - exact_threshold(curved, flat, 2 * level)
    z = (parts.mean(1) - exact) / (parts.std(1) / 32**0.5)
    covered = int((z.abs() < 1.96).sum())
    assert binom.ppf(0.001, 200, 0.95) <= covered <= 198, f"{covered} of 200 intervals cover the truth"
    assert abs(float(z.mean())) < 4 / 200**0.5
    assert (parts.mean(1) / exact - 1).abs().median() < 0.05
    assert found["size"].item() == pytest.approx(float(parts.mean()))
    assert found["threshold"].item() == pytest.approx(dim - float(parts.mean()))


def test_the_error_is_that_of_the_samples_and_falls_as_one_over_the_root_of_their_number():
    errors = [measured(stiff(12, 8), [0.0] * 20, 0.1, n, 20, radius=1.0)["size_se"].item() for n in (100, 1600)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("level", [1e-3, 10.0])
def test_by_default_the_start_is_thrice_as_far_as_the_exit_and_the_level_plays_no_part(level):
    """Then the loss of every start is 9 ℓ, wherever it lies."""
    found = measured(stiff(12, 8), [0.0] * 20, level, 2000, 20)
    threshold = 12 - sum(beta.cdf(AWAY**-2, (12 - d) / 2, d / 2) for d in range(1, 12))
    assert abs(found["threshold"].item() - threshold) < 4 * found["size_se"].item()
    assert found["start_radius"].item() == pytest.approx(AWAY * (2 * level * 20 / 12) ** 0.5, rel=0.1)


def test_an_uneven_ellipsoid_against_least_squares():
    """The smallest loss in a subspace is a linear system's: the slow and obvious way."""
    curvatures, level, count = torch.logspace(-1, 1, 10, dtype=torch.float64), 0.05, 64
    found = measured(landscapes.ellipsoid(curvatures), [0.0] * 10, level, count, 60, radius=1.0)
    stream = generator("dimension", 0)
    draw = torch.randn(count, 10, generator=stream, dtype=torch.float64)
    start = draw / draw.norm(dim=1, keepdim=True)
    rotation = _rotation(count, 10, stream, start)
    enough = torch.full((count,), 10)
    for d in reversed(range(10)):
        unit = torch.eye(10, dtype=torch.float64).unsqueeze(1).expand(10, count, 10)
        columns = _projection(rotation, (torch.arange(10) < d).expand(10, count, 10))(unit).permute(1, 2, 0)
        root = curvatures.sqrt()
        a, b = root[:, None] * columns, root * start
        rest = b - (a @ torch.linalg.pinv(a, rtol=1e-9) @ b.unsqueeze(-1)).squeeze(-1)
        enough = torch.where(0.5 * rest.square().sum(-1) <= level, d, enough)
    assert found["samples"].values[0].tolist() == (10 - enough).tolist()


@pytest.mark.parametrize(("rows", "columns", "hidden"), [(3, 3, 1), (3, 4, 2), (3, 3, 3)])
def test_the_factorizations_have_their_dimension(rows, columns, hidden):
    stream = generator("factors", rows, columns, hidden)
    left, right = (torch.linalg.qr(torch.randn(n, hidden, generator=stream).double())[0] for n in (rows, columns))
    target = left @ right.T
    loss, point = landscapes.factorization(target, hidden), landscapes.factorization_minimum(target, hidden)
    found = measured(loss, point, 1e-12, 32, 100, radius=1e-3)  # so near, the set is flat
    exact = landscapes.factorization_dimension(rows, columns, hidden, hidden)
    assert found["status"].item() == "ok"
    assert found["size"].item() == pytest.approx(exact, rel=0.05)


def test_two_copies_of_a_neuron_have_the_dimension_of_their_flat_directions():
    weight = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    inputs = torch.randn(200, 3, generator=generator("copies"), dtype=torch.float64)
    point = landscapes.duplicated_minimum(weight, 0.8, 0.6)
    found = measured(landscapes.duplicated(inputs, weight, 1.4), point, 1e-12, 32, 100, radius=1e-3)
    assert found["size"].item() == pytest.approx(len(landscapes.duplicated_flat(weight, 0.8, 0.6)), rel=0.05)


def test_a_shell_is_seen_through_its_curvature():
    """From inside any line meets it; from outside, s, d directions do if (1 − Beta(d/2, (10 − d)/2)) ‖s‖² ≤ 1."""
    point, radius, count = [1.0] + [0.0] * 9, 0.3, 2000
    found = measured(landscapes.ring(), point, 1e-10, count, 60, radius=radius)
    draw = torch.randn(count, 10, generator=generator("dimension", 0), dtype=torch.float64)
    start = torch.tensor(point).double() + radius * draw / draw.norm(dim=1, keepdim=True)
    missing = (1 - start.square().sum(1) ** -1).clamp(min=0).numpy()
    exact = 1 + sum(beta.cdf(missing, d / 2, (10 - d) / 2).mean() for d in range(1, 10))
    assert abs(found["threshold"].item() - exact) < 4 * found["size_se"].item()
    assert found["size_se"].item() < 0.05
    assert exact > 1.5


def test_every_dimension_says_how_far_it_can_be_trusted():
    origin = [0.0] * 6
    valley = landscapes.ellipsoid(torch.logspace(-2, 0, 6, dtype=torch.float64))
    limited = measured(valley, origin, 1e-12, steps=1, radius=1.0)
    assert limited["status"].item() == "at_limit"
    assert limited["size"].item() == 0
    assert measured(valley, origin, 1e-6, steps=100, radius=1.0)["status"].item() == "ok"
    for options in ({}, {"radius": 1.0}):
        flat = measured(stiff(0, 6), origin, 0.5, **options)
        assert flat["status"].item() == "unbounded"
        assert flat["size"].item() == 6
    assert measured(landscapes.ring(), origin, 0.1)["status"].item() == "outside"
    assert measured(lambda p: p[..., 0].asin(), [2.0, 0.0], 9.0)["status"].item() == "nan"
    broken = lambda p: torch.where(p.norm(dim=-1) < 1, p.square().sum(-1), torch.nan)  # noqa: E731
    assert measured(broken, origin, 0.01, radius=3.0)["status"].item() == "at_limit"
    assert measured(broken, origin, 0.01)["status"].item() == "ok"  # starts within the hole: 3 × 0.1


def test_a_parent_alone_and_among_others_is_the_same_and_bad_ones_poison_none():
    objective, draws = of_landscape(landscapes.ring(), 5), lambda: generator("alone")
    here = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    parents = torch.stack([here, 9 * here, math.nan * here, here.roll(1)])
    together = dimension(objective, parents, 0.01, Budget(8, 20), draws())
    alone = dimension(objective, parents[:1], 0.01, Budget(8, 20), draws())
    assert together["status"].values.tolist() == ["ok", "outside", "nan", "ok"]
    assert together["samples"].values[0].tolist() == alone["samples"].values[0].tolist()
    for name in ("size", "size_se", "threshold", "start_radius"):
        assert together[name].values[0] == alone[name].item()
        assert together[name].isnull().values.tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_have_a_dimension_that_falls_with_the_distance_and_grows_with_the_level(dtype):
    stacked = en.stack([mlp((6,), seed=i, dtype=dtype) for i in range(2)])
    objective, points = of_networks(stacked, batch(64, dtype=dtype)), en.vectors(stacked)
    level = float(objective(points).max())
    sizes = {
        (r, rise): dimension(objective, points, level + rise, Budget(8, 10), generator("networks"), radius=r)
        for r, rise in ((5.0, 0.05), (20.0, 0.05), (5.0, 0.3))
    }
    assert all((found["status"] == "ok").all() for found in sizes.values())
    assert (sizes[5.0, 0.05]["size"] > sizes[20.0, 0.05]["size"] + 2).all()
    assert (sizes[5.0, 0.3]["size"] > sizes[5.0, 0.05]["size"]).all()
    cost = int(sizes[5.0, 0.05]["cost"].values.max())
    rounds = math.ceil(math.log2(points.shape[1] + 1))
    assert cost == 64 * (1 + 8 + 8 * rounds * (3 + 10 * (1 + 3)))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_the_radius_must_be_one(radius):
    with pytest.raises(ValueError, match=f"positive and finite; got {radius}"):
        measured(landscapes.ring(), [1.0, 0.0], 0.1, radius=radius)
