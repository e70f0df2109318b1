import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import hessian

from mmstudy.core.seeds import generator
from mmstudy.validation import landscapes

WEIGHT = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def normal(*shape, name=0):
    return torch.randn(*shape, generator=generator("landscapes", *shape, name), dtype=torch.float64)


def frame(rows, columns, name=0):
    """Random orthonormal columns."""
    return torch.linalg.qr(normal(rows, columns, name=name))[0]


def nullity(landscape, point) -> int:
    """How many eigenvalues of the Hessian are zero."""
    values = torch.linalg.eigvalsh(hessian(landscape)(point)).abs()
    return int((values < 1e-9 * values.max()).sum())


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), hidden=st.integers(1, 7), data=st.data())
def test_the_balanced_factors_are_a_minimum(rows, columns, hidden, data):
    rank = data.draw(st.integers(0, min(rows, columns, hidden)))
    target = normal(rows, rank) @ normal(rank, columns, name=1)
    point = landscapes.factorization_minimum(target, hidden)
    u, v = point[: rows * hidden].view(rows, hidden), point[rows * hidden :].view(hidden, columns)
    assert landscapes.factorization(target, hidden)(point) < 1e-25
    torch.testing.assert_close(u.T @ u, v @ v.T)
    if hidden == rank:
        dimension = landscapes.factorization_dimension(rows, columns, hidden, rank)
        assert nullity(landscapes.factorization(target, hidden), point) == dimension == hidden**2


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), hidden=st.integers(1, 7), data=st.data())
def test_the_dimension_of_the_factorizations_is_the_hessians_nullity(rows, columns, hidden, data):
    """At random factors, U of rank a, V = U⁺M plus anything that U does not see: the largest over a is the set's."""
    rank = data.draw(st.integers(1, min(rows, columns, hidden)))
    left = frame(rows, min(rows, hidden), "left")
    target = left[:, :rank] @ frame(columns, rank, "right").T
    loss = landscapes.factorization(target, hidden)
    found = []
    for a in range(rank, min(rows, hidden) + 1):
        u = left[:, :a] @ frame(hidden, a, "mixed").T
        v = u.T @ target + (torch.eye(hidden).to(u) - u.T @ u) @ normal(hidden, columns, name="unseen")
        point = torch.cat([u.flatten(), v.flatten()])
        assert loss(point) < 1e-25
        found.append(nullity(loss, point))
    assert max(found) == landscapes.factorization_dimension(rows, columns, hidden, rank)


def test_the_dimensions_by_hand():
    assert landscapes.factorization_dimension(3, 4, 2, 2) == 4  # V → G V, U → U G⁻¹
    assert landscapes.factorization_dimension(1, 1, 2, 1) == 3  # u · v = 1 in four dimensions
    assert landscapes.factorization_dimension(2, 3, 5, 2) == 5 * 5 - 6
    assert landscapes.factorization_dimension(1, 1, 1, 0) == 1  # u v = 0: two lines


def test_impossible_factorizations_are_refused():
    with pytest.raises(ValueError, match="rank 2 has no factors with hidden=1: take hidden ≥ 2"):
        landscapes.factorization_minimum(torch.eye(2), 1)
    with pytest.raises(ValueError, match="has rank 3"):
        landscapes.factorization_dimension(3, 3, 2, 3)


def test_a_batch_of_points_has_their_losses():
    target, inputs = normal(2, 3), normal(9, 3)
    for loss, dim in ((landscapes.factorization(target, 2), 10), (landscapes.duplicated(inputs, WEIGHT, 0.7), 8)):
        points = normal(4, 5, dim)
        torch.testing.assert_close(loss(points)[2, 3], loss(points[2, 3]))
    u, v = points[0, 0][:4].view(2, 2), torch.ones(2, 3, dtype=torch.float64)
    point = torch.cat([u.flatten(), v.flatten()])
    assert landscapes.factorization(target, 2)(point) == pytest.approx(0.5 * float(((u @ v - target) ** 2).sum()))


@given(first=st.floats(0.2, 2), second=st.floats(0.2, 2), sign=st.sampled_from([1, -1]))
def test_the_flat_directions_are_the_null_space_of_the_hessian(first, second, sign):
    second = sign * second
    loss = landscapes.duplicated(normal(40, 3), WEIGHT, first + second)
    point = landscapes.duplicated_minimum(WEIGHT, first, second)
    flat = landscapes.duplicated_flat(WEIGHT, first, second)
    curved = hessian(loss)(point)
    assert loss(point) < 1e-28
    assert torch.linalg.matrix_rank(flat) == len(flat) == 5 == nullity(loss, point)
    assert (flat @ curved).abs().max() < 1e-12
    assert torch.linalg.eigvalsh(curved).min() > -1e-12


def test_walks_along_the_flat_directions_stay_at_zero():
    first, second, steps = 0.8, -0.3, torch.linspace(-1, 1, 11, dtype=torch.float64)
    inputs = normal(40, 3)
    loss = landscapes.duplicated(inputs, WEIGHT, first + second)
    point = landscapes.duplicated_minimum(WEIGHT, first, second)
    exchange, _, *lean = landscapes.duplicated_flat(WEIGHT, first, second)
    assert loss(point + 100 * steps[:, None] * exchange).max() < 1e-24
    scaled = point.clone().expand(11, -1).clone()
    scaled[:, :3] *= steps.exp()[:, None]
    scaled[:, 6] *= (-steps).exp()
    assert loss(scaled).max() < 1e-26
    assert ((scaled[6] - scaled[4]) @ hessian(loss)(point)).abs().max() < 0.05  # tangent to the rescaling
    free = 0.99 * ((inputs @ WEIGHT).abs() / inputs.abs().amax(1)).min() / first  # no input crosses before
    for direction in lean:
        assert loss(point + free * steps[:, None] * direction).max() < 1e-26
        assert loss(point + 100 * direction) > 1e-3
