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
from cases import counted

from mmstudy.batched import scoring
from mmstudy.batched.objective import of_networks
from mmstudy.core import results, sources, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task, load
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold import estimate
from mmstudy.manifold.estimators import ESTIMATORS, Estimator
from mmstudy.study import evaluation, measurements, sweep
from mmstudy.study.protocol import Protocol

TASKS = [Task("digits", (4, 4), 200), Task("digits", (5, 3), 200, 0.2)]
PROTOCOL = Protocol(steps=30, batch=32, seeds=2, validations=3, probes=(4, 8), early_steps=10, random_rays=2)


def pool_of(task) -> dict[str, Candidate]:
    data = load(task)
    return pools.candidate_pool(measurements.new_base(task, data), data.training.inputs, (2,), (1,), (4,))


POOLS = {task: pool_of(task) for task in TASKS}
LABELS = list(POOLS[TASKS[0]])
POOL = list(POOLS[TASKS[0]].items())  # (label, candidate) of the first task


def swept(cache, tasks=TASKS, labels=LABELS, protocol=PROTOCOL, **options) -> xr.Dataset:
    some = {task: {label: POOLS[task][label] for label in labels} for task in tasks}
    if "workers" in options:
        return sweep.sweep(some, protocol, cache, **options)
    with ThreadPoolExecutor(1) as executor:
        return sweep.sweep(some, protocol, cache, executor=executor)


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
    return swept(cache)


