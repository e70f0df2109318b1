import math
from dataclasses import replace

import pytest
import torch
import xarray as xr
from cases import batch, mlp

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold import estimate
from mmstudy.manifold.curvature import curvature
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.estimators import ESTIMATORS, Estimator, sizes, table, usual_range


def test_a_status_speaks_before_the_number():
    assert ESTIMATORS["rays"].remark(-1.0, "no_plateau", 10) == "no_plateau"


@pytest.mark.parametrize(
    ("name", "value", "dim", "said"),
    [
        ("rays", -0.1, 10, "impossible: not in [0, inf]"),
        ("rays", math.nan, 10, "impossible: not in [0, inf]"),
        ("rays", 1e9, 10, "possible"),
        ("dimension", 10.5, 10, "impossible: not in [0, 10]"),
        ("dimension", 10.0, 10, "possible"),
        ("llc", 5.1, 10, "impossible: not in [0, 5]"),
        ("llc", 5.0, 10, "possible"),
        ("volume", -300.0, 10, "possible"),
    ],
)
def test_what_is_impossible_is_told(name, value, dim, said):
    assert ESTIMATORS[name].remark(value, "ok", dim) == said


def test_what_is_unusual_says_which_way():
    usual = (1.0, 2.0)
    assert ESTIMATORS["rays"].remark(1.5, "ok", 10, usual) == "usual"
    assert ESTIMATORS["rays"].remark(3.0, "ok", 10, usual) == "unusual: a larger manifold than in 1 to 2"
    assert ESTIMATORS["rays"].remark(0.5, "ok", 10, usual) == "unusual: a smaller manifold than in 1 to 2"
    assert ESTIMATORS["llc"].remark(3.0, "ok", 10, usual) == "unusual: a smaller manifold than in 1 to 2"


def test_the_usual_range_holds_the_middle_of_the_numbers():
    values = xr.DataArray([*range(101), math.nan])
    assert usual_range(values) == pytest.approx((5, 95))
    assert usual_range(values, share=0.5) == pytest.approx((25, 75))
    with pytest.raises(ValueError, match="at least 5 values; got 1"):
        usual_range(xr.DataArray([1.0, math.nan]))


def test_the_table_tells_every_estimator_apart():
    rows = table()
    assert list(rows.index) == list(ESTIMATORS)
    assert rows["description"].is_unique
    assert rows.loc["llc", "a larger number is a … manifold"] == "smaller"
    assert rows.loc["volume", "valid range"] == "−∞ to ∞"
    assert rows.loc["dimension", "valid range"] == "0 to D"
    assert all(rows["source"])
    assert len({each.color for each in ESTIMATORS.values()}) == len(ESTIMATORS)


@pytest.fixture(scope="module")
def measurable():
    networks = en.stack([mlp(seed=i, dtype=torch.float32) for i in range(2)])
    objective, parents = of_networks(networks, batch(), minibatch=16), en.vectors(networks)
    return objective, parents, float(objective(parents).max()) + 0.5


CHEAP = {name: Budget(max(2, e.budget.samples // 4), max(24, e.budget.steps // 8)) for name, e in ESTIMATORS.items()}


def test_all_sizes_of_networks_come_from_one_call(measurable):
    found = sizes(*measurable, CHEAP)
    assert list(found) == list(CHEAP) == list(ESTIMATORS)
    for one in found.values():
        assert one.sizes["parent"] == 2
        assert one.attrs["level"] == measurable[2]
        assert (one["cost"] > 0).all()
    xr.testing.assert_identical(found["curvature"], curvature(*measurable, CHEAP["curvature"], generator("curvature")))
    with pytest.raises(ValueError, match=r"unknown estimators \['reys'\]; known: children"):
        sizes(*measurable, {"reys": Budget()})


def test_a_seed_says_which_draws(measurable):
    few = {"curvature": Budget(4)}
    first, again, other = (sizes(*measurable, few, seed)["curvature"]["trace"].values for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all()
    by_name = curvature(*measurable, few["curvature"], generator("curvature", 1))
    assert (first == by_name["trace"].values).all()


def parameter_norm(objective, parents, level, budget, generator, power=1.0):
    """An estimator of a user's own: ‖θ‖, at the price of a look."""
    status, _ = estimate.starting(objective, parents, level, generator)
    norm = parents.double().norm(dim=1) ** power
    samples = norm.unsqueeze(1).expand(-1, budget.samples)
    return estimate.report(objective, level, norm, 0 * norm, samples, status, objective.examples)


OWN = Estimator(parameter_norm, "norm of the parameters", "distance²", "nobody", "k", options={"power": 2.0})


def test_an_estimator_from_outside_is_measured_like_the_others(measurable, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "norm", OWN)
    (found,) = sizes(*measurable, {"norm": Budget(2)}).values()
    assert found["size"].values == pytest.approx(measurable[1].double().square().sum(1))
    assert table().loc["norm", "description"] == "norm of the parameters"
    network = mlp()
    squares = sum(float(p.detach().square().sum()) for p in network.parameters())
    assert mm.size(network, batch(), method="norm")["size"].item() == pytest.approx(squares)
    for name in set(ESTIMATORS) - {"norm", "curvature"}:
        monkeypatch.delitem(ESTIMATORS, name)
    everything = mm.sizes(network, batch())
    assert everything["estimator"].values.tolist() == ["curvature", "norm"]
    assert everything["unit"].values.tolist() == ["distance", "distance²"]
    assert list(sizes(*measurable)) == ["curvature", "norm"]


def test_a_wrong_entry_is_refused_by_value():
    with pytest.raises(ValueError, match=r"sign is one of \(1, -1\) .*; got sign=0"):
        replace(OWN, sign=0)
    with pytest.raises(ValueError, match=r"highest one of ∞, D, D/2; got .*highest='2D'"):
        replace(OWN, highest="2D")
