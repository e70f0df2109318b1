import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from cases import batch, mlp
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold import volume
from mmstudy.manifold.crossings import Crossings, crossings
from mmstudy.manifold.estimate import Budget
from mmstudy.validation import landscapes

FINE = {"first": 0.1, "tolerance": 1e-3, "evaluations": 32, "checks": 10}  # the shell's hole is often grazed


def measured(loss, start, scale, count, level) -> volume.LogVolume:
    """The log-volume about one start from so many rays, drawn with this scale."""
    u, log_weight = volume.directions(scale.unsqueeze(0), count, generator("volume"))
    lines = crossings(of_landscape(loss, len(start)), start.unsqueeze(0), u, level, **FINE)
    return volume.log_volume(lines, log_weight, len(start))


def exact_lines(curvatures, u, level) -> Crossings:
    """What rays would return if they made no error."""
    radius = landscapes.ellipsoid_radius(curvatures, u, level)
    looks = torch.zeros_like(radius, dtype=torch.long)
    return Crossings(radius, radius, radius, radius, looks, looks > 0, np.full(radius.shape, "converged"))


def test_unit_balls():
    volumes = [math.exp(landscapes.log_ball(d)) for d in range(1, 5)]
    assert volumes == pytest.approx([2, math.pi, 4 * math.pi / 3, math.pi**2 / 2])


def test_an_ellipse_and_an_ellipsoid_are_semi_axes_times_pi():
    h = torch.tensor([4.0, 0.25, 1.0])  # semi-axes ½, 2 and 1 at level ½
    assert math.exp(landscapes.ellipsoid_log_volume(h[:2], 0.5)) == pytest.approx(math.pi)
    assert math.exp(landscapes.ellipsoid_log_volume(h, 0.5)) == pytest.approx(4 / 3 * math.pi)
    assert landscapes.ellipsoid_log_volume(torch.tensor([1.0, 0.0]), 0.5) == math.inf


@pytest.mark.parametrize("dim", [2, 3])
def test_the_volume_seen_in_a_shell_is_that_of_points_that_are_seen(dim):
    """Monte Carlo over a box: a point counts if the loss stays below the level on the segment to it."""
    level, count = 0.03, 100_000
    points = (torch.rand(count, dim, generator=generator("box"), dtype=torch.float64) - 0.5) * 2.6
    start = torch.zeros(dim, dtype=torch.float64)
    start[0] = 1
    worst = torch.full((count,), -math.inf, dtype=torch.float64)
    for t in torch.linspace(0, 1, 101):
        worst = torch.maximum(worst, landscapes.ring()(torch.lerp(start, points, t.double())))
    share = (worst <= level).double().mean().item()
    error = (share * (1 - share) / count) ** 0.5
    exact = math.exp(landscapes.shell_log_volume(dim, 1.0, 1.0, level))
    assert abs(share * 2.6**dim - exact) < 4 * error * 2.6**dim


@given(
    axes=st.lists(st.floats(0.05, 20), min_size=2, max_size=40),
    level=st.floats(0.01, 5),
    seed=st.integers(0, 999),
    factor=st.floats(0.1, 10),
)
def test_directions_drawn_like_the_ellipsoid_give_its_volume_exactly(axes, level, seed, factor):
    """r(u)^D ∝ (uᵀHu)^(−D/2) and w(u) ∝ (uᵀHu)^(D/2): no ray weighs more than another."""
    scale = factor * torch.tensor(axes, dtype=torch.float64)
    curvatures = (scale / factor) ** -2
    u, log_weight = volume.directions(scale.unsqueeze(0), 5, generator("exact", seed))
    found = volume.log_volume(exact_lines(curvatures, u, level), log_weight, len(axes))
    assert found.size.item() == pytest.approx(landscapes.ellipsoid_log_volume(curvatures, level), abs=1e-8)
    assert found.size_se.item() == pytest.approx(0, abs=1e-8)
    assert found.effective_samples.item() == pytest.approx(5)
    assert found.largest_weight.item() == pytest.approx(1 / 5)


