import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import CLASSES, INPUTS, batch, mlp, of_family
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.batched.ensemble import classification
from mmstudy.core.networks import MLP, count_flops
from mmstudy.core.seeds import generator
from mmstudy.study import predictors, rivals
from mmstudy.validation.preservation import FAMILIES

SIGNS = {
    "snip": 1, "grasp": 1, "synflow": 1, "fisher": 1, "jacobian_covariance": 1, "gradient_confusion": -1,
    "gradient_cosine": 1, "gradient_diversity": 1, "ntk_condition": -1, "sam_sharpness": -1,
    "hessian_top": -1, "natural_gain": 1, "tiny": 1,
}  # fmt: skip
OF_INPUTS = {"synflow", "jacobian_covariance"}  # what tokens have not
DOUBLE = {"rtol": 1e-9, "atol": 1e-12}


def values(networks, examples, names=SIGNS) -> dict[str, torch.Tensor]:
    return {name: getattr(rivals, name)(en.stack(networks), examples) for name in names}


def value(name, network, examples) -> float:
    return values([network], examples, [name])[name].item()


def gain(network, examples) -> float:
    """‖∇L‖²: what gradient flow gains at first order."""
    return predictors.gradient_norm(en.stack([network]), examples).item() ** 2


def flat(output, network, create_graph=False):
    """The gradient by all parameters, by plain autograd."""
    grads = torch.autograd.grad(output, list(network.parameters()), create_graph=create_graph)
    return torch.cat([g.flatten() for g in grads])


def cross_entropy(network, inputs, targets):
    return F.cross_entropy(network(inputs).flatten(0, -2), targets.flatten())


