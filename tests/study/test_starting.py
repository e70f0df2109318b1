"""What is computed of candidates right after expansion, network by network."""

import numpy as np
import pytest
import torch
from cases import TASK, TINY
from torch import nn
from torch.nn import functional as F

from mmstudy.core import tasks
from mmstudy.expansion.candidate import Candidate
from mmstudy.study import predictors, starting, trials
from mmstudy.study.draws import probe_split

DATA = tasks.load(TASK)
PLACE = "hidden.0 ×2"
NAMES = ("net2net", "zero_outgoing", "random", "firefly")
GROUP = [(f"{name} {PLACE}", Candidate(name, ("hidden.0",), (8,))) for name in NAMES]


@pytest.fixture(scope="module")
def base():
    return trials.train_base(TASK, DATA, TINY)


def expanded(base, candidate):
    network = tasks.base(TASK, DATA)
    nn.utils.vector_to_parameters(torch.tensor(base["base"].values), network.parameters())
    return candidate.expand(network, DATA.training)


def test_every_predictor_is_that_of_the_expanded_network_beside_what_the_expansion_cost(base):
    found, split = starting.start(trials.Piece(TASK, DATA, base, GROUP, TINY)), probe_split(TASK, DATA, TINY)
    assert set(found) == predictors.PREDICTORS.keys() | {"expansion_cost"}
    for label, candidate in GROUP:
        row, network = found.sel(candidate=label), expanded(base, candidate)
        loss = F.cross_entropy(network(split.inputs), split.targets)
        assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(row["parameters"]) == sum(p.numel() for p in network.parameters())
        assert float(row["expansion_cost"]) == candidate.cost(200)
    costs = found["expansion_cost"].values
    assert costs[-1] > 0 and not costs[:-1].any(), "firefly alone learns from data"


def test_candidates_whose_normalizations_differ_come_back_in_their_order():
    task = tasks.Task("digits", (4, 2, 1), 60, family="ViT")
    data = tasks.load(task)
    base = trials.train_base(task, data, TINY)
    group = [
        (f"{name} embedding ×2", Candidate(name, ("embedding",), (8,)))
        for name in ("net2net", "zero_incoming", "random")
    ]
    assert trials.alike(trials.Piece(task, data, base, group, TINY).grown) == [[0, 2], [1]]
    found = starting.start(trials.Piece(task, data, base, group, TINY))
    assert found["candidate"].values.tolist() == [label for label, _ in group]
    for one in group:
        alone = starting.start(trials.Piece(task, data, base, [one], TINY)).isel(candidate=0)
        for name in ("loss", "gradient_norm", "tiny"):
            np.testing.assert_allclose(found[name].sel(candidate=one[0]), alone[name], rtol=1e-4, err_msg=name)
