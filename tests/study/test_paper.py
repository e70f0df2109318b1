"""The profile `paper` at a reduced size: its tasks, on images that a stand-in of OpenML's server serves."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from openml_server import dataset, serving

from mmstudy.core import datasets, openml, tasks
from mmstudy.core.seeds import generator
from mmstudy.expansion import pools
from mmstudy.study import design, draws, statistics, sweep, trials
from mmstudy.study.protocol import Protocol

PROFILE = yaml.safe_load((Path(__file__).parents[2] / "notebooks/profiles/paper.yml").read_text())
TASKS = list(design.tasks_of({name: PROFILE[f"experiment_{name}"] for name in design.PARTS}))
SIZES = {"deep ResNet": (4, 4, 2), "ViT": (6, 3, 1)}
SHORT = {
    "steps": 20, "bins": 5, "batch": 8, "seeds": 2, "validations": 2, "test_examples": 20, "child_steps": 2,
    "children": 3, "probe_examples": 10, "random_rays": 1, "traces": 1, "doublings": 2, "short": 0.5,
}  # fmt: skip


def _short(task: tasks.Task) -> Protocol:
    return design.protocol(task, **PROFILE["experiment_options"] | SHORT, progress=(0.0, 0.5, 1.0))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """All four datasets in small: 120 images each, in ten classes or all hundred."""
    files, small = {}, {}
    for name, source in openml.SOURCES.items():
        stream = np.random.default_rng(source.number)
        pixels = stream.integers(0, 256, (120, int(np.prod(source.image))), dtype=np.uint8)
        small[name] = source._replace(examples=120)
        files |= dataset(source.number, source.title, pixels, [str(i % source.classes) for i in range(120)])
    monkeypatch.setattr(openml, "SOURCES", small)
    monkeypatch.setenv("MMSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    datasets._images.cache_clear()
    with serving(files) as server:
        monkeypatch.setenv("MMSTUDY_OPENML", server.url)
        yield server
    datasets._images.cache_clear()


def test_its_tasks_are_of_four_datasets_and_of_both_families():
    assert {task.dataset for task in TASKS} == set(openml.SOURCES)
    assert {task.family for task in TASKS} == set(SIZES)
    for task in TASKS:
        most = openml.SOURCES[task.dataset].examples
        assert task.train_size <= most - most // 6 - most // 12


def test_its_networks_are_built_for_the_images(served):
    for task in TASKS:
        data = tasks.load(replace(task, train_size=90))
        network = tasks.base(replace(task, train_size=90), data)
        classes = openml.SOURCES[task.dataset].classes
        assert network(data.test.inputs[:2]).shape[0] == 2
        assert network.head.out_features <= classes
        if task.family == "ViT":
            assert network.embedding.kernel_size == (4, 4)
        else:
            *_, blocks = task.widths
            assert [len(stage) for stage in network.stages] == [blocks] * 3


def test_images_that_may_be_are_augmented_in_training_and_in_nothing_else(served):
    seen = {}
    for name in openml.SOURCES:
        task = tasks.Task(name, SIZES["deep ResNet"], 90, family="deep ResNet")
        data, protocol = tasks.load(task), _short(task)
        order = draws.minibatch_order(task, data, protocol, ["base"], 20)
        seen[name] = bool((order >= 90).any())
        plain = draws.minibatch_order(task, data, replace(protocol, augment=False), ["base"], 20)
        assert torch.equal(order % 90, plain)
        assert torch.equal(draws.probe_split(task, data, protocol).inputs, data.training.inputs[
            torch.randperm(90, generator=generator("probe examples", task))[:10]
        ])  # fmt: skip
    assert seen == {"mnist": False, "fashion_mnist": True, "cifar10": True, "cifar100": True}
    assert not Protocol().augment


def test_it_runs_from_the_download_to_the_gains(served, tmp_path):
    chosen: dict[tasks.Task, dict] = {}
    for task in (TASKS[0], TASKS[-2]):  # CIFAR-10 by a residual network, Fashion-MNIST by a transformer
        small = replace(task, widths=SIZES[task.family], train_size=80)
        data = tasks.load(small)
        network, inputs = tasks.base(small, data), draws.shown(data).inputs
        where = design.locations(network, inputs)[1:2]
        shape = {"factors": (2,), "extra_layers": (), "matched": (), "locations": where}
        chosen[small] = pools.candidate_pool(network, inputs, wider=("net2net", "random"), **shape)
    protocols, device = {task: _short(task) for task in chosen}, design.device(PROFILE["experiment_device"])
    with ThreadPoolExecutor(1) as executor:
        found = sweep.sweep(chosen, protocols, tmp_path / "cache", device=device, executor=executor)
    assert [task.dataset for task in chosen] == ["cifar10", "fashion_mnist"]
    assert all(protocol.augment for protocol in protocols.values())
    assert found["accuracy"].notnull().all()
    assert statistics.gains(statistics.expansions(found))["gain"].sizes["candidate"] == 4
    first, _ = chosen
    data = tasks.load(first, device)
    bases = [trials.train_base(first, data, replace(protocols[first], augment=on)) for on in (True, False)]
    rows = found.isel(candidate=(found["task"] == str(first)).values)
    for value, same in zip((base["base_loss"] for base in bases), (True, False), strict=True):
        assert bool((rows["base_loss"] == value).all()) == same


def test_networks_are_grown_on_few_large_images_and_on_all_small_ones():
    def data(examples, features):
        split = tasks.Split(torch.zeros(examples, features), torch.zeros(examples, dtype=torch.long))
        return datasets.Data(split, split, split)

    assert len(draws.shown(data(40_000, 3072)).targets) == 256
    assert len(draws.shown(data(4_000, 784)).inputs) == 334
    for examples, features in ((8_000, 32), (4_000, 40), (500, 64), (4_000, 2)):  # as in full.yml
        assert len(draws.shown(data(examples, features)).targets) == examples
