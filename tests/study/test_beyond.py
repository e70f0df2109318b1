"""The experiments of notebook 9 as one Dataset: each part is what its function says, under a name that explains it."""

from dataclasses import replace

import pytest
import xarray as xr
from cases import TASK, TINY

from mmstudy.core import results
from mmstudy.core.tasks import Task
from mmstudy.study import beyond

OTHER = Task("digits", (4, 4), 200, seed=1)
SHORT = replace(TINY, steps=20, probe_examples=10, child_steps=1, progress=(0.0, 0.5, 1.0), short=0.5)
SHAPE = {"factors": (2,), "extra_layers": (), "matched": (), "locations": ("hidden.0",)}


@pytest.fixture(scope="module")
def jobs():
    sizes = {"children": (2,), "child_steps": (2,), "chain_steps": 24}
    return beyond.jobs([TASK, OTHER], OTHER, SHORT, SHORT, SHAPE, sizes, (1.0,), 1, (2, 4), ("random",), 2)


@pytest.fixture(scope="module")
def parts(jobs):
    return {key: job() for key, job in jobs.items() if key[0] in ("grown", "descent")}


def test_each_question_is_asked_of_each_task_and_one_of_the_curve(jobs):
    every = {(name, task) for name in ("size", "row", "grown") for task in (TASK, OTHER)}
    assert jobs.keys() == every | {("descent", OTHER)}


def test_the_parts_become_one_dataset_whose_variables_explain_themselves(parts):
    whole = beyond.together(parts)
    assert whole["task"].values.tolist() == [str(TASK), str(OTHER)]
    for task in (TASK, OTHER):
        xr.testing.assert_equal(
            whole["grown_accuracy"].sel(task=str(task)).drop_vars(["task", "curve"]),
            parts["grown", task]["accuracy"].rename("grown_accuracy"),
        )
    assert whole["descent_test_error"].equals(parts["descent", OTHER]["test_error"].assign_coords(curve=str(OTHER)))
    results.check(whole.assign_attrs(results.provenance({})))


def test_processes_find_the_same_numbers(jobs, parts):
    some = {key: jobs[key] for key in parts}
    assert beyond.runs(some, 2).equals(beyond.together(parts))
