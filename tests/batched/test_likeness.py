"""The first network's forward pass is that of all: networks that only look alike are no ensemble."""

import copy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cases import batch, convolutional, mlp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from mmstudy.batched import connectivity
from mmstudy.batched import ensemble as en
from mmstudy.batched.likeness import difference
from mmstudy.core.networks import ViT


@dataclass
class Config:
    """A configuration that a network keeps."""

    heads: int = 3
    scale: float = 1.0


class Net(nn.Module):
    """A network with numbers, functions and objects in attributes that no printout shows."""

    def __init__(self, eps=1e-5, activation=F.relu, heads=3, scales=(1.0, 2.0), table=0.0):
        super().__init__()
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.eps, self.activation, self.config = eps, activation, Config(heads)
        self.options = {"scales": list(scales), "space": SimpleNamespace(depth=2)}
        self.table = torch.full((6,), table)

    def forward(self, x):
        hidden = self.activation(self.body(x)) / (self.eps + 1) + self.table
        return self.head(hidden * self.config.scale * self.options["scales"][0])


class Places(nn.Module):
    """Two layers, and what may point to either of them."""

    def __init__(self, **pointers):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        for name, of in pointers.items():
            setattr(self, name, of(self))


def with_nothing(name: str) -> nn.Module:
    network = nn.Linear(3, 3)
    network.register_parameter(name, None)
    return network


def with_global(value: float):
    """A function of code that reads a global, of this value."""
    return eval("lambda x: x * SCALE", {"SCALE": value})


def tied(to: str) -> nn.Module:
    network = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abc"})
    network["c"].weight = network[to].weight
    return network


def importing():
    def activation(x):
        import torch_of_nobody

        return torch_of_nobody.relu(x)

    return activation


def times(factor: float):
    return lambda x: x * factor


def factor(value: float):
    return lambda network: times(value)


def pruned() -> nn.Module:
    network = nn.Linear(3, 2)
    prune.l1_unstructured(network, "weight", 0.5)
    return network


def normalized() -> nn.Module:
    network = nn.Linear(3, 2)
    with pytest.warns(FutureWarning, match="deprecated"):
        return older_weight_norm(network)


def with_hooks(*hooks, keywords: int | None = None) -> nn.Module:
    network = nn.Linear(3, 2)
    for i, hook in enumerate(hooks):
        network.register_forward_pre_hook(hook, with_kwargs=i == keywords)
    return network


