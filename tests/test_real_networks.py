"""The loss of real networks as an objective, held against the modules themselves, one after another, by autograd."""

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CLASSES, INPUTS, batch, convolutional, mlp, of_family, uneven
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmstudy.batched import costs, determinism, engine, objective, replay
from mmstudy.batched import ensemble as en
from mmstudy.batched.modes import NORMALIZATION
from mmstudy.core import networks, precision
from mmstudy.core.seeds import generator
from mmstudy.validation.preservation import FAMILIES

RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Binned(nn.Module):
    """Looks its inputs up in a table, moved by an integer buffer that each network has of its own."""

    def __init__(self, seed: int):
        super().__init__()
        self.table, self.head = nn.Embedding(6, 5), nn.Linear(5 * INPUTS, CLASSES)
        self.register_buffer("turn", torch.tensor(seed))

    def forward(self, x):
        bins = ((x * 2).long() + self.turn) % 6
        return self.head(self.table(bins).flatten(1))


class Named(nn.Module):
    """Takes two inputs by name, as networks for dict batches do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, 3), nn.Linear(2, 3)

    def forward(self, *, left, right, scale=1.0):
        return scale * self.one(left).tanh() * self.two(right).tanh()


def next_token(model, sentences: Tensor) -> Tensor:
    """Of a batch that is one tensor."""
    logits = model(sentences[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), sentences[:, 1:].flatten())


def squared(model, examples: dict[str, Any]) -> Tensor:
    """Of a batch that is a dict of dicts."""
    outputs = model(left=examples["x"]["left"], right=examples["x"]["right"], scale=2.0)
    return F.mse_loss(outputs, examples["y"])


def plain(model, examples: tuple[Tensor, Tensor]) -> Tensor:
    """PyTorch's own cross-entropy, over tokens too."""
    outputs = model(examples[0])
    return F.cross_entropy(outputs.flatten(0, -2), examples[1].flatten())


@dataclass(frozen=True)
class Real:
    """A network by its seed, a batch, and a loss; `slow`, by which the loss is held against another form of it."""

    build: Callable[[int], nn.Module]
    batch: Callable[[torch.dtype], Any]
    loss_fn: Callable = en.classification
    slow: Callable | None = None


def of(name: str) -> Real:
    return Real(
        lambda seed: of_family(name, 1, seed, torch.float32)[1],
        lambda dtype: of_family(name, 20, 3, dtype)[2:],
        en.classification,
        plain,
    )


def real_numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs, _ = batch(20, dtype=dtype)
    return inputs, inputs[:, :CLASSES].sin()


def by_name(dtype: torch.dtype) -> dict[str, Any]:
    inputs, _ = batch(20, dtype=dtype)
    return {"x": {"left": inputs, "right": inputs[:, :2]}, "y": inputs[:, 2:5].sin()}


REAL = {name: of(name) for name in FAMILIES} | {
    "dropout": Real(lambda seed: uneven(convolutional(seed), seed), lambda dtype: batch(20, dtype=dtype), slow=plain),
    "integer buffer": Real(Binned, lambda dtype: batch(20, dtype=dtype), slow=plain),
    "regression": Real(lambda seed: mlp(seed=seed), real_numbers, en.regression),
    "dict": Real(lambda seed: seeded(Named(), seed), by_name, squared),
    "next token": Real(
        lambda seed: of_family("decoder", 1, seed, torch.float32)[1],
        lambda dtype: of_family("decoder", 20, 3, dtype)[2][:, :9],
        next_token,
    ),
}
NORMALIZED = ("MLP, batch norm", "ResNet, batch norm", "dropout")


def seeded(network: nn.Module, seed: int) -> nn.Module:
    return networks.initialize(network, generator("real", seed))


def case(name: str, dtype: torch.dtype = torch.float64, count: int = 3) -> tuple[list[nn.Module], Any, Callable]:
    """Different networks of one shape in training mode, a batch, and the loss."""
    nets = [REAL[name].build(seed).to(dtype).train() for seed in range(count)]
    return nets, REAL[name].batch(dtype), REAL[name].loss_fn


def itself(network: nn.Module, examples: Any, loss_fn: Callable) -> float:
    """The loss of the module itself, in evaluation mode."""
    with torch.no_grad(), networks.evaluating(network):
        return float(loss_fn(network, examples))


