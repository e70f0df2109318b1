import pytest
import torch
from cases import CASES, INPUTS, batch, change, mlp, of_family
from torch import nn

from mmstudy.batched.ensemble import classification
from mmstudy.core.seeds import generator
from mmstudy.expansion import new_units
from mmstudy.expansion.growth import Growth
from mmstudy.expansion.surgery import rebuilt
from mmstudy.tracing.couplings import couplings
from mmstudy.tracing.layouts import places
from mmstudy.validation.preservation import FAMILIES, trained

DOUBLE = torch.float64


def growth(network, place, size, data, loss_fn=classification, seed=0) -> Growth:
    group = couplings(network, data[0])[place]
    return Growth(network, group, size, generator("fresh", seed), data, loss_fn)


def carried_out(way, grown: Growth, **options) -> nn.Module:
    plan, touch = way(grown, **options)
    return rebuilt(grown.network, plan, grown.call, touch)


@pytest.mark.parametrize(
    ("way", "drawn"),
    [(new_units.random, "makes, reads"), (new_units.zero_outgoing, "makes"), (new_units.zero_incoming, "reads")],
)
def test_what_is_drawn_has_the_default_scale_of_its_layer_and_the_rest_is_zero(way, drawn):
    network = mlp((60, 50))
    first, second, _ = [*(new := carried_out(way, growth(network, "hidden.0", 120, batch()))).hidden, new.head]
    for values, fan_in, role in (
        (first.weight[60:], INPUTS, "makes"), (first.bias[60:], INPUTS, "makes"), (second.weight[:, 60:], 120, "reads")
    ):  # fmt: skip
        draws = values.detach() * fan_in**0.5
        if role in drawn:
            n = draws.numel()
            assert 0.9 < draws.abs().max() <= 1 + 1e-6
            assert abs(draws.mean()) * (3 * n) ** 0.5 < 4  # a uniform draw has variance 1/3
            assert abs((draws**2).mean() - 1 / 3) * (n * 45 / 4) ** 0.5 < 4
        else:
            assert (draws == 0).all()
    assert torch.equal(first.weight[:60], network.hidden[0].weight)
    assert torch.equal(second.weight[:, :60], network.hidden[1].weight)


def test_a_drawn_embedding_has_the_deviation_of_the_old_one():
    family, network, inputs, targets = of_family("decoder", 3)
    network.embedding.weight.data *= 5
    new = carried_out(new_units.random, growth(network, "embedding", 64, (inputs, targets), family.loss_fn))
    old, drawn = network.embedding.weight.detach(), new.embedding.weight.detach()[:, 16:]
    draws = drawn / (3**0.5 * old.std(correction=0))
    assert 0.9 < draws.abs().max() <= 1 + 1e-6
    assert abs((draws**2).mean() - 1 / 3) * (draws.numel() * 45 / 4) ** 0.5 < 4


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("way", [new_units.zero_incoming, new_units.zero_outgoing])
def test_units_of_zero_learn_unless_behind_a_relu(way, activation):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, 6), activation(), nn.Linear(6, 4)).double()
    grown = growth(network, "0", 9, batch(dtype=DOUBLE))
    new = carried_out(way, grown)
    makes, reads = torch.autograd.grad(grown.loss(new), [new[0].weight, new[2].weight])
    incoming, outgoing = makes[6:], reads[:, 6:]
    assert makes[:6].abs().min() > 0
    if way is new_units.zero_outgoing:
        assert (incoming == 0).all()
        assert (outgoing != 0).any(0).all()
    else:
        assert (incoming != 0).all() if activation is not nn.ReLU else (incoming == 0).all()
        assert (outgoing == 0).all()


