"""Advice is held against what came: every number of a verdict is what its name says."""

import numpy as np
import pytest
import torch
import xarray as xr

from mmstudy.core import results
from mmstudy.core.tasks import Task, load
from mmstudy.ranking.report import OWN
from mmstudy.study import advice, design
from mmstudy.study.calibration import BUDGETS

CASE = ["digits", [4, 4], 200, 0.2, 3]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return advice.in_parts({"calibration": [CASE]}, tmp_path_factory.mktemp("advice"), 150)


def test_every_network_was_trained_to_the_end_and_tested(told):
    results.check(results.describe(told, {}))
    assert told["final_score"].notnull().all()
    assert told["test_score"].notnull().all()
    assert (told["label"] == OWN).sum() == 1
    assert set(told["part"].values) == {"calibration"}
    assert (told["chosen"].sum("row") == 1).all()
    assert (told["share"] <= xr.DataArray([BUDGETS[bool(a)] for a in told["anchored"]], dims="anchored")).all()


def test_anchors_were_trained_where_the_budget_allows_it(told):
    assert not told["trained"].sel(anchored=False).any()
    assert 4 <= int(told["trained"].sel(anchored=True).sum()) < told.sizes["row"]


def test_the_test_score_is_measured_on_the_test_part(tmp_path):
    case = advice.described(CASE, 100)
    (task,) = design.tasks_of({"pilot": [CASE]})
    assert torch.equal(case.test[0], load(task).test.inputs)
    assert case.name == str(Task("digits", (4, 4), 200, 0.2, 3))


def test_of_a_file_the_second_half_is_for_the_test(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "full_steps = 9\n"
        "def network(): return torch.nn.Linear(3, 2)\n"
        "def loaders(): return [torch.ones(4, 3)], [torch.arange(18.0).view(6, 3)]\n"
        "def loss_fn(model, batch): return model(batch).mean()\n"
        "def optimizer(parameters): return torch.optim.SGD(parameters, 0.1)\n"
    )
    case = advice.described(str(tmp_path / "mine.py"))
    assert torch.equal(case.loaders[1][0], torch.arange(9.0).view(3, 3))
    assert torch.equal(case.test, torch.arange(9.0, 18.0).view(3, 3))
    assert case.options["full_steps"] == 9
    assert case.metric is None


def known(chosen: int, trained: list[bool]) -> xr.Dataset:
    """Three candidates and the network itself, whose gains came as 0.3, 0.1, −0.2."""
    row = ("anchored", "row")
    return xr.Dataset(
        {
            "gain": (row, [[0.2, 0.25, -0.1, 0.0]]),
            "low": (row, [[0.1, 0.2, -0.3, 0.0]]),
            "high": (row, [[0.35, 0.3, 0.1, 0.0]]),
            "trained": (row, [trained]),
            "chosen": (row, [[i == chosen for i in range(4)]]),
            "share": (row, [[0.1] * 4]),
            "final_score": ("row", [0.8, 0.6, 0.3, 0.5]),
            "test_score": ("row", [0.7, 0.65, 0.3, 0.5]),
        },
        {"anchored": [True], "label": ("row", ["a", "b", "c", OWN]), "case": ("row", ["one"] * 4)},
    )


def test_a_verdict_is_what_its_names_say():
    found = advice.verdicts(known(1, [False] * 4)).sel(case="one").isel(anchored=0)
    assert float(found["regret"]) == pytest.approx(0.05)
    assert float(found["regret_share"]) == pytest.approx(0.05 / 0.4)
    assert float(found["random"]) == pytest.approx((0.7 - 0.5375) / 0.4)
    assert float(found["spearman"]) == pytest.approx(0.5)
    assert float(found["coverage"]) == pytest.approx(2 / 3)  # 0.1 lies below [0.2, 0.3]
    assert int(found["open"]) == 3


def test_what_was_trained_to_the_end_needs_no_interval():
    found = advice.verdicts(known(0, [False, True, False, True])).sel(case="one").isel(anchored=0)
    assert float(found["coverage"]) == 1
    assert int(found["open"]) == 2
    assert np.isnan(advice.verdicts(known(0, [True] * 4))["coverage"]).all()


def test_a_minibatch_loader_leaves_the_ragged_end_out():
    loader = advice.Minibatches((torch.arange(10), torch.arange(10)), 4)
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [4, 4]
    assert all(torch.equal(x, y) for x, y in batches)
    assert len({int(i) for x, _ in batches for i in x}) == 8


def test_no_case_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no case to hold the advice against"):
        advice.outcomes([], tmp_path)