def double(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def point(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def moved(network: nn.Module, to: Tensor) -> nn.Module:
    """A copy of the module whose parameters are those."""
    new = copy.deepcopy(network)
    nn.utils.vector_to_parameters(to.clone(), new.parameters())
    return new


def around(nets: list[nn.Module], many: int, size: float = 0.05) -> Tensor:
    """Points near each network, (m, many, dim), the first of them the network itself."""
    points = torch.stack([point(net) for net in nets]).unsqueeze(1).repeat(1, many, 1)
    steps = size * torch.randn(points.shape, generator=generator("around"), dtype=torch.float64).to(points)
    steps[:, 0] = 0
    return points + steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", REAL)
def test_the_loss_is_that_of_the_module_with_its_own_buffers(name, dtype):
    """At the networks' own points and around them: batched = one module after another."""
    nets, examples, loss_fn = case(name, dtype)
    determinism.check(en.stack(nets), examples, loss_fn)
    points = around(nets, 4)
    found = objective.of_networks(en.stack(nets), examples, loss_fn)(points)
    slow = REAL[name].slow or loss_fn
    expected = [[itself(moved(net, p), examples, slow) for p in row] for net, row in zip(nets, points, strict=True)]
    torch.testing.assert_close(found, double(expected), rtol=RELATIVE[dtype], atol=0)
    own = double([itself(net, examples, loss_fn) for net in nets])
    torch.testing.assert_close(found[:, 0], own, rtol=RELATIVE[dtype], atol=0)
    torch.testing.assert_close(en.losses(en.stack(nets), examples, loss_fn), own, rtol=RELATIVE[dtype], atol=0)
    assert len(set(found.flatten().tolist())) == found.numel()


@pytest.mark.parametrize("name", NORMALIZED)
def test_frozen_statistics_are_each_parents_own(name):
    nets, examples, loss_fn = case(name)
    same = [copy.deepcopy(nets[0]) for _ in nets]
    for buffers, net in zip(same, nets, strict=True):  # the same point, with the buffers of another
        buffers.load_state_dict(dict(net.named_buffers()), strict=False)
    found = objective.of_networks(en.stack(same), examples, loss_fn)(torch.stack([point(net) for net in same]))
    expected = double([itself(net, examples, loss_fn) for net in same])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert len(set(found.tolist())) == len(nets)


@pytest.mark.parametrize("name", NORMALIZED)
def test_recomputed_statistics_are_those_of_all_examples_at_once(name, monkeypatch):
    monkeypatch.setattr(costs, "EXAMPLES", 7)  # parts would have statistics of their own
    nets, examples, loss_fn = case(name)
    points = around(nets, 2)
    found = objective.of_networks(en.stack(nets), examples, loss_fn, normalization="recomputed")(points)
    for i, row in enumerate(points):
        for j, p in enumerate(row):
            net = moved(nets[i], p).train()
            for module in net.modules():
                module.training = not isinstance(module, nn.Dropout)
            torch.testing.assert_close(found[i, j], loss_fn(net, examples).detach(), rtol=1e-12, atol=0)
    frozen = objective.of_networks(en.stack(nets), examples, loss_fn)(points)
    assert ((found - frozen).abs() > 1e-5).all()
    again = en.losses(en.stack(nets), examples, loss_fn, "recomputed")
    torch.testing.assert_close(again, found[:, 0], rtol=1e-12, atol=0)


def state(network: nn.Module) -> dict[str, Any]:
    """All that a measurement must leave alone."""
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = {name: p.grad for name, p in network.named_parameters()}
    modes = [
        (m.training, getattr(m, "momentum", None), getattr(m, "track_running_stats", None)) for m in network.modules()
    ]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()]
    return {
        "tensors": kept,
        "gradients": gradients,
        "modes": modes,
        "hooks": hooks,
        "ids": [*map(id, network.parameters())],
    }


@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("name", REAL)
def test_the_users_networks_are_not_touched(name, normalization):
    nets, examples, loss_fn = case(name, count=2)
    for module in list(nets[0].modules())[1::2]:
        module.training = False  # a mixture of modes
    nets[1].load_state_dict(nets[1].state_dict())
    for module, other in zip(nets[0].modules(), nets[1].modules(), strict=True):
        other.training = module.training
    nets[0].train(), nets[1].train()
    list(nets[0].modules())[-1].training = False
    before = [state(net) for net in nets]
    loss = objective.of_networks(en.stack(nets), examples, loss_fn, minibatch=5, normalization=normalization)
    points = around(nets, 2)
    here = points[:, 1].clone().requires_grad_()
    loss(points), loss.gradient(points)
    draws = loss.draws([generator("a"), generator("b")], 2)
    torch.autograd.grad(loss.noisy(here, torch.arange(2), draws[:, 0]).sum(), here)
    determinism.check(en.stack(nets), examples, loss_fn, normalization)
    for old, new in zip(before, (state(net) for net in nets), strict=True):
        torch.testing.assert_close(new.pop("tensors"), old.pop("tensors"), rtol=0, atol=0)
        assert new == old


def test_the_users_network_is_as_it_was_after_an_error():
    net = convolutional().train()
    inputs, targets = batch()
    loss = objective.of_networks(en.stack([net]), (inputs, targets), normalization="recomputed")
    with pytest.raises(IndexError):
        loss.noisy(point(net)[None], torch.zeros(1, dtype=torch.long), torch.full((1, 4), 99))
    before = state(net)
    with pytest.raises(ZeroDivisionError):
        en.losses(en.stack([net]), (inputs, targets), lambda model, examples: model(examples[0]).sum() / (1 // 0))
    after = state(net)
    torch.testing.assert_close(after.pop("tensors"), before.pop("tensors"), rtol=0, atol=0)
    assert after == before
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("name", ["decoder", "next token"])
def test_tied_weights_count_once_and_stay_tied(name):
    nets, examples, loss_fn = case(name)
    stacked = en.stack(nets)
    dim = en.vectors(stacked).shape[1]
    assert dim == networks.count_parameters(nets[0]) == len(point(nets[0]))
    loss, points = objective.of_networks(stacked, examples, loss_fn), around(nets, 1).squeeze(1)
    index = list(dict(nets[0].named_parameters())).index("embedding.weight")
    start = sum(p.numel() for p in list(nets[0].parameters())[:index])
    points[:, start : start + 17 * 16] *= 1.3  # through the embedding and the output layer at once
    expected = double([itself(moved(net, p), examples, loss_fn) for net, p in zip(nets, points, strict=True)])
    torch.testing.assert_close(loss(points), expected, rtol=1e-12, atol=0)
    assert all(net.head.weight is net.embedding.weight for net in nets)


@pytest.mark.parametrize("name", REAL)
def test_chunks_and_the_loop_do_not_matter(name, monkeypatch):
    """Parts of the batch, calls of few networks, one network after another: each gives what all at once does."""
    nets, examples, loss_fn = case(name, torch.float32)
    points = around(nets, 3)

    def everything() -> tuple[Tensor, ...]:
        loss = objective.of_networks(en.stack(nets), examples, loss_fn, minibatch=5)
        flat, owner = points[:, 1], torch.arange(3)
        draws = loss.draws([generator(i) for i in range(3)], 1)[:, 0]
        noisy = loss.noisy(flat, owner, draws) if name != "dropout" else torch.zeros(3)
        return loss(points), *loss.gradient(points), noisy.detach(), en.losses(en.stack(nets), examples, loss_fn)

    whole = everything()
    for setting in ({"EXAMPLES": 7, "BYTES": 2**17}, {"BYTES": 1}, {"EXAMPLES": 9, "LARGE_CALL": 0}):
        with monkeypatch.context() as patch:
            for key, value in setting.items():
                patch.setattr(costs, key, value)
            for found, expected in zip(everything(), whole, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", REAL)
def test_gradients_are_those_of_autograd(name, monkeypatch):
    monkeypatch.setattr(costs, "EXAMPLES", 7)
    nets, examples, loss_fn = case(name)
    points = around(nets, 2)
    value, slope = objective.of_networks(en.stack(nets), examples, loss_fn).gradient(points)
    for i, j in ((0, 0), (1, 1), (2, 1)):
        net = moved(nets[i], points[i, j]).eval()
        loss = (REAL[name].slow or loss_fn)(net, examples)
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
        torch.testing.assert_close(slope[i, j], expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))
        torch.testing.assert_close(value[i, j], loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["MLP", "MLP, batch norm", "ResNet, group norm", "ViT", "next token", "dict"])
@pytest.mark.parametrize("together", [True, False])
def test_hessian_vector_products_are_those_of_autograd(name, together, monkeypatch):
    """Several at each point, as one backward pass or one after another."""
    monkeypatch.setattr(costs, "EXAMPLES", 7)
    if not together:
        monkeypatch.setattr(costs, "BYTES", 1)
    nets, examples, loss_fn = case(name, count=2)
    points = around(nets, 1).squeeze(1)
    vectors = torch.randn((2, 3, points.shape[1]), generator=generator("vectors"), dtype=torch.float64)
    found = objective.of_networks(en.stack(nets), examples, loss_fn).hessian_vector(points, vectors)
    for i, j in ((0, 0), (1, 2)):
        net = nets[i].eval()
        names, sizes = zip(*((n, p.shape) for n, p in net.named_parameters()), strict=True)

        def at(flat: Tensor, net=net, names=names, sizes=sizes) -> Tensor:
            pieces = flat.split([s.numel() for s in sizes])
            own = {n: piece.view(s) for n, piece, s in zip(names, pieces, sizes, strict=True)}
            return loss_fn(lambda *args, **kw: functional_call(net, own, args, kw), examples)

        with sdpa_kernel(SDPBackend.MATH):
            _, expected = torch.autograd.functional.hvp(at, points[i], vectors[i, j])
        torch.testing.assert_close(found[i, j], expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


def test_backward_passes_are_as_exact_as_forward_ones(monkeypatch):
    """Convolutions on a GPU round to TF32 unless they are told not to; this test pretends that there is one."""
    monkeypatch.setattr(precision, "_SETTINGS", [torch.backends.cudnn.conv, torch.backends.cudnn.rnn])
    met = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, slope):
            met.append(torch.backends.cudnn.allow_tf32)
            return slope.clone()

    loss = objective.of_landscape(lambda points: Watched.apply(points).square().sum(-1), 3)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    loss.gradient(torch.ones(1, 3)), loss.hessian_vector(torch.ones(1, 3), torch.ones(1, 1, 3))
    assert met
    assert not any(met)
    assert torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before


def test_training_sees_batch_statistics_dropout_and_its_own_examples():
    """`noisy` of a network without dropout is the module's loss in training mode on these examples."""
    nets, examples, loss_fn = case("ResNet, batch norm")
    loss = objective.of_networks(en.stack(nets), examples, loss_fn, minibatch=6)
    draws = loss.draws([generator("draws", i) for i in range(3)], 2)
    points = around(nets, 2)[:, 1]
    for step in range(2):
        found = loss.noisy(points, torch.arange(3), draws[:, step])
        for k, net in enumerate(nets):
            expected = loss_fn(moved(net, points[k]).train(), engine.take(examples, draws[k, step]))
            torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=0)
    net = convolutional()
    loss = objective.of_networks(en.stack([net]), batch(), minibatch=32)
    here, owner, draw = point(net).expand(5, -1), torch.zeros(5, dtype=torch.long), torch.arange(32).expand(5, -1)
    assert len(set(loss.noisy(here, owner, draw).tolist())) == 5  # dropout of its own in each


def test_results_of_a_parent_do_not_depend_on_the_others():
    nets, examples, loss_fn = case("ViT", torch.float32)
    points = around(nets, 3)
    together = objective.of_networks(en.stack(nets), examples, loss_fn)(points)
    for i, net in enumerate(nets):
        alone = objective.of_networks(en.stack([net]), examples, loss_fn)(points[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=0)
    points[1] = torch.nan
    poisoned = objective.of_networks(en.stack(nets), examples, loss_fn)(points)
    assert poisoned[1].isnan().all()
    torch.testing.assert_close(poisoned[::2], together[::2], rtol=1e-5, atol=0)


def live_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, Tensor) for thing in gc.get_objects())


def test_memory_is_flat_over_a_thousand_calls():
    loss = objective.of_networks(en.stack([mlp((3,))]), batch(8), minibatch=4)
    points = around([mlp((3,))], 4)
    draws = loss.draws([generator("memory")] * 4, 5)

    def work(times: int) -> None:
        for i in range(times):
            loss(points), loss.gradient(points), loss.hessian_vector(points[:, 0], points)
            loss.noisy(points[0], torch.zeros(4, dtype=torch.long), draws[:, i % 5])

    work(2 * replay.AFTER)
    before, known = live_tensors(), len(costs._costs)
    work(250)  # four kinds of call each
    assert live_tensors() <= before
    assert len(costs._costs) == known


def test_what_a_call_costs_is_known_for_any_number_of_points():
    net = mlp((4,))
    loss = objective.of_networks(en.stack([net]), batch(8))
    known = len(costs._costs)
    for many in range(1, 9):
        loss(around([net], many))
    assert len(costs._costs) == known


class Repeated(nn.Module):
    """A network whose depth is a number that no printout shows."""

    def __init__(self, times: int):
        super().__init__()
        self.layer, self.head, self.times = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES), times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x).tanh()
        return self.head(x)


