"""Where rays first cross the level, against what is known, and what they say of themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import angles, batch, mlp
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.crossings import crossings
from mmstudy.validation import landscapes


def directions(count, dim, seed=0):
    u = torch.randn(1, count, dim, generator=generator("directions", seed), dtype=torch.float64)
    return u / u.norm(dim=-1, keepdim=True)


def origin(dim):
    return torch.zeros(1, dim, dtype=torch.float64)


RING, ON_RING = of_landscape(landscapes.ring(), 2), torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def test_on_an_ellipsoid_rays_are_exact_and_know_flat_directions():
    curvatures = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    u = directions(200, 4)
    lines = crossings(of_landscape(landscapes.ellipsoid(curvatures), 4), origin(4), u, 0.5, max_multiple=3.0)
    exact = landscapes.ellipsoid_radius(curvatures, u, 0.5)[0]
    bounded = exact < 3.0
    found = lines.radius[0]
    assert (lines.status[0] == ["converged" if b else "unbounded" for b in bounded]).all()
    assert 20 < bounded.sum() < 200
    torch.testing.assert_close(found[bounded], exact[bounded])
    torch.testing.assert_close(found[~bounded], torch.full_like(found[~bounded], 3.0))
    assert lines.evaluations.max() <= 12
    assert lines.evaluations.double().mean() < 8


@given(
    axes=st.lists(st.floats(0.1, 10), min_size=2, max_size=6), level=st.floats(0.01, 5), seed=st.integers(0, 999),
    scale=st.floats(0.1, 100), power=st.sampled_from([1, 1.5, 3]),
)  # fmt: skip
def test_one_percent_in_twelve_evaluations_whatever_the_shape_and_the_length(axes, level, seed, scale, power):
    """L = (½ Σ hᵢ θᵢ²)^power: a parabola, something stiffer, and a very flat bottom."""
    curvatures = torch.tensor(axes, dtype=torch.float64) ** -2
    bowl = landscapes.ellipsoid(curvatures)
    u = directions(3, len(axes), seed)
    exact = landscapes.ellipsoid_radius(curvatures, u, level ** (1 / power))[0].numpy()
    objective = of_landscape(lambda points: bowl(points) ** power, len(axes))
    first = float(exact.mean()) / scale * 2.7
    lines = crossings(objective, origin(len(axes)), u * scale, level, first, 1000 * first)
    assert lines.radius[0].numpy() == pytest.approx(exact, rel=0.01)
    assert lines.multiple[0].numpy() * scale == pytest.approx(exact, rel=0.01)
    assert lines.evaluations.max() <= 12


@given(angle=st.floats(0, 2 * math.pi), level=st.floats(0.005, 0.4), radius=st.floats(0.5, 2))
@example(angle=math.pi, level=0.4, radius=0.5)  # the level set fills the hole
@example(angle=math.pi, level=0.1, radius=1.0)
def test_the_rings_radius_is_the_first_crossing(angle, level, radius):
    loss, start = landscapes.ring(radius, 2.0), torch.tensor([radius, 0.0], dtype=torch.float64)
    u = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    t = torch.linspace(0, 4 * radius + 4, 40_001, dtype=torch.float64)
    beyond = loss(start + t.unsqueeze(1) * u) > level
    brute = t[beyond.int().argmax()]
    exact = landscapes.ring_radius(torch.tensor(angle, dtype=torch.float64), radius, 2.0, level)
    hole = (radius - (level**0.5)) - abs(radius * math.sin(angle))  # > 0: the ray's line meets the hole
    if abs(hole) > 1e-3:  # a tangent ray decides on the last digit
        assert float(exact) == pytest.approx(float(brute), abs=2e-3)


def test_of_a_ring_all_rays_are_right_but_those_that_graze_the_hole():
    angle, u = angles()
    exact = landscapes.ring_radius(angle, 1.0, 1.0, 0.03).numpy()
    error = {}
    for checks in (0, 3, 8):
        lines = crossings(RING, ON_RING, u, 0.03, evaluations=9 + checks, checks=checks)
        error[checks] = abs(lines.radius[0].numpy() / exact - 1)
    wrong = {checks: int((e > 0.01).sum()) for checks, e in error.items()}
    assert wrong[0] > wrong[3] > wrong[8]  # what is left and entered again between two points is not seen
    assert wrong[3] <= 4


def test_a_crossing_that_was_jumped_over_is_found_and_told():
    """Along (−1, 0) the ring's set is left at w, entered again at 2R − w, left for good at 2R + w."""
    u, w = torch.tensor([[[-1.0, 0.0]]], dtype=torch.float64), (2 * 0.03) ** 0.5
    lines = crossings(RING, ON_RING, u, 0.03, first=2.0)
    assert lines.radius.item() == pytest.approx(w, rel=0.01)
    assert lines.reentered.item()
    skipping = crossings(RING, ON_RING, u, 0.03, first=2.0, checks=0)
    assert skipping.radius.item() == pytest.approx(2 + w, rel=0.01)
    assert not crossings(RING, ON_RING, -u, 0.03).reentered.item()