@pytest.mark.parametrize("way", [new_units.zero_outgoing, new_units.orthogonal, new_units.gradmax])
def test_units_that_nothing_reads_are_refused_where_they_would_be_felt(way):
    network, inputs = CASES["RMS norm"].network(), CASES["RMS norm"].inputs()
    targets = torch.zeros(4, dtype=torch.long)
    refused = "normalized together" if way is not new_units.gradmax else "gradmax needs one linear"
    with pytest.raises(ValueError, match=rf"embedding.*{refused}|{refused}.*embedding"):
        way(growth(network, "embedding", 12, (inputs, targets)))


def test_zero_incoming_shows_averages_as_zeros_and_draws_only_what_reads_those():
    family, network, inputs, targets = of_family("ViT", 5)
    new = carried_out(new_units.zero_incoming, growth(network, "embedding", 17, (inputs, targets), family.loss_fn))
    assert change(network, new, inputs) < 1e-12
    average = network.embedding.weight.mean(0, keepdim=True)
    torch.testing.assert_close(new.embedding.weight[12:], average.expand(5, -1, -1, -1))
    torch.testing.assert_close(new.blocks[0].down.bias[12:], network.blocks[0].down.bias.mean().expand(5))
    for reader in (new.blocks[0].up, new.blocks[1].attention.query, new.blocks[1].attention.key):
        assert (reader.weight[:, 12:].abs() > 0).all()
        assert reader.weight[:, 12:].abs().max() <= 17**-0.5


SHAPES = [(12, 5, 4), (12, 5, 7), (12, 5, 9), (6, 8, 4), (6, 8, 13), (6, 6, 2)]


@pytest.mark.parametrize(("inputs", "units", "extra"), SHAPES)
def test_orthogonal_rows_are_orthogonal_to_the_old_ones_and_each_other_as_far_as_there_is_room(inputs, units, extra):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, 3)).double()
    data = torch.randn(9, inputs, dtype=DOUBLE), torch.zeros(9, dtype=torch.long)
    new = carried_out(new_units.orthogonal, growth(network, "0", units + extra, data))
    old, rows = new[0].weight.detach().split([units, extra])
    torch.testing.assert_close(rows.norm(dim=1), old.norm(dim=1).mean().expand(extra))
    room = inputs - units if inputs > units else inputs
    if inputs > units:
        torch.testing.assert_close(rows @ old.mT, torch.zeros(extra, units, dtype=DOUBLE), rtol=0, atol=1e-12)
    for some in rows.split(room):
        gram = some @ some.mT
        torch.testing.assert_close(gram, torch.diag(gram.diag()), rtol=0, atol=1e-12)
    assert torch.unique(rows, dim=0).shape == rows.shape
    assert (new[2].weight[:, units:] == 0).all()
    assert change(network, new, data[0]) < 1e-15


def test_orthogonal_works_on_convolutions_and_on_heads():
    at = {"ResNet, batch norm": ("stages.0.0.conv1", 7), "decoder": ("blocks.0.attention.query[0]", 3)}
    for name, (place, size) in at.items():
        family, network, inputs, targets = of_family(name, 3)
        new = carried_out(new_units.orthogonal, growth(network, place, size, (inputs, targets), family.loss_fn))
        assert change(network, new, inputs) < 1e-12
        group = couplings(network, inputs)[place]
        for use in group.makers("weight"):
            rows = new.get_parameter(use.tensor).detach().movedim(use.axis, 0)[places(use.layout, size)].flatten(1)
            overlap = rows[group.size :] @ rows[: group.size].mT
            assert overlap.abs().max() < 1e-12


