import copy
from itertools import pairwise

import pytest
import torch
from cases import CANDIDATES, CLASSES, INPUTS, WIDTHS, batch, mlp
from hypothesis import given
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


@given(
    operator=st.sampled_from(EXACT), widths=st.sampled_from(list(WIDTHS.values())), layer=st.integers(0, 2),
    amount=st.integers(2, 5), seed=st.integers(0, 99), dtype=st.sampled_from(list(TOLERANCE)), training=st.booleans(),
)  # fmt: skip
def test_preserving_operators_preserve_the_function(operator, widths, layer, amount, seed, dtype, training):
    old = mlp(widths, seed, dtype).train(training)
    inputs, _ = batch(dtype=dtype)
    new = Candidate(operator, (f"hidden.{layer % len(widths)}",), amount, seed).expand(old, inputs)
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
