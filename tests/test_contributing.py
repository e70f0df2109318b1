"""What CONTRIBUTING shows is done here as it stands, from outside the package."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr

from mmstudy.batched.ensemble import stack
from mmstudy.core import results, tasks
from mmstudy.expansion.operators import OPERATORS
from mmstudy.expansion.pools import candidate_pool
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study import predictors, signals, sweep
from mmstudy.study.protocol import Protocol
from mmstudy.tracing.trace import RULES

ROOT = Path(__file__).parent.parent
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.M))
OUTER = ("MAKEFLAGS", "MAKELEVEL", "PROFILE", "CONDA_DEFAULT_ENV")  # of the make that may have started these tests


def blocks(section, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture
def known(monkeypatch):
    """The names that the blocks share; what they enter is taken out again."""
    registries = (OPERATORS, ESTIMATORS, predictors.PREDICTORS, signals.SIGNALS, tasks.DATASETS, RULES)
    before = [(registry, dict(registry)) for registry in registries]
    names = {"__name__": "outside"}
    exec(*blocks("Rooms"), names)
    yield names
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_an_operator(known):
    exec(*blocks("An operator"), known)
    inputs, _ = known["batch"]
    assert known["wider"].hidden[0].out_features == 9
    assert torch.allclose(known["wider"](inputs), known["network"](inputs), atol=1e-5)
    pool = candidate_pool(known["network"], inputs, wider=["twins"], deeper=[])
    assert {candidate.operator for candidate in pool.values()} == {"twins"}


def test_a_rule_for_an_operation(known):
    exec(*blocks("A rule for an operation"), known)
    assert "not known (aten.fft_fft.default" in known["before"]["up"].reason
    assert "lemon" in known["after"]["up"].exact


def test_an_estimator(known):
    exec(*blocks("An operator"), known)
    exec(*blocks("An estimator"), known)
    found = known["found"]
    assert list(found["status"].values) == ["ok", "ok"]
    assert ((found["size"] >= 0) & (found["size"] <= 1)).all()
    assert Protocol(estimators=("inside",)).estimators == ("inside",)
    assert set(known["mm"].sizes(known["network"], known["batch"], methods=["inside", "rays"])["unit"].values) >= {"1"}


def test_a_predictor(known):
    exec(*blocks("A predictor"), known)
    values = predictors.start_values(stack([known["network"]]), known["batch"])
    expected = known["network"](known["batch"][0]).softmax(-1).amax(-1).mean()
    torch.testing.assert_close(values["confidence"][0], expected)
    assert predictors.variables({})["confidence"] == ("1", "mean probability of the likeliest class")


def test_a_signal(known):
    exec(*blocks("A signal"), known)
    found = {"gyration": (("candidate", "progress"), [[1.0, 2.0]]), "reach": (("candidate", "progress"), [[4.0, 4.0]])}
    assert signals.SIGNALS["parting"].compute(xr.Dataset(found)).values.tolist() == [[0.25, 0.5]]
    known_parts = Protocol().costs(100, 10)
    assert set(signals.SIGNALS["parting"].expenses) <= known_parts.keys()
    assert {"gyration", "reach"} <= sweep.variables().keys()


def test_an_experiment(known, tmp_path, monkeypatch):
    """With all that was entered, from a file of one's own."""
    sections = ("Rooms", "An operator", "An estimator", "A predictor", "A signal", "A task", "An experiment")
    (tmp_path / "of_ones_own.py").write_text("\n\n".join(code for section in sections for code in blocks(section)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    mine = importlib.import_module("of_ones_own")
    names = mine.predicted["predictor"].values.tolist()
    assert {"confidence", "parting @50%", "inside_size @100%", "confidence + parameters"} <= set(names)
    pool = mine.experiment.isel(candidate=(mine.experiment["role"] == "expansion").values)
    assert pool["label"].values.tolist() == list(mine.pool)
    assert (pool["inside_size_status"] != "nan").all()
    expected = (pool["gyration"] / pool["reach"]).sel(progress=0.5)
    np.testing.assert_allclose(mine.predicted["value"].sel(predictor="parting @50%"), expected, rtol=1e-4)
    assert len(list((tmp_path / "cache").glob("*.nc"))) == 1 + 2 * 3  # the base; each place, before and in training


def test_a_task(known):
    exec(*blocks("A task"), known)
    assert [len(part.targets) for part in known["data"]] == [200, 100, 500]
    assert set(known["data"].training.targets.tolist()) == {0, 1, 2}


def test_a_notebook(tmp_path):
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    for folder in ("notebooks", "mmstudy"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    codes = [nbformat.v4.new_code_cell(code) for code in blocks("A notebook")]
    codes[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=codes, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "notebooks/6_mine.ipynb")
    command = [*shlex.split(*blocks("A notebook", "sh")), f"PYTHON={sys.executable}", "ENVIRONMENT="]
    environment = {name: value for name, value in os.environ.items() if name not in OUTER}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results.load(tmp_path / "outputs/small/data/mine.nc")["square"].values.tolist() == [0, 1, 4]
    assert subprocess.run([*command, "-q"], cwd=tmp_path, env=environment).returncode == 0
