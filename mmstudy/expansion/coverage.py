"""What of a network can be expanded, by which operators exactly, and what cannot and why: before anything is spent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from textwrap import fill

import pandas as pd
from torch import nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.core import arguments
from mmstudy.core.networks import named_tensors
from mmstudy.expansion import pools
from mmstudy.expansion.attributes import starred
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.exactness import Reference, large
from mmstudy.expansion.operators import EXACTLY, OPERATORS, named
from mmstudy.expansion.sizes import DOES_NOT_RUN
from mmstudy.tracing.calls import Call, shortened
from mmstudy.tracing.couplings import Coupling, fixed_groups, of_trace
from mmstudy.tracing.graph import CONSUMED, UNKNOWN, Trace
from mmstudy.tracing.trace import OUTPUT

FACTOR = 2  # units are doubled to see which operators are exact
EXAMPLES, WORDS = 2, 4  # of each batch, on which a large network is tried at most
WIDTH = 110  # characters of a line in a terminal
HELP = {  # part of a reason → what would help
    UNKNOWN: "mm.register_rule(operation, rule) for this operation, if you know what it does",
    "cannot be followed here": "mm.register_rule(operation, rule) for this operation, or another way to write it",
    OUTPUT: "output= where this part of the output need not stay; otherwise nothing",
    "never read": "a batch on which the network reads it in evaluation mode, or the network without it",
    "no operation of this call reads it": "a batch on which the network reads it in evaluation mode",
    "made with a size that is written in numbers": "a size computed from a tensor, e.g. torch.zeros_like(x)",
    DOES_NOT_RUN: "sizes computed from tensors, or growing what shares a size together",
    "its weights are no parameter": "the computed weights as a parameter of their own (merge, remove parametrizations)",
    "both are made by": "queries and keys that layers of their own make",
    "no rule says what it does": "mm.register_rule(operation, rule) for what reads this tensor",
    "is not exact here": "operators that promise no exactness, or another size",
}


@dataclass(frozen=True)
class Row:
    """One group of units, or one list of layers behind whose members more may be inserted.

    Exact operators have been tried: by twice the units, or by one more layer, on this group or on one of the same kind.
    """

    location: str
    units: int  # 0: a list of layers or blocks
    tensors: tuple[str, ...]  # that have the units
    together: str  # what changes together, in short
    each: int  # parameters per unit, or of one more layer
    exact: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)  # operator (or "all") → reason
    places: tuple[str, ...] = ()  # a list of layers or blocks: its members
    beside: tuple[str, ...] = ()  # groups with which it grows at once, as one size serves them all
    jointly: tuple[str, ...] = ()  # operators that are exact then

    @property
    def grows(self) -> bool:
        """Whether some operator has been seen to do it."""
        return bool(self.exact)

    @property
    def reason(self) -> str:
        """Why no operator is exact; empty where one is."""
        return "" if self.exact else next(iter(self.refused.values()), "")

    @property
    def help(self) -> str:
        """What would help against that."""
        if self.jointly:
            return f"growing at once with {_grouped(self.beside)}, exact by {', '.join(self.jointly)}"
        return next((way for part, way in HELP.items() if part in self.reason), "")


@dataclass(frozen=True)
class Coverage:
    """A row for every group of units that a layer makes, for parameters in no group, and for lists of layers."""

    rows: tuple[Row, ...]

    def __getitem__(self, location: str) -> Row:
        rows = {row.location: row for row in self.rows}
        return rows[arguments.one_of(location, rows, "location")]

    @property
    def growing(self) -> tuple[str, ...]:
        """The groups that can get wider by an exact operator."""
        return tuple(row.location for row in self.rows if row.units and row.grows)

    @property
    def joint(self) -> tuple[str, ...]:
        """The groups that grow only at once, as one size serves them all."""
        return tuple(row.location for row in self.rows if row.jointly)

    def allows(self, candidate: Candidate) -> bool:
        """Whether nothing speaks against a candidate: each place grows, and in that way if it promises to be exact."""
        way = candidate.operator
        exactly, widens = OPERATORS[way].preserves == EXACTLY, OPERATORS[way].widens
        fit = [row for row in self.rows if bool(row.units) == widens]  # a layer may be in a list, and have units
        rows = {place: row for row in fit for place in row.places or (row.location,)}
        found = [rows[place] for place in candidate.locations if place in rows]
        at_once = {*candidate.locations} == {*self.joint}
        here = len(found) == len(candidate.locations) and all(
            way in ways if exactly else ways for row in found for ways in [row.jointly if at_once else row.exact]
        )
        return here and (candidate.then is None or self.allows(candidate.then))

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table, by location."""
        columns = {
            "units": [row.units or "+1" for row in self.rows],
            "together": [row.together for row in self.rows],
            "parameters each": [row.each for row in self.rows],
            "exact": [", ".join(row.exact) for row in self.rows],
            "refused": [row.reason for row in self.rows],
            "help": [row.help for row in self.rows],
        }
        return pd.DataFrame(columns, index=pd.Index([row.location for row in self.rows], name="location"))

    @property
    def short(self) -> "Coverage":
        """Rows that are the same but for the numbers of their layers as one, with stars and how many they are."""
        alike: dict[str, list[Row]] = {}
        for row in self.rows:
            alike.setdefault(starred(" ".join(_text(row).split())), []).append(row)  # wherever lines break
        found = []
        for first, *others in alike.values():
            place, together = f"{starred(first.location)} ({1 + len(others)} alike)", starred(first.together)
            refused = {name: starred(reason) for name, reason in first.refused.items()}
            one = replace(first, location=place, together=together, refused=refused)
            found.append(one if others else first)
        return Coverage(tuple(found))

    def __str__(self) -> str:
        return "\n".join(_text(row) for row in self.short.rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in ("location", *self.table.columns))
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in self.short.table.itertuples(name=None)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def of_network(
    network: nn.Module, batch: Batch | Call, call: Call, traced: Trace, loss_fn: LossFn, also: Sequence[Call] = ()
) -> Coverage:
    """The coverage of a network that has been traced on a call; exact operators are tried on one group of each kind.

    A large network is judged in its own types of numbers, not in float64, on few examples and words, for one operator
    of each kind of group on less of them too, and by calls alone, with no trace of what has grown; what grows is
    checked in full when it does.
    """
    traced.confirms = not large(network)
    rows, tried = [], dict[object, tuple[str, dict[str, str]]]()
    of_call = Reference if traced.confirms else _roughly
    references = [of_call(network, each) for each in (call, *also)]
    exact = _exact(widens=True)
    for name, group in of_trace(traced).items():
        kind = _kind(group)
        if kind not in tried:
            candidates = {way: Candidate(way, (name,), (FACTOR * group.size,)) for way in exact}
            tried[kind] = name, _refused(candidates, references, batch, loss_fn, traced)
        first, reasons = tried[kind]
        refused = {way: reason.replace(first, name) for way, reason in reasons.items()}
        tensors = tuple(dict.fromkeys(use.tensor for use in group.uses))
        each = group.parameters(group.size + 1) - group.parameters(group.size)
        works = tuple(way for way in exact if way not in refused)
        rows.append(Row(name, group.size, tensors, _together(group), each, works, refused))
    rows = _jointly(rows, references, batch, loss_fn, traced)
    sizes = {name: tensor.numel() for name, tensor in named_tensors(network).items()}
    for name, fixed in fixed_groups(traced).items():
        each = sum(sizes[tensor] for tensor in fixed.tensors if tensor in traced.parameters) // fixed.size
        rows.append(Row(name, fixed.size, fixed.tensors, _short(fixed.tensors), each, (), {"all": fixed.why}))
    return Coverage((*rows, *_lists(references, batch, loss_fn, traced)))


