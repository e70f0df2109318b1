import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmstudy.study import intervals

NAMES = ["parameters", "loss", "size"]


@pytest.fixture
def table():
    values = np.random.default_rng(0).normal([0.1, 0.3, 0.6], 0.2, (8, 3))
    return xr.DataArray(values, {"task": [f"task {t}" for t in range(8)], "predictor": NAMES}, name="spearman")


@pytest.mark.parametrize("n_resamples", [200, 1500])  # the second: in two chunks
def test_the_interval_is_that_of_scipy_for_each_column_alone(table, n_resamples):
    found = intervals.over_tasks(table, n_resamples, seed=3)
    for name in NAMES:
        column, one = table.sel(predictor=name).values, found.sel(predictor=name)
        rng = np.random.default_rng(3)
        expected = stats.bootstrap((column,), np.mean, n_resamples=n_resamples, batch=1000, random_state=rng)
        ends = (float(one["low"]), float(one["high"]))
        assert ends == pytest.approx(tuple(expected.confidence_interval), abs=5e-4)  # scipy counts ties up to rounding
        assert float(one["mean"]) == pytest.approx(column.mean())
        assert float(one["worst"]) == column.min() and one["worst_task"] == f"task {column.argmin()}"
        assert one["tasks"] == 8
        alone = intervals.over_tasks(table.sel(predictor=name), n_resamples, seed=3)
        xr.testing.assert_allclose(one, alone, rtol=1e-9)
    xr.testing.assert_identical(found, intervals.over_tasks(table, n_resamples, seed=3))
    assert not found.equals(intervals.over_tasks(table, n_resamples, seed=4))


def test_of_what_should_be_small_the_largest_is_the_worst(table):
    found = intervals.over_tasks(table.sel(predictor="size"), 100, larger_is_better=False)
    assert float(found["worst"]) == float(table.sel(predictor="size").max())


def test_any_other_dimensions_in_any_order(table):
    stacked = xr.concat([table, -table], "group").transpose("group", "task", "predictor")
    found = intervals.over_tasks(stacked, 300)
    assert found["low"].dims == ("group", "predictor")
    alone = intervals.over_tasks(table, 300)
    xr.testing.assert_allclose(found.isel(group=0), alone)
    assert found["mean"].isel(group=1).values == pytest.approx(-alone["mean"].values)


def test_a_task_to_which_it_does_not_apply_is_left_out_and_not_counted(table):
    holed = table.copy(deep=True)
    holed[2, 1] = holed[5, 2] = np.nan
    found = intervals.over_tasks(holed, 300)
    assert found["tasks"].values.tolist() == [8, 7, 7]
    for i, keep in enumerate(([*range(8)], [0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 6, 7])):
        alone = intervals.over_tasks(table[keep, i], 300)
        xr.testing.assert_allclose(found.isel(predictor=i, drop=True), alone.drop_vars("predictor"))


def test_where_draws_would_not_differ_there_is_no_interval(table):
    equal = xr.DataArray(np.full((6, 2), 0.3), dims=("task", "predictor"))
    equal[:, 1] += np.arange(6) * 1e-17  # rounding errors are no spread
    equal[3, 1] = 0.1 + 0.2
    for few, mean in ((equal, 0.3), (equal * 0, 0), (table[:2], table[:2].mean("task").values)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = intervals.over_tasks(few, 100)
        assert found["low"].isnull().all() and found["high"].isnull().all()
        assert found["mean"].values == pytest.approx(mean)
    nothing = intervals.over_tasks(equal * np.nan, 100)
    assert nothing["mean"].isnull().all() and nothing["worst"].isnull().all()
    assert (nothing["tasks"] == 0).all() and (nothing["worst_task"] == "").all()


def test_infinite_values_are_refused(table):
    table[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"infinite values in the tasks \['task 4'\]"):
        intervals.over_tasks(table)


def test_differences_are_paired(table):
    noise = xr.DataArray(np.random.default_rng(1).normal(0, 5, 8), dims="task")  # shared by all: no part of it
    found = intervals.differences(table + noise, "loss", n_resamples=500)
    assert found["predictor"].values.tolist() == ["parameters", "size"]
    expected = intervals.over_tasks(
        table.sel(predictor="size", drop=True) - table.sel(predictor="loss", drop=True), 500
    )
    xr.testing.assert_allclose(found.sel(predictor="size", drop=True).drop_vars("verdict"), expected)
    assert found["verdict"].values.tolist() == ["worse", "better"]
    regret = intervals.differences((table + noise).rename(predictor="policy"), "loss", "policy", larger_is_better=False)
    assert regret["verdict"].values.tolist() == ["better", "worse"]
    with pytest.raises(KeyError):
        intervals.differences(table, "unheard of")


def test_without_an_interval_nothing_is_decided(table):
    same = xr.concat([table.sel(predictor="size")] * 2, "predictor").assign_coords(predictor=["mine", "rival"])
    assert intervals.differences(same, "rival")["verdict"].values.tolist() == ["undecided"]
    assert (intervals.differences(table[:2], "loss")["verdict"] == "undecided").all()


@pytest.mark.parametrize(("tasks", "stated"), [(12, 0.9), (40, 0.94)])
def test_intervals_of_gaussian_tasks_hold_the_truth_as_often_as_they_say(tasks, stated):
    columns = 1000
    values = np.random.default_rng(2).normal(0.4, 1, (tasks, columns))
    found = intervals.over_tasks(xr.DataArray(values, dims=("task", "repetition")), n_resamples=999)
    inside = float(((found["low"] <= 0.4) & (found["high"] >= 0.4)).mean())
    assert abs(inside - stated) < 4 * (stated * (1 - stated) / columns) ** 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12, unique=True))
def test_the_front_is_what_no_other_point_beats(points):
    cost, merit = np.array(points, dtype=float).T
    beaten = [
        any(c <= cost[i] and m >= merit[i] and (c, m) != points[i] for c, m in points) for i in range(len(points))
    ]
    assert intervals.front(cost, merit).tolist() == [not b for b in beaten]


def test_the_interval_over_seeds_is_student_s():
    values = np.random.default_rng(0).normal(size=(5, 3))
    found = intervals.over_seeds(xr.DataArray(values, dims=("seed", "x")))
    expected = stats.ttest_1samp(values, 0.0, axis=0).confidence_interval(0.95)
    np.testing.assert_allclose(found["low"], expected.low)
    np.testing.assert_allclose(found["high"], expected.high)
    np.testing.assert_allclose(found["mean"], values.mean(0))


def test_a_seed_that_has_diverged_leaves_no_interval_and_two_seeds_are_refused():
    table = xr.DataArray([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]], dims=("x", "seed"))
    assert intervals.over_seeds(table)["low"].isnull().values.tolist() == [True, False]
    with pytest.raises(ValueError, match="at least 3 of them; got 2"):
        intervals.over_seeds(table.isel(seed=slice(2)))


def test_how_often_an_interval_leaves_zero_out_is_counted_on_each_side():
    coords = {"task": ["a", "b", "c"], "way": ["x", "y"]}
    low = xr.DataArray([[0.1, -1.0], [0.2, -2.0], [-0.1, 0.0]], coords)
    table = xr.Dataset({"low": low, "mean": low + 0.2, "high": low + 0.5})
    found = intervals.decided(table)
    assert found["tasks better"].values.tolist() == [2, 0] and found["tasks worse"].values.tolist() == [0, 2]
    assert found["mean"].values == pytest.approx([4 / 15, -0.8])
