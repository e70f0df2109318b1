"""Wider: couplings of a network grow by an operator, one after another, or at once where one number serves several."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from mmstudy.core.networks import named_tensors
from mmstudy.expansion import estimates, exactness, surgery
from mmstudy.expansion.attributes import Size, name
from mmstudy.expansion.growth import Growth, repeatable
from mmstudy.expansion.operators import OPERATORS, UP_TO_NOISE
from mmstudy.expansion.plans import Plan, transformed
from mmstudy.expansion.sizes import DoesNotRun
from mmstudy.expansion.slots import at
from mmstudy.tracing.couplings import fixed_groups, of_trace
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.trace import trace

Widened = tuple[nn.Module, list[Plan], list[str]]  # the network, how it grew, the numbers that changed


def widened(candidate, references, traced, stream, batch, loss_fn, sparing=False) -> Widened:
    """The network of the references, whose couplings have grown as a candidate says; the others are `Candidate.grow`'s.

    It shares the parameters that stay with the old one. Each reference is a call on which it is seen to be exact.

    Args:
        sparing: it is only tried: where one coupling grows, tensors are made when they are read (see `surgery`).

    Raises:
        DoesNotRun: the network does not run with the predicted shapes, or is another function.
        ValueError: a coupling is unknown, does not grow, or the operator does not fit it.
    """
    single = len(candidate.locations) == 1
    try:
        return _one_by_one(candidate, references, traced, stream, batch, loss_fn, sparing and single)
    except DoesNotRun as alone:
        if single:
            raise
        try:  # one number may serve several of them
            return _at_once(candidate, references, traced, stream, batch, loss_fn)
        except DoesNotRun:
            raise alone from alone.__cause__


def _one_by_one(candidate, references, traced, stream, batch, loss_fn, sparing) -> Widened:
    network, call = references[0].network, references[0].call
    keep, plans, changed = traced.protected, list[Plan](), list[str]()
    for location, size in zip(candidate.locations, candidate.sizes, strict=True):
        if plans:
            references, traced = exactness.of_another(network, references), trace(network, call)
        traced.protected = keep
        growth = growth_of(traced, network, location, size, stream, batch, loss_fn, call.output)
        plan, touch = OPERATORS[candidate.operator].apply(growth)
        touch = repeatable(touch, stream) if sparing else touch
        new = surgery.rebuilt(network, plan, call, touch, sparing)
        _even_without_noise(candidate, references, new, [plan], traced)
        changed += _said(network, growth.coupling.kept[size])
        network = new
        plans.append(plan)
    return network, plans, changed


def _at_once(candidate, references, traced, stream, batch, loss_fn) -> Widened:
    network, call = references[0].network, references[0].call
    places = zip(candidate.locations, candidate.sizes, strict=True)
    growths = [growth_of(traced, network, place, size, stream, batch, loss_fn, call.output) for place, size in places]
    made = [OPERATORS[candidate.operator].apply(growth) for growth in growths]
    new, sizes = surgery.rebuilt_at_once(network, made, call)
    plans = [plan for plan, _ in made]
    _even_without_noise(candidate, references, new, plans, traced)
    return new, plans, _said(network, sizes)


def _said(network: nn.Module, sizes: Iterable[Size]) -> list[str]:
    """What is changed, in words."""
    old = [(name(path, *place), at(network.get_submodule(path), place).value, then) for path, place, then in sizes]
    return [f"{where}: {now} → {then}" for where, now, then in old]


def _even_without_noise(candidate, references, new, plans, traced) -> None:
    if OPERATORS[candidate.operator].preserves == UP_TO_NOISE:
        network = references[0].network
        own, grown = named_tensors(network), {use.tensor for plan in plans for use in plan.coupling.uses}
        double = {name: own[name].double() for name in grown if own[name].is_floating_point()}
        plain = transformed(double, [(plan, None) for plan in plans])
        now = exactness.Grown(new, network, {name: name for name in own}, plain, traced.coarsest)
        for reference in references:
            exact(candidate, now.broken(reference), ", even without noise")


def growth_of(traced: Trace, network: nn.Module, location: str, size: int, *rest) -> Growth:
    """The growth of a coupling, once it is known that it can grow.

    Raises:
        ValueError: it cannot.
    """
    groups = of_trace(traced)
    if location not in groups:
        reason = reasons(traced, location)
        wrong = f"{location} cannot grow: {reason}" if reason else f"unknown location {location!r}"
        raise ValueError(f"{wrong}; this network can grow at: {', '.join(groups) or 'no place'}")
    if unread := groups[location].unread:
        raise ValueError(
            f"{location} cannot grow: {', '.join(unread)} may have its {groups[location].size} units too, and this "
            "call never reads them. Give a batch on which the network reads them in evaluation mode, or take them out"
        )
    if size <= groups[location].size:
        raise ValueError(f"{location} has {groups[location].size} units; widening to {size} would not expand it")
    estimates.wider_fits(network, groups[location], size)
    return Growth(network, groups[location], size, *rest)


def reasons(traced: Trace, location: str) -> str:
    """Why units do not grow, by their name or by the module that has their parameters; nothing if that is not known."""
    fixed = fixed_groups(traced)
    inside = [each.why for each in fixed.values() if any(t.startswith(f"{location}.") for t in each.tensors)]
    return "; ".join(dict.fromkeys([fixed[location].why] if location in fixed else inside))


def exact(candidate: Any, wrong: str | None, even: str = "") -> None:
    """Refuse what is not exact, if something is to be said of it.

    Raises:
        ValueError: it is not.
    """
    if wrong:
        cause = "Something between the new units and what reads them does not keep a copy a copy, or a zero a zero"
        if not OPERATORS[candidate.operator].widens:
            cause = "What is inserted is to do nothing, and changes what runs through it"
        raise ValueError(f"{candidate} is not exact here{even}: {wrong}. {cause}")
