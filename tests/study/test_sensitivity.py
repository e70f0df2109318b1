"""The size under other numbers of children and steps, against the experiment's own measurement and plain loops."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from cases import TASK, TINY
from scipy import stats

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks
from mmstudy.core import tasks
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.study import derived, design, sensitivity, trials
from mmstudy.study.draws import minibatch_order, probe_split
from mmstudy.study.probes import probe

DATA = tasks.load(TASK)
SHAPE = {"factors": (2,), "extra_layers": (), "matched": ()}


def extents_of_the_experiment(networks, count, steps):
    """The extent of networks that are one pool, as the experiment's probe and the study's signal have it."""
    protocol = replace(TINY, children=count, child_steps=steps)
    snapshots = en.vectors(networks).unsqueeze(1).expand(-1, count, -1)
    found = probe(TASK, DATA, networks, snapshots, 0.0, protocol).rename(network="candidate")
    found = found.expand_dims(progress=[1.0]).assign_coords(task=("candidate", [str(TASK)] * len(networks)))
    return derived.extent(found, "children", "median", "multiple", TINY.margin).isel(progress=0).values


def test_the_first_draw_is_what_the_experiment_measures_and_the_others_are_other_children():
    networks = en.stack([initialize(tasks.base(TASK, DATA), generator("one", i)) for i in range(5)])
    objective = of_networks(networks, probe_split(TASK, DATA, TINY), training=DATA.training, minibatch=TINY.batch)
    order = minibatch_order(TASK, DATA, TINY, [f"child {i}" for i in range(6)], 5)
    found = sensitivity._profiles(objective, en.vectors(networks), order, TINY, (3, 6), (2, 5))
    for steps in (2, 5):
        for count in (3, 6):
            sizes, censored = sensitivity._sizes([found[steps, count]], TASK, 1.0, TINY.margin)
            assert sizes.shape == (6 // count, 5) and 0 <= censored <= 1
            np.testing.assert_allclose(sizes[0], extents_of_the_experiment(networks, count, steps), rtol=1e-3)
        first, second = sensitivity._sizes([found[steps, 3]], TASK, 1.0, TINY.margin)[0]
        assert not np.allclose(first, second, rtol=1e-2)


def test_a_network_whose_children_diverge_has_no_size_and_moves_no_other():
    networks = en.stack([initialize(tasks.base(TASK, DATA), generator("one", i)) for i in range(3)])
    points = en.vectors(networks)
    broken = points.clone()
    broken[1] = 1e30
    objective = of_networks(networks, probe_split(TASK, DATA, TINY), training=DATA.training, minibatch=TINY.batch)
    order = minibatch_order(TASK, DATA, TINY, [f"child {i}" for i in range(3)], 3)
    sizes, _ = sensitivity._sizes(
        [sensitivity._profiles(objective, broken, order, TINY, (3,), (3,))[3, 3]], TASK, 1.0, TINY.margin
    )
    others = [sensitivity._profiles(objective, points[[0, 2]], order, TINY, (3,), (3,))[3, 3]]
    alone, _ = sensitivity._sizes(others, TASK, 1.0, TINY.margin)
    assert np.isnan(sizes[0, 1])
    np.testing.assert_allclose(sizes[0, [0, 2]], alone[0], rtol=1e-4)


def test_a_look_of_the_experiment_costs_what_its_protocol_says():
    parts = TINY.costs(len(DATA.training.targets), len(DATA.validation.targets))
    known = sum(parts[name] for name in ("children", "centre", "children's rays")) / TINY.full_cost
    assert sensitivity.cost(TINY, TINY.children, TINY.child_steps) == pytest.approx(known)


@pytest.fixture(scope="module")
def found():
    return sensitivity.sensitivity(TASK, TINY, SHAPE, (2, 4), (2, 4), 30)


def test_the_gains_are_those_of_the_experiment():
    pool, _ = design.pool(TASK, DATA, SHAPE)
    looks, gain = sensitivity._trained(TASK, DATA, pool, TINY)
    base = trials.train_base(TASK, DATA, TINY)
    label = next(iter(pool))
    piece = trials.Piece(TASK, DATA, base, [(label, pool[label])], TINY)
    row = trials.measure(piece).isel(candidate=0, checkpoint=0, budget=0)
    expected = 100 * (row["accuracy"] - base["control_accuracy"].isel(checkpoint=0)).mean()
    assert gain[0] == pytest.approx(float(expected), abs=0.11)  # one example of a thousand, in float32
    assert [sum(map(len, networks)) for networks in looks.values()] == [len(pool)] * 2


def test_each_table_runs_over_what_was_asked_for(found):
    assert found["spearman"].dims == ("progress", "child_steps", "children")
    assert found["progress"].values.tolist() == [0.25, 1.0]
    assert found["spearman"].notnull().all() and (np.abs(found["spearman"]) <= 1).all()
    assert found["agreement"].sel(children=2).notnull().all()
    assert found["agreement"].sel(children=4).isnull().all()  # one draw has nothing to agree with
    assert (found["cost"].diff("children") > 0).all() and (found["cost"].diff("child_steps") > 0).all()
    assert ((found["llc_settled"] >= 0) & (found["llc_settled"] <= 1)).all()


def test_only_candidates_whose_chains_have_settled_are_ordered_by_their_coefficients():
    rng = np.random.default_rng(0)
    coefficient, extent, gain = rng.normal(size=(3, 9))
    settled = np.array([True] * 6 + [False] * 3)
    found = sensitivity._coefficients(coefficient, extent, gain, settled)
    assert found["llc_spearman"] == pytest.approx(stats.spearmanr(coefficient[:6], gain[:6]).statistic)
    assert found["extent_spearman"] == pytest.approx(stats.spearmanr(extent[:6], gain[:6]).statistic)
    assert found["llc_settled"] == pytest.approx(2 / 3)
    few = sensitivity._coefficients(coefficient, extent, gain, settled & (np.arange(9) < 3))
    assert np.isnan(few["llc_spearman"])


def test_what_has_no_size_ranks_last_and_what_has_no_gain_is_left_out():
    gain = np.array([3.0, 1.0, 2.0, 4.0, np.nan])
    values = np.array([[3.0, np.nan, 2.0, 4.0, 9.0]])
    assert sensitivity.spearman(values, gain) == pytest.approx(1.0)


def test_numbers_of_children_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"must divide the largest, 8; got \[3\]"):
        sensitivity.sensitivity(TASK, TINY, SHAPE, (3, 8), (2,))


def test_the_families_of_a_pool_share_one_level():
    """Two architectures measured apart have the level of both together."""
    place = xr.DataArray([1.0, 2.0, 4.0], dims="place")

    def part(origin):
        dims = ("candidate", "draw", "ray", "place")
        losses = (origin + place).values.reshape(1, 1, 1, 3)
        return xr.Dataset(
            {"ray_loss": (dims, losses), "ray_origin": (dims[:-1], np.full((1, 1, 1), origin))}, {"place": place.values}
        )

    sizes, censored = sensitivity._sizes([part(0.0), part(1.0), part(2.5)], TASK, 1.0, 0.5)
    assert sizes[0, 2] == 0.0  # it lies above the median + margin
    assert 1 < sizes[0, 0] < 2 and 0 < sizes[0, 1] < 1 and censored == 0
