import math
from itertools import combinations

import pytest
import torch
from cases import batch, mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmstudy import ensemble as en
from mmstudy import landscapes, manifold
from mmstudy.connectivity import point_loss
from mmstudy.seeds import generator

FINE = tuple(0.05 * i for i in range(1, 61))


def directions(count, dim, seed=0):
    u = torch.randn(1, count, dim, generator=generator("directions", seed), dtype=torch.float64)
    return u / u.norm(dim=-1, keepdim=True)


def test_rays_on_an_ellipsoid_have_the_exact_radius():
    curvatures = torch.tensor([4.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    u = directions(200, 4)
    lines = manifold.rays(landscapes.ellipsoid(curvatures), torch.zeros(1, 4, dtype=torch.float64), u, 0.5, FINE)
    exact = landscapes.ellipsoid_radius(curvatures, u, 0.5)[0]
    bounded = exact < FINE[-1]
    found = torch.as_tensor(lines["radius"].values[0])
    assert (lines["status"].values[0] == ["converged" if b else "unbounded" for b in bounded]).all()
    assert 20 < bounded.sum() < 200
    torch.testing.assert_close(found[bounded], exact[bounded], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[~bounded], torch.full_like(found[~bounded], FINE[-1]))


def test_flat_directions_are_unbounded_and_keep_the_grids_end():
    loss = landscapes.ellipsoid(torch.tensor([1.0, 0.0]))
    lines = manifold.rays(loss, torch.zeros(1, 2), torch.eye(2)[None] * 3, 0.5, (0.1, 1.0))
    assert lines["status"].values.tolist() == [["converged", "unbounded"]]
    assert lines["radius"].values[0] == pytest.approx([1.0, 3.0], rel=0.01)
    assert lines["multiple"].values[0] == pytest.approx([1 / 3, 1.0], rel=0.01)


@given(angle=st.floats(0, 2 * math.pi), level=st.floats(0.005, 0.4), radius=st.floats(0.5, 2))
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


def test_rays_on_a_ring_of_minima():
    angle = torch.arange(0, 360, 3, dtype=torch.float64) * torch.pi / 180
    u = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    lines = manifold.rays(landscapes.ring(), torch.tensor([[1.0, 0.0]], dtype=torch.float64), u, 0.03, FINE)
    exact = landscapes.ring_radius(angle, 1.0, 1.0, 0.03)
    torch.testing.assert_close(torch.as_tensor(lines["radius"].values[0]), exact, rtol=0.01, atol=0)


def test_the_returned_radius_lies_on_the_level():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(3)])
    loss, points = point_loss(stacked, inputs, targets), en.vectors(stacked)
    u = torch.randn(3, 10, points.shape[1], generator=generator("u"))
    level = float(loss(points).max()) + 0.2
    lines = manifold.rays(loss, points, u, level)
    at = points.unsqueeze(1) + torch.as_tensor(lines["multiple"].values).unsqueeze(-1) * u
    met = lines["status"].values == "converged"
    assert met.mean() > 0.5
    assert (loss(at)[torch.as_tensor(met)] - level).abs().max() < 0.01


def test_rays_of_many_parents_are_those_of_each():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(4)])
    loss, points = point_loss(stacked, inputs, targets), en.vectors(stacked)
    u = torch.randn(4, 6, points.shape[1], generator=generator("u"))
    level = float(loss(points).median()) + 0.1  # some parents lie outside
    together = manifold.rays(loss, points, u, level)
    for i in range(4):
        alone = manifold.rays(loss, points[i : i + 1], u[i : i + 1], level)
        assert together["radius"].values[i] == pytest.approx(alone["radius"].values[0], rel=1e-4)
        assert (together["status"].values[i] == alone["status"].values[0]).all()


def test_every_ray_says_how_it_ended():
    ring, broken = landscapes.ring(), lambda points: points[..., 0].asin()
    u = torch.eye(2)[None, :1]

    def status(loss, start, level, **options):
        return manifold.rays(loss, torch.tensor([start]), u, level, **options)["status"].item()

    assert status(ring, [1.0, 0.0], 0.03) == "converged"
    assert status(ring, [1.0, 0.0], 0.03, refinements=0) == "at_limit"
    assert status(ring, [1.0, 0.0], 1e9) == "unbounded"
    assert status(ring, [0.0, 0.0], 0.03) == "outside"
    assert status(broken, [0.0, 0.0], 9.0) == "nan"
    assert status(broken, [9.0, 0.0], 9.0) == "nan"
    outside = manifold.rays(ring, torch.zeros(1, 2), u, 0.03)
    assert outside["radius"].item() == 0


