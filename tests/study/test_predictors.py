from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import TASK, TINY, batch, mlp
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.core import results, tasks
from mmstudy.core.tasks import load
from mmstudy.expansion import pools
from mmstudy.study import entries, predictions, predictors, rivals, statistics, sweep


def test_gradient_norm_is_that_of_autograd():
    inputs, targets = batch()
    network = mlp()
    nn.functional.cross_entropy(network(inputs), targets).backward()
    norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm()
    assert predictors.gradient_norm(en.stack([network]), (inputs, targets)).item() == pytest.approx(
        float(norm), rel=1e-5
    )


def test_gradient_norms_of_many_networks_are_those_of_each():
    inputs, targets = batch()
    nets = [mlp(seed=i) for i in range(3)]
    together = predictors.gradient_norm(en.stack(nets), (inputs, targets))
    each = torch.cat([predictors.gradient_norm(en.stack([net]), (inputs, targets)) for net in nets])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=0)
    assert len(set(together.tolist())) == 3


def test_the_gradient_vanishes_at_a_minimum_and_not_beside_it():
    network, (inputs, _) = mlp(), batch(1)
    network.head.weight.data.zero_()
    network.head.bias.data.copy_(torch.tensor([50.0, 0, 0, 0]))  # sure of class 0
    at_minimum, beside = (
        predictors.gradient_norm(en.stack([network]), (inputs, torch.tensor([label]))).item() for label in (0, 1)
    )
    assert at_minimum < 1e-6
    assert beside > 1


def test_every_predictor_is_described_and_costed():
    words = sweep.variables()
    for name, each in predictors.PREDICTORS.items():
        assert words[name] == (each.unit, each.description)
        assert each.passes >= 0


def test_the_loss_points_down_and_the_rest_of_ours_up():
    for name, each in predictors.PREDICTORS.items():
        if not hasattr(rivals, name):
            assert each.sign == (-1 if name == "loss" else 1), name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sign": 0}, "the sign 1 or -1; got sign=0"),
        ({"family": "sise"}, "one of static, training loss, validation, size; got family='sise'"),
        ({"passes": -1}, "got passes=-1, examples=inf"),
        ({"examples": 0}, "got passes=0, examples=0"),
    ],
)
def test_a_wrong_entry_is_refused_by_value(wrong, said):
    with pytest.raises(ValueError, match=said):
        predictors.Predictor(**{"sign": 1, "description": "a number", "compute": en.losses} | wrong)


def spread_of_outputs(ensemble, batch):
    """A predictor of a user's own: the standard deviation of a network's outputs."""
    return en.outputs(ensemble, batch[0]).flatten(1).std(1)


OWN = predictors.Predictor(
    -1, "spread of the outputs", "logit", predictors.STATIC, "nobody", compute=spread_of_outputs, passes=1
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(predictors.PREDICTORS, "output_spread", OWN)


def swept(cache, **options):
    data = load(TASK)
    pool = pools.candidate_pool(tasks.base(TASK, data), data.training.inputs, (2,), (), ())
    return sweep.sweep({TASK: dict(list(pool.items())[:4])}, {TASK: TINY}, cache, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_predictor_from_outside_goes_all_the_way(registered, monkeypatch, tmp_path, workers):
    """Measured in this process or in another one, saved with its words, and turned by its sign."""
    with ThreadPoolExecutor(1) as here:
        experiment = swept(tmp_path, **({"workers": workers} if workers else {"executor": here}))
    stored = results.load(results.save(experiment, tmp_path / "experiment.nc"))
    assert stored["output_spread"].attrs == {"units": "logit", "long_name": "spread of the outputs"}
    monkeypatch.setattr(predictions, "SIGNALS", {})
    pool = statistics.expansions(stored)
    assert (pool["output_spread"] > 0).all()
    predicted = predictions.predictions(stored)
    column = predicted.sel(predictor="output_spread")
    np.testing.assert_allclose(column["value"], -pool["output_spread"], rtol=1e-4)
    assert column["family"] == "static"
    assert column["cost"] == predicted["cost"].sel(predictor="loss") == 40 / TINY.full_cost
    assert "output_spread + parameters" in predicted["predictor"]
    scores = statistics.scores(stored.isel(candidate=(stored["role"] == "expansion").values, budget=0), predicted)
    assert scores["spearman"].sel(predictor="output_spread").notnull().all()


def test_pieces_measured_with_it_have_another_name_and_its_code_is_in_it(registered, monkeypatch):
    outside = entries.from_outside()
    assert outside == ({}, {}, {"output_spread": OWN})
    text = entries.description(outside)
    assert "def spread_of_outputs" in text
    assert sweep._fingerprint("starts", (), [text]) != sweep._fingerprint("starts", ())
    monkeypatch.setitem(predictors.PREDICTORS, "output_spread", replace(OWN, passes=2))
    assert entries.description(entries.from_outside()) != text
    entries.enter(outside, text)
    with pytest.raises(ValueError, match="files that define output_spread differ between the machines"):
        entries.enter(outside, text + "# changed")


def test_it_is_computed_of_an_experiment_that_is_there_without_training_again(registered, monkeypatch, tmp_path):
    with ThreadPoolExecutor(1) as here:
        before = swept(tmp_path, executor=here)
        monkeypatch.setitem(predictors.PREDICTORS, "another", replace(OWN, description="the same again"))
        monkeypatch.setattr(sweep, "measure", lambda *job: pytest.fail("trained again"))
        monkeypatch.setattr(sweep, "train_base", lambda *job: pytest.fail("trained again"))
        after = swept(tmp_path, executor=here)
    assert set(after) - set(before) == {"another"}
    np.testing.assert_array_equal(after["another"], before["output_spread"])


def test_what_workers_cannot_import_is_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setitem(predictors.PREDICTORS, "mine", replace(OWN, compute=lambda ensemble, batch: None))
    with pytest.raises(ValueError, match=r"cannot import .*<lambda> of 'mine': define it in a file.*executor="):
        swept(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_and_a_value_of_another_shape_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(predictors.PREDICTORS, "accuracy", OWN)
    with pytest.raises(ValueError, match=r"variables \['accuracy'\] already"):
        swept(tmp_path)
    monkeypatch.delitem(predictors.PREDICTORS, "accuracy")
    monkeypatch.setitem(predictors.PREDICTORS, "mine", replace(OWN, compute=lambda e, b: en.outputs(e, b[0])[:, 0]))
    with pytest.raises(ValueError, match=r"'mine' must give .* one number for each network; got \(1, 4\)"):
        predictors.start_values(en.stack([mlp()]), batch(1))
