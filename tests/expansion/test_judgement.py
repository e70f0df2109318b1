"""What counts as exact: judged in float64, beside how much the outputs vary."""

import pytest
import torch
from cases import Wired, batch, mlp, of_family
from torch import nn

import mmstudy as mm
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.differences import change, changes
from mmstudy.expansion.exactness import Grown, Reference
from mmstudy.expansion.operators import EXACTLY, OPERATORS
from mmstudy.tracing.calls import Call
from mmstudy.validation.preservation import FAMILIES

EXACT = [name for name, operator in OPERATORS.items() if operator.preserves == EXACTLY]
STREAM = generator("judgement")
INPUTS = torch.randn(24, 3, generator=STREAM)


def _felt(weight: float, offset: float = 0.0) -> Wired:
    """Units of zero behind a sigmoid are felt; `weight` and `offset` are what hides them."""
    torch.manual_seed(0)
    parts = {"up": nn.Linear(3, 6), "down": nn.Linear(6, 2), "beside": nn.Linear(3, 2)}
    network = Wired(lambda net, x: net.down(net.up(x).sigmoid()) + weight * net.beside(x) + offset, **parts)
    network.beside.bias.data += 1
    return network


@pytest.mark.parametrize("network", [_felt(1, 3000), _felt(10, 300), _felt(10).double()])
def test_a_change_is_judged_by_what_varies_and_not_by_an_offset(network):
    inputs = INPUTS.to(network.up.weight)
    with pytest.raises(
        ValueError, match=r"zero_incoming up→9 is not exact here: the outputs change by \d.\de-0[12] of"
    ):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, inputs)
    assert len(Candidate("lemon", ("up",), (9,)).expand(network, inputs).up.bias) == 9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_hundredths_are_no_rounding_in_half_precision(dtype):
    network, inputs = _felt(8).to(dtype), INPUTS.to(dtype)
    with pytest.raises(ValueError, match=r"zero_incoming up→9 is not exact here: the outputs change by \d\.\de-02"):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, inputs)


@pytest.mark.parametrize("operator", EXACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_is_no_reason_to_refuse(operator, dtype):
    family = "MLP" if OPERATORS[operator].widens or operator == "deeper_identity" else "ViT"
    _, network, inputs, targets = of_family(family, 8)
    where, number = ("hidden.0", 24) if OPERATORS[operator].widens else (FAMILIES[family].deeper[0], 1)
    Candidate(operator, (where,), (number,)).expand(network.to(dtype), (inputs.to(dtype), targets))


def test_one_example_is_judged_by_what_varies_among_its_outputs():
    for dtype in (torch.float32, torch.float64):
        network, inputs = _felt(1, 3000).to(dtype), INPUTS[:1].to(dtype)
        assert Candidate("lemon", ("up",), (9,)).expand(network, inputs)
        with pytest.raises(ValueError, match="is not exact here"):
            Candidate("zero_incoming", ("up",), (9,)).expand(network, inputs)


def test_a_network_that_computes_in_one_type_alone_is_judged_in_it():
    network = Wired(lambda net, x: net.down(net.up(x.float()).sigmoid()), up=nn.Linear(3, 6), down=nn.Linear(6, 2))
    assert len(Candidate("lemon", ("up",), (9,)).expand(network, INPUTS).up.bias) == 9
    with pytest.raises(ValueError, match="is not exact here"):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, INPUTS)
    assert len(Candidate("net2net", ("up",), (9,)).expand(network, INPUTS).up.bias) == 9


def test_masked_outputs_may_be_infinite():
    mask = torch.tensor([0.0, -torch.inf])
    network = Wired(lambda net, x: net.down(net.up(x).relu()) + mask, up=nn.Linear(3, 6), down=nn.Linear(6, 2))
    assert len(Candidate("lemon", ("up",), (9,)).expand(network, INPUTS).up.bias) == 9
    assert len(mm.expand(network, INPUTS, "lemon", {"up": 9}).up.bias) == 9
    assert "lemon" in mm.coverage(network, INPUTS)["up"].exact


ALLOWED = torch.rand(24, 2, generator=STREAM) < 0.7
ALLOWED[0] = True
HIDING = {  # functions of outputs whose large numbers hide how the small ones change
    "masked by the least number": lambda y: y.masked_fill(~ALLOWED[: len(y)], torch.finfo(y.dtype).min),
    "masked in one column": lambda y: torch.cat([y, torch.full_like(y[:, :1], -1e9)], 1),
    "masked by −1e9": lambda y: y.masked_fill(~ALLOWED[: len(y)], -1e9),
    "beside a column of large ones": lambda y: torch.cat([1e7 * (1 + y[:, :1].detach().sign()), y], 1),
}


