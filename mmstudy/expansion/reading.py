"""Parameters that take memory only while they are read: they are made anew each time, and large ones in parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

BIG = 2**25  # bytes of a tensor for which the system gives new memory each time, which takes long
PART = 2**24  # bytes of one that are made at once
aten = torch.ops.aten


@dataclass(frozen=True)
class Source:
    """What makes a parameter; `rows`, where there is such, makes those from one number to another."""

    whole: Callable[[], Tensor]
    rows: Callable[[int, int], Tensor] | None = None


class Read(Tensor):
    """A parameter that is made whenever it is read; what changes it in place changes what is made.

    All that is an alias of it has the same `source`, a list of that one. For calls without gradients.
    """

    source: list[Source]
    turned: bool  # whether it is the transpose of what is made
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # ordinary tensors come of it

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):  # type: ignore[override]
        if operation is aten.detach.default:
            return _read(args[0], args[0].source, args[0].dtype, args[0].turned)
        if operation is aten.t.default and args[0].ndim == 2:
            return _read(args[0], args[0].source, args[0].dtype, not args[0].turned, turn=True)
        if operation in IN_PARTS and not kwargs and (made := IN_PARTS[operation](*args)) is not None:
            return made
        given = args, kwargs or {}
        if operation._schema.is_mutable:  # as an embedding with a largest norm
            for each in tree_leaves(given):
                if isinstance(each, Read):
                    each.source[0] = kept(each.source[0].whole())
        args, kwargs = tree_map_only(Read, _whole, given)
        return operation(*args, **kwargs)


def read(like: Tensor, source: Source, kind: torch.dtype) -> Read:
    """A parameter that is made when it is read; `like` has its shape, strides and device, `kind` is its type."""
    made = _read(like, [source], kind)
    made._is_param = True  # to `isinstance` and `get_parameter`
    return made


def kept(tensor: Tensor) -> Source:
    """What makes nothing, but gives a tensor that is there already."""
    return Source(lambda: tensor)


def _read(like: Tensor, source: list[Source], kind: torch.dtype, turned: bool = False, turn: bool = False) -> Read:
    shape, strides = (layout[::-1] if turn else layout for layout in (like.shape, like.stride()))
    made = Tensor._make_wrapper_subclass(Read, shape, strides, like.storage_offset(), dtype=kind, device=like.device)
    made.source, made.turned = source, turned
    return made


def _whole(parameter: Read) -> Tensor:
    made = parameter.source[0].whole()
    return made.t() if parameter.turned else made


def _rows(parameter: Any) -> Callable[[int, int], Tensor] | None:
    """What makes some rows of a parameter, if that can and should be."""
    return parameter.source[0].rows if isinstance(parameter, Read) and parameter.nbytes > BIG else None


def _parts(parameter: Read, rows: Callable[[int, int], Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after others of what a parameter is made of."""
    count = parameter.shape[1 if parameter.turned else 0]
    step = max(1, PART * count // parameter.nbytes)
    for first in range(0, count, step):
        last = min(first + step, count)
        yield slice(first, last), rows(first, last)


def _product(inputs: Any, parameter: Any) -> Tensor | None:
    """The matrix product of (examples, in) with a large parameter (in, out); None if it is none."""
    if (rows := _rows(parameter)) is None or isinstance(inputs, Read):
        return None
    product = inputs.new_zeros(len(inputs), parameter.shape[1])  # at once: what is left between parts holds memory
    for place, some in _parts(parameter, rows):
        if parameter.turned:
            product[:, place] = inputs @ some.t()
        else:
            product.addmm_(inputs[:, place], some)
    return product


def _affine(bias: Any, inputs: Any, parameter: Any) -> Tensor | None:
    """The same, and a bias."""
    product = _product(inputs, parameter)
    return None if product is None else product.add_(_whole(bias) if isinstance(bias, Read) else bias)


def _embedded(parameter: Any, indices: Tensor, *options: Any) -> Tensor | None:
    """The rows of a large parameter at these places; None if it is none, or has no such rows."""
    rows = _rows(parameter)
    if rows is None or parameter.turned or not indices.numel():
        return None
    if bool(((indices < 0) | (indices >= len(parameter))).any()):
        return None  # for torch to say what is wrong
    places, which = indices.flatten().unique(return_inverse=True)
    found = torch.cat([rows(place, place + 1) for place in places.tolist()])
    return found[which].view(*indices.shape, -1)


IN_PARTS: dict[Any, Callable[..., Tensor | None]] = {
    aten.mm.default: _product,
    aten.addmm.default: _affine,
    aten.embedding.default: _embedded,
}
