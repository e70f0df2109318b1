"""The committed reference results are whole, follow from their own data, and bear out what the README says of them."""

import re
from pathlib import Path

import pytest
import xarray as xr

from mmstudy.core import results
from mmstudy.study import evaluation

ROOT = Path(__file__).parent.parent
README, REFERENCE = ROOT / "README.md", ROOT / "outputs" / "reference"


@pytest.fixture(scope="module")
def experiment():
    return results.load(REFERENCE / "data" / "experiment.nc")


@pytest.fixture(scope="module")
def scores(experiment):
    return evaluation.scores(evaluation.predictions(experiment), evaluation.gains(experiment))


@pytest.mark.parametrize("name", ["expansion", "manifold", "experiment", "scores"])
def test_every_file_explains_itself(name):
    data = results.load(REFERENCE / "data" / f"{name}.nc")
    assert "+changes" not in data.attrs["commit"]


def test_every_figure_of_the_readme_is_there():
    rows = [line for line in README.read_text().splitlines() if line.startswith("| `") and ".nc` |" in line]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    drawn = {path.stem for path in (REFERENCE / "figures").glob("*.png")}
    assert named == drawn == {path.stem for path in (REFERENCE / "figures").glob("*.svg")}


def test_the_stored_scores_follow_from_the_stored_experiment(scores):
    stored = results.load(REFERENCE / "data" / "scores.nc")
    for name in ("spearman", "partial", "same_size", "regret", "precision"):
        assert stored[name].values == pytest.approx(scores[name].values, rel=1e-6, nan_ok=True), name


def test_what_the_readme_says_holds(experiment, scores):
    predicted = evaluation.predictions(experiment)
    headline = evaluation.find(predicted, **evaluation.HEADLINE)
    rival = evaluation.find(predicted, **evaluation.RIVAL)
    rho, regret = scores["spearman"].sel(group="all"), scores["regret"].mean("task")

    size = evaluation.find(predicted, **evaluation.HEADLINE | {"combined": False})

    def lead(other: str, mine: str = headline) -> xr.Dataset:
        return evaluation.bootstrap(rho.sel(predictor=mine, drop=True) - rho.sel(predictor=other, drop=True))

    alone = lead("parameters", size)
    said = [round(float(alone[name]), 2) for name in ("mean", "high", "low")]
    assert said == [-0.24, -0.07, -0.40], "the size alone orders worse than the parameter count"
    for static in ("gradient_norm", "loss"):
        assert lead(static)["low"] > 0, "size beats the gradient norm and the loss right after expansion"
    assert lead("parameters")["low"] < 0 < lead("parameters")["high"], "against the parameter count it is undecided"
    same_price = evaluation.find(predicted, **evaluation.RIVAL | {"share": 0.05})
    for early_loss in (rival, same_price):
        assert lead(early_loss)["high"] < 0, "a well-run early loss orders better than size, at the same price too"
    assert regret.sel(predictor=headline) < regret.sel(predictor="parameters") / 2, "size picks better than counting"
    assert predicted["cost"].sel(predictor=headline) < 0.06, "a twentieth of the price of a full training"

    least = (
        evaluation.gains(experiment)["gain"].sel(score="accuracy", checkpoint="last").max("candidate").argmin("task")
    )
    some = rho.sel(predictor=["parameters", rival, headline]).isel(task=least)
    assert abs(some).max() < 0.35, "where there is little to gain, nothing predicts well"
    within = scores["spearman"].drop_sel(group="all").mean("group")
    for mine in (size, headline):
        gain = within.sel(predictor=mine, drop=True) - within.sel(predictor="parameters", drop=True)
        assert not evaluation.bootstrap(gain)["low"] > 0, "within an operator no gain over the parameter count is seen"
    chosen = predicted.sel(predictor=size)
    cut = experiment["unbounded"].sel(rate=float(chosen["rate"]), probe=int(chosen["length"])).mean("candidate")
    clean = (experiment["dataset"] == "digits") & (experiment["label_noise"] == 0)
    assert int(clean.sum()) == 2
    assert (cut[clean.values] > 0.85).all(), "nine rays in ten are cut off on digits with true labels"
    assert (cut[~clean.values] < 0.05).all()
