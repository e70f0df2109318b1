from itertools import pairwise

import pytest
import torch
from cases import CLASSES, INPUTS, batch, change, mlp, of_family
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmstudy.core.networks import MLP, initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion import copies
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.growth import Growth
from mmstudy.expansion.plans import NEW, Plan, transform
from mmstudy.expansion.surgery import rebuilt
from mmstudy.tracing.couplings import Coupling, couplings

DOUBLE = torch.float64
SMALL = mlp((5, 4), dtype=DOUBLE)
GROUPS = couplings(SMALL, batch(dtype=DOUBLE)[0])


def growth(size: int, seed: int = 0, network: nn.Module = SMALL, group: Coupling | None = None) -> Growth:
    group = group or GROUPS["hidden.0"]
    return Growth(network, group, size, generator("copies", seed), batch(dtype=DOUBLE))


def carried_out(network: nn.Module, plan: Plan, touch) -> dict[str, torch.Tensor]:
    return transform({name: p.detach() for name, p in network.named_parameters()}, plan, touch)


def by_hand(source: list[int], weight, bias, following) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Net2WiderNet, equations 3 to 5, unit by unit: rows are copied, columns are copied and divided by their count."""
    rows = torch.stack([weight[of] for of in source])
    biases = torch.stack([bias[of] for of in source])
    columns = torch.stack([following[:, of] / source.count(of) for of in source], 1)
    return rows, biases, columns


@given(seed=st.integers(0, 999), size=st.integers(6, 30))
def test_net2net_without_noise_is_the_paper_unit_by_unit(seed, size):
    plan, touch = copies.net2net(growth(size, seed), noise=0.0)
    new, old = carried_out(SMALL, plan, touch), {name: p.detach() for name, p in SMALL.named_parameters()}
    source = plan.source.tolist()
    assert source[:5] == list(range(5))
    assert len(source) == size
    expected = by_hand(source, old["hidden.0.weight"], old["hidden.0.bias"], old["hidden.1.weight"])
    for name, tensor in zip(("hidden.0.weight", "hidden.0.bias", "hidden.1.weight"), expected, strict=True):
        torch.testing.assert_close(new[name], tensor, rtol=1e-15, atol=0)


def test_the_copied_units_are_drawn_evenly():
    plan, _ = copies.bert2bert(growth(5 + 4000))
    counts = torch.bincount(plan.source[5:], minlength=5)
    z = (counts - 800) / (4000 * 0.2 * 0.8) ** 0.5
    assert z.abs().max() < 4


def test_flattened_channels_and_convolutions_are_copied_as_the_paper_says():
    """A convolution is copied along its output channels; each channel is read at all of its positions."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    inputs = torch.randn(4, 2, 4, 4, dtype=DOUBLE)
    group = couplings(network, inputs)["0"]
    plan, touch = copies.bert2bert(growth(8, 0, network, group))
    new, source = rebuilt(network, plan, inputs, touch), plan.source.tolist()
    for unit, of in enumerate(source):
        assert torch.equal(new[0].weight[unit], network[0].weight[of])
        share = network[3].weight[:, 4 * of : 4 * of + 4] / source.count(of)
        torch.testing.assert_close(new[3].weight[:, 4 * unit : 4 * unit + 4], share, rtol=1e-15, atol=0)
    assert change(network, new, inputs) < 1e-13


def test_the_noise_of_net2net_parts_the_copies_alone_and_has_its_size():
    network = initialize(MLP(INPUTS, (50, 4), CLASSES).double(), generator("wide"))
    group = couplings(network, batch(dtype=DOUBLE)[0])["hidden.0"]
    plain, noisy = (
        carried_out(network, *copies.net2net(growth(450, 1, network, group), noise=noise)) for noise in (0.0, 0.1)
    )
    assert torch.equal(noisy["hidden.1.weight"], plain["hidden.1.weight"])
    for name in ("hidden.0.weight", "hidden.0.bias"):
        old = network.get_parameter(name)
        assert torch.equal(noisy[name][:50], old)
        draws = (noisy[name] - plain[name])[50:] / (0.1 * old.std(correction=0))
        n = draws.numel()
        assert abs(draws.mean()) * n**0.5 < 4  # standard normal, by the first, second and fourth moment
        assert abs((draws**2).mean() - 1) * (n / 2) ** 0.5 < 4
        assert abs((draws**4).mean() - 3) * (n / 96) ** 0.5 < 4


