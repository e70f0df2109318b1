import threading

import pytest
import torch
from cases import Wired, change
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import mmstudy as mm
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.replacing import parted, sharing

CHANNELS_LAST = torch.channels_last


def images() -> tuple[nn.Module, torch.Tensor]:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    return network.to(memory_format=CHANNELS_LAST), torch.randn(4, 3, 5, 5)


@pytest.mark.parametrize("candidate", [Candidate("lemon", ("0",), (9,)), Candidate("deeper_identity", ("2",), (1,))])
def test_parameters_keep_their_hooks_attributes_and_memory_format(candidate):
    """Those that grow, and those that are only copied."""
    network, inputs = images()
    seen, stored = [], []
    for name, parameter in network.named_parameters():
        parameter.tag = name
        parameter.register_hook(lambda slope, name=name: seen.append((name, tuple(slope.shape))))
        parameter.register_post_accumulate_grad_hook(lambda p: stored.append(p.tag))
    network[6].bias.requires_grad_(False)
    grown = candidate.grow(network, inputs)
    old = {name: p for name, p in grown.network.named_parameters() if name not in grown.inserted}
    assert {name: p.tag for name, p in old.items()} == {name: grown.origin[name] for name in old}
    assert all(p.is_contiguous(memory_format=CHANNELS_LAST) for p in grown.network.parameters() if p.ndim == 4)
    grown.network(inputs).sum().backward()
    trained = {name: p for name, p in old.items() if p.requires_grad}
    assert sorted(seen) == sorted((p.tag, tuple(p.shape)) for p in trained.values())
    assert sorted(stored) == sorted(p.tag for p in trained.values())


def two_norms(forward) -> Wired:
    layers = {"embedding": (3, 6), "up": (6, 8), "down": (8, 6), "head": (6, 2)}
    scales = {f"scale{i}": torch.rand(n) + 1 for i, n in enumerate((6, 8, 6), start=1)}
    return Wired(forward, eps=0.01, **{name: nn.Linear(*size) for name, size in layers.items()}, **scales)


def norm(net, x, scale):
    return F.layer_norm(x, (x.shape[-1],), scale, None, net.eps)


def test_an_eps_that_norms_of_other_units_share_is_not_changed_for_them():
    def apart(net, x):
        x = net.embedding(x)
        y = norm(net, net.up(norm(net, x, net.scale1)), net.scale2).relu()
        return net.head(norm(net, x + net.down(y), net.scale3))

    def together(net, x):
        x = net.embedding(x)
        y = net.up(norm(net, x, net.scale1)).relu()
        return net.head(norm(net, x + net.down(y), net.scale3))

    inputs = torch.randn(9, 3)
    with pytest.raises(ValueError, match=r"the network has one eps \(0\.01\) for several norms, and that of embedding"):
        Candidate("lemon", ("embedding",), (8,)).expand(two_norms(apart), inputs)
    whole = Candidate("lemon", ("embedding",), (12,)).expand(two_norms(apart), inputs)
    assert whole.eps == 0.01
    network = two_norms(together)
    new = Candidate("lemon", ("embedding",), (8,)).expand(network, inputs)
    assert new.eps == pytest.approx(0.01 * 6 / 8)
    assert change(network, new, inputs) < 1e-5


def test_a_copy_shares_its_parameters_until_it_is_kept_and_then_none():
    network, _ = images()
    shared = sharing(network)
    shared[0] = nn.Conv2d(3, 6, 3, padding=1)
    kept = parted(shared, network)
    assert shared[2].weight is network[2].weight
    assert kept[0].weight is shared[0].weight
    places = [{p.data_ptr() for p in each.parameters()} for each in (network, kept)]
    assert not places[0] & places[1]
    assert torch.equal(kept[2].weight, network[2].weight)


@pytest.mark.parametrize("candidate", [Candidate("lemon", ("0",), (9,)), Candidate("deeper_identity", ("2",), (1,))])
def test_training_what_has_grown_leaves_the_old_network_as_it_was(candidate):
    network, inputs = images()
    before = [tensor.clone() for tensor in network.state_dict().values()]
    grown = candidate.expand(network, inputs)
    for tensor in grown.state_dict().values():
        tensor.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))


def locked(network: nn.Module) -> str:
    network[2].lock = threading.Lock()
    return "2.lock"


def pruned(network: nn.Module) -> str:
    prune.l1_unstructured(network[4], "weight", 0.5)
    return "4.weight"


@pytest.mark.parametrize("spoilt", [locked, pruned])
def test_what_cannot_be_copied_is_named(spoilt):
    layers = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    network, inputs = nn.Sequential(*layers), torch.randn(4, 6)
    name = spoilt(network)
    with pytest.raises(ValueError, match=f"the network cannot be copied, as {name} cannot: .* Take it out"):
        mm.expand(network, inputs, "lemon", {"0": 16})
    with pytest.raises(ValueError, match=f"old: the network cannot be copied, as {name} cannot"):
        mm.receipt(network, network, inputs)
    assert f"as {name} cannot" in mm.coverage(network, inputs)["0"].reason


class Marked(nn.Parameter):
    """A class of parameters of one's own, as libraries use it to say how they are sharded or trained."""


def test_parameters_of_a_class_of_their_own_stay_so():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    network[0].weight, network[4].weight = Marked(network[0].weight.data), Marked(network[4].weight.data, False)
    new = mm.expand(network, torch.randn(5, 3), "lemon", {"0": 9})
    assert [type(p) is Marked for p in new.parameters()] == [type(p) is Marked for p in network.parameters()]
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in network.parameters()]
    new(torch.randn(5, 3)).sum().backward()
    assert new[0].weight.grad.shape == (9, 3)
