import json
from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from mmstudy.study import evaluation
from mmstudy.study.predictors import PREDICTORS

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


def test_bootstrap_of_a_constant_and_of_a_paired_difference():
    same = evaluation.bootstrap(xr.DataArray(np.full(6, 0.3), dims="task"))
    assert [float(same[n]) for n in ("mean", "low", "high")] == pytest.approx([0.3] * 3)
    noise = np.random.default_rng(0).normal(size=6)
    paired = evaluation.bootstrap(xr.DataArray(noise + 0.1, dims="task") - xr.DataArray(noise, dims="task"))
    assert float(paired["low"]) == pytest.approx(0.1) == float(paired["high"])
    spread = evaluation.bootstrap(xr.DataArray(noise, dims="task"))
    assert float(spread["low"]) < noise.mean() < float(spread["high"])


STEPS, EXAMPLES = 1000, 128


@pytest.fixture
def measured():
    """What a sweep of two tasks, five candidates, two step sizes and two lengths of the probe could have returned."""
    rng = np.random.default_rng(3)
    shape = {"task": 2, "candidate": 5, "rate": 2, "early": 20, "probe": 2}

    def draw(*dims):
        return dims, rng.normal(size=[shape[d] for d in dims])

    data = {name: draw("task", "candidate") for name in ("flops", "loss", "gradient_norm")}
    data["parameters"] = ("task", "candidate"), np.array([[10, 20, 20, 40, 80]] * 2)
    data["early_loss"] = draw("task", "candidate", "rate", "early")
    for name in ("reach", "extent_children", "extent_random", "disagreement", "centre_loss", "explorer_loss"):
        data[name] = draw("candidate", "probe", "task", "rate")
    costs = {"children": 1.0, "rays": 1.5, "random": 1.2, "predictions": 1.1, "centre": 1.05}
    for name, factor in costs.items():
        data[f"{name}_cost"] = ("task", "probe"), np.array([[30_000.0 * factor, 60_000 * factor]] * 2)
    coords = {
        "task": ["one", "two"], "candidate": list("abcde"), "rate": [1.0, 2.0], "early": range(10, 201, 10),
        "probe": [20, 40], "operator": ("candidate", ["net2net", "net2net", "random", "random", "deeper_random"]),
        "label_noise": ("task", [0.0, 0.2]), "dataset": ("task", ["digits", "digits"]),
    }  # fmt: skip
    data["probe_examples"] = "task", [EXAMPLES - 10, EXAMPLES + 10]
    data["examples_cost"] = "task", [4000, 6000]
    budget = {"steps": STEPS, "early_bin": 10}
    attrs = {"full_cost": 3 * STEPS * EXAMPLES, "parameters": json.dumps({"budget": budget})}
    return xr.Dataset(data, coords, attrs)


def column(predicted: xr.Dataset, name: str) -> np.ndarray:
    return predicted["value"].sel(predictor=name).values


def test_predictions_are_what_was_measured_turned_upwards(measured):
    predicted = evaluation.predictions(measured)
    assert predicted["value"].dims == ("task", "candidate", "predictor")
    assert (column(predicted, "parameters") == measured["parameters"]).all()
    assert (column(predicted, "loss") == -measured["loss"]).all()
    for name in ("reach", "extent_random", "centre_loss"):
        for r, rate in enumerate((1, 2)):
            for p, probe in enumerate((20, 40)):
                each = measured[name].isel(rate=r, probe=p).transpose("task", "candidate").values
                assert (column(predicted, f"{name} ×{rate} @{probe}") == PREDICTORS[name].sign * each).all()
    labels = predicted["predictor"].values.tolist()
    assert len(set(labels)) == len(labels) == 2 * (4 + 2 * 5 + 6 * 2 * 2) - 2  # sizes alone are not combined


