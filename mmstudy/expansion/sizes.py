"""Which sizes kept by modules must change where couplings have grown: found by calls, confirmed by a trace."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from mmstudy.core.networks import evaluating
from mmstudy.expansion import attributes
from mmstudy.expansion.exactness import change
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import Coupling, structure
from mmstudy.tracing.trace import trace

SAME = 1e-3  # a change of the outputs, as a share of how they vary, that is taken for rounding when sizes are chosen

Grown = Sequence[tuple[Coupling, int]]  # couplings of one trace, and their new numbers of units


class DoesNotRun(ValueError):
    """A grown network does not run, or is another function, whichever of the sizes that it keeps change."""


def found(network: nn.Module, old: nn.Module, grown: Grown, call: Call) -> list[attributes.Size]:
    """The sizes kept by modules that must change; they are tried out on the network itself.

    With its tensors, which the plans alone have made, it is the same function as the old one, as far as it can be. A
    trace, which is dear, only confirms what calls have found, unless they have found wrong.

    Raises:
        DoesNotRun: the network runs with none of the choices, or there are too many.
    """

    def lengths(path: str) -> dict[int, int]:
        return {now: then for coupling, size in grown for now, then in coupling.lengths(path, size).items()}

    places, expected = attributes.kept(network, lengths, grown[0][0].protected), structure(grown)
    problems: list[Exception] = []
    with evaluating(old), torch.no_grad():
        before = call.of(old)

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

    tried = ", ".join(map(str, places)) or "none"
    together = " at once" if len(grown) > 1 else ""
    where = " and ".join(coupling.name for coupling, _ in grown)
    sizes = " and ".join(f"from {coupling.size} to {size}" for coupling, size in grown)
    grows = f"{where} cannot grow {sizes}{together}"
    try:
        chosen = attributes.needed(len(places), outcome, SAME)
        if chosen is None or not predicted(chosen):
            chosen = attributes.needed(len(places), outcome, SAME, predicted)
    except ValueError as error:
        raise DoesNotRun(f"{grows}: {error} ({tried}). Let the network compute them from its tensors") from error
    if chosen is None:
        others = "" if together else ". If one of them serves other couplings too, name them together"
        raise DoesNotRun(
            f"{grows}: the network does not run with the predicted shapes, whichever sizes kept by its modules "
            f"({tried}) change{others}"
        ) from (problems[-1] if problems else None)
    return [(path, places[i].key, places[i].then) for i in sorted(chosen) for path in places[i].paths]
