"""Expansion: a trained network in, a wider or deeper network out; the old one is not touched.

A `Candidate` describes an expansion and carries it out; the ways to expand are `operators.OPERATORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import generator as substream
from mmstudy.expansion import deeper, surgery
from mmstudy.expansion.growth import Growth, LossFn
from mmstudy.expansion.operators import EXACTLY, OPERATORS, UP_TO_NOISE, named
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
            plain |= {"locations": tuple(plain["locations"]), "sizes": tuple(plain["sizes"])}
            return Candidate(**plain, then=Candidate.from_dict(then) if then else None)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no description of a candidate: {description!r}") from error

    def expand(
        self, network: nn.Module, inputs: Tensor, targets: Tensor | None = None, loss_fn: LossFn = cross_entropy
    ) -> nn.Module:
        """The expanded network; see `grow`."""
        return self.grow(network, inputs, targets, loss_fn).network

    def grow(
        self,
        network: nn.Module,
        inputs: Tensor,
        targets: Tensor | None = None,
        loss_fn: LossFn = cross_entropy,
        walked: Trace | None = None,
    ) -> Expansion:
        """Carry the expansion out.

        Args:
            inputs: a batch of examples (batch, ...), on the network's device. Operators that learn do so from them and
                their `targets` by `loss_fn`; inserted normalizations are fitted to them; and the promise of those that
                are exact is checked on them. The others use the shape alone.
            walked: the trace of the network on such inputs, if there is one already.

        Raises:
            ValueError: a location is unknown, a size does not expand, the operator does not fit the location, or it
                would break its promise there.
            NotImplementedError: the network has an operation whose effect on units is not known.
        """
        device = next(network.parameters()).device
        if inputs.device != device:
            raise ValueError(f"the network is on {device} and its inputs on {inputs.device}; move one to the other")
        stream = substream("expand", self.operator, *self.locations, *self.sizes, self.seed)
        walked = walked or trace(network, inputs)
        if OPERATORS[self.operator].widens:
            grown = _widen(self, network, walked, stream, inputs, targets, loss_fn)
        else:
            grown = _deepen(self, network, walked, stream, inputs)
        if OPERATORS[self.operator].preserves == EXACTLY:
            _check(self, network, grown.network, inputs)
        return _chain(grown, self.then.grow(grown.network, inputs, targets, loss_fn)) if self.then else grown


def widen(
    network: nn.Module,
    location: str,
    size: int,
    operator: str,
    generator: torch.Generator,
    inputs: Tensor,
    targets: Tensor | None = None,
    loss_fn: LossFn = cross_entropy,
) -> nn.Module:
    """A copy of `network` in which the coupling at `location` has `size` units, by an operator that widens.

    The bare operator, without a check of its promise; for the arguments see `Candidate.grow`.

    Raises:
        ValueError: no such operator, or what the operator cannot do here.
    """
    if operator not in (known := named(widens=True)):
        raise ValueError(f"unknown wider operator {operator!r}; known: {', '.join(known)}")
    walked = trace(network, inputs)
    growth = _growth(walked, network, location, size, generator, inputs, targets, loss_fn)
    plan, touch = OPERATORS[operator].apply(growth)
    return surgery.rebuilt(network, plan, inputs, touch)


def deepen(
    network: nn.Module, location: str, number: int, operator: str, generator: torch.Generator, inputs: Tensor
) -> nn.Module:
    """A copy of `network` with `number` more layers or blocks behind the module at `location`.

    Raises:
        ValueError: no such operator, or what the operator cannot do here.
    """
    if operator not in (known := named(widens=False)):
        raise ValueError(f"unknown deeper operator {operator!r}; known: {', '.join(known)}")
    way, walked = OPERATORS[operator].apply, trace(network, inputs)
    return deeper.insert(network, walked, {location: number}, way, generator, inputs)[0]


def _growth(walked: Trace, network: nn.Module, location: str, size: int, *rest) -> Growth:
    groups = of_trace(walked)
    if location not in groups:
        reason = fixed_in(walked).get(location)
        wrong = f"{location} cannot grow: {reason}" if reason else f"unknown location {location!r}"
        raise ValueError(f"{wrong}; this network can grow at: {', '.join(groups)}")
    if unread := groups[location].unread:
        raise ValueError(
            f"{location} cannot grow: {', '.join(unread)} may have its {groups[location].size} units too, and this "
            "call never reads them. Give a batch on which the network reads them in evaluation mode, or take them out"
        )
    if size <= groups[location].size:
        raise ValueError(f"{location} has {groups[location].size} units; widening to {size} would not expand it")
    return Growth(network, groups[location], size, *rest)


def _widen(candidate, network, walked, stream, inputs, targets, loss_fn) -> Expansion:
    operator, plans = OPERATORS[candidate.operator], list[surgery.Plan]()
    for location, size in zip(candidate.locations, candidate.sizes, strict=True):
        walked = trace(network, inputs) if plans else walked
        growth = _growth(walked, network, location, size, stream, inputs, targets, loss_fn)
        plan, touch = operator.apply(growth)
        new = surgery.rebuilt(network, plan, inputs, touch)
        if operator.preserves == UP_TO_NOISE:
            own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            _check(candidate, network, new, inputs, surgery.transform(own, plan))
        network = new
        plans.append(plan)

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        for plan in plans:
            averages = {**averages, **surgery.transported(averages, plan, squares)}
        return dict(averages)

    return Expansion(network, {name: name for name, _ in network.named_parameters()}, frozenset(), frozenset(), carry)


def _deepen(candidate, network, walked, stream, inputs) -> Expansion:
    numbers = dict(zip(candidate.locations, candidate.sizes, strict=True))
    way = OPERATORS[candidate.operator].apply
    new, origin, inserted = deeper.insert(network, walked, numbers, way, stream, inputs)
    fresh = frozenset() if way in (deeper.stack, deeper.interleave) else inserted

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return {name: averages[old].clone() for name, old in origin.items() if name not in fresh and old in averages}

    return Expansion(new, origin, inserted, fresh, carry)


def _chain(first: Expansion, second: Expansion) -> Expansion:
    origin = {name: first.origin[between] for name, between in second.origin.items()}
    inserted, fresh = (
        here | {name for name, between in second.origin.items() if between in before}
        for here, before in ((second.inserted, first.inserted), (second.fresh, first.fresh))
    )

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return second.carry(first.carry(averages, squares), squares)

    return Expansion(second.network, origin, inserted, fresh, carry)


def _check(
    candidate: Candidate,
    old: nn.Module,
    new: nn.Module,
    inputs: Tensor,
    without_noise: dict[str, Tensor] | None = None,  # what its tensors would be
) -> None:
    with evaluating(old), evaluating(new), torch.no_grad():
        before, after = old(inputs), functional_call(new, without_noise or {}, (inputs,))
    change = float((after - before).abs().max() / before.abs().max().clamp(min=torch.finfo(before.dtype).tiny))
    if not change <= torch.finfo(before.dtype).eps ** 0.5:  # more than rounding, or no number
        raise ValueError(
            f"{candidate} is not exact here{', even without noise' if without_noise else ''}: the outputs change by "
            f"{change:.1e} of their size. Something between the new units and what reads them does not keep a copy a "
            "copy, or a zero a zero"
        )
