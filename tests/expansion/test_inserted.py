"""What an inserted block keeps of the block that it is modelled on, and what of it is new."""

from collections.abc import Callable

import pytest
import torch
from cases import change
from torch import nn

import mmstudy as mm

DOUBLE = torch.float64


class Block(nn.Module):
    """A residual block of width 6, around one function of (this, inputs)."""

    def __init__(self, f: Callable | None = None):
        super().__init__()
        self.l1, self.l2, self.f = nn.Linear(6, 7), nn.Linear(7, 6), f or branch

    def forward(self, x):
        return x + self.f(self, x)


class Net(nn.Module):
    """Blocks one after another, and a head."""

    def __init__(self, *members: nn.Module):
        super().__init__()
        self.bs, self.o = nn.ModuleList(members), nn.Linear(6, 3)

    def forward(self, x):
        for b in self.bs:
            x = b(x)
        return self.o(x)


def branch(block, x):
    return block.l2(block.l1(x).relu())


def net(f: Callable | None = None, prepare: Callable | None = None) -> Net:
    """Two blocks, in double precision; `prepare` is done to each of them."""
    torch.manual_seed(0)
    members = [Block(f), Block(f)]
    for member in members if prepare else ():
        prepare(member)
    return Net(*members).double().eval()


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (5, 6)), dtype=DOUBLE, generator=torch.Generator().manual_seed(3))


def causal(block, x):
    scores = (x @ x.mT).masked_fill(block.bias[: x.shape[1], : x.shape[1]] == 0, -torch.inf)
    return block.l2(block.l1(scores.softmax(-1) @ x).relu()) * block.size


def masked(block: Block) -> None:
    block.register_buffer("bias", torch.tril(torch.ones(6, 6)))
    block.register_buffer("size", torch.tensor([0.1]))


@pytest.mark.parametrize("operator", ["zero_residual", "deeper_random", "identity_block"])
def test_an_inserted_block_keeps_its_mask_and_its_constants(operator):
    new = mm.expand(net(causal, masked), inputs(2, 6, 6), operator, {"bs.0": 1})
    for member in new.bs:
        assert member.bias.sum() == 21
        assert member.size == 0.1 * torch.ones(1)


