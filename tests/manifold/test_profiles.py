"""Crossings that are read from the loss at fixed places, against what is known and against those that are searched."""

import math

import numpy as np
import pytest
import torch
from cases import angles, batch, mlp
from hypothesis import given
from hypothesis import strategies as st

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.profiles import multiples, profiles, read
from mmstudy.validation import landscapes

PLACES = multiples(6)


def one(losses, level=1.0, origin=0.0, places=PLACES) -> tuple[float, bool]:
    """The crossing of a single profile, and whether it is censored."""
    found, censored = read(np.array([losses], float), np.array([origin]), places, level)
    return float(found[0]), bool(censored[0])


def of(function, level=1.0, places=PLACES) -> tuple[float, bool]:
    return one(function(places), level, float(function(np.array(0.0))), places)


def test_places_are_powers_of_two_from_one():
    assert multiples(3).tolist() == [1, 2, 4, 8]


@given(
    power=st.sampled_from([0.5, 1, 2, 3, 4, 8]), crossing=st.floats(1, 63.9), level=st.floats(0.01, 10),
    origin=st.floats(-3, 3),
)  # fmt: skip
def test_powers_of_the_distance_are_exact(power, crossing, level, origin):
    """L = origin + level · (t / crossing)^power, whether or not the minimum is at zero."""
    found, censored = of(lambda t: origin + level * (t / crossing) ** power, origin + level)
    assert not censored
    assert found == pytest.approx(crossing, rel=1e-6)


@given(crossing=st.floats(0.001, 0.999))
def test_before_the_first_place_a_profile_is_a_parabola(crossing):
    assert of(lambda t: (t / crossing) ** 2)[0] == pytest.approx(crossing, rel=1e-9)
    assert of(lambda t: abs(t / crossing))[0] == pytest.approx(crossing**0.5, rel=1e-9)  # and nothing else there


