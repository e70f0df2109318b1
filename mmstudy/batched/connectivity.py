"""Segments, barriers and planes: the loss between networks."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.ensemble import Ensemble, same_kind
from mmstudy.batched.objective import Landscape


def interpolated(start: Ensemble, end: Ensemble, alphas: Float[Tensor, " points"]) -> Ensemble:
    """The networks (1−α) start + α end, every pair's in a row: K networks and K others make K · points.

    Running statistics are interpolated as well, so that both ends are the networks themselves; integers and
    booleans stay the start's. Evaluate with `ensemble.losses`, under the normalization of your choice.

    Raises:
        ValueError: ensembles of different lengths, or of networks that differ in more than their numbers.
    """
    if len(start) != len(end):
        raise ValueError(f"needs as many starts as ends; got {len(start)} and {len(end)}")
    same_kind(start, end, "the end", "the start")

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        if not _mixes(a):
            return a.repeat_interleave(len(alphas), dim=0)
        share = alphas.to(a).view(-1, *[1] * (a.ndim - 1))
        return torch.lerp(a.unsqueeze(1), b.unsqueeze(1), share).flatten(0, 1)

    kinds = ((start.parameters, end.parameters), (start.buffers, end.buffers))
    return Ensemble(start.network, *({name: mixed(a[name], b[name]) for name in a} for a, b in kinds))


def mixed(corners: Ensemble, shares: Float[Tensor, "points k"]) -> Ensemble:
    """Networks whose every tensor is that mixture of the corners' tensors; integers and booleans stay the first one's.

    Args:
        shares: of each corner, that add up to 1.
    """

    def of(tensor: Tensor) -> Tensor:
        if not _mixes(tensor):
            return tensor[:1].repeat_interleave(len(shares), dim=0)
        return torch.tensordot(shares.to(tensor), tensor, dims=1)

    kinds = (corners.parameters, corners.buffers)
    return Ensemble(corners.network, *({name: of(tensor) for name, tensor in kind.items()} for kind in kinds))


def _mixes(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def segment(
    loss: Landscape,
    start: Float[Tensor, "*many dim"],
    end: Float[Tensor, "*many dim"],
    alphas: Float[Tensor, " points"],
) -> Float[Tensor, "*many points"]:
    """L((1−α) start + α end) on a grid of α, all segments at once.

    With an objective of networks, the first axis is that of its parents, and all points of a segment have the batch
    statistics of its parent; `interpolated` interpolates these too.
    """
    a = alphas.to(start).unsqueeze(-1)
    return loss(torch.lerp(start.unsqueeze(-2), end.unsqueeze(-2), a))


def barrier(along: Float[Tensor, "*many points"], alphas: Float[Tensor, " points"]) -> Float[Tensor, "*many"]:
    """The highest rise of the loss over the straight line between its ends: max_α [L_α − (1−α) L₀ − α L₁].

    Frankle et al. 2020 (arXiv 1912.05671); Entezari et al. 2022 (arXiv 2110.06296), equation 1.

    Raises:
        ValueError: the grid does not run from 0 to 1, so that the ends of the segment are unknown.
    """
    if alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError(f"a barrier needs the ends of the segment: alphas run from {alphas[0]:g} to {alphas[-1]:g}")
    a = alphas.to(along)
    return (along - torch.lerp(along[..., :1], along[..., -1:], a)).amax(-1)


def axes(corners: Float[Tensor, "3 dim"]) -> tuple[Float[Tensor, "2 dim"], Float[Tensor, "3 2"]]:
    """Orthonormal axes of the plane through three networks, the first towards the second network, and their places.

    Raises:
        ValueError: the corners lie on one line, up to rounding.
    """
    u, v = corners[1] - corners[0], corners[2] - corners[0]
    apart = f"distances {u.norm():.3g} and {v.norm():.3g} from the first"
    u = u / u.norm()
    height = v - (v @ u) * u
    if not height.norm() > 1e-6 * v.norm():  # NaN where the first two are one
        raise ValueError(f"three corners on one line span no plane; got {apart}: take other networks, or a line")
    both, away = torch.stack([u, height / height.norm()]), corners - corners[0]
    return both, torch.stack([away @ both[0], away @ both[1]], dim=1)


def shares(
    places: Float[Tensor, "3 2"], first: Float[Tensor, " columns"], second: Float[Tensor, " rows"]
) -> Float[Tensor, "rows columns 3"]:
    """Of which mixture of the three corners at `places` every point of a grid on their plane consists."""
    (across, _), (c1, c2) = places[1], places[2]
    rows, columns = torch.meshgrid(second, first, indexing="ij")
    third = rows / c2
    other = (columns - third * c1) / across
    return torch.stack([1 - other - third, other, third], dim=-1)


def plane(
    loss: Landscape,
    corners: Float[Tensor, "3 dim"],
    first: Float[Tensor, " columns"],
    second: Float[Tensor, " rows"],
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "3 2"]]:
    """The loss on the plane through three networks, in distances from the first along its `axes`.

    Returns the losses on the grid `second` × `first` and the corners' own coordinates (Garipov et al. 2018,
    arXiv 1802.10026, section 3).

    Raises:
        ValueError: the corners lie on one line, up to rounding.
    """
    (u, v), places = axes(corners)
    rows, columns = torch.meshgrid(second.to(u), first.to(u), indexing="ij")
    points = corners[0] + columns.unsqueeze(-1) * u + rows.unsqueeze(-1) * v
    return loss(points), places
