"""A reader gives a notebook a value that cannot be: its first cell of code says which, and what to give instead."""

import re

import pytest
import reader
from reader import NOTEBOOKS, run

from mmstudy.core import results
from mmstudy.study.design import PARTS

NAN = float("nan")
REFERENCE = "../outputs/reference/data"
FILE = f"{REFERENCE}/relation.nc"  # a file of another kind than those that are asked for, or where a folder should be
TASK = ["digits", [6, 6], 300, 0.2, 0]
FOLDER, PATH = "must be the path of a folder", "must be the path of a file"
A_TASK = "a task is [dataset, widths, examples, noise, seed] and a family; got"

OUTPUTS = [
    (5, f"outputs {FOLDER}"),
    ("", f"outputs {FOLDER}"),
    (FILE, "outputs must be a folder"),
]
EXPERIMENT = [
    (5, f"experiment {PATH}"), ("", f"experiment {PATH}"),
    ("none.nc", "experiment is no file: 'none.nc'"),
    (FILE, f"{FILE}: not a result of this study: no variable"),
]  # fmt: skip
SCHEDULER = [(5, "scheduler must be an address"), ("nowhere", "scheduler must be an address with a port")]


def whole(name, least, most=None):
    """Wrong values of a whole number, and what is said."""
    some = [(least - 1, f"{name} must be at least {least}"), (2.5, f"{name} must be a whole number; got 2.5")]
    return {name: [*some, (str(least), "must be a whole number"), *([(most + 1, f"at most {most}")] if most else [])]}


def number(name, above, most):
    """Wrong values of a number, and what is said."""
    said = f"{name} must be a finite number > {above}"
    return {name: [(above, said), (NAN, said), (2 * most, said), ("2", f"{name} must be a number")]}


def dataset(name):
    known = "unknown dataset 'mnist2d'; known: digits"
    return {name: [("mnist2d", known), (["digits"], "a dataset is named"), ("text", "an MLP takes numbers")]}


def size(name):
    wanted = "training examples"
    return {name: [(0, wanted), (501, f"1 to 500 {wanted}; got train_size=501"), ("500", wanted), (99.5, wanted)]}


def operators(name):
    return {
        name: [
            ([], f"{name} must not be empty"), ("random", f"{name} must be a list"), (["net2ned"], "mean 'net2net'"),
            (["stack"], f"unknown operator of {name} 'stack'. Known: "),
            (["random"] * 2, f"{name} must hold no operator"),
        ]
    }  # fmt: skip


def rising(name, wrong, said):
    least = said.split()[-1]
    return {
        name: [
            ([], f"{name} must not be empty"), (4, f"{name} must be a list"), ([wrong], f"{name}[0] must be {said}"),
            ([8, 4], f"{name} must be numbers that rise"), ([int(least) + 1] * 2, f"{name} must be numbers that rise"),
        ]
    }  # fmt: skip


def options(name):
    return {
        f"{name}_options": [
            (None, f"{name}_options must be a mapping"),
            ({"step": 40}, f"option of {name}_options 'step'; did you mean"),
            ({"seeds": 1}, "≥ 2 seeds"), ({"step_size": NAN}, "step_size must be a finite number > 0"),
            ({"batch": 10**9}, "batch must be at most 300, the training examples of"),
            ({"progress": [0, 1]}, f"set {name}_progress instead"),
            ({"estimators": "rays"}, "estimators must be a list"),
            ({"steps": 50}, "steps = 50 is no multiple of bins"), ({"batch": 0}, "batch must be at least 1; got 0"),
        ]
    }  # fmt: skip


def progress(name):
    rises = "progress must rise from 0 to 1"
    wrong = [(5, f"{name} must be a list"), (["a"], f"{name}[0] must be a number")]
    return {name: [([0.0, 0.5], rises), ([], rises), ([0, 2], rises), *wrong]}


def pool(name):
    return {
        name: [
            (5, f"{name} must be a mapping"), ({"factor": [2]}, f"in {name} 'factor'; did you mean 'factors'"),
            ({"factors": [1]}, f"{name}['factors'][0] must be a finite number > 1"),
            ({"factors": 2}, f"{name}['factors'] must be a list; got 2"),
            ({"extra_layers": [-1]}, f"{name}['extra_layers'][0] must be at least 1"),
            ({"wider": ["lemmon"]}, f"unknown {name}['wider'][0] 'lemmon'; did you mean 'lemon'"),
            ({"factors": [], "extra_layers": [], "matched": []}, f"an empty pool: {name} must have factors"),
        ]
    }  # fmt: skip