def test_the_returned_radius_lies_on_the_level_within_its_bracket():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(3)])
    loss, points = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    u = torch.randn(3, 10, points.shape[1], generator=generator("u"))
    level = float(loss(points).max()) + 0.2
    lines = crossings(loss, points, u, level)
    at = points.unsqueeze(1) + lines.multiple.float().unsqueeze(-1) * u
    met = lines.status == "converged"
    assert met.mean() > 0.8
    assert (loss(at)[torch.as_tensor(met)] - level).abs().max() < 0.01
    low, high = lines.low.numpy()[met], lines.high.numpy()[met]
    assert (low <= lines.multiple.numpy()[met]).all()
    assert (high - low <= 0.01 * high).all()


def test_rays_of_many_parents_are_those_of_each():
    inputs, targets = batch(64)
    nets = [mlp(seed=i) for i in range(4)]
    stacked = en.stack(nets)
    loss, points = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    u = torch.randn(4, 6, points.shape[1], generator=generator("u"))
    level = float(loss(points).median()) + 0.1  # some parents lie outside
    together = crossings(loss, points, u, level)
    for i in range(4):
        alone = crossings(
            of_networks(en.stack(nets[i : i + 1]), (inputs, targets)), points[i : i + 1], u[i : i + 1], level
        )
        assert together.radius[i].numpy() == pytest.approx(alone.radius[0].numpy(), rel=1e-4)
        assert (together.status[i] == alone.status[0]).all()


def test_every_ray_says_how_it_ended():
    u = torch.eye(2, dtype=torch.float64)[None, :1]

    def status(landscape, start, level, **options):
        start = torch.tensor([start], dtype=torch.float64)
        return crossings(of_landscape(landscape, 2), start, u, level, **options).status.item()

    ring, broken = landscapes.ring(), lambda points: points[..., 0].asin()
    assert status(ring, [1.0, 0.0], 0.03) == "converged"
    assert status(ring, [1.0, 0.0], 0.03, evaluations=1, checks=0) == "at_limit"
    assert status(ring, [1.0, 0.0], 1e9) == "unbounded"
    assert status(ring, [0.0, 0.0], 0.03) == "outside"
    assert status(broken, [0.0, 0.0], 9.0) == "nan"
    assert status(broken, [9.0, 0.0], 9.0) == "nan"
    outside = crossings(RING, origin(2), u, 0.03)
    assert outside.radius.item() == 0
    assert outside.evaluations.item() == 0
    edge = crossings(of_landscape(broken, 2), origin(2), u, 9.0)  # a number up to 1, none beyond
    assert edge.radius.item() == pytest.approx(1, rel=0.01)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("parents", "along", "loss"), [(3, 2, None), (1, 3, None), (3, 3, 2)])
def test_parents_directions_and_losses_belong_together(parents, along, loss):
    with pytest.raises(
        ValueError, match=rf"{parents} parents of 2 parameters need directions of the shape \({parents}"
    ):
        crossings(
            RING,
            torch.ones(parents, 2, dtype=torch.float64),
            torch.ones(along, 4, 2, dtype=torch.float64),
            0.5,
            origin=None if loss is None else torch.zeros(loss, dtype=torch.float64),
        )


