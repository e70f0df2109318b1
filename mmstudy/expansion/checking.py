"""What is asked of every grown network: that it runs where the old one did, and that it is what its operator promises.

The one it is held against is a `Reference`, which remembers what the old network did.
"""

from collections.abc import Collection, Mapping, Sequence
from inspect import isfunction

from torch import nn

from mmstudy.core import arguments, precision
from mmstudy.core.memory import one_storage
from mmstudy.expansion.exactness import Grown, Reference
from mmstudy.expansion.operators import EXACTLY, OPERATORS, UP_TO_NOISE
from mmstudy.expansion.widening import exact
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import fixed_in, of_trace
from mmstudy.tracing.graph import Trace


def check(
    candidate,
    references: Sequence[Reference],
    new: nn.Module,
    origin: Mapping[str, str],
    inserted: Collection[str],
    coarsest: float,
    elsewhere: bool = True,
) -> None:
    """Refuse a grown network that fails, or is not exact though its operator promises it.

    Args:
        candidate: how it has grown.
        references: the old network on the batches that were given, the first of them first.
        origin: parameter of the new network → the old one that it is, or comes from.
        inserted: parameters of layers or blocks that were not there before.
        coarsest: see `exactness.Grown`.
        elsewhere: on batches of other sizes and in training mode too.

    Raises:
        ValueError: it does, or is not.
    """
    promised = OPERATORS[candidate.operator].preserves == EXACTLY
    grown = Grown(new, references[0].network, origin, coarsest=coarsest)
    for reference in (*references, *(references[0].others if elsewhere else ())):
        first, where = reference is references[0], f"on a batch of shape {reference.call.shapes}"
        if promised:
            try:
                wrong = grown.broken(reference)
            except Exception as error:  # whatever a network does when a size that it keeps does not fit
                raise ValueError(
                    f"after {candidate} the network fails {where}: {arguments.first_line(error)}"
                ) from error
            exact(candidate, wrong, "" if first else f", {where}")
        elif not first:
            _runs(candidate, new, reference, where)
    if promised and (plain := references[0].without_autocast):
        with precision.autocast(off=True):
            own = Grown(new, references[0].network, origin, coarsest=plain.traced.coarsest if coarsest else 0.0)
            exact(candidate, own.broken(plain), ", without its autocast")
    thoroughly = promised and OPERATORS[candidate.operator].widens and not references[0].roughly
    if thoroughly and (said := grown.unseen(references)):
        raise ValueError(f"{candidate} is not known to be exact here: {said}")
    reference = references[0].in_training
    if not elsewhere or not reference.runs:
        return
    if promised and not _fitted(candidate, new, inserted) and not reference.draws:
        try:
            wrong = grown.broken(reference)
        except Exception as error:  # as above
            raise ValueError(
                f"after {candidate} the network fails in training mode: {arguments.first_line(error)}"
            ) from error
        exact(candidate, wrong, ", in training mode")
    else:
        _runs(candidate, new, reference, "in training mode")


def comparable(candidate, references: Sequence[Reference]) -> None:
    """Refuse a network of which no copy can be held against it, before anything is done.

    Raises:
        ValueError: parameters lie in one storage; a copy reads the network's own tensors; or it draws random numbers
            in evaluation mode, or puts out whole numbers only, and the operator promises something.
    """
    if shared := one_storage(references[0].network):
        raise ValueError(shared)
    if outside := (*references[0].outside, *references[0].in_training.outside):
        kept = _holders(references[0].network)
        raise ValueError(
            f"a copy of the network still reads {', '.join(dict.fromkeys(outside))} of the network itself: functions "
            f"that it keeps{kept} hold it, or a part of it. Let them be methods, or take what they use as arguments"
        )
    promised = OPERATORS[candidate.operator].preserves in (EXACTLY, UP_TO_NOISE)
    if promised and references[0].seen.whole:
        raise ValueError(
            "the network puts out whole numbers only (classes, tokens, masks), in which a small change does not show: "
            "let it return what they are chosen by, such as logits"
        )
    if promised and any(reference.draws for reference in references):
        raise ValueError(
            "the network draws random numbers in evaluation mode, so that nothing can be compared: turn them off, e.g. "
            "F.dropout(x, p, training=self.training)"
        )


def same_units(candidate, traced: Trace, other: Trace, call: Call) -> None:
    """Refuse a network that wires the units that shall grow otherwise on another batch.

    Raises:
        ValueError: it does.
    """
    one, two = of_trace(traced), of_trace(other)
    for place in candidate.locations if OPERATORS[candidate.operator].widens else ():
        here, there = ((found[place].size, found[place].uses) if place in found else None for found in (one, two))
        if here and here != there:
            reason = fixed_in(other).get(place, "other tensors have them")
            raise ValueError(
                f"{place} cannot grow: on a batch of shape {call.shapes} its units are others, as {reason}"
            )


def _holders(network: nn.Module) -> str:
    """The attributes of modules that are functions with something in their closure, in brackets."""
    found = [
        f"{path}.{key}".lstrip(".")
        for path, module in network.named_modules()
        for key, value in vars(module).items()
        if getattr(value, "__closure__", None) or (isfunction(value) and value.__defaults__)
    ]
    return f" ({', '.join(found)})" if found else ""


def _fitted(candidate, new: nn.Module, inserted: Collection[str]) -> bool:
    """Whether what is inserted has statistics, fitted to what runs through in evaluation mode: exact there alone."""
    owners = (new.get_submodule(name.rpartition(".")[0]) for name in inserted)
    return any(owner._buffers for owner in owners) and OPERATORS[candidate.operator].way.fits


def _runs(candidate, new: nn.Module, reference: Reference, where: str) -> None:
    try:
        reference.of(new)
    except Exception as error:  # as above
        raise ValueError(f"after {candidate} the network fails {where}: {arguments.first_line(error)}") from error
