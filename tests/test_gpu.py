"""What a processor computes, computed on a GPU: every operator, estimator, predictor, and what is built of them.

Draws come from generators on the processor, so that both see the same numbers. Skipped where there is no GPU.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from cases import TASK, TINY, batch, change, mlp, of_family
from foreign import MODELS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import ZOO

import mmstudy as mm
from mmstudy.batched import augmentation, costs, replay, scoring, training
from mmstudy.batched import ensemble as en
from mmstudy.core import networks, tasks
from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import EXACTLY, OPERATORS
from mmstudy.expansion.optimizers import carried
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study import sweep
from mmstudy.study.predictors import PREDICTORS
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import of_trace
from mmstudy.tracing.trace import trace
from mmstudy.validation.preservation import FAMILIES

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_both(things):
    """On the processor, and copied to the GPU."""
    moved = [copy.deepcopy(each).to(GPU) for each in things]
    return list(things), moved


def same_tensors(one: nn.Module, other: nn.Module) -> None:
    """Networks with the same numbers, the second one on a GPU."""
    expected = dict(one.state_dict())
    for name, value in other.state_dict().items():
        assert value.device.type == "cuda", name
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_makes_the_same_network(name, operator):
    family, network, inputs, targets = of_family(name)
    wider = OPERATORS[operator].widens
    for place in (family.wider if wider else family.deeper)[:2]:
        (small, x, y), (moved, x2, y2) = on_both([network, inputs, targets])
        traced = trace(small, x)
        candidate = Candidate(operator, (place,), (2 * of_trace(traced)[place].size if wider else 1,))
        try:
            expected = candidate.grow(small, (x, y), family.loss_fn).network
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                candidate.grow(moved, (x2, y2), family.loss_fn)
            continue
        found = candidate.grow(moved, (x2, y2), family.loss_fn).network
        if OPERATORS[operator].learns:  # where nothing is to be learnt, rounding decides
            losses = [family.loss_fn(n.eval(), b).item() for n, b in ((expected, (x, y)), (found, (x2, y2)))]
            assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        else:
            same_tensors(expected, found)
        if OPERATORS[operator].preserves == EXACTLY:
            assert change(moved, found, x2) < 1e-11


@pytest.mark.parametrize("name", [name for name, animal in ZOO.items() if not animal.whole and animal.grows])
def test_networks_as_people_write_them_grow_there_too(name):
    animal = ZOO[name]
    network = initialize(animal.build(), generator("zoo", name)).double().to(GPU)
    inputs, other = (x.double() if x.is_floating_point() else x for x in map(animal.inputs, animal.examples))
    inputs, other = inputs.to(GPU), other.to(GPU)
    traced = trace(network, inputs)
    groups = of_trace(traced)
    for place, operator in animal.grows.items():
        places = tuple(place.split("&"))
        candidate = Candidate(operator, places, tuple(2 * groups[each].size for each in places))
        new = candidate.grow(network, inputs, traced=traced, also=[other]).network
        assert {t.device.type for t in new.state_dict().values()} == {"cuda"}
        for x in (inputs, other):
            assert change(network, new, x) < 1e-11, place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["MLP", "ResNet, batch norm", "ViT", "decoder"])
def test_fewer_digits_are_kept_and_preserved_as_well_as_they_can_be(name, dtype):
    """In the network's own numbers, with TF32 as torch sets it; the receipt's are without."""
    family, network, inputs, targets = of_family(name)
    network, targets = network.to(GPU, dtype), targets.to(GPU)
    inputs = inputs.to(GPU, dtype) if inputs.is_floating_point() else inputs.to(GPU)
    new = mm.expand(
        network, inputs, "lemon", {family.wider[0]: 2 * mm.couplings(network, inputs)[family.wider[0]].size}
    )
    assert {t.dtype for t in new.parameters()} == {dtype}
    assert change(network, new, inputs) < 200 * torch.finfo(dtype).eps + 2e-3 * (dtype == torch.float32)
    if dtype == torch.float32:
        receipt = mm.receipt(network, new, (inputs, targets), loss_fn=family.loss_fn)
        gap, spread = receipt.differences["float32", "evaluation"]
        assert gap < 1e-5 * spread


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_size_is_that_of_a_processor(method):
    (first, second), moved = on_both([mlp(dtype=torch.float64), mlp((9, 4), seed=1, dtype=torch.float64)])
    (x, y), other = on_both(batch(dtype=torch.float64))
    expected = mm.size([first, second], (x, y), level=3.0, method=method)
    found = mm.size(moved, tuple(other), level=3.0, method=method)
    assert (found["status"] == expected["status"]).all() and (found["cost"] == expected["cost"]).all()
    np.testing.assert_allclose(found["size"], expected["size"], rtol=1e-3)  # chains and chaos make rounding larger


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_is_there_for_every_family(name):
    family, network, inputs, targets = of_family(name)
    loss = float(family.loss_fn(network, (inputs, targets)))
    methods = ["rays", "curvature", "extent"]
    expected = mm.sizes(network, (inputs, targets), loss + 0.1, methods, loss_fn=family.loss_fn)
    (moved, x, y) = on_both([network, inputs, targets])[1]
    found = mm.sizes(moved, (x, y), loss + 0.1, methods, loss_fn=family.loss_fn)
    np.testing.assert_allclose(found["size"], expected["size"], rtol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_predictor_is_that_of_a_processor(name):
    _, network, inputs, targets = of_family(name)
    (network, inputs, targets), (moved, x, y) = on_both([network, inputs, targets])
    for predictor, entry in PREDICTORS.items():
        try:
            expected = entry.compute(en.stack([network]), tasks.Split(inputs, targets))
        except (NotImplementedError, RuntimeError, ValueError):  # what tokens have not
            continue
        found = entry.compute(en.stack([moved]), tasks.Split(x, y))
        torch.testing.assert_close(
            found.cpu().double(), expected.double(), rtol=1e-4, atol=1e-8, equal_nan=True, msg=predictor
        )


def test_lines_planes_and_barriers_are_those_of_a_processor():
    (one, two, three), moved = on_both([mlp(seed=seed, dtype=torch.float64) for seed in range(3)])
    (x, y), other = on_both(batch(dtype=torch.float64))
    for match in (False, True):
        expected, found = mm.barrier(one, two, (x, y), match=match), mm.barrier(*moved[:2], tuple(other), match=match)
        assert found == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(mm.line(*moved[:2], tuple(other))["loss"], mm.line(one, two, (x, y))["loss"])
    plane = partial(mm.plane, points=5)
    np.testing.assert_allclose(plane(*moved, tuple(other))["loss"], plane(one, two, three, (x, y))["loss"])
    assert str(mm.check(moved[0], tuple(other))) == str(mm.check(one, (x, y)))
    assert str(mm.coverage(moved[0], tuple(other))) == str(mm.coverage(one, (x, y)))


@pytest.mark.parametrize("recorded", [True, False], ids=["replayed", "as it is"])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_that_of_a_processor(name, recorded):
    family, first, inputs, targets = of_family(name, count=24)
    second = family.network(seed=1).to(torch.float64)
    order = training.minibatches([generator("order", i) for i in range(2)], 24, 30, 8)
    ended = []
    for device in ("cpu", GPU):
        start = en.stack([copy.deepcopy(each).to(device) for each in (first, second)])
        data = inputs.to(device), targets.to(device)
        with nullcontext() if recorded else replay.off():
            ((_, now, seen),) = training.train(start, data, order, training.cosine(0.05, 30), loss_fn=family.loss_fn)
        ended.append((en.vectors(now).cpu(), seen.cpu(), scoring.evaluate(now, tasks.Split(*data))))
    torch.testing.assert_close(ended[1][:2], ended[0][:2], rtol=1e-5, atol=1e-7)
    for score, value in ended[0][2].items():
        torch.testing.assert_close(ended[1][2][score].cpu(), value.cpu(), rtol=1e-5, atol=1e-7)


def test_a_batch_trains_as_each_network_alone():
    """In float32, against torch's own optimizer on the GPU."""
    nets, (x, y) = [mlp((64, 64), seed).to(GPU) for seed in range(8)], (t.to(GPU) for t in batch(512))
    order = training.minibatches([generator("order", i) for i in range(8)], 512, 40, 128)
    ((_, now, _),) = training.train(en.stack(nets), (x, y), order, training.constant(0.05, 40))
    for i, network in enumerate(nets):
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        for some in order[i].to(GPU):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[some]), y[some]).backward()
            optimizer.step()
        torch.testing.assert_close(
            en.vectors(now)[i], nn.utils.parameters_to_vector(network.parameters()), rtol=1e-3, atol=1e-5
        )