def one_task(name, wrap=lambda task: task):
    """Wrong tasks, alone or in a list."""
    wrong = [
        ("digits", A_TASK), (TASK[:3], A_TASK), (["digits", 6, 300, 0.2, 0], "widths of a task must be a list"),
        (["digits", [], 300, 0.2, 0], "widths of a task must be a list"), (["moons", *TASK[1:]], "unknown dataset"),
        (["digits", [6], "300", 0.2, 0], "training examples must be a whole number"),
        (["digits", [10**9], 300, 0.2, 0], "a width must be at least 1 and at most"),
        (["digits", [6], 300, -0.5, 0], "label_noise is a share"), (["digits", [6], 300, NAN, 0], "label_noise"),
        (["digits", [6], 300, "few", 0], "label_noise must be a number"),
        (["digits", [6], 300, 0.2, "a"], "the seed of"),
        ([*TASK, "GPT"], "unknown family 'GPT'. Known: MLP"), ([*TASK, "ViT"], "widths of a ViT are (width"),
    ]  # fmt: skip
    return {name: [(wrap(task), said) for task, said in wrong]}


def tasks(name, *more):
    return {name: [*one_task(name, lambda task: [task])[name], (5, "tasks must be a list of tasks; got 5"), *more]}


def cases(name):
    return {
        name: [
            ([], f"{name} must "), (5, f"{name} must be a list"), ([5, 5], A_TASK),
            (["none.py"] * 2, f"{name}[0] is no file"),
            ([FILE] * 2, f"{FILE} cannot be run as Python"),
            ([["digits", [6], 300, 2, 9]] * 2, "label_noise is a share"),
        ]
    }  # fmt: skip


