"""How a network is rebuilt around groups of units that have grown: tensors, and sizes that modules keep."""

import gc
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmstudy.core.networks import named_tensors
from mmstudy.expansion import attributes, sizes
from mmstudy.expansion.attributes import guard, relabel
from mmstudy.expansion.plans import Plan, Touch, transformed, when_read
from mmstudy.expansion.replacing import Network, put, sharing
from mmstudy.tracing.calls import called

Planned = Sequence[tuple[Plan, Touch | None]]
LARGE = 2**26  # bytes of a network that are worth looking for garbage


def rebuilt(network: Network, plan: Plan, batch: Any, touch: Touch | None = None, sparing: bool = False) -> Network:
    """A network whose units have grown by the plan; it shares the other parameters with the old one.

    Sizes that modules keep for themselves (the shape of a LayerNorm, a number of heads) are found by their value, the
    fewest that will do (see `attributes`), and confirmed by tracing the new network on the batch (see `calls.called`):
    the axes of its every tensor must be the predicted products.

    Args:
        sparing: of memory, for calls without gradients: tensors are made when they are read (see `plans.when_read`).

    Raises:
        ValueError: no choice of such sizes makes the new network run as predicted.
    """
    known, new, plans = plan.coupling.kept, None, [(plan, touch)]
    if plan.size not in known:  # found out once for every size of a coupling
        new, known[plan.size] = _sized(network, plans, batch, sparing)
    new = new or _grown(network, plans, batch, sparing)
    attributes.keep(new, known[plan.size])
    return new


def rebuilt_at_once(network: nn.Module, plans: Planned, batch: Any) -> tuple[nn.Module, list[attributes.Size]]:
    """A network in which several couplings have grown together, as `rebuilt`, and the sizes that its modules keep.

    So one number may serve several of them, as the width of heads does for queries and for values.

    Raises:
        ValueError: as `rebuilt`; or two couplings lie on one axis of a tensor.
    """
    axes = [{(use.tensor, use.axis) for use in plan.coupling.uses} for plan, _ in plans]
    if twice := {axis for i, some in enumerate(axes) for axis in some if any(axis in o for o in axes[:i])}:
        raise ValueError(f"{', '.join(sorted({tensor for tensor, _ in twice}))}: two couplings lie on one of its axes")
    new, found = _sized(network, plans, batch)
    new = new or _grown(network, plans, batch)
    attributes.keep(new, found)
    return new, found


def _grown(network: Network, plans: Planned, batch: Any, sparing: bool = False) -> Network:
    """The network with the new tensors, and with sizes that do not fit them yet."""
    new, own = sharing(network), {name: tensor.detach() for name, tensor in named_tensors(network).items()}
    made = dict[str, Tensor]()
    if sparing:
        made = when_read({name: own.pop(name) for name, _ in network.named_parameters()}, *plans[0])
    for name, tensor in (made | transformed(own, plans)).items():
        put(new, name, tensor)
    for plan, _ in plans:
        _rescale_eps(new, plan, network, batch)
    relabel(new, plans[0][0].coupling.protected)  # so that labels are no guesses to try
    return new


def _rescale_eps(network: nn.Module, plan: Plan, old: nn.Module, batch: Any) -> None:
    """The variance v has become v · f; v + eps does so too if eps does."""
    if plan.variance == 1:
        return
    norms, others = plan.coupling.normalizations, plan.coupling.other_normalizations
    multiple = f"take a multiple of {plan.coupling.size}"
    for path, eps in {(n.module, n.eps) for n in norms}:
        module = network.get_submodule(path)
        keys = [key for key, value in vars(module).items() if isinstance(value, float) and value == eps]
        unscaled = any(n.scale is None for n in norms if n.module == path)
        if unscaled or not keys:
            missing = "scale" if unscaled else f"eps ({eps})"
            raise ValueError(
                f"{path or 'the network itself'} has no {missing} that could make up for {plan.size} units; {multiple}"
            )
        if any((n.module, n.eps) == (path, eps) for n in others):
            raise ValueError(
                f"{path or 'the network'} has one {' or '.join(keys)} ({eps}) for several norms, and that of "
                f"{plan.coupling.name} alone must change for {plan.size} units; {multiple}, or give each its own"
            )
        if len(keys) > 1:
            then = getattr(module, keys[0]) * plan.variance
            keys = sizes.eps(old, plan.coupling, path, keys, then, called(old, batch))
        for key in keys:
            guard(plan.coupling.protected, path, key)
            setattr(module, key, getattr(module, key) * plan.variance)


def _sized(
    network: Network, plans: Planned, batch: Any, sparing: bool = False
) -> tuple[Network | None, list[attributes.Size]]:
    """What the plans alone make (None if more is to be touched in it), and the sizes that must change, found on it."""
    plain = _grown(network, [(plan, None) for plan, _ in plans], batch, sparing)
    chosen = sizes.found(plain, network, [(plan.coupling, plan.size) for plan, _ in plans], called(network, batch))
    if all(touch is None for _, touch in plans):
        return plain, chosen
    if plans[0][0].coupling.confirms and sum(parameter.nbytes for parameter in plain.parameters()) > LARGE:
        del plain
        gc.collect()  # a trace, which confirms, leaves cycles behind that hold the network
    return None, chosen
