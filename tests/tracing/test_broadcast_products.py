"""Products of activations whose axes are aligned, what nothing reads, and what may have a rule."""

import pytest
import torch
from cases import Wired, change
from torch import nn
from torch.nn import functional as F

import mmstudy as mm

DOUBLE = torch.float64


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def network(forward, **parts) -> Wired:
    torch.manual_seed(0)
    return Wired(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 3), **parts).double()


PRODUCTS = {
    "a matrix for the whole batch": lambda net, x: net.adj @ net.b((net.adj @ net.a(x)).relu()),
    "a vector": lambda net, x: torch.ones(7, dtype=x.dtype) @ net.b(net.a(x).relu()),
    "a vector behind": lambda net, x: net.b((net.a(x).mT @ torch.ones(7, dtype=x.dtype)).relu()),
    "an ellipsis": lambda net, x: net.b(torch.einsum("nm,...mi->...ni", net.adj.detach() * 1, net.a(x)).relu()),
    "what nothing reads": lambda net, x: net.b(
        (h := net.a(x)) + torch.arange(h[:, :, 0].shape[1], dtype=x.dtype)[:, None]
    ),
}


@pytest.mark.parametrize("which", PRODUCTS)
def test_units_that_pass_by_grow(which):
    net, x = network(PRODUCTS[which], adj=torch.rand(7, 7)), inputs(4, 7, 5)
    new = mm.expand(net, x, "lemon", {"a": 12})
    assert new.a.out_features == 12
    assert change(net, new, x) < 1e-12


@pytest.mark.parametrize("operation", [nn.ReLU, F.relu, torch.sin, print, "aten.sin"])
def test_what_is_no_operation_has_no_rule(operation):
    with pytest.raises(TypeError, match=r"an operation is e\.g"):
        mm.register_rule(operation, lambda t, shape, x: x)


def test_a_rule_must_take_the_arguments_of_its_operation():
    with pytest.raises(
        TypeError, match=r"aten.cumsum.default must be a function .*that takes the arguments of aten::cumsum"
    ):
        mm.register_rule(torch.ops.aten.cumsum.default, lambda t, shape: None)
