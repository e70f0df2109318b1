import json

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from mmstudy.expansion.candidate import Candidate
from mmstudy.study import intervals, summaries
from mmstudy.study.derived import LEVELS


def gains_of(values, task, panel):
    coords = {
        "task": ("candidate", task),
        "panel": ("candidate", panel),
        "operator": ("candidate", ["lemon"] * len(task)),
    }
    return xr.DataArray(values, coords, dims="candidate")


def test_the_relation_ranks_inside_each_task_and_keeps_tasks_and_panels():
    rng = np.random.default_rng(0)
    gain, size = rng.normal(size=50), rng.normal(size=50)
    gain[3] = size[7] = np.nan
    task, panel = ["a"] * 20 + ["b"] * 30, ["one"] * 20 + ["two"] * 30
    rho = xr.DataArray([0.2, 0.6], {"task": ["a", "b"]})
    column = xr.DataArray(size, dims="candidate")
    found = summaries.relation(gains_of(gain, task, panel), column, 0 * column, rho)
    assert found.sizes["candidate"] == 49
    first = found.isel(candidate=found["task"].values == "a")
    known = np.isfinite(gain[:20])
    assert first["gain"].values == pytest.approx((stats.rankdata(gain[:20][known]) - 0.5) / 19)
    assert first["size"].values.argmin() == 6  # what could not be measured is the last
    assert found["mean"].sel(panel=["one", "two"]).values == pytest.approx([0.2, 0.6])
    assert found["tasks"].values.tolist() == [1, 1] and found["low"].isnull().all()
    mine = found["panel_of"].values == "two"
    for k in range(10):
        inside = mine & (found["size"].values >= k / 10) & (found["size"].values < (k + 1) / 10)
        assert float(found["trend"].sel(panel="two")[k]) == pytest.approx(found["gain"].values[inside].mean())


def test_the_interval_of_a_panel_is_that_over_its_tasks():
    rng = np.random.default_rng(1)
    names = [f"t{i}" for i in range(6)]
    rho = xr.DataArray(rng.uniform(size=6), {"task": names})
    task, panel = np.repeat(names, 5), ["x"] * 20 + ["y"] * 10
    size = xr.DataArray(rng.normal(size=30), dims="candidate")
    found = summaries.relation(gains_of(rng.normal(size=30), task, panel), size, 0 * size, rho)
    expected = intervals.over_tasks(rho.isel(task=slice(4)))
    for name in ("mean", "low", "high"):
        assert float(found[name].sel(panel="x")) == pytest.approx(float(expected[name]))


@pytest.fixture
def scored():
    """Two tasks; parameters, a loss known from 2% on, the size from 0%, alone and with the parameters."""
    rows = [("parameters", np.nan, "static", False)]
    rows += [("loss", share, "training loss", False) for share in (0.02, 1.0)]
    rows += [("size", share, "size", both) for both in (False, True) for share in (0.0, 0.02, 1.0)]
    measure, progress, family, combined = zip(*rows, strict=True)
    names = [f"{m} {p} {c}" for m, p, _, c in rows]
    along = {"measure": measure, "progress": progress, "family": family, "combined": combined}
    coords = {name: ("predictor", list(each)) for name, each in along.items()}
    return xr.DataArray(
        np.arange(18.0).reshape(2, 9), coords | {"task": ["a", "b"], "predictor": names}, ("task", "predictor")
    )


def test_along_the_training_a_static_score_stays_and_an_unknown_one_is_missing(scored):
    found = summaries.along_training(scored, ["size", "parameters", "loss", "size + parameters"])
    assert found.dims == ("task", "measure", "progress") and found["progress"].values.tolist() == [0, 0.02, 1]
    assert found["family"].values.tolist() == ["size", "static", "training loss", "size"]
    assert found.sel(task="b", measure="parameters").values.tolist() == [9, 9, 9]
    assert found.sel(task="a", measure="size").values.tolist() == [3, 4, 5]
    assert found.sel(task="a", measure="size + parameters").values.tolist() == [6, 7, 8]
    assert np.isnan(found.sel(task="a", measure="loss").values).tolist() == [True, False, False]


