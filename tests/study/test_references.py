import copy

import pytest
import torch
from torch import nn

from mmstudy.core import networks
from mmstudy.core.seeds import generator
from mmstudy.study.references import from_scratch, shrink_perturb

NETWORKS = {
    "MLP, batch norm": lambda: networks.MLP(6, (50, 40), 3, normalized=True),
    "ResNet, group norm": lambda: networks.ResNet(1, (4, 8), (1, 1), 3, "group", (4, 4)),
    "ViT": lambda: networks.ViT((1, 4, 4), (2, 2), 8, 1, 2, 3),
    "decoder": lambda: networks.Decoder(9, 5, 8, 1, 2),
}


@pytest.fixture(params=NETWORKS)
def trained(request) -> nn.Module:
    """A network in which no tensor has a value that a new one would have."""
    network = networks.initialize(NETWORKS[request.param](), generator("trained"))
    with torch.no_grad():
        for name, tensor in networks.named_tensors(network).items():
            if tensor.is_floating_point():
                tensor.copy_(3 + torch.rand(tensor.shape, generator=generator("trained", name)))
    return network


def tensors(network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in networks.named_tensors(network).items()}


@pytest.mark.parametrize("reference", [from_scratch, shrink_perturb])
def test_the_argument_is_left_alone_and_the_generator_names_the_result(trained, reference):
    before = tensors(trained)
    torch.manual_seed(1)
    first = reference(trained, generator("a"))
    torch.manual_seed(2)
    same, other = reference(trained, generator("a")), reference(trained, generator("b"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(trained).items())
    assert tensors(first).keys() == before.keys()
    assert all(torch.equal(tensor, tensors(same)[name]) for name, tensor in tensors(first).items())
    assert not all(torch.equal(tensor, tensors(other)[name]) for name, tensor in tensors(first).items())
    shapes = [{name: tensor.shape for name, tensor in some.items()} for some in (before, tensors(first))]
    assert shapes[0] == shapes[1]
    assert type(first) is type(trained)


def test_from_scratch_nothing_is_left_of_the_old_network(trained):
    network = from_scratch(trained, generator("new"))
    expected = networks.initialize(copy.deepcopy(trained), generator("new"))
    for module, same in zip(network.modules(), expected.modules(), strict=True):
        own, drawn = dict(module.named_parameters(recurse=False)), dict(same.named_parameters(recurse=False))
        if isinstance(module, nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        else:
            assert all(torch.equal(own[name], drawn[name]) for name in own)
            assert all(parameter.abs().max() <= 1 for parameter in own.values())
        if isinstance(module, nn.BatchNorm1d):
            assert (module.running_mean == 0).all() and (module.running_var == 1).all()


def test_weights_from_scratch_are_uniform_up_to_the_inverse_root_of_the_inputs():
    network = from_scratch(networks.MLP(6, (50, 40), 3), generator("new"))
    for layer in (*network.hidden, network.head):
        scaled = layer.weight.detach() * layer.in_features**0.5  # U(−1, 1): mean 0, variance 1/3
        n = scaled.numel()
        assert scaled.abs().max() <= 1
        assert abs(scaled.mean()) < 4 * (1 / 3 / n) ** 0.5
        assert abs(scaled.square().mean() - 1 / 3) < 4 * (4 / 45 / n) ** 0.5


def test_what_is_tied_stays_tied():
    decoder = NETWORKS["decoder"]()
    for reference in (from_scratch, shrink_perturb):
        network = reference(decoder, generator("new"))
        assert network.head.weight is network.embedding.weight
        assert network.head.weight is not decoder.head.weight


def test_shrink_perturb_is_its_formula(trained):
    changed, fresh = shrink_perturb(trained, generator("p"), 0.7, 0.2), from_scratch(trained, generator("p"))
    for old, new, found in zip(trained.parameters(), fresh.parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(found, 0.7 * old + 0.2 * new)
    statistics = zip(trained.buffers(), changed.buffers(), strict=True)
    assert all(torch.equal(old, found) for old, found in statistics)
    kept, forgotten = (shrink_perturb(trained, generator("p"), *pair) for pair in ((1.0, 0.0), (0.0, 1.0)))
    for whole, part in ((trained, kept), (fresh, forgotten)):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_a_module_whose_start_is_not_known_is_refused():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"'1', a Scale"):
        from_scratch(nn.Sequential(nn.Linear(2, 3), Scale()), generator(0))
