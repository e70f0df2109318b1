"""Expansion as the face offers it: a network and a batch in, arguments checked, one loss convention."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments
from mmstudy.core.threads import alone
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.configurations import UNLOADABLE
from mmstudy.expansion.coverage import Coverage, of_network
from mmstudy.expansion.given import fit, further
from mmstudy.expansion.operators import OPERATORS
from mmstudy.tracing import couplings as traced
from mmstudy.tracing.calls import Call, Output
from mmstudy.tracing.couplings import Coupling
from mmstudy.tracing.trace import trace

Step = tuple[str, Mapping[str, int]]  # (operator, location → its new size, or the number of layers to insert there)


@alone
def couplings(
    network: nn.Module, batch: Batch | Call, loss_fn: LossFn = classification, *, output: Output = None
) -> dict[str, Coupling]:
    """Where a network can get wider, by name: the groups of hidden units that must grow together.

    It warns where there is no such place; why, `coverage` says.

    Args:
        batch: a tensor is what the network is called with, and without a loss of one's own a mapping gives arguments by
            name; of any other batch `loss_fn` calls the network.
        loss_fn: (model, batch) → mean loss.
        output: which part of what the network returns must stay; see `tracing.calls.Call`.

    Returns:
        Name → coupling: its `size`, the number of units, and its `uses`, the axes of tensors that have them.

    Raises:
        ValueError: the network cannot be called on the batch.
        NotImplementedError: torch.export cannot follow it.
    """
    network, _, call = fit(network, batch, loss_fn, output)
    found = traced.couplings(network, call)
    if not found:  # the level: of the caller, behind the decorator
        warnings.warn("no layer of this network can get wider; mm.coverage(network, batch) says why", stacklevel=3)
    return found


@alone
def coverage(
    network: nn.Module,
    batch: Batch | Call,
    loss_fn: LossFn = classification,
    *,
    also: Sequence[Batch | Call] = (),
    output: Output = None,
) -> Coverage:
    """What of a network can be expanded, which operators are exact there, and what is refused and why.

    A row for every group of units that a layer makes, for parameters that are in none, and for every list of layers.
    Of groups that are the same but for the numbers of their layers one is tried, by every operator that promises to be
    exact. A network of more than 64 MiB is tried in its own types of numbers instead of float64, and, if it runs on
    them, on two examples of four words; what is expanded is checked in full.

    Args:
        network: see `couplings` for these arguments.
        also: more batches, of other sizes and lengths, on which operators are checked.

    Returns:
        A report that prints, shows in a notebook and has a `table`: by location units, exact operators, refusals.
    """
    network, batch, call = fit(network, batch, loss_fn, output)
    more = [each for _, each in further(network, also, loss_fn, output)]
    return of_network(network, batch, call, trace(network, call), loss_fn, more)


@alone
def candidate_pool(
    network: nn.Module,
    batch: Batch | Call,
    loss_fn: LossFn = classification,
    *,
    covered: Coverage | None = None,
    output: Output = None,
    **options: Any,
) -> dict[str, Candidate]:
    """Candidates that are worth comparing, by label.

    By default net2net, zero_outgoing and random at every place, by factors of 1.5, 2, 4 and 8; deeper_identity and
    deeper_random, by one layer and by two. For the other options see `pools.candidate_pool`.

    Args:
        covered: the coverage of the network; candidates of which it says that they are refused, or not exact though
            their operator promises it, are left out.
        output: which part of what the network returns must stay; see `expand`.

    Raises:
        TypeError: an argument of another kind.
        ValueError: nothing is left, an option is out of range, or what `couplings` refuses.
    """
    pools.check_options(options)
    if covered is not None and not isinstance(covered, Coverage):
        raise TypeError(f"covered must be what mm.coverage(network, batch) returns; got {arguments.described(covered)}")
    network, _, call = fit(network, batch, loss_fn, output)
    if covered is not None and (covered.growing or covered.joint):
        at_once = ["&".join(some) for some in (covered.growing, covered.joint) if len(some) > 1]
        options = {"locations": [*covered.growing, *at_once]} | options
    pool = pools.candidate_pool(network, call, **options)
    if covered is not None:
        pool = {label: candidate for label, candidate in pool.items() if covered.allows(candidate)}
    if not pool:
        raise ValueError("the coverage leaves no candidate: give other operators, or look at its reasons")
    return pool


@alone
def pool_table(
    network: nn.Module,
    batch: Batch | Call,
    pool: Mapping[str, Candidate],
    loss_fn: LossFn = classification,
    *,
    output: Output = None,
) -> pd.DataFrame:
    """What a pool holds: a row for each candidate, which is built to see it.

    Args:
        pool: candidates by label, e.g. from `candidate_pool`; for the other arguments see `expand`.

    Returns:
        Table by label: `operator`; `description`; `parameters`; `flops` of a forward pass of one example; `same_size`,
        candidates of other architectures with as many parameters, within 2%; `refused`, why it cannot be built.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an empty pool, or what `couplings` refuses.
    """
    if not isinstance(pool, Mapping) or not all(isinstance(each, Candidate) for each in pool.values()):
        raise TypeError(
            f"pool must map labels to Candidates, as mm.candidate_pool returns; got {arguments.described(pool)}"
        )
    if not pool:
        raise ValueError("pool must hold one candidate at least; got none")
    network, batch, _ = fit(network, batch, loss_fn, output)
    return pools.pool_table(pool, network, batch, loss_fn, output)


@alone
def expand(
    network: nn.Module,
    batch: Batch,
    how: str | Candidate | Sequence[Step],
    where: Mapping[str, int] | None = None,
    seed: int = 0,
    loss_fn: LossFn = classification,
    *,
    keep: Sequence[str] = (),
    also: Sequence[Batch | Call] = (),
    output: Output = None,
) -> nn.Module:
    """The expanded network; the old one is not touched.

    It warns where the network keeps a configuration and none fits the expanded one.

    Args:
        network: any; what cannot be expanded is refused, and `coverage` says it beforehand.
        batch: as in `couplings`.
        how: an operator (a key of `OPERATORS`) with `where`; or a list of such steps (operator, where), done one after
            another; or a `Candidate`, which has its own seed.
        where: location → its new number of units; for operators that deepen, → the number of layers to insert there.
        loss_fn: (model, batch) → mean loss; operators that learn do so from it.
        keep: numbers that modules keep and that must stay, as patterns of paths: "blocks.0.horizon", "*.layer_idx".
        also: more batches, of other sizes and lengths, on which the expansion is checked, beside those that are made
            of this one: of twice and half the examples, and for whole numbers of twice and half the length.
        output: which part of what the network returns must stay: a key or attribute, e.g. "logits", a place in a tuple,
            or a function of it. By default every output of real or complex numbers; integers and booleans are
            compared only where there is no other output.

    Raises:
        TypeError: an argument of another kind.
        ValueError: one that is out of range, a location that the network does not have, or an operator that does not
            fit there, or would break its promise.
        NotImplementedError: torch.export cannot follow the network.
    """
    candidate = _candidate(how, where, arguments.whole(seed, "seed"))
    grown = candidate.grow(network, batch, loss_fn, keep=keep, also=also, output=output)
    if UNLOADABLE in grown.configuration:
        warnings.warn(grown.configuration, stacklevel=3)  # of the caller, behind the decorator
    return grown.network


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
