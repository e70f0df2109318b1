from itertools import combinations, permutations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmstudy.study import statistics

SCORES = ("accuracy", "nll", "ece")
CHECKPOINTS = ["last", "best validation"]
OPERATORS = ["net2net"] * 4 + ["random"] * 5 + ["deeper_identity"] * 2 + ["deeper_random"] * 3 + ["zero_outgoing"] * 2


def an_experiment(gain, task, parameters, operator=None, label=None, role=None, seeds=3, **about):
    """One row per candidate; the mean over seeds of the gain is `gain` in accuracy, half in nll, minus it in ece."""
    n = len(gain)
    rng = np.random.default_rng(0)
    control = rng.uniform(0.4, 0.6, (n, seeds, 2))
    noise = rng.normal(size=(n, seeds, 2))
    noise -= noise.mean(1, keepdims=True)
    each = np.asarray(gain, float)[:, None, None] + (noise if seeds > 1 else 0)
    dims = ("candidate", "seed", "checkpoint")
    data = {"parameters": ("candidate", np.asarray(parameters))}
    for name, factor in (("accuracy", 0.01), ("nll", -0.5), ("ece", 0.01)):
        data[name] = dims, control + factor * each
        data[f"control_{name}"] = dims, control
    labels = {
        "task": task,
        "operator": ["net2net"] * n if operator is None else operator,
        "label": [f"net2net layer.{i} ×2" for i in range(n)] if label is None else label,
        "role": ["expansion"] * n if role is None else role,
    }
    coords = {name: ("candidate", each) for name, each in (labels | about).items()}
    return xr.Dataset(data, coords | {"checkpoint": CHECKPOINTS})


def predictions(**columns):
    """A table of predictors, whose coordinates have names that those of the experiment have as well."""
    stacked = np.stack([np.asarray(each, float) for each in columns.values()], axis=-1)
    count = len(columns)
    coords = {"family": ("predictor", ["size"] * count), "progress": ("predictor", [0.1] * count)}
    return xr.Dataset({"value": (("candidate", "predictor"), stacked)}, coords | {"predictor": [*columns]})


@pytest.fixture
def example():
    """Two tasks of 16 and 9 expansions, four sizes, two references; two predictors of noise."""
    rng = np.random.default_rng(1)
    task = ["one"] * 17 + ["two"] * 10
    role = ["expansion"] * 16 + ["reference"] + ["expansion"] * 9 + ["reference"]
    operator = [*OPERATORS, "scratch", *OPERATORS[:9], "shrink_perturb"]
    parameters = np.array([*np.repeat([100, 101, 150, 225], 4), 100, *np.repeat([10, 20, 30], 3), 10])
    # the first two differ in the amount only: they are no pair of one size
    label = [f"{o} layer.{max(i, 1)} ×{i}" for i, o in enumerate(operator)]
    about = {"family": ["mlp"] * 17 + ["vit"] * 10, "label_noise": [0.0] * 17 + [0.2] * 10}
    gain = rng.normal(size=27)
    return (
        an_experiment(gain, task, parameters, operator, label, role, **about),
        predictions(a=rng.normal(size=27), b=rng.integers(3, size=27)),
        gain,
    )


def test_gains_are_paired_with_the_control_of_each_seed_and_point_upwards():
    experiment = an_experiment([30.0, -10.0], ["t", "t"], [1, 2])
    found = statistics.gains(experiment)
    assert found["gain"].dims == found["gain_se"].dims == ("candidate", "score", "checkpoint")
    for score, expected in (("accuracy", [30, -10]), ("nll", [15, -5]), ("ece", [-30, 10])):
        assert found["gain"].sel(score=score, checkpoint="last").values == pytest.approx(expected)
    each = 100 * (experiment["accuracy"] - experiment["control_accuracy"]).values
    expected = each.std(1, ddof=1) / 3**0.5
    assert found["gain_se"].sel(score="accuracy").values == pytest.approx(expected)


def test_of_one_seed_there_is_a_gain_and_no_error():
    found = statistics.gains(an_experiment([3.0, 1.0], ["t", "t"], [1, 2], seeds=1))
    assert found["gain"].sel(score="accuracy", checkpoint="last").values == pytest.approx([3, 1])
    assert found["gain_se"].isnull().all()