ALIKE = {
    "numbers": (Net(), Net()),
    "the same activation": (Net(activation=torch.tanh), Net(activation=torch.tanh)),
    "functions of one code": (Net(activation=times(2.0)), Net(activation=times(2.0))),
    "partial functions": (Net(activation=partial(F.leaky_relu, negative_slope=0.1)),
                          Net(activation=partial(F.leaky_relu, negative_slope=0.1))),
    "a copy": (Net(), copy.deepcopy(Net())),
    "modes": (Net().train(), Net().eval()),
    "perceptrons": (mlp(seed=0), mlp(seed=1)),
    "recurrent": (nn.LSTM(3, 4), nn.LSTM(3, 4)),
    "convolutions": (convolutional(0), convolutional(1)),
    "pointers": (Places(c=lambda n: n.a, kept=lambda n: [n.b], run=lambda n: n.a.forward),
                 Places(c=lambda n: n.a, kept=lambda n: [n.b], run=lambda n: n.a.forward)),
    "weight norm": (weight_norm(nn.Linear(3, 2)), weight_norm(nn.Linear(3, 2))),
    "a copy of spectral norm": (spectral_norm(nn.Linear(3, 2)), copy.deepcopy(spectral_norm(nn.Linear(3, 2)))),
    "functions that import": (Net(activation=importing()), Net(activation=importing())),
    "equal globals": (Net(activation=with_global(2.0)), Net(activation=with_global(2.0))),
    "tied": (tied("a"), tied("a")),
    "pruned": (pruned(), pruned()),
    "the older weight norm": (normalized(), normalized()),
}  # fmt: skip
hidden, own = Net(), Net()
hidden.kept, own.kept = [nn.Parameter(torch.zeros(3))], [nn.Parameter(torch.ones(3))]
UNLIKE = {
    "a parameter that is not registered": (hidden, own, r"kept\[0\]"),
    "eps": (Net(), Net(eps=1e-3), "eps: 1e-05 against 0.001"),
    "activation": (Net(), Net(activation=torch.tanh), "activation"),
    "a function's closure": (Net(activation=times(2.0)), Net(activation=times(3.0)), "activation"),
    "an argument": (Net(activation=partial(F.leaky_relu, negative_slope=0.1)),
                    Net(activation=partial(F.leaky_relu, negative_slope=0.2)), "activation"),
    "a configuration": (Net(), Net(heads=4), "config.heads: 3 against 4"),
    "a number in a list": (Net(), Net(scales=(1.0, 3.0)), r"options.scales\[1\]"),
    "a tensor that is no buffer": (Net(), Net(table=1.0), "table"),
    "type of a number": (Net(scales=(1.0, 2.0)), Net(scales=(1, 2.0)), r"scales\[0\]"),
    "activation module": (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "Tanh"),
    "eps of a LayerNorm": (nn.LayerNorm(3), nn.LayerNorm(3, eps=1e-3), "eps"),
    "what broadcasts": (nn.Linear(1, 3), nn.Linear(4, 3), r"\(3, 1\) against weight \(3, 4\)"),
    "classes": (nn.Linear(2, 2), nn.Bilinear(1, 2, 2), "against"),
    "ties": (tied("a"), tied("b"), r"c\.weight: a\.weight against b\.weight"),
    "names of one module": (Places(c=lambda n: n.a), Places(c=lambda n: n.b), "c: a against b"),
    "a module in a list": (Places(kept=lambda n: [n.a]), Places(kept=lambda n: [n.b]), r"kept\[0\]"),
    "a bound method": (Places(run=lambda n: n.a.forward), Places(run=lambda n: n.b.forward), "run"),
    "a name of nothing": (with_nothing("extra"), nn.Linear(3, 3), "extra: None against nothing"),
    "an order": (Places(each=lambda n: {"a": 1, "b": 2}), Places(each=lambda n: {"b": 2, "a": 1}), "each"),
    "a hook": (with_hooks(times(2.0), times(2.0)), with_hooks(times(2.0), times(3.0)), "_forward_pre_hooks.1"),
    "which hook takes keywords": (with_hooks(times(2.0), times(2.0), keywords=0),
                                  with_hooks(times(2.0), times(2.0), keywords=1), "_forward_pre_hooks_with_kwargs"),
    "the third of three functions": (Places(a0=factor(1.0), a1=factor(1.0), a2=factor(1.0)),
                                     Places(a0=factor(1.0), a1=factor(1.0), a2=factor(2.0)), "a2"),
    "a global": (Net(activation=with_global(2.0)), Net(activation=with_global(3.0)), "activation"),
    "parametrizations": (weight_norm(nn.Linear(3, 2)), spectral_norm(nn.Linear(3, 2)), "parametrizations"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_networks_that_differ_in_numbers_only_are_alike(name):
    first, other = ALIKE[name]
    assert difference(first, other) is None
    assert len(en.stack([first, other])) == 2


@pytest.mark.parametrize("name", UNLIKE)
def test_a_difference_is_found_whoever_asks(name):
    first, other, where = UNLIKE[name]
    with pytest.raises(ValueError, match=where):
        en.stack([first, other])
    one, two = en.stack([first]), en.stack([other])
    with pytest.raises(ValueError, match=where):
        en.concatenate([one, two])
    with pytest.raises(ValueError, match=where):
        connectivity.interpolated(one, two, torch.linspace(0, 1, 3))


def test_vits_of_other_heads_are_other_networks():
    first, other = (ViT(image=(1, 8, 8), patch=(2, 2), width=12, depth=1, heads=heads, outputs=3) for heads in (3, 4))
    with pytest.raises(ValueError, match=r"blocks\.0\.attention"):
        en.stack([first, other])


def test_members_are_modules_of_their_own():
    nets = [convolutional(seed) for seed in range(3)]
    stacked, inputs = en.stack(nets), batch(9)[0]
    members = stacked.members()
    for net, member in zip(nets, members, strict=True):
        assert isinstance(member, nn.Module)
        torch.testing.assert_close(member.eval()(inputs), net.eval()(inputs), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in members[0].parameters():
            parameter.zero_()
    torch.testing.assert_close(stacked.members()[0].eval()(inputs), nets[0](inputs), rtol=0, atol=0)


def test_members_keep_ties_and_what_is_frozen():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    net[1].bias.requires_grad_(False)
    (member,) = en.stack(net).members()
    assert member[1].weight is member[0].weight
    assert not member[1].bias.requires_grad
    assert member[0].bias.requires_grad


def test_concatenated_ensembles_are_of_one_type():
    with pytest.raises(ValueError, match=r"float32.*float64"):
        en.concatenate([en.stack([mlp()]), en.stack([mlp().double()])])