def test_the_early_loss_is_the_mean_over_the_last_fifth_of_its_run(measured):
    predicted = evaluation.predictions(measured)
    for length in (10, 20, 50, 100, 200):  # 1, 2, 5, 10 and 20 percent of the steps
        last = [i for i in range(20) if 0.8 * length < 10 * (i + 1) <= length]
        assert last
        for r in range(2):
            mean = np.mean([measured["early_loss"].values[:, :, r, i] for i in last], axis=0)
            assert column(predicted, f"early_loss ×{r + 1} @{length}") == pytest.approx(-mean)


def test_costs_are_shares_of_a_full_training(measured):
    predicted, full = evaluation.predictions(measured), 3 * STEPS * EXAMPLES
    cost = dict(zip(predicted["predictor"].values.tolist(), predicted["cost"].values.tolist(), strict=True))
    assert cost["parameters"] == cost["flops"] == 0
    shared = 5000 / 5  # the choice of examples, by five candidates
    assert cost["loss"] == pytest.approx((EXAMPLES + shared) / full)
    assert cost["gradient_norm"] == pytest.approx((3 * EXAMPLES + shared) / full)
    assert cost["early_loss ×2 @50"] == pytest.approx(50 / STEPS)
    for name, factor in (("reach", 1), ("explorer_loss", 1), ("extent_children", 1.5), ("extent_random", 1.2),
                         ("disagreement", 1.1), ("centre_loss", 1.05)):  # fmt: skip
        for length in (20, 40):
            own = 30_000 * factor * length / 20 + shared * (factor > 1)
            assert cost[f"{name} ×1 @{length}"] == pytest.approx(own / full)
            assert cost[f"{name} ×1 @{length} + parameters"] == cost[f"{name} ×1 @{length}"]


def test_combined_is_the_mean_of_two_ranks_and_what_was_not_measured_ranks_last(measured):
    measured["reach"].loc[{"candidate": "b", "task": "two", "probe": 40, "rate": 2}] = np.nan
    predicted = evaluation.predictions(measured)
    for t in range(2):
        size = column(predicted, "parameters")[t]
        reach = column(predicted, "reach ×2 @40")[t]
        assert np.isnan(reach).sum() == t
        known = np.where(np.isnan(reach), -1e9, reach)
        for c in range(5):  # a rank: how many are below, and the middle place of those alike
            ranks = [sum(row < row[c]) + (sum(row == row[c]) + 1) / 2 for row in (known, size)]
            assert column(predicted, "reach ×2 @40 + parameters")[t, c] == pytest.approx(np.mean(ranks))
    combined = predicted["predictor"].where(predicted["combined"], drop=True).values
    assert all(name.endswith("+ parameters") for name in combined)
    assert set(predicted["measure"].values[predicted["combined"].values]).isdisjoint({"parameters", "flops"})


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("early_loss", 1.0, 0.1), "early_loss ×1 @100"),
        (("early_loss", 2.0, 0.06, True), "early_loss ×2 @50 + parameters"),
        (("reach", 1.0, 0.9), "reach ×1 @40"),
        (("reach", 1.0), "reach ×1 @20"),
        (("loss",), "loss"),
    ],
)
def test_a_predictor_is_found_by_what_it_is(measured, words, name):
    assert evaluation.find(evaluation.predictions(measured), *words) == name


def test_ties_share_their_ranks_and_a_constant_tells_nothing(example):
    predicted, gained = example
    predicted["value"].values[0, :, 1] = [1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3]
    predicted["value"].values[1, :, 1] = 7
    gained["gain"].values[0, 0, 0] = np.round(gained["gain"].values[0, 0, 0])
    gained["gain"].values[0, 0, 0, :3] = [1, 1, 2]  # the first two have one size and one gain: no pair to order
    scores = evaluation.scores(predicted, gained).sel(predictor="other")
    x, y = predicted["value"].values[0, :, 1], gained["gain"].values[0, 0, 0]
    assert len(set(y)) < 12
    assert float(scores["spearman"].sel(task=0, group="all")) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert float(scores["kendall"].sel(task=0)) == pytest.approx(stats.kendalltau(x, y, variant="b").statistic)
    size = predicted["value"].values[0, :, 0]
    pairs = [(i, j) for i, j in combinations(range(12), 2) if size[i] == size[j] and y[i] != y[j]]
    right = [0.5 if x[i] == x[j] else float((x[i] > x[j]) == (y[i] > y[j])) for i, j in pairs]
    assert 0.5 in right
    assert float(scores["same_size"].sel(task=0)) == pytest.approx(np.mean(right))
    assert (scores["spearman"].sel(task=1) == 0).all()
    assert scores["same_size"].sel(task=1) == 0.5