def test_convolutions_are_measured_with_all_digits():
    """TF32 has 10 bits of 23: a loss of a batch in float32 would be off by 1e-4 or so."""
    network = networks.ResNet(1, (16, 32), (2, 2), 10, "group", (8, 8))
    network = initialize(network, generator("digits")).to(GPU)
    inputs, targets = torch.randn(256, 64, device=GPU), torch.arange(256, device=GPU) % 10
    exact = en.losses(en.stack([copy.deepcopy(network).double()]), (inputs.double(), targets))
    torch.testing.assert_close(en.losses(en.stack([network]), (inputs, targets)), exact, rtol=2e-6, atol=0)
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(en.losses(en.stack([network]), (inputs, targets)), exact, rtol=2e-6, atol=0)
        with torch.no_grad():
            plain, double = network.eval()(inputs), copy.deepcopy(network).double()(inputs.double())
        assert (plain - double).abs().max() > 1e-5 * double.abs().max()  # this is what is left out
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def test_images_are_varied_as_on_a_processor():
    image, (x, y) = (3, 32, 32), (torch.randn(20, 3072), torch.arange(20) % 10)
    order = augmentation.varied(torch.arange(20).repeat(2, 1)[None], 20, [generator("variants")])[0]
    expected, _ = augmentation.take(image, torch.device("cpu"))((x, y), order)
    found, classes = augmentation.take(image, GPU)((x.to(GPU), y.to(GPU)), order.to(GPU))
    assert torch.equal(found.cpu(), expected)
    assert classes.device.type == "cuda"