def test_an_inserted_normalization_begins_with_statistics_of_its_own():
    """Those that torch keeps, and those that a normalization written by hand keeps as buffers."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("weight", "shift", "mean", "variance"):
                self.register_buffer(name, torch.rand(6) + 0.5)

        def forward(self, x):
            return (x - self.mean) * (self.variance + 1e-5).rsqrt() * self.weight + self.shift

    def prepare(block: Block) -> None:
        block.batch, block.frozen = nn.BatchNorm1d(6), Frozen()
        block.batch.running_mean.fill_(3)
        block.batch.running_var.fill_(2)

    def f(block, x):
        return branch(block, block.frozen(block.batch(x)))

    network = net(f, prepare)
    new = mm.expand(network, inputs(), "zero_residual", {"bs.0": 1})
    assert change(network, new, inputs()) == 0
    assert (new.bs[1].batch.running_mean == 0).all()
    assert (new.bs[1].batch.running_var == 1).all()
    assert (new.bs[1].frozen.variance == 1).all()
    assert (new.bs[1].frozen.weight == 1).all()


def test_a_block_may_keep_a_buffer_that_is_not_saved():
    def prepare(block: Block) -> None:
        block.register_buffer("size", torch.full((6,), 0.1), persistent=False)

    network = net(lambda block, x: branch(block, x) * block.size, prepare)
    assert "zero_residual" in mm.coverage(network, inputs())["bs.0 … bs.1"].exact
    new = mm.expand(network, inputs(), "zero_residual", {"bs.0": 1})
    assert (new.bs[1].size == network.bs[0].size).all()


def test_a_list_of_compiled_blocks_and_a_compiled_network_get_deeper():
    network = net()
    compiled = Net(*(torch.compile(block, backend="eager") for block in network.bs)).double().eval()
    assert "identity_block" in mm.coverage(compiled, inputs())["bs.0 … bs.1"].exact
    new = mm.expand(torch.compile(network, backend="eager"), inputs(), "identity_block", {"_orig_mod.bs.0": 1})
    assert len(new._orig_mod.bs) == 3


@pytest.mark.parametrize(("operator", "learns"), [("identity_block", True), ("zero_residual", True), ("stack", False)])
def test_what_is_new_learns_and_a_copy_is_as_frozen_as_its_original(operator, learns):
    network = net()
    network.bs.requires_grad_(False)
    new = mm.expand(network, inputs(), operator, {"bs.1": 1})
    assert {p.requires_grad for p in new.bs[2].parameters()} == {learns}
    assert not any(p.requires_grad for p in new.bs[1].parameters())


def test_how_many_layers_are_inserted_at_once_is_bounded():
    with pytest.raises(ValueError, match=r"10,000 more layers or blocks behind bs\.0: at most 4,096 at once"):
        mm.expand(net(), inputs(), "stack", {"bs.0": 10**4})


def test_a_branch_that_zeros_do_not_silence_is_said_to_be_one():
    network = net(lambda block, x: branch(block, x).sigmoid())
    with pytest.raises(ValueError, match=r"zeros do not silence bs\.0"):
        mm.expand(network, inputs(), "zero_residual", {"bs.0": 1})


def test_a_block_that_does_not_compute_in_float64_is_tried_in_its_own_type():
    def f(block, x):
        if x.dtype == torch.float64:
            raise RuntimeError("no such kernel")
        return block.l2(block.l1(torch.fft.fft(x).real).relu()) * torch.tensor(x.sum().item()).cos()

    new = mm.expand(net(f).float(), inputs().float(), "identity_block", {"bs.0": 1})
    assert len(new.bs) == 3


def together(ends: bool = False) -> Net:
    """Blocks that share a normalization, an object and the network itself, and perhaps the layer that ends them."""
    network = net(lambda block, x: branch(block, block.norm(x)) * block.root[0].gain)
    network.gain, network.taps = nn.Parameter(torch.full((6,), 2.0, dtype=DOUBLE)), [b.l1 for b in network.bs]
    norm, settings = nn.LayerNorm(6).double().requires_grad_(False), {"dropout": 0.0}
    nn.init.constant_(norm.weight, 3)
    for block in network.bs:
        block.norm, block.settings, block.root = norm, settings, [network]
        block.l2 = network.bs[0].l2 if ends else block.l2
    return network


@pytest.mark.parametrize("operator", ["stack", "identity_block", "zero_residual", "deeper_random"])
def test_an_inserted_block_shares_what_the_others_share_and_leaves_it_as_it_is(operator):
    network = together()
    new = mm.expand(network, inputs(), operator, {"bs.0": 1})
    assert len({id(block.norm) for block in new.bs}) == len({id(block.settings) for block in new.bs}) == 1
    assert all(block.root[0] is new for block in new.bs)
    assert (new.bs[1].norm.weight == 3).all()
    assert not new.bs[1].norm.weight.requires_grad
    assert new.bs[0].norm is not network.bs[0].norm
    assert new.bs[0].settings is not network.bs[0].settings
    assert len({block.l1 for block in new.bs}) == 3


def test_what_other_modules_share_is_never_made_zero():
    network = together(ends=True)
    for operator in ("identity_block", "zero_residual"):
        with pytest.raises(ValueError, match=r"l2\.weight, l2\.bias of bs\.0 would have to be zero, and other modules"):
            mm.expand(network, inputs(), operator, {"bs.0": 1})
    drawn = mm.expand(network, inputs(), "deeper_random", {"bs.0": 1})
    assert drawn.bs[1].l2 is drawn.bs[2].l2
    assert torch.equal(drawn.bs[1].l2.weight, network.bs[0].l2.weight)


def test_a_layer_that_other_modules_share_gets_no_copy_that_is_drawn_anew():
    layer = nn.Linear(6, 6).double()
    network = nn.Sequential(nn.Sequential(layer), nn.Sequential(layer))
    for operator in ("deeper_identity", "deeper_random"):
        with pytest.raises(ValueError, match=r"0\.weight, 0\.bias of 1 would have to change, and other modules share"):
            mm.expand(network, inputs(), operator, {"1": 1})


class Bare(nn.Module):
    """A residual block whose matrices are its own parameters, in this order, and which torch.export cannot follow."""

    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(6, 6)))

    def forward(self, x):
        if not x.isfinite().all():
            raise FloatingPointError("activations overflow")
        return x + (x @ self.up).relu() @ self.down


@pytest.mark.parametrize("names", [("up", "down"), ("down", "up")])
def test_a_block_that_is_one_module_is_silenced_where_it_ends_and_learns(names, capfd):
    torch.manual_seed(0)
    network = Net(Bare(*names), Bare(*names)).double().eval()
    new = mm.expand(network, inputs(), "identity_block", {"bs.0": 1})
    assert torch.equal(new.bs[1].up, network.bs[0].up)
    assert not new.bs[1].down.any()
    new(inputs()).square().sum().backward()
    assert new.bs[1].down.grad.any()
    assert capfd.readouterr() == ("", "")


def test_a_block_that_would_never_learn_is_not_inserted():
    network = net(lambda block, x: branch(block, x) * block.gain, lambda b: b.register_parameter("gain", gain()))
    for parameter in network.bs[0].l2.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match=r"bs\.0 that does nothing would never learn on this batch: .*\(gain\)"):
        mm.expand(network, inputs(), "identity_block", {"bs.0": 1})
    assert mm.expand(network, inputs(), "zero_residual", {"bs.0": 1}).bs[1].l2.weight.any()


def gain() -> nn.Parameter:
    """A factor for each of 6 channels."""
    return nn.Parameter(torch.ones(6))


def test_a_block_whose_ends_the_trace_does_not_know_is_tried_out():
    network = net(lambda block, x: torch.fft.fft(branch(block, x)).real)
    new = mm.expand(network, inputs(), "identity_block", {"bs.0": 1})
    assert change(network, new, inputs(2, 6)) == 0
    assert not new.bs[1].l2.weight.any()


def with_experts(block, x, images=None):
    out = block.l2(block.l1(x).relu())
    return out if images is None else torch.where(images, block.l3(x), out)


@pytest.mark.parametrize("operator", ["identity_block", "zero_residual"])
@pytest.mark.parametrize("traceable", [True, False])
def test_a_block_with_a_branch_that_the_call_never_reads_is_not_said_to_do_nothing(operator, traceable):
    def f(block, x):
        if not traceable and not x.isfinite().all():
            raise FloatingPointError("activations overflow")
        return with_experts(block, x)

    network = net(f, lambda block: block.add_module("l3", nn.Linear(6, 6)))
    with pytest.raises(ValueError, match=r"bs\.0\.l3\.weight, bs\.0\.l3\.bias may change .* never reads them\. Give a"):
        mm.expand(network, inputs(), operator, {"bs.0": 1})
    assert len(mm.expand(network, inputs(), "stack", {"bs.0": 1}).bs) == 3


def test_a_layer_with_a_parameter_that_the_call_never_reads_is_not_said_to_do_nothing():
    class Layer(nn.Linear):
        def forward(self, x, images=None):
            return super().forward(x if images is None else x * self.other)

    layer = Layer(6, 6)
    layer.other = gain()
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), layer, nn.ReLU()).double()
    with pytest.raises(ValueError, match=r"no copy of 2 is known to do nothing: 2\.other may change"):
        mm.expand(network, inputs(), "deeper_identity", {"2": 1})


def test_experts_that_no_example_reaches_are_named():
    def f(block, x):
        chosen = (x.mean(-1) > 0).long()
        return sum(expert(x) * (chosen == i)[:, None] for i, expert in enumerate((block.l3, block.l4)) if i in chosen)

    network = net(f, lambda block: [block.add_module(name, nn.Linear(6, 6)) for name in ("l3", "l4")])
    for block in network.bs:
        del block.l1, block.l2
    with pytest.raises(ValueError, match=r"bs\.0\.l4\.weight, bs\.0\.l4\.bias may change"):
        mm.expand(network, -inputs().abs(), "identity_block", {"bs.0": 1})
    new = mm.expand(network, inputs(), "identity_block", {"bs.0": 1})
    assert not any(p.any() for p in new.bs[1].parameters())
