import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from cases import TASK, TINY

from mmstudy.core import results, sources, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task, load
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold import estimate
from mmstudy.manifold.estimators import ESTIMATORS, Estimator
from mmstudy.study import predictions, statistics, sweep, trials
from mmstudy.study.protocol import Protocol

VIT = Task("digits", (4, 2, 1), 200, 0.2, family="ViT")
PROTOCOLS = {TASK: TINY, VIT: replace(TINY, steps=20, batch=8, step_size=0.1)}


def pool_of(task, **options) -> dict[str, Candidate]:
    shape = {"factors": (2,), "extra_layers": (1,), "matched": (), "wider": ("net2net", "random")} | options
    return pools.candidate_pool(tasks.base(task, load(task)), load(task).training.inputs, **shape)


POOLS = {TASK: pool_of(TASK), VIT: pool_of(VIT, locations=("blocks.0.up",), extra_layers=())}
LABELS = list(POOLS[TASK])
POOL = list(POOLS[TASK].items())  # (label, candidate) of the first task
SHAPES = ("hidden.0 ×2", "hidden.1 ×2", "hidden.0&hidden.1 ×2", "hidden.0 +1", "hidden.1 +1")


def swept(cache, labels=LABELS, protocol=TINY, **options) -> xr.Dataset:
    """Some candidates of the first task."""
    some = {TASK: {label: POOLS[TASK][label] for label in labels}}
    if "workers" in options:
        return sweep.sweep(some, {TASK: protocol}, cache, **options)
    with ThreadPoolExecutor(1) as executor:
        return sweep.sweep(some, {TASK: protocol}, cache, executor=executor)


def rows(experiment, labels) -> xr.Dataset:
    """Those of the first task's candidates, and of the networks that have their shape."""
    places = {label.split(" ", 1)[1] for label in labels}
    references = [f"{name} {place}" for name in trials.REFERENCES for place in places]
    known = experiment["label"].isin([*labels, *references]) & (experiment["task"] == str(TASK))
    return experiment.isel(candidate=known.values)


def assert_same(found, expected):
    """The same rows, in whatever order the references stand."""
    found, expected = (timeless(each).sortby("label") for each in (found, expected))
    xr.testing.assert_identical(found.drop_attrs(deep=False), expected.drop_attrs(deep=False))


