"""A reader changes a parameter of a notebook: it runs, or says at once which one cannot be, and why."""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def cells(name: str) -> list[tuple[str, bool]]:
    """The source of every code cell, and whether it holds the parameters."""
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", [])) for cell in code]


def run(name: str, folder: Path, only_checks: bool = False, **changed) -> dict:
    """Run the code of a notebook here, with some parameters changed; with `only_checks` up to the cell that checks."""
    names = {"display": lambda *shown: None, "__name__": "__main__"}
    for number, (source, parameters) in enumerate(cells(name)):
        exec(compile(source, f"{name}, code cell {number}", "exec"), names)
        if parameters:
            assert changed.keys() <= names.keys(), f"{name} has no parameters {sorted(changed.keys() - names.keys())}"
            names |= {"outputs": str(folder)} | changed
        elif only_checks:
            break
    plt.close("all")
    return names


SMALL = {
    "manifold_base_steps": 60, "manifold_parent_steps": 40, "manifold_child_steps": 20, "manifold_train_size": 200,
    "manifold_examples": 100, "manifold_children": 3, "manifold_operators": ["net2net"], "manifold_margin": 0.5,
}  # fmt: skip
CHANGES = [
    {"manifold_dataset": "mnist1d"},
    {"manifold_widths": [9]},
    {"manifold_widths": [4, 8, 5], "manifold_factor": 1.5},
    {"manifold_operators": ["gradmax", "zero_incoming"]},
    {"manifold_operators": ["ligo", "lemon"], "manifold_seeds": 3},
    {"manifold_operators": ["bert2bert", "firefly", "hypercloning"]},
    {"manifold_base_steps": 1, "manifold_parent_steps": 1, "manifold_margin": 9.0},
    {"manifold_children": 5, "manifold_child_steps": 60, "manifold_step_size": 0.2},
    {"manifold_batch": 100, "manifold_examples": 200, "manifold_margin": 1.0},
    {"manifold_train_size": 60, "manifold_examples": 1, "manifold_batch": 1, "manifold_step_size": 0.001},
]


@pytest.mark.parametrize("changed", CHANGES, ids=[" ".join(change) for change in CHANGES])
def test_the_manifold_is_shown_for_other_parameters(changed, tmp_path):
    run("3_manifold", tmp_path, **SMALL | changed)
    assert (tmp_path / "data" / "manifold.nc").exists()


def test_parents_above_the_level_are_named(tmp_path):
    with pytest.raises(AssertionError, match=r"nats above the level: raise manifold_parent_steps or manifold_margin"):
        run(
            "3_manifold",
            tmp_path,
            **SMALL | {"manifold_operators": ["random"], "manifold_parent_steps": 1, "manifold_margin": 1e-9},
        )


def test_children_that_see_the_same_steps_span_no_plane(tmp_path):
    with pytest.raises(ValueError, match="three corners on one line"):
        run("3_manifold", tmp_path, **SMALL | {"manifold_batch": 200, "manifold_examples": 200, "manifold_margin": 1.0})


