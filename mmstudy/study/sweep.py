"""The experiment: the sweep over candidate pools, in pieces that are finished once, spread over processes."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from mmstudy.core import cluster, progress, results, sources, tasks
from mmstudy.core.datasets import Data, Split
from mmstudy.core.tasks import Task, load
from mmstudy.core.threads import ALONE
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS
from mmstudy.expansion.pools import architectures
from mmstudy.study import entries, experiments, predictors
from mmstudy.study.protocol import Protocol
from mmstudy.study.starting import start
from mmstudy.study.statistics import EXPANSION, REFERENCE
from mmstudy.study.trials import BUDGETS, CHECKPOINTS, Piece, measure, train_base

Paths = tuple[Path, ...]
FILES = {"base": ("bases",), "candidates": ("starts", "candidates")}  # which the kinds of jobs write


def sweep(
    pools: Mapping[Task, Mapping[str, Candidate]],
    protocols: Mapping[Task, Protocol],
    cache: str | Path,
    workers: int = 0,
    device: str = "cpu",
    scheduler: str = "",
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure every candidate of every task's pool; the result does not depend on the number of workers.

    Every finished piece (a task's base; the candidates of one architecture, as they start and as they train) is kept
    under `cache`, named by a hash of all that it depends on, so that a sweep that was killed goes on where it stopped,
    and a new predictor trains nothing again. The worker that has finished it writes it there, and reads the task's data
    and its base from there.

    Args:
        pools: for each task its candidates by label.
        protocols: for each task how it is measured; all look equally often, at as many rays.
        workers: processes of one thread each; 0 means one per core.
        device: where the workers compute; one with a GPU of its own knows it as "cuda".
        scheduler: the address of a Dask scheduler, whose workers take the place of processes (`core.cluster`).
        executor: anything else with the interface of `concurrent.futures`. Threads of one process take turns.

    Returns:
        One row for each candidate of any task, over (candidate, …), and for each network that it is compared with
        (`role`): what belongs to a task stands on each of its rows.

    Raises:
        ValueError: there is nothing to measure, a task without a protocol, or what was entered in a registry from
            outside has the name of another variable, or a function that workers cannot import; nobody answers at the
            scheduler's address, or its workers differ from this process.
        ConnectionError: the scheduler is gone.
    """
    if not pools or not all(pools.values()):
        without = [str(task) for task, pool in pools.items() if not pool]
        raise ValueError(f"nothing to measure: {len(pools)} tasks, no candidates for {without}")
    if missing := [str(task) for task in pools if task not in protocols]:
        raise ValueError(f"no protocol for {missing}")
    known_words, started, cache = variables(), time.perf_counter(), Path(cache).absolute()
    if executor is None:
        entries.check_importable(entries.from_outside())
    data = {task: load(task) for task in pools}
    known = {task: tasks.fingerprint(data[task]) for task in pools}
    groups = {task: architectures(pool) for task, pool in pools.items()}

    base_jobs = {task: ("base", task, (), protocols[task], known[task]) for task in pools}
    jobs = {(t, group): ("candidates", t, group, protocols[t], known[t]) for t in pools for group in groups[t]}

    def kept(task: Task) -> Path:
        return _kept(data[task], known[task], cache)

    with contextlib.nullcontext(executor) if executor else cluster.executor(scheduler, workers, cache) as hands:
        bases, paths = _finish(hands, base_jobs, cache, lambda task: (kept(task), None), device)
        pieces, _ = _finish(hands, jobs, cache, lambda key: (kept(key[0]), paths[key[0]][0]), device)
    whole = [
        _about(
            xr.concat([pieces[task, group] for group in groups[task]], "candidate", **experiments.ALIGNED),
            task,
            pool,
            bases[task],
            protocols[task],
            data[task],
        )
        for task, pool in pools.items()
    ]
    dataset = results.describe(experiments.compact(xr.concat(whole, "candidate", **experiments.ALIGNED)), known_words)
    asked = {"tasks": [asdict(t) for t in pools], "protocols": [asdict(protocols[t]) for t in pools]}
    elsewhere = device != "cpu" and not torch.cuda.is_available()  # the workers have it
    dataset.attrs = results.provenance(asked, "cpu" if elsewhere else device)
    dataset.attrs |= {"device": f"{device} of the workers"} if elsewhere else {}
    return dataset.assign_attrs(wall_time_s=round(time.perf_counter() - started, 1))


