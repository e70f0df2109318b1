import math
from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr
from cases import CLASSES, INPUTS, batch, mlp
from scipy.stats import binom
from torch import nn

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.batched.training import minibatches
from mmstudy.core.seeds import generator
from mmstudy.manifold import children
from mmstudy.manifold.estimate import Budget
from mmstudy.validation import landscapes

CURVATURES = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
LONG = Budget(samples=16, steps=1500, step_size=0.1, momentum=0.5)  # long enough to forget the start
BOWL = of_landscape(landscapes.ellipsoid(CURVATURES), 3, noise=0.2)
ORIGIN = torch.zeros(1, 3, dtype=torch.float64)


def truth(budget=LONG, noise=0.2):
    variance = landscapes.stationary_variance(CURVATURES, noise, budget.step_size, budget.momentum)
    return variance.sum().sqrt().item()


# ---- the estimator ---------------------------------------------------------------------------------------------------


def test_the_stationary_variance_is_the_fixed_point_of_the_recursion():
    """Σ = A Σ Aᵀ + σ² b bᵀ for (θ, v), solved numerically."""
    h, noise, eta, mu = 0.7, 0.3, 0.2, 0.6
    a = torch.tensor([[1 - eta * h, -eta * mu], [h, mu]], dtype=torch.float64)  # v' = μv + hθ + ξ, θ' = θ − ηv'
    b = torch.tensor([-eta, 1.0], dtype=torch.float64)
    sigma = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(2000):
        sigma = a @ sigma @ a.T + noise**2 * torch.outer(b, b)
    found = landscapes.stationary_variance(torch.tensor([h], dtype=torch.float64), noise, eta, mu)
    assert found.item() == pytest.approx(sigma[0, 0].item(), rel=1e-9)


def test_the_deviation_within_five_percent_and_honest_errors():
    """200 families of 16 children, all trained at once, then regrouped."""
    draws = BOWL.draws([generator("families", i) for i in range(200 * 16)], LONG.steps)
    ((_, offspring, _),) = children.offspring(BOWL, ORIGIN, draws, torch.tensor([LONG.step_size]), LONG.momentum)
    families = offspring.view(200, 16, 3)
    size, error = children.deviation(families, torch.ones(200, 16, dtype=torch.bool))
    covered = int(((size - truth()).abs() < 1.96 * error).sum())
    assert 180 <= covered <= binom.ppf(0.999, 200, 0.95)
    whole, whole_error = children.deviation(offspring, torch.ones(1, 3200, dtype=torch.bool))
    assert whole.item() == pytest.approx(truth(), rel=0.05)
    assert abs(whole.item() - truth()) < 4 * whole_error.item()
    assert error.mean().item() / whole_error.item() == pytest.approx((3200 / 16) ** 0.5, rel=0.2)


def test_the_estimator_is_that_of_its_children():
    found = children.children(BOWL, ORIGIN, 1e9, LONG, generator("one"))
    assert found["status"].values.tolist() == ["ok"]
    assert found["size"].item() == pytest.approx(truth(), rel=0.4)
    assert found["connected"].item() == 1
    assert found["between"].item() == 1
    assert found["cost"].item() == 3 * 16 * 1500 + 1 + 16 * 7
    again = children.children(BOWL, ORIGIN.expand(2, -1), 1e9, LONG, generator("one"))
    assert again["size"].values == pytest.approx([found["size"].item()] * 2)


def test_deviation_of_some_is_that_of_those_alone_and_gyration_is_a_little_less():
    offspring = torch.randn(1, 6, 4, generator=generator("some"), dtype=torch.float64)
    keep = torch.tensor([[True, False, True, True, False, True]])
    all_in = torch.ones(1, 4, dtype=torch.bool)
    for part, alone in zip(
        children.deviation(offspring, keep), children.deviation(offspring[:, keep[0]], all_in), strict=True
    ):
        assert part.item() == pytest.approx(alone.item())
    sizes = children.spread(torch.zeros(1, 4, dtype=torch.float64), offspring[:, keep[0]])
    size, error = children.deviation(offspring[:, keep[0]], all_in)
    assert size.item() == pytest.approx(sizes["gyration"].item() * (4 / 3) ** 0.5)
    left = [
        children.deviation(offspring[:, [i for i in (0, 2, 3, 5) if i != out]], all_in[:, :3])[0].item()
        for out in (0, 2, 3, 5)
    ]
    assert error.item() == pytest.approx((3 * np.var(left)) ** 0.5)


