"""Calls that are made a thousand times leave nothing behind: the memory of a process of their own stays flat."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json, sys
from pathlib import Path

import psutil
import torch

from mmstudy.batched import ensemble
from mmstudy.batched.objective import of_networks
from mmstudy.core.networks import MLP
from mmstudy.expansion import checkpoints
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.tracing.couplings import couplings

torch.set_num_threads(1)
path = Path(sys.argv[1]) / "network.safetensors"
inputs, targets = torch.randn(8, 5), torch.arange(8) % 3
stream = torch.Generator().manual_seed(0)


def measure(name):
    network = MLP(5, (4,), 3)
    objective = of_networks(stacked := ensemble.stack([network]), (inputs, targets), minibatch=4)
    budget = Budget(samples=2, steps=2) if name == "children" else Budget(samples=2)
    ESTIMATORS[name].estimate(objective, ensemble.vectors(stacked), 2.0, budget, stream)


def store(seed):
    network = MLP(5, (4,), 3)
    candidate = Candidate("net2net", ("hidden.0",), (6,), seed)
    checkpoints.load(checkpoints.save(path, candidate, candidate.expand(network, inputs)), network, inputs)


WORK = {
    "couplings": (lambda i: couplings(MLP(5, (4,), 3), inputs), 130),
    "expand": (lambda i: Candidate("zero_outgoing", ("hidden.0",), (6,), i).expand(MLP(5, (4,), 3), inputs), 60),
    "checkpoints": (store, 40),
    "children": (lambda i: measure("children"), 130),
    "rays": (lambda i: measure("rays"), 140),
}
grown = {}
for name, (work, count) in WORK.items():
    found = []
    for part in range(2):  # the first one warms up
        for i in range(count):
            work(count * part + i)
        gc.collect()
        found.append((psutil.Process().memory_info().rss / 2**20, len(gc.get_objects())))
    (before, objects), (after, more) = found
    grown[name] = {"calls": count, "MB": after - before, "objects": more - objects}
print(json.dumps(grown))
"""


def test_a_thousand_calls_leave_nothing_behind(tmp_path):
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert list(found) == ["couplings", "expand", "checkpoints", "children", "rays"]
    for name, grown in found.items():
        assert grown["MB"] < 4, (name, grown)
        assert grown["objects"] < 5 * grown["calls"], (name, grown)  # what torch.fx keeps of one graph
