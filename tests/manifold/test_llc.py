import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr
from cases import batch, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import replay
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.manifold.estimate import PASS, STEP, Budget
from mmstudy.manifold.llc import llc
from mmstudy.validation import landscapes, singular

TALL, SQUARE = torch.tensor([[1.0, -1.0, 0.3], [0.5, -0.5, 0.15]]), torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 0]])
DECADE = torch.logspace(-0.5, 0.5, 10, dtype=torch.float64)
INPUTS = torch.randn(200, 2, generator=generator("inputs"), dtype=torch.float64)
NEURON = torch.tensor([1.0, 0.5], dtype=torch.float64)


def measured(landscape, start, level, samples=16, steps=400, seed=0, **options) -> xr.Dataset:
    """The estimate from one start, as the only parent."""
    start = torch.as_tensor(start)
    objective = of_landscape(landscape, start.shape[-1])
    parents = start if start.ndim == 2 else start.unsqueeze(0)
    return llc(objective, parents, level, Budget(samples, steps), generator("llc", seed), **options)


def zeros(dim: int) -> torch.Tensor:
    return torch.zeros(dim, dtype=torch.float64)


def factors(target, hidden):
    """A factorization: the landscape, its balanced minimum, a low level, its coefficient."""
    target, rank = target.double(), int(torch.linalg.matrix_rank(target))
    exact = singular.factorization_coefficient(*target.shape, hidden, rank)
    return landscapes.factorization(target, hidden), landscapes.factorization_minimum(target, hidden), 0.01, exact


def sum_of(*orders):
    return singular.monomials(orders), zeros(len(orders)), 0.1, singular.monomials_coefficient(orders)


