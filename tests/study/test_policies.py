from functools import partial
from itertools import combinations, permutations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmstudy.study import intervals, judging, policies

PROGRESS = [0.1, 0.2, 0.5, 1.0]


def a_task(trial, value=(), parameters=None, operator=None, signal=None, cost=0.05, trained=0.02):
    """A task whose predictor is `value`, and whose signal is the same at each share of the training unless given."""
    n = len(trial)
    table = {
        "trial": ("candidate", np.asarray(trial, float)),
        "parameters": ("candidate", np.arange(1, n + 1) if parameters is None else np.asarray(parameters)),
        "value": (("candidate", "predictor"), np.asarray(value if len(value) else trial, float)[:, None]),
    }
    signal = np.repeat([trial], 4, axis=0) if signal is None else signal
    table["signal"] = ("progress", "candidate"), np.asarray(signal, float)
    coords = {
        "operator": ("candidate", ["net2net"] * n if operator is None else operator),
        "predictor": ["p"], "cost": ("predictor", [cost]), "trained": ("predictor", [trained]), "progress": PROGRESS,
    }  # fmt: skip
    return xr.Dataset(table, coords)


def spent(choice):
    return choice.cost, choice.finish


def test_the_largest_and_any():
    task = a_task([0, 0, 0, 0], parameters=[5, 9, 9, 1])
    largest = policies.largest(task)
    assert largest.chance.tolist() == [0, 0.5, 0.5, 0] and spent(largest) == (0, 0.25)
    assert largest.order.tolist() == [[5, 9, 9, 1]]
    any_ = policies.random(task)
    assert any_.chance.tolist() == [0.25] * 4 and spent(any_) == (0, 0.25) and np.ptp(any_.order) == 0


def test_training_all_keeps_the_best_trial_and_knows_no_better():
    choice = policies.train_all(a_task([1, 3, np.nan, 3]))
    assert choice.chance.tolist() == [0, 0.5, 0, 0.5] and spent(choice) == (1, 0)


def test_a_predictor_costs_its_measurement_of_all_and_the_rest_of_one_training():
    choice = policies.rank(a_task([0] * 4, [2, np.nan, 7, 1], cost=0.05, trained=0.02), "p")
    assert choice.chance.tolist() == [0, 0, 1, 0] and spent(choice) == (0.05, pytest.approx(0.98 / 4))
    assert stats.rankdata(choice.order[0]).tolist() == [3, 1, 4, 2]


