"""How a network is called: batches of every kind, and nobody notices."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from cases import INPUTS, Wired, batch, mlp
from torch import Tensor, nn
from torch.nn.modules import module as modules

from mmstudy.core.tasks import Split
from mmstudy.tracing.calls import Call, called, unnoticed
from mmstudy.tracing.couplings import couplings
from mmstudy.tracing.trace import trace


class Two(nn.Module):
    """Two inputs, one of them optional in the form of `scale`."""

    def __init__(self, result=lambda out, hidden: out):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(INPUTS, 5), nn.Linear(2, 5), nn.Linear(5, 3)
        self.result = result

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0):
        hidden = self.one(left).tanh() * self.two(right).tanh()
        return self.result(self.head(scale * hidden), hidden)


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    targets: Tensor


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


LEFT, RIGHT, TARGETS = torch.randn(4, INPUTS), torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
NAMED = {"left": LEFT, "right": RIGHT, "targets": TARGETS}
BATCHES = {
    "tuple": (LEFT, RIGHT),
    "tuple with targets": (LEFT, RIGHT, TARGETS),
    "list": [LEFT, RIGHT, TARGETS],
    "named tuple": namedtuple("Both", "x y")(LEFT, RIGHT),
    "dict": NAMED | {"scale": 2.0},
    "UserDict": UserDict(NAMED),
    "dataclass": Pair(LEFT, RIGHT, TARGETS),
    "call": Call((LEFT,), {"right": RIGHT}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_of_any_kind_is_what_the_network_takes_of_it(kind):
    network = Two()
    found = couplings(network, BATCHES[kind])
    assert {name: group.size for name, group in found.items()} == {"one": 5}
    assert {use.tensor for use in found["one"].uses} == {
        "one.weight", "one.bias", "two.weight", "two.bias", "head.weight"
    }  # fmt: skip
    call = called(network, BATCHES[kind])
    expected = network(LEFT, RIGHT, scale=2.0 if kind == "dict" else 1.0)
    assert torch.equal(call.of(network), expected)


def test_of_inputs_and_targets_the_network_takes_the_inputs():
    inputs, targets = batch()
    network = mlp()
    fields = dataclass(type("Pair", (), {"__annotations__": {"x": Tensor, "y": Tensor}}))(inputs, targets)
    for whole in ((inputs, targets), [inputs, targets], Split(inputs, targets), fields, {"x": inputs, "y": targets}):
        assert torch.equal(called(network, whole).of(network), network(inputs))
        assert couplings(network, whole)["hidden.0"].uses == couplings(network, inputs)["hidden.0"].uses


RESULTS = {
    "tuple": lambda out, hidden: (out, None),
    "dict": lambda out, hidden: {"logits": out, "parts": [out, "a word"]},
    "UserDict": lambda out, hidden: UserDict(logits=out),
    "dataclass": lambda out, hidden: Output(out),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_network_may_return_any_tree_of_tensors(kind):
    assert {n: g.size for n, g in couplings(Two(RESULTS[kind]), (LEFT, RIGHT)).items()} == {"one": 5}


@pytest.mark.parametrize("result", [lambda o, h: (o, h), lambda o, h: {"h": [h], "o": o}, lambda o, h: Output(o, h)])
def test_everything_that_a_network_returns_is_fixed(result):
    assert couplings(Two(result), (LEFT, RIGHT)) == {}


REFUSED = {
    "no batch": (mlp(), None, TypeError, "a batch must be a tensor.*got None"),
    "words": (mlp(), ["a word"], TypeError, "a batch must be a tensor"),
    "nobody": (mlp(), torch.zeros(0, INPUTS), ValueError, r"an empty batch, of shape \(0, 7\)"),
    "NaN": (mlp(), torch.full((2, INPUTS), torch.nan), ValueError, "14 of 14 numbers in the batch are NaN"),
    "double": (mlp(), LEFT.double(), ValueError, "The network is float32 and the batch float64: convert one"),
    "single": (mlp(dtype=torch.float64), LEFT, ValueError, "The network is float64 and the batch float32"),
    "width": (mlp(), RIGHT, ValueError, r"cannot be called on this batch \(float32 \(4, 2\)\)"),
    "few parts": (Two(), (LEFT,), ValueError, "Two takes left, right, and the batch has 1 part"),
    "other names": (Two(), {"x": LEFT}, ValueError, "Two takes left, right, scale by name; the batch has x"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("function", [trace, couplings])
def test_what_cannot_be_called_is_refused_at_the_door(case, function):
    network, examples, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        function(network, examples)


@pytest.mark.parametrize("network", [None, "resnet18", Two])
def test_what_is_no_network_is_refused_by_its_value(network):
    with pytest.raises(TypeError, match=f"a network must be a torch.nn.Module; got {network!r}"):
        called(network, LEFT)


def test_a_network_that_runs_but_chooses_by_its_numbers_is_no_bad_call():
    network = Wired(lambda net, x: net.a(x) if x.sum() > 0 else -net.a(x), a=nn.Linear(3, 2))
    with pytest.raises(NotImplementedError, match="the network runs, but"):
        couplings(network, torch.ones(2, 3))


def test_no_hook_of_any_kind_runs_while_a_network_is_traced_and_all_are_back_afterwards():
    network, seen = mlp(), []

    def note(*args, **kwargs):
        seen.append(args)

    first = network.hidden[0]
    handles = [
        first.register_forward_hook(note),
        first.register_forward_hook(note, prepend=True),
        first.register_forward_hook(note, with_kwargs=True, always_call=True),
        first.register_forward_pre_hook(note),
        network.register_full_backward_hook(note),
        network.register_full_backward_pre_hook(note),
        network.register_state_dict_pre_hook(note),
        network.register_state_dict_post_hook(note),
        modules.register_module_forward_hook(note),
        modules.register_module_forward_pre_hook(note),
        modules.register_module_module_registration_hook(note),
    ]
    try:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_backward_hooks")
        before = [(list(vars(m)[kind].items())) for m in (network, first) for kind in kinds]
        couplings(network, batch()[0])
        assert seen == []
        assert [(list(vars(m)[kind].items())) for m in (network, first) for kind in kinds] == before
        network(batch()[0])
        assert len(seen) >= 6
    finally:
        for handle in handles:
            handle.remove()
    assert not first._forward_hooks
    assert not modules._global_forward_hooks


def test_hooks_are_back_where_tracing_fails():
    network = Wired(lambda net, x: net.a(x) if x.sum() > 0 else -net.a(x), a=nn.Linear(3, 2))
    network.a.register_forward_hook(lambda *_: None)
    with pytest.raises(NotImplementedError, match="cannot follow it"):
        couplings(network, torch.ones(2, 3))
    assert len(network.a._forward_hooks) == 1


def test_what_a_network_keeps_of_its_calls_is_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls, self.last = nn.Linear(3, 2), 0, None

        def forward(self, x):
            self.calls, self.last = self.calls + 1, x.shape
            self.extra = self.calls
            return self.layer(x)

    network = Counting()
    couplings(network, torch.ones(2, 3))
    assert (network.calls, network.last, hasattr(network, "extra")) == (0, None, False)


def test_hooks_of_torch_that_compute_weights_stay():
    network = nn.utils.spectral_norm(nn.Linear(3, 2))
    network.register_forward_hook(lambda *_: None)
    with unnoticed(network):
        assert len(network._forward_pre_hooks) == 1
        assert len(network._forward_hooks) == 0
