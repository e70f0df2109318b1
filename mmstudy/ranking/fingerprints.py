"""What things are, as hashes that are the same in every process: values, functions, networks and loaders."""

import argparse
import dis
import enum
import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch
from mmstudy.batched.likeness import FILES, PLAIN, TORCH, state
from mmstudy.batched.watch import LIBRARIES, names
from mmstudy.ranking.randomness import random_kept
from mmstudy.ranking.training import epoch_of, moved

READ, READ_BYTES = 256, 2**30  # batches of a loader that count, and their size, whichever is reached first
METHODS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}
WRITTEN = list | dict | set | deque  # what code may keep records in
SAVED = FILES | {"_parameters", "_buffers", "_modules", "training", "_is_full_backward_hook"}
SETTINGS = types.SimpleNamespace | argparse.Namespace

Seen = dict[int, tuple[int, Any]]  # what was met, by id: its place, and itself, so that nothing else gets the id


def of(*values: Any) -> str:
    """A hash of plain values, tensors, functions and modules, in trees of any form.

    A function is its code, its default arguments, and the variables around it that it reads: those that it assigns to
    don't count, nor containers where it changes any. A module is its tensors, what is frozen, its attributes but for
    those that its forward pass assigns to, and its code. A library's code is known by its name, any other object by its
    class; but what objects that are functions, dataclasses and namespaces hold counts.
    """
    digest = hashlib.sha256()
    for part in _told(values, {}):
        digest.update(part)
    return digest.hexdigest()[:32]


def of_loader(loader: Iterable[Batch], seed: int) -> str:
    """A hash of what a loader gives in its first epoch under a seed, and of the numbers that its dataset holds.

    Of a list of batches all count; of other loaders the first `READ` batches, or as many as have `READ_BYTES`, their
    length, and the tensors, arrays and lists of numbers in the attributes of their dataset.
    """
    if isinstance(loader, list | tuple):
        return of(*loader)
    found, size = [], 0
    with random_kept():
        for batch in islice(epoch_of(loader, seed, 0), READ):
            found.append(of(moved(batch, torch.device("cpu"))))
            size += sum(t.numel() * t.element_size() for t in engine.tensors(batch))
            if size >= READ_BYTES:
                break
    dataset = getattr(loader, "dataset", None)
    return of(found, length(loader), length(dataset), *_numbers_in(dataset))


def length(part: Any) -> int | None:
    """How long it is, if it says so: the loader of a stream does not."""
    try:
        return len(part)
    except (TypeError, NotImplementedError):
        return None


def _numbers_in(dataset: Any) -> Iterator[Any]:
    """The numbers that a dataset holds, and the datasets in it; not where reading an example writes into it."""
    reading = getattr(type(dataset), "__getitem__", None)
    if not hasattr(dataset, "__dict__") or (isinstance(reading, types.FunctionType) and _writes(reading.__code__)):
        return
    for name, value in sorted(vars(dataset).items()):
        if _are_numbers(value):
            yield name, value
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Dataset):
                yield from _numbers_in(each)


def _are_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_are_numbers, value))
    return isinstance(value, int | float | range | Tensor | np.ndarray | np.number)


def _told(value: Any, seen: Seen) -> Iterator[bytes]:
    """All that makes a value what it is, piece by piece."""
    yield f"{type(value).__qualname__}:".encode()
    if isinstance(value, Tensor | np.ndarray | np.generic):
        yield from _numbers(value)
    elif isinstance(value, enum.Enum):
        yield value.name.encode()
    elif isinstance(value, PLAIN + TORCH) and not isinstance(value, type):
        yield repr(value).encode()
    elif isinstance(value, tuple):
        yield from _all(value, seen)
    elif isinstance(value, Set):
        yield from (each.encode() for each in sorted(map(of, value)))
    elif id(value) in seen:
        yield f"again {seen[id(value)][0]}".encode()
    else:
        seen[id(value)] = len(seen), value
        yield from _inside(value, seen)
    yield b";"


