import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mmstudy.core import datasets, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task, load

TASKS = {"digits": Task("digits", (6,), 500), "mnist1d": Task("mnist1d", (6,), 1000, seed=3)}


def global_draws() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


@pytest.fixture(scope="session")
def draws_around_mnist1d():
    """Generates mnist1d, which takes seconds, once; what the global streams give without and with that."""
    datasets._mnist1d.cache_clear()
    draws = []
    for between in (lambda: None, lambda: load(TASKS["mnist1d"])):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
        between()
        draws.append(global_draws())
    return draws


@pytest.fixture(params=TASKS)
def task(request, draws_around_mnist1d):
    return TASKS[request.param]


def test_the_generator_of_mnist1d_leaves_the_global_streams_alone(draws_around_mnist1d):
    without, with_it = draws_around_mnist1d
    assert without == with_it
    assert datasets._mnist1d.cache_info().misses == 1  # it did run


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


def test_every_part_holds_original_scans_with_their_own_labels_on_the_trainings_scale():
    scans = load_digits()
    label_of = {tuple(scan): label for scan, label in zip(scans.data.astype(int).tolist(), scans.target, strict=True)}
    data = load(TASKS["digits"])
    pixels = {tuple(scan) for scan in scans.data.astype(int).tolist()}
    # the training part's own mean and deviation, found from what it became: pixels are whole numbers from 0 to 16
    order = torch.randperm(len(scans.data), generator=tasks.generator("split", "digits", 0))
    training = torch.tensor(scans.data)[order[1297:1797]]
    mean, deviation = training.mean(0), training.std(0, correction=0)
    deviation[deviation == 0] = 1
    for part in data:
        back = (part.inputs.double() * deviation + mean).round().int().tolist()
        assert {tuple(scan) for scan in back} <= pixels
        assert [label_of[tuple(scan)] for scan in back] == part.targets.tolist()


def test_a_larger_training_part_holds_the_smaller_one_and_leaves_the_others(task):
    small, large = (tasks.load(replace(task, train_size=size)) for size in (100, 300))
    assert torch.equal(small.training.targets, large.training.targets[:100])
    assert torch.equal(small.test.targets, large.test.targets)
    assert torch.equal(small.validation.targets, large.validation.targets)


def test_mnist1d_is_balanced_and_its_test_part_large(draws_around_mnist1d):
    inputs, targets, test, validation, *_ = datasets._mnist1d()
    assert test >= 20_000
    assert inputs.shape == (26_000, 40)
    assert validation > 0
    assert targets.bincount().tolist() == [2600] * 10
    assert len(load(TASKS["mnist1d"]).test.targets) == test


def test_another_seed_is_another_split():
    first, second = load(Task("digits", (6,), 400, seed=1)), load(Task("digits", (6,), 400, seed=2))
    assert not torch.equal(first.test.inputs, second.test.inputs)


def test_only_training_and_validation_labels_are_flipped(draws_around_mnist1d):
    clean, noisy = load(Task("mnist1d", (6,), 4000)), load(Task("mnist1d", (6,), 4000, 0.2))
    assert torch.equal(clean.test.targets, noisy.test.targets)
    for before, after in zip(clean, noisy, strict=True):
        assert torch.equal(before.inputs, after.inputs)
    for before, after in list(zip(clean, noisy, strict=True))[:2]:
        flipped = (before.targets != after.targets).double()
        assert abs(flipped.mean() - 0.2) < 4 * (0.16 / len(flipped)) ** 0.5
        assert after.targets.unique().tolist() == list(range(10))
        shifts = ((after.targets - before.targets) % 10)[flipped.bool()].bincount(minlength=10)[1:].double()
        each = shifts.sum() / 9  # every wrong class is as likely as any other
        assert (((shifts - each) ** 2 / each).sum() - 8) / 4 < 4  # χ² with 8 degrees of freedom, as a z-score


def test_labels_flipped_for_training_are_not_those_flipped_for_validation():
    clean, noisy = (load(Task("digits", (6,), 297, noise)) for noise in (0.0, 0.5))
    flips = [a.targets != b.targets for a, b in list(zip(clean, noisy, strict=True))[:2]]
    assert not torch.equal(*flips)


def test_a_task_is_told_from_another_by_its_name():
    assert str(Task("digits", (6, 4), 500, 0.2, 3)) == "digits 500, 20% flipped, 6-4, seed 3"
    assert str(Task("digits", (6,), 500)) == "digits 500, 6, seed 0"


@pytest.fixture
def entered(monkeypatch):
    """A dataset of one's own, of three classes, entered from outside; what to change in it."""
    draws = generator("own dataset")
    made = {
        "inputs": torch.randn(90, 5, generator=draws),
        "targets": torch.arange(90) % 3,
        "test": 30,
        "validation": 20,
    }
    monkeypatch.setitem(tasks.DATASETS, "own", lambda: tasks.Dataset(**made))
    return made


def test_a_dataset_enters_from_outside(entered):
    data = load(Task("own", (4,), 40))
    assert [len(part.targets) for part in data] == [40, 20, 30]
    rows = {tuple(row) for row in load(Task("own", (4,), 39)).test.inputs.tolist()}
    assert len(rows) == 30
    noisy = load(Task("own", (4,), 40, 0.9))
    assert (noisy.training.targets != data.training.targets).float().mean() > 0.7
    assert set(noisy.training.targets.tolist()) == {0, 1, 2}
    assert torch.equal(noisy.test.targets, data.test.targets)


def test_data_of_one_name_that_differ_are_told_apart(entered):
    first = tasks.fingerprint(load(Task("own", (4,), 40)))
    assert tasks.fingerprint(load(Task("own", (4,), 40))) == first
    entered["targets"] = (entered["targets"] + 1) % 3
    second = tasks.fingerprint(load(Task("own", (4,), 40)))
    assert len({first, second, tasks.fingerprint(load(Task("own", (4,), 39)))}) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"targets": torch.zeros(89, dtype=torch.long)}, r"inputs \(90, 5\) and targets \(89,\)"),
        ({"targets": torch.zeros(90)}, r"int64 classes 0, 1, …; got float32"),
        ({"targets": torch.arange(90) - 1}, r"from -1 to 88"),
        ({"targets": torch.zeros(90, dtype=torch.long)}, r"from 0 to 0"),
        ({"inputs": torch.full((90, 5), torch.nan)}, r"inputs of 'own' must be finite; got 450"),
        ({"test": 0}, r"got test=0, validation=20"),
        ({"validation": -1}, r"got test=30, validation=-1"),
        ({"test": 60, "validation": 30}, r"got train_size=40"),
    ],
)
def test_a_dataset_that_is_none_is_refused(entered, wrong, message):
    entered |= wrong
    with pytest.raises(ValueError, match=message):
        load(Task("own", (4,), 40))


def test_bad_tasks_are_refused_by_value():
    with pytest.raises(ValueError, match=r"'cifar'; known: digits, mnist1d"):
        Task("cifar", (6,), 100)
    with pytest.raises(ValueError, match=r"a width must be at least 1; got 0"):
        Task("digits", (6, 0), 100)
    with pytest.raises(TypeError, match=r"2\.5"):
        Task("digits", (2.5,), 100)
    with pytest.raises(TypeError, match=r"\[6\]"):
        Task("digits", [6], 100)
    with pytest.raises(ValueError, match=r"1 to 500 training examples; got train_size=501"):
        load(Task("digits", (6,), 501))
    with pytest.raises(ValueError, match=r"got train_size=0"):
        load(Task("digits", (6,), 0))
    for share in (1.5, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"got {share}"):
            Task("digits", (6,), 100, share)