def _about(
    measured: xr.Dataset, task: Task, pool: Mapping[str, Candidate], base: xr.Dataset, protocol: Protocol, data: Data
) -> xr.Dataset:
    """A task's rows with what there is to say of the task and of each candidate."""
    labels = measured["candidate"].values.tolist()
    order = [*pool, *(label for label in labels if label not in pool)]
    measured = measured.sel(candidate=order)
    rows = len(order)
    costs = protocol.costs(len(data.training.targets), len(data.validation.targets))
    of_task = base.drop_vars("base").assign(
        full_cost=protocol.full_cost,
        probe_examples=min(protocol.probe_examples, len(data.training.targets)),
        cost=("expense", list(costs.values())),
    )
    of_task = of_task.expand_dims(candidate=order)
    coordinates: dict[str, object] = {
        "label": order,
        "operator": [pool[label].operator if label in pool else label.split(" ", 1)[0] for label in order],
        "role": [EXPANSION if label in pool else REFERENCE for label in order],
        "description": [json.dumps(pool[label].as_dict()) if label in pool else "" for label in order],
        "task": [str(task)] * rows,
        **{name: [getattr(task, name)] * rows for name in ("dataset", "family", "train_size", "label_noise")},
    }
    whole = xr.merge([measured, of_task], join="exact").drop_vars("candidate")
    named = {name: ("candidate", value) for name, value in coordinates.items()}
    extra = {
        "seed": range(protocol.seeds),
        "checkpoint": list(CHECKPOINTS),
        "budget": list(BUDGETS),
        "expense": list(costs),
    }
    return whole.assign_coords(named | extra)


def _finish(
    executor: Executor, jobs: dict, cache: Path, given: Callable, device: str
) -> tuple[dict[Any, xr.Dataset], dict[Any, Paths]]:
    """The results of all jobs, which are of one kind, and their files, by key: read if there, else computed and kept.

    A file is named by what it depends on: training by no predictor.
    """
    outside = entries.from_outside()
    known, trained = entries.description(outside), entries.description(entries.without_predictors(outside))
    (names,) = {FILES[kind] for kind, *_ in jobs.values()}
    place = device if device != "cpu" else ""
    more = {name: [*filter(None, (known if name == "starts" else trained, place))] for name in names}
    paths = {
        key: tuple(cache / f"{name}-{_fingerprint(name, job, more[name])}.nc" for name in names)
        for key, job in jobs.items()
    }
    done = {
        key: reduce(_joined, map(results.read, each))
        for key, each in paths.items()
        if all(path.exists() for path in each)
    }
    waiting = sorted(jobs.keys() - done.keys(), key=lambda key: -_work(jobs[key]))
    futures = {}
    for key in waiting:
        data, base = given(key)
        futures[executor.submit(_run, jobs[key], paths[key], outside, known, data, base, device)] = key
    with progress.bar(len(jobs), names[-1], done=len(done)) as bar:
        for future in as_completed(futures):
            done[futures.pop(future)] = future.result()  # a cluster keeps what somebody still holds
            bar.update()
    return {key: done[key] for key in jobs}, paths


def _joined(starts: xr.Dataset, measured: xr.Dataset) -> xr.Dataset:
    """What was computed of candidates before their training, beside what was measured of them and their references."""
    new = starts.drop_vars(starts.keys() & measured.keys())  # the number of parameters, and of FLOPs
    return measured.merge(new.reindex(candidate=measured["candidate"]))


def _run(
    job: tuple, paths: Paths, outside: entries.Entries, known: str, data: Path, base: Path | None, device: str
) -> xr.Dataset:
    """Do a job and write the results, but what was done for one who did not live to see it."""
    if all(path.exists() for path in paths):
        return reduce(_joined, map(results.read, paths))
    kind, task, candidates, protocol, _ = job
    entries.enter(outside, known)
    piece = Piece(task, _data(data, device), results.read(base) if base else xr.Dataset(), candidates, protocol)
    found = []
    with ALONE, _one_thread():  # an executor's threads take turns; sums must not depend on the core count
        for name, path in zip(FILES[kind], paths, strict=True):
            found.append(results.read(path) if path.exists() else _made(name, piece))
            if not path.exists():
                results.write(found[-1], path)
    return reduce(_joined, found)


def _made(name: str, piece: Piece) -> xr.Dataset:
    """What goes into a file of this name."""
    if name == "bases":
        return train_base(piece.task, piece.data, piece.protocol)
    return start(piece) if name == "starts" else measure(piece)


def _kept(data: Data, name: str, cache: Path) -> Path:
    """The file of a task's data, which is written once and not sent with each job."""
    path = cache / f"data-{name}.pt"
    if not path.exists():
        with results.atomically(path) as beside:
            torch.save([[tuple(part) for part in data], data.image, data.vocabulary, data.augmented], beside)
    return path


