"""The table of all that could order the candidates, of an experiment made by hand."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study import predictions
from mmstudy.study.predictors import PREDICTORS
from mmstudy.study.protocol import Protocol
from mmstudy.study.signals import SIGNALS

PROGRESS = (0.0, 0.05, 1.0)
PROTOCOLS = {  # of the two tasks, which differ in what a training and a look cost
    "one": Protocol(steps=1000, batch=100, progress=PROGRESS),
    "two": Protocol(steps=500, batch=200, progress=PROGRESS, children=5, probe_examples=50),
}
EXAMPLES = {"one": (600, 300), "two": (400, 100)}  # training, validation
TASK = ["one"] * 6 + ["two"] * 5
ROLE = ["expansion"] * 5 + ["reference"] + ["expansion"] * 4 + ["reference"]
POOL = np.array([role == "expansion" for role in ROLE])
SEEN = ("minibatch_loss", "TSE", "TSE-EMA", "extrapolated_loss")  # nothing of them before the training
RECORDED = [
    name
    for name, signal in SIGNALS.items()
    if "," not in name and not signal.separate and "flagged" not in name
    if name not in (*SEEN, "thermal_excess", "centre_loss")
]


@pytest.fixture(scope="module")
def whole():
    rng = np.random.default_rng(0)
    rows, places = len(TASK), 2.0 ** np.arange(10)
    kinds = ["children"] * 2 + ["snapshots"] * 2 + ["random"] + ["gradient"] * 2
    origin = rng.uniform(0.5, 1, (rows, 3, 7))
    losses = origin[..., None] + rng.uniform(0.001, 0.01, (rows, 3, 7, 1)) * places**2
    losses[:, 0, 2:4] = np.nan
    data = {name: ("candidate", rng.normal(size=rows)) for name in PREDICTORS}
    data |= {name: (("candidate", "progress"), rng.normal(size=(rows, 3))) for name in RECORDED}
    data |= {name: ("candidate", rng.normal(size=rows)) for name, signal in SIGNALS.items() if signal.separate}
    costs = [PROTOCOLS[task].costs(*EXAMPLES[task]) for task in TASK]
    data |= {
        "parameters": ("candidate", [10, 20, 20, 40, 80, 80, 900, 100, 200, 100, 100]),
        "curve": (("candidate", "bin"), rng.uniform(1, 2, (rows, 20))),
        "fast_curve": (("candidate", "short_bin"), rng.uniform(1, 2, (rows, 5))),
        "ray_loss": (("candidate", "progress", "ray", "place"), losses),
        "ray_origin": (("candidate", "progress", "ray"), origin),
        "ray_length": (("candidate", "progress", "ray"), np.ones((rows, 3, 7))),
        "base_loss": ("candidate", [1.0] * rows),
        "full_cost": ("candidate", [PROTOCOLS[task].full_cost for task in TASK]),
        "probe_examples": ("candidate", [PROTOCOLS[task].probe_examples for task in TASK]),
        "cost": (("candidate", "expense"), [list(each.values()) for each in costs]),
    }
    coords = {
        "task": ("candidate", TASK), "role": ("candidate", ROLE), "progress": list(PROGRESS), "place": places,
        "label": ("candidate", [f"net2net hidden.{i} ×2" for i in range(rows)]), "kind": ("ray", kinds),
        "operator": ("candidate", ["net2net"] * rows), "expense": list(costs[0]),
    }  # fmt: skip
    return xr.Dataset(data, coords)


@pytest.fixture
def experiment(whole):
    """One to be changed."""
    return whole.copy(deep=True)


@pytest.fixture(scope="module")
def predicted(whole):
    return predictions.predictions(whole)


@pytest.fixture
def few(monkeypatch):
    """A few signals suffice."""
    names = ("reach", "TSE", "extent, children, median, multiple", "extent, snapshots, quartile, radius")
    monkeypatch.setattr(predictions, "SIGNALS", {name: SIGNALS[name] for name in names})


def column(predicted, name):
    return predicted["value"].sel(predictor=name).values


def test_only_expansions_are_predicted(predicted, experiment):
    assert predicted["value"].dims == ("candidate", "predictor")
    for name in ("task", "label", "operator"):
        assert predicted[name].values.tolist() == experiment[name].values[POOL].tolist()


def test_every_signal_has_a_column_for_each_share_at_which_it_was_measured(predicted):
    expected = list(PREDICTORS)
    for name, signal in SIGNALS.items():
        if signal.separate:
            expected.append(name)
        else:
            late = name == "extrapolated_loss"  # of one bin, or none, there is no curve
            begun = name in (*SEEN, "flagged_loss") or ", snapshots," in name
            expected += [f"{name} @{share}" for share in ("0%", "5%", "100%")[2 * late or begun :]]
    alone = predicted["predictor"].values[~predicted["combined"].values].tolist()
    assert sorted(alone) == sorted(expected)
    uncombined = ("parameters", "flops", *(name for name in expected if name.startswith("flagged_")))
    together = predicted["predictor"].values[predicted["combined"].values].tolist()
    assert sorted(together) == sorted(f"{name} + parameters" for name in expected if name not in uncombined)


def test_values_are_what_was_measured_turned_by_the_sign_that_was_declared(predicted, experiment):
    pool = experiment.isel(candidate=POOL)
    for name, each in PREDICTORS.items():
        assert column(predicted, name) == pytest.approx(each.sign * pool[name].values, rel=1e-4), name
    for name in RECORDED:
        for share, text in ((0.0, "0%"), (0.05, "5%"), (1.0, "100%")):
            expected = SIGNALS[name].sign * pool[name].sel(progress=share).values
            assert column(predicted, f"{name} @{text}") == pytest.approx(expected, rel=1e-4), name
    for name, signal in SIGNALS.items():
        if signal.separate:
            assert column(predicted, name) == pytest.approx(signal.sign * signal.compute(pool).values, rel=1e-4), name


def test_along_predictors_stands_what_they_are(predicted):
    for name, measure, family, progress in [
        ("snip", "snip", "static", np.nan),
        ("TSE @5%", "TSE", "training loss", 0.05),
        ("extent, children, base, multiple @100% + parameters", "extent, children, base, multiple", "size", 1.0),
        ("cosine_loss", "cosine_loss", "training loss", np.nan),
        ("validation_accuracy @0%", "validation_accuracy", "validation", 0.0),
    ]:
        one = predicted.sel(predictor=name)
        assert (one["measure"].item(), one["family"].item()) == (measure, family)
        np.testing.assert_equal(one["progress"].item(), progress)
        assert one["combined"].item() == name.endswith("+ parameters")


@pytest.mark.usefixtures("few")
def test_shares_of_less_than_a_percent_have_names_of_their_own(experiment):
    predicted = predictions.predictions(experiment.assign_coords(progress=[0.0, 0.004, 0.125]))
    names = predicted["predictor"].values.tolist()
    assert {"reach @0%", "reach @0.4%", "reach @12.5%"} <= set(names)
    assert len(names) == len(set(names))


def test_costs_are_shares_of_the_full_training_counted_by_hand(predicted):
    """The mean over the five candidates of the one task and the four of the other; both train 300,000 evaluations."""
    full = 3 * 100_000
    cost = dict(zip(predicted["predictor"].values.tolist(), predicted["cost"].values.tolist(), strict=True))

    def mean(one, two):
        return (5 * one + 4 * two) / 9 / full

    children = mean(3 * 100 * 20 * 4, 3 * 200 * 20 * 5)
    centre = mean(200, 50)
    rays = mean(200 * 10 * 8, 50 * 10 * 10)
    assert cost["parameters"] == cost["flops"] == cost["synflow"] == 0
    assert cost["loss"] == pytest.approx(mean(200, 50))
    assert cost["gradient_norm"] == pytest.approx(3 * mean(200, 50))
    assert cost["fisher"] == pytest.approx(3 * mean(64, 50)), "of those that it looks at"
    assert cost["TSE @5%"] == pytest.approx(0.05)
    assert cost["training_loss @5%"] == pytest.approx(0.05 + mean(600, 400))
    assert cost["validation_loss @0%"] == pytest.approx(mean(300, 100))
    assert cost["reach @5%"] == pytest.approx(0.05 + children)
    assert cost["explorer_loss @100%"] == pytest.approx(1 + children)
    assert cost["centre_loss @0%"] == pytest.approx(children + centre)
    assert cost["disagreement @0%"] == pytest.approx(children + mean(200 * 4, 50 * 5))
    assert cost["validation_disagreement @0%"] == pytest.approx(children + mean(300 * 4, 100 * 5))
    assert cost["extent, children, base, radius @5%"] == pytest.approx(0.05 + children + centre + rays)
    assert cost["extent, snapshots, base, radius @5%"] == pytest.approx(0.05 + centre + rays)
    assert cost["extent, snapshots, median, radius @5%"] == pytest.approx(0.05 + children + 2 * centre + rays)
    random = mean(200 * 10 * 4, 50 * 10 * 4)
    assert cost["extent, random, own @0%"] == pytest.approx(children + centre + random)
    down = mean(3 * 200 + 200 * 10 * 2, 3 * 50 + 50 * 10 * 2)
    assert cost["extent, gradient, base @0%"] == pytest.approx(down)
    assert cost["extent, gradient, own @0%"] == pytest.approx(children + centre + down)
    assert cost["hessian_trace @0%"] == pytest.approx(mean(6 * 4 * 200, 6 * 4 * 50))
    assert cost["cosine_loss"] == cost["fast_loss"] == pytest.approx(0.1)
    assert cost["cosine_training_loss"] == pytest.approx(0.1 + mean(600, 400))
    assert cost["cosine_validation_loss"] == pytest.approx(0.1 + mean(300, 100))
    for name in cost:
        if name.endswith(" + parameters"):
            assert cost[name] == cost[name.removesuffix(" + parameters")]


@pytest.mark.usefixtures("few")
def test_what_differs_by_rounding_is_a_tie(experiment):
    loss = np.array([2.0, 2.0 + 1e-7, 2.0 - 3e-6, 2.0 + 3e-4, 1e-9, 0.5, 0.0, -0.0, np.inf, np.nan, 3.0])
    value = column(predictions.predictions(experiment.assign(loss=("candidate", loss))), "loss")
    assert value[0] == value[1] == value[2] == -2
    assert value[3] == pytest.approx(-2.0003, abs=1e-12)
    assert value[4] == pytest.approx(-1e-9, rel=1e-12)
    assert value[5] == value[6] == 0
    assert value[7] == -np.inf
    assert np.isnan(value[8])


@pytest.mark.usefixtures("few")
def test_combined_is_the_mean_of_two_ranks_within_a_task_and_nan_ranks_last(experiment):
    experiment["reach"][1, 1] = np.nan
    experiment["reach"][7, 1] = np.nan
    experiment["reach"][8, 1] = experiment["reach"][9, 1]
    predicted, task = predictions.predictions(experiment), np.array(TASK)[POOL]
    for name in ("one", "two"):
        rows = task == name
        reach, size = column(predicted, "reach @5%")[rows], column(predicted, "parameters")[rows]
        assert np.isnan(reach).sum() == 1
        known = np.where(np.isnan(reach), -1e9, reach)
        ranks = [[sum(row < x) + (sum(row == x) + 1) / 2 for x in row] for row in (known, size)]
        expected = np.mean(ranks, axis=0) / rows.sum()
        assert column(predicted, "reach @5% + parameters")[rows] == pytest.approx(expected)
        if name == "one":
            assert expected == pytest.approx(np.add(stats.rankdata(known), [1, 2.5, 2.5, 4, 5]) / 10)


@pytest.mark.usefixtures("few")
def test_tasks_do_not_mix(experiment):
    """What is said of one task's candidates is the same without the others, in any order of the rows."""
    together = predictions.predictions(experiment)
    for name in ("one", "two"):
        rows = np.array(TASK) == name
        alone = predictions.predictions(experiment.isel(candidate=rows))
        part = together.isel(candidate=np.array(TASK)[POOL] == name)
        xr.testing.assert_allclose(alone["value"].drop_vars("cost"), part["value"].drop_vars("cost"))
    order = np.random.default_rng(1).permutation(len(TASK))
    mixed = predictions.predictions(experiment.isel(candidate=order)).sortby("label")
    xr.testing.assert_allclose(mixed, together.sortby("label"))


