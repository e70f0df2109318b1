"""How a group of units grows, as a plan, and what becomes of tensors by it: the network's, and an optimizer's.

An expansion of a group is two matrices (new units × old units): `make` says how the new units are made of the old,
`read` how what reads them is. Where the units pass through nothing but element-wise functions, readᵀ make = 1 keeps
the function of the network.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmstudy.expansion.products import Rows
from mmstudy.expansion.reading import BIG, Source, read
from mmstudy.tracing.couplings import Coupling, Use
from mmstudy.tracing.graph import BIAS, CONSUMED, SCALE, VARIANCE, WEIGHT
from mmstudy.tracing.layouts import around_units, extent, others, places

Touch = Callable[[Use, Tensor], Tensor]  # (use, tensor (new units, ...)) → what it becomes
SMALL = 2**20  # bytes of a tensor that are not worth saving
NEW = -1  # in `source`: a unit that is no copy


@dataclass(frozen=True)
class Plan:
    """How a coupling grows; the rows of both matrices belong to the new units, the first of them to the old ones.

    `shown` is `make` as it appears behind a normalization (which removes averages), `variance` the factor by which
    the units' variance across the group changes.
    """

    coupling: Coupling
    source: Int[Tensor, " new"]  # which unit each is a copy of, or NEW
    make: Float[Tensor, "new old"]
    shown: Float[Tensor, "new old"]
    read: Float[Tensor, "new old"]
    variance: float = 1.0

    @property
    def size(self) -> int:
        """The number of units, old and new."""
        return len(self.make)

    @property
    def fresh(self) -> Tensor:
        """Which units are no copies, (new,)."""
        return self.source == NEW


def plan(coupling: Coupling, source: Tensor, share: Tensor | None = None, keep: bool = True) -> Plan:
    """The plan that copies units, `source` (new,), and splits what reads them among the copies in shares (new,).

    By default the shares are even. A unit that is NEW is nothing (its row is zero) unless the units are normalized
    together and `keep` asks that this shall go on unchanged: then it is what the normalization takes off, the units'
    average (or zero, for RMSNorm), and shows as zero behind it; the norm's scale and eps make up for the change of
    variance (LEMON: Wang et al. 2023, arXiv 2310.07999, section 4.2).

    Raises:
        ValueError: units that are normalized together are copied unevenly, or over positions with NEW ones.
    """
    units = torch.arange(coupling.size)
    one_hot = (source.unsqueeze(1) == units).double()  # (new, old)
    copies = one_hot.sum(0)
    if share is None:
        share = one_hot @ (1 / copies.clamp(min=1))
    make, variance = one_hot, 1.0
    kinds = {normalization.kind for normalization in coupling.normalizations}
    if kinds and keep:
        if len(copies.unique()) > 1 or ("group" in kinds and (source == NEW).any()):
            raise ValueError(
                f"the {coupling.size} units of {coupling.name} are normalized together, so that {len(source)} of them "
                f"must be whole copies; take a multiple of {coupling.size}"
            )
        if "layer" in kinds:
            make = one_hot + (source == NEW).double().unsqueeze(1) / coupling.size
        variance = float(copies[0]) * coupling.size / len(source)
    return Plan(coupling, source, make, one_hot, one_hot * share.double().unsqueeze(1), variance)


def matrix(plan: Plan, use: Use) -> Float[Tensor, "new old"]:
    """What the plan does to the units on one axis of one tensor."""
    coupling = plan.coupling
    if use.role == CONSUMED:
        return plan.make if use in _tied(coupling) else plan.read
    result = plan.make if use.role in (WEIGHT, BIAS) else plan.shown
    if coupling.reads(use):  # queries, which read the keys
        scaled = all(pairing.scaled for pairing in coupling.pairings)
        result = plan.read * sqrt(plan.size / coupling.size) if scaled else plan.read
    if use.role == SCALE and any(use.tensor == n.scale for n in coupling.normalizations):
        result = result * sqrt(plan.variance)
    if any(use.tensor in reader.reads for reader in _tied(coupling)):  # a tied reader cannot be split: its input is
        result = result * (plan.read * plan.shown).sum(1, keepdim=True)
    return result


def _tied(coupling: Coupling) -> list[Use]:
    """Uses that consume the units through a tensor that makes them too (an output layer tied to the embedding).

    Raises:
        ValueError: such a tensor reads units that another tensor reads as well, or that no affine layer wrote.
    """
    makers = {(use.tensor, use.axis) for use in coupling.of(WEIGHT)}
    readers = coupling.of(CONSUMED)
    tied = [use for use in readers if (use.tensor, use.axis) in makers]
    for use in tied:
        if not use.reads or any(set(use.reads) & set(other.reads) for other in readers if other not in tied):
            raise ValueError(f"{use.tensor} makes and reads the units of {coupling.name}; nothing between can be split")
    return tied


def transform(
    tensors: Mapping[str, Tensor], plan: Plan, touch: Touch | None = None, known: dict[Use, Rows] | None = None
) -> dict[str, Tensor]:
    """The tensors that the plan changes, grown, by name: differentiable, and the old ones are left as they are.

    `touch` may change each of them, units first (new, ...), e.g. to draw what belongs to new units.

    Args:
        known: takes in what has been found out of the plan's matrices, so that another call need not.
    """

    def finish(use: Use, tensor: Tensor) -> Tensor:
        each, shift = (-1, *[1] * (tensor.ndim - 1)), use.shift if use.role == SCALE else 0.0
        if shift:  # M (w + s) − s, of scales w + s
            tensor = tensor + shift * (matrix(plan, use).sum(1) - 1).to(tensor).view(each)
        if use.role in (SCALE, VARIANCE):  # a unit that is nothing has scale and variance 1
            nothing = (plan.shown == 0).all(1).to(tensor.device)
            tensor = torch.where(nothing.view(each), 1.0 - shift, tensor)
        if touch is None:
            return tensor
        if (row := plan.coupling.padding.get(use.tensor)) is None:
            return touch(use, tensor)
        untouched = tensor[:, row].clone()  # it never learns, so that nothing is drawn for it
        touched = touch(use, tensor)
        touched[:, row] = untouched
        return touched

    return _mapped(tensors, plan, partial(matrix, plan), finish, {} if known is None else known)


def transported(averages: Mapping[str, Tensor], plan: Plan, squares: bool) -> dict[str, Tensor]:
    """An optimizer's running averages of gradients (or of their squares), by parameter, carried over to the new units.

    If w' = M w, the gradients obey g = Mᵀ g', and evenly split copies have the smallest such g', M (MᵀM)⁻¹ g.
    Units that are new begin without momentum, and with the mean of the old units' squares, so that Adam does not take
    them for units of vanishing gradients. Compare Shen et al. 2022 (arXiv 2203.06211), section 3.3.
    """

    def gradient(use: Use) -> Tensor:
        transport = torch.linalg.pinv(matrix(plan, use)).mT
        return transport.square() if squares else transport

    def finish(use: Use, tensor: Tensor) -> Tensor:
        nothing = (matrix(plan, use) == 0).all(1).to(tensor.device)
        if squares and nothing.any():
            mean = tensor[: plan.coupling.size].mean(0, keepdim=True)
            tensor = torch.where(nothing.view(-1, *[1] * (tensor.ndim - 1)), mean, tensor)
        return tensor

    return _mapped(averages, plan, gradient, finish, {})


def _mapped(
    tensors: Mapping[str, Tensor], plan: Plan, matrix_of: Callable[[Use], Tensor], finish: Touch, known: dict[Use, Rows]
) -> dict[str, Tensor]:
    grown: dict[str, Tensor] = {}
    axes = {(use.tensor, use.axis): use for use in reversed(plan.coupling.uses)}  # a tied tensor: as what it makes
    for use in reversed(axes.values()):
        if use.tensor in tensors:
            if use not in known:
                matrix = matrix_of(use)
                alike = next((rows for rows in known.values() if _alike(rows.matrix, matrix)), None)
                known[use] = alike or Rows.of(matrix)
            tensor = grown.get(use.tensor, tensors[use.tensor])
            units = known[use].times(units_first(tensor, use, plan.coupling.size))
            grown[use.tensor] = _units_back(tensor, finish(use, units), use, plan.coupling.size)
    return grown


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether a matrix stands for the other; of two that are learned only if it is the same."""
    return one is other or (not one.requires_grad and not other.requires_grad and torch.equal(one, other))