@pytest.mark.parametrize("place", ["hidden.0", "hidden.1"])
def test_the_copies_of_bert2bert_stay_equal_under_gradient_descent_with_weight_decay(place):
    inputs, targets = batch(dtype=DOUBLE)
    candidate = Candidate("bert2bert", (place,), (13,))
    new = candidate.expand(mlp((5, 4), dtype=DOUBLE), inputs)
    layer = new.get_submodule(place)
    before = layer.weight.detach().clone()
    equal = (before.unsqueeze(0) == before.unsqueeze(1)).all(2)
    assert equal.sum() > 13
    optimizer = torch.optim.SGD(new.parameters(), 0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(new(inputs), targets).backward()
        optimizer.step()
    after = layer.weight.detach()
    assert (after - before).abs().max() > 1e-3
    apart = (after.unsqueeze(0) - after.unsqueeze(1)).abs().amax(2)
    assert apart[equal].max() < 1e-13 < 1e-3 < apart[~equal].min()


@pytest.mark.parametrize(
    ("family", "place", "rows"),
    [
        ("MLP", "hidden.1", {"hidden.1.weight": "hidden.2.weight", "hidden.1.bias": "hidden.2.bias"}),
        ("ResNet, batch norm", "stages.0.0.conv1", {"stages.0.0.conv1.weight": "stages.0.1.conv1.weight"}),
        ("ViT", "blocks.0.up", {f"blocks.0.up.{kind}": f"blocks.1.up.{kind}" for kind in ("weight", "bias")}),
    ],
)
def test_advanced_bert2bert_takes_new_rows_from_the_next_layer(family, place, rows):
    kind, network, inputs, targets = of_family(family, 3)
    group = couplings(network, inputs)[place]
    n = group.size
    grown = Growth(network, group, 2 * n - 1, generator("aki"), (inputs, targets), kind.loss_fn)
    plan, touch = copies.bert2bert_advanced(grown)
    new = carried_out(network, plan, touch)
    for name, later in rows.items():
        old, following = network.get_parameter(name).detach(), network.get_parameter(later).detach()
        assert torch.equal(new[name][:n], old)
        for unit in range(n, 2 * n - 1):
            assert torch.equal(new[name][unit], following[plan.source[unit]])
    (reader,) = group.of("consumed")
    old = network.get_parameter(reader.tensor).detach()
    torch.testing.assert_close(new[reader.tensor], torch.einsum("nu,mu...->mn...", plan.read, old))


def test_advanced_bert2bert_needs_a_next_layer_of_the_same_shape():
    with pytest.raises(ValueError, match=r"hidden\.0\.weight has no successor of its shape"):
        copies.bert2bert_advanced(growth(7))


@given(seed=st.integers(0, 999), size=st.integers(6, 30))
def test_the_shares_of_lemon_sum_to_one_and_differ(seed, size):
    plan, touch = copies.lemon(growth(size, seed))
    shares = plan.read.sum(1)
    assert plan.source.tolist() == [i % 5 for i in range(size)]
    for unit in range(5):
        mine = shares[plan.source == unit]
        assert float(mine.sum()) == pytest.approx(1, rel=1e-14)
        assert (mine > 0).all()
        assert len(mine) == 1 or mine.max() - mine.min() > 1e-9
        assert mine.max() <= 3 * mine.min()  # drawn from [0.5, 1.5]
    old, new = SMALL.hidden[1].weight.detach(), carried_out(SMALL, plan, touch)["hidden.1.weight"]
    torch.testing.assert_close(new, old[:, plan.source] * shares)


@given(seed=st.integers(0, 999), times=st.integers(2, 5))
def test_the_noise_of_hypercloning_cancels_among_the_clones(seed, times):
    plan, touch = copies.hypercloning(growth(5 * times, seed), noise=0.3)
    new, old = carried_out(SMALL, plan, touch), SMALL.hidden[1].weight.detach()
    clones = new["hidden.1.weight"].unflatten(1, (times, 5))
    torch.testing.assert_close(clones.sum(1), old, rtol=0, atol=1e-14)
    assert (clones - old.unsqueeze(1) / times).abs().min() > 1e-7
    for clone in new["hidden.0.weight"].unflatten(0, (times, 5)):
        assert torch.equal(clone, SMALL.hidden[0].weight)


def test_the_noise_of_hypercloning_has_its_size():
    network = initialize(MLP(INPUTS, (50, 60), CLASSES).double(), generator("wide"))
    group = couplings(network, batch(dtype=DOUBLE)[0])["hidden.0"]
    plain, noisy = (
        carried_out(network, *copies.hypercloning(growth(150, 1, network, group), noise=noise))["hidden.1.weight"]
        for noise in (0.0, 0.1)
    )
    draws = (noisy - plain) / (0.1 * plain.std(correction=0))
    n = draws.numel() * 2 / 3  # of three clones' noise, one is given by the others
    assert abs((draws**2).mean() - 2 / 3) / (2 / 3) * (n / 2) ** 0.5 < 4


def test_hypercloning_clones_whole_groups_only():
    with pytest.raises(ValueError, match="14 is no multiple of 5"):
        copies.hypercloning(growth(14))


def smooth(dtype=DOUBLE) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(INPUTS, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, CLASSES)
    return nn.Sequential(*layers).to(dtype)


@pytest.mark.parametrize(("place", "size"), [("3", 7), ("3", 10), ("3", 15), ("3", 16), ("3", 20)])
def test_firefly_changes_the_function_in_second_order(place, size):
    network, (inputs, targets) = smooth(), batch(dtype=DOUBLE)
    group = couplings(network, inputs)[place]
    changes = []
    for noise in (4e-2, 2e-2, 1e-2):
        grown = Growth(network, group, size, generator("split"), (inputs, targets))
        changes.append(change(network, rebuilt(network, *_swap(copies.firefly(grown, noise), inputs)), inputs))
    assert changes[0] > 1e-7
    for wide, half in pairwise(changes):
        assert wide / half == pytest.approx(4, rel=0.1)


def _swap(made, inputs):
    plan, touch = made
    return plan, inputs, touch


@pytest.mark.parametrize("size", [7, 12, 13, 18, 19, 20, 24, 25])
def test_firefly_splits_in_pairs_also_where_units_are_normalized_together(size):
    """An odd copy, and the rest that is no copy, stay in the middle."""
    network, (inputs, targets) = smooth(), batch(dtype=DOUBLE)
    group = couplings(network, inputs)["0"]
    plan, touch = copies.firefly(Growth(network, group, size, generator("split"), (inputs, targets)))
    new, plain = (carried_out(network, plan, how)["0.weight"] for how in (touch, None))
    moves = new - plain
    assert (moves[plan.source == NEW] == 0).all()
    for unit in range(6):
        mine = moves[plan.source == unit]
        torch.testing.assert_close(mine.sum(0), torch.zeros(INPUTS, dtype=DOUBLE), rtol=0, atol=1e-15)
        pairs = len(mine) // 2
        lengths = mine.norm(dim=1)
        assert (lengths > 0).sum() == 2 * pairs
        expected = copies.NOISE * network[0].weight.norm(dim=1).mean()
        torch.testing.assert_close(lengths[lengths > 0], expected.expand(2 * pairs).detach())


def bent(network: nn.Module, layer: int, unit: int, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Second derivative, in d, of the loss with this unit split into w + d and w − d: the splitting matrix."""

    def loss(d: torch.Tensor) -> torch.Tensor:
        x = network[: layer + 1](inputs)
        up, down = x[:, unit] + inputs_of @ d, x[:, unit] - inputs_of @ d
        halves = (network[layer + 1](up) + network[layer + 1](down)) / 2
        hidden = network[layer + 1](x)
        hidden = torch.cat([hidden[:, :unit], halves.unsqueeze(1), hidden[:, unit + 1 :]], 1)
        return nn.functional.cross_entropy(network[layer + 2 :](hidden), targets)

    inputs_of = network[:layer](inputs).detach()
    return torch.func.hessian(loss)(torch.zeros(inputs_of.shape[1], dtype=inputs.dtype))


@pytest.mark.parametrize("steps_of_training", [0, 100])
def test_firefly_finds_the_lowest_curvature_of_a_split(steps_of_training):
    """Held against the splitting matrices' eigenvalues, with biases left alone; not the largest in absolute value."""
    network, (inputs, targets) = smooth(), batch(dtype=DOUBLE)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps_of_training):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    group = couplings(network, inputs)["3"]
    plan, touch = copies.firefly(Growth(network, group, 10, generator("split"), (inputs, targets)), 1e-3, steps=60)
    new = carried_out(network, plan, touch)["3.weight"]
    largest_wins = 0
    for unit in range(5):
        matrix = bent(network, 3, unit, inputs, targets).detach()
        values = torch.linalg.eigvalsh(matrix)
        d = (new[unit] - network[3].weight[unit]).detach()
        d = d / d.norm()
        assert float(d @ matrix @ d) <= values[0] + 0.02 * (values[-1] - values[0])
        largest_wins += int(values[-1] > -values[0])
    assert steps_of_training == 0 or largest_wins == 5


@pytest.mark.parametrize("steps_of_training", [0, 100])
def test_firefly_as_it_is_does_better_than_directions_drawn_at_random(steps_of_training):
    network, (inputs, targets) = smooth(), batch(dtype=DOUBLE)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(steps_of_training):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    group = couplings(network, inputs)["3"]

    def loss(steps: int, seed: int) -> float:
        grown = Growth(network, group, 10, generator("split", seed), (inputs, targets))
        return grown.loss(rebuilt(network, *_swap(copies.firefly(grown, 0.1, steps), inputs))).item()

    drawn, found = ([loss(steps, seed) for seed in range(6)] for steps in (0, copies.SPLIT_STEPS))
    assert max(found) < min(drawn)
