"""What is measured on networks at one moment, against a plain loop over the networks, and where one has diverged."""

import copy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from cases import TASK, TINY, counted
from torch import nn
from torch.nn import functional as F

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks
from mmstudy.core import tasks
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.manifold import directions
from mmstudy.study import probes
from mmstudy.study.draws import minibatch_order, probe_split

DATA = tasks.load(TASK)
SPLIT = probe_split(TASK, DATA, TINY)
NETWORKS = [initialize(tasks.base(TASK, DATA), generator("probed", i)) for i in range(3)]
STACKED = en.stack(NETWORKS)
K, PLACES = TINY.children, [1.0, 2.0, 4.0, 8.0, 16.0]


def snapshots_of(stacked):
    """Points on the way to each network."""
    points = en.vectors(stacked)
    back = 0.1 * torch.randn(len(stacked), K, points.shape[1], generator=generator("snapshots"))
    return points.unsqueeze(1) + back


def probe(stacked=STACKED, snapshots=None, protocol=TINY, level=3.0):
    snapshots = snapshots_of(stacked) if snapshots is None else snapshots
    return probes.probe(TASK, DATA, stacked, snapshots, level, protocol)


@pytest.fixture(scope="module")
def probed():
    return probe()


def point_of(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def at(point):
    network = copy.deepcopy(NETWORKS[0])
    nn.utils.vector_to_parameters(point, network.parameters())
    return network


def loss(network, split=SPLIT):
    return F.cross_entropy(network(split.inputs), split.targets)


def children_of(network):
    """Copies trained by torch's own optimizer, and the losses that they met."""
    found, losses = [], []
    orders = minibatch_order(TASK, DATA, TINY, [f"child {k}" for k in range(K)], TINY.child_steps)
    for order in orders:
        child = copy.deepcopy(network)
        optimizer = torch.optim.SGD(child.parameters(), lr=TINY.step_size, momentum=TINY.momentum)
        for some in order:
            optimizer.zero_grad()
            value = F.cross_entropy(child(DATA.training.inputs[some]), DATA.training.targets[some])
            value.backward()
            optimizer.step()
            losses.append(value.item())
        found.append(child)
    return found, losses


@pytest.mark.parametrize("i", range(3))
def test_children_losses_and_predictions_are_those_of_a_plain_loop(probed, i):
    network, found = NETWORKS[i], probed.isel(network=i)
    children, met = children_of(network)
    points = torch.stack([point_of(child) for child in children]).double()
    away = points - point_of(network).double()
    centre = at(points.float().mean(0))
    expected = {
        "reach": away.norm(dim=1).mean(),
        "gyration": (points - points.mean(0)).square().sum(1).mean().sqrt(),
        "diameter": max((a - b).norm() for a, b in combinations(points, 2)),
        "explorer_loss": np.mean(met),
        "training_loss": loss(network, DATA.training),
        "validation_loss": loss(network, DATA.validation),
        "centre_validation_loss": loss(centre, DATA.validation),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name
    for name, one in (("validation_accuracy", network), ("centre_validation_accuracy", centre)):
        right = (one(DATA.validation.inputs).argmax(1) == DATA.validation.targets).double().mean()
        assert float(found[name]) == pytest.approx(float(right), abs=1.5 / len(DATA.validation.targets)), name
    for name, inputs in (("disagreement", SPLIT.inputs), ("validation_disagreement", DATA.validation.inputs)):
        guesses = [child(inputs).argmax(1) for child in children]
        apart = [(a != b).double().mean() for a, b in combinations(guesses, 2)]
        assert float(found[name]) == pytest.approx(float(np.mean(apart)), abs=1 / len(inputs)), name
    assert (probed["reach"].values[:, None] != probed["reach"].values).sum() == 6, "no two are alike"


def test_the_trace_is_that_of_products_by_autograd(probed):
    dim = len(point_of(NETWORKS[0]))
    signs = torch.randint(2, (TINY.traces, dim), generator=generator("trace")).float() * 2 - 1
    for i, network in enumerate(NETWORKS):
        parameters = list(network.parameters())
        first = torch.autograd.grad(loss(network), parameters, create_graph=True)
        flat = torch.cat([g.flatten() for g in first])
        products = [torch.autograd.grad(flat @ v, parameters, retain_graph=True) for v in signs]
        expected = np.mean(
            [float(torch.cat([g.flatten() for g in h]) @ v) for h, v in zip(products, signs, strict=True)]
        )
        assert float(probed["hessian_trace"][i]) == pytest.approx(expected, rel=1e-3)


def test_rays_are_those_of_a_plain_loop(probed):
    assert probed["place"].values.tolist() == PLACES
    assert probed["kind"].values.tolist() == ["children"] * 6 + ["snapshots"] * 6 + ["random"] * 2 + ["gradient"] * 2
    for i, network in enumerate(NETWORKS):
        point = point_of(network)
        children = torch.stack([point_of(child) for child in children_of(network)[0]])
        snapshots, centre = snapshots_of(STACKED)[i], children.mean(0)
        middle = snapshots.mean(0)
        (random,) = directions.filter_normalized(STACKED[i], centre[None], 2, generator("random rays", TASK))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(network), list(network.parameters()))])
        step = TINY.step_size * gradient
        rays = [(centre, child - centre) for child in children] + [(centre, centre - child) for child in children]
        rays += [(middle, each - middle) for each in snapshots] + [(middle, middle - each) for each in snapshots]
        rays += [(centre, way / 80) for way in random] + [(point, -step / 8), (point, step / 8)]
        with torch.no_grad():
            losses = [[loss(at(origin + place * way)).item() for place in PLACES] for origin, way in rays]
            origins = [loss(at(origin)).item() for origin, _ in rays]
        one = probed.isel(network=i)
        np.testing.assert_allclose(one["ray_loss"], losses, rtol=2e-4)
        np.testing.assert_allclose(one["ray_origin"], origins, rtol=1e-4)
        np.testing.assert_allclose(one["ray_length"], [way.norm() for _, way in rays], rtol=2e-3)


