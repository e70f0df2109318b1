import numpy as np
import pytest
import torch
import xarray as xr
from cases import CLASSES, INPUTS, batch, mlp, uneven
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import objective
from mmstudy.core.networks import MLP, count_parameters, evaluating, initialize
from mmstudy.core.seeds import generator
from mmstudy.manifold.directions import filter_normalized
from mmstudy.validation import symmetries

RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12}


def normalized(seed: int = 0, dtype: torch.dtype = torch.float32) -> MLP:
    network = MLP(INPUTS, (6, 4), CLASSES, normalized=True)
    return uneven(initialize(network, generator("normalized", seed)), seed).to(dtype)


def norm(network: nn.Module) -> Tensor:
    """The distance from the origin of parameter space."""
    return nn.utils.parameters_to_vector(network.parameters()).detach().norm()


def paths(network: MLP) -> Tensor:
    """Σ over paths to the outputs of Π |w| (Neyshabur et al. 2015, arXiv 1503.00036): no symmetry changes it."""
    x = torch.ones(1, network.hidden[0].weight.shape[1])
    for layer in (*network.hidden, network.head):
        x = nn.functional.linear(x, layer.weight.abs(), layer.bias.abs())
    return x.detach().sum()


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("build", [mlp, normalized])
@pytest.mark.parametrize("name", symmetries.SYMMETRIES)
def test_the_function_stays_in_both_modes_and_the_network_is_another(name, build, dtype):
    network, (inputs, _) = build(dtype=dtype), batch(dtype=dtype)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    changed = symmetries.SYMMETRIES[name](network, generator("symmetry"))
    with evaluating(network), evaluating(changed), torch.no_grad():
        old, new = network(inputs), changed(inputs)
    assert float((new - old).abs().max() / old.abs().max()) < RELATIVE[dtype]
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    own = dict(network.named_parameters())
    assert all(p is not own[n] for n, p in changed.named_parameters())
    assert any(p.shape != own[n].shape or not torch.equal(p, own[n]) for n, p in changed.named_parameters())
    with torch.no_grad():
        old, new = network.train()(inputs), changed.train()(inputs)  # batch statistics
    assert float((new - old).abs().max() / old.abs().max()) < RELATIVE[dtype]


@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 99), spread=st.floats(0, 2))
def test_functions_stay_whatever_the_widths(widths, seed, spread):
    network, (inputs, _) = mlp(tuple(widths), seed, torch.float64), batch(8, seed, torch.float64)
    for changed in (
        symmetries.permuted(network, generator(seed)),
        symmetries.rescaled(network, generator(seed), spread),
        symmetries.rescaled(network, generator(seed), spread, together=True),
    ):
        torch.testing.assert_close(changed(inputs), network(inputs), rtol=1e-11, atol=1e-12)


def test_permuting_keeps_every_unit_and_its_order_is_drawn():
    network = mlp((50,))
    changed = symmetries.permuted(network, generator("permuted"))
    order = [int((row == network.hidden[0].weight).all(1).nonzero()) for row in changed.hidden[0].weight]
    assert sorted(order) == list(range(50)) != order
    assert torch.equal(changed.hidden[0].bias, network.hidden[0].bias[order])
    assert torch.equal(changed.head.weight, network.head.weight[:, order])
    assert torch.equal(changed.head.bias, network.head.bias)
    again = symmetries.permuted(network, generator("permuted"))
    assert torch.equal(again.head.weight, changed.head.weight)


def test_scales_are_log_normal_and_meet_again():
    network = mlp((4000,), dtype=torch.float64)
    for together in (False, True):
        changed = symmetries.rescaled(network, generator("scales"), 0.7, together)
        scale = (changed.hidden[0].weight / network.hidden[0].weight).detach()
        assert torch.allclose(scale, scale[:, :1])
        assert torch.allclose(changed.hidden[0].bias / network.hidden[0].bias, scale[:, 0])
        assert torch.allclose(changed.head.weight * scale[:, 0], network.head.weight)
        spread = 0 if together else 0.7
        assert scale[:, 0].log().std().item() == pytest.approx(spread, abs=4 * 0.7 / 8000**0.5)
    same = symmetries.rescaled(network, generator("scales"), 0.0)
    assert torch.equal(same.head.weight, network.head.weight)
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="spread is a standard deviation of ln s, ≥ 0 and finite; got"):
            symmetries.rescaled(network, generator("scales"), bad)


def test_copies_are_equal_and_share_what_reads_them():
    network = mlp((6, 4), dtype=torch.float64)
    one, every = symmetries.duplicated(network), symmetries.duplicated(network, every=True)
    assert [len(layer.weight) for layer in one.hidden] == [7, 5]
    assert [len(layer.weight) for layer in every.hidden] == [12, 8]
    assert torch.equal(one.hidden[0].weight[6], one.hidden[0].weight[0])
    assert torch.equal(one.head.weight[:, 4], network.head.weight[:, 0] / 2)
    assert torch.equal(one.head.weight[:, 1:4], network.head.weight[:, 1:])
    assert torch.equal(every.head.weight, network.head.weight.repeat(1, 2) / 2)
    assert every.hidden[0].bias.tolist() == network.hidden[0].bias.repeat(2).tolist()
    assert count_parameters(one) > count_parameters(network)


