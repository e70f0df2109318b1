import re
import time

import numpy as np
import pytest
from cases import mlp
from test_ranking import asked, pool

from mmstudy.expansion.pools import Size
from mmstudy.ranking import foretold, policy
from mmstudy.ranking.foretold import duration
from mmstudy.ranking.rows import Rows
from mmstudy.ranking.words import spent

SECONDS = {"seconds": 1, "minutes": 60}


class Paced(Rows):
    """Rows whose steps take a time that is known: 2 s and 1 s per operation, a third of it in a group."""

    def __init__(self):
        pass

    candidates = dict.fromkeys(["a", "b", "c", "own"])
    groups = (("a", "b"), ("c",), ("own",))
    flops = np.array([3.0, 3.0, 9.0, 1.0])

    def paced(self, labels, steps):
        flops = sum(self.flops[[*self.candidates].index(label)] for label in labels)
        share = 1 / 3 if len(labels) > 1 else 1.0
        return share * (20 * len(labels) + flops), share * (2 * len(labels) + flops)


def test_paces_are_those_of_rows_alone_and_in_their_groups():
    alone, together = foretold.paces(Paced(), Paced.flops)
    np.testing.assert_allclose(alone, [[23, 5], [23, 5], [29, 11], [21, 3]])
    np.testing.assert_allclose(together, alone * [[1 / 3], [1 / 3], [1], [1]])


@pytest.mark.parametrize("finished", [0, 2, 4])
def test_the_time_is_that_of_all_steps(finished):
    how = policy.Plan(2, finished, 0.5)
    words = foretold.foretold(Paced(), how, 10, [Size(1, int(f)) for f in Paced.flops], 0.0)
    alone, together = foretold.paces(Paced(), Paced.flops)
    whole = together[:, 0].sum() + 9 * together[:, 1].sum()
    some = together.sum() + finished / 4 * (alone[:, 0].sum() + 7 * alone[:, 1].sum())
    assert f"takes about {duration(whole if finished == 4 else some)}; all would take {duration(whole)}." in words


@pytest.mark.parametrize("budget", [0.3, 0.9])
def test_what_was_foretold_is_about_what_it_took(budget, tmp_path):
    said, at = [], []

    def say(text):
        said.append(text)
        at.append(time.perf_counter())

    ranking = asked(tmp_path, budget=budget, full_steps=300, say=say)
    number, unit = re.search(r"takes about (\S+) (\w+);", said[0]).groups()
    took = at[-1] - at[0]
    assert took / 4 < float(number) * SECONDS[unit] < took * 4  # twice, and as much for a busy machine
    shares = [float(each) / 100 for each in re.findall(r"([\d.]+)%", said[0].partition("floating")[0])][1:]
    assert min(shares) - 0.03 <= spent(ranking.data, "flops") <= max(shares) + 0.03


def test_a_loop_of_ones_own_is_called_once_to_be_timed(tmp_path):
    calls = []

    def train(network, state, steps, seed):
        calls.append(steps)
        return network, [1.0] * steps

    rows = asked(tmp_path, mlp(), optimizer=None, train=train).rows
    calls.clear()
    first, each = rows.paced([*pool()][:1], 3)
    assert calls == [4]
    assert first > 0
    assert each > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.123, "0.12 seconds"),
        (3.0, "3 seconds"),
        (99.6, "100 seconds"),
        (119.0, "120 seconds"),
        (7100.0, "118 minutes"),
        (1e8, "1160 days"),
    ],
)
def test_a_time_is_said_in_figures_that_one_reads(seconds, words):
    assert duration(seconds) == words