def _roughly(network: nn.Module, call: Call) -> Reference:
    """The reference of a large network: with few examples and words, if it runs on them."""
    calls = (*shortened(call, EXAMPLES, WORDS), call)
    return next(one for few in calls if (one := Reference(network, few, roughly=True)).runs or few is call)


def _exact(widens: bool) -> list[str]:
    """The operators that promise to be exact."""
    return [name for name in named(widens=widens) if OPERATORS[name].preserves == EXACTLY]


def _jointly(
    rows: Sequence[Row], references: Sequence[Reference], batch: Batch | Call, loss_fn: LossFn, traced: Trace
) -> list[Row]:
    """The rows; those of groups that did not run alone say which operators are exact if all of them grow at once."""
    alone = {row.location: FACTOR * row.units for row in rows if DOES_NOT_RUN in row.reason}
    exact = _exact(widens=True)
    if len(alone) < 2:
        return list(rows)
    candidates = {way: Candidate(way, tuple(alone), tuple(alone.values())) for way in exact}
    refused = _refused(candidates, references, batch, loss_fn, traced)
    works = tuple(way for way in exact if way not in refused)
    if not works:
        return list(rows)
    beside = {name: tuple(other for other in alone if other != name) for name in alone}
    return [replace(row, beside=beside[row.location], jointly=works) if row.location in alone else row for row in rows]