def test_a_diverged_run_leaves_its_candidate_without_a_gain_and_the_others_with_theirs(example):
    experiment = example[0].copy(deep=True)
    whole = statistics.gains(experiment)
    experiment["accuracy"].values[2, 1, 0] = np.nan
    holed = statistics.gains(experiment)
    lost = whole["gain"].notnull() & holed["gain"].isnull()
    assert int(lost.sum()) == 1
    assert bool(lost.isel(candidate=2).sel(score="accuracy", checkpoint="last"))
    xr.testing.assert_allclose(holed.where(~lost), whole.where(~lost))


def with_noise(between, within, candidates=30, seeds=3, tasks=60, seed=0):
    """Tasks whose gains have known components of variance; the control is shared: no part of the noise."""
    rng = np.random.default_rng(seed)
    task = np.repeat([f"task {t:03}" for t in range(tasks)], candidates)
    experiment = an_experiment(np.zeros(len(task)), task, np.ones(len(task)), seeds=seeds)
    each = rng.normal(0, between, (len(task), 1, 1)) + rng.normal(0, within, (len(task), seeds, 2))
    control = rng.normal(0, 5, (tasks, seeds, 2)).repeat(candidates, axis=0)
    experiment["accuracy"].values[:] = (each + control) / 100
    experiment["control_accuracy"].values[:] = 0
    return experiment


@pytest.mark.parametrize(("between", "within"), [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0)])
def test_reliability_estimates_the_known_one(between, within):
    found = statistics.reliability(with_noise(between, within))
    values = found["reliability"].sel(score="accuracy", checkpoint="last").values
    # 1/(1 − reliability) is, up to a factor, F-distributed: compare the mean square ratio with its expectation
    ratio = 1 / (1 - values)
    expected = (3 * between**2 + within**2) / within**2 * 58 / 56  # mean of F(29, 58)
    assert abs(ratio.mean() - expected) / (ratio.std(ddof=1) / len(ratio) ** 0.5) < 4
    ceiling = found["ceiling"].sel(score="accuracy", checkpoint="last").values
    assert ceiling == pytest.approx(np.sqrt(np.maximum(values, 0)))


def test_reliability_is_cronbachs_alpha_of_the_complete_expansions():
    """Held against the textbook: k/(k−1) (1 − Σ var(seed) / var(sum over seeds))."""
    experiment = with_noise(1.0, 1.0, candidates=7, seeds=4, tasks=2)
    experiment["accuracy"].values[3, 1] = np.nan
    experiment["role"].values[5] = "reference"
    experiment["accuracy"].values[5] = 99.0
    found = statistics.reliability(experiment)["reliability"]
    assert found.dims == ("task", "score", "checkpoint")
    assert found["task"].values.tolist() == ["task 000", "task 001"]
    for t, rows in enumerate(([0, 1, 2, 4, 6], range(7, 14))):
        for c in range(2):
            each = experiment["accuracy"].values[rows, :, c]
            alpha = 4 / 3 * (1 - each.var(0, ddof=1).sum() / each.sum(1).var(ddof=1))
            assert float(found.sel(score="accuracy")[t, c]) == pytest.approx(alpha)


@pytest.mark.parametrize(("candidates", "seeds"), [(1, 3), (3, 1)])
def test_of_one_candidate_or_one_seed_there_is_no_reliability(candidates, seeds):
    found = statistics.reliability(with_noise(1.0, 1.0, candidates, seeds, tasks=2))
    assert found["reliability"].isnull().all() and found["ceiling"].isnull().all()


def expected_scores(x, y, size, operator, label):
    """All of it in the obvious way, for untied gains; ties of x by all ways to break them."""
    classes = ["deeper" if o.startswith("deeper") else o for o in operator]
    inside = {}
    for each in set(classes):
        rows = [i for i, c in enumerate(classes) if c == each]
        if len(rows) >= 4:
            inside[each] = stats.spearmanr(x[rows], y[rows]).statistic, len(rows)
    right = {p: 0.5 if x[p[0]] == x[p[1]] else float((x[p[0]] > x[p[1]]) == (y[p[0]] > y[p[1]]))
             for p in combinations(range(len(x)), 2)}  # fmt: skip
    place = [each.split()[:2] for each in label]
    same = [w for (i, j), w in right.items() if abs(size[i] / size[j] - 1) < 0.02 and place[i] != place[j]]
    ranks = [stats.rankdata(v) for v in (x, y, size)]
    rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    best = [i for i, v in enumerate(x) if v == max(x)]
    regret = max(y) - np.mean([y[i] for i in best])
    return {
        "spearman": stats.spearmanr(x, y).statistic,
        "within": np.average([rho for rho, _ in inside.values()], weights=[count for _, count in inside.values()]),
        "kendall": stats.kendalltau(x, y).statistic,
        "same_size": np.mean(same),
        "decision": np.mean([*right.values()]),
        "regret": regret,
        "regret_share": regret / (max(y) - min(y)),
        "partial": stats.pearsonr(*rest).statistic,
    }, {each: rho for each, (rho, _) in inside.items()}


