"""What follows from a recorded experiment, on one made by hand whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from mmstudy.study import derived
from mmstudy.study.protocol import Protocol
from mmstudy.study.signals import SIGNALS, Signal

PROGRESS = [0.0, 0.1, 0.5, 1.0]
PLACES = 2.0 ** np.arange(7)
KINDS = ["children"] * 2 + ["snapshots"] * 2 + ["random"] + ["gradient"] * 2
LENGTH = np.array([0.5, 0.5, 2.0, 2.0, 0.1, 0.3, 0.3])
TASKS = ["one"] * 4 + ["two"]
CENTRE = np.array([1.0, 2.0, 3.0, 5.0, 0.2])  # the loss at the children's centre, at every look
SLOPE = np.array([0.1, 0.025, 0.1, 0.1, 0.4])  # of each candidate's parabolas
BINS = 20


@pytest.fixture
def experiment():
    """Rays are parabolas, their loss origin + slope · multiple²; the second ray of each pair is twice as steep."""
    shape = (5, len(PROGRESS), len(KINDS))
    origin = np.broadcast_to(CENTRE[:, None, None], shape).copy()
    origin[:, :, 2:4] -= 0.1  # the snapshots' own middle
    origin[:, :, 5:] = 4.0  # the network itself
    steep = SLOPE[:, None, None] * np.array([1, 2, 1, 2, 1, 1, 2])
    losses = origin[..., None] + steep[..., None] * PLACES**2
    losses[:, 0, 2:4] = np.nan  # a run that has not begun has no snapshots
    length = np.broadcast_to(LENGTH, shape).copy()
    length[:, 0, 2:4] = np.nan
    curve = np.linspace(3, 1, BINS) + np.arange(5)[:, None]
    data = {
        "ray_loss": (("candidate", "progress", "ray", "place"), losses),
        "ray_origin": (("candidate", "progress", "ray"), origin),
        "ray_length": (("candidate", "progress", "ray"), length),
        "base_loss": ("candidate", [1.5] * 4 + [0.1]),
        "curve": (("candidate", "bin"), curve),
        "fast_curve": (("candidate", "short_bin"), np.arange(50.0).reshape(5, 10)),
        "explorer_loss": (("candidate", "progress"), CENTRE[:, None] + np.array([0.1, 0.2, 0.3, 0.4])),
    }
    coords = {"progress": PROGRESS, "place": PLACES, "kind": ("ray", KINDS), "task": ("candidate", TASKS)}
    return xr.Dataset(data, coords)


def values(found: xr.DataArray) -> np.ndarray:
    return found.transpose("candidate", "progress").values


ROOT2 = 2**0.5
MEAN = (1 + 1 / ROOT2) / 2  # of the reciprocal roots of the two slopes


@pytest.mark.parametrize(
    ("which", "heights"),
    [
        ("base", [1.5, 1.5, 1.5, 1.5, 0.1]),
        ("own", [1, 2, 3, 5, 0.2]),
        ("median", [2.5] * 4 + [0.2]),  # of its task alone
        ("quartile", [3.5] * 4 + [0.2]),
    ],
)
def test_levels_are_the_bases_the_pools_or_its_own(experiment, which, heights):
    found = derived.level(experiment, which, 0.1)
    assert values(found) == pytest.approx(np.array(heights)[:, None].repeat(4, 1) + 0.1)
    shuffled = derived.level(experiment.isel(candidate=[4, 2, 0, 3, 1]), which, 0.1)
    assert values(shuffled) == pytest.approx(values(found)[[4, 2, 0, 3, 1]]), "whatever the order of the rows"
    assert derived.level(experiment, which, 0.3).values == pytest.approx(found.values + 0.2)
    rise = np.maximum(np.array(heights) + 0.1 - CENTRE, 0)
    expected = MEAN * (rise / SLOPE) ** 0.5
    far = derived.extent(experiment, "children", which, "multiple")
    assert values(far) == pytest.approx(expected[:, None].repeat(4, 1))
    assert values(derived.extent(experiment, "children", which, "radius")) == pytest.approx(0.5 * values(far))


def test_a_diverged_candidate_has_no_level_and_does_not_move_those_of_the_others(experiment):
    for name in ("ray_loss", "ray_origin", "ray_length"):
        experiment[name][3, 2:] = np.nan
    for which, height in (("median", 2.0), ("quartile", 2.5), ("base", 1.5)):
        found = values(derived.level(experiment, which, 0.1))
        assert np.isnan(found[3, 2:]).all()
        assert found[:3, 2:] == pytest.approx(height + 0.1)
        extents = values(derived.extent(experiment, "children", which, "multiple"))
        assert np.isnan(extents[3, 2:]).all()
        assert np.isfinite(np.delete(extents, 3, axis=0)).all()


def test_along_snapshots_there_is_nothing_to_see_before_a_run_has_begun(experiment):
    found = values(derived.extent(experiment, "snapshots", "own", "radius"))
    assert np.isnan(found[:, 0]).all()
    expected = 2.0 * MEAN * (0.2 / SLOPE) ** 0.5  # from their own middle up to 0.1 above the children's centre
    assert found[:, 1:] == pytest.approx(expected[:, None].repeat(3, 1))


def test_of_the_random_rays_there_is_one_and_of_the_gradients_the_one_down(experiment):
    random = derived.extent(experiment, "random", "own", "multiple")
    assert values(random)[:, 0] == pytest.approx((0.1 / SLOPE) ** 0.5)
    down = derived.along_gradient(experiment, "own")
    expected = 0.3 * (np.maximum(CENTRE + 0.1 - 4, 0) / SLOPE) ** 0.5  # only the highest centre is above the network
    assert values(down)[:, 0] == pytest.approx(expected)


def test_crossings_say_which_rays_are_cut_off(experiment):
    experiment["ray_loss"][0, :, 0] = 0.0
    found = derived.crossings(experiment, "children", "own")
    assert found["multiple"].dims == ("candidate", "progress", "ray")
    assert found["censored"].values.sum() == 4
    assert (found["censored"].isel(candidate=0, ray=0) == 1).all()
    assert (found["multiple"].isel(candidate=0, ray=0) == 64).all()
    assert (found["radius"].isel(candidate=0, ray=0) == 32).all()
    assert found["censored"].dtype.kind == "f"
    unseen = derived.crossings(experiment, "snapshots", "own").isel(progress=0)
    assert unseen.isnull().all().to_array().all()


def test_an_unknown_level_is_refused(experiment):
    with pytest.raises(ValueError, match="unknown level 'bass'; known: base, median, quartile, own"):
        derived.level(experiment, "bass", 0.1)


def test_minibatch_losses_are_means_over_windows_that_end_now(experiment):
    """Two, ten and twenty bins so far: their last fifth is one, two and four bins."""
    curve = experiment["curve"].values
    late, whole = values(derived.minibatch_loss(experiment)), values(derived.training_speed(experiment))
    assert np.isnan(late[:, 0]).all() and np.isnan(whole[:, 0]).all(), "nothing has been seen at the start"
    for p, (end, some) in enumerate([(2, 1), (10, 2), (20, 4)], start=1):
        assert late[:, p] == pytest.approx(curve[:, end - some : end].mean(1))
        assert whole[:, p] == pytest.approx(curve[:, :end].mean(1))


def test_averaged_losses_forget(experiment):
    curve, found = experiment["curve"].values, values(derived.averaged_speed(experiment))
    assert np.isnan(found[:, 0]).all()
    for p, end in enumerate((2, 10, 20), start=1):
        weights = 0.9 ** np.arange(end)[::-1]
        assert found[:, p] == pytest.approx((curve[:, :end] * weights).sum(1) / weights.sum())
    fast = values(derived.averaged_speed(experiment, decay=1e-9))
    assert fast[:, 2] == pytest.approx(curve[:, 9])


@pytest.mark.parametrize("of", [derived.minibatch_loss, derived.training_speed, derived.averaged_speed])
def test_a_run_that_diverges_is_nan_from_then_on_and_not_before(experiment, of):
    before = values(of(experiment))
    experiment["curve"][2, 18:] = np.nan  # the windows of the end hold bins that are numbers, and some that aren't
    after = values(of(experiment))
    assert np.isnan(after[2, 3])
    known = np.ones_like(before, bool)
    known[2, 3] = False
    np.testing.assert_array_equal(after[known], before[known])


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0, 2.5])
def test_an_exact_power_law_is_continued(experiment, exponent):
    t = np.arange(BINS) + 0.5  # the middle of each bin
    a, b = np.arange(5.0)[:, None], np.array([[0.5, 1.0, 2.0, 4.0, 0.1]]).T
    experiment["curve"][:] = a + b * t**-exponent
    found = values(derived.extrapolated(experiment))
    expected = (a + b * float(BINS) ** -exponent).squeeze()
    assert np.isnan(found[:, :2]).all(), "two bins, or none, are no curve"
    for p in (2, 3):
        assert found[:, p] == pytest.approx(expected, abs=1e-4)


def test_what_rises_or_does_not_change_is_continued_by_its_mean_and_what_diverged_by_nothing(experiment):
    experiment["curve"][0] = 2.5
    experiment["curve"][1] = np.linspace(1, 2, BINS)
    experiment["curve"][2, 12:] = np.nan
    found = values(derived.extrapolated(experiment))
    assert found[0, 2:] == pytest.approx(2.5)
    assert found[1, 3] == pytest.approx(1.5)
    assert np.isfinite(found[2, 2]) and np.isnan(found[2, 3])


def test_the_thermal_excess_is_what_the_children_met_above_their_centre(experiment):
    assert values(derived.thermal_excess(experiment)) == pytest.approx(np.array([[0.1, 0.2, 0.3, 0.4]] * 5))
    assert values(derived.centre_loss(experiment)) == pytest.approx(CENTRE[:, None].repeat(4, 1))


def test_the_fast_run_counts_with_its_last_fifth(experiment):
    assert derived.fast_loss(experiment).values == pytest.approx(np.arange(5) * 10 + 8.5)
    experiment["fast_curve"][1, 9:] = np.nan
    assert np.isnan(derived.fast_loss(experiment).values).tolist() == [False, True, False, False, False]
    assert derived.fast_loss(experiment.isel(short_bin=[0, 1])).values == pytest.approx(np.arange(5) * 10 + 1)


DERIVED = {
    "minibatch_loss": derived.minibatch_loss, "TSE": derived.training_speed, "TSE-EMA": derived.averaged_speed,
    "extrapolated_loss": derived.extrapolated, "centre_loss": derived.centre_loss,
    "thermal_excess": derived.thermal_excess, "fast_loss": derived.fast_loss,
}  # fmt: skip
EXTENTS = [name for name in SIGNALS if name.startswith("extent, ")]
FLAGGED = {"flagged_loss": "minibatch_loss", "flagged_size": "extent, random, median"}  # and what they add


@pytest.mark.parametrize("name", [name for name in SIGNALS if name not in (*EXTENTS, *DERIVED, *FLAGGED)])
def test_what_was_measured_is_read_as_it_is(name, experiment):
    dims = ("candidate",) if SIGNALS[name].separate else ("candidate", "progress")
    whole = experiment.assign({name: (dims, np.random.default_rng(0).normal(size=(5, 4)[: len(dims)]))})
    xr.testing.assert_equal(SIGNALS[name].compute(whole), whole[name])


@pytest.mark.parametrize("name", EXTENTS)
def test_extents_are_those_that_their_names_say_and_pay_for_their_level_and_their_rays(name, experiment):
    _, kind, which, *form = name.split(", ")
    if kind == "gradient":
        expected = derived.along_gradient(experiment, which)
    else:
        expected = derived.extent(experiment, kind, which, (*form, "multiple")[0])
    np.testing.assert_array_equal(SIGNALS[name].compute(experiment).values, expected.values)
    begin = {  # where rays begin, and what the loss there, and the level, take
        "children": ["children", "centre"],
        "snapshots": ["centre"],
        "random": ["children", "centre"],
        "gradient": [],
    }[kind]
    pool = ["children", "centre"] if which != "base" and kind in ("snapshots", "gradient") else []
    along = {"children": "children's", "snapshots": "snapshots'"}.get(kind, kind)
    assert sorted(SIGNALS[name].expenses) == sorted([*begin, *pool, f"{along} rays"])


def test_every_kind_of_ray_is_read_up_to_every_level():
    forms = {"children": [", multiple", ", radius"], "snapshots": [", multiple", ", radius"]}
    names = {
        f"extent, {kind}, {level}{form}"
        for kind in ("children", "snapshots", "random", "gradient")
        for level in ("base", "median", "quartile", "own")
        for form in forms.get(kind, [""])
    }
    assert set(EXTENTS) == names


def test_derived_signals_are_the_functions_of_this_module_and_expenses_are_known():
    assert {name: SIGNALS[name].compute for name in DERIVED} == DERIVED
    known = Protocol().costs(100, 10)
    assert all(set(signal.expenses) <= known.keys() for signal in SIGNALS.values())
    assert [name for name in DERIVED if not SIGNALS[name].expenses] == list(DERIVED)[:4], "they come with the training"


def test_losses_point_down_and_validation_is_known_by_its_family():
    for name, signal in SIGNALS.items():
        if name in FLAGGED:
            continue
        lower = any(word in name for word in ("loss", "TSE", "thermal", "hessian"))
        assert signal.sign == (-1 if lower else 1), name
        assert (signal.family == "validation") == ("validation" in name and "disagreement" not in name), name
        assert (signal.family == "training loss") == (("loss" in name or "TSE" in name) and "valid" not in name), name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"sign": 0}, "the sign 1 or -1; got sign=0"), ({"family": "sise"}, "one of static, .*; got family='sise'")],
)
def test_a_wrong_entry_is_refused_by_value(wrong, said):
    right = Signal(1, "a number", "1", "size", derived.centre_loss)
    with pytest.raises(ValueError, match=said):
        replace(right, **wrong)


def test_a_flagged_signal_counts_as_far_as_it_agrees_with_the_validation_accuracy(experiment):
    rng = np.random.default_rng(0)
    accuracy, loss = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    loss[:4, 1] = -accuracy[:4, 1]  # full agreement; below, none
    loss[:4, 2] = accuracy[:4, 2]
    loss[0, 3] = np.nan
    size = np.array([10.0, 40, 30, 20, 5])
    over = ("candidate", "progress")
    experiment = experiment.assign(validation_accuracy=(over, accuracy), parameters=("candidate", size))
    signal = xr.DataArray(-loss, {"progress": PROGRESS}, over)
    found = derived.flagged(experiment, lambda data: signal)
    for moment in range(3):
        ranks = [stats.rankdata(column[:4]) / 4 for column in (accuracy[:, moment], -loss[:, moment], size)]
        flag = stats.spearmanr(accuracy[:4, moment], -loss[:4, moment]).statistic
        assert values(found)[:4, moment] == pytest.approx(ranks[0] + flag * (ranks[1] + ranks[2]))
    agreed = 2 * stats.rankdata(accuracy[:4, 1]) + stats.rankdata(size[:4])
    assert values(found)[:4, 1] == pytest.approx(agreed / 4)
    assert np.isnan(values(found)[0, 3]) and np.isfinite(values(found)[1:4, 3]).all()
    assert values(found)[4, 0] == 1.0  # alone in its task: nothing to agree on


@pytest.mark.parametrize(("name", "added"), FLAGGED.items())
def test_what_is_flagged_is_turned_to_where_more_is_better(name, added, experiment):
    rng = np.random.default_rng(0)
    accuracy = (("candidate", "progress"), rng.normal(size=(5, 4)))
    experiment = experiment.assign(validation_accuracy=accuracy, parameters=("candidate", [3, 1, 4, 2, 5]))
    signal = SIGNALS[added]
    expected = derived.flagged(experiment, lambda data: signal.sign * signal.compute(data))
    xr.testing.assert_allclose(SIGNALS[name].compute(experiment), expected)
    assert SIGNALS[name].sign == 1 and set(signal.expenses) < set(SIGNALS[name].expenses)