def test_bad_rays_are_refused():
    with pytest.raises(ValueError, match="1 of 2 directions have length zero"):
        manifold.rays(landscapes.ring(), torch.zeros(1, 2), torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), 0.5)
    for grid in ((), (0.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="ascend from above zero"):
            manifold.rays(landscapes.ring(), torch.zeros(1, 2), torch.eye(2)[None], 0.5, grid)


def brute_spread(parent, young):
    away = [y - parent for y in young]
    centre = sum(young) / len(young)
    spectrum = torch.linalg.eigvalsh(torch.cov(torch.stack(young).T, correction=0)).clamp(min=0)
    corners = [parent, *young]
    n = len(young)
    menger = torch.ones(n + 2, n + 2, dtype=parent.dtype)  # Cayley and Menger's determinant
    menger[0, 0] = 0
    menger[1:, 1:] = torch.stack([torch.stack([((a - b) ** 2).sum() for b in corners]) for a in corners])
    volume2 = (-1) ** (n + 1) * torch.linalg.det(menger) / (2**n * math.factorial(n) ** 2)
    return {
        "reach": sum(a.norm() for a in away) / n,
        "gyration": (sum(((y - centre) ** 2).sum() for y in young) / n).sqrt(),
        "diameter": max((a - b).norm() for a, b in combinations(young, 2)),
        "effective_dimension": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "log_volume": volume2.log() / 2,
    }


def test_spread_against_the_obvious():
    parents = torch.randn(3, 9, generator=generator(0), dtype=torch.float64)
    young = parents.unsqueeze(1) + torch.randn(3, 4, 9, generator=generator(1), dtype=torch.float64)
    sizes = manifold.spread(parents, young)
    for i in range(3):
        for name, value in brute_spread(parents[i], list(young[i])).items():
            assert sizes[name].values[i] == pytest.approx(float(value), rel=1e-8)
        left = [brute_spread(parents[i], [y for j, y in enumerate(young[i]) if j != k]) for k in range(4)]
        for name in ("reach", "gyration", "diameter", "effective_dimension"):
            parts = torch.stack([part[name] for part in left])
            error = (3 / 4 * ((parts - parts.mean()) ** 2).sum()).sqrt()
            assert sizes[f"{name}_se"].values[i] == pytest.approx(float(error), rel=1e-8)
    with pytest.raises(ValueError, match="at least 2 of them; got 1"):
        manifold.spread(parents, young[:, :1])


def test_effective_dimension_of_known_sets():
    simplex, line = torch.eye(5)[None], torch.arange(5.0).view(1, 5, 1).expand(1, 5, 5)
    sizes = [manifold.spread(torch.ones(1, 5), young)["effective_dimension"].item() for young in (simplex, line)]
    assert sizes == pytest.approx([4, 1])


def test_spread_does_not_see_the_order_of_the_neurons():
    points, young = torch.randn(1, 12, generator=generator(2)), torch.randn(1, 3, 12, generator=generator(3))
    swap = torch.randperm(12, generator=generator(4))
    first, again = manifold.spread(points, young), manifold.spread(points[:, swap], young[..., swap])
    for name in first:
        assert first[name].values == pytest.approx(again[name].values, rel=1e-5, nan_ok=True)


def test_disagreement_counts_pairs():
    guess = torch.tensor([[[0, 1, 2, 0], [0, 1, 1, 0], [0, 0, 1, 0]]])
    logits = nn.functional.one_hot(guess, 3).float()
    assert manifold.disagreement(logits).item() == pytest.approx((1 + 2 + 1) / 3 / 4)


def test_filter_normalized_directions_have_the_parents_norms():
    stacked = en.stack([mlp(seed=i) for i in range(2)])
    u = manifold.filter_normalized(stacked, 3, generator("filters"))
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


def test_children_are_those_of_a_plain_loop():
    inputs, targets = batch(40)
    order = en.minibatches([generator("child", i) for i in range(6)], 40, 7, 8).view(2, 3, 7, 8)
    parents, sizes = en.stack([mlp(seed=i) for i in range(2)]), torch.tensor([0.05, 0.1])
    reports = list(manifold.children(parents, inputs, targets, order, sizes, milestones=[4]))
    assert [step for step, _, _ in reports] == [4, 7]
    for m in range(2):
        for k in range(3):
            network = mlp(seed=m)
            optimizer = torch.optim.SGD(network.parameters(), lr=float(sizes[m]), momentum=0.9)
            for step in range(7):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[order[m, k, step]]), targets[order[m, k, step]]).backward()
                optimizer.step()
            there = nn.utils.parameters_to_vector(network.parameters()).detach()
            torch.testing.assert_close(reports[-1][1][m, k], there, rtol=1e-4, atol=1e-6)
    assert reports[0][2].shape == (2, 3, 4)


def test_children_stay_in_a_bowl_and_scatter_over_its_flat_directions():
    """Linear regression with three of six inputs always zero: the loss does not see half of the weights."""
    features = torch.randn(64, 6, generator=generator("bowl"))
    features[:, 3:] = 0
    truth = features @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0, 0.0])
    parent = nn.Linear(6, 1, bias=False)
    nn.init.zeros_(parent.weight)
    stacked = en.stack([parent])
    order = en.minibatches([generator("bowl", i) for i in range(4)], 64, 200, 16).unsqueeze(0)
    copies = stacked[torch.zeros(4, dtype=torch.long)]
    loss_fn = lambda outputs, targets: nn.functional.mse_loss(outputs.squeeze(-1), targets)  # noqa: E731
    ((_, grown, _),) = en.train(copies, features, truth, order[0], en.constant(0.05, 200), 0.9, loss_fn=loss_fn)
    young = en.vectors(grown).unsqueeze(0)
    assert (young[..., 3:] == 0).all()  # no gradient, no move
    torch.testing.assert_close(young[0, :, :3], torch.tensor([[1.0, -2.0, 0.5]]).expand(4, 3), rtol=1e-3, atol=1e-3)
    loss = point_loss(stacked, features, truth, loss_fn)
    lines = manifold.rays(loss, young.mean(1), torch.eye(6)[None], 0.1)
    assert lines["status"].values[0].tolist() == ["converged"] * 3 + ["unbounded"] * 3
    exact = (0.1 / (features[:, :3] ** 2).mean(0)).sqrt()  # L = mean (xᵢ δ)² along axis i from the minimum
    assert lines["radius"].values[0, :3] == pytest.approx(exact.numpy(), rel=0.01)
