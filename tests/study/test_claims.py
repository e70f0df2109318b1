"""Numbers are found by their names; the abstract says what the data say; two folders of results are told apart."""

import numpy as np
import pytest
import xarray as xr

from mmstudy.core import results
from mmstudy.study import abstract, choices, claims, compare, predictions

TASKS = ["a", "b", "c", "d"]
PARTS = ["pilot", "confirmation", "confirmation", "confirmation"]


@pytest.fixture
def folder(tmp_path):
    rho = xr.DataArray([[1.0, 0.5], [0.2, 0.4], [0.3, 0.1], [0.7, 0.1]], dims=("task", "predictor"))
    coords = {"task": TASKS, "part": ("task", PARTS), "predictor": ["x, y @5%", "z"]}
    results.write(xr.Dataset({"rho": rho}, coords), tmp_path / "a.nc")
    return tmp_path


def test_a_number_is_a_mean_over_what_is_not_selected(folder):
    assert claims.number(folder, "a.nc / rho / part=confirmation / predictor=x, y @5%") == pytest.approx(0.4)
    assert claims.number(folder, "a.nc / rho / task=a / predictor=z") == 0.5
    first, second = (f"a.nc / rho / part=confirmation / predictor={name}" for name in ("x, y @5%", "z"))
    assert claims.number(folder, f"{first} minus {second}") == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.nc / rha", "no variable 'rha'; it has rho"),
        ("a.nc / rho / parts=pilot", "no coordinate 'parts'; it has"),
        ("a.nc / rho / part=pilots", "part='pilots' is not in a.nc; known: pilot, confirmation"),
        ("a.nc / rho minus a.nc / rho minus a.nc / rho", "one name, or two"),
    ],
)
def test_a_name_that_names_nothing_is_refused(folder, name, message):
    with pytest.raises(ValueError, match=message):
        claims.number(folder, name)


def three(size, loss, count, part="confirmation"):
    """Results of the three notebooks, in which the size, the loss and counting have these correlations."""
    tasks = len(size)
    about = {"task": [f"t{i}" for i in range(tasks)], "part": ("task", [part] * tasks)}
    about["architecture"] = "task", ["MLP"] * tasks
    names = [choices.RELATION, *choices.RELATION_RIVALS, choices.HEADLINE, choices.RIVAL, choices.VALIDATION_RIVAL]
    names += [choices.COMBINED, "validation_accuracy @100%"]
    columns = np.stack([size, loss, count, size, loss, loss, loss, loss], axis=1)
    coords = about | {"predictor": names, "cost": ("predictor", np.linspace(0, 1, len(names)))}
    given = {"given": ["parameters", "training loss", "centre loss"]}
    partial = (("given", "task", "predictor"), np.stack([columns - 0.1, columns - 0.2, columns - 0.3]))
    scored = xr.Dataset({"spearman": (("task", "predictor"), columns), "partial": partial}, coords | given)
    forms = {"kind": ["children", "random"], "level": ["median", "own"], "form": ["multiple"], "margin": [0.1]}
    scored["extent"] = scored["spearman"].isel(predictor=0, drop=True).expand_dims(forms)
    policies = ["largest", "rank by size", "i-Epoch, 10%", "anchored loss, 5%", "train all", "anchored size"]
    rows = np.arange(6.0)[:, None] + np.linspace(0, 0.1, tasks)
    over = ("policy", "task")
    choice = xr.Dataset(
        {"regret": (over, rows), "total": (over, 0 * rows + 0.1), "spearman": (over, rows / 10 - 0.3)},
        about
        | {
            "policy": policies,
            "reference": [abstract.BASE, abstract.SCRATCH],
            "budget": ["equal steps", "equal flops"],
        },
    )
    middle = xr.Variable(("task", "reference", "budget"), np.linspace(-1, 2, tasks)[:, None, None] * np.ones((1, 2, 2)))
    return scored, scored, choice.assign(middle=middle, upper=middle + 1)


