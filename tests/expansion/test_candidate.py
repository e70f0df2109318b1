import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from cases import batch, change, mlp, of_family
from torch import nn

from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import generator
from mmstudy.expansion import candidate
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS, named
from mmstudy.expansion.plans import units_first
from mmstudy.tracing.couplings import couplings

CHAIN = Candidate(
    "lemon", ("embedding", "blocks.0.up"), (18, 60), 4,
    then=Candidate("interleave", ("blocks.0", "blocks.1"), (1, 2), then=Candidate("net2net", ("blocks.2.up",), (50,))),
)  # fmt: skip
CANDIDATES = [
    Candidate("net2net", ("hidden.0",), (9,), seed=3), Candidate("random", ("hidden.0", "hidden.1"), (12, 5)),
    Candidate("deeper_identity", ("hidden.1",), (2,)), CHAIN,
]  # fmt: skip


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_a_candidate_survives_every_journey(candidate):
    assert Candidate.from_dict(json.loads(json.dumps(candidate.as_dict()))) == candidate
    assert pickle.loads(pickle.dumps(candidate)) == candidate
    assert eval(repr(candidate)) == candidate  # the text that names its piece in the cache says it all
    assert len({candidate, eval(repr(candidate))}) == 1


def test_a_candidate_prints_what_it_does():
    assert str(CANDIDATES[1]) == "random hidden.0→12&hidden.1→5"
    assert str(CHAIN) == (
        "lemon embedding→18&blocks.0.up→60, interleave blocks.0+1&blocks.1+2, net2net blocks.2.up→50"
    )  # fmt: skip


