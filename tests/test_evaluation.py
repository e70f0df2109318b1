from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmstudy import evaluation

OPERATORS = ["net2net"] * 4 + ["random"] * 4 + ["deeper_identity"] * 2 + ["deeper_random"] * 2


def table(values, sizes, tasks=2, seed=0):
    """Predictions of `parameters` and one more predictor, and gains, over tasks × candidates."""
    rng = np.random.default_rng(seed)
    stacked = np.stack([np.broadcast_to(sizes, (tasks, len(sizes))).astype(float), values], axis=-1)
    predicted = xr.Dataset(
        {"value": (("task", "candidate", "predictor"), stacked)},
        {"task": range(tasks), "operator": ("candidate", OPERATORS), "predictor": ["parameters", "other"]},
    )
    gain = rng.normal(size=(1, 1, tasks, len(sizes)))
    gained = xr.Dataset(
        {"gain": (("score", "checkpoint", "task", "candidate"), gain)}, {"score": ["accuracy"], "checkpoint": ["last"]}
    )
    return predicted, gained


@pytest.fixture
def example():
    rng = np.random.default_rng(1)
    return table(rng.normal(size=(2, 12)), np.repeat([1, 2, 3, 4], 3))


def test_correlations_are_those_of_scipy(example):
    predicted, gained = example
    scores = evaluation.scores(predicted, gained)
    for t in range(2):
        x, y = predicted["value"].values[t, :, 1], gained["gain"].values[0, 0, t]
        size = predicted["value"].values[t, :, 0]
        one = scores.sel(task=t, predictor="other")
        assert float(one["spearman"].sel(group="all")) == pytest.approx(stats.spearmanr(x, y).statistic)
        assert float(one["spearman"].sel(group="random")) == pytest.approx(stats.spearmanr(x[4:8], y[4:8]).statistic)
        assert float(one["spearman"].sel(group="deeper")) == pytest.approx(stats.spearmanr(x[8:], y[8:]).statistic)
        assert float(one["kendall"]) == pytest.approx(stats.kendalltau(x, y).statistic)
        ranks = [stats.rankdata(v) for v in (x, y, size)]  # the partial correlation as one of residuals
        rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
        assert float(one["partial"]) == pytest.approx(stats.pearsonr(*rest).statistic)
        pairs = [(i, j) for i, j in combinations(range(12), 2) if size[i] == size[j]]
        right = [(x[i] > x[j]) == (y[i] > y[j]) for i, j in pairs]
        assert float(one["same_size"]) == pytest.approx(np.mean(right))
        assert float(one["regret"]) == pytest.approx(y.max() - y[x.argmax()])
        assert float(one["precision"]) == pytest.approx(len({*np.argsort(x)[-3:]} & {*np.argsort(y)[-3:]}) / 3)
    assert scores["partial"].sel(predictor="parameters").isnull().all()
    assert (scores["same_size"].sel(predictor="parameters") == 0.5).all()


def test_a_perfect_predictor_is_perfect(example):
    predicted, gained = example
    predicted["value"].values[..., 1] = gained["gain"].values[0, 0]
    one = evaluation.scores(predicted, gained).sel(predictor="other")
    for name, best in (
        ("spearman", 1),
        ("kendall", 1),
        ("partial", 1),
        ("same_size", 1),
        ("regret", 0),
        ("precision", 1),
    ):
        assert one[name].values == pytest.approx(best)


def test_what_was_not_measured_ranks_last_and_what_has_no_gain_is_left_out(example):
    predicted, gained = example
    predicted["value"].values[0, 3, 1] = np.nan
    worst = predicted.copy(deep=True)
    worst["value"].values[0, 3, 1] = -1e9
    unknown = gained.copy(deep=True)
    unknown["gain"].values[0, 0, 1, :2] = np.nan
    first, second = evaluation.scores(predicted, unknown), evaluation.scores(worst, unknown)
    xr.testing.assert_allclose(first, second)
    assert first["left_out"].values.tolist() == [0, 2]
    x, y = predicted["value"].values[1, 2:, 1], gained["gain"].values[0, 0, 1, 2:]
    expected = stats.spearmanr(x, y).statistic
    assert float(first["spearman"].sel(task=1, predictor="other", group="all")) == pytest.approx(expected)
    unknown["gain"].values[0, 0, 1, :9] = np.nan
    with pytest.raises(ValueError, match="3 of 12 candidates have a gain"):
        evaluation.scores(predicted, unknown)