def timeless(experiment: xr.Dataset) -> xr.Dataset:
    """Without what may differ from run to run."""
    varying = ("created", "wall_time_s", "threads", "commit")
    return experiment.drop_attrs(deep=False).assign_attrs(
        {name: value for name, value in experiment.attrs.items() if name not in varying}
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def experiment(cache):
    """Two tasks of different families, with pools of their own."""
    with ThreadPoolExecutor(1) as executor:
        return sweep.sweep(POOLS, PROTOCOLS, cache, executor=executor)


def test_there_is_a_row_for_each_candidate_of_any_task_and_for_what_it_is_compared_with(experiment, tmp_path):
    assert dict(experiment.sizes) == {
        "candidate": 10 + 2 * 5 + 2 + 2, "seed": 2, "checkpoint": 2, "budget": 2, "progress": 3, "bin": 10,
        "short_bin": 2, "ray": 16, "place": 5, "expense": 13,
    }  # fmt: skip
    assert results.load(results.save(experiment, tmp_path / "e.nc")).equals(experiment)
    assert experiment["accuracy"].notnull().all()
    pool = statistics.expansions(experiment)
    assert pool["label"].values.tolist() == [*POOLS[TASK], *POOLS[VIT]]
    assert pool["task"].values.tolist() == [str(TASK)] * 10 + [str(VIT)] * 2
    for name in ("dataset", "family", "train_size", "label_noise"):
        expected = [getattr(TASK, name)] * 20 + [getattr(VIT, name)] * 4
        assert experiment[name].values.tolist() == expected
    for label, operator, text in zip(*(pool[n].values for n in ("label", "operator", "description")), strict=True):
        candidate = (POOLS[TASK] | POOLS[VIT])[label]
        assert Candidate.from_dict(json.loads(text)) == candidate
        assert operator == candidate.operator


def test_references_are_known_by_their_role_and_measured_in_full_only(experiment, tmp_path):
    stored = results.load(results.save(experiment, tmp_path / "e.nc"))
    for table in (experiment, stored):
        references = table.isel(candidate=(table["role"] == "reference").values)
        assert (references["description"] == "").all()
        assert set(references["operator"].values) == {"scratch", "shrink_perturb"}
        ours = references.isel(candidate=(references["task"] == str(TASK)).values)
        assert sorted(ours["label"].values) == sorted(
            f"{name} {place}" for name in trials.REFERENCES for place in SHAPES
        )
        assert references[["accuracy", "nll", "ece", "control_nll"]].notnull().all().to_array().all()
        assert references[["reach", "loss", "ray_loss", "curve"]].isnull().all().to_array().all()
    alike = experiment["parameters"].groupby(experiment["label"].str.split("x", " ", 1).isel(x=1)).std()
    assert (alike == 0).all(), "they have the shapes of the candidates"


def test_what_belongs_to_a_task_stands_on_each_of_its_rows(experiment):
    for task, protocol in PROTOCOLS.items():
        data, one = load(task), experiment.isel(candidate=(experiment["task"] == str(task)).values)
        base = trials.train_base(task, data, protocol)
        for name in base.data_vars.keys() - {"base"}:
            for row in one[name].values:
                np.testing.assert_array_equal(row, base[name].values)
        assert (one["full_cost"] == protocol.full_cost).all()
        assert (one["probe_examples"] == 40).all()
        costs = protocol.costs(200, len(data.validation.targets))
        assert one["expense"].values.tolist() == list(costs)
        assert (one["cost"] == list(costs.values())).all()


def test_what_was_asked_for_is_kept(experiment):
    asked = json.loads(experiment.attrs["parameters"])
    assert [Task(**each | {"widths": tuple(each["widths"])}) for each in asked["tasks"]] == list(POOLS)
    lists = {"progress", "estimators"}
    protocols = [Protocol(**{n: tuple(v) if n in lists else v for n, v in each.items()}) for each in asked["protocols"]]
    assert protocols == list(PROTOCOLS.values())
    assert experiment.attrs["wall_time_s"] > 0


def test_the_experiment_is_predicted_and_judged(experiment):
    predicted = predictions.predictions(experiment)
    assert dict(predicted["value"].sizes) == {"candidate": 12, "predictor": predicted.sizes["predictor"]}
    gain = statistics.gains(statistics.expansions(experiment))["gain"]
    assert gain.sel(score="accuracy").notnull().all()
    names = predicted["predictor"].values.tolist()
    assert {"extent, children, median, multiple @25% + parameters", "TSE @100%", "loss", "fast_loss"} <= set(names)


def test_the_result_does_not_depend_on_the_workers(experiment, tmp_path):
    some = LABELS[:2] + LABELS[-2:]  # two architectures
    assert_same(swept(tmp_path, some, workers=2), rows(experiment, some))


def test_what_is_finished_is_not_done_again_and_what_is_lost_comes_back_the_same(experiment, cache, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.nc")}
    assert len(before) == 1 + 2 * 5 + 1 + 2 * 1  # a base and the architectures of each task, before and in training
    names = sorted(before)
    lost = [names[3], names[-1]]
    for path in lost:
        path.unlink()
    with ThreadPoolExecutor(1) as executor:
        resumed = sweep.sweep(POOLS, PROTOCOLS, cache, executor=executor)
    xr.testing.assert_equal(resumed, experiment)
    assert results.load(results.save(resumed, tmp_path / "resumed.nc")).equals(experiment)
    after = {path: path.stat().st_mtime_ns for path in cache.glob("*.nc")}
    assert after.keys() == before.keys()
    assert [path for path in names if after[path] != before[path]] == lost


def test_a_damaged_piece_is_named(experiment, cache, tmp_path):
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"\.nc cannot be read.*delete it"):
        swept(tmp_path, LABELS[:1])


def test_data_that_are_not_what_their_file_says_are_refused(tmp_path):
    data, other = load(TASK), load(replace(TASK, seed=1))
    path = sweep._kept(other, tasks.fingerprint(data), tmp_path)
    with pytest.raises(ValueError, match=r"data-\w+\.pt holds other data than its name says; delete it"):
        swept(tmp_path, LABELS[:1])
    path.unlink()
    again = sweep._data(sweep._kept(data, tasks.fingerprint(data), tmp_path), "cpu")
    assert (again.image, again.vocabulary) == (data.image, data.vocabulary)
    assert all(torch.equal(a, b) for x, y in zip(again, data, strict=True) for a, b in zip(x, y, strict=True))


def parameter_norm(objective, parents, level, budget, generator):
    """An estimator of a user's own: ‖θ‖."""
    status, _ = estimate.starting(objective, parents, level, generator)
    norm = parents.double().norm(dim=1)
    return estimate.report(objective, level, norm, 0 * norm, norm.unsqueeze(1), status, objective.examples)


OWN = Estimator(parameter_norm, "norm of the parameters", "distance", "nobody", "k", sign=-1)


def test_any_estimator_may_enter_an_experiment(experiment, tmp_path, monkeypatch):
    """Each with an error, a status and a cost, at the children's centre; and nothing else changes."""
    monkeypatch.setitem(ESTIMATORS, "norm", OWN)
    names, some = ("extent", "norm"), LABELS[:2] + LABELS[-2:]
    found = swept(tmp_path, some, replace(TINY, estimators=names, margin=1.0))
    new = {f"{name}_size{part}" for name in names for part in ("", "_se", "_status", "_cost")}
    assert set(found) - set(experiment) == new
    assert_same(found.drop_vars(new), rows(experiment, some))
    stored = results.load(results.save(found, tmp_path / "e.nc"))
    assert stored.equals(found)
    references = (found["role"] == "reference").values
    pool = stored.isel(candidate=~references)
    for name in names:
        assert (stored[f"{name}_size_status"].isel(candidate=references) == "").all()
        assert stored[f"{name}_size"].isel(candidate=references).isnull().all()
        assert set(np.unique(pool[f"{name}_size_status"])) <= {"ok", "outside", "censored", "at_limit"}
        ok = pool[f"{name}_size_status"] == "ok"
        assert ok.any() and (pool[f"{name}_size"].where(ok, 1) > 0).all()
        assert found[f"{name}_size"].attrs["units"] == ESTIMATORS[name].unit
    monkeypatch.setattr(predictions, "SIGNALS", {})
    predicted = predictions.predictions(stored)
    for name, sign in (("extent", 1), ("norm", -1)):
        column = predicted.sel(predictor=f"{name}_size @25%")
        one = pool.sel(progress=0.25)
        np.testing.assert_allclose(column["value"], sign * one[f"{name}_size"], rtol=1e-4)
        own = float(one[f"{name}_size_cost"].mean() + TINY.costs(200, 1)["children"]) / TINY.full_cost
        assert column["cost"].item() == pytest.approx(0.25 + own)
        assert column["family"] == "size"


def test_what_cannot_be_measured_is_refused_by_value(tmp_path):
    with pytest.raises(ValueError, match="0 tasks, no candidates"):
        sweep.sweep({}, {}, tmp_path)
    with pytest.raises(
        ValueError, match=r"2 tasks, no candidates for \['digits 200, 20% flipped, ViT 4-2-1, seed 0'\]"
    ):
        sweep.sweep({TASK: POOLS[TASK], VIT: {}}, PROTOCOLS, tmp_path)
    with pytest.raises(ValueError, match=r"no protocol for \['digits 200, 20% flipped, ViT"):
        sweep.sweep(POOLS, {TASK: TINY}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = f"""
from mmstudy.core.tasks import Task, base, load
from mmstudy.expansion import pools
from mmstudy.study import protocol, sweep
if __name__ == "__main__":
    tasks = [Task("digits", (4, 4), 200, seed=seed) for seed in range(2)]
    data, long = load(tasks[0]), protocol.Protocol(steps=10**5)
    pool = pools.candidate_pool(base(tasks[0], data), data.training.inputs)
    sweep.sweep(dict.fromkeys(tasks, pool), dict.fromkeys(tasks, long), {str(tmp_path)!r}, 2)
"""
    script = tmp_path / "endless.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        deadline = time.time() + 60
        workers = []
        while len(workers) < 2 and time.time() < deadline:
            time.sleep(0.2)
            family = psutil.Process(parent.pid).children(recursive=True)
            workers = [p for p in family if "spawn_main" in " ".join(p.cmdline()) and p.cpu_times().user > 1]
        assert len(workers) == 2
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_threads_measure_the_same_in_turn(experiment, tmp_path):
    threads, some = torch.get_num_threads(), LABELS[:4]
    with ThreadPoolExecutor(3) as executor:
        found = sweep.sweep(
            {TASK: {label: POOLS[TASK][label] for label in some}}, PROTOCOLS, tmp_path, executor=executor
        )
    assert_same(found, rows(experiment, some))
    assert torch.get_num_threads() == threads


def test_a_piece_has_another_name_when_anything_it_depends_on_changes():
    job = ("candidates", TASK, tuple(POOL[:2]), TINY)
    others = [
        ("base", *job[1:]),
        (job[0], replace(TASK, seed=1), *job[2:]),
        (job[0], replace(TASK, label_noise=0.1), *job[2:]),
        (*job[:2], tuple(POOL[:1]), TINY),
        (*job[:2], ((POOL[0][0], replace(POOL[0][1], seed=1)), *POOL[1:2]), TINY),
        (*job[:3], replace(TINY, margin=0.2)),
    ]
    names = [sweep._fingerprint("candidates", j) for j in (job, *others)]
    names += [sweep._fingerprint("candidates", job, ["cuda"]), sweep._fingerprint("starts", job)]
    again = "candidates", replace(TASK), tuple(POOL[:2]), replace(TINY)
    assert sweep._fingerprint("candidates", again) == names[0]
    assert len(set(names)) == len(names)


def test_other_data_under_the_same_name_have_pieces_of_their_own(monkeypatch, tmp_path):
    def experiment(targets):
        dataset = tasks.Dataset(inputs, targets, test=100, validation=40)
        monkeypatch.setitem(tasks.DATASETS, "own", lambda: dataset)
        task = Task("own", (4,), 100)
        example = load(task).training.inputs
        pool = pools.candidate_pool(tasks.base(task, load(task)), example, (2,), (), ())
        with ThreadPoolExecutor(1) as executor:
            return sweep.sweep({task: dict([*pool.items()][:1])}, {task: TINY}, tmp_path, executor=executor)

    inputs = torch.randn(240, 5, generator=generator("own"))
    one, other, again = (experiment((sign * inputs[:, 0] > 0).long() * 2) for sign in (1, -1, 1))
    assert len([*tmp_path.glob("*.nc")]) == 6
    xr.testing.assert_identical(timeless(one), timeless(again))
    assert not one["nll"].equals(other["nll"])


@pytest.fixture
def another_package(tmp_path, monkeypatch):
    """A copy of the package, whose code the sweep's pieces are named by."""
    copied = shutil.copytree(sources.PACKAGE, tmp_path / "mmstudy")
    monkeypatch.setattr(sources, "PACKAGE", copied)
    monkeypatch.setattr(sources, "FACE", copied / "__init__.py")
    sweep._code.cache_clear()
    yield copied
    sweep._code.cache_clear()


def test_a_piece_outlives_comments_and_docstrings_but_not_its_code(another_package):
    def changed(text, name="manifold/profiles.py", file="candidates"):
        (another_package / name).write_text((sources_of / name).read_text() + text)
        sweep._code.cache_clear()
        return sweep._fingerprint(file, ("candidates", TASK, tuple(POOL[:2]), TINY))

    sources_of = Path(sweep.__file__).parents[1]
    before = changed("")
    assert changed("# another comment\n") == before
    assert changed('__all__ = ["profiles"]\n') == before
    assert changed('"""A sentence."""\n', "manifold/profiles.py") != before  # an expression, and no docstring
    assert changed("x = 1\n") != before
    changed("")
    assert changed("x = 1\n", "figures/style.py") == before  # nothing that is measured imports it
    assert changed("x = 1\n", "study/derived.py") == before  # what is read from an experiment later
    start = changed("", "study/rivals.py", "starts")
    assert changed("x = 1\n", "study/rivals.py") == before  # a new predictor trains nothing again
    assert changed("x = 1\n", "study/rivals.py", "starts") != start


@pytest.mark.parametrize("module", ["trials", "starting"])
def test_all_that_measures_names_the_pieces(module):
    """What a process has loaded once it can measure is what the pieces are named by."""
    code = f"import mmstudy.study.{module}, sys; print(*(m for m in sys.modules if m.split('.')[0] == 'mmstudy'))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = {path.relative_to(sources.PACKAGE.parent) for path in sources.files(f"import mmstudy.study.{module}")}
    for each in loaded:
        path = Path(each.replace(".", "/"))
        assert names & {path / "__init__.py", path.with_suffix(".py")}, each
    assert len(loaded) > 50


def test_a_candidate_that_fails_is_told_and_what_was_finished_is_kept(tmp_path):
    pool = dict(POOL[:1]) | {"astray": Candidate("random", ("hidden.9",), (2,))}
    with pytest.raises(ValueError, match=r"unknown location 'hidden\.9'"), ThreadPoolExecutor(1) as executor:
        sweep.sweep({TASK: pool}, PROTOCOLS, tmp_path, executor=executor)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert any(path.name.startswith("bases-") for path in finished)
    swept(tmp_path, LABELS[:1])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


def test_the_pool_comes_in_groups_of_one_architecture():
    shuffled = [POOL[i] for i in (5, 0, 8, 3, 1, 9, 7)]
    groups = pools.architectures(dict(shuffled))
    assert sorted(label for label, _ in shuffled) == sorted(label for group in groups for label, _ in group)
    assert len(groups) == 5
    data = load(TASK)
    network = tasks.base(TASK, data)
    for group in groups:
        shapes = {tuple(p.shape for p in c.expand(network, data.training).parameters()) for _, c in group}
        assert len(shapes) == 1


def test_chains_of_expansions_are_grouped_by_all_their_steps():
    deeper, wider = POOLS[TASK]["deeper_identity hidden.1 +1"], POOLS[TASK]["random hidden.0 ×2"]
    chains = {
        "alone": wider,
        "then deeper": replace(wider, then=deeper),
        "then deeper, drawn": replace(wider, then=POOLS[TASK]["deeper_random hidden.1 +1"]),
        "then deeper elsewhere": replace(wider, then=POOLS[TASK]["deeper_identity hidden.0 +1"]),
    }
    groups = [[label for label, _ in group] for group in pools.architectures(chains)]
    assert groups == [["alone"], ["then deeper", "then deeper, drawn"], ["then deeper elsewhere"]]


def test_the_candidates_stand_in_the_order_of_the_pool(experiment, tmp_path):
    names = [LABELS[-1], LABELS[1], LABELS[0]]
    found = swept(tmp_path, names)
    assert statistics.expansions(found)["label"].values.tolist() == names
    sizes = experiment["parameters"].isel(candidate=[LABELS.index(name) for name in names])
    assert statistics.expansions(found)["parameters"].values.tolist() == sizes.values.tolist()
