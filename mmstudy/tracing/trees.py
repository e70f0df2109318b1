"""Trees of tensors: what networks take and return, in tuples, lists, mappings and objects."""

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

DEPTH = 3  # of objects in objects that are looked into


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a tree of tuples, lists, mappings, dataclasses and objects whose attributes hold tensors.

    Other objects, such as caches of layers, hold none that counts.
    """
    found: list[Tensor] = []
    mapped(value, found.append)
    return found


def mapped(value: Any, function, inside: tuple = ()) -> Any:
    """The tree, a mapping as a dict, with every tensor replaced by a function of it; `inside`: objects around it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, function, inside) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [mapped(part, function, inside) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if any(value is each for each in inside):
        return value
    inside = (*inside, value)
    if is_dataclass(value) and not isinstance(value, type):
        new = copy.copy(value)
        for each in fields(value):
            object.__setattr__(new, each.name, mapped(getattr(value, each.name), function, inside))
        return new
    if _plain(value):
        new = copy.copy(value)
        vars(new).update({name: mapped(part, function, inside) for name, part in vars(value).items()})
        return new
    return value


def _plain(value: Any, deep: int = DEPTH) -> bool:
    """Whether it is an object whose attributes hold tensors, or are such objects; caches hold lists of them."""
    if isinstance(value, nn.Module | type) or callable(value):
        return False
    return any(
        _holds(part) or (deep > 0 and _plain(part, deep - 1)) for part in getattr(value, "__dict__", {}).values()
    )


def _holds(value: Any) -> bool:
    """Whether it is a tensor, or a tuple, list or mapping that holds one."""
    if isinstance(value, tuple | list | Mapping):
        return any(map(_holds, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor)
