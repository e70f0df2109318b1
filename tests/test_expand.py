import copy
import pickle
from itertools import pairwise

import pytest
import torch
from cases import CANDIDATES, CLASSES, INPUTS, WIDTHS, batch, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmstudy import expand
from mmstudy.expand import DEEPER, PRESERVING, WIDER, Candidate
from mmstudy.networks import MLP, count_flops, count_parameters
from mmstudy.seeds import generator

EXACT = [name for name, how in PRESERVING.items() if how == "exactly"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def change(new: nn.Module, old: nn.Module, inputs: torch.Tensor) -> float:
    with torch.no_grad():
        before, after = old(inputs), new(inputs)
    return float((after - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_parameters_number_as_predicted_and_the_old_network_is_untouched(candidate):
    old = mlp()
    before = copy.deepcopy(old.state_dict())
    new = candidate.expand(old, batch()[0])
    widths = [6, 4]
    for location in sorted(candidate.locations, reverse=True):
        index = int(location[-1])
        if candidate.operator in WIDER:
            widths[index] = round(widths[index] * candidate.amount)
        else:
            widths[index:index] = [widths[index]] * round(candidate.amount)
    sizes = [INPUTS, *widths, CLASSES]
    assert count_parameters(new) == sum(a * b + b for a, b in pairwise(sizes))
    assert count_flops(new, batch(1)[0]) == sum(2 * a * b for a, b in pairwise(sizes))
    assert all(torch.equal(before[name], tensor) for name, tensor in old.state_dict().items())
    assert new(batch()[0]).shape == (32, CLASSES)


@settings(max_examples=40)  # each is traced anew
@given(
    operator=st.sampled_from(EXACT), widths=st.sampled_from(list(WIDTHS.values())),
    layers=st.sets(st.integers(0, 2), min_size=1), amount=st.integers(2, 5), seed=st.integers(0, 99),
    dtype=st.sampled_from(list(TOLERANCE)), training=st.booleans(),
)  # fmt: skip
def test_preserving_operators_preserve_the_function(operator, widths, layers, amount, seed, dtype, training):
    old = mlp(widths, seed, dtype).train(training)
    inputs, _ = batch(dtype=dtype)
    locations = tuple(f"hidden.{i}" for i in {layer % len(widths) for layer in layers})
    new = Candidate(operator, locations, amount, seed).expand(old, inputs)
    assert count_parameters(new) > count_parameters(old)
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert new.training is training
    assert change(new, old, inputs) <= TOLERANCE[dtype]


@given(seed=st.integers(0, 99), extra=st.integers(1, 9), dtype=st.sampled_from(list(TOLERANCE)))
def test_net2net_is_exact_without_noise_and_near_with_it(seed, extra, dtype):
    old = mlp(seed=seed, dtype=dtype)
    tensors = [old.hidden[0].weight.detach(), old.hidden[0].bias.detach()], [old.hidden[1].weight.detach().T]
    for noise, tolerance in ((0.0, TOLERANCE[dtype]), (expand.NOISE, 0.2)):
        (weight, bias), (following,) = expand.net2net(*tensors, extra, generator(seed), noise)
        new = copy.deepcopy(old)
        new.hidden[0].weight, new.hidden[0].bias = nn.Parameter(weight), nn.Parameter(bias)
        new.hidden[1].weight = nn.Parameter(following.T.contiguous())
        assert change(new, old, batch(dtype=dtype)[0]) <= tolerance


@pytest.mark.parametrize("operator", ["random", "deeper_random"])
def test_random_operators_change_the_function(operator):
    old = mlp()
    assert change(Candidate(operator, ("hidden.0",), 2).expand(old, batch()[0]), old, batch()[0]) > 0.01


@pytest.mark.parametrize("operator", list(WIDER))
def test_new_units_part_after_a_step_of_gradient_descent(operator):
    inputs, targets = batch()
    new = Candidate(operator, ("hidden.0",), 3).expand(mlp(), inputs)
    for _ in range(2):  # zero outgoing weights learn first, then the units behind them
        loss = nn.functional.cross_entropy(new(inputs), targets)
        for parameter, slope in zip(new.parameters(), torch.autograd.grad(loss, list(new.parameters())), strict=True):
            parameter.data -= 0.1 * slope
    rows = new.hidden[0].weight.detach()
    apart = torch.cdist(rows, rows) + torch.eye(len(rows))
    assert apart.min() > 1e-4


def test_a_candidate_names_its_network():
    first, again = (CANDIDATES[0].expand(mlp(), batch()[0]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = Candidate("net2net", ("hidden.0",), 1.5, seed=4).expand(mlp(), batch()[0])
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)
    assert str(CANDIDATES[0]) == "net2net hidden.0 ×1.5"
    assert len(set(map(str, CANDIDATES))) == len(CANDIDATES) == len(set(CANDIDATES))


def test_bad_input_is_refused_by_value():
    inputs = batch()[0]
    with pytest.raises(ValueError, match=r"'shrink'.*net2net"):
        Candidate("shrink", ("hidden.0",), 2)
    with pytest.raises(ValueError, match="at least one location"):
        Candidate("net2net", (), 2)
    with pytest.raises(ValueError, match=r"hidden\.7.*can grow at: hidden\.0, hidden\.1"):
        Candidate("random", ("hidden.7",), 2).expand(mlp(), inputs)
    with pytest.raises(ValueError, match="6 units; widening to 3"):
        Candidate("random", ("hidden.0",), 0.5).expand(mlp(), inputs)
    with pytest.raises(ValueError, match="head"):
        expand.widen(mlp(), "head", 9, "random", generator(0), inputs)
    with pytest.raises(ValueError, match=r"'net2net'.*deeper_identity"):
        expand.deepen(mlp(), "hidden.0", "net2net", generator(0), inputs)
    with pytest.raises(ValueError, match="deeper_random"):
        expand.widen(mlp(), "hidden.0", 9, "deeper_random", generator(0), inputs)
    with pytest.raises(ValueError, match=r"widths=\(3, 0\)"):
        MLP(2, (3, 0), 2)
    assert set(DEEPER) & set(WIDER) == set()


@given(seed=st.integers(0, 99), extra=st.integers(1, 20))
def test_net2net_splits_outgoing_weights_evenly_among_the_copies(seed, extra):
    """Held against the definition, unit by unit."""
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    following = torch.randn(5, 2, dtype=torch.float64)
    (wider, biases), (outgoing,) = expand.net2net([weight, bias], [following], extra, generator(seed), noise=0.0)
    source = [next(u for u in range(5) if torch.equal(row, weight[u])) for row in wider]
    assert source[:5] == list(range(5))
    for unit, of in enumerate(source):
        assert biases[unit] == bias[of]
        torch.testing.assert_close(outgoing[unit], following[of] / source.count(of), rtol=1e-15, atol=0)


def test_the_noise_of_net2net_parts_the_copies_alone_and_has_its_size():
    weight, following = 7 * torch.randn(50, 40, generator=generator("w")), torch.randn(50, 3, generator=generator("f"))
    (plain,), _ = expand.net2net([weight], [following], 400, generator("same"), noise=0.0)
    (noisy,), _ = expand.net2net([weight], [following], 400, generator("same"), noise=0.1)
    assert torch.equal(noisy[:50], weight)
    added = noisy[50:] - plain[50:]
    assert float(added.std() / weight.std()) == pytest.approx(0.1, rel=0.03)  # 16,000 draws: standard error 0.6%
    assert abs(float(added.mean() / added.std())) * added.numel() ** 0.5 < 4


@pytest.mark.parametrize("operator", ["random", "zero_outgoing", "deeper_random"])
def test_what_is_drawn_has_the_default_scale_of_its_layer(operator):
    first, second, *_ = Candidate(operator, ("hidden.0",), 2).expand(mlp((60, 50)), batch()[0]).hidden
    drawn = {
        "random": [(first.weight[60:], INPUTS), (first.bias[60:], INPUTS), (second.weight[:, 60:], 120)],
        "zero_outgoing": [(first.weight[60:], INPUTS), (first.bias[60:], INPUTS)],
        "deeper_random": [(second.weight, 60), (second.bias, 60)],
    }[operator]
    for values, fan_in in drawn:
        assert 0.9 < values.abs().max() * fan_in**0.5 <= 1 + 1e-6
    if operator == "zero_outgoing":
        assert (second.weight[:, 60:] == 0).all()


@pytest.mark.parametrize("candidate", CANDIDATES[:5], ids=str)
def test_a_candidate_survives_a_journey_to_another_process(candidate):
    again = pickle.loads(pickle.dumps(candidate))
    assert again == candidate
    assert hash(again) == hash(candidate)
    assert eval(repr(candidate)) == candidate  # the text that names its piece in the cache says it all
    for a, b in zip(*(c.expand(mlp(), batch()[0]).parameters() for c in (candidate, again)), strict=True):
        assert torch.equal(a, b)


def test_expansion_does_not_depend_on_the_global_stream():
    old, inputs = mlp(), batch()[0]
    for candidate in CANDIDATES[:8]:
        torch.manual_seed(1)
        first = candidate.expand(old, inputs)
        torch.manual_seed(2)
        second = candidate.expand(old, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_expanded_network_can_be_expanded_again():
    inputs = batch(dtype=torch.float64)[0]
    old = mlp(dtype=torch.float64)
    new = old
    for candidate in (
        Candidate("zero_outgoing", ("hidden.1",), 2),
        Candidate("deeper_identity", ("hidden.0", "hidden.1"), 1),
        Candidate("zero_outgoing", ("hidden.3",), 1.5),
    ):
        new = candidate.expand(new, inputs)
    assert [layer.out_features for layer in new.hidden] == [6, 6, 8, 12]
    assert change(new, old, inputs) <= 1e-12


def test_a_module_list_that_is_no_list_of_layers_cannot_get_deeper():
    network = nn.Sequential(nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"^0 is not a linear layer in a ModuleList"):
        expand.deepen(network, "0", "deeper_identity", generator(0), batch()[0])
    assert Candidate("zero_outgoing", ("0",), 2).expand(network, batch()[0])[0].out_features == 6  # but wider
