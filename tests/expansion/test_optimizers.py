"""An optimizer's state follows the parameters that it belongs to, and training goes on without a jump."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from cases import batch, mlp, of_family

from mmstudy.core.networks import evaluating
from mmstudy.expansion.candidate import Candidate, Expansion
from mmstudy.expansion.operators import OPERATORS
from mmstudy.expansion.optimizers import carried

OPTIMIZERS = {
    "momentum": lambda parameters, rate=0.1: torch.optim.SGD(parameters, rate, momentum=0.9),
    "Adam": lambda parameters, rate=0.01: torch.optim.Adam(parameters, rate),
    "AdamW, amsgrad": lambda parameters, rate=0.01: torch.optim.AdamW(parameters, rate, amsgrad=True),
}
PLACES = {"MLP": "hidden.1", "ResNet, batch norm": "stages.0.0.conv1", "ViT": "blocks.0.up", "decoder": "embedding"}


def step(family, network, optimizer, inputs, targets) -> float:
    with evaluating(network):
        optimizer.zero_grad()
        loss = family.loss_fn(network, (inputs, targets))
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_evenly_split_copies_have_the_averages_that_they_would_have_gathered(name, optimizer):
    """At a step size of zero both networks gather averages of gradients side by side; what is carried over is equal."""
    family, network, inputs, targets = of_family(name)
    size = dict.fromkeys(PLACES, 24) | {"ResNet, batch norm": 8, "ViT": 96, "decoder": 32}
    expansion = Candidate("bert2bert", (PLACES[name],), (size[name],)).grow(network, inputs)
    old = OPTIMIZERS[optimizer](network.parameters(), 0.0)
    gathered = OPTIMIZERS[optimizer](expansion.network.parameters(), 0.0)
    for start in range(0, 12, 4):  # other examples at each step
        some = slice(start, start + 4)
        step(family, network, old, inputs[some], targets[some])
        step(family, expansion.network, gathered, inputs[some], targets[some])
    found = carried(old, network, expansion)
    assert len(found.state) == len(gathered.state) > 0
    for parameter, expected in gathered.state.items():
        assert found.state[parameter].keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                # a bias of keys has no gradient but rounding errors: softmax takes it off
                scale = max(float(value.abs().max()), 1e-24 if "sq" in key else 1e-12)
                exact = scale not in (1e-24, 1e-12)
                carried_over = found.state[parameter][key]
                torch.testing.assert_close(carried_over / scale, value / scale, rtol=1e-9, atol=1e-9 if exact else 1e-3)


@pytest.mark.parametrize("operator", ["lemon", "zero_outgoing", "identity_block", "stack"])
def test_training_goes_on_without_a_jump(operator):
    """The steps after the expansion stay nearer to what the base would have done with its state than without."""
    family, network, inputs, targets = of_family("ViT", 64, dtype=torch.float32)
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    for _ in range(30):
        step(family, network, optimizer, inputs, targets)
    place, size = ("blocks.0.up", 60) if operator in ("lemon", "zero_outgoing") else ("blocks.1", 1)
    expansion = Candidate(operator, (place,), (size,)).grow(network, inputs)
    without = copy.deepcopy(expansion.network)
    runs = {
        "base": (network, optimizer),
        "without": (without, OPTIMIZERS["Adam"](without.parameters())),
        "with": (expansion.network, carried(optimizer, network, expansion)),
    }
    losses = {name: [step(family, *run, inputs, targets) for _ in range(6)] for name, run in runs.items()}
    if operator == "stack":  # it has changed the function: only the state is in question
        assert all(loss == loss for loss in losses["with"])
        return
    away = {name: max(abs(a - b) for a, b in zip(losses[name], losses["base"], strict=True)) for name in losses}
    assert losses["with"][0] == pytest.approx(losses["base"][0], rel=1e-4)
    assert away["with"] < away["without"] / 2


def test_inserted_blocks_begin_without_history_and_copies_with_that_of_their_models():
    family, network, inputs, targets = of_family("ViT")
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    for _ in range(3):
        step(family, network, optimizer, inputs, targets)
    for operator in ("zero_residual", "identity_block", "stack", "interleave"):
        expansion = Candidate(operator, ("blocks.0",), (1,)).grow(network, inputs)
        found, names = carried(optimizer, network, expansion), dict(expansion.network.named_parameters())
        old = {name: optimizer.state[parameter] for name, parameter in network.named_parameters()}
        for name, parameter in names.items():
            model = name.replace("blocks.1", "blocks.0").replace("blocks.2", "blocks.1")
            assert expansion.origin[name] == model
            if name.startswith("blocks.1") and operator in ("zero_residual", "identity_block"):
                assert parameter not in found.state
                continue
            assert torch.equal(found.state[parameter]["exp_avg"], old[model]["exp_avg"])
            assert found.state[parameter]["step"] == 3
            assert found.state[parameter]["exp_avg"] is not old[model]["exp_avg"]
        step(family, expansion.network, found, inputs, targets)


def test_groups_and_their_settings_stay():
    family, network, inputs, targets = of_family("MLP")
    groups = [
        {"params": [p for n, p in network.named_parameters() if "bias" in n], "weight_decay": 0.0},
        {"params": [p for n, p in network.named_parameters() if "bias" not in n], "lr": 0.3, "weight_decay": 0.2},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    step(family, network, optimizer, inputs, targets)
    chain = Candidate("lemon", ("hidden.0",), (20,), then=Candidate("deeper_identity", ("hidden.0",), (1,)))
    expansion = chain.grow(network, inputs)
    found = carried(optimizer, network, expansion)
    names = {parameter: name for name, parameter in expansion.network.named_parameters()}
    biases, weights = ({names[p] for p in group["params"]} for group in found.param_groups)
    assert biases == {name for name in names.values() if "bias" in name}
    assert weights == {name for name in names.values() if "bias" not in name}
    for old, new in zip(optimizer.param_groups, found.param_groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
    assert {name.rpartition(".")[0] for name in expansion.inserted} == {"hidden.1"}
    assert not [p for p in found.state if names[p] in expansion.fresh]


def test_new_units_begin_at_rest_and_are_not_taken_for_flat():
    family, network, inputs, targets = of_family("MLP")
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    step(family, network, optimizer, inputs, targets)
    expansion = Candidate("zero_outgoing", ("hidden.1",), (18,)).grow(network, inputs)
    state = carried(optimizer, network, expansion).state[expansion.network.hidden[1].weight]
    old = optimizer.state[network.hidden[1].weight]
    assert torch.equal(state["exp_avg"][:12], old["exp_avg"])
    assert (state["exp_avg"][12:] == 0).all()
    torch.testing.assert_close(state["exp_avg_sq"][12:], old["exp_avg_sq"].mean(0).expand(6, -1))


EVERY = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in ("Optimizer", "SparseAdam")
}
SETTINGS = [
    *((name, {}) for name in EVERY),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("Adam", {"amsgrad": True}),
    ("ASGD", {"t0": 0}),
]


@cache
def expanded(operator: str) -> tuple[torch.nn.Module, Expansion]:
    network, (inputs, targets) = mlp((7, 7)), batch()
    place, size = (
        ("hidden.0", 14 if operator == "hypercloning" else 9) if OPERATORS[operator].widens else ("hidden.1", 1)
    )
    return network, Candidate(operator, (place,), (size,)).grow(network, (inputs, targets))


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name not in ("zero_residual", "identity_block")])
def test_steps_stay_finite_whatever_optimizer_goes_on_after_whatever_operator(operator):
    network, expansion = expanded(operator)
    inputs, targets = batch()
    for name, settings in SETTINGS:
        old, new = copy.deepcopy(network), replace(expansion, network=copy.deepcopy(expansion.network))
        some = [p for p in old.parameters() if p.ndim == 2 or name != "Muon"]  # takes matrices alone
        optimizer = EVERY[name](some, **settings)
        steps(old, optimizer, inputs, targets)
        found = carried(optimizer, old, new)
        assert (len(found.state) > 0) == (len(optimizer.state) > 0 and name != "LBFGS")
        for entry in found.state.values():
            for key, value in entry.items():
                if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "step_size"):
                    assert (value >= 0).all(), (name, key)
        steps(new.network, found, inputs, targets)
        for key, parameter in new.network.named_parameters():
            assert parameter.isfinite().all(), (name, settings, key)


def steps(network, optimizer, inputs, targets, count=3):
    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(network(inputs), targets)
        value.backward()
        return value

    for _ in range(count):
        optimizer.step(loss)


@pytest.mark.parametrize("name", ["Rprop", "ASGD", "Adafactor"])
def test_what_cannot_follow_begins_anew_where_a_parameter_has_grown_and_stays_elsewhere(name):
    network, expansion = expanded("lemon")
    old, new = copy.deepcopy(network), replace(expansion, network=copy.deepcopy(expansion.network))
    optimizer = EVERY[name](old.parameters())
    steps(old, optimizer, *batch())
    found = carried(optimizer, old, new)
    names = {parameter: key for key, parameter in new.network.named_parameters()}
    assert {names[parameter] for parameter in found.state} == {"hidden.1.bias", "head.weight", "head.bias"}
    for key in ("head.weight", "head.bias"):
        theirs, own = (o.state[n.get_parameter(key)] for o, n in ((optimizer, old), (found, new.network)))
        assert theirs.keys() == own.keys()
        assert all(torch.equal(torch.as_tensor(theirs[k]), torch.as_tensor(own[k])) for k in own)


def test_magnitudes_of_copies_are_those_that_they_would_have_gathered():
    network, expansion = expanded("bert2bert")
    old, new = copy.deepcopy(network), replace(expansion, network=copy.deepcopy(expansion.network))
    gathered = copy.deepcopy(new.network)
    optimizers = [torch.optim.Adamax(n.parameters(), lr=0) for n in (old, gathered)]
    for n, optimizer in zip((old, gathered), optimizers, strict=True):
        steps(n, optimizer, *batch())
    found = carried(optimizers[0], old, new)
    for mine, expected in zip(new.network.parameters(), gathered.parameters(), strict=True):
        torch.testing.assert_close(found.state[mine]["exp_inf"], optimizers[1].state[expected]["exp_inf"])


@pytest.mark.parametrize("flag", ["foreach", "fused", "maximize"])
def test_defaults_flags_and_names_stay_as_they_were(flag):
    network, expansion = expanded("lemon")
    optimizer = torch.optim.AdamW(
        network.named_parameters(), lr=0.3, betas=(0.5, 0.6), weight_decay=0.7, **{flag: True}
    )
    found = carried(optimizer, network, expansion)
    assert found.defaults == optimizer.defaults
    for old, new in zip(optimizer.param_groups, found.param_groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
    found.add_param_group({"params": [("more", torch.nn.Parameter(torch.zeros(2)))]})
    assert found.param_groups[1]["betas"] == (0.5, 0.6)
    assert getattr(found, "_step_supports_amp_scaling", False) == (flag == "fused")


def test_an_optimizer_without_defaults_of_its_own_class_is_made_with_those_that_it_has():
    class Strict(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)

    network, expansion = expanded("lemon")
    found = carried(Strict(network.parameters(), 0.25), network, expansion)
    assert isinstance(found, Strict)
    assert found.defaults["lr"] == found.param_groups[0]["lr"] == 0.25


def test_a_parameter_that_the_network_lacks_is_named_by_its_shape():
    network, expansion = expanded("lemon")
    other = torch.nn.Parameter(torch.zeros(3, 8))
    optimizer = torch.optim.SGD([{"params": network.head.parameters()}, {"params": [other]}], lr=0.1)
    with pytest.raises(ValueError, match=r"group 1 of the optimizer .* lacks, of shapes \[\(3, 8\)\]"):
        carried(optimizer, network, expansion)
