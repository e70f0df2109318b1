"""Which numbers kept by modules must change where couplings have grown.

Sizes are found by calls, confirmed by a trace; which of equal fractions is an eps, by a trace.
"""

from collections.abc import Sequence
from functools import cache, partial
from math import isclose
from typing import Any

import torch
from torch import nn

from mmstudy.core import arguments
from mmstudy.core.networks import evaluating
from mmstudy.expansion import attributes
from mmstudy.expansion.differences import change
from mmstudy.expansion.replacing import sharing
from mmstudy.expansion.slots import Slot, at
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import Coupling, structure
from mmstudy.tracing.trace import trace

SAME = 1e-3  # a change of the outputs, as a share of how they vary, that is taken for rounding when sizes are chosen
DEEP_TRIES = 16  # ways to choose among all that modules keep: many of these numbers are a configuration's
DOES_NOT_RUN = "does not run with the predicted shapes"
WRITTEN = "Is one written into its code? Let the network compute it from its tensors, e.g. x.shape[-1]"

Grown = Sequence[tuple[Coupling, int]]  # couplings of one trace, and their new numbers of units


class DoesNotRun(ValueError):
    """A grown network does not run, or is another function, whichever of the sizes that it keeps change."""


def found(network: nn.Module, old: nn.Module, grown: Grown, call: Call) -> list[attributes.Size]:
    """The sizes kept by modules that must change; they are tried out on the network itself.

    With its tensors, which the plans alone have made, it is the same function as the old one, as far as it can be. A
    trace, which is dear, only confirms what calls have found, unless they have found wrong.

    Public attributes are looked at first, all numbers of a tuple that may follow as one, then one by one; where they
    will not do, all that modules keep.

    Raises:
        DoesNotRun: the network runs with none of the choices, or there are too many.
    """

    def lengths(path: str) -> dict[int, int]:
        return {now: then for coupling, size in grown for now, then in coupling.lengths(path, size).items()}

    with evaluating(old), torch.no_grad():
        before = call.of(old)
    kept = partial(attributes.kept, network, lengths, grown[0][0].protected)
    places = kept()
    chosen, problem = _needed(network, places, call, before, grown)
    hopeful = chosen is None and not isinstance(problem, attributes.TooManyError)
    for deeply in (None, old) if hopeful else ():
        for apart in (False, True):
            more = kept(beside=deeply, apart=apart)
            if chosen is None and len(more) > len(places):
                tries = attributes.TRIES if deeply is None else DEEP_TRIES
                chosen, _ = _needed(network, more, call, before, grown, tries)
                places = more if chosen is not None or not places else places
    if chosen is None:
        raise DoesNotRun(_refusal(grown, places, problem)) from problem
    some = [places[i] for i in sorted(chosen)]
    with attributes.changed(network, some):
        values = [_outermost(at(network.get_submodule(path), one.place)) for one in some for path in one.paths]
    paths = [path for one in some for path in one.paths]
    return list(dict.fromkeys((path, slot.path, slot.value) for path, slot in zip(paths, values, strict=True)))


def _outermost(slot: Slot) -> Slot:
    """The place of a whole tuple instead of that of an item."""
    return slot.owner if isinstance(slot.owner, Slot) else slot


def _needed(
    network: nn.Module,
    places: Sequence[attributes.Kept],
    call: Call,
    before: Any,
    grown: Grown,
    tries: int = attributes.TRIES,
) -> tuple[frozenset[int] | None, Exception | None]:
    """Which of the sizes must change; None of a choice that runs, and the last thing that was wrong."""
    problems: list[Exception] = []
    expected, confirms = structure(grown), grown[0][0].confirms

    @cache
    def outcome(chosen: frozenset[int]) -> float | None:
        with attributes.changed(network, (places[i] for i in chosen)):
            try:
                with evaluating(network), torch.no_grad():  # says no sooner than a trace does, and more quietly
                    return change(before, call.of(network))
            except Exception as error:  # whatever a network does when its sizes do not fit
                problems[:] = [error.with_traceback(None)]  # which would keep all that was computed
                return None

    @cache
    def predicted(chosen: frozenset[int]) -> bool:
        with attributes.changed(network, (places[i] for i in chosen)):
            try:
                return trace(network, call).structure() == expected
            except Exception as error:  # as above
                problems[:] = [error.with_traceback(None)]
                return False

    try:
        chosen = attributes.needed(len(places), outcome, SAME, tries=tries)
        if chosen is None or (confirms and not predicted(chosen)):
            chosen = attributes.needed(len(places), outcome, SAME, predicted, tries)
    except attributes.TooManyError as error:
        return None, error
    return chosen, problems[-1] if problems else None


def eps(network: nn.Module, coupling: Coupling, path: str, keys: list[str], then: float, call: Call) -> list[str]:
    """Which attributes of a module are the eps of its normalizations of a coupling, of those that are equal to it.

    A trace shows what the eps becomes with them.

    Args:
        path: that of the module.
        keys: the attributes.
        then: what the eps is to become.

    Returns:
        As few as make it so, and none that must stay; all, if they do not.
    """
    now = getattr(network.get_submodule(path), keys[0])
    scales = {norm.scale for norm in coupling.normalizations if (norm.module, norm.eps) == (path, now)}
    free = [key for key in keys if not attributes.stays(coupling.protected, attributes.name(path, key))]

    def becomes(chosen: frozenset[int]) -> bool:
        other = sharing(network)
        for i in chosen:
            setattr(other.get_submodule(path), free[i], then)
        found = [n.eps for n in trace(other, call).normalizations if n.module == path and n.scale in scales]
        return bool(found) and all(number is not None and isclose(number, then) for number in found)

    if not free or not becomes(frozenset(range(len(free)))):
        return keys
    return [free[i] for i in attributes.fewest(frozenset(), False, tuple(range(len(free))), becomes)]


def _refusal(grown: Grown, places: Sequence[attributes.Kept], problem: Exception | None) -> str:
    """What is to be said of a network that does not run, whichever sizes change."""
    where = " and ".join(coupling.name for coupling, _ in grown)
    sizes = " and ".join(f"from {coupling.size} to {size}" for coupling, size in grown)
    together, tried = " at once" if len(grown) > 1 else "", ", ".join(map(str, places))
    grows = f"{where} cannot grow {sizes}{together}"
    if isinstance(problem, attributes.TooManyError):
        return f"{grows}: {problem} ({tried}). Let the network compute them from its tensors"
    which = f"whichever sizes kept by its modules ({tried}) change" if tried else "and its modules keep no such size"
    why = f": {arguments.first_line(problem)}" if problem else ""
    helps = "If one of them serves other couplings too, name them together" if tried and not together else WRITTEN
    return f"{grows}: the network {DOES_NOT_RUN}, {which}{why}. {helps}"