def test_scores_are_the_obvious_ones(example):
    experiment, predicted, gain = example
    found = statistics.scores(experiment, predicted)
    assert found["task"].values.tolist() == ["one", "two"]
    assert found["candidates"].values.tolist() == [16, 9] and found["left_out"].values.tolist() == [0, 0]
    assert found["architecture"].values.tolist() == ["mlp", "vit"] and found["family"].values.tolist() == ["size"] * 2
    assert found["label_noise"].values.tolist() == [0, 0.2]
    for task in ("one", "two"):
        rows = np.flatnonzero((experiment["task"] == task) & (experiment["role"] == "expansion"))
        one = experiment.isel(candidate=rows)
        for p in ("a", "b"):
            x = predicted["value"].sel(predictor=p).values[rows]
            expected, classes = expected_scores(
                x, gain[rows], one["parameters"].values, one["operator"].values, one["label"].values
            )
            mine = found.sel(task=task, predictor=p)
            for name, value in expected.items():
                assert float(mine[name].squeeze()) == pytest.approx(value), name
            for each in found["class"].values:
                expected_one = pytest.approx(classes.get(each, np.nan), nan_ok=True)
                assert float(mine["spearman_class"].sel({"class": each})) == expected_one
    assert set(found["class"].values) == {"net2net", "random", "deeper"}  # zero_outgoing has two candidates


def test_references_take_no_part(example):
    experiment, predicted, _ = example
    other = experiment.copy(deep=True)
    other["accuracy"].values[[16, 26]] = np.nan
    first, second = (statistics.scores(e, predicted) for e in (experiment, other))
    xr.testing.assert_identical(first, second)


def test_a_perfect_predictor_is_perfect(example):
    experiment, _, gain = example
    found = statistics.scores(experiment, predictions(gain=gain, turned=-gain))
    for name in ("spearman", "within", "kendall", "same_size", "decision", "precision", "partial"):
        assert found[name].sel(predictor="gain").values == pytest.approx(1), name
    assert found["regret"].sel(predictor="gain").values == pytest.approx(0)
    assert found["regret_share"].sel(predictor="turned").values == pytest.approx(1)
    assert found["spearman"].sel(predictor="turned").values == pytest.approx(-1)  # and stays so


def test_a_constant_tells_nothing(example):
    experiment, _, gain = example
    found = statistics.scores(experiment, predictions(constant=np.ones(27), unknown=np.full(27, np.nan)))
    for name, value in (("spearman", 0), ("within", 0), ("kendall", 0), ("partial", 0), ("decision", 0.5)):
        assert (found[name] == value).all(), name
    assert (found["same_size"] == 0.5).all()
    assert found["regret"].sel(task="one").values == pytest.approx(max(gain[:16]) - np.mean(gain[:16]))
    assert found["precision"].sel(task="one").values == pytest.approx(3 / 16)


def test_equal_gains_have_no_order():
    experiment = an_experiment(np.ones(5), ["t"] * 5, range(1, 6))
    found = statistics.scores(experiment, predictions(a=range(5))).squeeze()
    for name in ("spearman", "within", "kendall", "partial", "regret", "regret_share"):
        assert float(found[name]) == pytest.approx(0, abs=1e-8), name
    assert np.isnan(found["decision"]) and np.isnan(found["same_size"]) and found["precision"] == 1


def test_gains_that_differ_in_their_rounding_only_are_equal():
    experiment = an_experiment([0.1 + 0.2, 0.3, 0.0, 1.0], ["t"] * 4, range(1, 5))
    found = statistics.scores(experiment, predictions(a=[2, 1, 0, 3])).squeeze()
    assert float(found["decision"]) == 1


