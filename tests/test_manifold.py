import math
from itertools import combinations

import pytest
import torch
from cases import batch, mlp
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from mmstudy import ensemble as en
from mmstudy import landscapes, manifold
from mmstudy.connectivity import point_loss
from mmstudy.networks import initialize
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


@given(
    axes=st.lists(st.floats(0.1, 10), min_size=2, max_size=6), level=st.floats(0.01, 5), seed=st.integers(0, 999),
    scale=st.floats(0.01, 100),
)  # fmt: skip
def test_the_radius_is_that_of_any_ellipsoid_whatever_the_length_of_the_direction(axes, level, seed, scale):
    curvatures = torch.tensor(axes, dtype=torch.float64) ** -2
    u = directions(3, len(axes), seed)
    exact = landscapes.ellipsoid_radius(curvatures, u, level)[0].numpy()
    grid = tuple(float(exact.max()) / scale * i / 8 for i in range(1, 17))
    start = torch.zeros(1, len(axes), dtype=torch.float64)
    lines = manifold.rays(landscapes.ellipsoid(curvatures), start, u * scale, level, grid, refinements=12)
    assert (lines["status"] == "converged").all()
    assert lines["radius"].values[0] == pytest.approx(exact, rel=0.01)
    assert lines["multiple"].values[0] * scale == pytest.approx(exact, rel=0.01)


def test_only_the_first_crossing_counts():
    """Along (−1, 0) the ring's set is left at R − (R − w), entered at R + (R − w), left for good at 2R + w."""
    start, u = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[[-1.0, 0.0]]], dtype=torch.float64)
    w = (2 * 0.03) ** 0.5
    assert landscapes.ring()(start + 2 * u[0]).item() < 0.03  # the other side of the ring belongs to the level set
    lines = manifold.rays(landscapes.ring(), start, u, 0.03, FINE)
    assert lines["radius"].item() == pytest.approx(w, rel=0.01)
    skipping = manifold.rays(landscapes.ring(), start, u, 0.03, (2.0, 4.0))  # as documented: not seen between points
    assert skipping["radius"].item() == pytest.approx(2 + w, rel=0.01)


def test_the_ellipsoids_radius_solves_its_equation():
    curvatures, u = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64), 3 * directions(50, 3)
    radius = landscapes.ellipsoid_radius(curvatures, u, 0.7)
    there = radius.unsqueeze(-1) * u / u.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(landscapes.ellipsoid(curvatures)(there), torch.full_like(radius, 0.7))
    flat = landscapes.ellipsoid_radius(torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0]]), 0.7)
    assert flat.isinf().all()


@pytest.mark.parametrize("options", [{}, {"refinements": 0}, {"grid": (1.0, 2.0), "refinements": 3}])
def test_the_cost_of_rays_is_that_of_the_points_they_evaluate(options):
    points = []

    def counting(where):
        points.append(where.shape[:-1].numel())
        return landscapes.ring()(where)

    lines = manifold.rays(counting, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.randn(2, 5, 2), 0.03, **options)
    assert sum(points) == 2 + 2 * 5 * lines.attrs["evaluations"]  # the parents themselves, then every ray


def test_refinement_narrows_the_bracket_by_half_each_time():
    """A step has no slope to interpolate: what is returned lies within the last bracket."""
    cliff = lambda points: (points[..., 0] > 0.613).double()  # noqa: E731
    start, u = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for refinements in range(8):
        lines = manifold.rays(cliff, start, u, 0.5, (1.0,), refinements)
        width = 0.5**refinements
        assert abs(lines["radius"].item() - 0.613) <= width
        assert (lines["status"].item() == "converged") == (width <= 0.02 * math.ceil(0.613 / width) * width)