def _refused(
    candidates: Mapping[str, Candidate],
    references: Sequence[Reference],
    batch: Batch | Call,
    loss_fn: LossFn,
    traced: Trace,
) -> dict[str, str]:
    """Those of the candidates that cannot be built, or are not exact, with the reasons."""
    found, elsewhere = {}, True
    for i, (name, candidate) in enumerate(candidates.items()):
        try:
            candidate.tried(references, batch, loss_fn, traced, elsewhere)
            elsewhere = not references[0].roughly
        except (ValueError, NotImplementedError) as error:
            found[name] = str(error)
            if "cannot grow" in found[name] and len(found) > i:  # whatever the operator, since none has done it
                return dict.fromkeys(candidates, found[name])
    return found


def _kind(group: Coupling) -> object:
    """What groups have in common that are the same but for the numbers of their layers."""
    uses = tuple((starred(use.tensor), use.axis, use.layout, use.role) for use in group.uses)
    norms = tuple((starred(norm.module), norm.kind, norm.eps) for norm in group.normalizations)
    return group.size, uses, norms, len(group.pairings), bool(group.unread), group.operations


def _lists(references: Sequence[Reference], batch: Batch | Call, loss_fn: LossFn, traced: Trace) -> list[Row]:
    """A row for every list of layers or blocks; exact operators are tried behind its first member, else its last."""
    network, lists = references[0].network, dict[str, list[str]]()
    for place in pools.places(network):
        lists.setdefault(place.rpartition(".")[0], []).append(place)
    exact = _exact(widens=False)
    rows = []
    for members in lists.values():
        refused: dict[str, str] = {}
        for place in dict.fromkeys((members[0], members[-1])):
            candidates = {way: Candidate(way, (place,), (1,)) for way in exact}
            refused = _refused(candidates, references, batch, loss_fn, traced)
            if len(refused) < len(exact):
                break
        span = members[0] if len(members) == 1 else f"{members[0]} … {members[-1]}"
        each = sum(p.numel() for p in network.get_submodule(members[-1]).parameters())
        works = tuple(way for way in exact if way not in refused)
        refused = dict(reversed(refused.items()))  # a block's own ways come last
        rows.append(Row(span, 0, (), f"one more, of {len(members)}", each, works, refused, tuple(members)))
    return rows


def _together(group: Coupling) -> str:
    """Who makes and who reads the units, in short."""
    made = _short(use.tensor for use in group.uses if use.role != CONSUMED)
    return f"{made} → {_short(use.tensor for use in group.of(CONSUMED)) or 'keys'}"


def _short(tensors: Iterable[str]) -> str:
    """The modules of tensors; see `_grouped`."""
    return _grouped(tensor.rpartition(".")[0] or tensor for tensor in tensors)


def _grouped(names: Iterable[str]) -> str:
    """Names, those that are the same but for numbers taken together: "blocks.*.up (12)"."""
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(starred(name), []).append(name)
    return ", ".join(f"{name} ({len(some)})" if len(some) > 1 else some[0] for name, some in alike.items())


def _text(row: Row) -> str:
    """A row in a few lines of a terminal."""
    amount = f"{row.units:,} units" if row.units else "one more"
    lines = [f"{row.location}   {amount}, {row.each:,} parameters each"]
    parts = {"together": row.together, "exact": ", ".join(row.exact), "refused": row.reason, "help": row.help}
    for name, text in parts.items():
        if text:
            lines.append(fill(text, WIDTH, initial_indent=f"    {name:<9}", subsequent_indent=" " * 13))
    return "\n".join(lines)
