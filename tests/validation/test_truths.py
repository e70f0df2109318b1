"""What notebook 2 shows holds: every estimator finds its truth, and its intervals are honest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmstudy.batched.objective import of_landscape
from mmstudy.core import results
from mmstudy.core.seeds import generator
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.validation import landscapes, truths

CASES = truths.cases()
STORED = Path(__file__).parents[2] / "outputs" / "reference" / "data" / "estimators.nc"
NO_CHANCE = ("simplex", "dimension")  # on these landscapes hardly anything is left to chance


@pytest.fixture(scope="module")
def table():
    return truths.truth_table(CASES, 40)


def test_every_estimator_has_a_truth():
    assert {case.estimator for case in CASES} == ESTIMATORS.keys()


@pytest.mark.parametrize("i", range(len(CASES)), ids=[f"{c.estimator}, {c.landscape}" for c in CASES])
def test_each_is_found_within_five_percent(table, i):
    one = table.isel(case=i)
    assert abs(one["bias"]) < 0.03 + 3 * one["bias_se"]
    assert one["error"] < 0.06  # the median of single estimates
    assert one["coverage"] >= 0.8  # of 40; the stored table below has 200


def test_the_stored_table_covers_as_it_says():
    """200 repetitions of every case: bias and error within 5%, coverage between 90% and 99% where there is chance."""
    stored = results.load(STORED)
    assert stored["landscape"].values.tolist() == [case.landscape for case in CASES]
    assert (abs(stored["bias"]) < 0.05).all()
    assert (stored["error"] < 0.055).all()
    chance = ~stored["estimator"].isin(NO_CHANCE)
    assert (stored["coverage"].where(chance, drop=True) >= 0.9 - 2 * (0.9 * 0.1 / 200) ** 0.5).all()
    assert (stored["coverage"].where(chance, drop=True) <= 0.99 + 1e-9).all()
    slopes = np.polyfit(np.log(stored["samples_drawn"]), np.log(stored["growth"]).T, 1)[0]
    shares = stored["grown_estimator"].values == "llc"  # one temperature for all its repetitions: that error stays
    assert slopes[~shares] == pytest.approx(-0.5, abs=0.15)
    assert slopes[shares] == pytest.approx(-0.5, abs=0.25)


def test_repetitions_are_regrouped_as_if_run_alone():
    (case,) = [c for c in CASES if (c.estimator, c.landscape) == ("rays", "ellipse")]
    found = truths.repeated(case, 50)
    alone = [case.estimate(i)["size"].item() for i in range(50)]
    assert found["size"].std() == pytest.approx(np.std(alone), rel=0.5)
    assert abs(found["size"].mean() - np.mean(alone)) < 4 * np.std(alone) * (2 / 50) ** 0.5
    assert found["cost"].values == pytest.approx([found["cost"].values[0]] * 50)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_all_take_the_same_arguments_and_say_the_same_of_bad_parents(name):
    """One at the minimum, one above the level, one that is not a number; then each alone gives the same."""
    h = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    objective = of_landscape(landscapes.ellipsoid(h), 3, noise=0.05)
    parents = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]], dtype=torch.float64)
    budget = Budget(samples=12, steps=60)
    found = ESTIMATORS[name].estimate(objective, parents, 0.5, budget, generator(name))
    assert found["status"].values.tolist()[1:] == ["outside", "nan"]
    assert found["status"].values[0] in ("ok", "at_limit", "no_plateau", "few_rays", "censored")
    assert found["size"].isnull().values.tolist()[1:] == [True, True]
    assert found["size_se"].isnull().values.tolist()[1:] == [True, True]
    assert {"size", "size_se", "samples", "status", "cost"} <= found.keys()
    assert found["samples"].dims == ("parent", "sample")
    assert found.attrs == {"level": 0.5, "normalization": "none"}
    assert (found["cost"] > 0).all()
    alone = ESTIMATORS[name].estimate(objective, parents[:1], 0.5, budget, generator(name))
    assert alone["size"].values == pytest.approx(found["size"].values[:1], rel=1e-6, nan_ok=True)
    with pytest.raises(ValueError, match="no parents"):
        ESTIMATORS[name].estimate(objective, parents[:0], 0.5, budget, generator(name))
    with pytest.raises(ValueError, match="finite loss; got inf"):
        ESTIMATORS[name].estimate(objective, parents, torch.inf, budget, generator(name))
