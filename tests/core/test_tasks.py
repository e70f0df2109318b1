import hashlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mmstudy.core import datasets, networks, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task, load

TASKS = {
    "digits": Task("digits", (6,), 500),
    "mnist1d": Task("mnist1d", (6,), 1000, seed=3),
    "permuted_mnist1d": Task("permuted_mnist1d", (6,), 1000),
    "spiral": Task("spiral", (8, 8), 4000),
    "teacher": Task("teacher", (8, 8), 4000, seed=1),
}
CLASSES = {"spiral": 5}  # ten in the others
TEXT = Task("text", (8, 2, 2), 2000, family="decoder")


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
        assert set(part.targets.tolist()) == set(range(CLASSES.get(task.dataset, 10)))


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
    assert str(Task("digits", (8, 16), 500, family="ResNet")) == "digits 500, ResNet 8-16, seed 0"
    assert str(TEXT) == "text 2000, decoder 8-2-2, seed 0"


@pytest.mark.parametrize(
    ("task", "known"),
    [
        (Task("digits", (6,), 400, 0.2, 3), "91c90ca780b6d701"),
        (Task("mnist1d", (12, 12), 1000, 0.4, 1), "02dc4f95d0254e0f"),
    ],
)
def test_labels_are_those_of_the_committed_results(task, known, draws_around_mnist1d):
    labels = b"".join(part.targets.numpy().tobytes() for part in load(task))
    assert hashlib.sha256(labels).hexdigest()[:16] == known  # their order tells the split, and some the noise


def test_a_permutation_changes_the_order_of_the_positions_only(draws_around_mnist1d):
    plain, permuted = datasets._mnist1d(), datasets._permuted_mnist1d()
    assert torch.equal(plain.targets, permuted.targets)
    assert torch.equal(plain.inputs.sort(dim=1).values, permuted.inputs.sort(dim=1).values)
    whence = [int((plain.inputs == column.unsqueeze(1)).all(0).nonzero()) for column in permuted.inputs.T]
    assert sorted(whence) == list(range(40)) != whence


def test_the_nearest_arm_of_the_spiral_is_as_often_right_as_its_noise_allows():
    inputs, targets, *_ = datasets._spiral()
    radius, angle = inputs.norm(dim=1), torch.atan2(inputs[:, 1], inputs[:, 0])
    off = (angle / (2 * math.pi) - datasets.TURNS * radius) * datasets.ARMS  # in arms, from the one of class 0
    right = (off.round().long() % datasets.ARMS == targets).double().mean().item()
    best = datasets.spiral_bayes_accuracy()
    assert abs(right - best) < 4 * (best * (1 - best) / len(targets)) ** 0.5
    assert targets.bincount().tolist() == [5200] * 5


def test_the_likeliest_class_of_the_teacher_is_right_as_often_as_said():
    inputs, targets, *_ = datasets._teacher()
    p = datasets.teacher_probabilities(inputs)
    best = datasets.TEACHER_BAYES
    assert p.amax(1).mean().item() == pytest.approx(best, abs=1e-9)
    right = (p.argmax(1) == targets).double().mean().item()
    assert abs(right - best) < 4 * (best * (1 - best) / len(targets)) ** 0.5
    expected = p.sum(0)  # labels are drawn, not the likeliest ones
    spread = (p * (1 - p)).sum(0).sqrt()
    assert ((targets.bincount() - expected) / spread).abs().max() < 4


def test_a_text_gives_each_character_the_next_one():
    data = load(TEXT)
    assert [tuple(part.inputs.shape) for part in data] == [(2000, 32), (500, 32), (3000, 32)]
    assert data.vocabulary == len(datasets.ALPHABET) + 1 <= 64
    text = datasets.TEXT.read_text(encoding="utf-8").lower()
    kept = "".join(character if character in datasets.ALPHABET else "�" for character in text)
    windows = []
    for part in data:
        assert part.inputs.dtype == part.targets.dtype == torch.int64
        assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
        windows += torch.cat([part.inputs, part.targets[:, -1:]], dim=1).tolist()
    assert len(set(map(tuple, windows))) == len(windows)  # no window is in two parts, nor twice in one
    for window in windows[::500]:
        assert "".join((datasets.ALPHABET + "�")[token] for token in window) in kept
    again = load(TEXT)
    assert tasks.fingerprint(again) == tasks.fingerprint(data)
    assert tasks.fingerprint(load(replace(TEXT, seed=1))) != tasks.fingerprint(data)