def dense(network: nn.Module, layer: int, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """M = Σ δ xᵀ over examples: δ, the gradient of the loss at what the next layer puts out; x, the layer's input."""
    x, hidden = inputs, [*network.hidden, network.head]
    for i, linear in enumerate(hidden):
        if i == layer:
            seen = x
        x = linear(x)
        if i == layer + 1:
            at = x
        x = x.relu() if i + 1 < len(hidden) else x
    (delta,) = torch.autograd.grad(nn.functional.cross_entropy(x, targets), at)
    return torch.stack([torch.outer(d, s) for d, s in zip(delta, seen.detach(), strict=True)]).sum(0)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("extra", [1, 3, 9])
def test_gradmax_takes_the_singular_vectors_of_the_dense_sum(layer, extra):
    network, data = mlp((6, 5, 4), dtype=DOUBLE), batch(dtype=DOUBLE)
    new = carried_out(new_units.gradmax, growth(network, f"hidden.{layer}", (6, 5)[layer] + extra, data))
    _, values, right = torch.linalg.svd(dense(network, layer, *data))
    old, rows = new.hidden[layer].weight.detach().split([(6, 5)[layer], extra])
    torch.testing.assert_close(rows.norm(dim=1), old.norm(dim=1).mean().expand(extra))
    for i, row in enumerate(rows / rows.norm(dim=1, keepdim=True)):
        if i < len(values):  # what follows is the null space, in no special order
            assert float((row @ right[i]).abs()) == pytest.approx(1, abs=1e-9)
        assert float((row @ right[i % len(right)]).abs()) == pytest.approx(1, abs=1e-6) or i >= len(values)
    assert (new.hidden[layer].bias[len(old) :] == 0).all()


def test_gradmax_draws_what_is_more_than_there_are_directions():
    network, data = mlp((6, 5), dtype=DOUBLE), batch(dtype=DOUBLE)
    rows = (
        carried_out(new_units.gradmax, growth(network, "hidden.0", 6 + INPUTS + 3, data)).hidden[0].weight.detach()[6:]
    )
    cosines = (rows @ rows.mT) / rows[0].norm() ** 2
    torch.testing.assert_close(cosines[:INPUTS, :INPUTS], torch.eye(INPUTS, dtype=DOUBLE))
    others = cosines[INPUTS:].abs() - torch.eye(INPUTS + 3, dtype=DOUBLE)[INPUTS:]
    assert others.max() < 0.99  # a direction of its own each
    torch.testing.assert_close(cosines.diag(), torch.ones(INPUTS + 3, dtype=DOUBLE))


SCORED = [("MLP", "hidden.0"), ("MLP", "hidden.1"), ("ResNet, batch norm", "stages.0.0.conv1"), ("ViT", "blocks.0.up")]


@pytest.mark.parametrize(("name", "place"), SCORED)
def test_gradmax_has_a_larger_gradient_than_a_thousand_draws_of_the_same_norm(name, place):
    """Units that nothing reads do not see each other: one network holds all the draws."""
    family, examples = FAMILIES[name], FAMILIES[name].examples(64)
    network = trained(family, family.network(), family.examples(256), steps=10)
    chosen = growth(network, place, couplings(network, examples.inputs)[place].size + 1, examples, family.loss_fn)
    n, (reader,), (maker,) = chosen.coupling.size, chosen.coupling.of("consumed"), chosen.coupling.of("weight")
    drawn = growth(network, place, n + 1000, examples, family.loss_fn)
    best, many = carried_out(new_units.gradmax, chosen), carried_out(new_units.zero_outgoing, drawn)
    row = best.get_parameter(maker.tensor).detach()[n]
    rows = many.get_parameter(maker.tensor).detach()
    rows[n:] = torch.randn(rows[n:].shape, generator=generator("directions"))
    rows[n:] *= row.norm() / rows[n:].flatten(1).norm(dim=1).view(-1, *[1] * (rows.ndim - 1))
    if network.get_submodule(place).bias is not None:
        many.get_submodule(place).bias.data[n:] = 0  # as those of gradmax
        assert best.get_submodule(place).bias[n] == 0

    def squares(grown: nn.Module) -> torch.Tensor:
        parameter = grown.get_parameter(reader.tensor)
        (gradient,) = torch.autograd.grad(chosen.loss(grown), parameter)
        return gradient[:, n:].transpose(0, 1).flatten(1).square().sum(1)

    (score,), others = squares(best), squares(many)
    assert len(others) == 1000
    assert score > others.max() > 0


def test_gradmax_says_where_it_does_not_apply():
    _, network, inputs, targets = of_family("ResNet, batch norm", 3)
    with pytest.raises(ValueError, match="one linear or convolutional layer that makes the units of stem"):
        new_units.gradmax(growth(network, "stem", 5, (inputs, targets)))
    case = CASES["depthwise"]
    data = case.inputs(), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="each on an axis of their own"):
        new_units.gradmax(growth(case.network(), "4", 7, data))  # flattened
    between = nn.MaxPool2d(2)
    pooled = nn.Sequential(nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"what reads the units of 0 to follow.*shapes"):
        new_units.gradmax(growth(pooled, "0", 9, data))