def test_the_abstract_follows_its_data():
    rng = np.random.default_rng(0)
    size, noise = 0.7 + 0.02 * rng.normal(size=9), 0.02 * rng.normal(size=(2, 9))
    good = abstract.written(*three(size, 0.4 + noise[0], 0.3 + noise[1]))
    bad = abstract.written(*three(0.4 + noise[0], size, size + 0.01 * noise[1]))
    assert good.startswith("*9 confirmation tasks (9 MLP)")
    assert f"ρ = +{size.mean():.2f} [" in good
    for text, verdict, goal in ((good, "better", "reached"), (bad, "worse", "missed")):
        line = next(line for line in text.splitlines() if "above the final training loss" in line)
        assert verdict in line and line.endswith(f"| {goal} |")
        mean = next(line for line in text.splitlines() if "mean ρ ≥ 0.65 at 100%" in line)
        assert mean.endswith(f"| {goal} |")
    assert "choice: regret ≤ 0.3 points for ≤ 12% (largest; training all loses 4.05) | 0.05 | reached" in good


def test_pilot_tasks_confirm_nothing():
    with pytest.raises(ValueError, match="no confirmation task"):
        abstract.written(*three(np.ones(4), np.ones(4), np.ones(4), part="pilot"))


def test_the_abstract_stands_between_its_marks():
    page = f"top\n{abstract.BEGIN}old\n{abstract.END}rest\n"
    once = abstract.inserted(page, "new\n")
    assert once == f"top\n{abstract.BEGIN}new\n{abstract.END}rest\n"
    assert abstract.inserted(once, "new\n") == once
    with pytest.raises(ValueError, match="needs the lines"):
        abstract.inserted("top\n", "new\n")


def test_what_moved_is_found_by_name_and_not_by_place(folder, tmp_path):
    other = tmp_path / "other"
    dataset = results.read(folder / "a.nc").isel(task=[2, 0])
    changed = dataset.copy(deep=True)
    changed["rho"].loc[{"task": "a", "predictor": "z"}] += 0.25
    for name, each in (("same", dataset), ("changed", changed)):
        results.write(each, other / name / "a.nc")
    assert compare.compared(other / "same", folder).loc[("a.nc", "rho")].tolist() == [4, 0, 0]
    values, differ, largest = compare.compared(other / "changed", folder).loc[("a.nc", "rho")]
    assert (values, differ) == (4, 0.25)
    assert largest == pytest.approx(0.25)
    with pytest.raises(FileNotFoundError, match="no results in common"):
        compare.compared(tmp_path / "nowhere", folder)


def test_candidates_of_two_experiments_are_held_against_each_other_by_task_and_label(tmp_path):
    coords = {"task": ("candidate", ["a", "a", "b"]), "label": ("candidate", ["x", "y", "x"])}
    data = xr.Dataset({"gain": ("candidate", [1.0, 2.0, np.nan])}, coords)
    results.write(data, tmp_path / "one" / "e.nc")
    results.write(data.isel(candidate=[2, 1]), tmp_path / "two" / "e.nc")
    assert compare.compared(tmp_path / "two", tmp_path / "one").loc[("e.nc", "gain")].tolist() == [2, 0, 0]


def test_the_latest_look_that_one_can_afford():
    table = xr.Dataset(
        coords={
            "predictor": ["a @2%", "a @5%", "a @10%", "b", "c @2%", "a @5% + parameters"],
            "measure": ("predictor", ["a", "a", "a", "b", "c", "a"]),
            "cost": ("predictor", [0.02, 0.05, 0.1, 0.0, 0.2, 0.05]),
            "combined": ("predictor", [False] * 5 + [True]),
        }
    )
    assert predictions.affordable(table, 0.06) == ["b", "a @5%"]
    assert predictions.affordable(table, 0.06, combined=True) == ["a @5% + parameters"]
