import numpy as np
import pytest
import xarray as xr
from scipy import stats

from mmstudy.study import likelihood

SCORES = ("accuracy", "nll", "ece")


def experiment(scores, loss, task=None):
    """Scores (candidate, checkpoint, score) of one seed, over a control of zeros."""
    count = len(loss)
    dims = ("candidate", "seed", "checkpoint")
    data = {name: (dims, scores[:, None, :, i]) for i, name in enumerate(SCORES)}
    data |= {f"control_{name}": (dims, np.zeros((count, 1, 2))) for name in SCORES}
    data["training_loss"] = ("candidate", "progress"), np.stack([loss + 9, loss], axis=1)
    coords = {
        "task": ("candidate", task or ["a"] * count), "role": ("candidate", ["expansion"] * count),
        "checkpoint": ["last", "best validation"], "progress": [0.0, 1.0],
    }  # fmt: skip
    return xr.Dataset(data, coords)


def drawn(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(count, 2, 3)), rng.uniform(size=count)


def test_correlations_are_those_of_gains_more_being_better_in_each_score():
    scores, loss = drawn()
    found = likelihood.agreement(experiment(scores, loss)).isel(task=0)
    assert found["pair"].values.tolist() == ["accuracy, nll", "accuracy, ece", "nll, ece"]
    for c in range(2):
        accuracy, nll, ece = scores[:, c, 0], -scores[:, c, 1], -scores[:, c, 2]
        expected = [stats.spearmanr(a, b).statistic for a, b in ((accuracy, nll), (accuracy, ece), (nll, ece))]
        assert found["spearman"].isel(checkpoint=c).values == pytest.approx(expected)
        assert float(found["confidence"][c]) == pytest.approx(stats.spearmanr(-loss, nll).statistic)
        best = [each.argmax() for each in (accuracy, nll, ece)]
        assert found["lost"].isel(checkpoint=c).values == pytest.approx(100 * (accuracy.max() - accuracy[best]))
        assert found["same"].isel(checkpoint=c).values.tolist() == [
            best[0] == best[1],
            best[0] == best[2],
            best[1] == best[2],
        ]
    assert float(found["training_loss"]) == pytest.approx(np.median(loss))


def test_networks_that_are_no_expansions_are_not_compared():
    scores, loss = drawn()
    both = experiment(np.concatenate([scores, scores[:2] + 9]), np.concatenate([loss, loss[:2]]))
    both = both.assign_coords(role=("candidate", ["expansion"] * 12 + ["reference"] * 2))
    xr.testing.assert_equal(likelihood.agreement(both), likelihood.agreement(experiment(scores, loss)))


def test_where_likelihood_follows_accuracy_nothing_is_lost():
    scores, loss = drawn()
    scores[..., 1] = scores[..., 2] = 1 - scores[..., 0]
    found = likelihood.agreement(experiment(scores, loss)).isel(task=0)
    assert (found["same"] == 1).all() and (found["lost"] == 0).all()
    assert found["spearman"].values == pytest.approx(1.0)


def test_tasks_are_judged_apart_and_candidates_without_a_gain_left_out():
    (first, loss), (second, other) = drawn(8), drawn(10, 1)
    first[2, 1, 0] = np.nan
    both = experiment(np.concatenate([first, second]), np.concatenate([loss, other]), ["a"] * 8 + ["b"] * 10)
    found = likelihood.agreement(both)
    known = np.arange(8) != 2
    alone = {"a": experiment(first[known], loss[known]), "b": experiment(second, other)}
    for name, one in alone.items():
        expected = likelihood.agreement(one).isel(task=0, drop=True)
        xr.testing.assert_allclose(found.sel(task=name, drop=True), expected)