def point_of(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def moved(network, point):
    """A copy of the network elsewhere."""
    other = copy.deepcopy(network)
    nn.utils.vector_to_parameters(point, other.parameters())
    return other


def curved(network, examples, vector):
    """Hv by two ordinary backward passes."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradient = flat(cross_entropy(network, *examples), network, create_graph=True)
        return flat(gradient @ vector, network)


def powered(network, examples, iterations):
    """The power method from H v, v the first draw of random signs."""
    point = point_of(network)
    signs = torch.randint(2, (1, len(point)), generator=generator("hessian_top")).to(point)[0] * 2 - 1
    vector = curved(network, examples, signs)
    for _ in range(iterations):
        vector = vector / vector.norm()
        vector, before = curved(network, examples, vector), vector
    return before @ vector


def granted(network, inputs, targets):
    """n Σ_l Σ_c ‖J J⁺ v_c‖²: J is the derivative of a channel of a layer's outputs by its row of the weights, the same
    for all channels; v_c that of the loss by channel c."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    calls = {}
    hooks = [layer.register_forward_hook(lambda own, x, y: calls.update({own: (x[0].detach(), y)})) for layer in layers]
    loss = cross_entropy(network, inputs, targets)
    for hook in hooks:
        hook.remove()
    found = 0
    for layer, (given, output) in calls.items():
        axis = 1 if isinstance(layer, nn.Conv2d) else -1

        def channel(own, layer=layer, given=given, axis=axis):
            return torch.func.functional_call(layer, own, given).select(axis, 0).flatten()

        rows = torch.func.jacrev(channel)(dict(layer.named_parameters()))
        matrix = torch.cat([each[:, 0].reshape(len(each), -1) for each in rows.values()], dim=1).detach()
        (wish,) = torch.autograd.grad(loss, output, retain_graph=True)
        wish = wish.movedim(axis, 0).flatten(1).T
        left, lengths, _ = torch.linalg.svd(matrix, full_matrices=False)
        found += (left[:, lengths > 1e-7 * lengths[0]].T @ wish).square().sum()
    return len(inputs) * found


def by_hand(network, inputs, targets) -> dict[str, float]:
    """All of them for one network: loops, dense matrices, and nothing of the package."""
    network, theta, n = copy.deepcopy(network).eval(), point_of(network), len(inputs)
    loss = cross_entropy(network, inputs, targets)
    g = flat(loss, network)
    rows = torch.stack([flat(cross_entropy(network, inputs[i : i + 1], targets[i : i + 1]), network) for i in range(n)])
    some = -(-n // rivals.MINIBATCHES)
    parts = [
        flat(cross_entropy(network, x, y), network)
        for x, y in zip(inputs.split(some), targets.split(some), strict=True)
    ]
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[:i]]
    tangents = torch.stack([flat(network(inputs[i : i + 1]).sum(), network) for i in range(n)])
    u, s, _ = torch.linalg.svd(rows / n**0.5, full_matrices=False)
    beyond = moved(network, theta + rivals.RADIUS * g / g.norm())
    found = {
        "snip": (theta * g).abs().sum(),
        "grasp": -theta @ curved(network, (inputs, targets), g),
        "fisher": rows.square().sum(1).mean(),
        "gradient_confusion": -min(a @ b for a, b in pairs),
        "gradient_cosine": min(F.cosine_similarity(a, b, dim=0) for a, b in pairs),
        "gradient_diversity": rows.square().sum() / rows.sum(0).square().sum(),
        "ntk_condition": torch.linalg.cond(tangents) ** 2,
        "sam_sharpness": cross_entropy(beyond, inputs, targets) - loss,
        "natural_gain": (u.sum(0).square() * s**2 / (s**2 + rivals.DAMPING)).sum() / n,
        "tiny": granted(network, inputs, targets),
        "hessian_top": powered(network, (inputs, targets), rivals.ITERATIONS),
    }
    if inputs.is_floating_point():
        absolute = moved(network, theta.abs())
        flow = flat(absolute(torch.ones_like(inputs[:1])).sum(), absolute)
        found["synflow"] = (theta.abs() * flow).abs().sum().log()
        leaf = inputs.clone().requires_grad_()
        network(leaf).sum().backward()
        spectrum = np.linalg.eigvalsh(np.corrcoef(leaf.grad.flatten(1).numpy()))
        found["jacobian_covariance"] = -np.sum(np.log(spectrum + 1e-5) + 1 / (spectrum + 1e-5))
    return {name: each.item() for name, each in found.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_each_is_what_plain_autograd_says_network_by_network(name):
    """And NaN for a network that is not finite, whose neighbours it leaves alone."""
    _, first, inputs, targets = of_family(name, count=10)
    _, second, _, _ = of_family(name, count=1, seed=1)
    if FAMILIES[name].language:
        inputs, targets = inputs[:, :12], targets[:, :12]
    bad = [moved(first, point_of(first).index_fill(0, torch.tensor([3]), number)) for number in (math.nan, math.inf)]
    together = values([first, *bad, second], (inputs, targets))
    undefined = OF_INPUTS if FAMILIES[name].language else set()
    for i, network in ((0, first), (3, second)):
        expected = by_hand(network, inputs, targets)
        assert {n for n, each in together.items() if each[i].isnan()} == undefined
        assert expected.keys() == SIGNS.keys() - undefined
        for rival, right in expected.items():
            tolerance = 1e-7 if rival == "ntk_condition" else 1e-9  # the products square the condition
            assert together[rival][i].item() == pytest.approx(right, rel=tolerance, abs=1e-12), rival
    assert all(each[1:3].isnan().all() for each in together.values())


def test_of_many_networks_each_has_its_own_in_single_precision_too():
    nets, examples = [mlp((20, 20), seed=i) for i in range(3)], batch()
    together = values(nets, examples)
    for i, network in enumerate(nets):
        for name, alone in values([network], examples).items():
            torch.testing.assert_close(together[name][i], alone[0], rtol=1e-5, atol=1e-6, msg=name)
    assert all(len(set(each.tolist())) == 3 for each in together.values())
    again = values(nets, examples)
    assert all(torch.equal(again[name], each) for name, each in together.items())


def test_a_single_example_has_no_pairs_and_all_the_rest():
    found = values([mlp()], batch(1))
    assert {name for name, each in found.items() if each.isnan()} == {"gradient_confusion", "gradient_cosine"}


def test_the_order_of_units_changes_nothing():
    network, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    shuffled, order = copy.deepcopy(network), torch.tensor([3, 0, 5, 1, 4, 2])
    for tensor in (shuffled.hidden[0].weight, shuffled.hidden[0].bias):
        tensor.data = tensor.data[order]
    shuffled.hidden[1].weight.data = shuffled.hidden[1].weight.data[:, order]
    for name, (before, after) in values([network, shuffled], examples).items():
        rtol = 0.1 if name == "hessian_top" else 1e-8  # its first signs meet other units
        torch.testing.assert_close(before, after, rtol=rtol, atol=1e-12, msg=name)


def test_rescaling_a_relu_changes_those_that_look_at_gradients_alone():
    network, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    rescaled = copy.deepcopy(network)
    for tensor in (rescaled.hidden[0].weight, rescaled.hidden[0].bias):
        tensor.data *= 3
    rescaled.hidden[1].weight.data /= 3
    changed = {
        name
        for name, (before, after) in values([network, rescaled], examples).items()
        if not torch.isclose(before, after, rtol=1e-8)
    }
    assert changed == SIGNS.keys() - {"snip", "synflow", "jacobian_covariance"}


def test_as_many_examples_are_looked_at_as_are_paid_for():
    """Of examples much alike, other ones after the last change nothing; another last one does."""
    network, inputs, targets = mlp((40, 40)), 2 + 0.1 * batch(100)[0], torch.zeros(100).long()
    for name, before in values([network], (inputs, targets)).items():
        declared = predictors.PREDICTORS[name]
        most = int(min(declared.examples, 100)) if declared.passes else 0
        assert declared.examples in (16, 64, math.inf)
        for first, changes in ((most, False), (most - 1, True))[: 1 + bool(most)]:
            other = torch.cat([inputs[:first], -inputs[first:]]), targets.index_fill(0, torch.arange(first, 100), 1)
            assert (value(name, network, other) != before.item()) == changes, name


@pytest.mark.parametrize("name", ["snip", "grasp", "sam_sharpness"])
def test_as_many_passes_are_made_as_are_paid_for(name):
    """A gradient is three passes, or less: nobody asks the first layer for that of its input."""
    network, examples = MLP(INPUTS, (30, 30, 30), CLASSES), batch()
    stacked = en.stack([network] * 2)
    getattr(rivals, name)(stacked, examples)  # what a call costs is measured in the first one
    with FlopCounterMode(display=False) as counter:
        getattr(rivals, name)(stacked, examples)
    passes = counter.get_total_flops() / (2 * count_flops(network, examples[0]))
    assert 0.8 * predictors.PREDICTORS[name].passes < passes <= predictors.PREDICTORS[name].passes


def test_signs_are_declared_and_sources_named():
    ours = {name: each for name, each in predictors.PREDICTORS.items() if each.compute is getattr(rivals, name, 0)}
    assert {name: each.sign for name, each in ours.items()} == SIGNS
    assert all("arXiv" in each.source for each in ours.values())
    assert {each.family for each in ours.values()} == {"static"}


def linear(classes=2, inputs=3) -> nn.Module:
    """A linear classifier of weight zero: all classes are equally likely, and ∇l = (1/C − y) xᵀ."""
    network = nn.Sequential(nn.Linear(inputs, classes, bias=False)).double()
    network[0].weight.data.zero_()
    return network


def test_the_gradients_of_a_linear_classifier():
    """⟨∇l_i, ∇l_j⟩ = (1[y_i = y_j] − 1/C) x_i·x_j."""
    classes, (inputs, targets) = 5, batch(12, dtype=torch.float64)
    same = (targets.unsqueeze(0) == targets.unsqueeze(1)).double()
    products = (same - 1 / classes) * (inputs @ inputs.T)
    torch.testing.assert_close(
        rivals._gram(en.stack([linear(classes, INPUTS)]), (inputs, targets))[0], products, **DOUBLE
    )
    trace = (1 - 1 / classes) * inputs.square().sum(1).mean().item()
    assert value("fisher", linear(classes, INPUTS), (inputs, targets)) == pytest.approx(trace, rel=1e-12)
    assert gain(linear(classes, INPUTS), (inputs, targets)) == pytest.approx(products.mean().item(), rel=1e-12)


ONE = torch.tensor([[1.0, 2.0, 2.0]]).double()  # of length 3: ‖∇l‖² = (1 − 1/2) · 9
AXES = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()


@pytest.mark.parametrize(
    ("inputs", "targets", "confusion", "cosine", "diversity"),
    [
        (ONE.expand(4, 3), [0, 0, 0, 0], -4.5, 1, 1 / 4),  # all the same: they agree
        (AXES, [0, 1, 0], 0, 0, 1),  # orthogonal
        (ONE.expand(2, 3), [0, 1], 4.5, -1, math.inf),  # opposite: they cancel
        (ONE.expand(3, 3), [0, 0, 1], 4.5, -1, 3),
    ],
)
def test_confusion_and_diversity_of_gradients_that_agree_or_not(inputs, targets, confusion, cosine, diversity):
    examples = inputs, torch.tensor(targets)
    assert value("gradient_confusion", linear(), examples) == pytest.approx(confusion, abs=1e-12)
    assert value("gradient_cosine", linear(), examples) == pytest.approx(cosine, abs=1e-12)
    assert value("gradient_diversity", linear(), examples) == pytest.approx(diversity, rel=1e-12)


def test_minibatches_are_runs_of_examples_that_average():
    """Sixteen examples in runs of two, which cancel within each run, or are all of one label."""
    inputs = AXES[1:2].expand(16, 3)
    alternating, split = torch.tensor([0, 1] * 8), torch.tensor([0] * 8 + [1] * 8)
    assert value("gradient_confusion", linear(), (inputs, alternating)) == 0
    assert value("gradient_confusion", linear(), (inputs, split)) == pytest.approx(2, rel=1e-12)  # ½ ‖x‖²


def test_the_kernel_of_a_linear_network_is_that_of_its_inputs():
    assert value("ntk_condition", linear(4), (AXES, torch.zeros(3).long())) == pytest.approx(9, rel=1e-12)
    twice = torch.cat([AXES, AXES[:1]])
    assert value("ntk_condition", linear(4), (twice, torch.zeros(4).long())) == math.inf


@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
def test_the_natural_gain_of_one_example_saturates_where_damping_is_small(length):
    square = 0.5 * 9 * length**2
    found = value("natural_gain", linear(), (ONE * length, torch.tensor([0])))
    assert found == pytest.approx(square / (square + 0.01), rel=1e-9)


def test_the_top_of_the_hessian_is_that_of_the_dense_matrix():
    network, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    point = point_of(network)
    dense = torch.stack([curved(network, examples, axis) for axis in torch.eye(len(point)).double()])
    largest = torch.linalg.eigvalsh(dense).abs().max().item()
    assert 0.9 * largest < abs(value("hessian_top", network, examples)) <= largest * (1 + 1e-9)


def test_the_natural_gain_is_that_of_the_dense_fisher_matrix():
    network, (inputs, targets) = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    rows = torch.stack(
        [flat(cross_entropy(network, x[None], y[None]), network) for x, y in zip(inputs, targets, strict=True)]
    )
    g, damped = rows.mean(0), rows.T @ rows / len(rows) + 0.01 * torch.eye(rows.shape[1]).double()
    expected = (g @ torch.linalg.solve(damped, g)).item()
    assert value("natural_gain", network, (inputs, targets)) == pytest.approx(expected, rel=1e-9)
    steps = torch.randn(100, len(g), generator=generator("steps"), dtype=torch.float64) * 0.1
    best = torch.linalg.solve(damped, g) + torch.cat([steps, steps[:1] * 0])
    promised = 2 * (best @ g) - (best @ damped * best).sum(1)
    assert promised.argmax() == 100
    assert promised[100].item() == pytest.approx(expected, rel=1e-9)


def test_the_layers_best_updates_of_a_linear_classifier_are_a_least_squares_fit():
    """As many examples as inputs, and each gets what it wishes: ‖∇_a l‖² = 2/4 each. One input too few, and one not."""
    everything = value("tiny", linear(), (AXES, torch.tensor([0, 1, 0])))
    assert everything == pytest.approx(1 / 2, rel=1e-12)
    assert value("tiny", linear(), (torch.cat([AXES, AXES]), torch.tensor([0, 1, 0, 1, 0, 1]))) == pytest.approx(
        0, abs=1e-12
    )
    classes, (inputs, targets) = 5, batch(12, dtype=torch.float64)
    wish = F.one_hot(targets, classes).double() - 1 / classes
    fit = inputs @ torch.linalg.lstsq(inputs, wish).solution
    assert value("tiny", linear(classes, INPUTS), (inputs, targets)) == pytest.approx(
        fit.square().sum().item() / 12, rel=1e-9
    )


def test_new_units_that_nothing_reads_add_what_their_readers_can_do_and_copies_add_nothing():
    network, (inputs, targets) = mlp((3, 3), dtype=torch.float64), batch(dtype=torch.float64)
    before = value("tiny", network, (inputs, targets))
    silent = mm.expand(network, inputs, "zero_outgoing", {"hidden.1": 5})
    hidden = silent.hidden[1](silent.hidden[0](inputs).relu()).relu()
    wish = F.softmax(network(inputs), dim=1) - F.one_hot(targets, CLASSES)

    def explained(columns):
        given = torch.cat([columns, torch.ones(len(columns), 1)], dim=1).detach()
        return (given @ torch.linalg.lstsq(given, wish.detach(), driver="gelsd").solution).square().sum() / len(wish)

    added = value("tiny", silent, (inputs, targets)) - before
    assert added == pytest.approx((explained(hidden) - explained(hidden[:, :3])).item(), rel=1e-9)
    assert added > 0.01 * before
    copied = mm.expand(network, inputs, "lemon", {"hidden.1": 6})
    hidden = copied.hidden[1](copied.hidden[0](inputs).relu()).relu()
    assert explained(hidden) == pytest.approx(explained(hidden[:, :3]).item(), rel=1e-9)


def test_a_layer_used_twice_grants_one_wish_and_work_in_place_is_no_matter():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

        def forward(self, x):
            return self.head(self.layer(self.layer(x).relu_()).relu_())

    network, (inputs, targets) = Twice().double(), batch(40, dtype=torch.float64)
    one = network.layer(inputs)
    two = network.layer(one.relu())
    last = two.relu()
    given = torch.cat([torch.cat([inputs, one.relu()]), torch.ones(80, 1)], dim=1).detach()
    loss = F.cross_entropy(network.head(last), targets, reduction="sum")
    wish = torch.cat(torch.autograd.grad(loss, [one, two]))
    own = (given @ torch.linalg.lstsq(given, wish).solution).square().sum().item()
    top = torch.cat([last.detach(), torch.ones(40, 1)], dim=1)
    wish = (F.softmax(network.head(last), dim=1) - F.one_hot(targets, CLASSES)).detach()
    own += (top @ torch.linalg.lstsq(top, wish, driver="gelsd").solution).square().sum().item()
    assert value("tiny", network, (inputs, targets)) == pytest.approx(own / 40, rel=1e-9)


@pytest.mark.parametrize("option", [{"groups": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_a_convolution_whose_reach_is_not_worked_out_is_refused(option):
    network = nn.Sequential(nn.Conv2d(2, 2, 3, **{"padding": 1} | option), nn.Flatten(), nn.Linear(32, CLASSES))
    with pytest.raises(ValueError, match=r"tiny.*one group, bordered by zeros"):
        value("tiny", network, (torch.randn(5, 2, 4, 4), torch.zeros(5).long()))


@pytest.mark.parametrize("bias", [True, False])
def test_the_layers_best_updates_are_those_of_gromo(bias):
    gromo = pytest.importorskip("gromo.modules.linear_growing_module")
    layers = [gromo.LinearGrowingModule(a, b, use_bias=bias) for a, b in pairwise([INPUTS, 5, CLASSES])]
    layers[1].previous_module = layers[0]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1]).double()
    examples = batch(50, dtype=torch.float64)
    for layer in layers:
        layer.init_computation()
    (50 * classification(network, examples)).backward()  # it expects a sum over examples
    for layer in layers:
        layer.update_computation()
        layer.compute_optimal_delta(dtype=torch.float64)
    plain = nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise([INPUTS, 5, CLASSES]))).double()
    plain = nn.Sequential(plain[0], nn.ReLU(), plain[1])
    for mine, theirs in zip((plain[0], plain[2]), layers, strict=True):
        mine.load_state_dict(theirs.layer.state_dict())
    right = sum(float(layer.parameter_update_decrease) for layer in layers)
    assert value("tiny", plain, examples) == pytest.approx(right, rel=1e-6)


def test_input_jacobians_that_are_all_the_same_and_all_different():
    network, n = linear(), 3
    network[0].weight.data.copy_(torch.tensor([[1.0, 2, 3], [0, 5, 1]]))
    same = value("jacobian_covariance", network, (AXES, torch.zeros(n).long()))
    k = 1e-5
    assert same == pytest.approx(-(n - 1) * (math.log(k) + 1 / k) - math.log(n + k) - 1 / (n + k), rel=1e-9)
    gates = MLP(4, (4,), 1).double()  # each example opens one unit; what it reads is orthogonal to the others, and to 1
    hadamard = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).double()
    gates.hidden[0].weight.data.copy_(torch.cat([hadamard, hadamard[:1] * 0]))
    gates.hidden[0].bias.data.zero_()
    gates.head.weight.data.fill_(1)
    different = value("jacobian_covariance", gates, (hadamard, torch.zeros(n).long()))
    assert different == pytest.approx(-n * (math.log(1 + k) + 1 / (1 + k)), rel=1e-9)
    assert different > same


