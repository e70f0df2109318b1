"""The network that grows is not touched, and what has grown does not hold on to it."""

import copy

import pytest
import torch
from cases import Wired, batch
from torch import nn

import mmstudy as mm
from mmstudy.core.states import restored, seeded

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Counted(nn.Module):
    """It counts its calls, in every way."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.calls, self.log, self.by_size, self.kinds = 0, [], {}, set()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.log.append(len(x))
        self.by_size[len(x)] = self.by_size.get(len(x), 0) + 1
        self.kinds.add(x.dtype)
        self.seen += 1
        self.last = x
        y = self.b(self.a(x).relu())
        self.mean = self.mean + y.detach().mean(0)
        return y


def untouched(network) -> bool:
    kept = (network.calls, network.log, network.by_size, network.kinds) == (0, [], {}, set())
    return kept and not hasattr(network, "last") and float(network.seen) == 0 and not network.mean.any()


@pytest.mark.parametrize("training", [True, False])
def test_nothing_that_forward_writes_is_left_behind(training):
    old, random = Counted().train(training), torch.get_rng_state()
    targets = torch.arange(6) % 3
    mm.coverage(old, INPUTS)
    new = mm.expand(old, INPUTS, "lemon", {"a": 9})
    mm.receipt(old, new, (INPUTS, targets))
    mm.candidate_pool(old, INPUTS)
    learned = [mm.expand(old, (INPUTS, targets), how, {"a": 9}) for how in ("gradmax", "firefly")]
    assert all(map(untouched, (old, new, *learned)))
    assert torch.equal(random, torch.get_rng_state())


def test_nor_where_layers_are_inserted_whose_statistics_are_fitted():
    torch.manual_seed(0)
    parts = {"hidden": nn.ModuleList([nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4))]), "head": nn.Linear(4, 4)}

    def forward(net, x):
        net.calls += 1
        for layer in net.hidden:
            x = layer(x).relu()
        return net.head(x)

    old, (inputs, _) = Wired(forward, calls=0, **parts), batch()
    new = mm.expand(old, inputs, "deeper_identity", {"hidden.0": 1})
    assert (old.calls, new.calls) == (0, 0)
    assert new.hidden[1][1].running_mean.any()
    torch.testing.assert_close(new.eval()(inputs), old.eval()(inputs))


def test_a_state_is_restored_after_an_error_too():
    network = Counted()

    def fail():
        with restored(network):
            network(INPUTS)
            torch.rand(1)
            raise RuntimeError("halfway")

    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert untouched(network)
    assert torch.equal(random, torch.get_rng_state())
    with seeded(network, 3):
        one = torch.rand(1)
    with seeded(network, 3):
        assert torch.equal(one, torch.rand(1))


class Bound(nn.Module):
    """A function made at the start holds a part of the network."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(3, 3)
        self.register_buffer("scale", torch.ones(3) * 2)
        self.f = {
            "closure": lambda h: self.c(h),
            "no gradient": lambda h: h + self.c.weight.detach()[0],
            "training": lambda h: self.c(h) if self.training else h,
            "buffer": lambda h: h * self.scale,
            "method": self.c.forward,
        }[kind]

    def forward(self, x):
        return self.f(self.b(self.a(x).relu()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["closure", "no gradient", "training", "buffer"])
def test_functions_that_hold_the_old_network_are_refused(kind, dtype):
    old, name = Bound(kind).to(dtype), "scale" if kind == "buffer" else r"c\.weight"
    for operator in ("lemon", "random"):
        with pytest.raises(
            ValueError, match=rf"a copy of the network still reads {name}.* that it keeps \(f\) hold it"
        ):
            mm.expand(old, INPUTS.to(dtype), operator, {"a": 16})
    assert mm.coverage(old, INPUTS.to(dtype))["a"].exact == ()


def test_a_method_follows_its_module():
    old = Bound("method")
    new = mm.expand(old, INPUTS, "lemon", {"a": 16})
    new(INPUTS).sum().backward()
    assert new.c.weight.grad is not None
    assert old.c.weight.grad is None
    torch.testing.assert_close(copy.deepcopy(new)(INPUTS), old(INPUTS))