def test_a_barrier_cuts_children_off():
    """Two minima at ±1 and a barrier of 1 between them: children of one that get across are not connected."""
    double_well = of_landscape(landscapes.barrier(1.0), 1, noise=6.0)
    start = torch.ones(1, 1, dtype=torch.float64)
    budget = Budget(32, 30, step_size=0.1, momentum=0.0)
    high, low = (children.children(double_well, start, level, budget, generator("well")) for level in (1e9, 0.9))
    assert high["connected"].item() > low["connected"].item()
    assert low["samples"].max() < 1  # from 1, whoever is below the level all the way has not crossed 0
    assert low["samples"].notnull().mean() == pytest.approx(low["connected"].item())


def test_without_connected_children_there_is_no_size():
    noisy = of_landscape(landscapes.ellipsoid(CURVATURES), 3, noise=5.0)
    parents = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [math.nan, 0.0, 0.0]], dtype=torch.float64)
    found = children.children(noisy, parents, 1e-9, Budget(4, 20), generator("none"))
    assert found["status"].values.tolist() == ["unconnected", "outside", "nan"]
    assert found["size"].isnull().all()
    wild = children.children(noisy, parents[:1], 1.0, Budget(4, 2000, step_size=10.0), generator("wild"))
    assert wild["status"].item() == "unconnected"  # all diverged


# ---- training --------------------------------------------------------------------------------------------------------


def test_children_are_those_of_a_plain_loop():
    inputs, targets = batch(40)
    order = minibatches([generator("child", i) for i in range(3)], 40, 7, 8)
    parents, sizes = en.stack([mlp(seed=i) for i in range(2)]), torch.tensor([0.05, 0.1])
    objective = of_networks(parents, (inputs, targets))
    reports = list(children.offspring(objective, en.vectors(parents), order, sizes, milestones=[4]))
    assert [step for step, _, _ in reports] == [4, 7]
    for m in range(2):
        for k in range(3):
            network = mlp(seed=m)
            optimizer = torch.optim.SGD(network.parameters(), lr=float(sizes[m]), momentum=0.9)
            for step in range(7):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[order[k, step]]), targets[order[k, step]]).backward()
                optimizer.step()
            there = nn.utils.parameters_to_vector(network.parameters()).detach()
            torch.testing.assert_close(reports[-1][1][m, k], there, rtol=1e-4, atol=1e-6)
    assert reports[0][2].shape == (2, 3, 4)


# ---- spread ----------------------------------------------------------------------------------------------------------


def brute_spread(parent, offspring):
    away = [y - parent for y in offspring]
    centre = sum(offspring) / len(offspring)
    spectrum = torch.linalg.eigvalsh(torch.cov(torch.stack(offspring).T, correction=0)).clamp(min=0)
    corners = [parent, *offspring]
    n = len(offspring)
    menger = torch.ones(n + 2, n + 2, dtype=parent.dtype)  # Cayley and Menger's determinant
    menger[0, 0] = 0
    menger[1:, 1:] = torch.stack([torch.stack([((a - b) ** 2).sum() for b in corners]) for a in corners])
    volume2 = (-1) ** (n + 1) * torch.linalg.det(menger) / (2**n * math.factorial(n) ** 2)
    return {
        "reach": sum(a.norm() for a in away) / n,
        "gyration": (sum(((y - centre) ** 2).sum() for y in offspring) / n).sqrt(),
        "diameter": max((a - b).norm() for a, b in combinations(offspring, 2)),
        "effective_dimension": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "log_volume": volume2.log() / 2,
    }


def test_spread_against_the_obvious():
    parents = torch.randn(3, 9, generator=generator(0), dtype=torch.float64)
    offspring = parents.unsqueeze(1) + torch.randn(3, 4, 9, generator=generator(1), dtype=torch.float64)
    sizes = children.spread(parents, offspring)
    for i in range(3):
        for name, value in brute_spread(parents[i], list(offspring[i])).items():
            assert sizes[name].values[i] == pytest.approx(float(value), rel=1e-8)
        left = [brute_spread(parents[i], [y for j, y in enumerate(offspring[i]) if j != k]) for k in range(4)]
        for name in ("reach", "gyration", "diameter", "effective_dimension"):
            parts = torch.stack([part[name] for part in left])
            error = (3 / 4 * ((parts - parts.mean()) ** 2).sum()).sqrt()
            assert sizes[f"{name}_se"].values[i] == pytest.approx(float(error), rel=1e-8)
    with pytest.raises(ValueError, match="at least 2 of them; got 1"):
        children.spread(parents, offspring[:, :1])