def _inside(value: Any, seen: Seen) -> Iterator[bytes]:
    if isinstance(value, functools.partial):
        yield from _all((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.MethodType):
        yield from _all((value.__func__, value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield _name(value).encode()
        if not _of_library(value):
            own = {name: part for name, part in vars(value).items() if isinstance(part, (*PLAIN, types.FunctionType))}
            yield from _named(own, seen)
            yield from _all(value.__bases__, seen)
    elif isinstance(value, nn.Module):
        yield from _module(value, seen)
    elif isinstance(value, Mapping):
        yield from _all(value.items(), seen)
    elif isinstance(value, list | deque):
        yield from _all(value, seen)
    elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        yield f"{getattr(value, '__module__', '')}.{value.__name__}".encode()
    elif callable(value) and hasattr(value, "__wrapped__"):
        yield from _told(value.__wrapped__, seen)
    elif is_dataclass(value) or isinstance(value, SETTINGS) or (callable(value) and not _of_library(type(value))):
        yield from _all((type(value),), seen)
        yield from _named(state(value), seen, _assigned(type(value), "__call__"))


def _all(values: Iterable[Any], seen: Seen) -> Iterator[bytes]:
    for each in values:
        yield from _told(each, seen)


def _named(values: Mapping[str, Any], seen: Seen, but: Iterable[str] = ()) -> Iterator[bytes]:
    """Values under their names, but for some, and for what Python itself keeps."""
    for name in sorted(values.keys() - {*but}):
        if not name.startswith("__") or name == "__call__":
            yield name.encode()
            yield from _told(values[name], seen)


def _numbers(value: Tensor | np.ndarray | np.generic) -> Iterator[bytes]:
    yield f"{value.dtype} {tuple(value.shape)}".encode()
    if isinstance(value, np.ndarray | np.generic):
        yield repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    elif not value.is_meta and value.layout == torch.strided and value.numel():
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def _function(function: types.FunctionType, seen: Seen) -> Iterator[bytes]:
    if _of_library(function):
        yield _name(function).encode()
        return
    code = function.__code__
    operations = {(step.opname, step.argval) for step in _steps(code) if isinstance(step.argval, str)}
    read = {name for kind, name in operations if kind in ("LOAD_GLOBAL", "LOAD_NAME")}
    own = {name for kind, name in operations if kind in ("STORE_GLOBAL", "STORE_DEREF")}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    around = {name: function.__globals__[name] for name in read & function.__globals__.keys()}
    around |= {name: value for name, cell in cells for value in _content(cell)}
    if _writes(code):
        own |= {name for name, value in around.items() if isinstance(value, WRITTEN)}
    yield from _all(_meaning(code), seen)
    yield from _all((function.__defaults__, function.__kwdefaults__), seen)
    yield from _named(around, seen, own)


def _meaning(code: types.CodeType) -> tuple:
    """Bytecode, names and constants, those of functions inside it too."""
    constants = tuple(_meaning(each) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, constants


def _steps(code: types.CodeType) -> Iterator[dis.Instruction]:
    """What code does, step by step, and what the functions inside it do."""
    yield from dis.get_instructions(code)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _steps(each)


def _writes(code: types.CodeType) -> bool:
    """Whether code changes what some container holds."""
    return bool({*names(code)} & METHODS) or any(step.opname == "STORE_SUBSCR" for step in _steps(code))


def _content(cell: types.CellType) -> tuple:
    """What a variable of an outer function holds, alone in a tuple; empty where it has no value yet."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _assigned(kind: type, start: str) -> set[str]:
    """The attributes to which a method assigns, and which the methods that it names assign to."""
    found, waiting, met = set[str](), [start], {start}
    while waiting:
        method = getattr(kind, waiting.pop(), None)
        if isinstance(method, types.FunctionType):
            found |= {step.argval for step in _steps(method.__code__) if step.opname == "STORE_ATTR"}
            waiting += {*names(method.__code__)} - met
            met |= {*waiting}
    return found


def _module(network: nn.Module, seen: Seen) -> Iterator[bytes]:
    """Its modules, one after another: class, code, attributes and tensors."""
    for name, module in network.named_modules():
        yield name.encode()
        yield type(module).__qualname__.encode()
        yield from _told(type(module).forward, seen)
        own = {k: [*v.values()] if k.endswith("_hooks") else v for k, v in vars(module).items() if k not in SAVED}
        backward = {k for k in own if "backward" in k}  # these count by themselves
        yield from _named(own, seen, backward | _assigned(type(module), "forward"))
    for kind in (network.named_parameters, network.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            yield f"{name} {tensor.requires_grad}".encode()
            yield from _told(tensor, seen)


def _name(value: Callable | type) -> str:
    """The name of code; of a library's, with its place there."""
    return f"{value.__module__ if _of_library(value) else ''}.{value.__qualname__}"


def _of_library(value: Any) -> bool:
    """Whether code is installed, and none of the user's own."""
    name = str(getattr(value, "__module__", ""))
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    return name.partition(".")[0] in LIBRARIES or "site-packages" in file or "dist-packages" in file
