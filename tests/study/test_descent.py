"""Perceptrons of many widths in one batch, against each of them alone."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from cases import TASK, TINY, mlp

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring, training
from mmstudy.core import tasks
from mmstudy.core.networks import MLP, initialize
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.study import descent
from mmstudy.study.draws import minibatch_order

DATA = tasks.load(TASK)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_padded_network_is_the_same_function_and_comes_back(depth):
    small = mlp((3,) * depth)
    wide, inputs = descent.padded(small, 8), torch.randn(20, 7)
    torch.testing.assert_close(wide(inputs), small(inputs))
    assert [layer.out_features for layer in wide.hidden] == [8] * depth
    again = descent.unpadded(wide, 3)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small.parameters(), strict=True))


def test_units_without_weights_stay_so_and_the_others_train_as_if_alone():
    small = initialize(MLP(64, (3, 3), 10), generator("small"))
    order = minibatch_order(TASK, DATA, TINY, ["x"], 60)
    rates = training.cosine(0.1, 60)

    def trained(network):
        ((_, ended, _),) = training.train(en.stack([network]), DATA.training, order, rates)
        return ended.members()[0]

    wide, alone = trained(descent.padded(small, 9)), trained(copy.deepcopy(small))
    back = descent.unpadded(wide, 3)  # raises where a unit beyond has a weight
    for a, b in zip(back.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_unit_with_weights_is_not_thrown_away():
    wide = descent.padded(mlp((3, 3)), 5)
    with torch.no_grad():
        wide.hidden[1].bias[4] = 0.1
    with pytest.raises(ValueError, match="no padded one of width 3: a unit beyond has weights"):
        descent.unpadded(wide, 3)


@pytest.fixture(scope="module")
def found():
    return descent.descent(TASK, TINY, (2, 4, 8), 2, ("random", "net2net"), 2)


def test_each_width_is_trained_as_if_alone(found):
    for width in (2, 8):
        network = initialize(MLP(64, (width, width), 10), generator("descent", TASK, width, 1))
        order = minibatch_order(TASK, DATA, TINY, ["descent 1"], 40)
        rates = training.cosine(TINY.step_size, 40)
        ((_, ended, _),) = training.train(en.stack([network]), DATA.training, order, rates, TINY.momentum)
        error = 100 * (1 - scoring.evaluate(ended, DATA.test)["accuracy"].item())
        assert float(found["test_error"].sel(width=width, seed=1)) == pytest.approx(error, abs=0.25)
    assert found["parameters"].values.tolist() == [64 * w + w + w * w + w + 10 * w + 10 for w in (2, 4, 8)]


def test_a_gain_is_the_expansion_against_the_network_trained_on(found):
    network = initialize(MLP(64, (4, 4), 10), generator("descent", TASK, 4, 0))

    def trained(start, name):
        order = minibatch_order(TASK, DATA, TINY, [f"{name} 0"], 40)
        rates = training.cosine(TINY.step_size, 40)
        ((_, ended, _),) = training.train(en.stack([start]), DATA.training, order, rates, TINY.momentum)
        return ended.members()[0], 100 * scoring.evaluate(ended, DATA.test)["accuracy"].item()

    base, _ = trained(network, "descent")
    grown = Candidate("net2net", ("hidden.0", "hidden.1"), (8, 8), 0).expand(base, DATA.training)
    expected = trained(grown, "descent, grown")[1] - trained(base, "descent, grown")[1]
    assert float(found["gain"].sel(operator="net2net", width=4, seed=0)) == pytest.approx(expected, abs=0.5)


def test_what_would_be_wider_than_all_has_no_gain(found):
    assert found["gain"].sel(width=8).isnull().all()
    assert found["gain"].sel(width=[2, 4]).notnull().all()


def test_the_threshold_is_where_the_error_stays_away():
    errors = np.array([[30.0, 30.0], [0.5, 0.5], [3.0, 3.0], [0.4, 1.4], [0.0, 0.0]])
    table = xr.DataArray(errors, {"width": [2, 4, 8, 16, 32], "seed": [0, 1]})
    assert descent.threshold(table) == 16
    assert np.isnan(descent.threshold(table + 5))


def test_only_perceptrons_descend():
    with pytest.raises(ValueError, match="is a ResNet"):
        descent.descent(Task("digits", (4, 4), 200, family="ResNet"), TINY, (2, 4), 2, ("random",), 2)