def test_the_experiment_is_a_result_of_the_study(experiment, tmp_path):
    assert dict(experiment.sizes) == {
        "task": 2, "candidate": len(LABELS), "seed": 2, "checkpoint": 2, "rate": 2, "probe": 2, "early": 2
    }  # fmt: skip
    assert results.load(results.save(experiment, tmp_path / "e.nc")).equals(experiment)
    assert experiment["accuracy"].notnull().all()
    assert experiment["probe"].values.tolist() == [4, 8]
    predicted, gained = evaluation.predictions(experiment), evaluation.gains(experiment)
    assert np.isfinite(evaluation.scores(predicted, gained)["spearman"]).all()
    assert evaluation.find(predicted, "extent_children", 1.0, 0.3, True) == "extent_children ×1 @8 + parameters"
    with pytest.raises(ValueError, match=r"no predictor 'extend'.*extent_children"):
        evaluation.find(predicted, "extend", 1.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_result_does_not_depend_on_the_workers(experiment, tmp_path, workers):
    some = LABELS[:3] + LABELS[-2:]  # two architectures
    found, expected = swept(tmp_path, labels=some, workers=workers), experiment.sel(candidate=some)
    xr.testing.assert_identical(timeless(found), timeless(expected))


def test_what_is_finished_is_not_done_again_and_what_is_lost_comes_back_the_same(experiment, cache, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(before) == 2 * (1 + 6)  # a base and six architectures for each task
    lost = sorted(before)[3]
    lost.unlink()
    resumed = swept(cache)
    xr.testing.assert_equal(resumed, experiment)
    assert results.load(results.save(resumed, tmp_path / "resumed.nc")).equals(experiment)
    after = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert after.keys() == before.keys()
    assert [path for path in before if after[path] != before[path]] == [lost]


def test_a_damaged_piece_is_named(experiment, cache, tmp_path):
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"\.nc cannot be read.*delete it"):
        swept(tmp_path)


def test_candidates_measured_together_are_those_measured_alone(experiment, tmp_path):
    some = LABELS[1:2]
    alone = swept(tmp_path, TASKS[:1], some)
    together = experiment.sel(task=[str(TASKS[0])], candidate=some)
    for name in ("accuracy", "nll", "early_loss", "extent_children", "reach", "loss"):
        np.testing.assert_allclose(alone[name], together[name], rtol=0.02, atol=1e-6)  # float32, 30 steps apart


def test_costs_are_those_counted_by_hand(experiment):
    one = experiment.isel(task=0).sel(probe=8)
    examples = int(one["probe_examples"])
    training = 3 * 32 * 8  # three passes × batch × steps, all four children together
    assert int(one["children_cost"]) == training
    for cost, rays in (("rays_cost", 4 + 4 + 4), ("random_cost", 2)):
        evaluations = (one[cost] - training) / examples - 1  # of all rays; their number is each ray's own affair
        assert (evaluations == evaluations.round()).all()
        assert (evaluations.where(one["outside"] == 0, rays) <= 12 * rays).all()
        assert (evaluations.where(one["outside"] == 0, rays) >= rays).all()
    assert int(one["centre_cost"]) == training + examples
    assert int(one["predictions_cost"]) == training + 4 * examples
    assert experiment.attrs["full_cost"] == 3 * 32 * 30


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_as_few_examples_as_the_wanted_error_allows(task):
    """Networks at the level, found along other rays than those that chose: their distance from the base's loss, on
    subsets of that size, scatters by the error that was asked for."""
    data, protocol = load(task), replace(PROTOCOL, margin=0.3, probe_error=0.1, steps=300)
    base = measurements.train_base(task, data, protocol)
    count = int(base["probe_examples"])
    assert 2 < count < len(data.training.targets)
    network = measurements.new_base(task, data)
    torch.nn.utils.vector_to_parameters(torch.tensor(base["base"].values), network.parameters())
    stacked = measurements.en.stack([network])
    start, loss = measurements.en.vectors(stacked), of_networks(stacked, data.training)
    ways = torch.randn(1, 20, start.shape[1], generator=generator("other rays")) * start.norm() / start.shape[1] ** 0.5
    lines = measurements.crossings(loss, start, ways, float(loss(start)) + protocol.margin)
    assert (lines.status == "converged").all()
    there = start + lines.multiple[0].float().unsqueeze(1) * ways[0]
    own = scoring.example_losses(stacked, data.training)
    apart = scoring.example_losses(measurements.en.at(stacked, there), data.training) - own
    draws = [torch.randint(len(data.training.targets), (count,), generator=generator("draw", i)) for i in range(400)]
    scatter = torch.stack([apart[:, some].mean(1) for some in draws]).var(0).mean().sqrt().item()
    assert scatter == pytest.approx(protocol.probe_error, rel=0.35)
    half = measurements.train_base(task, data, replace(protocol, probe_error=0.2))
    assert int(half["probe_examples"]) == pytest.approx(count / 4, abs=1)
    tight = measurements.train_base(task, data, replace(protocol, probe_error=1e-4))
    assert int(tight["probe_examples"]) == len(data.training.targets)


def test_the_probe_sees_the_training_examples_only(experiment, tmp_path):
    data = load(TASKS[0])
    base = measurements.train_base(TASKS[0], data, PROTOCOL)
    blind = replace(data, test=data.test._replace(inputs=data.test.inputs * 0))
    seen, unseen = (measurements.measure(TASKS[0], d, base, POOL[:3], PROTOCOL) for d in (data, blind))
    changed = [name for name in seen if not seen[name].equals(unseen[name])]
    assert set(changed) == set(measurements.SCORES)


def test_rays_along_the_children_hold_what_they_say():
    """The extent is the mean over ± rays from the children's centre; recomputed here by a fine scan."""
    data = load(TASKS[0])
    base = measurements.train_base(TASKS[0], data, PROTOCOL)
    level = float(base["base_loss"]) + 1.0
    network = POOL[0][1].expand(measurements.new_base(TASKS[0], data), data.training.inputs[:1])
    expanded = measurements.en.stack([network])
    split = measurements.probe_split(TASKS[0], data, 128)
    probed = measurements.probe(TASKS[0], data, split, expanded, level, PROTOCOL).isel(candidate=0, rate=0).sel(probe=8)
    order = measurements._order(TASKS[0], data, PROTOCOL, [f"child {i}" for i in range(4)], 2)
    loss = of_networks(expanded, split, training=data.training)
    start = measurements.en.vectors(expanded)
    ((_, young, _),) = measurements.offspring(loss, start, order, torch.tensor([0.05]))
    centre = young[0].mean(0)
    lengths = []
    for away in [*(young[0] - centre), *(centre - young[0])]:
        t = torch.linspace(0, 16, 3201).unsqueeze(1)
        beyond = loss((centre + t * away).unsqueeze(0))[0] > level
        first = int(beyond.int().argmax()) if beyond.any() else len(t) - 1
        lengths.append(float(t[first] * away.norm()))
    assert float(probed["extent_children"]) == pytest.approx(np.mean(lengths), rel=0.05)


def parameter_norm(objective, parents, level, budget, generator):
    """An estimator of a user's own: ‖θ‖."""
    status, _ = estimate.starting(objective, parents, level)
    norm = parents.double().norm(dim=1)
    return estimate.report(objective, level, norm, 0 * norm, norm.unsqueeze(1), status, objective.examples)


OWN = Estimator(parameter_norm, "norm of the parameters", "distance", "nobody", "k", more=-1)


def test_any_estimator_may_enter_an_experiment(experiment, tmp_path, monkeypatch):
    """Each with an error, a status and a cost, at the children's centre; and nothing else changes."""
    monkeypatch.setitem(ESTIMATORS, "norm", OWN)
    names, some = ("rays", "extent", "norm"), LABELS[:2] + LABELS[-1:]
    protocol = replace(PROTOCOL, estimators=names, margin=1.0)
    found = swept(tmp_path / "with", labels=some, protocol=protocol)
    plain = swept(tmp_path / "without", labels=some, protocol=replace(protocol, estimators=()))
    new = {f"{name}_size{part}" for name in names for part in ("", "_se", "_status", "_cost")}
    assert set(found) - set(plain) == new
    xr.testing.assert_identical(timeless(found.drop_vars(new)).drop_attrs(), timeless(plain).drop_attrs())
    assert results.load(results.save(found, tmp_path / "e.nc")).equals(found)
    inside = found["outside"] == 0
    assert inside.any()
    for name in names:
        assert (found[f"{name}_size"] > 0).where(inside, True).all()
        assert (found[f"{name}_size_status"] == "outside").where(~inside, True).all()
        assert (found[f"{name}_size_cost"] > found["children_cost"]).all()
        assert found[f"{name}_size"].attrs["units"] == ESTIMATORS[name].unit
    predicted = evaluation.predictions(found)
    for name, sign in (("rays", 1), ("norm", -1)):
        column = predicted.sel(predictor=f"{name}_size ×1 @8")
        one = found.sel(rate=1.0, probe=8)
        assert np.array_equal(column["value"], sign * one[f"{name}_size"], equal_nan=True)
        assert column["cost"] * found.attrs["full_cost"] > one[f"{name}_size_cost"].mean()  # and the choice of examples
        assert column["family"] == "size"
    with pytest.raises(ValueError, match=r"unknown estimators \['raze'\]; known: children"):
        Protocol(estimators=("raze",))


def test_a_diverged_run_is_recorded_not_dropped():
    data = load(TASKS[0])
    base = measurements.train_base(TASKS[0], data, PROTOCOL)
    wild = replace(PROTOCOL, step_size=1e38, estimators=("rays",))
    measured = measurements.measure(TASKS[0], data, base, POOL[:3], wild)
    assert measured.sizes["candidate"] == 3
    for name in (*measurements.SCORES, "extent_children", "reach", "disagreement", "explorer_loss", "rays_size"):
        assert measured[name].isnull().all(), name
    assert (measured["rays_size_status"] == "nan").all()
    assert measured["loss"].notnull().all()
    with pytest.raises(ValueError, match=r"digits 200, 4-4, seed 0 diverged: step_size=1e\+38"):
        measurements.train_base(TASKS[0], data, wild)


def test_bad_budgets_and_empty_pools_are_refused_by_value():
    with pytest.raises(ValueError, match="≥ 2 seeds and ≥ 3 children; got 1 and 4"):
        Protocol(seeds=1)
    with pytest.raises(ValueError, match=r"probes \(5,\) must be positive multiples of the 4"):
        Protocol(probes=(5,))
    with pytest.raises(ValueError, match="early_steps = 7 is no multiple"):
        Protocol(early_steps=7)
    with pytest.raises(ValueError, match="empty pool"):
        pools.candidate_pool(
            measurements.new_base(TASKS[0], load(TASKS[0])), load(TASKS[0]).training.inputs, (), (), ()
        )
    with pytest.raises(ValueError, match="0 tasks, no candidates"):
        sweep.sweep({}, PROTOCOL, "nowhere")
    with pytest.raises(ValueError, match=r"20% flipped.* differs from that of .*: net2net hidden\.0 ×2"):
        sweep.sweep({TASKS[0]: dict(POOL), TASKS[1]: dict(POOL[1:])}, PROTOCOL, "nowhere")


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = f"""
from mmstudy.core.tasks import Task, load
from mmstudy.expansion import pools
from mmstudy.study import measurements, sweep
if __name__ == "__main__":
    tasks = [Task("digits", (4, 4), 200, seed=seed) for seed in range(2)]
    pool = pools.candidate_pool(measurements.new_base(tasks[0], load(tasks[0])), load(tasks[0]).training.inputs)
    sweep.sweep(dict.fromkeys(tasks, pool), measurements.Protocol(steps=10**5), {str(tmp_path)!r}, 2)
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


def test_costs_are_those_of_what_is_evaluated(monkeypatch):
    """Counted at the loss and at the trainer, against what the experiment says that it costs."""
    points, trained = [], []

    def counting(*args, **kwargs):
        return counted(of_networks(*args, **kwargs), points, trained)

    monkeypatch.setattr(measurements, "of_networks", counting)
    data, protocol = load(TASKS[0]), replace(PROTOCOL, probes=(8,))
    network = measurements.new_base(TASKS[0], data)
    expanded = measurements.en.stack([c.expand(network, data.training.inputs[:1]) for _, c in POOL[:3]])
    split = measurements.probe_split(TASKS[0], data, 128)
    probed = measurements.probe(TASKS[0], data, split, expanded, 3.0, protocol).squeeze("probe")
    assert not probed["outside"].any()
    training, centre = int(probed["children_cost"]), int(probed["centre_cost"] - probed["children_cost"])
    assert 3 * len(protocol.rates) * training == 3 * sum(trained)
    rays = sum(int((probed[f"{name}_cost"] - training - centre).sum()) for name in ("rays", "random"))
    assert rays > 0
    assert sum(points) == rays + 3 * len(protocol.rates) * centre  # the centre counts in each, and is evaluated once
    points.clear()
    _, cost = measurements.examples_needed(TASKS[0], data, measurements.en.stack([network]), protocol)
    outside = (1 + protocol.random_rays) * len(data.training.targets)  # losses of single examples
    assert cost == sum(points) + outside


def test_scores_and_early_losses_are_those_of_a_plain_loop(experiment):
    task, (label, candidate), seed = TASKS[0], POOL[4], 1
    data = load(task)
    base = measurements.train_base(task, data, PROTOCOL)
    network = measurements.new_base(task, data)
    torch.nn.utils.vector_to_parameters(torch.tensor(base["base"].values), network.parameters())
    measured = experiment.sel(task=str(task), candidate=label)
    split = measurements.probe_split(task, data, int(base["probe_examples"]))
    loss = torch.nn.functional.cross_entropy(network(split[0]), split[1]).item()
    assert float(measured["base_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(measured["level"]) == pytest.approx(loss + PROTOCOL.margin, rel=1e-5)
    example = data.training.inputs[:1]

    def run(name, steps, step_size):
        """The network and its minibatch loss after each step."""
        single = candidate.expand(network, example)
        (order,) = measurements._order(task, data, PROTOCOL, [name], steps)
        optimizer = torch.optim.SGD(single.parameters(), lr=1.0, momentum=0.9)
        for step, some in enumerate(order):
            optimizer.param_groups[0]["lr"] = step_size(step)
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(single(data.training.inputs[some]), data.training.targets[some])
            value.backward()
            optimizer.step()
            yield single, value.item()

    def score(single, part):
        with torch.no_grad():
            outputs = single(part.inputs)
        accuracy = (outputs.argmax(1) == part.targets).double().mean().item()
        return accuracy, torch.nn.functional.cross_entropy(outputs, part.targets).item()

    best, kept = -1.0, None
    for step, (single, _) in enumerate(run(seed, 30, lambda i: 0.05 * (1 + np.cos(np.pi * i / 30)) / 2), start=1):
        if step % 10 == 0 and score(single, data.validation)[0] > best:
            best, kept = score(single, data.validation)[0], score(single, data.test)
    for checkpoint, (accuracy, nll) in {"last": score(single, data.test), "best validation": kept}.items():
        one = measured.sel(seed=seed, checkpoint=checkpoint)
        assert float(one["accuracy"]) == pytest.approx(accuracy, abs=0.002)  # two of a thousand on the edge
        assert float(one["nll"]) == pytest.approx(nll, rel=1e-4)

    for rate in PROTOCOL.rates:
        losses = [value for _, value in run("probe", 10, lambda i, rate=rate: 0.05 * rate)]
        bins = np.mean(np.reshape(losses, (-1, PROTOCOL.early_bin)), axis=1)
        assert measured["early_loss"].sel(rate=rate).values == pytest.approx(bins, rel=1e-4)


def test_the_control_is_the_base_trained_on(experiment):
    """With the same minibatches as the candidates: an expansion that adds nothing gains nothing."""
    data = load(TASKS[0])
    base = measurements.train_base(TASKS[0], data, PROTOCOL)
    network = measurements.new_base(TASKS[0], data)
    torch.nn.utils.vector_to_parameters(torch.tensor(base["base"].values), network.parameters())
    again = measurements.train_in_full(TASKS[0], data, measurements.en.stack([network] * PROTOCOL.seeds), PROTOCOL)
    for name in measurements.SCORES:
        np.testing.assert_allclose(again[name], experiment[f"control_{name}"].isel(task=0), rtol=1e-6)
    assert len(np.unique(again["nll"][:, 0])) == PROTOCOL.seeds


def test_threads_measure_the_same_in_turn(experiment, tmp_path):
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(3) as executor:
        some = {TASKS[0]: {label: POOLS[TASKS[0]][label] for label in LABELS[:4]}}
        found = sweep.sweep(some, PROTOCOL, tmp_path, executor=executor)
    expected = experiment.isel(task=[0]).sel(candidate=LABELS[:4])
    for name in ("accuracy", "nll", "early_loss", "extent_children"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert torch.get_num_threads() == threads


def test_a_cluster_measures_the_same(experiment, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    some = {TASKS[0]: {label: POOLS[TASKS[0]][label] for label in LABELS[:2]}}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        found = sweep.sweep(some, PROTOCOL, tmp_path, executor=executor)
    expected = experiment.isel(task=[0]).sel(candidate=LABELS[:2])
    for name in ("accuracy", "nll", "early_loss", "extent_children"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)


def test_a_piece_has_another_name_when_anything_it_depends_on_changes():
    job = ("measure", TASKS[0], tuple(POOL[:3]), PROTOCOL)
    others = [
        ("base", *job[1:]),
        (job[0], replace(TASKS[0], seed=1), *job[2:]),
        (job[0], replace(TASKS[0], label_noise=0.1), *job[2:]),
        (*job[:2], tuple(POOL[:2]), PROTOCOL),
        (*job[:2], ((POOL[0][0], replace(POOL[0][1], seed=1)), *POOL[1:3]), PROTOCOL),
        (*job[:3], replace(PROTOCOL, margin=0.2)),
    ]
    names = [sweep._fingerprint(j) for j in (job, *others)] + [sweep._fingerprint(job, ["cuda"])]
    assert sweep._fingerprint(("measure", replace(TASKS[0]), tuple(POOL[:3]), replace(PROTOCOL))) == names[0]
    assert len(set(names)) == len(names)


def test_other_data_under_the_same_name_have_pieces_of_their_own(monkeypatch, tmp_path):
    def experiment(targets):
        dataset = tasks.Dataset(inputs, targets, test=100, validation=40)
        monkeypatch.setitem(tasks.DATASETS, "own", lambda: dataset)
        task = Task("own", (4,), 100)
        example = load(task).training.inputs
        pool = pools.candidate_pool(measurements.new_base(task, load(task)), example, (2,), (), ())
        with ThreadPoolExecutor(1) as executor:
            return sweep.sweep({task: dict([*pool.items()][:1])}, PROTOCOL, tmp_path, executor=executor)

    inputs = torch.randn(240, 5, generator=generator("own"))
    one, other, again = (experiment((sign * inputs[:, 0] > 0).long() * 2) for sign in (1, -1, 1))
    assert len([*tmp_path.iterdir()]) == 4
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
    job = ("measure", TASKS[0], tuple(POOL[:3]), PROTOCOL)

    def changed(text, name="manifold/rays.py"):
        (another_package / name).write_text((sources_of / name).read_text() + text)
        sweep._code.cache_clear()
        return sweep._fingerprint(job)

    sources_of = Path(measurements.__file__).parents[1]
    before = changed("")
    assert changed("# another comment\n") == before
    assert changed("", "manifold/rays.py") == before
    assert changed('"""A sentence."""\n', "manifold/rays.py") != before  # an expression, and no docstring
    assert changed("x = 1\n") != before
    changed("")
    assert changed("x = 1\n", "figures/style.py") == before  # nothing that is measured imports it


def test_all_that_measures_names_the_pieces(another_package):
    """What a process has loaded once it can measure is what the pieces are named by."""
    code = "import mmstudy.study.measurements, sys; print(*(m for m in sys.modules if m.split('.')[0] == 'mmstudy'))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for module in loaded:
        path = another_package.parent / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        before = sources.fingerprint("import mmstudy.study.measurements")
        path.write_text(path.read_text() + "\nchanged = True\n")
        assert sources.fingerprint("import mmstudy.study.measurements") != before, module


def test_a_candidate_that_fails_is_told_and_what_was_finished_is_kept(tmp_path):
    pool = dict(POOL[:1]) | {"astray": Candidate("random", ("hidden.9",), (2,))}
    with pytest.raises(ValueError, match=r"unknown location 'hidden\.9'"), ThreadPoolExecutor(1) as executor:
        sweep.sweep({TASKS[0]: pool}, PROTOCOL, tmp_path, executor=executor)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert any(path.name.startswith("bases-") for path in finished)
    swept(tmp_path, TASKS[:1], LABELS[:1])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


def test_the_pool_comes_in_the_order_given_and_in_groups_of_one_architecture():
    shuffled = [POOL[i] for i in (5, 0, 11, 3, 1, 12, 9)]
    groups = sweep._architectures(dict(shuffled))
    assert sorted(label for label, _ in shuffled) == sorted(label for group in groups for label, _ in group)
    network, data = measurements.new_base(TASKS[0], load(TASKS[0])), load(TASKS[0])
    for group in groups:
        shapes = {
            tuple(p.shape for p in c.expand(network, data.training.inputs[:1]).parameters()) for _, c in group
        }  # fmt: skip
        assert len(shapes) == 1


def test_the_candidates_stand_in_the_order_of_the_pool(experiment, tmp_path):
    names = [LABELS[-1], LABELS[1], LABELS[0]]
    found = swept(tmp_path, TASKS[:1], names)
    assert found["candidate"].values.tolist() == names
    assert found["operator"].values.tolist() == [dict(POOL)[name].operator for name in names]
    for label, text in zip(names, found["description"].values[0], strict=True):
        assert Candidate.from_dict(json.loads(text)) == dict(POOL)[label]
    expected = experiment["parameters"].isel(task=[0]).sel(candidate=names)
    assert (found["parameters"].values == expected.values).all()