def units_first(tensor: Tensor, use: Use, size: int) -> Tensor:
    """What a tensor has of each of `size` units on `use.axis`: (units, axes before, times on the axis, axes behind)."""
    if around := around_units(use.layout):  # a view, where that can be
        parted = tensor.unflatten(use.axis, (around[0], size, around[1]))
        return parted.movedim(use.axis + 1, 0).flatten(use.axis + 1, use.axis + 2)
    where = places(use.layout, size).to(tensor.device)
    return tensor.index_select(use.axis, where.flatten()).unflatten(use.axis, where.shape).movedim(use.axis, 0)


def _units_back(tensor: Tensor, units: Tensor, use: Use, size: int) -> Tensor:
    """The tensor with these units, as `units_first` has them, at their places on the axis; all others stay."""
    if around := around_units(use.layout):
        parted = units.unflatten(use.axis + 1, around).movedim(0, use.axis + 1)
        return parted.flatten(use.axis, use.axis + 2).contiguous()
    axis, now, then = use.axis, others(use.layout, size), others(use.layout, len(units))
    order = torch.cat([then, places(use.layout, len(units)).flatten()]).argsort().to(tensor.device)
    rest = tensor.index_select(axis, now.to(tensor.device))
    return torch.cat([rest, units.movedim(0, axis).flatten(axis, axis + 1)], axis).index_select(axis, order)


