"""All that the Python of a function can reach and that may change between two calls, and whether it has changed."""

import dis
import enum
import inspect
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping, ValuesView
from functools import _lru_cache_wrapper, partial
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.parameter import is_lazy

MOST = 20_000  # things that are watched; with more, the look at each call would cost more than it saves
# code without state of a user
LIBRARIES = {"torch", "numpy", "mmstudy", "jaxtyping", "beartype", *sys.stdlib_module_names}
# a list of tensor operations does not do what these do
LOUD = {"print", "open", "input", "exec", "eval", "environ", "getenv", "__import__", "import_module"}
CLOCKS = {"time", "random", "secrets", "datetime"}  # modules that say something else at every call
CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(...), enum.Enum, torch.Size),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.finfo, torch.iinfo, inspect.Signature),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, types.MethodDescriptorType),
    *(types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.GenericAlias),
    *(types.CodeType, types.UnionType),
)
CONTAINERS = (list, tuple, set, frozenset, deque)
# from which an object may inherit without state that Python does not show; of other classes in C there is no telling
TRANSPARENT = {object, dict, *CONTAINERS, OrderedDict, defaultdict, types.SimpleNamespace, types.MappingProxyType}
TRANSPARENT |= set(CONSTANTS)
TRANSPARENT_MODULES = {"abc", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "typing"}
IN_C = {"torch._C", "numpy", *sys.stdlib_module_names}
HOOKS = {name for name in vars(nn.Module()) if name.endswith("_hooks")}
HOOKS_OF_ALL = [hooks for name, hooks in vars(torch_modules).items() if name.startswith("_global") and "_hooks" in name]

ABSENT = object()  # stands for an attribute that is gone
CONTENTS, VERSION = attrgetter("cell_contents"), attrgetter("_version")
TRAINED, GRADIENT = attrgetter("requires_grad"), attrgetter("grad")

Values = Callable[[], Iterable]


class Opaque(Exception):
    """A function reaches something whose changes cannot be seen."""


def watch(function: Callable, sets_mode_of: nn.Module | None = None) -> Callable[[], bool]:
    """A function that says whether all that `function` reaches is still what it is now.

    That is its closure, its defaults, the globals that its code names, and all that these lead to: modules with their
    attributes and modes, losses, containers, tensors with their versions and gradients.

    Args:
        sets_mode_of: a network whose training mode the function itself sets, so that it may have any when it is called.

    Raises:
        Opaque: something whose changes cannot be seen (a generator, a file, an array of numpy, a tensor that torch no
            longer lets be looked at, …), a hook, or code that prints, or that reads a clock or random numbers.
    """
    any_mode = set() if sets_mode_of is None else {id(module) for module in sets_mode_of.modules()}
    seen: dict[int, Any] = {}  # kept alive, so that nothing else gets the same id
    views: list[Collection] = []  # of containers, which show what these hold at any time
    empty: list[Collection] = []  # most containers of a module are, and to look at them costs next to nothing
    getters: list[Values] = []
    waiting: list[Any] = [function]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or _constant(value):
            continue
        seen[id(value)] = value
        if len(seen) > MOST:
            raise Opaque(f"more than {MOST} things")
        constant, containers, others = _inside(value, any_mode)
        changing = [view for each in containers if each for view in _views(each)]
        waiting.extend(chain(constant, *changing, *[values() for values in others]))
        empty.extend(each for each in containers if not each)
        views.extend(changing)
        getters.extend(others)
    tensors = [value for value in seen.values() if isinstance(value, Tensor)]
    modules = [value for value in seen.values() if isinstance(value, nn.Module)]
    leaves = [tensor for tensor in tensors if tensor.is_leaf]  # torch warns who asks another for its gradient
    getters += [partial(map, type, modules), partial(map, TRAINED, tensors), partial(map, GRADIENT, leaves)]
    attributes = list(map(vars, modules))
    hooks = [*HOOKS_OF_ALL, *(own[name] for own in attributes for name in HOOKS & own.keys())]
    if any(hooks):
        raise Opaque("hooks")

    memory = [tensor.detach() for tensor in tensors]  # which is kept, so that no other gets its address

    def counts() -> list[int]:
        return [*map(len, views), *map(len, attributes), *map(VERSION, tensors)]

    def look() -> list:
        return list(chain(chain.from_iterable(views), chain.from_iterable([values() for values in getters])))

    counted, seen_then = counts(), look()

    def same() -> bool:  # in this order: as many things as before, so that what follows compares like with like
        as_many = not any(hooks) and not any(empty) and counted == counts()
        return as_many and all(map(is_, look(), seen_then)) and all(map(_in_one_place, tensors, memory))

    return same


