"""What is measured is what plain calls of the networks give; where it isn't, nothing is measured."""

import pytest
import torch
from cases import CLASSES, batch, mlp
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.batched import costs, replay
from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import of_networks

X, Y = batch(40)
IN = X[0].numel()
FACES = {
    "size": lambda network, loss_fn: mm.size(network, (X, Y), loss_fn=loss_fn),
    "sizes": lambda network, loss_fn: mm.sizes(network, (X, Y), methods=["rays"], loss_fn=loss_fn),
    "check": lambda network, loss_fn: mm.check(network, (X, Y), loss_fn=loss_fn),
    "line": lambda network, loss_fn: mm.line(network, network, (X, Y), loss_fn=loss_fn),
}


class Net(nn.Module):
    """A perceptron, to be changed by its subclasses."""

    weight_decay = 3.0

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(IN, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Kept(Net):
    """Reads a weight through a list."""

    def __init__(self):
        super().__init__()
        self.kept = [self.second.weight]

    def forward(self, x):
        return self.first(x).tanh() @ self.kept[0].T + self.second.bias


class Dropping(Net):
    """Drops units in evaluation mode, too."""

    def forward(self, x):
        return self.second(F.dropout(self.first(x).tanh(), 0.5))


class InPlace(Net):
    """Changes its inputs."""

    def forward(self, x):
        return super().forward(x.mul_(0.5))


class TwoNames(Net):
    """Has a second name for each of its modules."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(self.first, nn.Tanh(), self.second)

    def forward(self, x):
        return self.model(x)


class Mixing(Net):
    """Normalizes by the examples at hand."""

    def forward(self, x):
        hidden = self.first(x)
        return self.second((hidden - hidden.mean(0)) / hidden.std(0))


def mean(model, data):
    return F.cross_entropy(model(data[0]), data[1])


CAPTURED = Net()


def penalized(model, data):
    return mean(model, data) + sum(p.square().sum() for p in CAPTURED.parameters())


def by_attribute(model, data):
    return mean(model, data) * getattr(model, "weight_decay", 1.0)


def summed(model, data):
    return F.cross_entropy(model(data[0]), data[1], reduction="sum")


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("network", "loss_fn", "message"),
    [
        (Kept(), mean, "elsewhere than at its place"),
        (CAPTURED, penalized, "elsewhere than at its place"),
        (Net(), by_attribute, "do no more with its model than call it, .* reads model.weight_decay"),
        (Net(), summed, "mean over the examples.*reduction='sum'"),
        (Dropping(), mean, "returns something else for the same inputs"),
        (InPlace(), mean, "changes the batch in place"),
    ],
    ids=["a list", "a captured network", "an attribute", "a sum", "dropout", "in place"],
)
def test_what_cannot_be_measured_is_refused(face, network, loss_fn, message):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    memory = [p.data_ptr() for p in network.parameters()]
    with pytest.raises((ValueError, TypeError), match=message):
        FACES[face](network, loss_fn)
    assert memory == [p.data_ptr() for p in network.parameters()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("face", FACES)
def test_a_module_of_two_names_stays_what_it_is(face):
    network = TwoNames()
    parameters = list(network.parameters())
    FACES[face](network, mean)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert network.first.weight is network.model[0].weight is parameters[0]


def test_a_module_of_two_names_is_measured_as_one_of_one():
    network, plain = TwoNames(), Net()
    plain.load_state_dict({name: t for name, t in network.state_dict().items() if not name.startswith("model")})
    assert (
        mm.size(network, (X, Y), method="rays")["size"].item() == mm.size(plain, (X, Y), method="rays")["size"].item()
    )


@pytest.mark.parametrize("loss_fn", [en.classification, mean])
def test_a_network_that_mixes_examples_is_evaluated_on_all_of_them(loss_fn):
    inputs = torch.randn(1500, IN, generator=torch.Generator().manual_seed(0))
    inputs[:700] += 2
    data, network = (inputs, (inputs[:, 0] > 1).long()), Mixing()
    expected = mean(network, data).item()
    stacked = en.stack(network)
    assert en.losses(stacked, data, loss_fn).item() == pytest.approx(expected, rel=1e-5)
    assert of_networks(stacked, data, loss_fn)(en.vectors(stacked)).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(en.outputs(stacked, inputs)[0], network(inputs))
    assert len(en.parts_of(en.stack(Net()), data, en.classification, "frozen")) == 3


def test_a_loss_that_is_a_mean_only_far_away_is_that_of_the_whole():
    inputs = torch.randn(1500, IN, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0).long()
    order = inputs[:, 0].argsort()
    data, network = (inputs[order], labels[order]), Net()

    def flooded(model, data):
        return (mean(model, data) - 0.5).abs() + 0.5

    with torch.no_grad():
        network.second.weight.zero_(), network.second.bias.copy_(torch.tensor([3.0, 0.0] + [-9.0] * (CLASSES - 2)))
    assert en.losses(en.stack(network), data, flooded).item() == pytest.approx(flooded(network, data).item(), rel=1e-5)


def test_corners_of_a_plane_have_frozen_weights_of_their_own():
    corners = [Net() for _ in range(3)]
    for network in corners:
        network.first.requires_grad_(False)
    found = mm.plane(*corners, (X, Y), points=15)
    for network, name in zip(corners, "abc", strict=True):
        where = {axis: float(found[f"corner_{axis}"].sel(network=name)) for axis in ("x", "y")}
        near = found["loss"].interp(where).item()
        assert near == pytest.approx(mean(network, (X, Y)).item(), abs=0.01)


@pytest.mark.parametrize("face", FACES)
def test_a_loss_that_asks_more_of_its_model_is_named(face):
    def decayed(model, data):
        return mean(model, data) + sum(p.square().sum() for p in model.parameters())

    with pytest.raises(TypeError, match=r"no more with its model than call it.*parameters"):
        FACES[face](Net(), decayed)


@pytest.mark.parametrize("measure", [mm.size, mm.check])
def test_a_batch_that_has_no_examples_is_named(measure):
    edges = torch.eye(40)

    def on_graph(model, graph):
        return F.cross_entropy(graph["edges"] @ model(graph["nodes"]), graph["labels"])

    with pytest.raises(ValueError, match="first axis of every tensor"):
        measure(Net(), {"nodes": X, "edges": edges, "labels": Y}, loss_fn=on_graph)


def test_networks_of_several_shapes_are_each_compared():
    assert mm.size([mlp(seed=0), Net()], (X, Y), method="rays").sizes == {"network": 2}
    with pytest.raises(ValueError, match="elsewhere than at its place"):
        mm.size([Net(), Kept()], (X, Y), method="rays")


class Recurrent(nn.Module):
    """Reads its inputs one number after another."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second = kind(1, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.second(self.first(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_network_is_measured_as_without_recording(kind):
    network = Recurrent(kind)
    found = mm.size(network, (X, Y), level=1e3, samples=2)
    with replay.off():
        assert mm.size(network, (X, Y), level=1e3, samples=2).identical(found)


class Keeping(Net):
    """Keeps what it computed last."""

    def forward(self, x):
        self.features = self.first(x).tanh()
        return self.second(self.features)


def test_a_network_that_keeps_what_it_computes_is_measured_and_stays_what_it_is():
    networks = [Keeping() for _ in range(3)]
    before = [dict(vars(network)) for network in networks]
    for measure in (
        lambda: mm.size(networks, (X, Y), samples=2),
        lambda: mm.sizes(networks, (X, Y), methods=["rays", "children"], samples=2),
        lambda: mm.check(networks, (X, Y)),
        lambda: mm.line(*networks[:2], (X, Y)),
        lambda: mm.barrier(*networks[:2], (X, Y), match=True),
        lambda: mm.plane(*networks, (X, Y), points=3),
    ):
        measure()
        assert [dict(vars(network)) for network in networks] == before
    plain = Net()
    plain.load_state_dict(networks[0].state_dict())
    assert mm.size(plain, (X, Y), samples=2).identical(mm.size(networks[0], (X, Y), samples=2))


class Choosing(nn.Module):
    """Makes a choice that networks of a batch cannot make."""

    def forward(self, x):
        assert x.isfinite().all()
        return x.tanh()


class Normalizing(nn.Module):
    """Normalizes by the examples at hand."""

    def forward(self, x):
        return x / x.std(0)


@pytest.mark.parametrize("middle", [Choosing(), Normalizing()])
def test_a_network_that_was_changed_is_measured_as_it_is(middle):
    data = batch(600)
    network, new = (nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Linear(4, CLASSES)) for _ in range(2))
    new.load_state_dict(network.state_dict())
    mm.size(network, data, method="rays", samples=2)
    network[1] = new[1] = middle
    expected = mm.size(new, data, method="rays", samples=2)
    assert mm.size(network, data, method="rays", samples=2).identical(expected)


class Force(nn.Module):
    """The negative slope of an energy, for which it takes gradients itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(IN, 6), nn.Linear(6, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.second(self.first(x).tanh()).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


def test_a_network_that_takes_gradients_itself_is_measured():
    network = Force()
    taken = costs.cost(network, en.stack(network).parameters, {}, (X, X), en.regression)
    assert taken.flops == 2 * (2 * 40 * (IN * 6 + 6))  # forth and back
    found = mm.sizes(network, (X, X), methods=["rays", "extent", "curvature"], loss_fn=en.regression, samples=4)
    assert found["size"].notnull().all()


class OwnParameters(Net):
    """Works with its own parameters only."""

    def forward(self, x):
        if not isinstance(self.first.weight, nn.Parameter):
            raise RuntimeError("where is my parameter?")
        return super().forward(x)


@pytest.mark.parametrize("face", FACES)
def test_a_network_that_works_in_plain_calls_only_is_named(face):
    with pytest.raises(ValueError, match=r"OwnParameters works in a plain call, but not .*where is my parameter"):
        FACES[face](OwnParameters(), mean)
