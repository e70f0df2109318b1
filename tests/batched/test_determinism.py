import copy
import itertools

import pytest
import torch
from cases import CLASSES, INPUTS, batch, convolutional, mlp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils import data

from mmstudy.batched import determinism
from mmstudy.batched import ensemble as en
from mmstudy.core.seeds import generator
from mmstudy.validation.preservation import FAMILIES


class Forward(nn.Module):
    """A linear layer and what a function of (this, its output) makes of it."""

    def __init__(self, function, **parts: nn.Module):
        super().__init__()
        self.layer, self.function = nn.Linear(INPUTS, CLASSES), function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.function(self, self.layer(x))


class AlwaysOn(nn.Dropout):
    def forward(self, x):
        return F.dropout(x, self.p, True, self.inplace)


class Stubborn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_pass_and_are_left_as_they_were(name):
    family = FAMILIES[name]
    network, examples = family.network().train(), family.examples(9)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    determinism.check(network, tuple(examples))
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_that_follows_its_mode_passes():
    determinism.check(en.stack([convolutional(i) for i in range(2)]), batch())
    determinism.check(
        nn.Sequential(nn.Linear(INPUTS, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, CLASSES)).train(), batch()
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_a_dropout_that_is_always_on_is_named(inplace):
    network = nn.Sequential(
        nn.Linear(INPUTS, 8), nn.Sequential(nn.ReLU(), AlwaysOn(0.5, inplace)), nn.Linear(8, CLASSES)
    )
    with pytest.raises(ValueError, match=r"1\.1 \(AlwaysOn\) returns something else for the same inputs"):
        determinism.check(network, batch())


RANDOM = {  # the network, and who is to blame
    "functional dropout": (lambda: Forward(lambda net, x: F.dropout(x, 0.5)), r"the network itself \(Forward\)"),
    "noise inside": (
        lambda: nn.Sequential(nn.Linear(INPUTS, INPUTS), Forward(lambda net, x: x + torch.randn_like(x))),
        r"1 \(Forward\)",
    ),
    "noise before a module": (
        lambda: Forward(lambda net, x: net.inner(x + torch.rand(1)), inner=nn.Linear(CLASSES, CLASSES)), "the network",
    ),
    "a counter": (lambda: Forward(lambda net, x: net.counting(x), counting=Counting()), r"counting \(Counting\)"),
    "its own random attention": (
        lambda: Forward(lambda net, x: F.scaled_dot_product_attention(*[x[None]] * 3, dropout_p=0.5)[0]), "the network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_named(name):
    build, blamed = RANDOM[name]
    with pytest.raises(ValueError, match=rf"the loss is .*, then .*: {blamed}"):
        determinism.check(build(), batch())


def test_the_member_that_is_random_is_named():
    def noisy(net, x):
        return x + net.layer.bias.sum() * torch.randn_like(x)

    networks = [Forward(noisy) for _ in range(3)]
    for network, size in zip(networks, (0, 0, 1), strict=True):
        nn.init.constant_(network.layer.bias, size)
    with pytest.raises(ValueError, match="the loss of network 2 is"):
        determinism.check(en.stack(networks), batch())


def test_a_random_loss_function_is_named():
    def loss(model, examples):
        return en.classification(model, examples) + torch.rand(())

    with pytest.raises(ValueError, match="the loss function draws random numbers"):
        determinism.check(mlp(), batch(), loss)


def test_a_module_that_stays_in_training_mode_is_named():
    network = nn.Sequential(nn.Linear(INPUTS, CLASSES), nn.Sequential(Stubborn(0.5)))
    with pytest.raises(ValueError, match=r"1\.0 \(Stubborn\) stays in training mode after \.eval\(\)"):
        determinism.check(network, batch())
    with pytest.raises(ValueError, match=r"1\.0 \(Stubborn\)"):
        determinism.check(network, batch(), normalization="recomputed")


def test_normalization_without_statistics_of_its_own_is_named():
    network = nn.Sequential(nn.Linear(INPUTS, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, CLASSES))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) has no running statistics .* normalization='recomputed'"):
        determinism.check(network, batch())
    determinism.check(network, batch(), normalization="recomputed")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(bad):
    networks = [mlp(seed=i) for i in range(2)]
    networks[1].hidden[1].weight.data[0, 0] = bad
    with pytest.raises(ValueError, match=r"the loss of network 1 is nan: its hidden\.1\.weight is not finite"):
        determinism.check(en.stack(networks), batch())
    inputs, targets = batch()
    inputs[3, 2] = bad
    with pytest.raises(ValueError, match="the batch is not finite"):
        determinism.check(mlp(), (inputs, targets))
    root = nn.Sequential(nn.Linear(INPUTS, CLASSES), nn.Sequential(Forward(lambda net, x: (-1 - x**2).sqrt())))
    root[1][0].layer = nn.Linear(CLASSES, CLASSES)
    with pytest.raises(ValueError, match=r"1\.0 \(Forward\) is the first to return what is not finite"):
        determinism.check(root, batch())
    with pytest.raises(ValueError, match="or the loss function"):
        determinism.check(mlp(), batch(), lambda model, examples: bad * en.classification(model, examples))


def test_a_loss_that_is_no_mean_is_refused():
    def summed(model, examples):
        return F.cross_entropy(model(examples[0]), examples[1], reduction="sum")

    def each(model, examples):
        return F.cross_entropy(model(examples[0]), examples[1], reduction="none")

    with pytest.raises(ValueError, match=r"must be the mean over the examples; it is .*reduction='sum'"):
        determinism.check(mlp(), batch(), summed)
    with pytest.raises(ValueError, match=r"must be one number.*its shape is \(32,\)"):
        determinism.check(mlp(), batch(), each)
    determinism.check(mlp(), batch(1))


def test_half_precision_and_mixed_devices_are_refused():
    with pytest.raises(ValueError, match=r"must be float32 or float64, not torch\.bfloat16: call network\.float\(\)"):
        determinism.check(mlp(dtype=torch.bfloat16), batch())
    mixed = mlp()
    mixed.head.to("meta")
    with pytest.raises(ValueError, match=r"one device and of one type; found .*cpu.*meta"):
        determinism.check(mixed, batch())
    mixed = mlp()
    mixed.head.double()
    with pytest.raises(ValueError, match=r"of one type; found .*float32.*float64"):
        determinism.check(mixed, batch())
    inputs, targets = batch()
    with pytest.raises(ValueError, match="the networks are on cpu, examples on meta: move one of them"):
        en.losses(en.stack([mlp()]), (inputs.to("meta"), targets.to("meta")))


def dataset(count=20) -> data.TensorDataset:
    return data.TensorDataset(*batch(count))


@given(examples=st.integers(1, 30), size=st.integers(1, 25))
def test_the_fixed_batch_is_the_first_examples_whatever_the_size_of_batches(examples, size):
    found = determinism.fixed(data.DataLoader(dataset(), size), examples)
    assert type(found) is tuple
    assert all(torch.equal(a, b[:examples]) for a, b in zip(found, batch(20), strict=True))


def test_batches_of_any_form_go_in():
    inputs, targets = batch(10)
    rows = [{"x": x, "pair": (x, y)} for x, y in zip(inputs, targets, strict=True)]
    found = determinism.fixed(data.DataLoader(rows, 4), 7)
    assert torch.equal(found["x"], inputs[:7])
    assert torch.equal(found["pair"][1], targets[:7])
    assert torch.equal(determinism.fixed([inputs[:4], inputs[4:]], 6), inputs[:6])
    inputs[0, 0] = torch.nan  # is for `check` to find
    assert determinism.fixed([inputs], 10).isnan().sum() == 1


def test_the_global_random_state_stays():
    state = torch.get_rng_state()
    determinism.fixed(data.DataLoader(dataset(), 4), 7)
    assert torch.equal(torch.get_rng_state(), state)


class Backwards(data.Sampler):
    """Another order each time, though nothing in it is called random."""

    def __init__(self, size: int):
        self.size, self.turn = size, itertools.count()

    def __iter__(self):
        return iter(range(self.size) if next(self.turn) % 2 else range(self.size)[::-1])

    def __len__(self):
        return self.size


SHUFFLING = {
    "RandomSampler": lambda d: data.DataLoader(d, 4, shuffle=True),
    "WeightedRandomSampler": lambda d: data.DataLoader(
        d, 4, sampler=data.WeightedRandomSampler([1.0] * len(d), len(d))
    ),
    "SubsetRandomSampler": lambda d: data.DataLoader(d, 4, sampler=data.SubsetRandomSampler(range(8))),
    "DistributedSampler": lambda d: data.DataLoader(d, 4, sampler=data.distributed.DistributedSampler(d, 2, 0)),
    "RandomSampler, in a batch sampler": lambda d: data.DataLoader(
        d, batch_sampler=data.BatchSampler(data.RandomSampler(d), 4, False)
    ),
    "Backwards": lambda d: data.DataLoader(d, 4, sampler=Backwards(len(d))),
}


@pytest.mark.parametrize("name", SHUFFLING)
def test_a_loader_that_shuffles_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name.split(',')[0]}.*: pass shuffle=False"):
        determinism.fixed(SHUFFLING[name](dataset()), 10)


def test_what_only_selects_goes_in():
    whole = dataset()
    part = data.distributed.DistributedSampler(whole, 2, 1, shuffle=False)
    assert torch.equal(determinism.fixed(data.DataLoader(whole, 4, sampler=part), 99)[0], batch(20)[0][1::2])
    assert torch.equal(determinism.fixed(data.DataLoader(data.Subset(whole, [3, 1])), 9)[0], batch(20)[0][[3, 1]])


class Augmented(data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 12

    def __getitem__(self, i):
        x = torch.full((3,), float(i))
        return self.transform(x) if self.transform else x + torch.rand(3)


def test_random_augmentation_is_named():
    noise = nn.Dropout(0.5)
    with pytest.raises(ValueError, match=r"two readings differ: Augmented \(transform=Dropout\(p=0\.5.* is random"):
        determinism.fixed(data.DataLoader(Augmented(noise), 4), 12)
    with pytest.raises(ValueError, match=r"Augmented \(transform=Dropout"):
        determinism.fixed(data.DataLoader(data.Subset(Augmented(noise), range(9)), 4), 12)
    with pytest.raises(ValueError, match="Augmented is random"):
        determinism.fixed(data.DataLoader(Augmented(None), 4), 12)
    assert len(determinism.fixed(data.DataLoader(Augmented(noise.eval()), 4), 12)) == 12


def test_what_can_be_read_once_is_refused_by_name():
    loader = data.DataLoader(dataset(), 4)
    with pytest.raises(ValueError, match="a generator can be read only once"):
        determinism.fixed((part for part in loader), 10)
    with pytest.raises(ValueError, match="_SingleProcessDataLoaderIter can be read only once"):
        determinism.fixed(iter(loader), 10)


def test_loaders_that_make_no_batch_are_refused():
    with pytest.raises(ValueError, match="at least one example; got examples=0"):
        determinism.fixed([batch()], 0)
    with pytest.raises(ValueError, match="found none"):
        determinism.fixed([], 10)
    with pytest.raises(ValueError, match="tensors alone; found str"):
        determinism.fixed([(torch.zeros(2), ["a", "b"])], 10)
    with pytest.raises(ValueError, match=r"examples of one shape \(pad them\); found .*\(3,\).*\(4,\)"):
        determinism.fixed([torch.zeros(2, 3), torch.zeros(2, 4)], 10)


def test_a_fixed_batch_of_a_real_loader_is_measured():
    stream = generator("loader")
    rows = [(torch.randn(INPUTS, generator=stream), i % CLASSES) for i in range(30)]
    found = determinism.fixed(data.DataLoader(rows, 8), 25)
    determinism.check(mlp(), found)
    assert en.losses(en.stack([mlp()]), found).isfinite().all()
