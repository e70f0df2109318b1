from itertools import permutations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mmstudy.ranking import policy
from mmstudy.study import derived, policies


@given(st.integers(2, 60), st.integers(200, 10_000), st.floats(0.05, 1), st.floats(0, 0.5))
def test_a_plan_stays_within_its_budget(candidates, full_steps, budget, look):
    how = policy.plan(candidates, full_steps, budget, look)
    rows = candidates + 1
    later = full_steps - how.probe_steps
    spent = rows * (how.probe_steps + look) + how.finished * (later + look)
    assert how.probe_steps >= 1
    assert how.finished <= rows
    if budget < 1:
        assert spent <= budget * rows * (full_steps + look) + 1e-6
    assert 0 < how.share <= 1
    if how.anchored:
        assert how.finished >= min(rows, 5)


def test_the_whole_budget_trains_all():
    assert policy.plan(20, 1000, 1.0, 3.0).finished == 21


def test_a_small_pool_is_not_anchored_by_a_small_budget():
    assert not policy.plan(3, 1000, 0.1).anchored
    assert policy.plan(40, 1000, 0.2).anchored


def test_a_budget_that_is_too_small_says_how_much_is_needed():
    with pytest.raises(ValueError, match=r"budget=0\.001 of 100 steps .* at least budget=0\.0\d+"):
        policy.plan(5, 100, 0.001, 0.5)


def known(seed: int, rows: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=rows), random.normal(size=rows), random.integers(100, 200, rows).astype(float)


def experiment(score, loss, parameters) -> xr.Dataset:
    row = ("candidate", "progress")
    return xr.Dataset(
        {"validation_accuracy": (row, score[:, None]), "parameters": ("candidate", parameters)},
        {"progress": [0.1], "task": ("candidate", ["one"] * len(score))},
    )


@pytest.mark.parametrize("seed", range(5))
def test_without_anchors_the_order_is_the_studys(seed):
    score, loss, parameters = known(seed)
    lower = xr.DataArray(-loss[:, None], dims=("candidate", "progress"), coords={"progress": [0.1]})
    expected = derived.flagged(experiment(score, loss, parameters), lambda _: lower).values[:, 0]
    found = policy.order(False, score, loss, parameters)
    np.testing.assert_allclose(np.argsort(found), np.argsort(expected))


@pytest.mark.parametrize("seed", range(5))
def test_the_anchors_are_the_studys(seed):
    value = np.random.default_rng(seed).permutation(11).astype(float)
    value[3] = np.nan
    expected = policies._anchors(value, policy.PLACES, np.random.default_rng(0))
    assert sorted(policy.anchors(value)) == sorted(expected.tolist())


def test_a_row_that_diverged_has_no_place_in_the_order():
    score, loss, parameters = known(0)
    score[2] = np.nan
    assert np.isnan(policy.order(True, score, loss, parameters)).tolist() == [i == 2 for i in range(9)]
    assert 2 not in policy.anchors(policy.order(True, score, loss, parameters))


def test_where_all_diverged_there_are_no_anchors():
    assert policy.anchors(np.full(4, np.nan)) == []


def test_the_flag_says_whether_losses_and_scores_agree():
    loss = np.arange(6.0)
    assert policy.flag(-loss, loss) == pytest.approx(1)
    assert policy.flag(loss, loss) == pytest.approx(-1)
    assert np.isnan(policy.flag(np.zeros(6), loss))
    assert np.isnan(policy.flag(np.full(6, np.nan), loss))
    assert np.isnan(policy.flag(np.arange(2.0), loss[:2]))


@pytest.mark.parametrize("count", [3, 6])
def test_the_probability_of_a_flag_is_that_among_all_orders(count):
    ranks = np.arange(count)
    every = np.array([np.corrcoef(ranks, order)[0, 1] for order in permutations(ranks)])
    for flag in (-1.0, -0.5, 0.2, 1.0):
        assert policy.chance_of(flag, count) == pytest.approx((every <= flag + 1e-9).mean(), abs=0.02)


def test_an_unknown_flag_leaves_the_order_to_the_scores():
    score, loss, parameters = np.zeros(4), np.arange(4.0), np.arange(4.0)
    assert np.ptp(policy.order(False, score, loss, parameters)) == 0


def test_the_late_loss_is_the_mean_of_the_last_fifth():
    assert policy.late([10.0] * 8 + [1.0, 3.0]) == 2
    assert policy.late([4.0]) == 4
    assert np.isnan(policy.late([]))
