"""Expansion as the face offers it: a network and a batch in, arguments checked, one loss convention."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched import asked
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS
from mmstudy.tracing import couplings as traced
from mmstudy.tracing.calls import Call, of_loss, tensors
from mmstudy.tracing.couplings import Coupling

Step = tuple[str, Mapping[str, int]]  # (operator, location → its new size, or the number of layers to insert there)


def couplings(network: nn.Module, batch: Batch, loss_fn: LossFn = classification) -> dict[str, Coupling]:
    """Where a network can get wider, by name: the groups of hidden units that must grow together.

    Args:
        batch: a tensor is what the network is called with; of any other batch `loss_fn` calls the network.
        loss_fn: (model, batch) → mean loss.
    """
    network, _, call = _called(network, batch, loss_fn)
    return traced.couplings(network, call)


def candidate_pool(
    network: nn.Module, batch: Batch, loss_fn: LossFn = classification, **options: Any
) -> dict[str, Candidate]:
    """Candidates that are worth comparing, by label; the options are those of `pools.candidate_pool`."""
    known = list(signature(pools.candidate_pool).parameters)[2:]
    for name in options:
        arguments.one_of(name, known, "option of candidate_pool")
    network, _, call = _called(network, batch, loss_fn)
    return pools.candidate_pool(network, call, **options)


def expand(
    network: nn.Module,
    batch: Batch,
    how: str | Candidate | Sequence[Step],
    where: Mapping[str, int] | None = None,
    seed: int = 0,
    loss_fn: LossFn = classification,
) -> nn.Module:
    """The expanded network; the old one is not touched.

    Args:
        how: an operator (a key of `OPERATORS`) with `where`; or a list of such steps (operator, where), done one after
            another; or a `Candidate`, which has its own seed.
        where: location → its new number of units; for operators that deepen, → the number of layers to insert there.
        loss_fn: (model, batch) → mean loss; operators that learn do so from it.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range; a location that the network does not have;
            an operator that does not fit there.
    """
    candidate = _candidate(how, where, arguments.whole(seed, "seed"))
    network, batch, _ = _called(network, batch, loss_fn)
    return candidate.expand(network, batch, loss_fn)


def _called(network: Any, batch: Any, loss_fn: Any) -> tuple[nn.Module, Batch, Call]:
    """The network, the batch, and how one is called on the other, once both are known to be fit for each other."""
    network, batch = arguments.network(network), arguments.batch(batch)
    loss_fn = arguments.function(loss_fn)
    if not isinstance(batch, Tensor) and loss_fn is classification:
        asked.classes(network, batch)
    call = of_loss(network, batch, loss_fn)
    asked.tried([network], batch, lambda model, _: _probe(call.of(model)))
    return network, batch, call


def _probe(outputs: Any) -> Tensor:
    return sum((t.double().mean() for t in tensors(outputs)), torch.zeros((), dtype=torch.float64))


def _candidate(how: Any, where: Any, seed: int) -> Candidate:
    if isinstance(how, Candidate):
        if where is not None:
            raise TypeError(f"a Candidate says where it grows: leave out where={arguments.described(where)}")
        return how
    steps = [(how, where)] if isinstance(how, str) else how
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(s, tuple) and len(s) == 2 for s in steps):
        raise TypeError(
            f"needs an operator, a Candidate or a list of (operator, where); got {arguments.described(how)}"
        )
    candidate = None
    for operator, places in reversed(steps):
        arguments.one_of(operator, OPERATORS, "operator")
        if not isinstance(places, Mapping) or not places or not all(isinstance(name, str) for name in places):
            example = "e.g. {'hidden.0': 64}"
            raise TypeError(f"where must map locations to whole numbers, {example}; got {arguments.described(places)}")
        sizes = tuple(arguments.whole(size, f"where[{name!r}]", 1, 10**6) for name, size in places.items())
        candidate = Candidate(operator, tuple(places), sizes, seed, candidate)
    assert candidate is not None
    return candidate