@lru_cache(maxsize=8)
def _data(path: Path, device: str) -> Data:
    parts, *about = torch.load(path, map_location=device)
    training, validation, test = (Split(*part) for part in parts)
    data = Data(training, validation, test, *about)
    if path.stem != f"data-{tasks.fingerprint(data)}":
        raise ValueError(f"{path} holds other data than its name says; delete it and run again")
    return data


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(job: tuple) -> float | int:
    """A rough order of cost, so that the longest job does not come last."""
    _, task, candidates, *_ = job
    return sum(sum(c.sizes) if OPERATORS[c.operator].widens else sum(task.widths) for _, c in candidates)


def _fingerprint(name: str, job: tuple, more: Sequence[str] = ()) -> str:
    """A hash of the job's description, of the code and library that carry it out, and of what more it depends on."""
    text = json.dumps([repr(job), torch.__version__, _code(name), *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def _code(name: str) -> str:
    return sources.fingerprint(f"import mmstudy.study.{'starting' if name == 'starts' else 'trials'}")


def variables() -> dict[str, tuple[str, str]]:
    """(unit, long name) of every variable of the experiment."""
    return predictors.variables(OTHERS)


OTHERS = {  # the variables that predict nothing by themselves, or are no result
    "accuracy": ("1", "test accuracy, trained in full"),
    "nll": ("nat", "test negative log-likelihood, trained in full"),
    "ece": ("1", "expected calibration error on the test part, 15 bins"),
    "control_accuracy": ("1", "test accuracy of the base network, trained on"),
    "control_nll": ("nat", "test negative log-likelihood of the base network, trained on"),
    "control_ece": ("1", "expected calibration error of the base network, trained on"),
    "base_accuracy": ("1", "test accuracy of the base network"),
    "base_nll": ("nat", "test negative log-likelihood of the base network"),
    "base_ece": ("1", "expected calibration error of the base network"),
    "base_loss": ("nat", "loss of the base network on the probe examples"),
    "probe_examples": ("1", "training examples that rays and static predictors look at"),
    "full_cost": ("example-evaluations", "cost of training in full once"),
    "cost": ("example-evaluations", "what each measurement takes, beside the training that led there"),
    "expansion_cost": ("example-evaluations", "cost of the expansion itself, where it learns from data"),
    "curve": ("nat", "minibatch loss of the training with the first seed, mean over each bin of steps"),
    "fast_curve": ("nat", "minibatch loss of a short run at a constant step of twice the size"),
    "cosine_loss": ("nat", "mean of the last fifth of the minibatch losses of a short cosine run"),
    "cosine_training_loss": ("nat", "training loss after a short cosine run"),
    "cosine_validation_loss": ("nat", "validation loss after a short cosine run"),
    "cosine_validation_accuracy": ("1", "validation accuracy after a short cosine run"),
    "training_loss": ("nat", "loss on all training examples"),
    "validation_accuracy": ("1", "accuracy on the validation examples"),
    "validation_loss": ("nat", "loss on the validation examples"),
    "explorer_loss": ("nat", "mean minibatch loss that the children met"),
    "centre_validation_accuracy": ("1", "accuracy of the children's centre on the validation examples"),
    "centre_validation_loss": ("nat", "loss of the children's centre on the validation examples"),
    "disagreement": ("1", "share of the probe examples on which two children disagree"),
    "validation_disagreement": ("1", "share of the validation inputs on which two children disagree"),
    "hessian_trace": ("nat / distance²", "trace of the Hessian of the loss on the probe examples"),
    "reach": ("distance", "mean distance of the children from the network"),
    "gyration": ("distance", "radius of gyration of the children"),
    "diameter": ("distance", "largest distance between two children"),
    "effective_dimension": ("1", "participation ratio of the children's covariance"),
    "log_volume": ("ln distance^K", "log volume of the simplex of the network and its children"),
    "ray_loss": ("nat", "loss along rays, on the probe examples"),
    "ray_length": ("distance", "length of the direction of a ray"),
    "ray_origin": ("nat", "loss where a ray starts, on the probe examples"),
    "place": ("1", "multiple of a ray's direction"),
    "progress": ("1", "share of the training"),
    "seed": ("1", "training seed"),
}
SPREAD = ("reach", "gyration", "diameter", "effective_dimension")
OTHERS |= {f"{name}_se": (OTHERS[name][0], f"jackknife standard error of {name}") for name in SPREAD}
