"""The experiment: the sweep over candidate pools, in pieces that are finished once, spread over processes."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import torch
import xarray as xr
from tqdm import tqdm

from mmstudy.batched.replay import ALONE
from mmstudy.core import processes, results, sources, tasks
from mmstudy.core.tasks import Data, Task, load
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS
from mmstudy.study import entries, predictors
from mmstudy.study.measurements import CHECKPOINTS, measure, train_base
from mmstudy.study.protocol import Protocol

ALIGNED = {"data_vars": "minimal", "coords": "minimal", "compat": "equals", "join": "exact"}


def sweep(
    pools: Mapping[Task, Mapping[str, Candidate]],
    protocol: Protocol,
    cache: str | Path,
    workers: int = 0,
    device: str = "cpu",
    executor: Executor | None = None,
) -> xr.Dataset:
    """Measure every candidate of every task's pool; the result does not depend on the number of workers.

    Every finished piece (a task's base; the candidates of one architecture) is kept under `cache`, named by a hash
    of all that it depends on, so that a sweep that was killed goes on where it stopped.

    Args:
        pools: for each task its candidates by label; all tasks have the same labels, operator by operator.
        workers: processes of one thread each; 0 means one per core.
        executor: anything with the interface of `concurrent.futures`, such as Dask's `Client.get_executor()`;
            by default a pool of `workers` processes. Threads of one process take turns.

    Raises:
        ValueError: there is nothing to measure, the pools differ in their labels or operators, or what was entered in a
            registry from outside has the name of another variable, or a function that workers cannot import.
    """
    operators, known_words = _operators(pools), words()
    started = time.perf_counter()
    own = executor is None
    if own:
        entries.check_importable(entries.from_outside())
    executor = executor or processes.pool(workers)
    try:
        data = {task: load(task, device) for task in pools}
        known = {task: tasks.fingerprint(data[task]) for task in pools}
        base_jobs = {task: ("base", task, (), protocol, known[task]) for task in pools}
        bases = _finish(executor, base_jobs, cache, lambda task: (data[task], None), "bases", device)
        groups = {task: _architectures(pool) for task, pool in pools.items()}
        jobs = {(t, group): ("measure", t, group, protocol, known[t]) for t in pools for group in groups[t]}
        pieces = _finish(executor, jobs, cache, lambda key: (data[key[0]], bases[key[0]]), "candidates", device)
    finally:
        if own:
            executor.shutdown(wait=False, cancel_futures=True)
    whole = []
    for task in pools:
        measured = xr.concat([pieces[task, group] for group in groups[task]], "candidate", **ALIGNED)
        measured = measured.sel(candidate=list(operators))
        whole.append(xr.merge([measured, bases[task].drop_vars("base")]).expand_dims(task=[str(task)]))
    dataset = xr.concat(whole, "task", **ALIGNED)
    descriptions = [[json.dumps(pool[label].as_dict()) for label in operators] for pool in pools.values()]
    dataset = dataset.assign(description=(("task", "candidate"), descriptions)).assign_coords(
        operator=("candidate", list(operators.values())),
        checkpoint=list(CHECKPOINTS),
        seed=range(protocol.seeds),
        label_noise=("task", [t.label_noise for t in pools]),
        dataset=("task", [t.dataset for t in pools]),
    )
    dataset = results.describe(dataset, known_words)
    dataset.attrs = results.provenance({"tasks": [asdict(t) for t in pools], "budget": asdict(protocol)}, device)
    dataset.attrs |= {"full_cost": protocol.full_cost, "wall_time_s": round(time.perf_counter() - started, 1)}
    return dataset


def _operators(pools: Mapping[Task, Mapping[str, Candidate]]) -> dict[str, str]:
    """The label of every candidate → its operator, the same for all tasks."""
    by_task = {task: {label: c.operator for label, c in pool.items()} for task, pool in pools.items()}
    if not any(by_task.values()):
        raise ValueError(f"nothing to measure: {len(pools)} tasks, no candidates")
    first = next(iter(by_task.values()))
    for task, operators in by_task.items():
        if different := operators.items() ^ first.items():
            labels = ", ".join(sorted({label for label, _ in different}))
            raise ValueError(f"the pool of {task} differs from that of {next(iter(by_task))}: {labels}")
    return first


def _architectures(pool: Mapping[str, Candidate]) -> list[tuple[tuple[str, Candidate], ...]]:
    """The pool in groups of one architecture: same locations and sizes, all wider or all deeper."""
    groups: dict[tuple, list[tuple[str, Candidate]]] = {}
    for label, candidate in pool.items():
        kind = OPERATORS[candidate.operator].widens
        groups.setdefault((kind, candidate.locations, candidate.sizes), []).append((label, candidate))
    return [tuple(group) for group in groups.values()]


def _finish(executor: Executor, jobs: dict, cache: str | Path, given, title: str, device: str) -> dict:
    """The results of all jobs, by key: read from the cache where they are, computed and kept where they are not."""
    outside = entries.from_outside()
    more = [*filter(None, (entries.description(outside), device if device != "cpu" else ""))]
    paths = {key: Path(cache) / f"{title}-{_fingerprint(job, more)}.nc" for key, job in jobs.items()}
    done = {key: results.read(path) for key, path in paths.items() if path.exists()}
    waiting = sorted(jobs.keys() - done.keys(), key=lambda key: -_work(jobs[key]))
    futures = {executor.submit(_run, jobs[key], paths[key], outside, *given(key)): key for key in waiting}
    with (
        _terminal() as stream,
        tqdm(total=len(jobs), initial=len(done), desc=title, file=stream, disable=None) as bar,
    ):
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            bar.update()
    return {key: done[key] for key in jobs}


def _run(job: tuple, path: Path, outside: entries.Entries, data: Data, base: xr.Dataset | None) -> xr.Dataset:
    kind, task, candidates, protocol, _ = job
    entries.enter(outside)
    with ALONE, _one_thread():  # an executor's threads take turns; sums must not depend on the core count
        if kind == "base":
            dataset = train_base(task, data, protocol)
        else:
            dataset = measure(task, data, base, candidates, protocol)
    results.write(dataset, path)
    return dataset


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _terminal() -> contextlib.AbstractContextManager:
    """Where a progress bar is seen: the terminal that runs the notebook, if its runner names one, else stderr.

    A kernel's own stderr ends up in the notebook, where a bar has no place (and tqdm shows none: it is no terminal).
    """
    terminal = os.environ.get("MMSTUDY_TERMINAL")
    return open(terminal, "w") if terminal else contextlib.nullcontext(sys.stderr)


def _work(job: tuple) -> float | int:
    """A rough order of cost, so that the longest job does not come last."""
    _, task, candidates, *_ = job
    return sum(sum(c.sizes) if OPERATORS[c.operator].widens else sum(task.widths) for _, c in candidates)


def _fingerprint(job: tuple, more: Sequence[str] = ()) -> str:
    """A hash of the job's description, of the code and library that carry it out, and of what more it depends on."""
    text = json.dumps([repr(job), torch.__version__, _code(), *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def _code() -> str:
    return sources.fingerprint("import mmstudy.study.measurements")


def words() -> dict[str, tuple[str, str]]:
    """(unit, long name) of every variable of the experiment."""
    return predictors.words(OTHERS)


OTHERS = {  # the variables that predict nothing, or are no result
    "accuracy": ("1", "test accuracy of the candidate, trained in full"),
    "nll": ("nat", "test negative log-likelihood of the candidate, trained in full"),
    "ece": ("1", "expected calibration error on the test part, 15 bins"),
    "control_accuracy": ("1", "test accuracy of the base network, trained on"),
    "control_nll": ("nat", "test negative log-likelihood of the base network, trained on"),
    "control_ece": ("1", "expected calibration error of the base network, trained on"),
    "base_accuracy": ("1", "test accuracy of the base network"),
    "base_nll": ("nat", "test negative log-likelihood of the base network"),
    "base_ece": ("1", "expected calibration error of the base network"),
    "base_loss": ("nat", "loss of the base network on the probe examples"),
    "probe_examples": ("1", "training examples that losses are measured on before a candidate is trained in full"),
    "examples_cost": ("example-evaluations", "cost of finding out how many those must be, once for all candidates"),
    "level": ("nat", "loss up to which rays go, shared by all candidates of a task"),
    "description": ("1", "the candidate in this task, as JSON"),
    "expansion_cost": ("example-evaluations", "cost of the expansion itself, where it learns from data"),
    "connected": ("1", "share of children that the level set holds, with the segment from their centre"),
    "unbounded": ("1", "share of rays that stay below the level as far as they go"),
    "outside": ("1", "whether the children's centre lies above the level"),
    "children_cost": ("example-evaluations", "cost of a probe without rays"),
    "rays_cost": ("example-evaluations", "cost of a probe with rays along children and differences"),
    "random_cost": ("example-evaluations", "cost of a probe with random rays from the children's centre"),
    "predictions_cost": ("example-evaluations", "cost of a probe with the children's predictions"),
    "centre_cost": ("example-evaluations", "cost of a probe with the loss at the children's centre"),
    "early": ("step", "steps of the constant-step run"),
    "probe": ("step", "training steps of a probe, all children together"),
    "rate": ("1", "step size of the probe over that of the training"),
    "seed": ("1", "training seed"),
}
