"""The promise of the exact operators, on every family, anywhere, to any size, in either mode and precision."""

from functools import cache

import pytest
import torch
from cases import change, of_family
from hypothesis import given, settings
from hypothesis import strategies as st

from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.deeper import deeper_identity
from mmstudy.expansion.operators import EXACTLY, OPERATORS
from mmstudy.tracing.couplings import of_trace
from mmstudy.tracing.trace import trace
from mmstudy.validation.preservation import FAMILIES

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
EXACT = [name for name, operator in OPERATORS.items() if operator.preserves == EXACTLY]
REFUSALS = {  # operator → what its refusals say, where they are right to refuse
    "bert2bert": ["must be whole copies"],
    "lemon": ["must be whole copies"],
    "hypercloning": ["is no multiple of", "must be whole copies"],
    "zero_outgoing": ["normalized together"],
    "zero_incoming": ["must be whole copies", "query[1]"],  # a new head of queries shows the old values
    "orthogonal": ["normalized together"],
    "gradmax": ["normalized together", "gradmax needs"],
    "deeper_identity": ["is a residual block"],
    "zero_residual": ["no residual block"],
    "identity_block": ["no residual block"],
}


@cache
def trace_of(name, dtype):
    """Of any network of a family: a trace knows shapes alone."""
    _, network, inputs, _ = of_family(name, 24, 0, dtype)
    return trace(network, inputs)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(FAMILIES)), operator=st.sampled_from(EXACT), where=st.integers(0, 5),
    factor=st.sampled_from([1.01, 1.3, 1.5, 2, 3]), seed=st.integers(0, 99), training=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
)  # fmt: skip
def test_exact_operators_are_exact(name, operator, where, factor, seed, training, dtype):
    family, network, inputs, targets = of_family(name, 24, seed, dtype)
    traced = trace_of(name, dtype)
    places = family.wider if OPERATORS[operator].widens else family.deeper
    place = places[where % len(places)]
    if OPERATORS[operator].widens:
        size = max(of_trace(traced)[place].size + 1, round(of_trace(traced)[place].size * factor))
    else:
        size = 1 + where % 2
    candidate = Candidate(operator, (place,), (size,), seed)
    new, refusal = None, ""
    try:
        new = candidate.grow(network, (inputs, targets), family.loss_fn, traced).network
    except ValueError as error:
        refusal = str(error)
    if new is None:
        assert any(reason in refusal for reason in REFUSALS[operator]), refusal
        return
    if OPERATORS[operator].apply is deeper_identity and "batch" in name:
        training = False  # in training it sees the statistics of another batch
    assert change(network, new, inputs, training) <= TOLERANCE[dtype]


@pytest.mark.parametrize("operator", EXACT)
def test_no_operator_refuses_everything(operator):
    """Somewhere in each family that its own refusals leave it, it does what it promises."""
    done = []
    for name, family in FAMILIES.items():
        network, examples, traced = family.network(), family.examples(24), trace_of(name, torch.float32)
        for place in family.wider if OPERATORS[operator].widens else family.deeper:
            size = 2 * of_trace(traced)[place].size if OPERATORS[operator].widens else 1
            try:
                Candidate(operator, (place,), (size,)).grow(network, tuple(examples), family.loss_fn, traced)
            except ValueError:
                continue
            done.append(name)
            break
    expected = {
        "gradmax": set(FAMILIES) - {"ResNet, group norm"},
        "deeper_identity": {"MLP", "MLP, batch norm"},
    } | dict.fromkeys(("zero_residual", "identity_block"), set(FAMILIES) - {"MLP", "MLP, batch norm"})
    assert set(done) == expected.get(operator, set(FAMILIES))


@pytest.mark.parametrize("operator", [name for name in OPERATORS if OPERATORS[name].preserves == "no"])
def test_the_others_change_the_function(operator):
    family = FAMILIES["ViT"]
    network, (inputs, targets) = family.network(), family.examples(16)
    place, size = ("blocks.0.up", 96) if OPERATORS[operator].widens else ("blocks.0", 1)
    new = Candidate(operator, (place,), (size,)).expand(network, (inputs, targets))
    assert change(network, new, inputs) > 1e-3