def cost(network: nn.Module, loss_fn: Callable = en.classification) -> costs.Cost:
    stacked = en.stack([network])
    return costs.cost(network, stacked.parameters, stacked.buffers, batch(8), loss_fn)


def test_costs_are_not_confused_by_what_a_printout_does_not_show():
    assert str(Repeated(1)) == str(Repeated(50))
    few, many = cost(Repeated(1)), cost(Repeated(50))
    assert many.flops > 20 * few.flops
    assert many.memory > 20 * few.memory


def test_costs_are_those_of_one_network_whatever_the_number_stacked():
    nets = [mlp(seed=i) for i in range(3)]
    stacked = en.stack(nets)
    assert costs.cost(nets[0], stacked.parameters, stacked.buffers, batch(8), en.classification) == cost(mlp(seed=9))


def test_losses_that_are_made_anew_for_every_call_are_not_kept():
    net, known = mlp(), len(costs._costs)
    for _ in range(20):
        en.losses(en.stack([net]), batch(8), lambda model, examples: en.classification(model, examples))
    del net
    gc.collect()
    assert len(costs._costs) <= known


def test_networks_that_are_not_alike_are_refused():
    relu, tanh = (nn.Sequential(nn.Linear(INPUTS, 3), kind(), nn.Linear(3, CLASSES)) for kind in (nn.ReLU, nn.Tanh))
    with pytest.raises(ValueError, match="network 1"):
        en.stack([relu, tanh])
    tied, untied = (networks.Decoder(17, 8, 8, 1, 2) for _ in range(2))
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(ValueError, match="network 1"):
        en.stack([tied, untied])