TRUTHS = {  # landscape, start, level, exact coefficient
    "a decade of curvatures": (landscapes.ellipsoid(DECADE), zeros(10), 0.1, 5.0),
    "flat directions": (landscapes.ellipsoid(torch.tensor([3, 1, 0.3, 1, 0, 0, 0])), zeros(7), 0.5, 2.0),
    "quadratic and quartic": sum_of(1, 1, 2, 2),
    "orders 1, 2, 3": sum_of(1, 2, 3),
    "factors 2 × 1 × 3": factors(TALL, 1),
    "factors 3 × 2 × 3": factors(SQUARE, 2),
    "ring": (landscapes.ring(), torch.tensor([1.0, 0.0], dtype=torch.float64), 0.001, 0.5),
    "shell": (landscapes.ring(), torch.tensor([1.0, 0, 0], dtype=torch.float64), 0.001, 0.5),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_known_coefficients_within_five_percent_and_honest_errors(name):
    """200 repetitions of 32 chains of 200 steps: on the whole within 5%, and 95% intervals that cover."""
    landscape, start, level, exact = TRUTHS[name]
    found = measured(landscape, start, level, samples=6400, steps=200)
    assert found["status"].item() == "ok"
    assert found["size"].item() == pytest.approx(exact, rel=0.05)
    groups = found["samples"].values.reshape(200, 32)
    error = groups.std(1, ddof=1) / 32**0.5
    covered = (abs(groups.mean(1) - exact) < 1.96 * error).mean()
    assert 0.9 <= covered <= 0.99, f"{covered:.0%} of the intervals cover the truth"


def test_an_error_that_knows_of_its_own_search_for_temperature_and_step_size():
    """Whole runs repeated, each with its own temperature and step size."""
    landscape, start, level, exact = TRUTHS["quadratic and quartic"]
    runs = [measured(landscape, start, level, samples=32, steps=60, leaps=1, seed=i) for i in range(30)]
    runs = [run for run in runs if run["status"].item() == "ok"]
    z = np.array([(run["size"].item() - exact) / run["size_se"].item() for run in runs])
    assert len(runs) >= 27
    assert abs(z.mean()) < 4 / len(z) ** 0.5
    assert 0.7 < z.std() < 1.4


def test_the_error_falls_as_one_over_the_root_of_the_number_of_chains():
    landscape, start, level, _ = TRUTHS["a decade of curvatures"]
    errors = [measured(landscape, start, level, samples=n, steps=200)["size_se"].item() for n in (100, 1600)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


def test_a_duplicated_neuron_counts_once():
    """L is quadratic in a₁w₁ + a₂w₂ alone: features/2, however many parameters the copies have."""
    landscape = landscapes.duplicated(INPUTS, NEURON, 1.0)
    start = landscapes.duplicated_minimum(NEURON, 0.6, 0.4)
    found = measured(landscape, start, 1e-9, samples=200, steps=300, reach=10.0)
    assert found["status"].item() == "ok"
    assert found["size"].item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_degenerate_is_less_complex_and_the_device_and_type_are_the_parents(dtype):
    sizes = [
        measured(singular.monomials(orders), torch.zeros(3, dtype=dtype), 0.1, 200, 100, leaps=1)["size"].item()
        for orders in ((3, 3, 3), (2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1))
    ]
    assert sizes == pytest.approx([0.5, 0.75, 1, 1.25, 1.5], rel=0.07)
    assert sizes == sorted(sizes)


@given(length=st.integers(-4, 4), height=st.integers(-4, 4))
@settings(max_examples=6, deadline=None)
def test_neither_the_unit_of_length_nor_that_of_loss_matters(length, height):
    """Powers of four are exact in floating point, and so is the invariance."""
    plain = singular.monomials((1, 1, 2))
    scaled = lambda p: 4.0**height * plain(p / 4.0**length)  # noqa: E731
    one = measured(plain, zeros(3), 0.25, steps=60)
    other = measured(scaled, zeros(3), 0.25 * 4.0**height, steps=60)
    assert other["size"].values == pytest.approx(one["size"].values, rel=1e-6, nan_ok=True)
    assert other["status"].item() == one["status"].item()
    if one["status"].item() == "ok":
        assert other["temperature"].item() == pytest.approx(one["temperature"].item() * 4.0**height)
        assert other["step_size"].item() == pytest.approx(one["step_size"].item() * 4.0**length)


def test_the_temperature_puts_the_chains_at_the_level_and_the_slope_says_what_another_would_do():
    """Against quadrature, for a loss whose coefficient goes from ½ (low) to ¼ (high) in each of three coordinates."""
    landscape = lambda p: (p**2 / 2 + 3 * p**4).sum(-1)  # noqa: E731
    found = measured(landscape, zeros(3), 0.4, samples=2000, steps=400).isel(parent=0)
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    loss, t, pull = x**2 / 2 + 3 * x**4, 1 / found["temperature"].item(), found["localization"].item()

    def exact(t: float) -> float:
        weight = (-t * loss - pull / 2 * x**2).softmax(0)
        return 3 * t * float((weight * loss).sum())

    assert found["height"].item() == pytest.approx(1, abs=0.1)
    assert found["size"].item() == pytest.approx(found["height"].item() * t * 0.4)
    assert abs(found["size"].item() - exact(t)) < 4 * found["size_se"].item()
    slope = exact(t * math.exp(0.5)) - exact(t * math.exp(-0.5))
    assert slope > 0.03
    assert found["slope"].item() == pytest.approx(slope, abs=0.02)


NO_PLATEAU = {  # landscape, start, level
    "a slope": (lambda p: p.sum(-1), zeros(3), 1.0),
    "a saddle": (lambda p: p[..., 0] ** 2 - p[..., 1] ** 2, zeros(2), 1.0),
    "constant": (lambda p: 0 * p.sum(-1), zeros(3), 1.0),
    "a long valley": (landscapes.ellipsoid(torch.logspace(-3, 3, 12)), zeros(12), 0.1),
}


@pytest.mark.parametrize("name", NO_PLATEAU)
def test_chains_without_a_plateau_have_no_number(name):
    landscape, start, level = NO_PLATEAU[name]
    found = measured(landscape, start, level, steps=100, reach=1000.0)
    assert found["status"].item() == "no_plateau"
    assert np.isnan(found["size"].item())
    assert np.isnan(found["samples"].values).all()


def test_a_parent_is_measured_as_if_it_were_alone():
    """Among parents of which one is above the level, one no number, one on the level itself."""
    landscape = landscapes.ellipsoid(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    parents = torch.tensor([[0, 0, 0], [9, 0, 0], [0.1, 0, 0], [math.nan, 0, 0], [1, 0, 0]], dtype=torch.float64)
    together = measured(landscape, parents, 0.5, steps=200)
    assert together["status"].values.tolist() == ["ok", "outside", "ok", "nan", "outside"]
    assert np.isfinite(together["size"].values).tolist() == [True, False, True, False, False]
    for i in (0, 2):
        alone = measured(landscape, parents[i], 0.5, steps=200)
        xr.testing.assert_allclose(together.isel(parent=[i]), alone, rtol=1e-9)
    again = measured(landscape, parents, 0.5, steps=200)
    assert again.identical(together)


def test_the_cost_is_that_of_the_points_that_were_looked_at(monkeypatch):
    monkeypatch.setattr(replay, "AFTER", math.inf)  # what is recorded, no landscape can count
    seen = {True: 0, False: 0}

    def landscape(points):
        seen[torch.is_grad_enabled()] += points.shape[:-1].numel()
        return (points**2).sum(-1)

    found = measured(landscape, zeros(2), 0.1, samples=5, steps=50, leaps=3)
    assert found["cost"].item() == PASS * seen[False] + STEP * seen[True]
    assert seen[True] == 1 + 5 * 48


def linear_networks(*sizes: int) -> tuple[en.Ensemble, torch.Tensor]:
    """Two copies of a linear network, and inputs."""
    network = nn.Sequential(*[nn.Linear(a, b, bias=False).double() for a, b in pairwise(sizes)])
    initialize(network, generator("linear network"))
    return en.stack([network] * 2), torch.randn(50, sizes[0], generator=generator("x"), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(4, 2), (3, 1, 2), (3, 2, 3)])
def test_networks_that_are_linear_have_the_coefficient_of_regression(sizes):
    ensemble, inputs = linear_networks(*sizes)
    rank = min(sizes)
    exact = singular.factorization_coefficient(sizes[-1], sizes[0], rank, rank)
    targets = en.outputs(ensemble, inputs)[0]
    objective = of_networks(ensemble, (inputs, targets), en.regression, minibatch=50)
    found = llc(objective, en.vectors(ensemble), 1e-4, Budget(200, 200), generator("linear"))
    assert found["status"].values.tolist() == ["ok", "ok"]
    assert found["size"].values == pytest.approx([exact] * 2, rel=0.05)


def test_a_network_is_as_complex_as_its_hessian_says_alone_or_together_permuted_or_rescaled():
    """On its own outputs, near the minimum: λ̂ = ½ Σ h/(h + γ/t), the Hessian built column by column."""
    network = mlp((3,), dtype=torch.float64)
    permuted, rescaled = copy.deepcopy(network), copy.deepcopy(network)
    order = [2, 0, 1]
    with torch.no_grad():
        first, last = permuted.hidden[0], permuted.head
        for part in (first.weight, first.bias, last.weight.T):
            part.copy_(part[order].clone())
        rescaled.hidden[0].weight.mul_(1.25), rescaled.hidden[0].bias.mul_(1.25), rescaled.head.weight.div_(1.25)
    ensemble, (inputs, _) = en.stack([network, permuted, rescaled]), batch(100, dtype=torch.float64)
    targets = en.outputs(ensemble, inputs)[0]
    objective, parents = of_networks(ensemble, (inputs, targets), en.regression, minibatch=50), en.vectors(ensemble)
    assert float(objective(parents).max()) < 1e-20
    found = llc(objective, parents, 1e-8, Budget(32, 300), generator("network"), reach=4.0)
    assert found["status"].values.tolist() == ["ok"] * 3
    dim = parents.shape[1]
    columns = torch.eye(dim).to(parents).expand(3, dim, dim)
    curvatures = torch.linalg.eigvalsh(objective.hessian_vector(parents, columns))
    held = torch.as_tensor((found["localization"] * found["temperature"]).values)[:, None]
    exact = (curvatures / (curvatures + held)).sum(1).numpy() / 2
    assert int((curvatures[0] > 1e-9).sum()) == dim - 3  # each neuron can be rescaled
    assert found["size"].values == pytest.approx(exact, rel=0.05)
    assert (abs(found["size"].values - exact) < 4 * found["size_se"].values).all()
    single = of_networks(ensemble[:1], (inputs, targets), en.regression, minibatch=50)
    alone = llc(single, parents[:1], 1e-8, Budget(32, 300), generator("network"), reach=4.0)
    xr.testing.assert_allclose(found.isel(parent=[0]), alone, rtol=1e-4)


def test_coefficients_of_factorizations():
    coefficient = singular.factorization_coefficient
    assert coefficient(1, 1, 1, 0) == 0.5  # ½u²v²
    assert coefficient(2, 3, 1, 1) == 2  # codimension 4
    assert coefficient(2, 2, 2, 0) == 1.5
    assert coefficient(2, 2, 4, 0) == 2  # s = rows + columns: regular in the product
    with pytest.raises(ValueError, match="no product of 2 × 1 and 1 × 3 matrices has rank 2"):
        coefficient(2, 3, 1, 2)


@given(rows=st.integers(1, 8), columns=st.integers(1, 8), hidden=st.integers(1, 8), rank=st.integers(0, 8))
def test_a_most_singular_point_is_at_most_as_complex_as_a_smooth_one(rows, columns, hidden, rank):
    """λ ≤ half the codimension, with equality where the set is smooth, hidden = rank; ½‖u‖²‖v‖² has a closed form."""
    rank = min(rank, rows, columns, hidden)
    found = singular.factorization_coefficient(rows, columns, hidden, rank)
    smooth = (hidden * (rows + columns) - landscapes.factorization_dimension(rows, columns, hidden, rank)) / 2
    assert rank * (rows + columns - rank) / 2 <= found <= smooth
    assert found == singular.factorization_coefficient(columns, rows, hidden, rank)
    if hidden == rank:
        assert found == smooth
    assert singular.factorization_coefficient(rows, columns, 1, 0) == min(rows, columns) / 2


def test_bad_options_are_refused():
    landscape = landscapes.ellipsoid(torch.ones(2))
    for leaps in (0, -1, 9):
        with pytest.raises(ValueError, match=f"100 steps in leaps of {leaps}: take leaps ≥ 1 and steps ≥ 12 times"):
            measured(landscape, torch.zeros(2), 0.5, steps=100, leaps=leaps)
    for reach in (1.9, -3.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="reach must be finite and ≥ 2"):
            measured(landscape, torch.zeros(2), 0.5, reach=reach)
    with pytest.raises(ValueError, match="level must be a finite loss; got nan"):
        measured(landscape, torch.zeros(2), math.nan)