def test_an_unknown_measure_is_refused(scored):
    with pytest.raises(ValueError, match=r"unknown measures \['extent'\]; known: parameters, loss, size"):
        summaries.along_training(scored, ["size", "extent"])


def test_views_have_zero_where_there_is_nothing_but_chance():
    like = xr.DataArray(np.full((2, 3), 0.5), {"task": ["a", "b"], "predictor": ["x", "y", "z"]})
    partial = xr.concat(
        [0 * like + 0.1, 0 * like + 0.2], xr.DataArray(["parameters", "loss"], dims="given", name="given")
    )
    scored = xr.Dataset({"spearman": like, "within": like + 0.1, "same_size": like, "partial": partial})
    found = summaries.views(scored)
    expected = {"all candidates": 0.5, "within operators": 0.6, "given parameters": 0.1, "given loss": 0.2}
    expected["parameter-matched pairs"] = 0.0
    assert found["view"].values.tolist() == [*expected]
    assert found.isel(task=0, predictor=0).values == pytest.approx([*expected.values()])


def test_everything_has_a_row_for_each_predictor_and_part():
    rng = np.random.default_rng(2)
    tasks, predictors = [f"t{i}" for i in range(6)], ["x", "y"]
    coords = {"task": tasks, "predictor": predictors, "part": ("task", ["pilot"] * 2 + ["confirmation"] * 4)}
    coords["cost"] = ("predictor", [0.0, 0.1])
    names = ["spearman", "within", "same_size", "decision", "regret"]
    scored = xr.Dataset({name: (("task", "predictor"), rng.normal(size=(6, 2))) for name in names}, coords)
    scored["partial"] = scored["within"].expand_dims(given=["both"])
    scored["same_size"][5] = np.nan  # no pairs in this task
    table = summaries.everything(scored)
    assert list(table.index) == [("pilot", "x"), ("pilot", "y"), ("confirmation", "x"), ("confirmation", "y")]
    row = table.loc[("confirmation", "y")]
    expected = intervals.over_tasks(scored["spearman"][2:]).sel(predictor="y")
    for name in ("mean", "low", "high", "worst", "worst_task", "tasks"):
        assert row[name] == expected[name].item()
    assert row["cost"] == 0.1 and row["given both"] == row["within"] == scored["within"][2:, 1].mean()
    assert row["same_size"] == scored["same_size"][2:5, 1].mean()
    assert np.isnan(table.loc[("pilot", "x"), "low"])  # two tasks have no interval


def test_regimes_are_means_over_the_tasks_that_have_them():
    values = np.array([[0.1, np.nan], [0.3, 0.5], [0.7, 0.9]])
    coords = {"label_noise": ("task", [0.0, 0.0, 0.2]), "train_size": ("task", [400, 400, 1000])}
    table = xr.DataArray(values, coords | {"task": ["a", "b", "c"], "predictor": ["x", "y"]}, ("task", "predictor"))
    found = summaries.by_regime(table)
    cell = found.sel(label_noise=0, train_size=400)
    assert cell["mean"].values == pytest.approx([0.2, 0.5]) and cell["tasks"].values.tolist() == [2, 1]
    assert found["mean"].sel(label_noise=0.2, train_size=1000).values == pytest.approx([0.7, 0.9])
    empty = found.sel(label_noise=0.2, train_size=400)
    assert empty["mean"].isnull().all() and not empty["tasks"].any()


def an_experiment():
    """Two tasks of two expansions of one shape, under two names of the place, and one of another; with references."""
    label = ["lemon a ×2", "ligo a ≈ b ×2", "lemon b ×2", "scratch a ×2", "shrink_perturb a ×2", "scratch b ×2"]
    label = [*label, "shrink_perturb b ×2"]
    role = ["expansion"] * 3 + ["reference"] * 4
    grown = [Candidate("lemon", ("a",), (8,)), Candidate("ligo", ("a",), (8,)), Candidate("lemon", ("b",), (8,))]
    described = [json.dumps(each.as_dict()) for each in grown] + [""] * 4
    dims = ("candidate", "seed", "checkpoint", "budget")
    accuracy = np.empty((14, 2, 1, 2))
    accuracy[:] = np.tile([0.7, 0.6, 0.5, 0.4, 0.45, 0.55, 0.3], 2)[:, None, None, None]
    accuracy[:, :, :, 1] -= 0.1
    accuracy[7:] -= np.array([0.2, 0, 0, 0, 0, 0, 0])[:, None, None, None]
    data = dict.fromkeys(("accuracy", "nll", "ece"), (dims, accuracy))
    data |= {f"control_{name}": (dims[:3], np.full((14, 2, 1), 0.5)) for name in ("accuracy", "nll", "ece")}
    coords = {"label": label * 2, "role": role * 2, "description": described * 2}
    coords |= {"task": ["one"] * 7 + ["two"] * 7}
    coords = {name: ("candidate", each) for name, each in coords.items()}
    return xr.Dataset(data, coords | {"checkpoint": ["last"], "budget": ["equal steps", "equal flops"]})