FAMILIES = "expansion_families must "
WRONG = {
    "0_your_network": whole("your_steps", 10, 10**6) | whole("your_seeds", 1) | whole("your_language_steps", 1),
    "1_expansion": dataset("expansion_dataset")
    | {
        "expansion_widths": [
            ([], "expansion_widths must not be empty"), ([8], "expansion_widths must be three equal widths; got [8]"),
            ([8, 8, 9], "three equal widths"), ([1] * 3, "expansion_widths[0] must be at least 2"),
            ([1e9] * 3, "expansion_widths[0] must be a whole number"),
            (1e9, "expansion_widths must be a list; got 1000"),
            ([10**9] * 3, "a width must be at least 1 and at most 1000000"),
            ([10**5] * 3, "would take 74.5 GB, more than 8"),
        ],
        "expansion_families": [
            ([], f"{FAMILIES}not be empty"), (["MLP"], f"{FAMILIES}hold MLP and ViT"), ("MLP", f"{FAMILIES}be a list"),
            (["MLP", "GPT"], "unknown family of expansion_families 'GPT'. Known: MLP"),
            (["ViT"] * 2, f"{FAMILIES}hold no"),
        ],
    }
    | size("expansion_train_size") | whole("expansion_base_steps", 1, 10**6) | number("expansion_step_size", 0, 1000)
    | whole("expansion_seeds", 2, 1000) | whole("expansion_steps", 1, 10**6) | whole("expansion_adam_steps", 1, 10**6)
    | whole("expansion_family_steps", 1, 10**6) | whole("expansion_family_examples", 8, 10**5),
    "2_estimators": whole("estimators_repetitions", 20, 10**4)
    | whole("estimators_networks", 5, 1000) | whole("estimators_steps", 100, 10**6)
    | {
        "estimators_samples": [
            ([], "estimators_samples must not be empty"), (8, "estimators_samples must be a list"),
            ([2, 64], "estimators_samples[0] must be at least 4"), ([10**12], "at least 4 and at most 100000"),
            ([8], "estimators_samples must reach 16 times the first"), ([64, 4], "must be numbers that rise"),
            ([8, 16], "estimators_samples must reach 16 times the first"),
        ]
    },
    "3_manifold": dataset("manifold_dataset")
    | {
        "manifold_widths": [
            ([], "manifold_widths must not be empty"), (6, "manifold_widths must be a list"),
            ([6, -1], "manifold_widths[1] must be at least 1; got -1"),
            ([10**9], "a width must be at least 1 and at most"),
        ],
        "manifold_factor": number("manifold_factor", 1, 1000)["manifold_factor"] + [(1.01, "adds no unit to a layer")],
    }
    | size("manifold_train_size") | operators("manifold_operators") | whole("manifold_base_steps", 1, 10**6)
    | whole("manifold_seeds", 2, 1000) | whole("manifold_parent_steps", 1, 10**6) | whole("manifold_children", 3, 1000)
    | whole("manifold_child_steps", 1, 10**6) | number("manifold_step_size", 0, 1000) | whole("manifold_batch", 1, 500)
    | whole("manifold_examples", 1, 500) | number("manifold_margin", 0, 1000),
    "4_experiment": {
        "cache": [(5, f"cache {FOLDER}"), ("", f"cache {FOLDER}"), (FILE, "cache must be a folder")],
        "experiment_device": [(5, "a device must be 'cpu'"), ("gpu", "unknown device"), ("meta", "unknown device")],
        "scheduler": SCHEDULER,
        "more": [(5, f"more {PATH}"), ("none.nc", "more is no file"), (FILE, "not a result of this study")],
    }
    | tasks("experiment_pilot", ([TASK, TASK], "is listed twice, as pilot and as pilot"))
    | tasks("experiment_confirmation", ([TASK], "is listed twice, as pilot and as confirmation"))
    | options("experiment") | progress("experiment_progress") | pool("experiment_pool")
    | whole("experiment_workers", 0, 1000),
    "5_relation": {"experiment": EXPERIMENT},
    "6_prediction": {"experiment": EXPERIMENT},
    "7_choice": {"experiment": EXPERIMENT},
    "8_answer": {
        "data": [(5, f"data {FOLDER}"), ("", f"data {FOLDER}"), ("none", "none/relation.nc does not exist")]
    },
    "9_beyond": {
        "experiment": EXPERIMENT,
        "beyond_runs": [(5, f"beyond_runs {PATH}"), ("none.nc", "beyond_runs is no file")],
        "beyond_shares": [
            ([], "beyond_shares must not be empty"), (1.0, "beyond_shares must be a list"), ([0.5], "must hold 1.0"),
            ([NAN, 1.0], "beyond_shares[0] must be a finite number > 0 and at most 1"),
            ([1.0, 2.0], "beyond_shares[1] must"),
            ([1.0, 0.5], "beyond_shares must be numbers that rise"),
        ],
        "scheduler": SCHEDULER,
    }
    | tasks("beyond_tasks", ([], "no task in any of pilot")) | one_task("beyond_curve") | options("beyond")
    | {"beyond_curve_options": options("beyond_curve")["beyond_curve_options"][:5]}
    | progress("beyond_progress") | pool("beyond_pool") | rising("beyond_children", 1, "at least 2")
    | rising("beyond_child_steps", 0, "at least 1") | rising("beyond_widths", -2, "at least 1")
    | whole("beyond_chain_steps", 24, 10**6) | whole("beyond_rounds", 1, 100) | operators("beyond_operators")
    | whole("beyond_seeds", 3, 1000) | whole("beyond_workers", 0, 1000),
    "10_ranking": {
        "model": [(5, f"model {PATH}"), ("none.py", "model is no file"), (FILE, "cannot be run as Python")],
        "ranking_folder": [(5, f"ranking_folder {FOLDER}"), (FILE, "ranking_folder must be a folder")],
        "scheduler": SCHEDULER,
    }
    | number("ranking_budget", 0, 1) | whole("ranking_full_steps", 0, 10**9) | whole("ranking_seed", 0),
    "11_advice": {
        "advice_runs": [(5, f"advice_runs {PATH}"), ("none.nc", "advice_runs is no file")],
        "advice_cache": [(5, f"advice_cache {FOLDER}"), (FILE, "advice_cache must be a folder")],
        "scheduler": SCHEDULER,
    }
    | cases("advice_calibration") | cases("advice_truth") | whole("advice_steps", 0, 10**6),
}  # fmt: skip
EACH = [
    (notebook, name, value, said)
    for notebook, names in WRONG.items()
    for name, values in (names | {"outputs": OUTPUTS}).items()
    for value, said in values
]


@pytest.fixture(autouse=True)
def where_the_notebooks_are(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)  # paths among the parameters start there


@pytest.mark.parametrize(("notebook", "name", "value", "said"), EACH, ids=[f"{n} {p} {v!r:.60}" for n, p, v, _ in EACH])
def test_what_cannot_be_is_named_at_once(notebook, name, value, said, tmp_path):
    with pytest.raises((AssertionError, ValueError, TypeError, FileNotFoundError), match=re.escape(said)):
        run(notebook, tmp_path, which=range(2), **{name: value})


