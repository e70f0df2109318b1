"""Products with matrices of copies: the same as the sums, of which most entries are zero."""

import pytest
import torch

from mmstudy.expansion.products import Rows

STREAM = torch.Generator().manual_seed(0)


def matrices() -> dict[str, torch.Tensor]:
    copies = torch.zeros(12, 7, dtype=torch.float64)
    copies[range(12), torch.randint(7, (12,), generator=STREAM)] = torch.randn(12, generator=STREAM).double()
    averages, nothing, sums = copies.clone(), copies.clone(), torch.randn(12, 7, generator=STREAM).double()
    averages[8:], nothing[3] = 1 / 7, 0.0
    return {"copies": copies, "averages": averages, "nothing": nothing, "sums": sums}


@pytest.mark.parametrize("kind", matrices())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_dense_matrix(kind, dtype):
    matrix, parted = matrices()[kind], torch.randn(7, 3, 5, generator=STREAM).to(dtype)
    expected = torch.einsum("no,oai->nai", matrix.to(dtype).double(), parted.double()).to(dtype)
    found = Rows.of(matrix).times(parted)
    if kind in ("copies", "nothing"):
        assert torch.equal(found, expected)
    assert torch.allclose(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_a_matrix_and_a_tensor_that_are_learned_get_their_gradients():
    for kind, matrix in matrices().items():
        parted = torch.randn(7, 3, 5, generator=STREAM, dtype=torch.float64, requires_grad=True)
        Rows.of(matrix).times(parted).square().sum().backward()
        (expected,) = torch.autograd.grad(torch.einsum("no,oai->nai", matrix, parted).square().sum(), parted)
        assert torch.allclose(parted.grad, expected), kind
        learned = matrix.clone().requires_grad_()
        Rows.of(learned).times(parted.detach()).square().sum().backward()
        assert bool((learned.grad != 0).any())
