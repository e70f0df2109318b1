"""The loss between networks, as the face offers it: on the line through two, its barrier, the plane through three."""

import copy
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from mmstudy.batched import asked, connectivity
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, classification, losses, stack, vectors
from mmstudy.core import arguments
from mmstudy.core.threads import alone
from mmstudy.tracing.calls import of_loss
from mmstudy.tracing.matching import matched

POINTS = 11
MARGIN = 0.2  # of the corners' extent, around them
USED = {"recomputed": "statistics of the batch at every point", "frozen": "running statistics, interpolated"}


@alone
def line(
    a: nn.Module,
    b: nn.Module,
    batch: Batch,
    points: int = POINTS,
    match: bool = False,
    loss_fn: LossFn = classification,
    seed: int = 0,
    normalization: str = "recomputed",
) -> xr.Dataset:
    """The `loss` over `alpha` on the straight line from network a (0) to network b (1), both ends included.

    Args:
        a: a network.
        b: another one of the same shape.
        batch: tensors whose first axes count the examples.
        points: how many, evenly spaced.
        loss_fn: (model, batch) → mean loss.
        match: whether b's hidden units are first put into the order in which they resemble a's most (`matching`).
        seed: of that matching.
        normalization: what batch normalization uses: at every point the statistics of the batch ("recomputed", as on a
            `plane`), or running statistics, interpolated as the weights are ("frozen"). These make barriers higher:
            between two networks they fit neither (Jordan et al. 2023, REPAIR, arXiv 2211.08403).

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, networks of different shapes or with different integers, or a matching
            that changes b's loss, since the loss calls its model in several ways.
    """
    pair, batch = _together([a, b], ("a", "b"), batch, loss_fn)
    points, seed = arguments.whole(points, "points", 2, 10**5), arguments.whole(seed, "seed")
    if not isinstance(match, bool):
        raise TypeError(f"match must be True or False; got {match!r}")
    if match:
        near = matched(b, a, of_loss(a, batch, loss_fn), seed)
        _same_loss(b, near, batch, loss_fn)
        pair = stack([a, near])
    alphas = torch.linspace(0, 1, points, dtype=torch.float64)
    how, used = _normalization(a, normalization)
    with asked.untouched([pair.network]):
        along = losses(connectivity.interpolated(pair[:1], pair[1:], alphas), batch, loss_fn, how)
        _meets(along[[0, -1]], pair, "ab", batch, loss_fn, how)
    return xr.Dataset({"loss": ("alpha", along.cpu().numpy())}, {"alpha": alphas.numpy()}, {"normalization": used})


@alone
def barrier(
    a: nn.Module,
    b: nn.Module,
    batch: Batch,
    points: int = POINTS,
    match: bool = False,
    loss_fn: LossFn = classification,
    seed: int = 0,
    normalization: str = "recomputed",
) -> float:
    """The barrier between two networks: the largest rise of the loss over its linear interpolation, along the line.

    max over α of L(α) − (1 − α) L(0) − α L(1), at `points` of the line, in the unit of the loss. See `line`.

    Raises:
        TypeError: what `line` refuses.
        ValueError: likewise.
    """
    along = line(a, b, batch, points, match, loss_fn, seed, normalization)
    return connectivity.barrier(*(torch.tensor(along[name].values) for name in ("loss", "alpha"))).item()


