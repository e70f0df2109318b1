"""Axes made of products and ranges, held against lists of their units written out one by one."""

from contextlib import suppress
from itertools import product as combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmstudy.tracing.axes import Axis, between, cut, joined, leaves, product, regroup, unify
from mmstudy.tracing.layouts import (
    UNITS,
    around_units,
    extent,
    layout,
    length,
    others,
    places,
    spans,
    structure,
)


@st.composite
def trees(draw, size: int, depth: int = 2):
    """How an axis of this size is made of products and ranges: a number, or ("×" or "+", one, another)."""
    outer = [n for n in range(2, size) if size % n == 0]
    kind = draw(st.sampled_from(["leaf", *(["+"] if size > 1 else []), *(["×"] if outer else [])]))
    if kind == "leaf" or not depth:
        return size
    first = draw(st.integers(1, size - 1) if kind == "+" else st.sampled_from(outer))
    second = size - first if kind == "+" else size // first
    return kind, draw(trees(first, depth - 1)), draw(trees(second, depth - 1))


def grown(tree) -> Axis:
    """The axis that is made like this."""
    if isinstance(tree, int):
        return Axis(tree)
    kind, *parts = tree
    return (joined if kind == "+" else product)([grown(part) for part in parts])


def units(axis: Axis) -> list[tuple[tuple[Axis, int], ...]]:
    """Every place of an axis: which unit of each finest axis it is."""
    axis = axis.root()
    if axis.parts is not None:
        return [sum(each, ()) for each in combinations(*(units(part) for part in axis.parts))]
    if axis.ranges is not None:
        return [unit for part in axis.ranges for unit in units(part)]
    return [((axis, i),) if axis.size > 1 else () for i in range(axis.size)]


@given(data=st.data(), size=st.integers(1, 24))
def test_unified_axes_have_the_same_units_in_the_same_order(data, size):
    a, b = grown(data.draw(trees(size))), grown(data.draw(trees(size)))
    with suppress(ValueError):  # they cannot be aligned
        unify(a, b)
        assert units(a) == units(b)
        unify(a, b)  # again, which changes nothing
        assert units(a) == units(b)
    assert len(units(a)) == len(units(b)) == length(a, {}) == length(b, {}) == size


@given(data=st.data(), size=st.integers(2, 24))
def test_ranges_of_whole_axes_can_always_be_unified_and_cut(data, size):
    places = st.lists(st.integers(1, size - 1), max_size=3, unique=True).map(sorted)
    axes = []
    for borders in (data.draw(places), data.draw(places)):
        ends = [*borders, size]
        axes.append(joined([Axis(end - start) for start, end in zip([0, *borders], ends, strict=True)]))
    unify(*axes)
    assert units(axes[0]) == units(axes[1])
    start, end = sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)).filter(lambda p: p[0] != p[1])))
    piece = between(axes[0], start, end)
    assert units(piece) == units(axes[1])[start:end]  # a cut is felt by all that are the same


@given(data=st.data(), size=st.integers(2, 24))
def test_a_layout_says_where_the_units_are_now_and_will_be(data, size):
    axis = grown(data.draw(trees(size)))
    before = units(axis)
    for leaf in (leaf for leaf in leaves(axis) if leaf.size > 1):
        mine = layout(axis, leaf)
        where = places(mine, leaf.size)
        assert extent(mine, leaf.size) == size
        assert all((leaf, i) in before[place] for i, row in enumerate(where.tolist()) for place in row)
        assert sum(any(leaf is one for one, _ in unit) for unit in before) == where.numel()
        assert sorted([*where.flatten().tolist(), *others(mine, leaf.size).tolist()]) == list(range(size))
        more = leaf.size + 2
        assert extent(mine, more) == length(axis, {leaf: more}) == size + 2 * where.shape[1]
        assert len(others(mine, more)) == len(others(mine, leaf.size))  # all that are there stay, in their order


def test_layouts_of_heads_of_flattened_channels_and_of_ranges():
    heads, width, a, b = Axis(3), Axis(8), Axis(4), Axis(5)
    assert layout(product([heads, width]), heads) == ((UNITS, 8),)
    assert layout(product([heads, width]), width) == ((3, UNITS),)
    channels = joined([a, b, a])
    assert layout(channels, a) == ((UNITS,), (5,), (UNITS,))
    assert places(layout(channels, a), 4).tolist() == [[0, 9], [1, 10], [2, 11], [3, 12]]
    flat = product([channels, Axis(2), Axis(3)])
    assert layout(flat, b) == ((24,), (UNITS, 6), (24,))
    inside = product([heads, joined([a, b])])
    assert layout(inside, b) == ((3, ((4,), (UNITS,))),)
    assert structure(inside, {b: 7}) == ((3, ((4,), (7,))),)
    assert {span.size for span in spans(inside)} >= {3, 9, 27, 4, 5}


def test_a_product_of_ranges_is_ranges_of_products_and_may_be_split_where_its_borders_are():
    a, b = Axis(8), Axis(4)
    groups, each = regroup([joined([a, b])], [3, 4])
    assert units(product([groups, each])) == units(joined([a, b]))
    assert [leaf.size for leaf in leaves(a)] == [2, 4]
    torch.testing.assert_close(places(layout(groups, leaves(a)[0]), 2), torch.tensor([[0], [1]]))


def test_a_border_within_units_is_refused_and_changes_nothing():
    heads, width = Axis(3), Axis(4)
    whole = product([heads, width])
    with pytest.raises(ValueError, match="an axis of 12 cannot be cut at 6: 4 units belong together"):
        cut(whole, [6])
    assert heads.ranges is None and width.ranges is None


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (((UNITS,),), (1, 1)),
        (((3, UNITS),), (3, 1)),
        (((UNITS, 4),), (1, 4)),
        (((3, UNITS, 4),), (3, 4)),
        (((3,), (UNITS,)), None),
        ((((((2,), (UNITS,)), 4)),), None),
    ],
)
def test_a_plain_product_is_known_by_what_is_around_its_units(here, expected):
    assert around_units(here) == expected
    if expected:
        outer, inner = expected
        axis = torch.arange(outer * 5 * inner).view(outer, 5, inner)
        assert torch.equal(axis.movedim(1, 0).flatten(1), places(here, 5))