def simulated(between, within, rng, candidates=30, seeds=3, repetitions=200):
    """An experiment of `repetitions` tasks whose gains have known components of variance."""
    true = rng.normal(0, between, (repetitions, candidates, 1, 1))
    control = rng.normal(0, 5, (repetitions, seeds, 1))  # shared by all candidates: no part of the noise
    accuracy = true + rng.normal(0, within, (repetitions, candidates, seeds, 1)) + control[:, None]
    dims = ("task", "candidate", "seed", "checkpoint")
    data = {f"{name}": (dims, accuracy / 100) for name in ("accuracy", "nll", "ece")}
    data |= {f"control_{name}": (("task", "seed", "checkpoint"), control * 0) for name in ("accuracy", "nll", "ece")}
    return xr.Dataset(data)


@pytest.mark.parametrize(("between", "within"), [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0)])
def test_reliability_estimates_the_known_one(between, within):
    gains = evaluation.gains(simulated(between, within, np.random.default_rng(0)))
    # 1/(1 − reliability) is, up to a factor, F-distributed: compare the mean square ratio with its expectation
    ratio = 1 / (1 - gains["reliability"].sel(score="accuracy").values.ravel())
    true = (3 * between**2 + within**2) / within**2
    expected = true * 58 / 56  # mean of F(29, 58)
    z = (ratio.mean() - expected) / (ratio.std(ddof=1) / len(ratio) ** 0.5)
    assert abs(z) < 4


def test_gains_are_paired_with_the_control_and_point_upwards():
    scores = np.array([[[[0.9]], [[0.5]]]]).repeat(2, axis=2) + np.array([0.0, 0.02]).reshape(1, 1, 2, 1)
    control = np.array([[[0.6], [0.62]]])
    dims = ("task", "candidate", "seed", "checkpoint")
    data = dict.fromkeys(("accuracy", "nll", "ece"), (dims, scores))
    data |= {f"control_{n}": (("task", "seed", "checkpoint"), control) for n in ("accuracy", "nll", "ece")}
    gains = evaluation.gains(xr.Dataset(data)).squeeze(drop=True)
    assert gains["gain"].sel(score="accuracy").values == pytest.approx([30, -10])
    assert gains["gain"].sel(score="nll").values == pytest.approx([-0.3, 0.1])
    assert gains["gain"].sel(score="ece").values == pytest.approx([-30, 10])
    assert gains["gain_se"].values == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12, unique=True))
def test_the_front_is_what_no_other_point_beats(points):
    cost, merit = np.array(points, dtype=float).T
    beaten = [
        any(c <= cost[i] and m >= merit[i] and (c, m) != points[i] for c, m in points) for i in range(len(points))
    ]
    assert evaluation.front(cost, merit).tolist() == [not b for b in beaten]


def test_bootstrap_of_a_constant_and_of_a_paired_difference():
    same = evaluation.bootstrap(xr.DataArray(np.full(6, 0.3), dims="task"))
    assert [float(same[n]) for n in ("mean", "low", "high")] == pytest.approx([0.3] * 3)
    noise = np.random.default_rng(0).normal(size=6)
    paired = evaluation.bootstrap(xr.DataArray(noise + 0.1, dims="task") - xr.DataArray(noise, dims="task"))
    assert float(paired["low"]) == pytest.approx(0.1) == float(paired["high"])
    spread = evaluation.bootstrap(xr.DataArray(noise, dims="task"))
    assert float(spread["low"]) < noise.mean() < float(spread["high"])
