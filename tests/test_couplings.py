import pytest
import torch
from cases import CLASSES, INPUTS, WIDTHS, batch, convolutional, mlp
from torch import nn

from mmstudy import expand
from mmstudy.couplings import couplings
from mmstudy.seeds import generator


def test_couplings_of_an_mlp_are_those_written_down_by_hand():
    groups = couplings(mlp((6, 4)), batch()[0])
    assert list(groups) == ["hidden.0", "hidden.1"]
    assert groups["hidden.0"].produced == [("hidden.0.weight", 0), ("hidden.0.bias", 0)]
    assert groups["hidden.0"].consumed == [("hidden.1.weight", 1)]
    assert groups["hidden.1"].consumed == [("head.weight", 1)]
    assert [g.size for g in groups.values()] == [6, 4]
    assert all(g.rectified for g in groups.values())


def test_units_that_skip_the_relu_are_not_rectified():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.ModuleList([nn.Linear(INPUTS, 4)])
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.hidden[0](x))

    assert not couplings(Skipping(), batch()[0])["hidden.0"].rectified
    with pytest.raises(ValueError, match="not rectified"):
        expand.deepen(Skipping(), "hidden.0", "deeper_identity", generator(0), batch()[0])


def test_an_unknown_operation_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="tanh"):
        couplings(nn.Sequential(nn.Linear(INPUTS, 3), nn.Tanh(), nn.Linear(3, 2)), batch()[0])
    with pytest.raises(NotImplementedError, match="aten"):
        couplings(convolutional().eval(), batch()[0])


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
def test_an_axis_belongs_to_one_coupling_and_has_its_size(widths):
    network = mlp(widths)
    groups = couplings(network, batch()[0])
    axes = [axis for group in groups.values() for axis in (*group.produced, *group.consumed)]
    assert len(set(axes)) == len(axes)
    for group in groups.values():
        assert {network.get_parameter(name).shape[axis] for name, axis in group.produced + group.consumed} == {
            group.size
        }
    free = {("hidden.0.weight", 1), ("head.weight", 0), ("head.bias", 0)}  # the data and the classes stay as they are
    every = {(name, axis) for name, p in network.named_parameters() for axis in range(p.ndim)}
    assert every - set(axes) == free


def test_tracing_leaves_the_network_and_its_mode_alone():
    for training in (True, False):
        network = mlp().train(training)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        assert couplings(network, batch()[0]) == couplings(network, batch(5, seed=1)[0])  # only shapes matter
        assert network.training is training
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_all_consumers_and_layers_without_a_bias_are_found():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(INPUTS, 5, bias=False)
            self.first, self.second = nn.Linear(5, CLASSES, bias=False), nn.Linear(5, 2)

        def forward(self, x):
            units = self.body(x.flatten(1)).relu()
            return self.first(units), self.second(units)

    (group,) = couplings(Heads(), batch()[0]).values()
    assert group.produced == [("body.weight", 0)]
    assert group.consumed == [("first.weight", 1), ("second.weight", 1)]
    assert group.rectified


@pytest.mark.parametrize("skipping", ["first", "second"])
def test_one_consumer_that_skips_the_relu_is_enough(skipping):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.first, self.second = nn.Linear(INPUTS, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            units = self.body(x)
            seen = {"first": units.relu(), "second": units.relu()} | {skipping: units}
            return self.first(seen["first"]), self.second(seen["second"])

    assert not couplings(Mixed(), batch()[0])["body"].rectified


def test_units_that_leave_the_network_cannot_grow():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(INPUTS, 5), nn.Linear(5, 2)

        def forward(self, x):
            units = self.body(x).relu()
            return units, self.head(units)

    assert couplings(Features(), batch()[0]) == {}


def test_a_sum_of_units_is_refused_by_name():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.inner, self.head = nn.Linear(INPUTS, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            units = self.body(x).relu()
            return self.head(units + self.inner(units).relu())

    with pytest.raises(NotImplementedError, match=r"aten\.add"):
        couplings(Residual(), batch()[0])