def test_more_networks_go_into_a_call_than_on_a_processor():
    small = [en.stack([mlp().to(device)]) for device in ("cpu", GPU)]
    most = [
        en.at_once(each, tuple(t.to(d) for t in batch(512)), en.classification)
        for each, d in zip(small, ("cpu", GPU), strict=True)
    ]
    assert most[1] > most[0]
    free, _ = torch.cuda.mem_get_info()
    assert costs._allowed(costs.BYTES, GPU) <= free


def test_the_sweep_is_that_of_a_processor(tmp_path):
    data = tasks.load(TASK)
    shape = {"factors": (2,), "extra_layers": (1,), "matched": (), "wider": ("net2net", "random")}
    some = pools.candidate_pool(tasks.base(TASK, data), data.training.inputs, **shape, locations=("hidden.0",))
    found = {}
    for device in ("cpu", "cuda"):
        with ThreadPoolExecutor(1) as executor:
            found[device] = sweep.sweep({TASK: some}, {TASK: TINY}, tmp_path / device, device=device, executor=executor)
    again = sweep.sweep({TASK: some}, {TASK: TINY}, tmp_path / "again", workers=1, device="cuda")  # a process
    card = torch.cuda.get_device_name()
    assert again.attrs["device"] == found["cuda"].attrs["device"] == card
    for name in ("accuracy", "base_loss", "curve"):
        for other in (found["cuda"], again):
            np.testing.assert_allclose(other[name], found["cpu"][name], rtol=1e-3, atol=0.02)
    assert (found["cuda"]["parameters"] == found["cpu"]["parameters"]).all()


