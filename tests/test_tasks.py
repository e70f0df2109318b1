import random

import numpy as np
import pytest
import torch

from mmstudy import tasks
from mmstudy.tasks import Task, load

TASKS = [Task("digits", (6,), 500), Task("mnist1d", (6,), 1000, seed=3)]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_parts_are_disjoint_standardized_and_deterministic(task):
    data = load(task)
    assert len(data.training.targets) == task.train_size
    rows = torch.cat([part.inputs for part in data])
    assert len(rows.unique(dim=0)) == len(rows)  # no example stands in two parts (nor twice in one)
    mean, deviation = data.training.inputs.mean(0), data.training.inputs.std(0, correction=0)
    assert mean.abs().max() < 1e-5
    assert (((deviation - 1).abs() < 1e-4) | (deviation == 0)).all()
    again = load(task)
    for part, same in zip(data, again, strict=True):
        assert torch.equal(part.inputs, same.inputs)
        assert torch.equal(part.targets, same.targets)
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64
        assert set(part.targets.tolist()) == set(range(10))


def test_the_published_test_size():
    assert len(load(TASKS[1]).test.targets) >= 20_000


def test_another_seed_is_another_split():
    first, second = load(Task("digits", (6,), 400, seed=1)), load(Task("digits", (6,), 400, seed=2))
    assert not torch.equal(first.test.inputs, second.test.inputs)


def test_only_training_and_validation_labels_are_flipped():
    clean, noisy = load(Task("mnist1d", (6,), 4000)), load(Task("mnist1d", (6,), 4000, 0.2))
    assert torch.equal(clean.test.targets, noisy.test.targets)
    assert torch.equal(clean.training.inputs, noisy.training.inputs)
    for before, after in zip(clean[:2], noisy[:2], strict=True):
        flipped = (before.targets != after.targets).double()
        assert abs(flipped.mean() - 0.2) < 4 * (0.16 / len(flipped)) ** 0.5
        assert after.targets.unique().tolist() == list(range(10))


def test_the_generator_of_mnist1d_leaves_the_global_streams_alone():
    tasks._mnist1d.cache_clear()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    load(TASKS[1])
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_bad_tasks_are_refused_by_value():
    with pytest.raises(ValueError, match=r"'cifar'; known: digits, mnist1d"):
        load(Task("cifar", (6,), 100))
    with pytest.raises(ValueError, match=r"1 to 500 training examples; got train_size=501"):
        load(Task("digits", (6,), 501))
    with pytest.raises(ValueError, match=r"got train_size=0"):
        load(Task("digits", (6,), 0))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        load(Task("digits", (6,), 100, 1.5))
