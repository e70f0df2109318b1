"""Which expansions are ranked when the user names none: every operator, where growth is worth comparing."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.core import progress
from mmstudy.expansion import asked, pools
from mmstudy.expansion.attributes import starred
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.coverage import Coverage
from mmstudy.expansion.exactness import Reference
from mmstudy.expansion.pools import Size, size_of
from mmstudy.tracing.calls import of_loss
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.trace import trace

FEW = 4  # groups, each of which is widened alone
FACTORS = (2, 4)


def default(network: nn.Module, batch: Batch, loss_fn: LossFn, covered: Coverage) -> dict[str, Candidate]:
    """Twice and four times each group of units and all together, one more layer at each place, by three ways each.

    Where there are many groups, those that differ only in the numbers of their layers grow together, and layers are
    inserted behind the first, the middle and the last member of a list only.

    Raises:
        ValueError: the coverage leaves nothing.
    """
    alike: dict[str, list[str]] = {}
    for name in covered.growing:
        alike.setdefault(name if len(covered.growing) <= FEW else starred(name), []).append(name)
    if covered.joint:
        alike["&".join(dict.fromkeys(map(starred, covered.joint)))] = list(covered.joint)
    where = ["&".join(names) for names in alike.values()]
    if 1 < len(covered.growing) <= FEW:
        where.append("&".join(covered.growing))
    exact = [way for row in covered.rows if not row.units for way in row.exact]
    options: dict[str, Any] = {
        "factors": FACTORS if where else (),
        "matched": (2,) if where else (),
        "extra_layers": (1,),
        "deeper": (*dict.fromkeys(exact[:1]), "deeper_random"),
    }
    if where:
        options["locations"] = where
    pool = asked.candidate_pool(network, batch, loss_fn, covered=covered, **options)
    kept, short = _ends_and_middles(network), {"&".join(names): kind for kind, names in alike.items()}
    found = {}
    for label, candidate in pool.items():
        operator, *place = label.split(" ")
        if place[-1] != "+1" or candidate.locations[0] in kept:
            found[" ".join([operator, *(short.get(word, word) for word in place)])] = candidate
    return found


def _ends_and_middles(network: nn.Module) -> set[str]:
    lists: dict[str, list[str]] = {}
    for place in pools.places(network):
        lists.setdefault(place.rpartition(".")[0], []).append(place)
    return {names[i] for names in lists.values() for i in (0, len(names) // 2, len(names) - 1)}


def traced(network: nn.Module, batch: Batch, loss_fn: LossFn) -> Trace | None:
    """The trace that all candidates grow by; None where the network cannot be followed, as growing it will say."""
    try:
        return trace(network, of_loss(network, batch, loss_fn))
    except (ValueError, NotImplementedError):
        return None


def sizes(
    network: nn.Module, pool: Mapping[str, Candidate], batch: Batch, loss_fn: LossFn, known: Trace | None = None
) -> tuple[dict[str, Size], dict[str, str]]:
    """The size of each candidate's network, and why others cannot be built; each is built once, and let go."""
    found, refused = {}, {}
    references = [Reference(network, of_loss(network, batch, loss_fn))]
    for label, candidate in progress.through(pool.items(), "building"):
        try:
            grown = candidate.expand(network, batch, loss_fn, traced=known, references=references)
            found[label] = size_of(grown, batch, loss_fn)
        except (ValueError, NotImplementedError) as error:
            refused[label] = str(error)
    return found, refused