def test_workers_of_a_cluster_compute_there(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    data = tasks.load(TASK)
    shape = {"factors": (2,), "extra_layers": (1,), "matched": (), "wider": ("net2net", "random")}
    some = pools.candidate_pool(tasks.base(TASK, data), data.training.inputs, **shape, locations=("hidden.0",))
    work = partial(sweep.sweep, {TASK: some}, {TASK: TINY}, device="cuda")
    with ThreadPoolExecutor(1) as executor:
        expected = work(cache=tmp_path / "here", executor=executor)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        found = work(cache=tmp_path / "there", scheduler=cluster.scheduler_address)
    assert found.attrs["device"] == torch.cuda.get_device_name()
    for name in ("accuracy", "base_loss", "curve"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def ranked():
    """What a ranking of a perceptron of two hidden layers is given, beside the network and its folder."""
    every = [(way, where) for where in ("hidden.0", "hidden.1") for way in ("net2net", "zero_outgoing", "random")]
    return {
        "pool": {f"{way} {where}": Candidate(way, (where,), (9,)) for way, where in every},
        "full_steps": 40, "measured_examples": 16, "loss_fn": en.classification, "say": lambda text: 0,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, 1e-2),
        "train_loader": DataLoader(TensorDataset(*batch(80, 1)), 16, shuffle=True),
        "validation_loader": DataLoader(TensorDataset(*batch(40, 2)), 16),
    }  # fmt: skip


def test_a_ranking_trains_in_fewer_digits(tmp_path):
    full, mixed = (
        mm.rank_expansions(mlp().to(GPU), folder=tmp_path / str(kind), budget=0.3, autocast=kind, **ranked()).data
        for kind in (None, torch.bfloat16)
    )
    one, other = (data.sortby("candidate")["early_loss"] for data in (full, mixed))
    assert not np.allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(one, other, rtol=0.05)


def test_a_ranking_ends_and_resumes_there(tmp_path):
    network, given = mlp().to(GPU), ranked()
    first = mm.rank_expansions(network, folder=tmp_path / "one", budget=0.3, **given)
    best = first.best()
    assert next(best.network.parameters()).device.type == "cuda"
    state = [t for each in best.optimizer.state.values() for t in each.values() if isinstance(t, torch.Tensor)]
    assert state and {t.device.type for t in state if t.ndim} == {"cuda"}
    again = mm.rank_expansions(network, folder=tmp_path / "one", budget=0.3, **given)
    assert again.summary == first.summary
    slow = mm.rank_expansions(mlp(), folder=tmp_path / "other", budget=0.3, **given)
    one, other = (ranking.data.sortby("candidate") for ranking in (first, slow))
    np.testing.assert_allclose(one["early_loss"], other["early_loss"], rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_state_of_an_optimizer_is_carried_along(kind):
    x, y = (t.to(GPU) for t in batch(dtype=torch.float64))
    network = mlp(dtype=torch.float64).to(GPU)
    optimizer = kind(network.parameters(), 0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    nn.functional.cross_entropy(network(x), y).backward()
    optimizer.step()
    expansion = Candidate("lemon", ("hidden.0",), (12,)).grow(network, x)
    found = carried(optimizer, network, expansion)
    state = [t for each in found.state.values() for t in each.values() if isinstance(t, torch.Tensor) and t.ndim]
    assert state and {t.device.type for t in state} == {"cuda"}
    nn.functional.cross_entropy(expansion.network(x), y).backward()
    found.step()


@pytest.mark.parametrize("name", MODELS)
def test_models_of_others_grow_there(name):
    pytest.importorskip("transformers", minversion="5.17")
    model = MODELS[name]
    network = model.network().to(GPU)
    call = model.call()
    call = Call(tuple(t.to(GPU) for t in call.arguments), {n: t.to(GPU) for n, t in call.options.items()})
    covered = mm.coverage(network, call)
    assert covered.growing
    place = covered.growing[0]
    candidate = Candidate("lemon", (place,), (2 * mm.couplings(network, call)[place].size,))
    new = candidate.grow(network, call).network
    assert {p.device.type for p in new.parameters()} == {"cuda"}
