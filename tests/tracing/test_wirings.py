"""Exact operators on networks that are wired otherwise than the families: gates, RMS norms, class tokens, groups."""

import pytest
import torch
from cases import CASES, Wired, change
from torch import nn

from mmstudy.core.networks import count_parameters
from mmstudy.core.seeds import seed_of
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import EXACTLY, OPERATORS, UP_TO_NOISE, named
from mmstudy.tracing.couplings import of_trace
from mmstudy.tracing.trace import trace

STREAMS = {"RMS norm": "embedding", "class token": "embedding", "post-norm": "embedding", "normalized queries": "q"}
AVERAGES_FELT = {  # what makes up for widths that are no multiples does not hold there
    "class token": "its layer scale scales averages",
    "post-norm": "what a norm puts out goes on as the stream, where its averages are no zeros",
}
ALIKE = ("fused, split", "fused, unbind inside", "few keys, repeated")  # couplings of others, see test_couplings
EXACT = [name for name in named(widens=True) if OPERATORS[name].preserves != "no"]


def allowed(name: str, place: str, factor: float, operator: str) -> str | None:
    """What a refusal must say, or None where there must be none."""
    stream = STREAMS.get(name) == place
    if operator == "gradmax":
        plain = {("RMS norm", "up"), ("post-norm", "up"), ("class token", "up"), ("squeeze and excite", "down")}
        return None if (name, place) in plain else "gradmax needs"
    if operator == "hypercloning" and factor != 2:
        return "no multiple"
    if stream and operator in ("zero_outgoing", "orthogonal"):
        return "normalized together"
    if stream and name in AVERAGES_FELT and (factor != 2 or operator == "zero_incoming"):
        return "is not exact here"
    if operator == "zero_incoming" and place == "q[1]":
        return "is not exact here"  # a query of zeros is no head of zeros
    return None


@pytest.mark.parametrize("operator", EXACT)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ALIKE])
def test_exact_operators_are_exact_or_say_why_not(name, operator):
    case = CASES[name]
    network, inputs = case.network().double(), case.inputs(dtype=torch.float64)
    traced = trace(network, inputs)
    groups = of_trace(traced)
    assert {place: group.size for place, group in groups.items()} == case.groups
    for i, (place, group) in enumerate(groups.items()):
        factor = (1.01, 1.5, 2)[(seed_of(name, operator) + i) % 3]
        size = max(group.size + 1, round(factor * group.size))
        factor = size / group.size
        candidate = Candidate(operator, (place,), (size,))
        targets = torch.arange(len(inputs)) % network(inputs).shape[-1]
        reason = allowed(name, place, factor, operator)
        if reason:
            with pytest.raises(ValueError, match=reason):
                candidate.grow(network, (inputs, targets), traced=traced)
            continue
        new = candidate.grow(network, (inputs, targets), traced=traced).network
        if OPERATORS[operator].preserves == EXACTLY:
            assert change(network, new, inputs) < 1e-12, place
        else:
            assert OPERATORS[operator].preserves == UP_TO_NOISE
            assert change(network, new, inputs) < 0.1, place
        assert count_parameters(new) == group.parameters(size), place


def test_a_promise_that_is_broken_by_little_is_broken():
    """A unit of zero behind a sigmoid is felt, also where large outputs hide it."""
    parts = {"up": nn.Linear(3, 6), "down": nn.Linear(6, 2)}
    network = Wired(lambda net, x: net.down(net.up(x).sigmoid()) + 1000, **parts).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"zero_incoming up→9 is not exact here: the outputs change by \d\.\de\+00"):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, inputs)
    assert change(network, Candidate("lemon", ("up",), (9,)).expand(network, inputs), inputs) < 1e-12


@pytest.mark.parametrize("operator", ["net2net", "firefly"])
def test_noise_is_no_excuse_for_what_is_not_exact_without_it(operator):
    case = CASES["post-norm"]
    network, inputs = case.network(), case.inputs()
    targets = torch.zeros(len(inputs), dtype=torch.long)
    with pytest.raises(ValueError, match=f"{operator} embedding→9 is not exact here, even without noise"):
        Candidate(operator, ("embedding",), (9,)).expand(network, (inputs, targets))
    noisy = Candidate(operator, ("embedding",), (16,)).expand(network, (inputs, targets))
    assert 0 < change(network, noisy, inputs) < 0.1
