"""Expansion: a trained network in, a wider or deeper network out; the old one is not touched.

A `Candidate` describes an expansion and carries it out; the ways to expand are `operators.OPERATORS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments
from mmstudy.core.seeds import generator as substream
from mmstudy.core.threads import alone
from mmstudy.expansion import checking, configurations, estimates, given, insertion, surgery, widening
from mmstudy.expansion.exactness import Reference
from mmstudy.expansion.operators import OPERATORS, named
from mmstudy.expansion.plans import transported
from mmstudy.expansion.replacing import parted
from mmstudy.tracing.calls import Call, Output, called, of_loss
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.trace import trace

Averages = Mapping[str, Tensor]  # an optimizer's running averages, by parameter


@dataclass(frozen=True)
class Expansion:
    """An expanded network, and how its parameters come from the old ones."""

    network: nn.Module
    origin: dict[str, str]  # each parameter → the old one that it is, grew from, or is modelled on
    inserted: frozenset[str]  # parameters of layers or blocks that were not there before
    fresh: frozenset[str]  # those of them that are no copies, hence have no history
    carry: Callable[[Averages, bool], dict[str, Tensor]]  # (averages, whether of squares) → those of the others
    changed: tuple[str, ...] = ()  # numbers that modules keep of sizes and that changed, step by step: "heads: 3 → 4"
    configuration: str = ""  # whether its class builds it from its configuration, if it has one (see `configurations`)


@dataclass(frozen=True)
class Candidate:
    """One way to expand: enough to build the same network again anywhere.

    `operator` is one of `OPERATORS`. A wider one lets the couplings at `locations` (see `couplings`) grow to `sizes`
    units; a deeper one inserts `sizes` layers or blocks behind the modules at `locations` (see `deeper`). `then` is
    what is done afterwards to the result: a compound expansion is a chain.

    Raises:
        TypeError: locations, sizes or `then` of another kind.
        ValueError: an unknown operator, no location, one twice, or other numbers of locations and of sizes.
    """

    operator: str
    locations: tuple[str, ...]
    sizes: tuple[int, ...]
    seed: int = 0
    then: "Candidate | None" = None

    def __post_init__(self):
        if self.operator not in OPERATORS:
            raise ValueError(f"unknown operator {self.operator!r}; known: {', '.join(OPERATORS)}")
        if isinstance(self.locations, str):
            raise ValueError(f"locations must be a tuple of names, e.g. ({self.locations!r},); got {self.locations!r}")
        for name, items in (("locations", self.locations), ("sizes", self.sizes)):
            if items and not isinstance(items, tuple | list):
                raise TypeError(f"{name} must be a tuple, e.g. ({items!r},); got {arguments.described(items)}")
        if strange := [each for each in self.locations or () if not isinstance(each, str)]:
            raise TypeError(f"locations must be names; got {arguments.described(strange[0])}")
        if self.then is not None and not isinstance(self.then, Candidate):
            raise TypeError(f"then must be another Candidate, or None; got {arguments.described(self.then)}")
        object.__setattr__(self, "seed", arguments.whole(self.seed, "seed"))
        if not self.locations:
            raise ValueError(f"{self.operator} needs at least one location, e.g. ('hidden.0',)")
        if len(set(self.locations)) < len(self.locations):
            raise ValueError(f"{self.operator} names a location twice: {self.locations}")
        whole = tuple(int(n) if isinstance(n, Integral) and type(n) is not bool else n for n in self.sizes or ())
        object.__setattr__(self, "sizes", whole)
        if len(self.sizes) != len(self.locations) or not all(type(n) is int and n > 0 for n in self.sizes):
            raise ValueError(f"{self.operator} needs a whole number > 0 for each of {self.locations}; got {self.sizes}")
        if OPERATORS[self.operator].together and len(set(self.sizes)) > 1:
            raise ValueError(f"{self.operator} repeats all its locations equally often; got {self.sizes}")

    def __str__(self) -> str:
        sign = "→" if OPERATORS[self.operator].widens else "+"
        where = "&".join(f"{location}{sign}{size}" for location, size in zip(self.locations, self.sizes, strict=True))
        return f"{self.operator} {where}" + (f", {self.then}" if self.then else "")

    def cost(self, examples: int) -> int:
        """Example-evaluations of the expansion itself, with so many examples to learn from."""
        here = OPERATORS[self.operator].cost(arguments.whole(examples, "examples", 0)) * len(self.locations)
        return here + (self.then.cost(examples) if self.then else 0)

    def as_dict(self) -> dict[str, Any]:
        """The description as plain data, e.g. for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> "Candidate":
        """The candidate that `as_dict` describes.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            plain = dict(**description)
            then = plain.pop("then", None)
            plain |= {key: tuple(plain[key]) for key in ("locations", "sizes") if not isinstance(plain[key], str)}
            return Candidate(**plain, then=Candidate.from_dict(then) if then else None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no description of a candidate: {description!r}") from error

    def expand(
        self, network: nn.Module, batch: Batch | Call, loss_fn: LossFn = classification, **options: Any
    ) -> nn.Module:
        """The expanded network; see `grow`."""
        return self.grow(network, batch, loss_fn, **options).network

    @alone
    def grow(
        self,
        network: nn.Module,
        batch: Batch | Call,
        loss_fn: LossFn = classification,
        traced: Trace | None = None,
        *,
        keep: Sequence[str] = (),
        also: Sequence[Batch | Call] = (),
        output: Output = None,
        references: Sequence[Reference] = (),
    ) -> Expansion:
        """Carry the expansion out.

        Args:
            batch: examples on the network's device: what it is called with, if that is a tensor, else what `loss_fn`
                calls it on, e.g. (inputs, targets). Operators that learn do so from them; inserted normalizations are
                fitted to them; and the promise of those that are exact is checked on them.
            loss_fn: (model, batch) → mean loss.
            traced: the trace of the network on such a batch, if there is one already: the network and the batch are
                known to be fit for each other, and are not looked at again.
            keep: numbers that modules keep and that must stay, as patterns of paths: "blocks.0.horizon", "*.layer_idx".
            also: more batches, of other sizes and lengths: the network must have the same units on them, and what is
                exact is checked on them too.
            output: which part of what the network returns must stay; see `Call`. By default all that are no whole
                numbers.
            references: the network on the batch and on `also`, if they are there already, as the trace: what they
                remember of it saves calls where several candidates grow from one network.

        Returns:
            The expanded network, and how its parameters come from the old ones.

        Raises:
            TypeError: an argument of another kind.
            ValueError: the network cannot be called on the batch, a location is unknown, a size does not expand, the
                operator does not fit the location, or it would break its promise there.
            NotImplementedError: torch.export cannot follow the network.
        """
        if traced is None:
            network, batch, call = given.fit(network, batch, loss_fn, output)
            given.protected(network, keep)
        else:
            call = references[0].call if references else of_loss(network, batch, loss_fn, output)
        more = () if references else given.further(network, also, loss_fn, output)
        held = references or [Reference(network, each) for each in (call, *(other for _, other in more))]
        grown = _judged(self, held, batch, loss_fn, traced, keep)
        del held  # what they remember of the network takes memory
        grown = replace(grown, network=parted(grown.network, network))
        if self.then is None:
            return grown
        return _chain(grown, self.then.grow(grown.network, batch, loss_fn, keep=keep, also=also, output=output))

    def tried(
        self,
        references: Sequence[Reference],
        batch: Batch | Call,
        loss_fn: LossFn,
        traced: Trace,
        elsewhere: bool = True,
    ) -> None:
        """Carry the expansion out, but for what is done afterwards, and throw the result away: cheaper than `grow`.

        Where units are added, a configuration of the network is left as it is.

        Args:
            references: the network, how it is called on the batch, and on more of them.
            elsewhere: check it on batches of other sizes and in training mode too.

        Raises:
            ValueError: as `grow`.
            NotImplementedError: as `grow`.
        """
        _judged(self, references, batch, loss_fn, traced, (), configured=False, elsewhere=elsewhere)


def widen(
    network: nn.Module,
    location: str,
    size: int,
    operator: str,
    generator: torch.Generator,
    batch: Batch | Call,
    loss_fn: LossFn = classification,
) -> nn.Module:
    """A copy of `network` in which the coupling at `location` has `size` units, by an operator that widens.

    The bare operator, without a check of its promise; for the arguments see `Candidate.grow`.

    Raises:
        ValueError: no such operator, or what the operator cannot do here.
    """
    if operator not in (known := named(widens=True)):
        raise ValueError(f"unknown wider operator {operator!r}; known: {', '.join(known)}")
    call = of_loss(network, batch, loss_fn)
    growth = widening.growth_of(trace(network, call), network, location, size, generator, batch, loss_fn)
    plan, touch = OPERATORS[operator].apply(growth)
    return parted(surgery.rebuilt(network, plan, call, touch), network)


def deepen(
    network: nn.Module, location: str, number: int, operator: str, generator: torch.Generator, batch: Any
) -> nn.Module:
    """A copy of `network` with `number` more layers or blocks behind the module at `location`.

    Raises:
        ValueError: no such operator, or what the operator cannot do here.
    """
    if operator not in (known := named(widens=False)):
        raise ValueError(f"unknown deeper operator {operator!r}; known: {', '.join(known)}")
    call = called(network, batch)
    new = insertion.insert(network, {location: number}, OPERATORS[operator].way, generator, call).network
    return parted(new, network)


def _judged(candidate, references, batch, loss_fn, traced, keep, configured=True, elsewhere=True) -> Expansion:
    """What a candidate makes of the network of the references, on its memory, once its promise has been checked."""
    stream = substream("expand", candidate.operator, *candidate.locations, *candidate.sizes, candidate.seed)
    checking.comparable(candidate, references)
    network, call = references[0].network, references[0].call
    coarsest = traced.coarsest if traced else 0.0
    if OPERATORS[candidate.operator].widens:
        traced = traced or trace(network, call)
        traced.protected, coarsest = tuple(keep), traced.coarsest
        for other in references[1:]:
            checking.same_units(candidate, traced, other.traced, other.call)
        everywhere = [*references, *references[0].others]
        grown = _widen(candidate, everywhere, traced, stream, batch, loss_fn, configured)
    else:
        grown = _deepen(candidate, references[0], stream, keep)
    checking.check(candidate, references, grown.network, grown.origin, grown.inserted, coarsest, elsewhere)
    return grown


def _widen(candidate, references, traced, stream, batch, loss_fn, configured) -> Expansion:
    sparing = not configured and references[0].sparing
    new, plans, changed = widening.widened(candidate, references, traced, stream, batch, loss_fn, sparing)

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        for plan in plans:
            averages = {**averages, **transported(averages, plan, squares)}
        return dict(averages)

    origin = {name: name for name, _ in new.named_parameters()}
    if not configured:
        return Expansion(new, origin, frozenset(), frozenset(), carry, tuple(changed))
    old, call = references[0].network, references[0].call
    fitted, configuration = configurations.fit(old, new, call, protected=traced.protected)
    return Expansion(new, origin, frozenset(), frozenset(), carry, (*changed, *fitted), configuration)


def _deepen(candidate, reference, stream, keep) -> Expansion:
    network, call = reference.network, reference.call
    numbers = dict(zip(candidate.locations, candidate.sizes, strict=True))
    estimates.deeper_fits(network, numbers)
    way = OPERATORS[candidate.operator].way
    new = insertion.insert(network, numbers, way, stream, call, keep, reference.members)
    origin, fresh = new.origin, frozenset() if way.trained else new.new

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return {name: averages[old].clone() for name, old in origin.items() if name not in fresh and old in averages}

    return Expansion(new.network, origin, new.new, fresh, carry, new.changed, new.configuration)


def _chain(first: Expansion, second: Expansion) -> Expansion:
    origin = {name: first.origin[between] for name, between in second.origin.items()}
    inserted, fresh = (
        here | {name for name, between in second.origin.items() if between in before}
        for here, before in ((second.inserted, first.inserted), (second.fresh, first.fresh))
    )

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return second.carry(first.carry(averages, squares), squares)

    said = second.configuration or first.configuration
    return Expansion(second.network, origin, inserted, fresh, carry, first.changed + second.changed, said)