def test_single_tokens_of_a_text_are_flipped():
    clean, noisy = load(TEXT), load(replace(TEXT, label_noise=0.2))
    assert torch.equal(clean.test.targets, noisy.test.targets)
    for before, after in list(zip(clean, noisy, strict=True))[:2]:
        assert torch.equal(before.inputs, after.inputs)
        flipped = (before.targets != after.targets).double()
        assert abs(flipped.mean() - 0.2) < 4 * (0.16 / flipped.numel()) ** 0.5
        each = flipped.mean(1) * 32  # of single tokens, not of whole sentences: binomial in every one
        assert abs(each.var() / (32 * 0.16) - 1) < 4 * (2 / len(each)) ** 0.5
        assert after.targets.min() >= 0 and after.targets.max() < clean.vocabulary


def test_a_text_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "TEXT", tmp_path / "none.py")
    with pytest.raises(FileNotFoundError, match=r"'text' is read from none\.py"):
        datasets._text.__wrapped__()


BASES = [
    (Task("spiral", (8, 8), 100), networks.MLP),
    (Task("digits", (8, 16), 300, family="ResNet"), networks.ResNet),
    (Task("mnist1d", (4, 8), 100, family="ResNet"), networks.ResNet),
    (Task("digits", (12, 3, 2), 300, family="ViT"), networks.ViT),
    (Task("permuted_mnist1d", (12, 3, 1), 100, family="ViT"), networks.ViT),
    (TEXT, networks.Decoder),
]


@pytest.mark.parametrize(("task", "kind"), BASES, ids=[str(task) for task, _ in BASES])
def test_a_base_network_is_of_its_family_and_shape(task, kind):
    data = load(task)
    network, again = tasks.base(task, data), tasks.base(task, data)
    assert type(network) is kind
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    inputs, targets = data.test
    classes = data.vocabulary or int(targets.max()) + 1
    assert network(inputs[:3]).shape == (*targets[:3].shape, classes)
    if kind is networks.ResNet:
        assert [stage[0].conv1.out_channels for stage in network.stages] == list(task.widths)
        assert all(len(stage) == 1 for stage in network.stages)
        assert not list(network.buffers())  # group normalization keeps no statistics
    if task.family in ("ViT", "decoder"):
        width, heads, blocks = task.widths
        assert (network.norm.weight.numel(), network.blocks[0].attention.heads, len(network.blocks)) == (
            width, heads, blocks
        )  # fmt: skip
    if kind is networks.ViT:
        assert network.embedding.kernel_size == {"digits": (2, 2), "permuted_mnist1d": (1, 5)}[task.dataset]


@pytest.mark.parametrize("widths", [(4, 8, 3), (16, 32, 64, 3)])
def test_a_deep_residual_network_has_so_many_blocks_in_each_stage(widths):
    task = Task("digits", widths, 300, family="deep ResNet")
    network = tasks.base(task, load(task))
    *stages, blocks = widths
    assert [len(stage) for stage in network.stages] == [blocks] * len(stages)
    assert [stage[0].conv1.out_channels for stage in network.stages] == stages
    assert not list(network.buffers())
    if widths == (16, 32, 64, 3):  # He et al. 2016, table 6: 0.27 million; here one colour, and projections
        assert 0.27e6 < networks.count_parameters(network) < 0.28e6


def test_a_residual_network_is_the_one_that_it_was():
    task = Task("digits", (8, 16), 300, family="ResNet")
    words = generator("initialize", "digits 300, ResNet 8-16, seed 0")
    expected = networks.initialize(networks.ResNet(1, (8, 16), [1, 1], 10, "group", (8, 8)), words)
    found = tasks.base(task, load(task))
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_large_images_are_cut_into_larger_patches(monkeypatch):
    draws = generator("large images")
    images = torch.randint(256, (60, 3 * 32 * 32), dtype=torch.uint8, generator=draws)
    made = tasks.Dataset(images, torch.arange(60) % 3, 20, 10, (3, 32, 32))
    monkeypatch.setitem(tasks.DATASETS, "own", lambda: made)
    task = Task("own", (6, 3, 1), 30, family="ViT")
    network = tasks.base(task, load(task))
    assert network.embedding.kernel_size == (4, 4)
    assert network.position.shape == (64, 6)