def test_an_example_whose_jacobian_is_constant_correlates_with_none():
    network = linear()
    network[0].weight.data.fill_(2)
    k, found = 1e-5, value("jacobian_covariance", network, (AXES, torch.zeros(3).long()))
    assert found == pytest.approx(-3 * (math.log(k) + 1 / k), rel=1e-9)


def test_the_flow_through_layers_without_biases():
    """R = 1ᵀ|W₃||W₂||W₁|1, and each layer has all of it; the labels, and the inputs' values, play no part."""
    network = mlp(dtype=torch.float64)
    for layer in (*network.hidden, network.head):
        layer.bias.data.zero_()
    flow = torch.ones(INPUTS).double()
    for layer in (*network.hidden, network.head):
        flow = layer.weight.detach().abs() @ flow
    assert value("synflow", network, batch()) == pytest.approx(math.log(3 * flow.sum()), rel=1e-12)
    deep = MLP(INPUTS, (64,) * 60, 2)
    for layer in deep.hidden:
        layer.weight.data.fill_(1.0)  # R ~ 64⁶⁰ is beyond single precision
    assert math.isfinite(value("synflow", deep, batch()))


def test_shrinking_the_parameters_adds_to_the_gradient_what_grasp_says():
    network, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    theta, step = point_of(network), 1e-5
    more, less = (gain(moved(network, theta * (1 - side * step)), examples) / 2 for side in (1, -1))
    assert value("grasp", network, examples) == pytest.approx((more - less) / (2 * step), rel=1e-6)


