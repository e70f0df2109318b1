"""Expansion: a trained network in, a wider or deeper network out; the old one is not touched.

A `Candidate` describes an expansion and carries it out; the ways to expand are `operators.OPERATORS`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments
from mmstudy.core.networks import named_tensors
from mmstudy.core.seeds import generator as substream
from mmstudy.expansion import configurations, deeper, estimates, exactness, insertion, surgery
from mmstudy.expansion.attributes import Size
from mmstudy.expansion.growth import Growth
from mmstudy.expansion.operators import EXACTLY, OPERATORS, UP_TO_NOISE, named
from mmstudy.tracing.calls import Call, called, of_loss
from mmstudy.tracing.couplings import fixed_in, of_trace
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
        if not self.locations:
            raise ValueError(f"{self.operator} needs at least one location, e.g. ('hidden.0',)")
        if len(set(self.locations)) < len(self.locations):
            raise ValueError(f"{self.operator} names a location twice: {self.locations}")
        if len(self.sizes) != len(self.locations) or not all(type(n) is int and n > 0 for n in self.sizes):
            raise ValueError(f"{self.operator} needs a whole number > 0 for each of {self.locations}; got {self.sizes}")
        if self.operator == "stack" and len(set(self.sizes)) > 1:
            raise ValueError(f"stack repeats all its locations equally often; got {self.sizes}")

    def __str__(self) -> str:
        sign = "→" if OPERATORS[self.operator].widens else "+"
        where = "&".join(f"{location}{sign}{size}" for location, size in zip(self.locations, self.sizes, strict=True))
        return f"{self.operator} {where}" + (f", {self.then}" if self.then else "")

    def cost(self, examples: int) -> int:
        """Example-evaluations of the expansion itself, with so many examples to learn from."""
        here = OPERATORS[self.operator].cost(examples) * len(self.locations)
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
            plain = dict(description)
            then = plain.pop("then", None)
            plain |= {key: tuple(plain[key]) for key in ("locations", "sizes") if not isinstance(plain[key], str)}
            return Candidate(**plain, then=Candidate.from_dict(then) if then else None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no description of a candidate: {description!r}") from error

    def expand(self, network: nn.Module, batch: Batch | Call, loss_fn: LossFn = classification) -> nn.Module:
        """The expanded network; see `grow`."""
        return self.grow(network, batch, loss_fn).network

    def grow(
        self,
        network: nn.Module,
        batch: Batch | Call,
        loss_fn: LossFn = classification,
        traced: Trace | None = None,
    ) -> Expansion:
        """Carry the expansion out.

        Args:
            batch: examples on the network's device: what it is called with, if that is a tensor, else what `loss_fn`
                calls it on, e.g. (inputs, targets). Operators that learn do so from them; inserted normalizations are
                fitted to them; and the promise of those that are exact is checked on them.
            loss_fn: (model, batch) → mean loss.
            traced: the trace of the network on such a batch, if there is one already.

        Raises:
            ValueError: a location is unknown, a size does not expand, the operator does not fit the location, or it
                would break its promise there.
            NotImplementedError: the network has an operation whose effect on units is not known.
        """
        device = next(network.parameters()).device
        if elsewhere := {str(t.device) for t in tree_leaves(batch) if isinstance(t, Tensor)} - {str(device)}:
            raise ValueError(f"the network is on {device} and its inputs on {', '.join(elsewhere)}; move one of them")
        loss_fn = arguments.function(loss_fn)
        batch = batch if isinstance(batch, Tensor | Call) else arguments.batch(batch)
        call = of_loss(network, batch, loss_fn)
        stream = substream("expand", self.operator, *self.locations, *self.sizes, self.seed)
        if OPERATORS[self.operator].widens:
            grown = _widen(self, network, traced or trace(network, call), stream, call, batch, loss_fn)
        else:
            grown = _deepen(self, network, stream, call)
        if OPERATORS[self.operator].preserves == EXACTLY:
            _check(self, exactness.broken(network, grown.network, call, grown.origin))
        return _chain(grown, self.then.grow(grown.network, batch, loss_fn)) if self.then else grown


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
    growth = _growth(trace(network, call), network, location, size, generator, batch, loss_fn)
    plan, touch = OPERATORS[operator].apply(growth)
    return surgery.rebuilt(network, plan, call, touch)


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
    return insertion.insert(network, {location: number}, OPERATORS[operator].apply, generator, call).network


def _growth(traced: Trace, network: nn.Module, location: str, size: int, *rest) -> Growth:
    groups = of_trace(traced)
    if location not in groups:
        reason = fixed_in(traced).get(location)
        wrong = f"{location} cannot grow: {reason}" if reason else f"unknown location {location!r}"
        raise ValueError(f"{wrong}; this network can grow at: {', '.join(groups)}")
    if unread := groups[location].unread:
        raise ValueError(
            f"{location} cannot grow: {', '.join(unread)} may have its {groups[location].size} units too, and this "
            "call never reads them. Give a batch on which the network reads them in evaluation mode, or take them out"
        )
    if size <= groups[location].size:
        raise ValueError(f"{location} has {groups[location].size} units; widening to {size} would not expand it")
    estimates.wider_fits(network, groups[location], size)
    return Growth(network, groups[location], size, *rest)


def _widen(candidate, network, traced, stream, call, batch, loss_fn) -> Expansion:
    try:
        new, plans, changed = _one_by_one(candidate, network, traced, stream, call, batch, loss_fn)
    except ValueError as alone:
        if len(candidate.locations) == 1:
            raise
        try:  # one number may serve several of them
            new, plans, changed = _at_once(candidate, network, traced, stream, call, batch, loss_fn)
        except ValueError:
            raise alone from alone.__cause__

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        for plan in plans:
            averages = {**averages, **surgery.transported(averages, plan, squares)}
        return dict(averages)

    origin = {name: name for name, _ in new.named_parameters()}
    fitted, configuration = configurations.fit(network, new, call)
    return Expansion(new, origin, frozenset(), frozenset(), carry, (*changed, *fitted), configuration)


def _one_by_one(candidate, network, traced, stream, call, batch, loss_fn):
    plans, changed = list[surgery.Plan](), list[str]()
    for location, size in zip(candidate.locations, candidate.sizes, strict=True):
        traced = trace(network, call) if plans else traced
        growth = _growth(traced, network, location, size, stream, batch, loss_fn)
        plan, touch = OPERATORS[candidate.operator].apply(growth)
        new = surgery.rebuilt(network, plan, call, touch)
        _even_without_noise(candidate, network, new, [plan], call)
        changed += _said(network, growth.coupling.kept[size])
        network = new
        plans.append(plan)
    return network, plans, changed


def _at_once(candidate, network, traced, stream, call, batch, loss_fn):
    places = zip(candidate.locations, candidate.sizes, strict=True)
    growths = [_growth(traced, network, location, size, stream, batch, loss_fn) for location, size in places]
    made = [OPERATORS[candidate.operator].apply(growth) for growth in growths]
    new, sizes = surgery.rebuilt_at_once(network, made, call)
    plans = [plan for plan, _ in made]
    _even_without_noise(candidate, network, new, plans, call)
    return new, plans, _said(network, sizes)


def _said(network: nn.Module, sizes: Iterable[Size]) -> list[str]:
    """What is changed, in words."""
    old = [(path, key, getattr(network.get_submodule(path), key), then) for path, key, then in sizes]
    return [f"{path}.{key}: {now} → {then}".removeprefix(".") for path, key, now, then in old]


def _even_without_noise(candidate, network, new, plans, call) -> None:
    if OPERATORS[candidate.operator].preserves == UP_TO_NOISE:
        own = named_tensors(network)
        double = {name: tensor.double() for name, tensor in own.items() if tensor.is_floating_point()}
        plain = surgery.transformed(double, [(plan, None) for plan in plans])
        same = {name: name for name in own}
        _check(candidate, exactness.broken(network, new, call, same, plain), ", even without noise")


def _deepen(candidate, network, stream, call) -> Expansion:
    numbers = dict(zip(candidate.locations, candidate.sizes, strict=True))
    estimates.deeper_fits(network, numbers)
    way = OPERATORS[candidate.operator].apply
    new = insertion.insert(network, numbers, way, stream, call)
    origin, fresh = new.origin, frozenset() if way in (deeper.stack, deeper.interleave) else new.new

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


def _check(candidate: Candidate, wrong: str | None, even: str = "") -> None:
    if wrong:
        raise ValueError(
            f"{candidate} is not exact here{even}: {wrong}. Something between the new units and what reads them does "
            "not keep a copy a copy, or a zero a zero"
        )