def test_a_perceptron_is_the_one_that_it_was():
    task = Task("digits", (6, 4), 300)
    expected = networks.initialize(networks.MLP(64, (6, 4), 10), generator("initialize", "digits 300, 6-4, seed 0"))
    found = tasks.base(task, load(task))
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize(
    ("family", "dataset", "widths", "message"),
    [
        ("MLP", "text", (8, 8), r"inputs are tokens: family='decoder'"),
        ("decoder", "spiral", (8, 2, 1), r"inputs are numbers"),
        ("ResNet", "spiral", (4,), r"does not say their shape"),
        ("ViT", "teacher", (8, 2, 1), r"does not say their shape"),
    ],
)
def test_a_family_that_does_not_fit_the_data_is_refused(family, dataset, widths, message):
    task = Task(dataset, widths, 100, family=family)
    with pytest.raises(ValueError, match=message):
        tasks.base(task, load(task))


@pytest.mark.parametrize(
    ("family", "widths", "message"),
    [
        ("CNN", (6,), r"unknown family 'CNN'.*MLP, ResNet, ViT, decoder"),
        ("ResNet", (), r"at least one stage"),
        ("ResNet", (8, 6), r"multiples of 4; got \(8, 6\)"),
        ("ViT", (12, 3), r"\(width of the stream, heads, blocks\): there must be three numbers; got \(12, 3\)"),
        ("decoder", (12, 5, 1), r"heads must divide the width; got \(12, 5, 1\)"),
        ("deep ResNet", (3,), r"then the blocks that each has: at least one stage is needed; got \(3,\)"),
        ("deep ResNet", (6, 3), r"multiples of 4; got \(6, 3\)"),
    ],
)
def test_widths_that_are_no_shape_of_the_family_are_refused(family, widths, message):
    with pytest.raises(ValueError, match=message):
        Task("digits", widths, 100, family=family)


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


def test_data_go_to_a_device_as_they_are(entered):
    entered |= {"image": (1, 1, 5), "augmented": True}
    here, there = load(Task("own", (4,), 40)), load(Task("own", (4,), 40), "meta")
    for part, moved in zip(here, there, strict=True):
        assert moved.inputs.device.type == moved.targets.device.type == "meta"
        assert (moved.inputs.shape, moved.targets.shape) == (part.inputs.shape, part.targets.shape)
    assert (there.image, there.vocabulary, there.augmented) == (here.image, here.vocabulary, here.augmented)
    assert there.augmented


def test_a_network_has_an_output_for_each_class_though_training_lacks_one(entered):
    task = Task("own", (4,), 40)
    order = torch.randperm(90, generator=generator("split", "own", 0))
    entered["targets"] = torch.arange(90) % 2
    entered["targets"][order[:30]] = 2  # in the test part alone
    data = load(task)
    assert data.training.targets.max() == 1
    assert tasks.base(task, data).head.out_features == 3


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
        ({"image": (1, 2, 3)}, r"image of 'own' has \(1, 2, 3\) numbers, and a row of inputs \(5,\)"),
        ({"augmented": True}, r"'own' is augmented.*must say the shape of its images"),
        ({"inputs": torch.zeros(90, 5, dtype=torch.uint8)}, r"pixels of an image \(uint8\).*got torch\.uint8"),
        ({"inputs": torch.zeros(90, 5, dtype=torch.long)}, r"say a vocabulary; got torch\.int64"),
        ({"vocabulary": 3}, r"inputs \(n, T\) and targets \(n, T\), tokens; got .* targets \(90,\)"),
        ({"vocabulary": 3, "targets": torch.ones(90, 5).long()}, r"int64 tokens below 3; got float32"),
        (
            {"vocabulary": 3, "inputs": torch.full((90, 5), 3), "targets": torch.ones(90, 5).long()},
            r"inputs of 'own' must be int64 tokens below 3; got .* from 3 to 3",
        ),
    ],
)
def test_a_dataset_that_is_none_is_refused(entered, wrong, message):
    entered |= wrong
    with pytest.raises(ValueError, match=message):
        load(Task("own", (4,), 40))


def test_bad_tasks_are_refused_by_value():
    with pytest.raises(ValueError, match=r"'cifar'; known: digits, mnist1d"):
        Task("cifar", (6,), 100)
    with pytest.raises(ValueError, match=r"a width must be at least 1 and at most 1000000; got 0"):
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