def test_the_gain_is_the_slope_of_the_loss_under_gradient_flow():
    network, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    theta, step = point_of(network), 1e-4
    g = flat(cross_entropy(network, *examples), network)
    before, after = (cross_entropy(moved(network, theta - s * step * g), *examples).item() for s in (-1, 1))
    assert gain(network, examples) == pytest.approx((before - after) / (2 * step), rel=1e-6)


def test_sharpness_is_a_rise_where_the_loss_is_convex_and_nothing_where_there_is_no_slope():
    inputs, targets = batch(dtype=torch.float64)
    slope = math.sqrt(gain(linear(CLASSES, INPUTS), (inputs, targets)))
    rise = value("sam_sharpness", linear(CLASSES, INPUTS), (inputs, targets))
    assert rise > 0.05 * slope
    most = 0.5 * inputs.square().sum(1).mean().item()  # of the curvature: ½ of the mean ‖x‖²
    assert rise < 0.05 * slope + 0.5 * 0.05**2 * most
    assert value("sam_sharpness", linear(), (ONE.expand(2, 3), torch.tensor([0, 1]))) == 0


def test_tokens_have_no_gradient():
    _, network, inputs, targets = of_family("decoder", count=3)
    for name in OF_INPUTS:
        assert values([network] * 2, (inputs, targets), [name])[name].isnan().tolist() == [True, True]
