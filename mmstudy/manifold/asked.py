"""Sizes as the face offers them: networks and a batch in, one size for each network, in the order given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from mmstudy.batched import asked, determinism, engine, hooks
from mmstudy.batched.audit import Noted, audit, noted
from mmstudy.batched.derivatives import RECOMPUTED
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, classification, stack, vectors
from mmstudy.batched.objective import MINIBATCH, Objective, of_networks
from mmstudy.core import arguments
from mmstudy.core.seeds import generator
from mmstudy.core.threads import alone
from mmstudy.manifold.estimators import ESTIMATORS

MARGIN = 0.1  # nats above the first network's loss: the default level
RESOLUTIONS = 10.0  # how many times what rounding does a level must at least be above a loss
DEFAULT = "extent"
COLUMNS = ("size", "size_se", "status", "cost")


@alone
def size(
    network: nn.Module | Sequence[nn.Module],
    batch: Batch,
    level: float | int | None = None,
    method: str = DEFAULT,
    seed: int = 0,
    loss_fn: LossFn = classification,
    samples: int | None = None,
    minibatch: int | None = None,
) -> xr.Dataset:
    """The size of the manifold of connected minima around each network.

    Networks of one shape draw from one stream as they train: with dropout, a network's size depends on which others are
    measured beside it, and in which order.

    Args:
        network: one or several, of any architectures; those of one shape are measured together.
        batch: tensors in a tuple, dict or the like, whose first axes count the examples.
        level: one height of the loss for all networks; by default the first network's loss + 0.1.
        method: a key of `ESTIMATORS`, which says what it measures and in which unit.
        seed: of all draws.
        loss_fn: (model, batch) → mean loss; batch normalization uses its stored statistics.
        samples: rays, children, …; by default those of the method's budget, `ESTIMATORS[method].budget`.
        minibatch: of training, where a method trains; by default 128, or half of the examples if there are no more.

    Returns:
        Dataset over network: `size`, whose unit is an attribute, its standard error `size_se`, `status`, `cost` in
        example-evaluations, and `level`. A status other than "ok" says why the number cannot be trusted, or is NaN
        ("outside": the loss is above the level; "unbounded", "censored": the level was not met; the method's module
        names the others).

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, a level below the networks' losses, or what the method cannot measure:
            where it takes gradients, hooks on these or activation checkpointing.
        NotImplementedError: torch has no derivative that the method takes.
    """
    arguments.one_of(method, ESTIMATORS, "method")
    seed = arguments.whole(seed, "seed")
    (found,) = _all_measured(network, batch, level, [method], seed, loss_fn, samples, minibatch)
    return found


@alone
def sizes(
    network: nn.Module | Sequence[nn.Module],
    batch: Batch,
    level: float | int | None = None,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    loss_fn: LossFn = classification,
    samples: int | None = None,
    minibatch: int | None = None,
) -> xr.Dataset:
    """Several sizes of each network at one level, over (estimator, network); see `size`.

    Args:
        methods: keys of `ESTIMATORS`, by default all; the coordinate `unit` has their units.

    Raises:
        TypeError: methods that are no list, and what `size` refuses.
        ValueError: what `size` refuses.
        NotImplementedError: likewise; the message names the method to leave out.
    """
    methods = list(ESTIMATORS) if methods is None else methods
    if isinstance(methods, str) or not isinstance(methods, list | tuple) or not methods:
        raise TypeError(f"methods must be a list of names of {', '.join(ESTIMATORS)}; got {methods!r}")
    for method in methods:
        arguments.one_of(method, ESTIMATORS, "method")
    seed = arguments.whole(seed, "seed")
    found = _all_measured(network, batch, level, methods, seed, loss_fn, samples, minibatch)
    units: dict[str, Any] = {"unit": ("estimator", [each.attrs["unit"] for each in found])}
    whole = xr.concat([each.drop_vars("level").drop_attrs() for each in found], "estimator")
    about = {"seed": seed, "normalization": "frozen"}
    return whole.assign(level=found[0]["level"]).assign_coords(estimator=list(methods), **units).assign_attrs(about)


@alone
def check(
    network: nn.Module | Sequence[nn.Module],
    batch: Batch,
    loss_fn: LossFn = classification,
    normalization: str = "frozen",
) -> None:
    """Refuse what would turn a measurement into noise, or into another number than plain calls give.

    Args:
        normalization: what batch normalization uses: its stored statistics ("frozen"), or those of the batch
            ("recomputed").

    Raises:
        TypeError: an argument of another kind.
        ValueError: something is random in evaluation mode, or keeps a state; the loss is no mean over the examples, or
            no finite number; a parameter is read elsewhere than at its place. The message names it.
    """
    arguments.one_of(normalization, ("frozen", "recomputed"), "normalization")
    networks, batch, losses = asked.fit(network, batch, loss_fn)
    for i, (each, loss) in enumerate(zip(networks, losses, strict=True)):
        try:
            asked.measurable([each], batch, loss_fn, [loss])
            with asked.untouched([each]):
                determinism.check(each, batch, loss_fn, normalization)
        except ValueError as error:
            if len(networks) == 1:
                raise
            raise ValueError(f"network {i} ({type(each).__name__}): {error}") from error


class _Group(NamedTuple):
    """Networks of one shape, by their places among those given."""

    places: list[int]
    networks: list[nn.Module]
    ensemble: Ensemble
    objective: Noted
    points: Tensor
    losses: list[float]


def _height(level: float | int | None, losses: list[float]) -> float:
    height = losses[0] + MARGIN if level is None else arguments.number(level, "level")
    if height < min(losses):
        raise ValueError(
            f"level must be above the networks' losses, the least of which is {min(losses):g}; got {level}"
        )
    return height


def _all_measured(
    network: nn.Module | Sequence[nn.Module],
    batch: Batch,
    level: float | int | None,
    methods: Sequence[str],
    seed: int,
    loss_fn: LossFn,
    samples: int | None,
    minibatch: int | None,
) -> list[xr.Dataset]:
    """What each method measures, once all arguments have been looked at; the networks stay as they are."""
    networks, batch, losses = asked.fit(network, batch, loss_fn)
    height, groups = _prepared(networks, batch, losses, level, methods, loss_fn, minibatch)
    found = []
    for method in methods:
        with asked.untouched(networks):
            found.append(_measured(groups, height, method, samples, seed))
        for each in groups:
            audit(each.objective, each.ensemble, each.networks, each.points, each.losses, batch, loss_fn)
    return found


def _prepared(
    networks: Sequence[nn.Module],
    batch: Batch,
    losses: list[float],
    level: float | int | None,
    methods: Sequence[str],
    loss_fn: LossFn,
    minibatch: int | None,
) -> tuple[float, list[_Group]]:
    """The level, and the networks by their shapes."""
    gradients = any(ESTIMATORS[method].gradients for method in methods)
    for each in networks if gradients else ():
        hooks.refuse(each)
    examples, height = engine.count(batch), _height(level, losses)
    if minibatch is not None:
        minibatch = arguments.whole(minibatch, "minibatch", 1, examples)
    few = minibatch or (MINIBATCH if examples > MINIBATCH else max(1, examples // 2))  # all of them would part nobody
    found = []
    for places in _of_one_shape(networks):
        some, plain = [networks[i] for i in places], [losses[i] for i in places]
        ensemble = asked.measurable(some, batch, loss_fn, plain)
        if gradients:
            asked.check_gradients(ensemble, some, batch, loss_fn)
        with asked.untouched(some):
            objective, points = of_networks(ensemble, batch, loss_fn, minibatch=few), vectors(ensemble)
            _resolved(objective, points, height)
        found.append(_Group(places, some, ensemble, noted(objective, height), points, plain))
    return height, found


def _resolved(objective: Objective, points: Tensor, level: float) -> None:
    """Refuse a level that is no further above a network's loss than rounding of its parameters moves this.

    Raises:
        ValueError: it is not.
    """
    eps, stream = torch.finfo(points.dtype).eps, generator("rounding")
    signs = torch.randint(2, (len(points), 4, points.shape[1]), generator=stream).to(points) * 2 - 1
    loss = objective(points)
    moves = (objective(points.unsqueeze(1) * (1 + eps * signs)) - loss.unsqueeze(1)).abs().amax(1)
    resolution = torch.maximum(moves, eps * loss.abs())
    for k, (own, least) in enumerate(zip(loss.tolist(), resolution.tolist(), strict=True)):
        if 0 < level - own < RESOLUTIONS * least:
            kind = str(points.dtype).removeprefix("torch.")
            raise ValueError(
                f"the level lies {level - own:.1e} above the loss of network {k}, {own:g}, and rounding of its "
                f"parameters moves that by {least:.1e} in {kind}: give a higher level, standardize the targets, or "
                "take network.double() and a batch in float64"
            )


def _measured(groups: list[_Group], height: float, method: str, samples: int | None, seed: int) -> xr.Dataset:
    budget = ESTIMATORS[method].budget
    if samples is not None:
        budget = replace(budget, samples=arguments.whole(samples, "samples", 2))
    needed = max(4 * each.points[0].nbytes * budget.samples for each in groups)
    arguments.fits(needed, f"{budget.samples} samples of a network's parameters")
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        stream = generator("size", method, seed)
        with _named(method):
            measured = ESTIMATORS[method].measure(group.objective, group.points, height, stream, budget)
        for row, i in enumerate(group.places):
            found[i] = {name: measured[name].values[row] for name in COLUMNS}
    dataset = xr.Dataset({name: ("network", np.array([found[i][name] for i in sorted(found)])) for name in COLUMNS})
    about = {"method": method, "unit": ESTIMATORS[method].unit, "seed": seed, "normalization": "frozen"}
    return dataset.assign(level=height).assign_attrs(about)


@contextmanager
def _named(method: str) -> Iterator[None]:
    """What a method cannot measure, in a sentence that names it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{method} cannot measure this: {error}") from error
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise ValueError(f"{method} cannot measure this: {RECOMPUTED}") from error
        if not isinstance(error, NotImplementedError) and "is not implemented" not in str(error):
            raise
        raise NotImplementedError(
            f"{method} takes a derivative that torch does not have: {error}. Leave {method} out, or take another loss"
        ) from error


def _of_one_shape(networks: Sequence[nn.Module]) -> list[list[int]]:
    """The networks' places, those that can be stacked together."""
    groups: list[list[int]] = []
    for i, network in enumerate(networks):
        for group in groups:
            try:
                stack([networks[group[0]], network])
            except ValueError:
                continue
            group.append(i)
            break
        else:
            groups.append([i])
    return groups