@pytest.mark.parametrize("hiding", HIDING)
def test_large_numbers_hide_no_change_of_small_ones(hiding):
    parts = {"up": nn.Linear(3, 6), "down": nn.Linear(6, 2)}
    torch.manual_seed(0)
    network = Wired(lambda net, x: HIDING[hiding](net.down(net.up(x).sigmoid())), **parts)
    with pytest.raises(ValueError, match="zero_incoming up→9 is not exact here"):
        Candidate("zero_incoming", ("up",), (9,)).expand(network, INPUTS)
    assert len(Candidate("lemon", ("up",), (9,)).expand(network, INPUTS).up.bias) == 9


def test_each_scale_of_a_tensor_has_a_row():
    before = torch.tensor([[1e6, 1.0], [3e6, 3.0], [5e6, 2.0]])
    after = before + torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    small = torch.tensor([1.0, 3.0, 2.0]).var(correction=0).sqrt()
    assert changes(before, after) == [
        (0.5, pytest.approx(float(small)), 3.0), (1.0, pytest.approx(1e6 * (8 / 3) ** 0.5), 5e6)
    ]  # fmt: skip
    assert change(before, after) == pytest.approx(0.5 / float(small))
    lone = torch.tensor([[1.0], [2.0], [1e-6]])  # fewer than there are examples are no scale
    assert len(changes(lone, lone)) == 1


def test_changes_are_those_of_each_tensor():
    before = {"a": torch.tensor([[1.0, 5.0], [3.0, 5.0]]), "b": (torch.tensor([1.0, 2, 3]),), "c": torch.zeros(0)}
    after = {"a": torch.tensor([[1.0, 5.0], [3.0, 5.5]]), "b": (torch.tensor([1.0, 2, 3]),), "c": torch.zeros(0)}
    assert changes(before, after) == [(0.5, pytest.approx(0.5**0.5), 5.0), (0.0, pytest.approx((2 / 3) ** 0.5), 3.0)]
    assert change(before, after) == pytest.approx(0.5**0.5)
    counts = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])  # whole numbers, such as positions, are no outputs
    assert changes((before["a"], counts[0]), (before["a"], counts[1])) == [(0.0, pytest.approx(0.5**0.5), 5.0)]
    assert change(torch.ones(3), torch.full((3,), 1.5)) == 0.5  # what does not vary: beside its size
    nothing, infinite = torch.tensor([torch.nan, 1.0]), torch.tensor([torch.inf, 1.0])
    assert change(nothing, nothing) == change(infinite, infinite) == 0
    assert not change(nothing, infinite) < 1
    for wrong in ({}, torch.ones(2)):
        with pytest.raises(ValueError, match="cannot be compared"):
            changes(wrong, torch.ones(3))


def test_a_network_is_the_same_as_itself_and_not_as_another():
    network, call = mlp(), Call((batch()[0],))
    names = {name: name for name, _ in network.named_parameters()}
    reference = Reference(network, call)
    assert Grown(network, network, names).broken(reference) is None
    assert "of how much they vary" in Grown(mlp(seed=1), network, names).broken(reference)


class _Autocast(nn.Module):
    """A float32 network with a layer that computes in bfloat16; `wrong`: a number follows the width beside it."""

    def __init__(self, wrong: float, needed: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.same, self.down = nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        self.wrong, self.needed = wrong, needed

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = self.same(self.up(x))
        if self.needed and h.dtype != torch.bfloat16:
            raise TypeError("not without autocast")
        return self.down(h.float().relu() * (1 + self.wrong * h.shape[-1]))


def test_what_autocast_rounds_hides_no_change():
    for operator, size in (("lemon", 128), ("zero_outgoing", 96)):
        with pytest.raises(ValueError, match=f"{operator} same→{size} is not exact here, without its autocast"):
            mm.expand(_Autocast(1e-4), INPUTS, operator, {"same": size})
        new = mm.expand(old := _Autocast(0.0), INPUTS, operator, {"same": size})
        assert change(old(INPUTS), new(INPUTS)) < torch.finfo(torch.bfloat16).eps
        mm.expand(_Autocast(0.0, needed=True), INPUTS, operator, {"same": size})  # as far as its own numbers tell


def test_autocast_around_an_expansion_stays_on():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="without its autocast"):
            mm.expand(_Autocast(1e-4), INPUTS, "lemon", {"same": 128})
        assert torch.is_autocast_enabled("cpu")
        assert (INPUTS @ INPUTS.mT).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