@pytest.mark.parametrize("way", [new_units.gradmax, new_units.ligo])
def test_what_learns_needs_targets(way):
    with pytest.raises(ValueError, match=r"learns? from data: give it inputs and targets"):
        way(Growth(mlp(), couplings(mlp(), batch()[0])["hidden.0"], 9, generator("fresh"), batch()[0]))


@pytest.mark.parametrize(
    ("name", "place", "size"), [("MLP", "hidden.1", 24), ("ViT", "blocks.0.up", 96), ("ResNet, batch norm", "stem", 6)]
)
def test_ligo_lowers_the_loss_from_where_it_starts(name, place, size):
    family, examples = FAMILIES[name], FAMILIES[name].examples(128)
    network = trained(family, family.network(), examples, steps=15)
    grown = [growth(network, place, size, examples, family.loss_fn) for _ in range(2)]
    start, learned = (
        g.loss(carried_out(new_units.ligo, g, steps=s)).item() for g, s in zip(grown, (0, 20), strict=True)
    )
    assert start == pytest.approx(grown[0].loss(network).item(), rel=0.02)  # bert2bert's copies and a little noise
    assert learned < 0.95 * start


def test_ligo_makes_new_tensors_linearly_of_the_old_ones():
    network, data = mlp((6, 4), dtype=DOUBLE), batch(dtype=DOUBLE)
    plan, touch = new_units.ligo(growth(network, "hidden.0", 10, data), steps=5)
    new = rebuilt(network, plan, data[0], touch)
    assert touch is None
    torch.testing.assert_close(new.hidden[0].weight, plan.make @ network.hidden[0].weight)
    torch.testing.assert_close(new.hidden[0].bias, plan.make @ network.hidden[0].bias)
    torch.testing.assert_close(new.hidden[1].weight, network.hidden[1].weight @ plan.read.mT)
    assert (plan.make[:6] - torch.eye(6)).abs().max() > 1e-3  # learned


class ByHand(nn.Module):
    """Normalization by running statistics, written out: as frozen ones often are."""

    def __init__(self, root):
        super().__init__()
        self.root, self.a, self.b = root, nn.Linear(3, 5), nn.Linear(5, 2)
        self.register_buffer("mean", torch.rand(5))
        self.register_buffer("variance", 0.5 + torch.rand(5))
        self.scale = nn.Parameter(torch.rand(5))

    def forward(self, x):
        return self.b((self.a(x) - self.mean) * self.root(self.variance) * self.scale)


@pytest.mark.parametrize(
    "root", [lambda v: (v + 1e-5).rsqrt(), lambda v: v.rsqrt(), lambda v: 1 / torch.sqrt(1e-5 + v)]
)
def test_a_running_variance_that_is_written_out_is_no_bias_to_be_drawn(root):
    network, inputs = ByHand(root), torch.randn(4, 3)
    mean = lambda model, batch: model(batch[0]).mean()  # noqa: E731
    for seed in range(4):
        for way in (new_units.random, new_units.zero_outgoing):
            new = carried_out(
                way,
                growth(network, "a", 9, (inputs, torch.zeros(4)), mean, seed),
            )
            assert torch.equal(new.variance, torch.cat([network.variance, torch.ones(4)]))
            assert new(inputs).isfinite().all()