@pytest.mark.parametrize("notebook", reader.NAMES)
def test_two_wrong_values_at_least_are_given_for_every_parameter(notebook):
    given = {name: len(values) for name, values in (WRONG[notebook] | {"outputs": OUTPUTS}).items()}
    assert given.keys() == {*reader.parameters(notebook)}
    assert min(given.values()) >= 2


FRESH = {"beyond_runs": ""}
SHORT = {
    "beyond_options": {
        "steps": 60, "bins": 10, "batch": 60, "short": 0.5, "children": 3, "child_steps": 2, "probe_examples": 10,
        "doublings": 2, "random_rays": 1,
    },
    "beyond_progress": [0.0, 0.5, 1.0],
}  # fmt: skip
TOGETHER = [
    ("9_beyond", {"beyond_widths": [4, 6]}, "beyond_widths must reach twice the first, which is doubled; got [4, 6]"),
    ("9_beyond", FRESH | {"beyond_children": [2, 3]}, "numbers of children must divide the largest, 3; got [2]"),
    ("9_beyond", FRESH | {"beyond_tasks": [["digits", [6], 501, 0.2, 0]]}, "1 to 500 training examples; got train"),
    ("9_beyond", FRESH | {"beyond_tasks": [["digits", [8, 2, 1], 300, 0.2, 0, "ViT"]]}, "needs perceptrons, and"),
    ("9_beyond", FRESH | {"beyond_curve": ["text", [6], 100, 0.2, 0]}, "an MLP takes numbers"),
    ("9_beyond", FRESH | {"beyond_tasks": [TASK, ["digits", [6], 20, 0.2, 0]]}, "batch must be at most 20, the"),
    ("9_beyond", FRESH | {"beyond_options": {"steps": 100, "batch": 2}}, "is too small to look by"),
    ("9_beyond", FRESH | SHORT, "more or less than it may: take more steps"),
    ("4_experiment", {"experiment_pilot": [], "experiment_confirmation": []}, "no task in any of pilot, confirmation"),
    ("4_experiment", {"more": f"{REFERENCE}/experiment.nc"}, "experiment.nc holds tasks that are not listed, such as"),
    ("11_advice", {"advice_calibration": [TASK]}, "advice_calibration must hold 2 at least; got 1"),
]


@pytest.mark.parametrize(("notebook", "changed", "said"), TOGETHER, ids=[f"{n} {c}" for n, c, _ in TOGETHER])
def test_what_cannot_be_together_is_named_at_once(notebook, changed, said, tmp_path):
    with pytest.raises((AssertionError, ValueError), match=re.escape(said)):
        run(notebook, tmp_path, which=range(2), **changed)


@pytest.mark.parametrize("notebook", ["5_relation", "6_prediction", "7_choice"])
def test_an_experiment_that_lacks_what_is_read_is_named_at_once(notebook, lacking, tmp_path):
    for file, said in lacking.items():
        with pytest.raises((AssertionError, ValueError), match=re.escape(said)):
            run(notebook, tmp_path, which=range(2), experiment=str(file))


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """Experiments without tasks of the confirmation, and without looks on the way, and what is said of each."""
    folder, whole = tmp_path_factory.mktemp("lacking"), results.load(NOTEBOOKS / REFERENCE / "experiment.nc")
    parts = {part: whole.isel(candidate=(whole["part"] == part).values.nonzero()[0][:40]) for part in PARTS}
    return {
        results.save(parts["pilot"], folder / "pilot.nc"): "pilot.nc has no confirmation task: name some in experiment",
        results.save(parts["confirmation"].sel(progress=[0.0, 1.0]), folder / "ends.nc"): "must have looks after [0.0",
    }


LATER = [
    ("4_experiment", {"experiment_pilot": [["digits", [6], 501, 0.2, 0]]}, "1 to 500 training examples; got train"),
    ("9_beyond", {"beyond_runs": FILE}, "relation.nc: not a result of this study: no variable 'size_spearman'"),
    ("11_advice", {"advice_runs": FILE}, "relation.nc: not a result of this study: no variable 'gain'"),
]


@pytest.mark.parametrize(("notebook", "changed", "said"), LATER, ids=[n for n, *_ in LATER])
def test_data_that_cannot_be_are_named_by_the_cell_that_reads_them(notebook, changed, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        run(notebook, tmp_path, which=range(3), **changed)
