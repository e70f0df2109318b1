"""Exact operators on networks that are wired otherwise than the families: gates, RMS norms, class tokens, groups, ..."""

import pytest
import torch
from cases import CASES, change

from mmstudy.couplings import of_trace
from mmstudy.expand import EXACTLY, OPERATORS, UP_TO_NOISE, WIDER, Candidate
from mmstudy.networks import count_parameters
from mmstudy.seeds import seed_of
from mmstudy.tracing import trace

STREAMS = {"RMS norm": "embedding", "class token": "embedding"}
EXACT = [name for name in WIDER if OPERATORS[name].preserves != "no"]


def allowed(name: str, place: str, size: int, factor: float, operator: str) -> str | None:
    """What a refusal must say, or None where there must be none."""
    stream = STREAMS.get(name) == place
    if operator == "gradmax":
        plain = {("RMS norm", "up"), ("class token", "up"), ("parameters", "w")}
        return None if (name, place) in plain - {("parameters", "w")} else "gradmax needs"
    if operator == "hypercloning" and factor != 2:
        return "no multiple"
    if stream and operator in ("zero_outgoing", "orthogonal"):
        return "normalized together"
    if (name, stream) == ("class token", True) and (factor != 2 or operator == "zero_incoming"):
        return "is not exact here"  # its layer scale sees averages
    if operator == "zero_incoming" and place == "q[1]":
        return "is not exact here"  # a query of zeros is no head of zeros
    return None


@pytest.mark.parametrize("operator", EXACT)
@pytest.mark.parametrize("name", CASES)
def test_exact_operators_are_exact_or_say_why_not(name, operator):
    case = CASES[name]
    network, inputs = case.network().double(), case.inputs(dtype=torch.float64)
    walked = trace(network, inputs)
    groups = of_trace(walked)
    assert {place: group.size for place, group in groups.items()} == case.groups
    for i, (place, group) in enumerate(groups.items()):
        factor = (1.01, 1.5, 2)[(seed_of(name, operator) + i) % 3]
        size = max(group.size + 1, round(factor * group.size))
        factor = size / group.size
        candidate = Candidate(operator, (place,), (size,))
        targets = torch.arange(len(inputs)) % network(inputs).shape[-1]
        reason = allowed(name, place, size, factor, operator)
        if reason:
            with pytest.raises(ValueError, match=reason):
                candidate.grow(network, inputs, targets, walked=walked)
            continue
        new = candidate.grow(network, inputs, targets, walked=walked).network
        if OPERATORS[operator].preserves == EXACTLY:
            assert change(network, new, inputs) < 1e-12, place
        else:
            assert OPERATORS[operator].preserves == UP_TO_NOISE
            assert change(network, new, inputs) < 0.1, place
        assert count_parameters(new) == group.parameters(size), place