def test_without_pairs_of_one_size_there_is_no_share_of_them(example):
    predicted, gained = example
    predicted["value"].values[..., 0] = np.arange(12)
    assert evaluation.scores(predicted, gained)["same_size"].isnull().all()


def test_a_turned_predictor_has_the_opposite_correlations(example):
    predicted, gained = example
    turned = predicted.copy(deep=True)
    turned["value"].values[..., 1] *= -1
    first, second = (evaluation.scores(p, gained).sel(predictor="other") for p in (predicted, turned))
    for name in ("spearman", "kendall", "partial"):
        assert second[name].values == pytest.approx(-first[name].values)
    assert second["same_size"].values == pytest.approx(1 - first["same_size"].values)


def test_reliability_is_cronbachs_alpha():
    """Held against the textbook: k/(k−1) (1 − Σ var(seed) / var(sum over seeds))."""
    experiment = simulated(1.0, 1.0, np.random.default_rng(4), candidates=7, seeds=4, repetitions=3)
    found = evaluation.gains(experiment)["reliability"].sel(score="accuracy").values.ravel()
    for t in range(3):
        each = experiment["accuracy"].values[t, :, :, 0]  # (candidate, seed)
        alpha = 4 / 3 * (1 - each.var(0, ddof=1).sum() / each.sum(1).var(ddof=1))
        assert found[t] == pytest.approx(alpha)


def test_a_diverged_run_leaves_its_candidate_without_a_gain_and_the_others_with_theirs():
    experiment = simulated(1.0, 1.0, np.random.default_rng(5), candidates=6, repetitions=2)
    whole = evaluation.gains(experiment)["gain"]
    experiment["accuracy"].values[0, 2, 1] = np.nan
    holed = evaluation.gains(experiment)["gain"]
    lost = holed.isnull() & whole.notnull()
    assert int(lost.sum()) == 1
    assert bool(lost.sel(score="accuracy").isel(task=0, candidate=2).squeeze())
    xr.testing.assert_allclose(holed.where(~lost), whole.where(~lost))


def test_bootstrap_is_that_of_a_plain_loop_and_repeats_itself():
    values = np.random.default_rng(1).normal(size=(5, 2))
    table = xr.DataArray(values, dims=("task", "predictor"))
    found = evaluation.bootstrap(table, repetitions=300, seed=7)
    rng = np.random.default_rng(7)
    draws = rng.integers(5, size=(300, 5))
    means = np.array([[np.mean([values[t, p] for t in row]) for p in range(2)] for row in draws])
    assert found["mean"].values == pytest.approx(values.mean(0))
    assert found["low"].values == pytest.approx(np.quantile(means, 0.025, axis=0))
    assert found["high"].values == pytest.approx(np.quantile(means, 0.975, axis=0))
    xr.testing.assert_identical(found, evaluation.bootstrap(table, repetitions=300, seed=7))
    assert not found.equals(evaluation.bootstrap(table, repetitions=300, seed=8))


def test_bootstrap_intervals_of_many_tasks_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    inside = []
    for _ in range(300):
        one = evaluation.bootstrap(xr.DataArray(rng.normal(0.4, 1, size=40), dims="task"), repetitions=300)
        inside.append(float(one["low"]) <= 0.4 <= float(one["high"]))
    share = np.mean(inside)
    assert abs(share - 0.94) / (0.94 * 0.06 / 300) ** 0.5 < 4  # percentile intervals of 40 tasks are a little short
