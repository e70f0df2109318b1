"""Is the advice of `ranking` any good? Whole pools are trained to the end once, and advice is held against that."""

import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification, losses, stack
from mmstudy.core import results
from mmstudy.core.seeds import seed_of
from mmstudy.core.tasks import Task, load
from mmstudy.core.tasks import base as new_base
from mmstudy.ranking.asked import pool_of, rank_expansions
from mmstudy.ranking.policy import Plan
from mmstudy.ranking.pool import Size
from mmstudy.ranking.posterior import Pool, Prior, fit
from mmstudy.ranking.report import LEVEL, OWN
from mmstudy.ranking.rows import Metric, Row, accuracy
from mmstudy.study import design

BUDGETS = {False: 0.1, True: 0.25}  # without and with anchors
WORDS = {
    "early_score": ("score", "validation score after the first part of the training"),
    "early_loss": ("nat", "mean minibatch loss at the end of that part"),
    "final_score": ("score", "validation score after the full training"),
    "test_score": ("score", "the same on test data"),
    "gain": ("score", "gain over training on that the advice expects at this budget"),
    "low": ("score", f"lower end of its {LEVEL:.0%} interval"),
    "high": ("score", f"upper end of its {LEVEL:.0%} interval"),
    "trained": ("1", "whether it was trained to the end at this budget"),
    "chosen": ("1", "whether the advice is to take it"),
    "share": ("1", "share of training all to the end that the advice took"),
    "parameters": ("1", "number of parameters"),
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
        while rate.last_epoch < steps:
            for batch in loader:
                steppers.zero_grad()
                classification(network, batch).backward()
                steppers.step()
                rate.step()


def of_file(path: str | Path, test: int, steps: int | None = None) -> Case:
    """The network of a file such as those in `examples/`, the last `test` validation examples kept for the test."""
    given = runpy.run_path(str(path))
    training, validation = given["loaders"]()
    measured = engine.joined([tuple(b) if isinstance(b, list) else b for b in validation])
    count = engine.count(measured) - test
    kept, unseen = engine.take(measured, slice(count)), engine.take(measured, slice(count, None))
    options = {"full_steps": steps or given["full_steps"], "optimizer": given["optimizer"]}
    options |= {"schedule": given["schedule"]} if "schedule" in given else {}
    name = Path(path).stem
    return Case(name, given["network"](), given["loss_fn"], (training, [kept]), unseen, options, given.get("metric"))


def outcome(case: Case, folder: str | Path, budgets: Mapping[bool, float] = BUDGETS) -> xr.Dataset:
    """What the advice says at each budget, and what became of all rows, over (row, anchored).

    Raises:
        ValueError: what `rank_expansions` refuses.
    """
    place = Path(folder) / f"{seed_of(case.name):x}"

    def ranked(budget: float) -> Any:
        return rank_expansions(
            case.network,
            case.loss_fn,
            *case.loaders,
            metric=case.metric,
            budget=budget,
            folder=place,
            say=lambda text: None,
            **case.options,
        )

    tables = []
    for anchored, budget in budgets.items():
        data = ranked(budget).data
        tables.append(
            data[["gain", "low", "high", "early_score", "early_loss"]]
            .assign(
                trained=data["status"] != "probed",
                chosen=("candidate", np.arange(data.sizes["candidate"]) == 0),
                share=data.attrs["share"],
            )
            .sortby("candidate")
            .expand_dims(anchored=[anchored])
        )
    whole = ranked(1.0)
    data = whole.data.sortby("candidate")
    of = case.metric or (lambda model, batch: -case.loss_fn(model, batch))
    score = [float(losses(stack([whole.best(label).network]), case.test, of)[0]) for label in data["candidate"].values]
    told = xr.concat(tables, "anchored").assign(
        final_score=data["final_score"], test_score=("candidate", score), parameters=data["parameters"]
    )
    told = told.drop_vars("status", errors="ignore").rename(candidate="row")
    names = told["row"].values.tolist()
    told = told.assign_coords(label=("row", names), case=("row", [case.name] * len(names))).drop_vars("row")
    return told


def outcomes(cases: Iterable[Callable[[], Case]], folder: str | Path, **options: Any) -> xr.Dataset:
    """`outcome` of several cases, one below the other."""
    found = [outcome(case(), folder, **options) for case in tqdm([*cases], desc="cases", disable=None)]
    joined = results.describe(xr.concat(found, "row", data_vars="all"), WORDS)
    joined.attrs = results.provenance({"cases": sorted(set(joined["case"].values.tolist()))})
    return joined


def pools(told: xr.Dataset, anchored: bool) -> list[tuple[Pool, np.ndarray]]:
    """Each case's pool as it was seen early, its own network last, and its final scores."""
    found = []
    for name in dict.fromkeys(told["case"].values.tolist()):
        one = told.isel(row=told["case"].values == name).sel(anchored=anchored)
        last = (one["label"].values == OWN).argmax()
        one = one.isel(row=[*(i for i in range(one.sizes["row"]) if i != last), last])
        rows = [
            Row(label, 0, loss, np.nan, score, 0.0)
            for label, loss, score in zip(
                one["label"].values.tolist(),
                one["early_loss"].values.tolist(),
                one["early_score"].values.tolist(),
                strict=True,
            )
        ]
        operators = one["operator"].values.tolist()
        sizes = [Size(int(count), 0) for count in one["parameters"].values]
        found.append((pool_of(rows, sizes, operators, Plan(0, int(anchored), 0.0)), one["final_score"].values))
    return found


def priors(told: xr.Dataset) -> dict[bool, Prior]:
    """The priors under which the final scores of these cases are most likely."""
    return {anchored: fit(pools(told, anchored)) for anchored in BUDGETS}