def test_random_rays_begin_at_an_eightieth_of_the_weights(probed):
    """Where no minibatch moves the network much, its centre has its norms; biases are left where they are."""
    for i, network in enumerate(NETWORKS):
        weights = torch.cat([p.detach().flatten() for p in network.parameters() if p.ndim > 1]).norm()
        lengths = probed["ray_length"].isel(network=i, ray=slice(12, 14)).values
        assert lengths == pytest.approx([float(weights) / 80] * 2, rel=0.01)


def test_networks_together_are_those_alone(probed):
    for i in range(3):
        alone = probe(STACKED[i], snapshots_of(STACKED)[i : i + 1])
        for name in probed.data_vars:
            np.testing.assert_allclose(
                alone[name].values[0], probed[name].values[i], rtol=1e-3, atol=1e-6, err_msg=name
            )


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e30])
def test_one_that_has_diverged_is_nan_and_leaves_its_neighbours_as_they_are(broken):
    """1e30: the network itself is finite, what it is trained to is not."""
    protocol = replace(TINY, estimators=("rays", "extent", "curvature"))
    points = en.vectors(STACKED).clone()
    snapshots = snapshots_of(STACKED)
    before = probe(protocol=protocol)
    points[1] *= broken
    snapshots[1] *= broken
    after = probe(en.at(STACKED, points), snapshots, protocol)
    for name in before.data_vars:
        old, new = before[name], after[name]
        if old.dtype.kind != "f" or name.endswith("cost"):
            continue
        assert new.isel(network=1).isnull().all(), name
        np.testing.assert_allclose(new.isel(network=[0, 2]), old.isel(network=[0, 2]), rtol=1e-5, err_msg=name)
    for name in protocol.estimators:
        status = after[f"{name}_size_status"].values.tolist()
        assert status[1] == "nan"
        assert [status[0], status[2]] == before[f"{name}_size_status"].values[[0, 2]].tolist()


def test_a_run_that_has_not_begun_has_no_rays_along_its_snapshots(probed):
    still = en.vectors(STACKED).unsqueeze(1).expand(-1, K, -1)
    found = probe(snapshots=still)
    along = (found["kind"] == "snapshots").values
    assert found["ray_loss"].isel(ray=along).isnull().all()
    assert found["ray_length"].isel(ray=along).isnull().all()
    others = [name for name in found.data_vars if not name.startswith("ray_")]
    for name in others:
        np.testing.assert_array_equal(found[name], probed[name])
    assert found.isel(ray=~along)[["ray_loss", "ray_length", "ray_origin"]].notnull().all().to_array().all()


def test_costs_are_those_of_what_is_evaluated(monkeypatch):
    """Counted at the loss and at the trainer, against what the protocol says that each part costs."""
    points, trained = [], []

    def counting(*args, **kwargs):
        return counted(of_networks(*args, **kwargs), points, trained)

    monkeypatch.setattr(probes, "of_networks", counting)
    probe()
    cost = TINY.costs(len(DATA.training.targets), len(DATA.validation.targets))
    one = len(SPLIT.targets)
    assert 3 * sum(trained) == len(NETWORKS) * cost["children"]  # a step is three passes
    along = sum(cost[f"{kind} rays"] for kind in ("children's", "snapshots'", "random", "gradient")) - 3 * one
    origins, gradient, trace = (
        4 * one,
        one,
        one,
    )  # the losses that a gradient, and products with the Hessian, begin with
    assert sum(points) == len(NETWORKS) * (along + origins + gradient + trace)


def test_estimators_start_at_the_childrens_centre():
    level = 4.0
    found = probe(protocol=replace(TINY, estimators=("curvature",)), level=level)
    for i, network in enumerate(NETWORKS):
        centre = en.stack([at(torch.stack([point_of(c) for c in children_of(network)[0]]).mean(0))])
        objective = of_networks(centre, SPLIT, training=DATA.training, minibatch=TINY.batch)
        stream = generator("estimator", "curvature", TASK)
        alone = probes.ESTIMATORS["curvature"].measure(objective, en.vectors(centre), level, stream)
        for part in ("size", "size_se"):
            assert found[f"curvature_{part}"].values[i] == pytest.approx(alone[part].item(), rel=1e-2)
        assert found["curvature_size_status"].values[i] == alone["status"].item()
        assert found["curvature_size_cost"].values[i] == alone["cost"].item()