def test_what_was_not_measured_ranks_last_and_what_has_no_gain_is_left_out(example):
    experiment, predicted, gain = example
    predicted["value"].values[3, 0] = np.nan
    worst = predicted.copy(deep=True)
    worst["value"].values[3, 0] = -1e9
    experiment["accuracy"].values[17:19, 0] = np.nan
    first, second = statistics.scores(experiment, predicted), statistics.scores(experiment, worst)
    xr.testing.assert_allclose(first, second)
    assert first["left_out"].values.tolist() == [0, 2] and first["candidates"].values.tolist() == [16, 7]
    x = predicted["value"].values[19:26, 0]
    assert float(first["spearman"].sel(task="two", predictor="a")) == pytest.approx(
        stats.spearmanr(x, gain[19:26]).statistic
    )
    experiment["accuracy"].values[19:23, 0] = np.nan
    with pytest.raises(ValueError, match="'two': 3 of 9 candidates have a gain; at least 4"):
        statistics.scores(experiment, predicted)


def test_tables_of_other_rows_are_refused(example):
    experiment, predicted, _ = example
    with pytest.raises(ValueError, match="candidate"):
        statistics.scores(experiment, predicted.isel(candidate=slice(5)))
    for name in ("task", "label"):
        shuffled = predicted.assign_coords({name: ("candidate", experiment[name].values[::-1])})
        with pytest.raises(ValueError, match=f"'{name}' differs"):
            statistics.scores(experiment, shuffled)


def test_the_score_and_the_checkpoint_are_those_asked_for(example):
    experiment, predicted, _ = example
    found = statistics.scores(experiment, predicted, "ece", "best validation")
    turned = statistics.scores(experiment, predicted)  # the gain in calibration is minus that in accuracy
    xr.testing.assert_allclose(found["spearman"], -turned["spearman"])
    xr.testing.assert_allclose(found["decision"], 1 - turned["decision"])


def test_partial_correlation_takes_out_what_acts_through_the_covariates():
    """By construction: given size and loss, the gain is what `own` says; z < 4 for what is truly 0."""
    n = 4000
    size, loss, own, noise = np.random.default_rng(0).normal(size=(4, n))
    rows = np.stack([np.exp(size), size + noise, loss**3, own + size, size + loss])
    through, noisy, by_loss, real, both = range(5)

    def given_(*covariates):
        return statistics.partial_spearman(rows, size + loss + own, np.column_stack(covariates))

    error = 4 / n**0.5
    assert given_(size)[through] == 0 and abs(given_(size)[noisy]) < error
    assert given_(size, loss)[by_loss] == 0 and abs(given_(size, loss)[noisy]) < error
    # of Gaussians: given size, own has correlation 1/√2 with loss + own; ranks shrink it a little
    assert given_(size)[real] == pytest.approx(0.5**0.5, abs=0.05)
    assert given_(size, loss)[real] > 0.9
    assert 0.1 < given_(size, loss)[both] < 0.3  # the fit is linear in ranks: it does not take a sum out whole


def test_partial_scores_stand_under_their_names(example):
    experiment, predicted, _ = example
    loss = xr.DataArray(np.random.default_rng(3).normal(size=27), dims="candidate")
    given_ = {"parameters": [experiment["parameters"]], "loss": [loss], "both": [experiment["parameters"], loss]}
    found = statistics.scores(experiment, predicted, given=given_)["partial"]
    assert found.dims == ("task", "given", "predictor") and found["given"].values.tolist() == [*given_]
    rows = slice(17, 26)
    x, y = predicted["value"].values[rows].T, statistics.gains(experiment)["gain"].values[rows, 0, 0]
    both = np.column_stack([experiment["parameters"].values[rows], loss.values[rows]])
    assert found.sel(task="two", given="both").values == pytest.approx(statistics.partial_spearman(x, y, both))
    log = {"log": [np.log(experiment["parameters"])]}
    same = statistics.scores(experiment, predicted, given=log)["partial"].sel(given="log")
    assert same.values == pytest.approx(found.sel(given="parameters").values)
    assert statistics.scores(experiment, predicted, given={})["partial"].size == 0
    with pytest.raises(ValueError, match="1 covariates of candidates that have a gain are missing"):
        statistics.scores(experiment, predicted, given={"loss": [loss.where(loss > loss.min())]})


def test_too_many_covariates_leave_nothing_to_say():
    values, y = np.random.default_rng(0).normal(size=(2, 5)), np.arange(5.0)
    covariates = np.random.default_rng(1).normal(size=(5, 3))
    assert np.isnan(statistics.partial_spearman(values, y, covariates)).all()  # one dimension left: always ±1
    assert np.isfinite(statistics.partial_spearman(values, y, covariates[:, :2])).all()
    constant = np.ones((5, 3))  # which take nothing out
    assert statistics.partial_spearman(values, y, constant) == pytest.approx(statistics.spearman(values, y))


FEW = st.lists(st.integers(-3, 3), min_size=4, max_size=6)


