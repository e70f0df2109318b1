"""Four further experiments, small and exploratory, side by side: what size depends on, when to grow, in a row, descent.

`sensitivity`, `growing`, `rounds`, `descent` have one each; here they are run for a few tasks, as one Dataset.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import xarray as xr

from mmstudy.core import processes, results
from mmstudy.core.tasks import Task
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


def runs(
    tasks: Sequence[Task],
    curve: Task,
    protocol: Protocol,
    curve_protocol: Protocol,
    pool: dict[str, Any],
    sizes: dict[str, Sequence[int]],
    shares: Sequence[float | int],
    turns: int,
    widths: Sequence[int],
    operators: Sequence[str],
    seeds: int,
    workers: int = 0,
) -> xr.Dataset:
    """All that notebook 9 trains: what `sensitivity`, `now_or_later` and `in_a_row` say of each task, and `descent`.

    Every expansion doubles. Each part runs in a process of one thread; the numbers do not depend on how many there are.

    Args:
        curve: the task whose examples and depth `descent` takes, trained as `curve_protocol` says.
        pool: options of `pools.candidate_pool`, for the sensitivity.
        sizes: its `children` and `child_steps`.
        turns: rounds of expansions in a row.
    """
    parts: dict[str, Callable[[Task], xr.Dataset]] = {
        "size": partial(sensitivity.sensitivity, protocol=protocol, shape=pool, **sizes),
        "grown": partial(
            growing.now_or_later, protocol=protocol, shares=shares, operators=operators, factor=2, seeds=seeds
        ),
        "row": partial(rounds.in_a_row, protocol=protocol, rounds=turns, factor=2, operators=operators, seeds=seeds),
    }
    jobs = {(name, task): partial(part, task) for name, part in parts.items() for task in tasks}
    jobs["descent", curve] = partial(
        descent.descent, curve, curve_protocol, widths=widths, factor=2, operators=operators, seeds=seeds
    )
    with processes.pool(workers) as executor:
        found = dict(zip(jobs, executor.map(_alone, jobs.values()), strict=True))
    names = xr.DataArray([*map(str, tasks)], dims="task", name="task")
    tables = [_named(xr.concat([found[name, task] for task in tasks], names), name) for name in parts]
    whole = xr.merge([*tables, _named(found["descent", curve], "descent")], compat="equals", join="exact")
    whole = whole.assign_coords(curve=str(curve))
    return results.describe(whole, WORDS)


def _alone(job: Callable[[], xr.Dataset]) -> xr.Dataset:
    torch.set_num_threads(1)
    return job()


def _named(table: xr.Dataset, name: str) -> xr.Dataset:
    """The table with the names of `WORDS`: those that tell what they are keep theirs."""
    new = {each: f"{name}_{each}" for each in table.data_vars if each not in WORDS}
    return table.rename(new)