def test_shares_of_copies_are_flat_directions():
    network = symmetries.duplicated(mlp((6, 4), dtype=torch.float64))
    inputs, _ = batch(dtype=torch.float64)
    before = network(inputs)
    with torch.no_grad():
        network.head.weight[:, 0] += 3
        network.head.weight[:, 4] -= 3
    torch.testing.assert_close(network(inputs), before, rtol=1e-11, atol=1e-12)


def measured(networks) -> xr.Dataset:
    known = {"paths": paths, "norm": norm, "parameters": count_parameters}
    return xr.Dataset({name: ("parent", [float(of(net)) for net in networks]) for name, of in known.items()})


def test_responses_of_what_is_known():
    nets = [mlp(seed=i, dtype=torch.float32) for i in range(4)]
    found = symmetries.responses(measured, nets)
    assert dict(found.sizes) == {"measure": 3, "parent": 4, "symmetry": 5}
    assert found["ratio"].sel(measure="paths").values == pytest.approx(1, abs=1e-5)
    assert found["before"].sel(measure="paths").values == pytest.approx([float(paths(net)) for net in nets])
    distance = found["ratio"].sel(measure="norm")
    assert distance.sel(symmetry="permuted").values == pytest.approx(1, abs=1e-5)
    others = distance.drop_sel(symmetry="permuted")
    assert (abs(others - 1) > 1e-4).all()
    xr.testing.assert_identical(found, symmetries.responses(measured, nets))
    assert not found["after"].equals(symmetries.responses(measured, nets, seed=1)["after"])
    counted = found["ratio"].sel(measure="parameters", symmetry="duplicated, every unit")
    assert counted.values == pytest.approx(count_parameters(mlp((12, 8))) / count_parameters(mlp((6, 4))))
    with pytest.raises(ValueError, match="nothing to measure: no networks"):
        symmetries.responses(measured, [])


def responding(noise: float, shift: float, scatter: float, networks: int = 4) -> xr.Dataset:
    """What is said of 20,000 measures of so much noise, a symmetry shifting or scattering their logarithms."""
    draw = torch.randn(3, 20_000, networks, generator=generator("changes"), dtype=torch.float64).numpy()
    logs = np.stack([noise * draw[0], noise * draw[1] + shift + scatter * draw[2]])
    ratio = xr.DataArray(np.exp(logs), {"symmetry": ["permuted", "other"]}, ("symmetry", "measure", "parent"))
    return symmetries.changes(ratio)


def test_a_change_is_what_exceeds_the_noise_of_so_few_networks():
    """Where nothing changes, either of two tests says so at its level, however few the networks."""
    none = responding(1, 0, 0)["changes"].mean("measure")
    assert float(none.sel(symmetry="permuted")) == pytest.approx(0.003, abs=0.0015)
    assert 0.003 < float(none.sel(symmetry="other")) < 0.008
    for shift, scatter in ((30, 0), (0, 30)):
        some = responding(1, shift, scatter).sel(symmetry="other")
        assert some["changes"].mean() > 0.9
        assert float(np.log(some["response"]).mean()) == pytest.approx(shift, abs=0.3)
    assert not responding(0.001, 0.015, 0)["changes"].any()  # sure, but small


def test_a_change_of_two_networks_is_none():
    ratio = xr.DataArray(
        [[1.1, 1.2, 1.3, 0.9], [5, np.nan, 5, np.nan]], {"symmetry": ["permuted", "other"]}, ("symmetry", "parent")
    )
    for nothing in (np.nan, 0.0, np.inf):
        found = symmetries.changes(ratio.fillna(nothing))
        assert not found["changes"].any()
        assert found["response"].isnull().values.tolist() == [False, True]


def test_filter_normalized_directions_respond_to_scales_of_units_but_not_to_those_of_layers():
    """Along them the loss is the same function of the multiple, where every filter is as long as the parent's."""

    def along(network: MLP) -> Tensor:
        stacked = en.stack([network])
        points = en.vectors(stacked)
        directions = filter_normalized(stacked, points, 20, generator("filters"))
        return objective.of_networks(stacked, batch(dtype=torch.float64))(points.unsqueeze(1) + 0.5 * directions)

    network = mlp(dtype=torch.float64)
    together = symmetries.rescaled(network, generator("layers"), 1.0, together=True)
    torch.testing.assert_close(along(together), along(network), rtol=1e-10, atol=0)
    apart = symmetries.rescaled(network, generator("units"), 1.0)
    assert ((along(apart) - along(network)).abs() > 1e-2).any()