@given(FEW, st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_correlations_are_those_of_scipy_with_any_ties(values, gains):
    y = np.array(gains[: len(values)], dtype=float)
    row = np.array([values], dtype=float)
    constant = len(set(values)) == 1 or len(set(y)) == 1
    for mine, theirs in ((statistics.spearman, stats.spearmanr), (statistics.kendall, stats.kendalltau)):
        assert mine(row, y)[0] == pytest.approx(0 if constant else theirs(values, y).statistic)


@settings(max_examples=40)
@given(FEW, st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.integers(1, 4))
def test_ties_are_averages_over_all_ways_to_break_them(values, gains, count):
    """Enumerated: every order of the candidates, sorted stably by the values, is one way."""
    y = np.array(gains[: len(values)], dtype=float)
    ways = [sorted(order, key=lambda i: -values[i]) for order in permutations(range(len(values)))]
    row = np.array([values], dtype=float)
    chances = [np.mean([i in way[:count] for way in ways]) for i in range(len(values))]
    assert statistics.picked(row, count)[0] == pytest.approx(chances)
    third = sorted(y)[-3]
    shares = [np.mean([y[i] >= third for i in way[:3]]) for way in ways]
    assert statistics.precision(row, y)[0] == pytest.approx(np.mean(shares))
    i, j = np.triu_indices(len(y), 1)
    different = y[i] != y[j]
    if different.any():
        right = [np.mean((np.argsort(way)[i] < np.argsort(way)[j])[different] == (y[i] > y[j])[different])
                 for way in ways]  # fmt: skip
        assert statistics.ordered_rightly(row, y, i, j)[0] == pytest.approx(np.mean(right))


@settings(max_examples=20)
@given(st.lists(st.floats(-5, 5), min_size=27, max_size=27), st.sampled_from([np.exp, np.cbrt, lambda v: 3 * v - 7]))
def test_only_the_order_of_a_predictor_counts(values, monotone):
    rng = np.random.default_rng(2)
    x = np.round(values, 2)  # so that what differs still differs afterwards
    experiment = an_experiment(rng.normal(size=27), ["t"] * 27, rng.choice([10, 20, 30], 27), (OPERATORS * 2)[:27])
    found = statistics.scores(experiment, predictions(x=x, same=monotone(x), turned=-x)).squeeze("task")
    xr.testing.assert_allclose(*(found.sel(predictor=p, drop=True) for p in ("x", "same")))
    for name in ("spearman", "within", "kendall", "partial"):
        turned = found[name].sel(predictor="turned").values
        assert turned == pytest.approx(-found[name].sel(predictor="x").values, abs=1e-12)
    for name in ("same_size", "decision"):
        assert float(found[name].sel(predictor="turned")) == pytest.approx(1 - float(found[name].sel(predictor="x")))


@settings(max_examples=20)  # of orders, one is like the other
@given(st.permutations(range(16)))
def test_the_order_of_the_rows_does_not_matter(order):
    rng = np.random.default_rng(4)
    label = [f"{o} layer.{i % 3} ×2" for i, o in enumerate(OPERATORS)]
    experiment = an_experiment(rng.normal(size=16), ["t"] * 16, rng.choice([10, 20, 30], 16), OPERATORS, label)
    predicted = predictions(x=rng.integers(4, size=16))
    rows = np.array(order)
    first = statistics.scores(experiment, predicted)
    second = statistics.scores(experiment.isel(candidate=rows), predicted.isel(candidate=rows))
    xr.testing.assert_allclose(first, second.sel({"class": first["class"]}))


def test_pairs_of_one_size_differ_in_operator_or_place():
    label = ["net2net a ×2", "net2net a ×2.01", "net2net b ≈ a ×2", "random a ×2", "odd"]
    operator = ["net2net", "net2net", "net2net", "random", "net2net"]
    sizes = np.array([1000, 1010, 1020, 1021, 5000])
    # 0–1: amount only; 0–3: 2.06% of the larger apart; left: 0–2, 1–2, 1–3, 2–3
    experiment = an_experiment([0, 1, 2, 3, 4], ["t"] * 5, sizes, operator, label)
    found = statistics.scores(experiment, predictions(x=[1, 5, 2, 2, 9])).squeeze()
    assert float(found["same_size"]) == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    apart = experiment.assign(parameters=("candidate", [1, 2, 3, 4, 5]))
    assert statistics.scores(apart, predictions(x=range(5)))["same_size"].isnull().all()
