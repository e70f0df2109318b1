"""When to grow, against plain training by torch's own optimizer, and equal costs counted."""

import numpy as np
import pytest
import torch
from cases import TASK, TINY, plainly

from mmstudy.batched import ensemble as en
from mmstudy.core import networks, tasks
from mmstudy.core.tasks import Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.study import growing

DATA = tasks.load(TASK)
SIZES = (8, 8)
PLACES = ("hidden.0", "hidden.1")


def right(network):
    with torch.no_grad():
        return 100 * (network(DATA.test.inputs).argmax(1) == DATA.test.targets).double().mean().item()


@pytest.fixture(scope="module")
def found():
    return growing.now_or_later(TASK, TINY, (0.25, 1.0), ("net2net", "random"), 2, 2)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_growing_after_a_share_is_what_plain_training_gives(found, share):
    for seed in range(2):
        base = growing.new_bases(TASK, DATA, 2)[seed]
        base = plainly(base, "base", seed, 40, round(40 * share))
        grown = Candidate("random", PLACES, SIZES, seed).expand(base, DATA.training)
        ended = plainly(grown, "grown", seed, int(found["steps"].sel(share=share)))
        assert float(found["accuracy"].sel(share=share, operator="random", seed=seed)) == pytest.approx(
            right(ended), abs=0.25
        )


def test_all_cost_the_same_to_one_step(found):
    base = growing.new_bases(TASK, DATA, 1)[0]
    large = Candidate("random", PLACES, SIZES).expand(base, DATA.training)
    small, large = (networks.count_flops(one, DATA.training.inputs[:1]) for one in (base, large))
    for share in (0.25, 1.0):
        spent = 40 * share * small + int(found["steps"].sel(share=share)) * large
        assert abs(spent - 40 * (small + large)) <= large
    assert int(found["steps"].sel(share=0.25)) > int(found["steps"].sel(share=1.0)) == 40


def test_the_base_trained_on_is_what_plain_training_gives(found):
    base = plainly(growing.new_bases(TASK, DATA, 2)[1], "base", 1, 40)
    small, large = (networks.count_flops(one, DATA.training.inputs[:1]) for one in (base, grown_from(base)))
    ended = plainly(base, "grown", 1, round(40 * large / small))
    assert float(found["never"].sel(seed=1)) == pytest.approx(right(ended), abs=0.25)
    assert found["scratch"].notnull().all()


def grown_from(base):
    return Candidate("random", PLACES, SIZES).expand(base, DATA.training)


def test_shares_and_families_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"shares in \(0, 1\]; got .* \[0.0\]"):
        growing.now_or_later(TASK, TINY, (0.0,), ("random",), 2, 2)
    with pytest.raises(ValueError, match="needs a perceptron"):
        growing.now_or_later(Task("digits", (4, 4), 200, family="ResNet"), TINY, (1.0,), ("random",), 2, 2)


def test_what_has_diverged_has_no_accuracy():
    pair = en.stack(growing.new_bases(TASK, DATA, 2))
    points = en.vectors(pair)
    points[1] = torch.nan
    found = growing.accuracy(en.at(pair, points), DATA)
    assert np.isfinite(found[0]) and np.isnan(found[1])