def _constant(value: Any) -> bool:
    """Whether it can never change: an object of a user's own class may, though it is a number, a text or an enum."""
    return isinstance(value, CONSTANTS) and _of_library(type(value))


def _in_one_place(tensor: Tensor, memory: Tensor) -> bool:
    """Whether its numbers lie there: elsewhere, once `tensor.data` has been given others."""
    return tensor.layout is not torch.strided or tensor.data_ptr() == memory.data_ptr()


def _views(container: Collection) -> list[Collection]:
    """What shows at any time what a container holds.

    Raises:
        Opaque: a mapping of which only copies are to be had.
    """
    if not isinstance(container, Mapping):
        return [container]
    keys, values = container.keys(), container.values()
    if not (isinstance(keys, KeysView) and isinstance(values, ValuesView)):
        raise Opaque(f"a {type(container).__name__}, which shows copies of what it holds")
    return [keys, values]


def _inside(value: Any, any_mode: set[int]) -> tuple[Iterable, list[Collection], list[Values]]:
    """What a value consists of: what cannot change, containers of what can, and functions that say what else it is.

    Each of these functions always says as many things; of a module's attributes, those that are there now.

    Raises:
        Opaque: as `watch`.
    """
    if isinstance(value, types.BuiltinFunctionType | types.FunctionType | type) and (
        value.__module__ in CLOCKS
        or (value.__name__ in LOUD and _of_python(value))  # whatever name the code has for it
    ):
        raise Opaque(f"{value.__module__}.{value.__name__}")
    if isinstance(value, Tensor):
        return _inside_tensor(value)
    if isinstance(value, nn.Module):
        own = vars(value)
        names = [name for name in own if name not in HOOKS and not (name == "training" and id(value) in any_mode)]
        return (type(value),), [], [partial(map, own.get, names, repeat(ABSENT))]
    if isinstance(value, types.FunctionType):
        return _inside_function(value)
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__), [], []
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords), [], []
    if isinstance(value, staticmethod | classmethod | _lru_cache_wrapper):
        return () if _of_library(value) else (value.__wrapped__,), [], []
    if isinstance(value, weakref.ref):
        return (), [], [lambda: (value(),)]
    if isinstance(value, property):
        return (value.fget, value.fset), [], []
    if isinstance(value, types.ModuleType):
        if value.__name__ in CLOCKS or value.__name__.startswith("numpy.random"):
            raise Opaque(f"the module {value.__name__}")
        own = {} if _library(value.__name__) else vars(value)
        names = [name for name in own if not name.startswith("__")]
        return (), [], [partial(map, own.get, names, repeat(ABSENT))]
    if isinstance(value, types.BuiltinFunctionType):
        return (), [], []
    if isinstance(value, type):
        return ((), [], []) if _of_library(value) else ((*value.__mro__[1:], type(value)), [vars(value)], [])
    return _inside_object(value)


def _inside_tensor(tensor: Tensor) -> tuple[Iterable, list[Collection], list[Values]]:
    if is_lazy(tensor):
        raise Opaque("a parameter that has no shape yet")
    if tensor.is_inference():
        raise Opaque("a tensor of inference mode, which counts no changes")
    try:
        tensor.detach()
        gradient = tensor.grad if tensor.is_leaf else None
    except RuntimeError as error:  # a view whose memory was written into, or what a batch of networks left behind
        raise Opaque("a tensor that can no longer be looked at") from error
    return (type(tensor), gradient), [vars(tensor)], []


