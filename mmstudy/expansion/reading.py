"""Parameters that take memory only while they are read: a function makes them, each time anew."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class Read(Tensor):
    """A parameter that a function makes whenever it is read; what changes it in place changes what the function gives.

    All that is an alias of it has the same `source`, a list of that one function. For calls without gradients.

    Args:
        like: has the shape, the strides and the device of what the function makes.
        source: the function.
        kind: the type of its numbers.
    """

    source: list[Callable[[], Tensor]]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # ordinary tensors come of it

    @staticmethod
    def __new__(cls, like: Tensor, source: list[Callable[[], Tensor]], kind: torch.dtype):
        layout = like.shape, like.stride(), like.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=kind, device=like.device)
        made.source = source
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):  # type: ignore[override]
        if operation is torch.ops.aten.detach.default:
            return Read(args[0], args[0].source, args[0].dtype)
        given = args, kwargs or {}
        if operation._schema.is_mutable:  # as an embedding with a largest norm
            for each in tree_leaves(given):
                if isinstance(each, Read):
                    each.source[0] = partial(same, each.source[0]())
        args, kwargs = tree_map_only(Read, lambda each: each.source[0](), given)
        return operation(*args, **kwargs)


def same(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor
