"""What to grow next: equal costs counted, and runs against plain training by torch's own optimizer."""

from dataclasses import replace

import pytest
import torch
from cases import TASK, TINY, plainly

from mmstudy.core import networks, tasks
from mmstudy.expansion.candidate import Candidate
from mmstudy.study import growing, rounds

DATA = tasks.load(TASK)
PLACES = ("hidden.0", "hidden.1")
ROW = replace(TINY, steps=120, probe_examples=10, child_steps=2)


def fresh():
    return growing.new_bases(TASK, DATA, 1)[0]


def grown_from(base):
    return Candidate("random", PLACES, (8, 8)).expand(base, DATA.training)


@pytest.fixture(scope="module")
def row():
    return rounds.in_a_row(TASK, ROW, 2, 2, ("net2net", "random"), 2)


def test_every_rule_spends_what_a_round_may_cost(row):
    assert row["rule"].values.tolist() == list(rounds.RULES)
    assert row["spent"].values == pytest.approx(1.0, abs=0.03)  # one step of some eighty is 1.2%


def test_networks_grow_from_round_to_round_by_one_coupling(row):
    count = row["parameters"]
    assert (count.diff("round") > 0).all()
    first = {4 * 64 + 4 + 4 * 4 + 4 + 4 * 10 + 10}
    assert {*count.sel(round=0).values.ravel().tolist()} == {float(*first)}
    wider = {networks.count_parameters(Candidate("random", (p,), (8,)).expand(fresh(), DATA.training)) for p in PLACES}
    assert {*count.sel(round=1).values.ravel().tolist()} <= wider
    assert (count.sel(round=1, rule="largest") == max(wider)).all()


def test_rules_begin_with_the_same_bases(row):
    assert (row["accuracy"].sel(round=0).std("rule") == 0).all()
    assert row["accuracy"].sel(round=0, rule="size").std() > 0


def test_a_run_that_is_left_early_is_the_beginning_of_the_whole_one():
    starts = growing.new_bases(TASK, DATA, 2)
    whole = rounds._together(TASK, DATA, TINY, [rounds.Run(one, 20, 20, i) for i, one in enumerate(starts)], "x")
    early = rounds._together(TASK, DATA, TINY, [rounds.Run(one, 20, 6, i) for i, one in enumerate(starts)], "x")
    for seed, ((_, losses), (network, first)) in enumerate(zip(whole, early, strict=True)):
        torch.testing.assert_close(losses[:6], first)
        again = plainly(growing.new_bases(TASK, DATA, 2)[seed], "x", seed, 20, 6)
        torch.testing.assert_close(network.head.weight, again.head.weight, rtol=1e-3, atol=1e-5)


def test_runs_of_any_shapes_and_lengths_come_back_in_their_order():
    small, large = fresh(), grown_from(fresh())
    runs = [
        rounds.Run(small, 8, 8, 0),
        rounds.Run(large, 8, 4, 0),
        rounds.Run(small, 8, 0, 1),
        rounds.Run(small, 8, 8, 1),
    ]
    found = rounds._together(TASK, DATA, TINY, runs, "y")
    assert [len(losses) for _, losses in found] == [8, 4, 0, 8]
    assert found[2][0] is small
    assert found[1][0].hidden[0].out_features == 8
    alone = rounds._together(TASK, DATA, TINY, runs[3:], "y")[0]
    torch.testing.assert_close(found[3][1], alone[1], rtol=1e-4, atol=1e-5)


def seen(candidates, losses=()):
    return rounds.Seen(TASK, DATA, TINY, candidates, losses)


def test_rules_score_as_they_say():
    small, large = fresh(), grown_from(fresh())
    assert rounds.by_count(seen([small, large])) == [330.0, 682.0]
    assert rounds.by_lot(seen([small, large])) == [0.0, 0.0]
    falling, flat = torch.linspace(2, 0, 10), torch.ones(10)
    assert rounds.by_loss(seen([small, small], [falling, flat])) == [3.5, 2.5]  # sizes tie
    accuracy = (small(DATA.validation.inputs).argmax(1) == DATA.validation.targets).double().mean()
    assert rounds.by_validation(seen([small])) == pytest.approx([float(accuracy)])


def test_size_is_measured_up_to_the_median_of_the_candidates():
    """A network whose loss lies above it has no extent; a network at home in a flat region has a large one."""
    trained = plainly(fresh(), "base", 0, 40)
    sharp = fresh()
    with torch.no_grad():
        sharp.head.weight.mul_(30)
    sizes = rounds.by_size(rounds.Seen(TASK, DATA, replace(TINY, margin=0.01), [trained, trained, sharp], ()))
    assert sizes[0] == pytest.approx(sizes[1]) and sizes[0] > 0
    assert sizes[2] == 0


def test_a_budget_too_small_to_look_is_refused():
    tiny = replace(TINY, child_steps=500)
    with pytest.raises(ValueError, match="too small to look by size: take more steps"):
        rounds.in_a_row(TASK, tiny, 1, 2, ("random",), 2)