@pytest.mark.usefixtures("few")
def test_estimators_of_an_experiment_are_predictors_turned_by_their_sign(experiment):
    rng, shape = np.random.default_rng(2), (len(TASK), 3)
    found = {}
    for name in ("rays", "curvature"):
        found[f"{name}_size"] = ("candidate", "progress"), rng.normal(size=shape)
        found[f"{name}_size_cost"] = ("candidate", "progress"), np.full(shape, 6000.0)
    predicted, pool = predictions.predictions(experiment.assign(found)), experiment.assign(found).isel(candidate=POOL)
    children = (5 * 3 * 100 * 20 * 4 + 4 * 3 * 200 * 20 * 5) / 9 / 300_000
    for name in ("rays", "curvature"):
        for share, text in ((0.0, "0%"), (0.05, "5%"), (1.0, "100%")):
            one = predicted.sel(predictor=f"{name}_size @{text}")
            expected = ESTIMATORS[name].sign * pool[f"{name}_size"].sel(progress=share).values
            assert one["value"].values == pytest.approx(expected, rel=1e-4)
            assert one["cost"].item() == pytest.approx(share + children + 6000 / 300_000)
            assert (one["family"].item(), one["measure"].item()) == ("size", f"{name}_size")
        assert f"{name}_size @5% + parameters" in predicted["predictor"]


@pytest.mark.usefixtures("few")
def test_a_predictor_that_was_entered_since_is_left_out(experiment):
    predicted = predictions.predictions(experiment.drop_vars("snip"))
    assert "snip" not in predicted["predictor"]
    assert "grasp" in predicted["predictor"]
