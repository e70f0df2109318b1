"""A reader changes several parameters at once, to other values that make sense: the notebook runs to its end.

Notebook 3 has tests of its own, in `test_notebooks`.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import reader

from mmstudy.core import processes
from mmstudy.validation import preservation, truths

# Two clouds of points, a perceptron that tells them apart, and two candidates: trained in no time.
MODEL = '''"""Two clouds."""
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from mmstudy import Candidate
points = torch.randn(120, 3, generator=torch.Generator().manual_seed({seed}))
labels = (points[:, 0] + points[:, 1] > 0).long()
pool = {{name: Candidate(name, ("0",), (8,)) for name in ("net2net", "zero_outgoing", "random")}}
full_steps = 40
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])
def metric(model, batch):
    return (model(batch[0]).argmax(-1) == batch[1]).float().mean()
def loaders():
    parts = [(points[i : i + 20], labels[i : i + 20]) for i in range(0, 120, 20)]
    return parts[:3], parts[3:]
def optimizer(parameters):
    return torch.optim.SGD(parameters, 0.1)
'''
QUICK = {
    "steps": 150, "bins": 50, "batch": 50, "child_steps": 2, "seeds": 2, "probe_examples": 10, "children": 3,
    "traces": 1, "random_rays": 1, "doublings": 4, "test_examples": 200,
}  # fmt: skip
PILOT = {
    "experiment_pilot": [["spiral", [4], 100, 0.2, 0]],
    "experiment_confirmation": [],
    "experiment_options": QUICK,
    "experiment_progress": [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0],
    "experiment_pool": {"factors": [1.5, 2], "extra_layers": [], "matched": []},
    "experiment_workers": 1,
    "cache": "{made}/cache",
}
# {made} is where these runs write, {models} has three files of models.
RUNS = {
    "0_your_network": [{"your_steps": 25, "your_seeds": 1}],
    "1_expansion": [
        {
            "expansion_dataset": "spiral", "expansion_widths": [5, 5, 5], "expansion_train_size": 100,
            "expansion_base_steps": 20, "expansion_step_size": 0.1, "expansion_seeds": 2, "expansion_steps": 3,
            "expansion_adam_steps": 2, "expansion_families": ["ViT", "MLP"], "expansion_family_steps": 10,
            "expansion_family_examples": 16,
        },
    ],
    "2_estimators": [
        {
            "estimators_repetitions": 20, "estimators_samples": [4, 64], "estimators_networks": 5,
            "estimators_steps": 100,
        },
    ],
    "4_experiment": [
        PILOT | {"outputs": "{made}/pilot"},
        PILOT
        | {
            "experiment_confirmation": [["spiral", [6], 60, 0.0, 1]], "experiment_device": "auto",
            "experiment_workers": 2, "more": "{made}/pilot/data/experiment.nc", "outputs": "{made}",
        },
    ],
    "5_relation": [{"experiment": "{made}/data/experiment.nc", "outputs": "{made}"}],
    "6_prediction": [{"experiment": "{made}/data/experiment.nc", "outputs": "{made}"}],
    "7_choice": [{"experiment": "{made}/data/experiment.nc", "outputs": "{made}"}],
    "8_answer": [{"data": "{made}/data"}],
    "9_beyond": [
        {
            "experiment": "{made}/data/experiment.nc", "beyond_runs": "",
            "beyond_tasks": [["spiral", [4], 100, 0.2, 0]], "beyond_curve": ["spiral", [4], 60, 0.2, 1],
            "beyond_options": QUICK,
            "beyond_curve_options": {"steps": 100, "batch": 60}, "beyond_progress": [0.0, 0.2, 1.0],
            "beyond_pool": {"factors": [1.5], "extra_layers": []}, "beyond_children": [3], "beyond_child_steps": [2],
            "beyond_chain_steps": 24, "beyond_shares": [0.25, 1.0], "beyond_rounds": 1, "beyond_widths": [2, 8],
            "beyond_operators": ["lemon"], "beyond_seeds": 3, "beyond_workers": 1, "outputs": "{made}/beyond",
        },
    ],
    "10_ranking": [
        {"model": "{models}/ours.py", "ranking_budget": 1, "ranking_full_steps": 9, "ranking_folder": "{made}/own"},
        {"model": "{models}/yours.py", "ranking_budget": 0.5, "ranking_full_steps": 0, "ranking_seed": 3},
    ],
    "11_advice": [
        {
            "advice_calibration": ["{models}/ours.py", "{models}/yours.py"], "advice_truth": ["{models}/theirs.py"],
            "advice_steps": 50, "advice_cache": "{made}/advice", "advice_runs": "", "outputs": "{made}/advised",
        },
    ],
}  # fmt: skip
# Notebooks 1 and 2 take long: here the transformer grows at one place, and few estimates are held against the truth.
FAMILY = replace(preservation.FAMILIES["ViT"], wider=preservation.FAMILIES["ViT"].wider[:1])
CASES = truths.cases()[::6]
# Of notebooks that take long: those of the cells behind the check that are run, by words in them, or where to end.
ONLY = {"2_estimators": ["truths.cases()", "accurate = abs(", 'tasks.Task("digits"', "alphas, curves ="]}
END = {"0_your_network": "import transformers", "1_expansion": "compound = "}
OF_ONES_OWN = [  # what other runs have made is read as the reference is, and nothing is asserted of it
    ("9_beyond", {"beyond_runs": "{made}/beyond/data/beyond.nc"}, "data.sel(budget"),
    ("11_advice", {"advice_runs": "{made}/advised/data/advice.nc"}, "figures.advice("),
]
EACH = [(notebook, changed, END.get(notebook)) for notebook, runs in RUNS.items() for changed in runs] + OF_ONES_OWN


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in ("made", "models")}
    for seed, name in enumerate(("ours", "yours", "theirs")):
        (made["models"] / f"{name}.py").write_text(MODEL.format(seed=seed))
    return made


def chosen(notebook, end):
    """The numbers of the cells that are run."""
    code = [source for source, _ in reader.cells(notebook)]
    if notebook in ONLY:
        return {0, 1, *(one for words in ONLY[notebook] for one in numbers(code, words))}
    return range(numbers(code, end)[0] if end else len(code))


def numbers(code, words):
    """Those of the cells that hold these words, one at least."""
    found = [number for number, source in enumerate(code) if words in source]
    assert found, f"no cell has {words}"
    return found


def filled(value, folders):
    """The value, with folders in the place of their names."""
    if isinstance(value, str):
        return value.format_map(folders)
    return [filled(each, folders) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("notebook", "changed", "end"), EACH, ids=[f"{name} {' '.join(c)}" for name, c, _ in EACH])
def test_a_changed_notebook_runs_to_its_end(notebook, changed, end, folders, tmp_path, monkeypatch):
    """Those that read what another one has made come behind it."""
    monkeypatch.setattr(processes, "pool", lambda workers=0: reader.Here())
    monkeypatch.setattr(truths, "cases", lambda: CASES)
    monkeypatch.setitem(preservation.FAMILIES, "ViT", FAMILY)
    monkeypatch.chdir(reader.NOTEBOOKS)
    folder = Path(filled(changed.get("outputs", str(tmp_path)), folders))
    given = {name: filled(value, folders) for name, value in changed.items() if name != "outputs"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of means of nothing: there is very little data
        reader.run(notebook, folder, chosen(notebook, end), **given)
    if notebook not in ONLY and not end:
        written = [*folder.glob("summary.md"), *folder.glob("data/*.nc")]
        assert written
        assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize("notebook", RUNS)
def test_every_parameter_has_another_value_somewhere(notebook):
    """But the scheduler, which `test_cluster` has, and the steps of the language model, whose cells take long."""
    changed = {name for run in RUNS[notebook] for name in run} | {"outputs"}
    assert changed == {*reader.parameters(notebook)} - {"scheduler", "your_language_steps"}