@pytest.mark.parametrize("refinements", range(6))
def test_on_a_straight_slope_the_radius_is_exact_however_wide_the_bracket(refinements):
    start, u = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[[0.3, 0.4]]], dtype=torch.float64)
    lines = manifold.rays(lambda points: points.sum(-1), start, u, 0.613, (0.5, 2.0, 7.0), refinements)
    assert lines["multiple"].item() == pytest.approx(0.613 / 0.7, rel=1e-12)
    assert lines["radius"].item() == pytest.approx(0.5 * 0.613 / 0.7, rel=1e-12)


def test_lengths_scale_and_shifts_and_turns_leave_them():
    parents = torch.randn(2, 6, generator=generator(5), dtype=torch.float64)
    young = parents.unsqueeze(1) + torch.randn(2, 4, 6, generator=generator(6), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator(7), dtype=torch.float64)).Q
    plain = manifold.spread(parents, young)
    moved = manifold.spread(3 * parents @ turn + 1, 3 * young @ turn + 1)
    for name, factor in {"reach": 3, "gyration": 3, "diameter": 3, "effective_dimension": 1}.items():
        assert moved[name].values == pytest.approx(factor * plain[name].values)
        assert moved[f"{name}_se"].values == pytest.approx(factor * plain[f"{name}_se"].values)
    assert moved["log_volume"].values == pytest.approx(plain["log_volume"].values + 4 * math.log(3))


def test_sizes_of_a_known_triangle():
    young = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    sizes = manifold.spread(torch.zeros(1, 2), young)
    assert sizes["reach"].item() == pytest.approx(3.5)
    assert sizes["diameter"].item() == pytest.approx(5)
    assert sizes["gyration"].item() == pytest.approx(2.5)
    assert sizes["effective_dimension"].item() == pytest.approx(1)
    assert sizes["log_volume"].item() == pytest.approx(math.log(6))
    assert sizes["reach_se"].isnull().all()  # leaving one of two out leaves no spread


def test_disagreement_does_not_see_a_rescaling_of_relus_and_lengths_do():
    inputs, _ = batch(64)
    nets = [mlp(seed=i) for i in range(3)]
    scaled = [mlp(seed=i) for i in range(3)]
    for net in scaled:
        net.hidden[0].weight.data *= 8
        net.hidden[0].bias.data *= 8
        net.hidden[1].weight.data /= 8
    both = [en.stack(group) for group in (nets, scaled)]
    first, second = (manifold.disagreement(en.outputs(e, inputs)[None]) for e in both)
    assert first.item() == pytest.approx(second.item())
    assert 0 < first.item() < 1
    reach = [manifold.spread(en.vectors(e)[:1], en.vectors(e)[None, 1:])["reach"].item() for e in both]
    assert reach[1] > 2 * reach[0]


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
        u = manifold.filter_normalized(stacked, 6, generator("same"))
        loss, start = point_loss(stacked, inputs, targets), en.vectors(stacked)
        lines = manifold.rays(loss, start, u, float(loss(start)) + 0.3, (0.2, 0.5, 1.0, 2.0, 4.0))
        assert (lines["status"] == "converged").any()
        multiples.append(lines["multiple"].values)
    assert multiples[0] == pytest.approx(multiples[1], rel=1e-3)


def test_filters_of_a_convolution_are_its_output_channels():
    nets = [nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2)]
    stacked = en.stack([initialize(net, generator("convolution", i)) for i, net in enumerate(nets)])
    u = manifold.filter_normalized(stacked, 2, generator("filters"))
    drawn = en.at(stacked, u).parameters
    for name, parameter in stacked.parameters.items():
        twice = parameter.repeat_interleave(2, dim=0)  # two directions for each parent
        if parameter.ndim > 2:
            torch.testing.assert_close(drawn[name].flatten(2).norm(dim=2), twice.flatten(2).norm(dim=2))
            assert not torch.equal(drawn[name][0], drawn[name][1])
        else:
            assert (drawn[name] == 0).all()
    assert torch.equal(u, manifold.filter_normalized(stacked, 2, generator("filters")))