def test_a_candidate_builds_the_same_network_in_another_process():
    code = """
import torch
from mmstudy.core.networks import MLP, initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
torch.manual_seed(5)
network = initialize(MLP(7, (6, 4), 4), generator("case", 0))
for operator in ("net2net", "lemon", "random", "orthogonal"):
    new = Candidate(operator, ("hidden.0",), (9,), seed=3).expand(network, torch.zeros(2, 7))
    print(sum(p.double().abs().sum().item() for p in new.parameters()))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for operator, text in zip(("net2net", "lemon", "random", "orthogonal"), told, strict=True):
        new = Candidate(operator, ("hidden.0",), (9,), seed=3).expand(mlp(), torch.zeros(2, 7))
        assert float(text) == sum(p.double().abs().sum().item() for p in new.parameters())


@pytest.mark.parametrize("operator", OPERATORS)
def test_another_seed_is_another_network_where_something_is_drawn(operator):
    family, network, inputs, targets = of_family("MLP" if operator == "deeper_identity" else "ViT")
    wide = ("blocks.0.up",), (96 if operator == "hypercloning" else 60,)
    place = (
        wide
        if OPERATORS[operator].widens
        else (("hidden.0",) if operator == "deeper_identity" else ("blocks.0",), (1,))
    )
    tensors = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)  # the global stream plays no part
        new = Candidate(operator, *place, seed=seed).expand(network, (inputs, targets), family.loss_fn)
        tensors.append(torch.cat([p.detach().flatten() for p in new.parameters()]))
    first, again, other = tensors
    assert torch.equal(first, again)
    same = "deeper_identity", "identity_block", "stack", "interleave", "gradmax", "bert2bert_advanced"
    assert torch.equal(first, other) == (operator in same)


def test_a_chain_is_its_steps_one_after_the_other():
    _, network, inputs, _ = of_family("ViT")
    whole, step = CHAIN.expand(network, inputs), CHAIN
    while step:
        network = Candidate(step.operator, step.locations, step.sizes, step.seed).expand(network, inputs)
        step = step.then
    assert len(whole.blocks) == 5
    assert whole.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["ResNet, batch norm", "decoder"])
def test_the_old_network_is_untouched(name, operator):
    family, network, inputs, targets = of_family(name)
    network.train()
    next(network.children()).eval()
    before, text = copy.deepcopy(network.state_dict()), repr(network)
    modes = [module.training for module in network.modules()]
    wide = {"ResNet, batch norm": ("stages.0.0.conv1", 8), "decoder": ("blocks.0.up", 128)}
    deep = {"ResNet, batch norm": ("stages.0.0", 1), "decoder": ("blocks.0", 1)}
    place, size = (wide if OPERATORS[operator].widens else deep)[name]
    candidate = Candidate(operator, (place,), (size,))
    if operator == "deeper_identity":
        with pytest.raises(ValueError, match="residual"):
            candidate.expand(network, (inputs, targets), family.loss_fn)
    else:
        new = candidate.expand(network, (inputs, targets), family.loss_fn)
        assert not {p.data_ptr() for p in new.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert repr(network) == text
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("operator", named(widens=True))
@pytest.mark.parametrize("name", ["MLP", "ViT"])
def test_new_units_part_or_do_not_as_promised(name, operator):
    """A few steps of gradient descent with weight decay; distances between all units, incoming weights and outgoing."""
    family, network, inputs, targets = of_family(name, 64)
    place, size = {"MLP": ("hidden.0", 24), "ViT": ("blocks.0.up", 96)}[name]
    if operator == "bert2bert_advanced" and name == "MLP":
        place = "hidden.1"  # the next layer has the same shape
    new = Candidate(operator, (place,), (size,)).expand(network, (inputs, targets), family.loss_fn)
    old_size = couplings(network, inputs)[place].size
    optimizer = torch.optim.SGD(new.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    for _ in range(5):
        with evaluating(new):
            optimizer.zero_grad()
            family.loss_fn(new, (inputs, targets)).backward()
            optimizer.step()
    tensors = dict(new.named_parameters())
    group = couplings(new, inputs)[place]
    incoming = [units_first(tensors[u.tensor].detach(), u, size).flatten(1) for u in group.makers()]
    apart = torch.cdist(torch.cat(incoming, 1), torch.cat(incoming, 1), compute_mode="donot_use_mm_for_euclid_dist")
    apart.fill_diagonal_(torch.inf)
    nearest = float(apart[old_size:].min())
    if operator == "bert2bert":
        assert nearest < 1e-12
    elif operator == "zero_incoming" and name == "MLP":  # behind a ReLU
        assert nearest == 0
    else:
        assert nearest > 1e-6
        assert OPERATORS[operator].parts or operator == "zero_incoming"


def test_units_of_nothing_are_dead_behind_a_relu_and_alive_behind_a_gelu():
    for name, place, alive in (("MLP", "hidden.1", False), ("ViT", "blocks.0.up", True)):
        family, network, inputs, targets = of_family(name)
        size = 2 * couplings(network, inputs)[place].size
        new = Candidate("zero_incoming", (place,), (size,)).expand(network, inputs)
        weight = new.get_submodule(place).weight
        (slope,) = torch.autograd.grad(family.loss_fn(new.eval(), (inputs, targets)), weight)
        assert bool((slope[size // 2 :] != 0).any()) is alive


def test_costs_are_those_of_what_learns():
    for operator in OPERATORS:
        cost = Candidate(operator, ("a", "b"), (2, 2), then=Candidate("ligo", ("c",), (2,))).cost(100)
        expected = {"firefly": 2 * 3 * 4 * 100, "gradmax": 2 * 2 * 3 * 100, "ligo": 2 * 3 * 50 * 100}
        assert cost == expected.get(operator, 0) + 3 * 50 * 100
        assert OPERATORS[operator].learns == (operator in expected)
    assert Candidate("ligo", ("c",), (2,)).cost(10**6) == 3 * 50 * 128


def test_bare_operators_take_a_generator():
    inputs, network = batch()[0], mlp()
    wide, again = (candidate.widen(network, "hidden.0", 9, "lemon", generator(1), inputs) for _ in range(2))
    assert wide.hidden[0].out_features == 9
    assert torch.equal(wide.hidden[0].weight, again.hidden[0].weight)
    assert change(network, wide, inputs) < 1e-5
    deep = candidate.deepen(network, "hidden.1", 2, "deeper_identity", generator(1), inputs)
    assert [layer.in_features for layer in deep.hidden] == [7, 6, 4, 4]
    with pytest.raises(ValueError, match="unknown wider operator 'stack'; known: net2net"):
        candidate.widen(network, "hidden.0", 9, "stack", generator(1), inputs)
    with pytest.raises(ValueError, match="unknown deeper operator 'lemon'; known: deeper_identity"):
        candidate.deepen(network, "hidden.0", 9, "lemon", generator(1), inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Candidate("shrink", ("hidden.0",), (9,)), "unknown operator 'shrink'; known: net2net, "),
        (lambda: Candidate("net2net", (), ()), "at least one location"),
        (lambda: Candidate("net2net", ("hidden.0",), ()), r"a whole number > 0 for each of \('hidden.0',\); got \(\)"),
        (lambda: Candidate("net2net", ("hidden.0",), (0,)), r"got \(0,\)"),
        (lambda: Candidate("net2net", ("hidden.0",), (True,)), r"got \(True,\)"),
        (lambda: Candidate("stack", ("hidden.0", "hidden.1"), (1, 2)), r"equally often; got \(1, 2\)"),
        (lambda: Candidate.from_dict({"operator": "net2net"}), "no description of a candidate: .*net2net"),
        (lambda: Candidate.from_dict(CANDIDATES[0].as_dict() | {"amount": 2}), "no description of a candidate"),
        (lambda: Candidate("random", ("hidden.7",), (9,)).expand(mlp(), batch()[0]),
         r"unknown location 'hidden\.7'; this network can grow at: hidden\.0, hidden\.1"),
        (lambda: Candidate("random", ("hidden.0",), (3,)).expand(mlp(), batch()[0]), "6 units; widening to 3"),
        (lambda: Candidate("random", ("hidden.0",), (6,)).expand(mlp(), batch()[0]), "6 units; widening to 6"),
        (lambda: Candidate("random", ("head",), (9,)).expand(mlp(), batch()[0]), "head cannot grow: .*'s output"),
        (lambda: Candidate("random", ("hidden.0",), (9,)).expand(mlp().to("meta"), batch()[0]),
         "network is on meta and the batch on cpu: move one of them"),
        (lambda: Candidate("hypercloning", ("hidden.0",), (9,)).expand(mlp(), batch()[0]), "9 is no multiple of 6"),
        *((lambda o=o: Candidate(o, ("hidden.0",), (9,)).expand(mlp(), batch()[0]), "give it inputs and targets")
          for o in OPERATORS if OPERATORS[o].learns),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_location_is_no_tuple_of_locations():
    for make in (
        lambda: Candidate("net2net", "hidden.0", (9,)),
        lambda: Candidate.from_dict({"operator": "net2net", "locations": "hidden.0", "sizes": [9]}),
    ):
        with pytest.raises(ValueError, match=r"a tuple of names, e\.g\. \('hidden\.0',\); got 'hidden\.0'"):
            make()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (("lemon", ("hidden.0",), 9), TypeError, r"sizes must be a tuple, e.g. \(9,\); got 9"),
        (("lemon", (3,), (9,)), TypeError, "locations must be names; got 3"),
        (("lemon", ("hidden.0",), (9,), "s"), TypeError, "seed must be a whole number; got 's'"),
        (("lemon", ("hidden.0",), (9,), -1), ValueError, "seed must be at least 0; got -1"),
        (("lemon", ("hidden.0",), (9,), 0, "x"), TypeError, "then must be another Candidate, or None; got 'x'"),
    ],
)
def test_what_describes_no_expansion_is_refused_when_it_is_made(given, error, message):
    with pytest.raises(error, match=message):
        Candidate(*given)


def test_an_operator_that_would_break_its_promise_is_refused():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(7, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.down(self.up(x).sigmoid())

    network, inputs = Shifted().double(), batch(dtype=torch.float64)[0]
    with pytest.raises(ValueError, match=r"zero_incoming up→9 is not exact here: the outputs change by"):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, inputs)
    assert change(network, Candidate("lemon", ("up",), (9,)).expand(network, inputs), inputs) < 1e-12