def test_a_place_on_the_level_is_not_above_it():
    assert one([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[0] == 2
    assert one([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == (64, True)


def test_a_ray_that_is_never_above_is_censored_where_it_was_looked_at_last():
    assert one(np.full(7, 0.3)) == (64, True)
    assert one(-(PLACES**2)) == (64, True)


def test_of_several_crossings_the_first_counts():
    assert 2 < one([0.1, 0.2, 5.0, 0.1, 0.1, 0.1, 9.0])[0] < 4


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_above_every_level(beyond):
    """How far beyond the last number is not known: the crossing is there."""
    assert one([0.1, 0.2, beyond, beyond, beyond, beyond, beyond]) == (2, False)
    assert one([0.1, 0.2, beyond, 0.2, 0.2, 0.2, 0.2]) == (2, False)
    assert one([beyond] * 7) == (0, False)
    assert one([0.1] * 6 + [beyond], level=1e300) == (32, False)


def test_an_origin_above_the_level_has_no_extent_and_one_that_is_no_number_none_that_is_known():
    assert one(2 + PLACES, level=1.0, origin=2.0) == (0, False)
    assert one(np.full(7, 0.5), level=1.0, origin=2.0) == (0, False)  # a ray that leads down below it
    for level, origin in ((math.nan, 0.0), (1.0, math.nan), (math.nan, math.nan)):
        found, censored = one(np.full(7, 0.5), level, origin)
        assert math.isnan(found) and not censored


def test_a_way_that_leads_down_first_crosses_between_its_two_places():
    losses = [-1.0, -2.0, -1.0, 4.0, 30.0, 200.0, 900.0]
    found, censored = one(losses, level=0.5)
    assert 4 < found < 8 and not censored


PROFILES = st.lists(
    st.one_of(st.floats(-2, 10), st.sampled_from([math.inf, math.nan])), min_size=7, max_size=7
)  # fmt: skip


@given(losses=PROFILES, origin=st.floats(-1, 1), levels=st.tuples(st.floats(-2, 12), st.floats(-2, 12)))
def test_a_higher_level_is_never_nearer(losses, origin, levels):
    low, high = (one(losses, level, origin) for level in sorted(levels))
    assert low[0] <= high[0] * (1 + 1e-12)
    assert low[1] <= high[1]
    assert 0 <= low[0] <= 64


@given(losses=PROFILES, origin=st.floats(-1, 1), level=st.floats(-2, 12), scale=st.sampled_from([2.0**-20, 0.25, 8.0]))
def test_the_units_of_the_loss_and_the_length_of_the_places_play_no_part(losses, origin, level, scale):
    before, after = one(losses, level, origin), one(scale * np.array(losses), scale * level, scale * origin)
    assert after == (pytest.approx(before[0], rel=1e-9), before[1])
    longer = one(losses, level, origin, scale * PLACES)
    assert longer == (pytest.approx(scale * before[0], rel=1e-9), before[1])


def test_levels_and_origins_of_many_rays_are_spread_over_them():
    rng = np.random.default_rng(0)
    slopes, origin, level = rng.uniform(0.1, 2, (3, 4, 5)), rng.normal(size=(3, 4, 1)), rng.uniform(1, 3, (3, 1, 1))
    losses = origin[..., None] + slopes[..., None] * PLACES**2
    found, censored = read(losses, origin, PLACES, level)
    assert found.shape == censored.shape == (3, 4, 5)
    for i, j, k in np.ndindex(3, 4, 5):
        assert (found[i, j, k], censored[i, j, k]) == one(losses[i, j, k], level[i, 0, 0], origin[i, j, 0])
    same, _ = read(losses, origin, PLACES, 2.0)
    assert same[0, 0, 0] == one(losses[0, 0, 0], 2.0, origin[0, 0, 0])[0]


def test_losses_are_those_at_each_place():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(3)])
    loss, points = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    ways = torch.randn(3, 4, points.shape[1], generator=generator("ways"))
    found = profiles(loss, points, ways, multiples(2))
    assert found.shape == (3, 4, 3)
    assert found.dtype == torch.float64
    for p, place in enumerate((1.0, 2.0, 4.0)):
        torch.testing.assert_close(found[:, :, p], loss(points.unsqueeze(1) + place * ways))


def read_along(objective, parents, ways, level, doublings=9):
    losses = profiles(objective, parents, ways, multiples(doublings)).numpy()
    found, censored = read(losses, objective(parents).numpy()[:, None], multiples(doublings), level)
    return found[0], censored[0]


@pytest.mark.parametrize("power", [1, 1.5, 3])
def test_of_bowls_the_crossings_are_those_that_a_search_finds(power):
    curvatures = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    bowl = landscapes.ellipsoid(curvatures)
    objective = of_landscape(lambda points: bowl(points) ** power, 4)
    ways = 0.003 * torch.randn(1, 200, 4, generator=generator("bowl"), dtype=torch.float64)
    start = torch.zeros(1, 4, dtype=torch.float64)
    found, censored = read_along(objective, start, ways, 0.5)
    lines = crossings(objective, start, ways, 0.5, max_multiple=512.0, tolerance=1e-4, evaluations=40)
    searched = lines.multiple[0].numpy()
    assert (censored == (lines.status[0] == "unbounded")).all()
    assert 0 < censored.sum() < 40  # nearly flat directions
    assert found == pytest.approx(searched, rel=2e-4)


@pytest.mark.parametrize("unit", [0.01, 0.033])
@pytest.mark.parametrize("level", [0.01, 0.03, 0.1])
def test_of_a_ring_most_crossings_and_their_mean_are_right_but_not_those_along_it(level, unit):
    """A ray nearly along the ring is no power of the distance, and may leave the set between two places unseen."""
    start, (angle, ways) = torch.tensor([[1.0, 0.0]], dtype=torch.float64), angles()
    found, censored = read_along(of_landscape(landscapes.ring(), 2), start, unit * ways, level)
    exact = landscapes.ring_radius(angle, 1.0, 1.0, level).numpy()
    error = abs(unit * found / exact - 1)
    assert not censored.any()
    assert np.median(error) < 0.005
    assert 0.05 < (error > 0.05).mean() < 0.25
    assert unit * found.mean() == pytest.approx(exact.mean(), rel=0.05)


def test_of_networks_at_a_minimum_crossings_are_those_that_a_search_finds():
    inputs, targets = batch(64)
    network = en.stack([mlp()])
    loss = of_networks(network, (inputs, targets))
    point = en.vectors(network)
    for _ in range(1500):
        point = point - 0.5 * loss.gradient(point)[1]
    ways = 0.02 * torch.randn(1, 60, point.shape[1], generator=generator("ways"))
    for rise in (0.05, 0.1, 0.5):
        level = float(loss(point)) + rise
        found, censored = read_along(loss, point, ways, level)
        searched = crossings(loss, point, ways, level, max_multiple=512.0, tolerance=1e-3, evaluations=40).multiple
        assert not censored.any()
        error = abs(found / searched[0].numpy() - 1)
        assert np.median(error) < 0.025
        assert (error > 0.05).mean() < 0.2 and error.max() < 0.2  # the loss is no power of the distance
        assert found.mean() == pytest.approx(float(searched.mean()), rel=0.02)