def test_i_epoch_trains_all_for_a_share():
    signal = [[0, 1, 2, 3], [3, 3, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    choice = policies.i_epoch(a_task([0] * 4, signal=signal), "signal", 0.2, look=0.01)
    assert choice.chance.tolist() == [0.5, 0.5, 0, 0] and spent(choice) == pytest.approx((0.21, 0.2))
    with pytest.raises(ValueError, match=r"signal was measured at \[0.1, 0.2, 0.5, 1.0\] of the training, not at 0.3"):
        policies.i_epoch(a_task([0] * 4), "signal", 0.3)


BY_HAND = [[1, 2, 3, 4], [9, 9, 7, 6], [1, 1, 5, 6], [8, 8, 4, 3]]  # at each share of the training, for four candidates


def halving(rungs, trial=(0, 0, 0, 0), signal=BY_HAND, **options):
    return policies.successive_halving(a_task(trial, signal=signal), "signal", rungs, **options)


def test_halving_by_hand():
    """2 and 3 lead at 0.1; 2 is better at 0.2, and is left alone."""
    choice = halving([0.1, 0.2, 0.5])
    assert choice.chance.tolist() == [0, 0, 1, 0]
    assert choice.cost == pytest.approx((4 * 0.1 + 2 * 0.1) / 4)  # weights are kept: only the difference is trained
    assert choice.finish == pytest.approx(0.8 / 4)
    assert stats.rankdata(choice.order[0]).tolist() == [1, 2, 4, 3]
    # with its last rung at 0.2 the same is chosen, at the same cost; a look costs at each rung
    again = halving([0.1, 0.2], look=0.01)
    assert again.chance.tolist() == [0, 0, 1, 0]
    assert again.cost == pytest.approx((4 * 0.11 + 2 * 0.11) / 4) and again.finish == pytest.approx(0.8 / 4)


def test_halving_to_the_end_keeps_the_best_trial_of_those_left():
    choice = halving([0.1, 1.0], trial=[9, 9, 1, 2])
    assert choice.chance.tolist() == [0, 0, 0, 1]  # the signal prefers candidate 2
    assert spent(choice) == pytest.approx(((4 * 0.1 + 2 * 0.9) / 4, 0))


def test_halving_keeps_the_best_share_rounded_up():
    choice = halving([0.1, 0.2], eta=1.5)  # three of four; then the best of them
    assert choice.chance.tolist() == [0, 1, 0, 0] and choice.cost == pytest.approx((4 * 0.1 + 3 * 0.1) / 4)
    choice = halving([0.2, 0.5], eta=3)  # two of four, 0 and 1, with a tie at the end
    assert choice.chance.tolist() == [0.5, 0.5, 0, 0] and len(choice.order) == 1  # nothing was left to lots


def test_one_rung_is_i_epoch():
    task = a_task([0] * 4, signal=BY_HAND)
    first, second = halving([0.2]), policies.i_epoch(task, "signal", 0.2)
    assert first.chance.tolist() == second.chance.tolist() and spent(first) == pytest.approx(spent(second))


def test_ties_at_a_rung_are_means_over_all_ways_to_break_them():
    signal = np.array([[1, 1, 1, 2, 0, 1], [5, 3, 4, 4, 9, 4], [0] * 6, [0] * 6])
    ways = np.zeros(6)
    for two in combinations([0, 1, 2, 5], 2):  # of the four that tie, two go on beside candidate 3
        left = [3, *two]
        best = [i for i in left if signal[1, i] == max(signal[1, left])]
        ways[best] += 1 / len(best) / 6
    choice = halving([0.1, 0.2], trial=[0] * 6, signal=signal)
    assert choice.chance == pytest.approx(ways, abs=4 * 0.5 / policies.LOTS**0.5)
    assert choice.chance.sum() == pytest.approx(1) and choice.chance[4] == 0 and len(choice.order) == policies.LOTS
    assert choice.cost == pytest.approx((6 * 0.1 + 3 * 0.1) / 6)
    again = halving([0.1, 0.2], trial=[0] * 6, signal=signal)
    assert (choice.chance == again.chance).all() and (choice.order == again.order).all()


def test_what_has_no_signal_is_left_first():
    signal = np.array([[5, np.nan, 1, 2]] * 4, float)
    assert stats.rankdata(halving([0.1, 0.2], signal=signal).order[0]).tolist() == [4, 1, 2, 3]


@pytest.mark.parametrize(
    ("rungs", "options"), [([], {}), ([0, 1], {}), ([0.5, 0.2], {}), ([0.1, 1.2], {}), ([0.1, 0.2], {"eta": 1})]
)
def test_halving_refuses(rungs, options):
    with pytest.raises(ValueError, match="rungs must rise from above 0 to at most 1, and eta be above 1"):
        halving(rungs, **options)


def test_anchors_keep_a_right_order():
    gain = np.arange(9.0)
    choice = policies.anchored(a_task(gain, gain), "p")  # anchors 0, 4, 8
    assert choice.chance.tolist() == [0] * 8 + [1]
    assert choice.cost == pytest.approx(0.05 + 3 * 0.98 / 9) and choice.finish == 0
    assert stats.rankdata(choice.order[0]).tolist() == [*range(1, 10)]


def test_anchors_mend_a_turned_order():
    gain = np.array([3.0, 9, 1, 7, 5, 8, 2, 6, 4])
    task = a_task(gain, -gain)
    choice = policies.anchored(task, "p", places=[0.25, 0.75])
    assert stats.spearmanr(choice.order[0], gain).statistic == pytest.approx(1)
    assert choice.chance.argmax() == 1 and choice.chance.max() == 1  # the favourite, which is no anchor
    assert choice.cost == pytest.approx(0.05 + 3 * 0.98 / 9)  # two anchors and the favourite
    assert policies.rank(task, "p").chance.argmax() == 2  # without them, the worst


def test_the_best_anchor_is_chosen_if_the_favourite_is_worse():
    trial = np.array([0.0, 1, 5, 3, 2])
    choice = policies.anchored(a_task(trial, range(5)), "p", places=[0, 0.5])
    assert choice.chance.tolist() == [0, 0, 1, 0, 0] and stats.rankdata(choice.order[0]).tolist() == [1, 2, 3, 4, 5]
    assert choice.cost == pytest.approx(0.05 + 3 * 0.98 / 5)


def test_anchors_that_say_nothing_leave_the_order_as_it_is():
    for trial, places in (([2.0] * 5, (0, 0.5, 1)), ([0, 9, 0, 0, 0], (0.5,)), ([3, 1, np.nan, 5, np.nan], (0, 1))):
        choice = policies.anchored(a_task(trial, [2, 3, 1, 5, 4]), "p", places)
        assert stats.rankdata(choice.order[0]).tolist() == [2, 3, 1, 5, 4]


def test_what_the_predictor_could_not_measure_is_no_anchor_and_last_in_either_direction():
    value = [np.nan, 1, 2, 3, np.nan]
    choice = policies.anchored(a_task([9, 5, 4, 3, 9], value), "p", places=[0, 1])
    assert stats.rankdata(choice.order[0]).tolist() == [1.5, 5, 4, 3, 1.5]
    assert choice.chance.tolist() == [0, 1, 0, 0, 0]
    nothing = policies.anchored(a_task([1, 2, 3], [np.nan] * 3), "p", places=[1])
    assert nothing.chance.sum() == pytest.approx(1)


def test_a_tie_for_an_anchor_is_drawn_by_lot():
    """The first two tie for the low end, the last two for the high one: four pairs, and one turns the order."""
    trial = np.array([0.0, 5, 3, 4])
    choice = policies.anchored(a_task(trial, [1, 1, 2, 2]), "p", places=[0, 1])
    outcomes = np.zeros(4)
    turned = 0
    for low in (0, 1):
        for high in (2, 3):
            falls = trial[low] > trial[high]
            turned += falls / 4
            for favourite in (0, 1) if falls else (2, 3):
                final = [low, high, favourite]
                outcomes[max(final, key=lambda i: trial[i])] += 1 / 8
    assert choice.chance == pytest.approx(outcomes, abs=4 * 0.5 / policies.LOTS**0.5)
    assert np.mean(choice.order[:, 0] > choice.order[:, 3]) == pytest.approx(turned, abs=2 / policies.LOTS**0.5)


def pool(rng, slope=1.0):
    """A gain of the parameters and an effect of the operator: what the richer fit can learn."""
    operator = np.repeat(["net2net", "random", "zero"], 8)
    parameters = np.tile(np.geomspace(100, 10000, 8), 3)
    effect = {"net2net": 3.0, "random": -3.0, "zero": 0.0}
    gain = slope * np.log(parameters) + np.array([effect[o] for o in operator])
    return a_task(gain, rng.normal(size=24), parameters, operator), gain


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_fit_to_size_and_operator_learns_both(slope):
    task, gain = pool(np.random.default_rng(0), slope)
    choice = policies.anchored(task, "p", np.linspace(0, 1, 12).tolist(), ("parameters", "operator"), ridge=1e-3)
    assert stats.spearmanr(choice.order[0], gain).statistic > 0.99
    assert choice.chance[gain.argmax()] == 1
    by_rank = policies.anchored(task, "p", np.linspace(0, 1, 12).tolist())
    assert abs(stats.spearmanr(by_rank.order[0], task["value"].values[:, 0]).statistic) == pytest.approx(1)


def test_the_fit_is_ridge_regression():
    """Held against the same least squares with the penalty written as observations."""
    task, gain = pool(np.random.default_rng(1))
    choice = policies.anchored(task, "p", [0, 0.3, 0.6, 1], ("rank", "parameters", "operator"), ridge=0.7)
    value = task["value"].values[:, 0]
    anchors = np.argsort(value)[np.rint(np.array([0, 0.3, 0.6, 1]) * 23).astype(int)]
    columns = [stats.zscore(stats.rankdata(value)), stats.zscore(np.log(task["parameters"].values))]
    columns += [(task["operator"].values == o).astype(float) for o in ("net2net", "random", "zero")]
    x = np.column_stack([np.ones(24), *columns])
    penalty = np.sqrt(0.7) * np.eye(6)[1:]  # the intercept is free
    weights = np.linalg.lstsq(np.vstack([x[anchors], penalty]), np.append(gain[anchors], np.zeros(5)))[0]
    assert stats.spearmanr(choice.order[0], x @ weights).statistic == pytest.approx(1)


def test_a_strong_penalty_leaves_the_predictors_order():
    task, _ = pool(np.random.default_rng(1))
    choice = policies.anchored(task, "p", fit=("parameters", "operator"), ridge=1e15)
    assert stats.spearmanr(choice.order[0], task["value"].values[:, 0]).statistic == pytest.approx(1)


@pytest.mark.parametrize(
    "options", [{"places": []}, {"places": [1.2]}, {"fit": []}, {"fit": ["size"]}, {"ridge": 0.0}]
)  # fmt: skip
def test_anchors_refuse(options):
    with pytest.raises(ValueError, match="places"):
        policies.anchored(a_task([1, 2, 3]), "p", **options)


def test_anchored_halving_by_hand():
    """The signal is turned: the worst leads throughout. Anchors are the ends at 0.1, candidates 0 and 7."""
    gain = np.arange(8.0)
    task = a_task(gain, signal=np.repeat([-gain], 4, axis=0))
    lost = policies.successive_halving(task, "signal", [0.1, 0.2, 0.5])
    assert lost.chance.argmax() == 0
    choice = policies.anchored_halving(task, "signal", [0.1, 0.2, 0.5], places=[0, 1], look=0.01)
    assert choice.chance.argmax() == 7 and choice.finish == 0
    # anchors 2; the six others to 0.1; of the four left 4–7, three to 0.2; of the two left 6–7, one to 0.5; looks at
    # 8, then at 4 and the anchor 0, then at 2 and the anchor 0; the favourite is an anchor
    cost = 2 + 6 * 0.1 + 3 * 0.1 + 1 * 0.3 + 0.01 * (8 + 5 + 3)
    assert choice.cost == pytest.approx(cost / 8)
    assert stats.spearmanr(choice.order[0], gain).statistic == pytest.approx(1)


def test_anchored_halving_trains_its_favourite_and_keeps_the_best_trial():
    trial = np.array([0.0, 4, 1, 3, 2])
    task = a_task(trial, signal=np.repeat([range(5)], 4, axis=0))
    choice = policies.anchored_halving(task, "signal", [0.1, 0.5], places=[0, 0.25])  # anchors 0 and 1
    assert choice.chance.tolist() == [0, 1, 0, 0, 0]  # the favourite, 4, is worse
    assert choice.cost == pytest.approx((2 + 3 * 0.1 + 3 * 0.4 + 0.5) / 5)  # 2 to 4 are left; 4 is trained to the end
    to_the_end = policies.anchored_halving(task, "signal", [0.1, 1.0], places=[0, 0.25])
    assert to_the_end.chance.tolist() == [0, 1, 0, 0, 0]
    assert to_the_end.cost == pytest.approx((2 + 3 * 0.1 + 3 * 0.9) / 5)
    with pytest.raises(ValueError, match="no places"):
        policies.anchored_halving(task, "signal", [0.1], places=[])


def tables(seed=0):
    rng = np.random.default_rng(seed)
    n = 14
    dims = ("candidate", "seed", "checkpoint")
    control = rng.uniform(size=(n, 3, 1))
    data = {"parameters": ("candidate", rng.integers(10, 90, n))}
    for name in ("accuracy", "nll", "ece"):
        data |= {name: (dims, rng.uniform(size=(n, 3, 1))), f"control_{name}": (dims, control)}
    coords = {
        "task": ("candidate", ["b"] * 6 + ["a"] * 8), "operator": ("candidate", ["net2net", "random"] * 7),
        "role": ("candidate", ["expansion"] * 13 + ["reference"]), "checkpoint": ["last"],
        "label": ("candidate", [f"l {i}" for i in range(n)]),
    }  # fmt: skip
    coords["family"] = "candidate", ["mlp"] * n
    predicted = xr.Dataset(
        {"value": (("candidate", "predictor"), rng.normal(size=(n, 2)))},
        {"predictor": ["p", "q"], "cost": ("predictor", [0.0, 0.06]), "progress": ("predictor", [0, 0.05]),
         "family": ("predictor", ["static", "size"])},
    )  # fmt: skip
    signal = xr.DataArray(rng.normal(size=(n, 4)), {"progress": PROGRESS}, ("candidate", "progress"))
    trial = xr.DataArray(rng.normal(size=n), dims="candidate")
    return xr.Dataset(data, coords), predicted, {"signal": signal}, trial


def test_pools_are_what_policies_may_see():
    experiment, predicted, signals, trial = tables()
    found = judging.pools(experiment, predicted, signals, trial)
    each = 100 * (experiment["accuracy"] - experiment["control_accuracy"]).values[:13, :, 0]
    assert found["gain"].values == pytest.approx(each.mean(1)) and (found["trial"] == trial[:13]).all()
    assert found["trained"].values.tolist() == [0, 0.05] and found["progress"].values.tolist() == PROGRESS
    assert (found["signal"] == signals["signal"][:13]).all() and (found["value"] == predicted["value"][:13]).all()
    assert found["family"].dims == ("candidate",)
    for bad in ((experiment, predicted.isel(candidate=slice(5)), signals, trial),
                (experiment, predicted, {"signal": signals["signal"][:5]}, trial),
                (experiment, predicted, signals, trial[:5])):  # fmt: skip
        with pytest.raises(ValueError, match="candidate"):
            judging.pools(*bad)


MANY = {
    "largest": policies.largest,
    "random": policies.random,
    "train all": policies.train_all,
    "rank": partial(policies.rank, predictor="q"),
    "i-epoch": partial(policies.i_epoch, signal="signal", share=0.2),
    "halving": partial(policies.successive_halving, signal="signal", rungs=PROGRESS),
    "anchored": partial(policies.anchored, predictor="q"),
    "fitted": partial(policies.anchored, predictor="q", fit=("parameters", "operator")),
    "anchored halving": partial(policies.anchored_halving, signal="signal", rungs=PROGRESS),
}


def test_policies_are_judged_by_the_mean_gain_which_they_do_not_see():
    pools = judging.pools(*tables())

    def nosy(task):
        assert "gain" not in task and set(task["task"].values) in ({"a"}, {"b"})
        return policies.largest(task)

    found = judging.compare(MANY | {"nosy": nosy}, pools)
    assert found["regret"].dims == ("policy", "task") and found["task"].values.tolist() == ["b", "a"]
    assert found["policy"].values.tolist() == [*MANY, "nosy"]
    for task, rows in (("b", slice(6)), ("a", slice(6, 13))):
        one = pools.isel(candidate=rows)
        gain = one["gain"].values
        for name, policy in MANY.items():
            choice, mine = policy(one), found.sel(policy=name, task=task)
            assert float(mine["regret"]) == pytest.approx(gain.max() - choice.chance @ gain)
            assert float(mine["regret_share"]) == pytest.approx(float(mine["regret"]) / np.ptp(gain))
            assert float(mine["total"]) == pytest.approx(choice.cost + choice.finish)
            rho = 0 if name == "random" else stats.spearmanr(choice.order[0], gain).statistic
            assert float(mine["spearman"]) == pytest.approx(rho) and float(mine["turned"]) == (rho < 0)
            right = [np.sign((choice.order[0][i] - choice.order[0][j]) * (gain[i] - gain[j])) / 2 + 0.5
                     for i, j in combinations(range(len(gain)), 2)]  # fmt: skip
            assert float(mine["decision"]) == pytest.approx(np.mean(right))


def test_what_has_no_gain_is_not_in_the_pool():
    pools = judging.pools(*tables())
    pools["gain"][:2] = np.nan
    found = judging.compare(MANY, pools)
    assert found["finish"].sel(policy="random", task="b") == 0.25
    pools["gain"][:6] = np.nan
    with pytest.raises(ValueError, match="'b': no candidate has a gain"):
        judging.compare(MANY, pools)


def test_a_summary_over_tasks():
    pools = xr.concat([judging.pools(*tables(s)).assign_coords(predictor=["p", "q"]) for s in range(2)], "candidate")
    pools["task"] = "candidate", [f"{t}{i}" for i in range(2) for t in pools["task"].values[:13]]
    compared = judging.compare(MANY, pools)
    found = judging.summary(compared, n_resamples=300)
    assert found["policy"].values.tolist() == [*MANY] and found.sizes == {"policy": len(MANY)}
    xr.testing.assert_allclose(found["regret"], compared["regret"].mean("task"))
    xr.testing.assert_allclose(found["worst"], compared["regret"].max("task"))
    xr.testing.assert_allclose(found["sign_error"], (compared["spearman"] < 0).mean("task"))
    xr.testing.assert_allclose(found["total"], compared["total"].mean("task"))
    interval = intervals.over_tasks(compared["regret"], n_resamples=300)
    xr.testing.assert_allclose(found["low"], interval["low"])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=8, max_size=8), st.permutations(range(8)))
def test_a_choice_is_a_distribution_costs_no_more_than_training_all_and_follows_only_orders(values, trial):
    value = np.array(values, float)
    task = a_task(trial, value, signal=[value, -value, value**2, value]).assign_coords(predictor=["q"])
    other = task.assign(value=np.exp(task["value"]), signal=np.exp(task["signal"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "LOTS", 5)
        for name, policy in MANY.items():
            choice, same = policy(task), policy(other)
            assert choice.chance.sum() == pytest.approx(1) and (choice.chance >= 0).all(), name
            assert choice.chance == pytest.approx(same.chance) and spent(choice) == pytest.approx(spent(same))
            assert 0 <= choice.cost + choice.finish <= 1 + 0.05 + 1e-9  # what is measured comes on top
            assert choice.order.shape[1] == 8


def test_a_favourite_among_ties_is_expected_over_all_ways_to_break_them():
    values = [1, 3, 3, 2, 3]
    ways = [max(order, key=lambda i: values[i]) for order in permutations(range(5))]
    expected = [ways.count(i) / len(ways) for i in range(5)]
    assert policies.rank(a_task([0] * 5, values), "p").chance == pytest.approx(expected)