def transformed(tensors: Mapping[str, Tensor], plans: Iterable[tuple[Plan, Touch | None]]) -> dict[str, Tensor]:
    """What `transform` makes of the tensors by several plans, one after another."""
    grown: dict[str, Tensor] = {}
    for plan, touch in plans:
        grown |= transform({**tensors, **grown}, plan, touch)
    return grown


def when_read(tensors: Mapping[str, Tensor], plan: Plan, touch: Touch | None) -> dict[str, Tensor]:
    """What `transform` makes, in little memory: most of it is made when it is read, each time anew.

    What is small is made at once. So is what is big, which takes long, unless it takes more memory than all the
    tensors do.
    """
    known, free = dict[Use, Rows](), sum(tensor.nbytes for tensor in tensors.values())
    made: dict[str, Tensor] = {}
    names = {use.tensor for use in plan.coupling.uses if use.tensor in tensors}
    for name in sorted(names, key=lambda name: (-tensors[name].nbytes, name)):
        make = partial(_one, name, {name: tensors[name]}, plan, touch, known)
        like = tensors[name].new_empty(_shape(name, tensors[name], plan))
        free -= like.nbytes
        at_once = (like.nbytes > BIG and free >= 0) or like.nbytes < SMALL or not like.is_floating_point()
        made[name] = make() if at_once else read(like, Source(make), like.dtype)
    return made


def _one(name: str, *given: Any) -> Tensor:
    return transform(*given)[name]


def _shape(name: str, tensor: Tensor, plan: Plan) -> list[int]:
    """The shape of a tensor that has grown."""
    axes = {use.axis: extent(use.layout, plan.size) for use in plan.coupling.uses if use.tensor == name}
    return [axes.get(axis, size) for axis, size in enumerate(tensor.shape)]
