"""What can only be said of units once a whole network has been followed: which of them must not grow after all."""

from math import prod

from mmstudy.tracing.axes import Axis, fix, leaves
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.layouts import layout, places

NORMALIZED = "it is normalized together with other units of an axis that is concatenated or cut, and they would feel it"
PAIRED = "queries and keys are summed over it and over other units, and the number of all of them scales the sum"


def settle(result: Trace) -> None:
    """Fix the units that others on their axis would feel, and those of which no rule has said what a tensor does."""
    for normalization in result.normalizations:
        _fix_shared(normalization.axis, NORMALIZED)
    for pairing in result.pairings:
        if pairing.scaled:
            _fix_shared(pairing.axis, PAIRED)
        _fix_fused(result, pairing.writers, pairing.axis, pairing.queries)
    _fix_mixed(result)
    _fix_unknown(result)


def _fix_shared(axis: Axis, why: str) -> None:
    """Units of an axis that has other ranges than theirs."""
    for leaf in leaves(axis):
        if places(layout(axis, leaf), leaf.size).numel() < axis.size:
            fix(leaf, why=why)


def _fix_fused(result: Trace, writers: tuple[str, ...], width: Axis, queries: tuple[Axis, ...]) -> None:
    """The width of queries whose layer writes the same units somewhere else too: only queries may be scaled."""
    for note in (note for note in result.notes if note.tensor in writers):
        own = set(leaves(note.axis))
        queried = prod(axis.size for axis in queries if own & set(leaves(axis)))
        if own & set(leaves(width)) and queried != note.axis.size:
            fix(width, why=f"queries and keys are summed over it, and {note.tensor} writes more than the queries")


def _fix_mixed(result: Trace) -> None:
    """Units that a tensor has more than once, in different roles."""
    roles: dict[tuple[str, Axis], set[str]] = {}
    for note in (note for note in result.notes if note.axis not in result.tensors[note.tensor]):
        for leaf in leaves(note.axis):
            roles.setdefault((note.tensor, leaf), set()).add(note.role)
    for (name, leaf), several in roles.items():
        if len(several) > 1:
            fix(leaf, why=f"parts of {name} have it in different roles ({', '.join(sorted(several))})")


def _fix_unknown(result: Trace) -> None:
    """Units of tensors of which no rule has said what they do with them."""
    noted: dict[str, set[Axis]] = {}
    for note in result.notes:
        noted.setdefault(note.tensor, set()).update(leaves(note.axis))
    for name, axes in result.tensors.items():
        for leaf in (leaf for axis in axes for leaf in leaves(axis)):
            if leaf not in noted.get(name, ()):
                fix(leaf, why=f"{name} has it too, and no rule says what it does with these units")