LANDSCAPES = {  # loss, start, scale of the directions, level, exact log-volume
    "ellipsoid": (
        landscapes.ellipsoid(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)), [0.0, 0.0, 0.0], [1.0, 1.0, 1.0],
        0.5, landscapes.ellipsoid_log_volume(torch.tensor([4.0, 1.0, 0.25]), 0.5),
    ),
    "ellipsoid, drawn roughly like it": (
        landscapes.ellipsoid(torch.tensor([4.0, 1.0, 0.25] * 3, dtype=torch.float64)), [0.0] * 9, [0.7, 1, 1.5] * 3,
        0.5, landscapes.ellipsoid_log_volume(torch.tensor([4.0, 1.0, 0.25] * 3), 0.5),
    ),
    "ring": (landscapes.ring(), [1.0, 0.0], [1.0, 1.0], 0.03, landscapes.shell_log_volume(2, 1.0, 1.0, 0.03)),
    "shell": (
        landscapes.ring(), [1.0, 0.0, 0.0], [0.6, 1.0, 1.0], 0.03, landscapes.shell_log_volume(3, 1.0, 1.0, 0.03),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LANDSCAPES)
def test_known_volumes_within_five_percent_and_honest_errors(name):
    """200 repetitions of 1,000 rays: most within 5% of the volume, no bias, and 95% intervals that cover."""
    loss, start, scale, level, exact = LANDSCAPES[name]
    start, scale = torch.tensor(start, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    u, log_weight = volume.directions(scale.unsqueeze(0), 200 * 1000, generator("coverage", name))
    lines = crossings(of_landscape(loss, len(start)), start.unsqueeze(0), u, level, **FINE)
    columns = {f.name: getattr(lines, f.name).reshape(1000, 200).T for f in fields(lines)}
    parts = Crossings(**columns)
    found = volume.log_volume(parts, log_weight.view(1000, 200).T.contiguous(), len(start))
    z = (found.size - exact) / found.size_se
    covered = int((abs(z) < 1.96).sum())
    assert binom.ppf(0.001, 200, 0.95) <= covered, f"{covered} of 200 intervals cover the truth"
    assert abs(z.mean()) < 4 / 200**0.5
    assert 0.7 < z.std() < 1.3
    assert abs(found.size - exact).median() < 0.05


def test_the_error_falls_as_one_over_the_root_of_the_number_of_rays():
    loss, start, scale, level, _ = LANDSCAPES["ellipsoid"]
    start, scale = torch.tensor(start, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    errors = [measured(loss, start, scale, n, level).size_se.item() for n in (500, 8000)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_uniform_rays_in_many_dimensions_say_that_they_are_too_few():
    curvatures = torch.logspace(-2, 0, 200, dtype=torch.float64)
    ones = torch.ones(1, 200, dtype=torch.float64)
    u, log_weight = volume.directions(ones, 1000, generator("many"))
    found = volume.log_volume(exact_lines(curvatures, u, 0.5), log_weight, 200)
    assert found.status.item() == "few_rays"
    assert found.size.item() < landscapes.ellipsoid_log_volume(curvatures, 0.5) - 5
    assert found.largest_weight.item() > 0.1


def test_every_volume_says_how_far_it_can_be_trusted():
    flat, ring, broken = landscapes.ellipsoid(torch.tensor([1.0, 0.0])), landscapes.ring(), lambda p: p[..., 0].asin()
    ones, there, origin = torch.ones(2), torch.tensor([1.0, 0.0]), torch.zeros(2)
    assert measured(ring, there, ones, 100, 0.03).status.item() == "ok"
    assert measured(ring, there, ones, 9, 0.03).status.item() == "few_rays"
    assert measured(flat, origin, ones, 100, 0.5).status.item() == "unbounded"
    assert measured(broken, origin, ones, 100, 9.0).status.item() == "nan"
    outside = measured(ring, origin, ones, 100, 0.03)
    assert outside.status.item() == "outside"
    assert outside.size.item() == -math.inf
    u, log_weight = volume.directions(ones[None], 100, generator("coarse"))
    coarse = crossings(of_landscape(ring, 2), there[None], u, 0.03, evaluations=2, checks=1)
    assert volume.log_volume(coarse, log_weight, 2).status.item() == "at_limit"


def test_the_effective_radius_is_that_of_the_ball_of_this_volume():
    found = measured(landscapes.ellipsoid(torch.ones(7)), torch.zeros(7), torch.ones(7), 20, 0.5)
    assert found.effective_radius.item() == pytest.approx(1, rel=1e-4)
    assert found.size.item() == pytest.approx(landscapes.log_ball(7), abs=1e-3)


def test_the_volume_around_a_network_is_that_of_each_parent_and_follows_a_change_of_scale():
    """Coordinates stretched by s: the volume by Πs, whichever directions are drawn."""
    inputs, targets = batch(64)
    stacked = en.stack([mlp((3,), seed=i) for i in range(2)])
    loss, points = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    level, dim = float(loss(points).max()) + 0.3, points.shape[1]
    u, log_weight = volume.directions(torch.ones(2, dim), 400, generator("network"))
    fine = {"max_multiple": 64.0, "tolerance": 1e-4, "evaluations": 24}
    together = volume.log_volume(crossings(loss, points, u, level, **fine), log_weight, dim)
    for i in range(2):
        alone = crossings(loss, points[i : i + 1], u[i : i + 1], level, **fine)
        alone = volume.log_volume(alone, log_weight[i : i + 1], dim)
        assert together.size[i].item() == pytest.approx(alone.size.item(), abs=1e-2)
    (term,) = loss.terms
    wide = replace(loss, terms=(lambda where, owner: term(where / 2, owner),))
    twice = volume.log_volume(crossings(wide, 2 * points, 2 * u, level, **fine), log_weight, dim)
    assert twice.size.numpy() == pytest.approx(together.size.numpy() + dim * math.log(2), abs=1e-2)


def test_the_estimator_is_that_of_its_rays_and_keeps_a_parents_status():
    h = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    objective = of_landscape(landscapes.ellipsoid(h), 3)
    parents = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [math.nan, 0.0, 0.0]], dtype=torch.float64)
    found = volume.volume(objective, parents, 0.5, Budget(50), generator("estimator"), scale=h.rsqrt().expand(3, -1))
    assert found["status"].values.tolist() == ["ok", "outside", "nan"]
    assert found["size"].values[0] == pytest.approx(landscapes.ellipsoid_log_volume(h, 0.5), abs=1e-6)
    assert found["size"].isnull().values.tolist() == [False, True, True]
    uniform = volume.volume(objective, parents[:1], 0.5, Budget(4000), generator("estimator"))
    assert abs(uniform["size"].item() - landscapes.ellipsoid_log_volume(h, 0.5)) < 4 * uniform["size_se"].item()


@pytest.mark.parametrize("bad", [[1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_scale_must_be_positive(bad):
    with pytest.raises(ValueError, match="positive and finite"):
        volume.directions(torch.tensor([bad]), 3, generator("bad"))


def test_too_few_rays_and_other_weights_are_refused():
    lines = exact_lines(torch.ones(2), torch.eye(2)[None], 0.5)
    with pytest.raises(ValueError, match="at least one direction; got count=0"):
        volume.directions(torch.ones(1, 2), 0, generator("none"))
    with pytest.raises(ValueError, match="at least 2 rays; got 1"):
        volume.log_volume(exact_lines(torch.ones(2), torch.eye(2)[None, :1], 0.5), torch.zeros(1, 1), 2)
    with pytest.raises(ValueError, match=r"\(1, 2\) rays, but weights for \(1, 3\)"):
        volume.log_volume(lines, torch.zeros(1, 3), 2)