def test_effective_dimension_of_known_sets():
    simplex, line = torch.eye(5)[None], torch.arange(5.0).view(1, 5, 1).expand(1, 5, 5)
    sizes = [
        children.spread(torch.ones(1, 5), offspring)["effective_dimension"].item() for offspring in (simplex, line)
    ]
    assert sizes == pytest.approx([4, 1])


def test_spread_does_not_see_the_order_of_the_neurons():
    points, offspring = torch.randn(1, 12, generator=generator(2)), torch.randn(1, 3, 12, generator=generator(3))
    swap = torch.randperm(12, generator=generator(4))
    first, again = children.spread(points, offspring), children.spread(points[:, swap], offspring[..., swap])
    for name in first:
        assert first[name].values == pytest.approx(again[name].values, rel=1e-5, nan_ok=True)


def test_disagreement_counts_pairs():
    guess = torch.tensor([[[0, 1, 2, 0], [0, 1, 1, 0], [0, 0, 1, 0]]])
    logits = nn.functional.one_hot(guess, 3).float()
    assert children.disagreement(logits).item() == pytest.approx((1 + 2 + 1) / 3 / 4)


def test_lengths_scale_and_shifts_and_turns_leave_them():
    parents = torch.randn(2, 6, generator=generator(5), dtype=torch.float64)
    offspring = parents.unsqueeze(1) + torch.randn(2, 4, 6, generator=generator(6), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator(7), dtype=torch.float64)).Q
    plain = children.spread(parents, offspring)
    moved = children.spread(3 * parents @ turn + 1, 3 * offspring @ turn + 1)
    for name, factor in {"reach": 3, "gyration": 3, "diameter": 3, "effective_dimension": 1}.items():
        assert moved[name].values == pytest.approx(factor * plain[name].values)
        assert moved[f"{name}_se"].values == pytest.approx(factor * plain[f"{name}_se"].values)
    assert moved["log_volume"].values == pytest.approx(plain["log_volume"].values + 4 * math.log(3))


def test_sizes_of_a_known_triangle():
    offspring = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    sizes = children.spread(torch.zeros(1, 2), offspring)
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
    first, second = (children.disagreement(en.outputs(e, inputs)[None]) for e in both)
    assert first.item() == pytest.approx(second.item())
    assert 0 < first.item() < 1
    reach = [children.spread(en.vectors(e)[:1], en.vectors(e)[None, 1:])["reach"].item() for e in both]
    assert reach[1] > 2 * reach[0]


def test_dropout_is_drawn_from_the_generator():
    """The same seed gives the same children, whatever torch's own random numbers are; and leaves those alone."""
    network = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    ensemble = en.stack([network])
    objective, parents = of_networks(ensemble, batch(40), minibatch=8), en.vectors(ensemble)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(children.children(objective, parents, 10.0, Budget(4, 30), generator("dropout")))
        assert torch.equal(torch.get_rng_state(), before)
    xr.testing.assert_identical(*found)


@pytest.mark.parametrize("method", ["children", "extent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_minibatches_that_hold_everything_part_no_children(method, dtype):
    """They would differ by the order of sums, which a long training makes large: a size of nothing but rounding."""
    found = mm.size(mlp((64, 64), dtype=dtype), batch(60, dtype=dtype), 3.0, method, minibatch=60)
    assert found["status"].item() == "together"
    assert np.isnan(found["size"].item())
    usual = mm.size(mlp((64, 64), dtype=dtype), batch(60, dtype=dtype), 3.0, method)
    assert usual["status"].item() != "together" and usual["size"].item() > 1e-3


def test_dropout_parts_children_that_see_the_same_examples():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 16), nn.Dropout(0.3), nn.Linear(16, 4))
    found = mm.size(network, batch(60), 3.0, "children", minibatch=60)
    assert found["status"].item() == "ok" and found["size"].item() > 1e-3
