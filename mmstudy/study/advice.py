"""Is the advice of `ranking` any good? Whole pools are trained to the end once, and advice is held against that."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification, losses, stack
from mmstudy.core import cluster, progress, results, sources
from mmstudy.core.seeds import seed_of
from mmstudy.core.tasks import Task, load
from mmstudy.core.tasks import base as new_base
from mmstudy.ranking import files, report
from mmstudy.ranking.asked import rank_expansions
from mmstudy.ranking.report import LEVEL, Ranking
from mmstudy.ranking.rows import Metric, accuracy
from mmstudy.study import design, experiments
from mmstudy.study.calibration import BUDGETS, by_case
from mmstudy.study.statistics import spearman

VERDICTS = {
    "regret": ("score", "test score lost against the best of the pool"),
    "regret_share": ("1", "the same in ranges of the pool's test scores"),
    "random": ("1", "what a row drawn at random loses, in these ranges"),
    "spearman": ("1", "Spearman's ρ of the expected gains with the test scores"),
    "coverage": ("1", f"share of the open gains that the {LEVEL:.0%} intervals held"),
    "open": ("1", "candidates that were not trained to the end"),
    "share": ("1", "share of training all to the end that the advice took"),
}
WORDS = {name: report.WORDS[name] for name in ("early_score", "early_loss", "low", "high", "parameters")} | {
    "final_score": ("score", "validation score after the full training"),
    "test_score": ("score", "the same on test data"),
    "gain": ("score", "gain over training on that the advice expects at this budget"),
    "trained": ("1", "whether it was trained to the end at this budget"),
    "chosen": ("1", "whether the advice is to take it"),
    "share": ("1", "share of training all to the end that the advice took"),
}


@dataclass(frozen=True)
class Case:
    """A trained network with all that its user would bring, and test data that the advice never sees."""

    name: str
    network: nn.Module
    loss_fn: LossFn
    loaders: tuple[Iterable[Batch], Iterable[Batch]]
    test: Batch
    options: Mapping[str, Any]  # of `rank_expansions`
    metric: Metric | None


@dataclass(frozen=True)
class Minibatches:
    """A batch in memory as a loader that shuffles; the ragged end is left out."""

    batch: Batch
    size: int

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(engine.count(self.batch))
        for first in range(0, len(order) - self.size + 1, self.size):
            yield engine.take(self.batch, order[first : first + self.size])


def of_task(task: Task, steps: int | None = None) -> Case:
    """The base network of one of the study's tasks, trained as there; `steps` makes all trainings shorter."""
    data, protocol = load(task), design.protocol(task)
    count = steps or protocol.steps
    network = new_base(task, data)
    loader = Minibatches(tuple(data.training), min(protocol.batch, len(data.training.targets)))

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, protocol.step_size, protocol.momentum)

    def schedule(of: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(of, count)

    _train(network, loader, optimizer, schedule, count, seed_of(task, "base"))
    options = {"full_steps": count, "optimizer": optimizer, "schedule": schedule}
    validation = [tuple(data.validation)]
    return Case(str(task), network, classification, (loader, validation), tuple(data.test), options, accuracy)


def _train(
    network: nn.Module, loader: Minibatches, optimizer: Callable, schedule: Callable, steps: int, seed: int
) -> None:
    network.train()
    steppers = optimizer(network.parameters())
    rate = schedule(steppers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in islice(chain.from_iterable(repeat(loader)), steps):  # epoch after epoch
            steppers.zero_grad()
            classification(network, batch).backward()
            steppers.step()
            rate.step()


def of_file(path: str | Path, steps: int | None = None) -> Case:
    """The network of a file such as those in `examples/`; the second half of the validation data is for the test."""
    given = files.defined(path)
    training, validation = given["loaders"]()
    everything = engine.joined([tuple(b) if isinstance(b, list) else b for b in validation])
    half = engine.count(everything) // 2
    measured, test = engine.take(everything, slice(half)), engine.take(everything, slice(half, None))
    options = {"full_steps": steps or given["full_steps"], "optimizer": given["optimizer"]}
    options |= {name: given[name] for name in ("schedule", "pool") if name in given}
    network, metric = given["network"](), given.get("metric")
    return Case(Path(path).stem, network, given["loss_fn"], (training, [measured]), test, options, metric)


def described(case: str | Sequence[Any], steps: int | None = None) -> Case:
    """A case: the path of a file such as those in `examples/`, or a task as in the profiles (`design.tasks_of`)."""
    if isinstance(case, str):
        return of_file(case, steps)
    (task,) = design.tasks_of({"pilot": [case]})
    return of_task(task, steps)


def outcome(case: Case, folder: str | Path) -> xr.Dataset:
    """What the advice says at each of the budgets, and what became of all rows, over (row, anchored).

    Raises:
        ValueError: what `rank_expansions` refuses.
    """
    code = sources.fingerprint("import mmstudy.ranking.rows")  # what other code has trained is left aside
    place = Path(folder) / f"{seed_of(case.name, case.options['full_steps'], code):x}"

    def ranked(budget: float) -> Ranking:
        options = {"metric": case.metric, "budget": budget, "folder": place, "say": lambda text: None, **case.options}
        return rank_expansions(case.network, case.loss_fn, *case.loaders, **options)

    tables = []
    for anchored, budget in BUDGETS.items():
        data = ranked(budget).data
        rows = np.arange(data.sizes["candidate"])
        seen = data[["gain", "low", "high", "early_score", "early_loss"]].assign(
            trained=("candidate", data["status"].values != "probed"),
            chosen=("candidate", rows == 0),
            share=("candidate", np.full(len(rows), data.attrs["share"])),
        )
        tables.append(seen.drop_vars("status").sortby("candidate").expand_dims(anchored=[anchored]))
    whole = ranked(1.0)
    data = whole.data.drop_vars("status").sortby("candidate")
    names = data["candidate"].values.tolist()
    score = case.metric or (lambda model, batch: -case.loss_fn(model, batch))
    test = [float(losses(stack([whole.best(name).network]), case.test, score)[0]) for name in names]
    told = xr.concat(tables, "anchored", **(experiments.ALIGNED | {"data_vars": "all"})).assign(
        final_score=data["final_score"], test_score=("candidate", test), parameters=data["parameters"]
    )
    named = {"label": ("candidate", names), "case": ("candidate", [case.name] * len(names))}
    return told.assign_coords(named).drop_vars("candidate").rename(candidate="row")


def outcomes(
    cases: Sequence[str | Sequence[Any]], folder: str | Path, steps: int | None = None, scheduler: str = ""
) -> xr.Dataset:
    """`outcome` of several cases (see `described`), one below the other, in a process for each core.

    What was trained is kept in `folder`, and gone on with.

    Args:
        scheduler: the address of a Dask scheduler, whose workers take the place of processes (`core.cluster`).

    Raises:
        ValueError: no case, or what `cluster.executor` refuses.
    """
    if not cases:
        raise ValueError("no case to hold the advice against")
    folder = Path(folder).absolute()  # a worker may have another working directory
    placed = [str(Path(case).absolute()) if isinstance(case, str) else case for case in cases]
    with cluster.executor(scheduler, folder=folder) as executor:
        futures = [executor.submit(_outcome, case, str(folder), steps) for case in placed]
        with progress.bar(len(futures), "cases") as bar:
            for _ in as_completed(futures):
                bar.update()
        found = [future.result() for future in futures]
    joined = results.describe(xr.concat(found, "row", **experiments.ALIGNED), WORDS)
    joined.attrs = results.provenance({"cases": list(map(str, cases)), "steps": steps})
    return joined


def _outcome(case: str | Sequence[Any], folder: str, steps: int | None) -> xr.Dataset:
    torch.set_num_threads(1)
    return outcome(described(case, steps), folder)


def in_parts(
    parts: Mapping[str, Sequence[str | Sequence[Any]]],
    folder: str | Path,
    steps: int | None = None,
    scheduler: str = "",
) -> xr.Dataset:
    """The `outcomes` of several parts, whose name is the coordinate `part`."""
    told = {name: outcomes(cases, folder, steps, scheduler) for name, cases in parts.items()}
    named = [one.assign_coords(part=("row", [name] * one.sizes["row"])) for name, one in told.items()]
    joined = xr.concat(named, "row", combine_attrs="override", **experiments.ALIGNED)
    joined.attrs = results.provenance({"parts": {name: list(map(str, c)) for name, c in parts.items()}, "steps": steps})
    return joined


def verdicts(told: xr.Dataset) -> xr.Dataset:
    """How good the advice was in each case and at each budget, over (case, anchored).

    `regret`: the test score that the best row has more than the chosen one, and `regret_share`, in ranges of the case's
    test scores; `random`: what a row drawn at random loses in these; `spearman`: of the expected gains with the test
    scores, over all candidates; `coverage`: the share of those that were not trained to the end whose gain the interval
    held, of `open` such candidates; `share`: what the advice took.
    """
    tables = {}
    for name, both in by_case(told).items():
        each = {bool(anchored): _verdict(both.sel(anchored=anchored)) for anchored in both["anchored"].values}
        tables[name] = pd.DataFrame.from_dict(each, orient="index").rename_axis("anchored").to_xarray()
    return results.describe(xr.concat(tables.values(), xr.DataArray([*tables], dims="case", name="case")), VERDICTS)


def _verdict(one: xr.Dataset) -> dict[str, float]:
    """Of one case at one budget; its own network is the last row."""
    test, gain, final = (one[name].values for name in ("test_score", "gain", "final_score"))
    known = one["trained"].values
    regret, spread = float(np.nanmax(test) - test[one["chosen"].values][0]), float(np.nanmax(test) - np.nanmin(test))
    gained, open_rows = final - final[-1], ~known & (np.arange(len(known)) < len(known) - 1)
    held = (one["low"].values <= gained) & (gained <= one["high"].values)
    return {
        "regret": regret,
        "regret_share": regret / (spread or 1.0),
        "random": float(np.nanmax(test) - np.nanmean(test)) / (spread or 1.0),
        "spearman": float(spearman(gain[None, :-1], test[:-1])[0]),
        "coverage": float(held[open_rows].mean()) if open_rows.any() else np.nan,
        "open": float((~known[:-1]).sum()),
        "share": float(one["share"].values[0]),
    }
