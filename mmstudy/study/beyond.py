"""Four further experiments, small and exploratory, side by side: what size depends on, when to grow, in a row, descent.

`sensitivity`, `growing`, `rounds`, `descent` have one each; here they are run for a few tasks, as one Dataset.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import xarray as xr

from mmstudy.core import cluster, results
from mmstudy.core.tasks import Task, base, load
from mmstudy.study import descent, growing, rounds, sensitivity
from mmstudy.study.protocol import Protocol

WORDS = {
    "size_spearman": ("1", "Spearman correlation of the extent with the accuracy gain, mean over draws of children"),
    "size_agreement": ("1", "Spearman correlation between the sizes of two draws of children"),
    "size_censored": ("1", "share of rays that did not meet the level"),
    "size_cost": ("1", "what a look takes, as a share of a full training"),
    "llc_spearman": ("1", "Spearman correlation of minus the local learning coefficient with the gain, where settled"),
    "llc_settled": ("1", "share of candidates whose chains have settled"),
    "extent_spearman": ("1", "Spearman correlation of the extent with the gain, of the same candidates"),
    "grown_accuracy": ("%", "test accuracy of a network that grew after a share of the base's training"),
    "grown_steps": ("1", "steps of the network that has grown"),
    "grown_never": ("%", "test accuracy of the base trained on, at the same cost"),
    "grown_scratch": ("%", "test accuracy of the large network from the start, at the same cost"),
    "row_accuracy": ("%", "test accuracy after so many expansions in a row"),
    "row_parameters": ("1", "parameters after so many expansions in a row"),
    "row_spent": ("1", "what a round has cost, as a share of what it may cost"),
    "descent_train_error": ("%", "error on the training examples, from scratch"),
    "descent_test_error": ("%", "error on the test examples, from scratch"),
    "descent_train_loss": ("nat", "loss on the training examples, from scratch"),
    "descent_gain": ("percentage points", "accuracy gain of an expansion over the network trained on"),
    "descent_parameters": ("1", "parameters of a network of this width"),
    "progress": ("1", "share of the training"),
    "children": ("1", "children K"),
    "child_steps": ("1", "steps T that a child trains"),
    "share": ("1", "share of the base's training after which it grows"),
    "round": ("1", "expansions so far"),
    "width": ("1", "units in each hidden layer"),
}


Job = Callable[[], xr.Dataset]
FACTOR = 2  # of every expansion


def jobs(
    tasks: Sequence[Task],
    curve: Task,
    protocol: Protocol,
    curve_protocol: Protocol,
    pool: Mapping[str, Any],
    sizes: Mapping[str, Any],
    shares: Sequence[float | int],
    turns: int,
    widths: Sequence[int],
    operators: Sequence[str],
    seeds: int,
) -> dict[tuple[str, Task], Job]:
    """All that notebook 9 trains: of each task `sensitivity`, `now_or_later` and `in_a_row`, and `descent` of another.

    Args:
        curve: the task whose examples and depth `descent` takes, trained as `curve_protocol` says.
        pool: options of `pools.candidate_pool`, for the sensitivity.
        sizes: what else `sensitivity` takes: `children`, `child_steps`, `chain_steps`.
        turns: rounds of expansions in a row.
    """
    same: dict[str, Any] = {"operators": operators, "factor": FACTOR, "seeds": seeds}
    parts: dict[str, Callable[[Task], xr.Dataset]] = {
        "size": partial(sensitivity.sensitivity, protocol=protocol, shape=pool, **sizes),
        "row": partial(rounds.in_a_row, protocol=protocol, rounds=turns, **same),
        "grown": partial(growing.now_or_later, protocol=protocol, shares=shares, **same),
    }
    found: dict[tuple[str, Task], Job] = {
        (name, task): partial(part, task) for name, part in parts.items() for task in tasks
    }
    return found | {("descent", curve): partial(descent.descent, curve, curve_protocol, widths=widths, **same)}


def check(
    tasks: Sequence[Task], curve: Task, protocol: Protocol, curve_protocol: Protocol, operators: Sequence[str]
) -> None:
    """Refuse what a job would refuse after others have been done.

    Raises:
        ValueError: a network that is no perceptron or does not fit its data, fewer examples than a minibatch has, or a
            training that costs less than what `rounds` looks at.
    """
    for task, how in [*((task, protocol) for task in tasks), (curve, curve_protocol)]:
        if task.family != "MLP":
            raise ValueError(f"needs perceptrons, and {task} is a {task.family}: leave the family out")
        if how.batch > task.train_size:
            raise ValueError(f"batch must be at most {task.train_size}, the examples of {task}; got {how.batch}")
        base(task, load(task))
    for task in tasks:
        rounds.check(task, protocol, FACTOR, operators)


def runs(wanted: Mapping[tuple[str, Task], Job], workers: int = 0, scheduler: str = "") -> xr.Dataset:
    """The results of all jobs, each in a process of one thread: the numbers do not depend on how many there are.

    Args:
        workers: the number of processes; 0 means one per core.
        scheduler: the address of a Dask scheduler, whose workers take the place of processes (`core.cluster`).
    """
    with cluster.executor(scheduler, workers) as executor:
        found = executor.map(_alone, wanted.values())
        return together(dict(zip(wanted, found, strict=True)))


def together(found: Mapping[tuple[str, Task], xr.Dataset]) -> xr.Dataset:
    """The results of `jobs` as one Dataset, over task and what else each runs over; `WORDS` has its variables."""
    kinds: dict[str, dict[str, xr.Dataset]] = defaultdict(dict)
    for (name, task), table in found.items():
        kinds[name][str(task)] = _named(table, name)
    ((curve, bare),) = kinds.pop("descent").items()
    tables = [
        xr.concat([*parts.values()], xr.DataArray([*parts], dims="task", name="task")) for parts in kinds.values()
    ]
    whole = xr.merge([*tables, bare], compat="equals", join="exact").assign_coords(curve=curve)
    return results.describe(whole, WORDS)


def _alone(job: Job) -> xr.Dataset:
    torch.set_num_threads(1)
    return job()


def _named(table: xr.Dataset, name: str) -> xr.Dataset:
    """The table with the names of `WORDS`: those that tell what they are keep theirs."""
    return table.rename({each: f"{name}_{each}" for each in table.data_vars if each not in WORDS})
