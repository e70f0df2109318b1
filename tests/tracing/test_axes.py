from itertools import accumulate, combinations, pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstudy.tracing.axes import Axis, fix, leaves, product, regroup, split, unify


def sizes(axes: list[Axis]) -> list[int]:
    return [axis.size for axis in axes]


def test_what_is_unified_has_one_root_and_is_fixed_as_soon_as_one_of_it_is():
    for fixed in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        a, b, c = (Axis(5, why="data" if f else "") for f in fixed)
        unify(a, b)
        unify(c, a)
        assert a.root() is b.root() is c.root()
        assert leaves(b)[0].fixed is any(fixed)


@given(pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_unification_is_connectedness(pairs):
    axes, sets = [Axis(3) for _ in range(8)], [{i} for i in range(8)]
    for i, j in pairs:
        unify(axes[i], axes[j])
        together = sets[i] | sets[j]
        for k in together:
            sets[k] = together
    for i, j in combinations(range(8), 2):
        assert (axes[i].root() is axes[j].root()) is (j in sets[i])


def test_an_axis_is_split_like_the_product_that_it_is_the_same_as():
    whole, outer, inner = Axis(12), Axis(3), Axis(4)
    unify(whole, product([outer, inner]))
    assert leaves(whole) == [outer.root(), inner.root()]
    again = Axis(12)
    unify(product([Axis(6), Axis(2)]), again)  # the other way round
    unify(again, whole)  # (6, 2) and (3, 4) have (3, 2, 2) in common
    assert sizes(leaves(whole)) == sizes(leaves(again)) == [3, 2, 2]
    assert leaves(whole) == leaves(again)


def test_products_in_the_same_unknowns_align():
    unit = Axis(4)
    square, other = product([unit, unit]), Axis(16)
    unify(square, other)
    assert leaves(other) == [unit.root(), unit.root()]
    unify(square, other)
    unify(unit, unit)
    assert unit.root().same_as is None


def test_axes_of_size_one_say_nothing():
    three = Axis(3)
    unify(product([Axis(1), Axis(3), Axis(1)]), product([three, Axis(1)]))
    assert leaves(three)[0].size == 3
    unify(product([Axis(2), Axis(1), Axis(3)]), Axis(6))


def test_what_cannot_be_the_same_is_refused_by_size():
    with pytest.raises(ValueError, match="axis of 4 cannot be the same as one of 5"):
        unify(Axis(4), Axis(5))
    with pytest.raises(ValueError, match="axis of 3 cannot be split into 2 parts"):
        unify(product([Axis(2), Axis(3)]), product([Axis(3), Axis(2)]))
    with pytest.raises(ValueError, match="axis of 6 cannot be split into 4 parts"):
        regroup([Axis(6), Axis(4)], [4, 6])
    with pytest.raises(ValueError, match="axis of 3 cannot be made of whole axes of 2"):
        regroup([Axis(2), Axis(3)], [3, 2])


def test_parts_of_what_is_fixed_are_fixed():
    axis = Axis(6)
    fix(axis, why="data")
    assert all(part.fixed for part in split(axis, 2))
    free = Axis(6)
    unify(product([Axis(2, why="data"), Axis(3)]), free)
    assert [leaf.fixed for leaf in leaves(free)] == [True, False]
    fix(free, why="output")
    assert [leaf.why for leaf in leaves(free)] == ["data", "output"]  # the first reason stays


def grouped(units: list[int], ends: set[int]) -> list[int]:
    """The products of consecutive runs of `units` that end at `ends`."""
    cuts = [0, *sorted(ends - {0, len(units)}), len(units)]
    return [prod(units[a:b]) for a, b in pairwise(cuts)]


@given(data=st.data(), units=st.lists(st.integers(2, 5), min_size=1, max_size=6))
def test_a_reshaped_tensor_has_the_same_finest_axes_in_the_same_order(data, units):
    """Row-major, a reshape is no more than another bracketing of the finest axes."""
    ends = st.sets(st.integers(0, len(units)))
    before, after = (grouped(units, data.draw(ends)) for _ in range(2))
    ones = data.draw(st.lists(st.integers(0, len(after)), max_size=2))
    for place in ones:
        after.insert(place, 1)
    old = [Axis(size) for size in before]
    new = regroup(old, after)
    assert sizes(new) == after
    fine = [leaf for axis in old for leaf in leaves(axis)]
    assert [leaf for axis in new for leaf in leaves(axis) if leaf.size > 1] == fine
    assert all(prod(sizes(leaves(axis))) == axis.size for axis in (*old, *new))
    bounds = set(accumulate(sizes(fine), lambda a, b: a * b))
    assert set(accumulate(before, lambda a, b: a * b)) <= bounds  # every old and new axis ends where a finest one does
    assert set(accumulate(after, lambda a, b: a * b)) - {1} <= bounds


def test_an_axis_that_occurs_twice_is_split_once():
    unit = Axis(6)
    a, b, c, d = regroup([unit, unit], [2, 3, 2, 3])
    assert (a.root(), b.root()) == (c.root(), d.root())
    assert leaves(unit) == [a.root(), b.root()]