WRONG = [
    *[(path.stem, {"outputs": 3}, "outputs must be the path of a folder; got 3") for path in NOTEBOOKS.glob("*.ipynb")],
    ("0_your_network", {"outputs": None}, "outputs must be the path of a folder; got None"),
    ("0_your_network", {"your_steps": 10**15}, "your_steps must be at least 10 and at most 1000000"),
    ("0_your_network", {"your_seeds": 10**15}, "your_seeds must be at least 1 and at most 1000"),
    ("0_your_network", {"your_language_steps": 10**15}, "your_language_steps must be at least 1 and at most 1000000"),
    ("4_experiment", {"experiment_pool": {"factors": float("nan")}}, "experiment_pool['factors'] must be a list"),
    ("4_experiment", {"experiment_pool": {"wider": ["lemmon"]}}, "unknown experiment_pool['wider'][0] 'lemmon'"),
    ("9_beyond", {"beyond_pool": {"extra_layers": [-1]}}, "beyond_pool['extra_layers'][0] must be at least 1"),
    ("3_manifold", {"manifold_operators": ["net2ned"]}, "did you mean 'net2net'"),
    ("3_manifold", {"manifold_operators": ["stack"]}, "unknown operator of manifold_operators 'stack'"),
    ("3_manifold", {"manifold_margin": float("nan")}, "manifold_margin must be a finite number"),
    ("3_manifold", {"manifold_margin": -0.1}, "manifold_margin must be a finite number"),
    ("3_manifold", {"manifold_seeds": 1}, "manifold_seeds must be at least 2 and at most 1000; got 1"),
    ("3_manifold", {"manifold_children": 2.5}, "manifold_children must be a whole number"),
    ("3_manifold", {"manifold_batch": 0}, "manifold_batch must be at least 1"),
    ("3_manifold", {"manifold_examples": 501}, "manifold_examples must be at least 1 and at most 500"),
    ("3_manifold", {"manifold_step_size": float("inf")}, "manifold_step_size must be a finite number"),
    ("3_manifold", {"manifold_dataset": "mnist2d"}, "mnist2d"),
    ("3_manifold", {"manifold_widths": []}, "manifold_widths must not be empty"),
    ("3_manifold", {"manifold_widths": [6, -1]}, "manifold_widths[1] must be at least 1; got -1"),
    ("3_manifold", {"manifold_train_size": 0}, "training examples"),
    ("4_experiment", {"experiment_options": {"seeds": 1}}, "≥ 2 seeds"),
    ("4_experiment", {"experiment_options": {"step": 40}}, "step"),
    ("4_experiment", {"experiment_progress": [0.0, 0.5]}, "progress must rise from 0 to 1"),
    ("4_experiment", {"experiment_pilot": [], "experiment_confirmation": []}, "no task"),
    ("4_experiment", {"experiment_pilot": [["digits", [6, 6], 400]]}, "a task is"),
    ("4_experiment", {"experiment_pilot": [["digits", [6, 6], 400, -0.5, 0]]}, "label_noise"),
    ("0_your_network", {"your_steps": 0}, "your_steps must be at least 10 and at most 1000000; got 0"),
    ("0_your_network", {"your_seeds": 1.5}, "your_seeds"),
    ("9_beyond", {"beyond_seeds": 2}, "beyond_seeds must be at least 3 and at most 1000; got 2"),
    ("9_beyond", {"beyond_operators": ["stack"]}, "unknown operator of beyond_operators 'stack'"),
    (
        "9_beyond",
        {"beyond_shares": [0.5]},
        "beyond_shares must hold 1.0, which the others are compared with; got [0.5]",
    ),
    ("9_beyond", {"beyond_curve": ["digits", [6, 6]]}, "a task is"),
    ("9_beyond", {"beyond_tasks": []}, "no task"),
    ("1_expansion", {"expansion_widths": []}, "expansion_widths must not be empty"),
    ("1_expansion", {"expansion_widths": [8]}, "expansion_widths must be three equal widths; got [8]"),
    ("1_expansion", {"expansion_widths": [1e9, 1e9, 1e9]}, "expansion_widths[0] must be a whole number"),
    ("1_expansion", {"expansion_widths": 1e9}, "expansion_widths must be a list; got 1000000000.0"),
    ("1_expansion", {"expansion_widths": [10**9] * 3}, "a width must be at least 1 and at most 1000000"),
    ("1_expansion", {"expansion_widths": [10**5] * 3}, "would take 74.5 GB, more than 8: ask for less"),
    ("2_estimators", {"estimators_samples": [10**12]}, "estimators_samples[0] must be at least 4 and at most 100000"),
    ("3_manifold", {"manifold_widths": [10**9]}, "a width must be at least 1 and at most 1000000"),
    ("3_manifold", {"manifold_children": 10**9}, "manifold_children must be at least 3 and at most 1000"),
    ("3_manifold", {"manifold_seeds": 10**9}, "manifold_seeds must be at least 2 and at most 1000"),
    ("3_manifold", {"manifold_factor": 10**9}, "manifold_factor must be a finite number > 1 and at most 1000"),
    ("3_manifold", {"manifold_base_steps": 10**15}, "manifold_base_steps must be at least 1 and at most 1000000"),
    ("4_experiment", {"experiment_options": {"step_size": float("nan")}}, "step_size must be a finite number > 0"),
    ("4_experiment", {"experiment_options": {"step_size": float("inf")}}, "step_size must be a finite number > 0"),
    ("4_experiment", {"experiment_options": {"batch": 10**9}}, "batch must be at most 300, the training examples of"),
    (
        "4_experiment",
        {"experiment_pilot": [["digits", [10**9], 300, 0.2, 0]]},
        "a width must be at least 1 and at most",
    ),
    ("4_experiment", {"experiment_device": "gpu"}, "unknown device 'gpu': take 'cpu', 'cuda'"),
    ("4_experiment", {"experiment_pool": {"factor": [2]}}, "'factor'; did you mean 'factors'"),
    ("4_experiment", {"experiment_workers": -1}, "experiment_workers must be at least 0 and at most 1000; got -1"),
    ("4_experiment", {"experiment_workers": 2.5}, "experiment_workers must be a whole number; got 2.5"),
    ("9_beyond", {"beyond_children": []}, "beyond_children must not be empty"),
    ("9_beyond", {"beyond_children": [2, 3]}, "numbers of children must divide the largest, 3; got [2]"),
    ("9_beyond", {"beyond_widths": [-2]}, "beyond_widths[0] must be at least 1 and at most 100000; got -2"),
    ("9_beyond", {"beyond_shares": [float("nan"), 1.0]}, "beyond_shares[0] must be a finite number > 0 and at most 1"),
    ("9_beyond", {"beyond_child_steps": [0]}, "beyond_child_steps[0] must be at least 1"),
    ("9_beyond", {"beyond_chain_steps": -1}, "beyond_chain_steps must be at least 1"),
    ("9_beyond", {"beyond_progress": [0, 2]}, "progress must rise from 0 to 1"),
    ("11_advice", {"advice_truth": ["nowhere.py"]}, "advice_truth[0] is no file: 'nowhere.py'"),
    ("11_advice", {"advice_calibration": []}, "advice_calibration must not be empty"),
]


@pytest.mark.parametrize(("name", "changed", "message"), WRONG, ids=[f"{n} {c}" for n, c, _ in WRONG])
def test_a_parameter_that_cannot_be_is_named_at_once(name, changed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)  # paths among the parameters start there
    with pytest.raises((AssertionError, ValueError, TypeError), match=re.escape(message)):
        run(name, tmp_path, only_checks=True, **changed)


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_assertions_that_a_reader_can_meet_carry_a_sentence(name):
    """Of what was expected; where a changed parameter is the likely cause, of that."""
    code = [ast.parse(source) for source, _ in cells(name)]
    met = [node for cell in code for node in ast.walk(cell) if isinstance(node, ast.Assert)]
    assert not [ast.unparse(node) for node in met if not is_sentence(node.msg)]


def is_sentence(message: ast.expr | None) -> bool:
    """Whether it is text of several words, with or without values in it."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    said = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return len(" ".join(said).split()) >= 3
