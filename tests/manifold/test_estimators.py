import math

import pytest
import torch
import xarray as xr
from cases import batch, mlp

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.curvature import curvature
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.estimators import ESTIMATORS, FIRST_LOOK, sizes, table, usual_range


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
    assert rows["what"].is_unique
    assert rows.loc["llc", "a larger number is a … manifold"] == "smaller"
    assert rows.loc["volume", "valid range"] == "−∞ to ∞"
    assert rows.loc["dimension", "valid range"] == "0 to D"


def test_all_sizes_of_networks_come_from_one_call():
    networks = en.stack([mlp(seed=i, dtype=torch.float32) for i in range(2)])
    objective, parents = of_networks(networks, batch(), minibatch=16), en.vectors(networks)
    level = float(objective(parents).max()) + 0.5
    budgets = {name: Budget(max(2, b.samples // 4), max(24, b.steps // 8)) for name, b in FIRST_LOOK.items()}
    found = sizes(objective, parents, level, budgets)
    assert list(found) == list(budgets)
    for one in found.values():
        assert one.sizes["parent"] == 2
        assert one.attrs["level"] == level
        assert (one["cost"] > 0).all()
    alone = curvature(objective, parents, level, budgets["curvature"], generator("curvature"))
    xr.testing.assert_identical(found["curvature"], alone)
    with pytest.raises(ValueError, match=r"unknown estimators \['reys'\]; known: children"):
        sizes(objective, parents, level, {"reys": Budget()})