def test_networks_in_different_modes_go_in():
    nets = [mlp(seed=0).train(), mlp(seed=1).eval()]
    expected = double([itself(net, batch(), en.classification) for net in nets])
    torch.testing.assert_close(en.losses(en.stack(nets), batch()), expected, rtol=1e-5, atol=0)
    assert nets[0].training
    assert not nets[1].training


class Layers(nn.Module):
    """PyTorch's own layers for sequences, which take shortcuts in evaluation mode."""

    def __init__(self, middle: nn.Module, width: int):
        super().__init__()
        self.middle, self.head = middle, nn.Linear(width, CLASSES)

    def forward(self, x):
        out = self.middle(x)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


@pytest.mark.parametrize(
    "middle",
    [
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        lambda: nn.LSTM(8, 8, batch_first=True),
        lambda: nn.GRU(8, 8, batch_first=True),
    ],
    ids=["TransformerEncoderLayer", "LSTM", "GRU"],
)
def test_layers_without_a_batching_rule_go_in(middle):
    nets = [seeded(Layers(middle(), 8), seed).double() for seed in range(2)]
    examples = torch.randn(6, 5, 8, generator=generator("x"), dtype=torch.float64), torch.arange(6) % CLASSES
    loss, points = objective.of_networks(en.stack(nets), examples), around(nets, 2)
    expected = [[itself(moved(net, p), examples, plain) for p in row] for net, row in zip(nets, points, strict=True)]
    torch.testing.assert_close(loss(points), double(expected), rtol=1e-12, atol=0)
    net = nets[0].train()  # takes no shortcut
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(plain(net, examples), list(net.parameters()))])
    torch.testing.assert_close(loss.gradient(points)[1][0, 0], slope, rtol=1e-9, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()