def test_leads_are_over_networks_of_the_same_shape_and_budget():
    found = summaries.leads(an_experiment())
    assert found["reference"].values.tolist() == [summaries.BASE, "scratch", "shrink_perturb"]
    first = found.sel(budget="equal steps").isel(candidate=slice(3))
    assert first.sel(reference=summaries.BASE).values == pytest.approx([20, 10, 0])
    assert first.sel(reference="scratch").values == pytest.approx([30, 20, -5])
    assert first.sel(reference="shrink_perturb").values == pytest.approx([25, 15, 20])
    fair = found.sel(budget="equal flops").isel(candidate=slice(3))
    assert fair.sel(reference=summaries.BASE).values == pytest.approx([10, 0, -10])
    assert fair.sel(reference="scratch").values == pytest.approx([30, 20, -5])  # both are trained shorter
    of_tasks = summaries.leads_of_tasks(found).sel(budget="equal steps", reference="scratch")
    assert of_tasks["middle"].values == pytest.approx([20, 10]) and float(of_tasks["mean"]) == pytest.approx(15)
    assert (of_tasks["lower"] <= of_tasks["middle"]).all() and (of_tasks["middle"] <= of_tasks["upper"]).all()


def test_an_expansion_without_its_reference_is_refused():
    experiment = an_experiment().isel(candidate=[0, 1, 2, 4, 5, 6])
    with pytest.raises(ValueError, match=r"no reference 'scratch' for \['lemon a ×2', 'ligo a ≈ b ×2'\]"):
        summaries.leads(experiment)


def test_extents_know_which_size_goes_with_the_gain_and_which_rays_were_cut_off():
    """Valleys of growing width: a wide one goes with a large gain."""
    n, kinds = 8, ["children"] * 4 + ["snapshots"] * 4 + ["random"] * 4
    place = 2.0 ** np.arange(8)
    width = np.geomspace(2, 20, n)
    loss = 0.2 + 0.5 * (place / width[:, None]) ** 2
    rays = np.broadcast_to(loss[:, None, None], (n, 1, 12, 8)).copy()
    rays[:, :, 4:8] = 0.2  # along snapshots nothing rises
    experiment = an_experiment().isel(candidate=[0] * n, budget=0, drop=True)
    experiment["accuracy"] = experiment["accuracy"] + xr.DataArray(width / 100, dims="candidate")
    extra = {
        "ray_loss": (("candidate", "progress", "ray", "place"), rays),
        "ray_origin": (("candidate", "progress", "ray"), np.full((n, 1, 12), 0.2)),
        "ray_length": (("candidate", "progress", "ray"), np.ones((n, 1, 12))),
        "base_loss": ("candidate", np.full(n, 0.3)),
    }
    experiment = experiment.assign(extra).assign_coords(progress=[1.0], place=place, kind=("ray", kinds))
    found = summaries.extents(experiment, margins=(0.1, 0.2))
    assert found["spearman"].sizes == {"kind": 3, "level": 4, "margin": 2, "task": 1, "form": 2}
    assert found["spearman"].sel(kind=["children", "random"]).values == pytest.approx(1)
    assert (found["spearman"].sel(kind="snapshots") == 0).all()  # all sizes are equal
    assert (found["censored"].sel(kind="snapshots") == 1).all() and (found["censored"].sel(kind="random") == 0).all()
    assert found["level"].values.tolist() == list(LEVELS)