@alone
def plane(
    a: nn.Module, b: nn.Module, c: nn.Module, batch: Batch, points: int = POINTS, loss_fn: LossFn = classification
) -> xr.Dataset:
    """The `loss` over (y, x) on the plane through three networks, with a margin around them.

    x and y are distances from a in parameter space, x in the direction of b. `corner_x` and `corner_y` over network say
    where a, b and c lie. Frozen parameters and buffers are mixed as the parameters are. Batch normalization uses the
    statistics of the batch at every point; the attribute `normalization` says so.

    Args:
        a: a network; b and c are others of the same shape.
        points: along each axis: `loss` has points × points.
        loss_fn: (model, batch) → mean loss.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of range, or networks of different shapes or on one line.
    """
    three, batch = _together([a, b, c], ("a", "b", "c"), batch, loss_fn)
    points = arguments.whole(points, "points", 2, 10**3)
    corners = vectors(three).double()
    _, places = connectivity.axes(corners)
    x, y = (_around(ends, points) for ends in places.cpu().unbind(1))
    how, used = _normalization(a, "recomputed")

    shares = connectivity.shares(places, x.to(places), y.to(places))
    many = shares.flatten(0, 1).split(64)
    with asked.untouched([three.network]):
        heights = torch.cat([losses(connectivity.mixed(three, some), batch, loss_fn, how) for some in many])
        corners_of_it = connectivity.mixed(three, torch.eye(3, dtype=torch.float64, device=corners.device))
        _meets(losses(corners_of_it, batch, loss_fn, how), three, "abc", batch, loss_fn, how)
    return xr.Dataset(
        {
            "loss": (("y", "x"), heights.view(points, points).cpu().numpy()),
            "corner_x": ("network", places[:, 0].cpu().numpy()),
            "corner_y": ("network", places[:, 1].cpu().numpy()),
        },
        {"x": x.numpy(), "y": y.numpy(), "network": np.array(["a", "b", "c"])},
        {"normalization": used},
    )


def _around(ends: Tensor, points: int) -> Tensor:
    low, high = ends.min().item(), ends.max().item()
    margin = MARGIN * (high - low)
    return torch.linspace(low - margin, high + margin, points, dtype=torch.float64)


def _together(given: list[Any], names: tuple[str, ...], batch: Any, loss_fn: Any) -> tuple[Ensemble, Batch]:
    networks = [arguments.network(each, name) for each, name in zip(given, names, strict=True)]
    networks, batch, found = asked.fit(networks, batch, loss_fn)
    return asked.measurable(networks, batch, loss_fn, found), batch


def _meets(found: Tensor, networks: Ensemble, names: str, batch: Batch, loss_fn: LossFn, how: str) -> None:
    """Refuse a line or a plane that does not meet the networks themselves.

    Raises:
        ValueError: a loss on it is not that of the network there.
    """
    for name, there, own in zip(names, found.tolist(), losses(networks, batch, loss_fn, how).tolist(), strict=True):
        if not asked.close(there, own):
            whole = [key for key, b in networks.buffers.items() if not b.is_floating_point() and not b.is_complex()]
            differ = [
                key for key in whole if any(not torch.equal(b, networks.buffers[key][0]) for b in networks.buffers[key])
            ]
            raise ValueError(
                f"{name} has a loss of {own:g}, and there is {there:g} where it lies between the others: integers and "
                f"booleans that differ ({', '.join(differ) or 'none found'}) cannot be interpolated. Give the networks "
                "the same ones"
            )


def _same_loss(network: nn.Module, ordered: nn.Module, batch: Batch, loss_fn: LossFn) -> None:
    """Refuse a matching that changes the loss: it looks at the first call of the model only, and a loss may make more.

    In float64 where the loss can be taken in it; otherwise up to rounding of the loss.

    Raises:
        ValueError: the loss is another one.
    """
    try:
        pair = stack([copy.deepcopy(each).double() for each in (network, ordered)])
        wide = tree_map_only(Tensor, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, batch)
        before, after = losses(pair, wide, loss_fn).tolist()
        precision = 1e-9
    except Exception:  # whatever a loss with numbers of another type raises
        before, after = losses(stack([network, ordered]), batch, loss_fn).tolist()
        precision = max(torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point())
    if not abs(after - before) <= 1e3 * precision * max(1.0, abs(before)):
        raise ValueError(
            f"matching changes the loss of b, from {before:g} to {after:g}: hidden units are put into another order as "
            "the first call of the model in loss_fn shows it, and loss_fn calls the model in other ways too. Give a "
            "loss_fn that calls it once, or in one way, or match=False"
        )


def _normalization(network: nn.Module, wanted: str) -> tuple[str, str]:
    """How to evaluate, and what to say of it; a network without batch normalization needs not see all at once."""
    arguments.one_of(wanted, tuple(USED), "normalization")
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        return wanted, USED[wanted]
    return "frozen", "none"