def test_bad_rays_are_refused():
    with pytest.raises(ValueError, match="1 of 2 directions have length zero"):
        crossings(RING, origin(2), torch.tensor([[[0.0, 0.0], [1.0, 0.0]]], dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match="1 of 1 directions have length zero or are not finite"):
        crossings(RING, origin(2), torch.full((1, 1, 2), math.nan, dtype=torch.float64), 0.5)
    for options in ({"first": 0.0}, {"first": 20.0}, {"tolerance": 0.0}, {"checks": 12}):
        with pytest.raises(ValueError, match="needs 0 < first ≤ max_multiple"):
            crossings(RING, origin(2), angles(90)[1], 0.5, **options)


@pytest.mark.parametrize("options", [{}, {"checks": 0}, {"evaluations": 5, "checks": 2}])
def test_the_cost_of_rays_is_that_of_the_points_they_evaluate(options):
    points = []

    def counting(where):
        points.append(where.shape[:-1].numel())
        return landscapes.ring()(where)

    parents = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    lines = crossings(of_landscape(counting, 2), parents, torch.randn(2, 5, 2), 0.03, **options)
    assert sum(points) == 2 + int(lines.evaluations.sum())  # the parents themselves, then every ray


@pytest.mark.parametrize("evaluations", range(1, 9))
def test_over_a_cliff_what_is_returned_lies_within_the_last_bracket(evaluations):
    """A step has no slope to go by."""
    cliff = of_landscape(lambda points: (points[..., 0] > 0.613).double(), 1)
    lines = crossings(cliff, origin(1), torch.ones(1, 1, 1, dtype=torch.float64), 0.5, 1.0, 1.0, 0.01, evaluations, 0)
    low, high = lines.low.item(), lines.high.item()
    assert low <= lines.multiple.item() <= high
    assert low <= 0.613 <= high
    assert (lines.status.item() == "converged") == (high - low <= 0.01 * high)


def test_points_exist_only_while_they_are_needed(monkeypatch):
    """Many rays in many dimensions: never more points at once than the objective allows."""
    most = []

    def counting(where):
        most.append(len(where))
        return landscapes.ellipsoid(torch.ones(50))(where)

    objective = of_landscape(counting, 50)
    small = replace(objective, at_once=7)
    u = torch.randn(2, 40, 50, generator=generator("many"))
    first, second = (crossings(o, torch.zeros(2, 50), u, 0.5) for o in (objective, small))
    assert max(most[len(most) // 2 :]) <= 80
    assert sorted(set(most))[0] <= 7
    np.testing.assert_allclose(first.radius, second.radius, rtol=1e-5)


def test_the_ellipsoids_radius_solves_its_equation():
    curvatures, u = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 3 * directions(50, 3)
    radius = landscapes.ellipsoid_radius(curvatures, u, 0.7)
    there = radius.unsqueeze(-1) * u / u.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(landscapes.ellipsoid(curvatures)(there), torch.full_like(radius, 0.7))
    flat = landscapes.ellipsoid_radius(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0]]), 0.7)
    assert flat.isinf().all()


def test_a_bowl_of_linear_regression_has_its_flat_directions():
    """Three of six inputs always zero: the loss does not see half of the weights."""
    features = torch.randn(64, 6, generator=generator("bowl"))
    features[:, 3:] = 0
    best = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 0.0])
    network = nn.Linear(6, 1, bias=False)
    network.weight.data[0] = best
    loss = of_networks(en.stack([network]), (features, (features @ best).unsqueeze(1)), en.regression)
    lines = crossings(loss, best[None], torch.eye(6)[None], 0.1)
    assert lines.status[0].tolist() == ["converged"] * 3 + ["unbounded"] * 3
    exact = (0.1 / (features[:, :3] ** 2).mean(0)).sqrt()  # L = mean (xᵢ δ)² along axis i from the minimum
    assert lines.radius[0, :3].numpy() == pytest.approx(exact.numpy(), rel=0.01)
