"""What a ranking depends on has another hash when it is another, and the same one whenever it is the same."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import batch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from mmstudy.ranking import fingerprints

SMOOTHING, RECORDS = 0.1, []


def smoothed(amount: float):
    def loss(model, b, amount=amount):
        return F.cross_entropy(model(b[0]), b[1], label_smoothing=amount)

    return loss


def enclosed(value):
    return lambda model, b: F.cross_entropy(model(b[0]), b[1], value)


def plain(model, b):
    return F.cross_entropy(model(b[0]), b[1])


def margin(model, b):
    return F.multi_margin_loss(model(b[0]), b[1])


def of_global(model, b):
    RECORDS.append(1)
    return F.cross_entropy(model(b[0]), b[1], label_smoothing=SMOOTHING)


class Loss:
    def __init__(self, weight: float):
        self.weight, self.calls = weight, 0

    def __call__(self, model, b):
        self.calls += 1
        return self.weight * plain(model, b)


class Scaled(nn.Module):
    """With a plain attribute, a tensor that is no buffer, and a buffer that is not saved."""

    def __init__(self, factor=2.0, offset=0.0, noise=0.5, trained=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop = nn.Linear(3, 3).requires_grad_(trained), nn.Dropout(noise)
        self.factor, self.tensor, self.kept = factor, torch.ones(2), None
        self.register_buffer("offset", torch.full((3,), offset), persistent=False)

    def forward(self, x):
        self.kept = self.layer(x)
        return self.factor * self.drop(self.kept) + self.offset


FUNCTIONS = {
    "default argument": (smoothed(0.0), smoothed(0.5)),
    "closure": (enclosed(torch.ones(4)), enclosed(torch.full((4,), 2.0))),
    "list in a closure": (enclosed([1.0]), enclosed([2.0])),
    "function in a closure": (enclosed(plain), enclosed(margin)),
    "settings in a closure": (enclosed(SimpleNamespace(a=1)), enclosed(SimpleNamespace(a=2))),
    "function in a partial": (functools.partial(plain), functools.partial(margin)),
    "argument of a partial": (functools.partial(plain, weight=1), functools.partial(plain, weight=2)),
    "attribute of an object that is called": (Loss(1.0), Loss(2.0)),
}
NETWORKS = {
    "attribute": {"factor": 3.0},
    "buffer that is not saved": {"offset": 1.0},
    "probability of dropout": {"noise": 0.1},
    "frozen": {"trained": False},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_differ_by_all_that_is_fixed_in_them(name):
    one, other = FUNCTIONS[name]
    assert fingerprints.of(one) != fingerprints.of(other)
    assert fingerprints.of(one) == fingerprints.of(one)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_differ_by_more_than_what_is_saved(name):
    assert fingerprints.of(Scaled()) == fingerprints.of(Scaled())
    assert fingerprints.of(Scaled()) != fingerprints.of(Scaled(**NETWORKS[name]))


def test_a_global_that_is_read_counts(monkeypatch):
    before = fingerprints.of(of_global)
    monkeypatch.setitem(of_global.__globals__, "SMOOTHING", 0.2)
    assert fingerprints.of(of_global) != before


def test_what_a_call_leaves_behind_does_not_count():
    network, loss, data = Scaled(), Loss(1.0), (torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    things = network, loss, of_global
    before = [fingerprints.of(each) for each in things]
    loss(network, data)
    of_global(network.eval(), data)
    assert [fingerprints.of(each) for each in things] == before


def test_another_process_finds_the_same():
    code = """
import sys
sys.path[:0] = {paths!r}
import test_fingerprints as t
print(t.fingerprints.of(t.FUNCTIONS, t.Scaled(), {{"some", "names"}}, lambda x: x in {{"some", "names"}}))
"""
    here = Path(__file__).parent
    code = code.format(paths=[str(here.parent), str(here)])
    found = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
                       check=True, capture_output=True, text=True).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1


class Augmented(Dataset):
    """Images that are turned anew at each reading."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return self.inputs[i] + torch.randn(()), self.targets[i]


def last_changed(data):
    inputs, targets = data
    return inputs, torch.cat([targets[:-1], 3 - targets[-1:]])


@pytest.mark.parametrize("read", [256, 1])
@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(TensorDataset(*data), 8, shuffle=True),
        lambda data: DataLoader(Augmented(*data), 8, shuffle=True),
        lambda data: DataLoader(Subset(Augmented(data[0], data[1].tolist()), range(40)), 8),
        lambda data: [tuple(part[i : i + 8] for part in data) for i in range(0, 40, 8)],
    ],
    ids=["tensors", "augmented", "part", "list"],
)
def test_one_example_of_a_loader_is_noticed_wherever_it_is(loader, read, monkeypatch):
    monkeypatch.setattr(fingerprints, "READ", read)
    data = batch(40)
    before = fingerprints.of_loader(loader(data), 0)
    torch.rand(3)
    assert fingerprints.of_loader(loader(data), 0) == before
    assert fingerprints.of_loader(loader(last_changed(data)), 0) != before
