"""The values that modules keep, in themselves and in what they hold: configurations, dicts, lists, other objects."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEPTH = 4  # of what is looked into, such as a configuration in a configuration
LONG = 256  # what has more items is data
CLOSED = (type, FunctionType, MethodType, ModuleType, nn.Module, Tensor)  # no places for sizes of the module's own
OWN = frozenset(vars(nn.Module()))  # what every module keeps

Path = tuple[str | int, ...]  # of a value: an attribute, and keys and places in it


@dataclass(frozen=True)
class Slot:
    """A place for a value: an attribute or an item of something that a module keeps; `path` says where that is.

    The owner of an item of a tuple is the place of the tuple.
    """

    owner: Any
    key: Any
    value: Any
    path: Path

    def put(self, value: Any) -> None:
        """Put another value there, even into something frozen; into a tuple, by another tuple of the same kind."""
        if isinstance(self.owner, Slot):
            whole = self.owner.value
            self.owner.put(alike(whole, (*whole[: self.key], value, *whole[self.key + 1 :])))
        elif isinstance(self.owner, dict | list):
            self.owner[self.key] = value
        elif isinstance(self.owner, nn.Module):
            setattr(self.owner, str(self.key), value)
        else:
            object.__setattr__(self.owner, str(self.key), value)


def at(module: nn.Module, path: Path) -> Slot:
    """The place at a path."""
    owner: Any = module
    for key in path[:-1]:
        owner = _item(owner, key)
    around = at(module, path[:-1]) if isinstance(owner, tuple) else owner
    return Slot(around, path[-1], _item(owner, path[-1]), path)


def _item(owner: Any, key: Any) -> Any:
    return owner[key] if isinstance(owner, dict | list | tuple) else getattr(owner, str(key))


def alike(sequence: Any, items: Iterable[Any]) -> Any:
    """A sequence of the same kind (a list, a tuple, a named one) with other items."""
    return sequence._make(items) if hasattr(sequence, "_make") else type(sequence)(items)


def is_configuration(value: Any) -> bool:
    """Whether something is a set of named values: it knows itself as a dict, or is a dataclass."""
    plain = not isinstance(value, nn.Module | type) and hasattr(value, "__dict__")
    return plain and (callable(getattr(value, "to_dict", None)) or is_dataclass(value))


def slots(owner: Any, path: Path = ()) -> Iterator[Slot]:
    """The numbers, sequences and gaps (None) in something, and in what it holds of configurations and dicts."""
    items = list((owner if isinstance(owner, dict) else vars(owner)).items())
    for key, value in items:
        if str(key).startswith("_"):
            continue
        if isinstance(value, dict) or is_configuration(value):
            if len(path) < DEPTH:
                yield from slots(value, (*path, key))
        elif value is None or type(value) in (int, float) or isinstance(value, list | tuple):
            yield Slot(owner, key, value, (*path, key))


def numbers(module: nn.Module, deeply: bool = False) -> Iterator[Slot]:
    """The whole numbers, and tuples of them, that a module keeps in its public attributes.

    Args:
        deeply: also those in private attributes, and in all that the module holds but modules, tensors and functions.
    """
    if deeply:
        return _numbers(module, (), set())
    return (Slot(module, k, v, (k,)) for k, v in vars(module).items() if counts(v) and not k.startswith("_"))


def _numbers(owner: Any, path: Path, seen: set[int]) -> Iterator[Slot]:
    seen.add(id(owner))
    items = enumerate(owner) if isinstance(owner, list) else (owner if isinstance(owner, dict) else vars(owner)).items()
    for key, value in list(items):
        if isinstance(owner, nn.Module) and key in OWN:
            continue
        if counts(value):
            yield Slot(owner, key, value, (*path, key))
        elif len(path) < DEPTH and id(value) not in seen and _opens(value):
            yield from _numbers(value, (*path, key), seen)


def everything(module: nn.Module) -> list[Slot]:
    """All that a module and its configurations name, and whole numbers wherever else they are kept."""
    named = list(slots(module))
    known, more = {slot.path for slot in named}, numbers(module, deeply=True)
    return named + [slot for slot in more if not any(slot.path[: i + 1] in known for i in range(len(slot.path)))]


def counts(value: object) -> bool:
    """Whether something is a whole number, or a tuple of such; other values need not even be comparable."""
    return type(value) is int or (isinstance(value, tuple) and bool(value) and all(type(v) is int for v in value))


def _opens(value: Any) -> bool:
    if isinstance(value, dict | list):
        return len(value) <= LONG
    return hasattr(value, "__dict__") and not isinstance(value, CLOSED)