def _inside_function(function: types.FunctionType) -> tuple[Iterable, list[Collection], list[Values]]:
    if function.__module__ == "mmstudy.batched.replay":
        return (), [], []  # a recorded function, which watches for itself
    cells = function.__closure__ or ()
    try:
        tuple(map(CONTENTS, cells))
    except ValueError:
        raise Opaque("a name that has no value yet") from None
    closure: list[Values] = [partial(map, CONTENTS, cells)] if cells else []
    if _of_library(function):
        return (), [], closure
    named = set(names(function.__code__))
    if loud := named & LOUD:
        raise Opaque(f"{', '.join(sorted(loud))}")
    if foreign := [name for name in _imports(function.__code__) if not _library(name)]:
        raise Opaque(f"an import of {', '.join(foreign)}")
    globals_ = function.__globals__
    reads = [globals_, *_libraries(globals_, named)]
    read = [partial(map, each.get, named & each.keys()) for each in reads]
    own = partial(attrgetter("__code__", "__defaults__", "__kwdefaults__"), function)
    return (), [vars(function)], [*closure, *read, own]


def _libraries(names: dict[str, Any], named: set[str]) -> list[dict[str, Any]]:
    """The contents of each library's module among these names, and among its own: any function there can be replaced.

    Args:
        names: the globals of a function.
        named: the names that its code uses: only these are followed.
    """
    found: dict[int, dict[str, Any]] = {}
    waiting = [names]
    while waiting:
        each = waiting.pop()
        modules = [each[name] for name in named & each.keys() if isinstance(each[name], types.ModuleType)]
        inside = [vars(module) for module in modules if _library(module.__name__) and id(vars(module)) not in found]
        found |= {id(contents): contents for contents in inside}
        waiting += inside
    return list(found.values())


def _inside_object(value: Any) -> tuple[Iterable, list[Collection], list[Values]]:
    if any(map(_hides_state, type(value).__mro__)):
        raise Opaque(f"a {type(value).__name__}")
    containers: list[Collection] = [value] if isinstance(value, Mapping | list | set | deque) else []
    fixed = value if isinstance(value, tuple | frozenset) else ()
    own = slots(type(value))
    others: list[Values] = []
    if hasattr(value, "__dict__"):
        containers.append(vars(value))
    elif own:
        others.append(lambda: [getattr(value, name, None) for name in own])
    if not containers and not others and not isinstance(value, (tuple, frozenset, *CONSTANTS)):
        raise Opaque(f"a {type(value).__name__}")
    return (*fixed, type(value)), containers, others


def _hides_state(kind: type) -> bool:
    if kind in TRANSPARENT or kind.__module__ in TRANSPARENT_MODULES:
        return False
    return kind.__module__ in IN_C or kind.__module__.partition(".")[0] in IN_C


def slots(kind: type) -> list[str]:
    """The names of the attributes that objects of a class keep in slots."""
    found = [vars(each).get("__slots__", ()) for each in kind.__mro__]
    names = [name for some in found for name in ((some,) if isinstance(some, str) else some)]
    return [name for name in names if not name.startswith("__")]


def _of_library(value: Any) -> bool:
    """Whether code belongs to a library: no loss keeps its state there."""
    return _library(str(getattr(value, "__module__", "")))


def _of_python(value: Any) -> bool:
    """Whether it comes with Python itself."""
    return str(value.__module__).partition(".")[0] in sys.stdlib_module_names


def _library(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES


def names(code: types.CodeType) -> Iterator[str]:
    """The names of globals and attributes that code uses, and that code inside it does."""
    for each in _codes(code):
        yield from each.co_names


def _imports(code: types.CodeType) -> Iterator[str]:
    """The modules that code imports for itself."""
    for each in _codes(code):
        yield from (step.argval for step in dis.get_instructions(each) if step.opname == "IMPORT_NAME")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
