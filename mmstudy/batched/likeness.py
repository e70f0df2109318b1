"""Whether networks differ in more than their numbers: the first one's forward pass is used for all of an ensemble."""

import enum
import functools
import types
import weakref
from collections.abc import Mapping, Sequence, Set
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mmstudy.batched.watch import names, slots
from mmstudy.core.arguments import described
from mmstudy.core.networks import named_tensors

PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, range, slice, torch.Size)
TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
MODE = "training"  # every call sets it
FILES = {name for name in vars(nn.Module()) if "state_dict" in name}  # hooks that no call runs
HOOKS = {name for name in vars(nn.Module()) if "_hooks" in name} - FILES

Seen = dict[tuple[int, int | None], Any]  # ids of what was compared → both, so that nothing else gets these ids


def difference(first: nn.Module, other: nn.Module) -> str | None:
    """Where two networks compute differently whatever their parameters and buffers are; None where they don't.

    Compared are the classes of their modules, the names and shapes of all tensors, which names are one module or one
    tensor, what is frozen, and every attribute: numbers, activations, configurations, tensors that are no buffers,
    functions by their code and the globals that it names. What cannot be compared counts as different.
    """
    if first is other:
        return None
    places = [_places(network) for network in (first, other)]
    if list(places[0].items()) != list(places[1].items()):
        unlike = [name for name in places[0] | places[1] if places[0].get(name, "") != places[1].get(name, "")]
        where = unlike[0] if unlike else "modules or tensors in another order"
        return f"{where}: {places[0].get(where, 'nothing')} against {places[1].get(where, 'nothing')}"
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        for (name, tensor), (_, another) in zip(kind(first), kind(other), strict=True):
            if _form(tensor) != _form(another):
                return f"{name} {_form(tensor)} against {name} {_form(another)}"
    own, others = dict(first.named_modules()), dict(other.named_modules())
    registered = zip(named_tensors(first).values(), named_tensors(other).values(), strict=True)
    seen: Seen = {(id(a), id(b)): None for a, b in registered}  # whatever their numbers are
    seen |= {(id(module), id(others[name])): None for name, module in own.items()}  # compared one by one
    seen |= {(id(module), None): None for module in (*own.values(), *others.values())}  # like no other module
    for name, module in own.items():
        where = name or type(module).__name__
        if _class(module) is not _class(others[name]):
            return f"{where}: {type(module).__name__} against {type(others[name]).__name__}"
        if found := _attributes_differ(_attributes(module), _attributes(others[name]), where, seen):
            return found
    return None


def tensors_differ(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Where tensors that are stacked along their first axis differ in name, shape, type or device."""
    forms = [{name: (tuple(t.shape[1:]), t.dtype, str(t.device)) for name, t in ts.items()} for ts in (first, other)]
    unlike = [name for name in forms[0] | forms[1] if forms[0].get(name) != forms[1].get(name)]
    return f"{unlike[0]}: {forms[0].get(unlike[0])} against {forms[1].get(unlike[0])}" if unlike else None


def _class(module: nn.Module) -> type:
    """Its class; of a parametrized module, which has one of its own, the class that this was made of."""
    return type(module).__mro__[1] if is_parametrized(module) else type(module)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Its attributes: hooks by their order, not by torch's count of all hooks, and not what they make of parameters.

    Pruning and the older weight normalization compute `weight` from `weight_orig`, or `weight_g` and `weight_v`, before
    each call.
    """
    own = dict(vars(module))
    for name in HOOKS & own.keys():
        order = {number: i for i, number in enumerate(vars(module)[name.partition("_hooks")[0] + "_hooks"])}
        own[name] = {order.get(number, number): hook for number, hook in own[name].items()}
    parameters = module._parameters
    made = {name.removesuffix("_orig") for name in parameters if name.endswith("_orig")}
    made |= {name.removesuffix("_g") for name in parameters if f"{name.removesuffix('_g')}_v" in parameters}
    return {name: value for name, value in own.items() if not (name in made and isinstance(value, Tensor))}


def _places(network: nn.Module) -> dict[str, str | None]:
    """For every name of a module or tensor, in order: the first name of what has this one, None where nothing has."""
    first: dict[int, str] = {}
    found: dict[str, str | None] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for name, value in chain(module._modules.items(), module._parameters.items(), module._buffers.items()):
            place = f"{path}.{name}" if path else name
            found[place] = None if value is None else first.setdefault(id(value), place)
    return found


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.requires_grad else ' frozen'}"


def _attributes_differ(a: Mapping, b: Mapping, where: str, seen: Seen) -> str | None:
    tensors = {"_parameters", "_buffers", "_modules", MODE}
    for name in sorted((a.keys() | b.keys()) - tensors - FILES, key=str):
        if name not in a or name not in b:
            return f"{where}.{name}, which only one of them has"
        if found := _values_differ(a[name], b[name], f"{where}.{name}", seen):
            return found
    return None


def _values_differ(a: Any, b: Any, where: str, seen: Seen) -> str | None:
    if a is b or (id(a), id(b)) in seen:
        return None
    seen[id(a), id(b)] = a, b
    unlike = f"{where}: {described(a)} against {described(b)}"
    if type(a) is not type(b):
        return unlike
    if isinstance(a, PLAIN + TORCH):
        return None if a == b or (a != a and b != b) else unlike
    if isinstance(a, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.to("cpu"), b.to("cpu"))
        return None if same else unlike
    if isinstance(a, weakref.ref):
        return _values_differ(a(), b(), where, seen)
    if isinstance(a, nn.Module):
        known = (id(a), None) in seen or (id(b), None) in seen  # and not at one place in both networks
        return unlike if known or difference(a, b) else None
    if isinstance(a, types.ModuleType):
        return unlike
    if isinstance(a, Mapping):
        if list(a) != list(b):
            return unlike
        return _attributes_differ(a, b, where, seen) or _attributes_differ(state(a), state(b), where, seen)
    if isinstance(a, Sequence):
        parts = [_values_differ(x, y, f"{where}[{i}]", seen) for i, (x, y) in enumerate(zip(a, b, strict=False))]
        return unlike if len(a) != len(b) else next(filter(None, parts), None)
    if isinstance(a, Set):
        return None if a == b else unlike
    if isinstance(a, types.FunctionType | types.MethodType | functools.partial):
        return _values_differ(_parts_of_function(a), _parts_of_function(b), where, seen) and unlike
    if own := state(a):
        return _attributes_differ(own, state(b), where, seen)
    try:
        return None if bool(a == b) else unlike
    except Exception:  # whatever a comparison of unknown things may raise
        return unlike


def _parts_of_function(function: Any) -> tuple:
    if isinstance(function, functools.partial):
        return function.func, function.args, function.keywords
    if isinstance(function, types.MethodType):
        return function.__func__, function.__self__
    closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
    code, known = function.__code__, function.__globals__
    used = [known[name] for name in sorted({*names(code)} & known.keys())]
    return code.co_code, code.co_names, _constants(code), function.__defaults__, function.__kwdefaults__, closure, used


def _constants(code: types.CodeType) -> tuple:
    """The constants in code, those of functions inside it included."""
    return tuple((c.co_code, c.co_names, _constants(c)) if isinstance(c, types.CodeType) else c for c in code.co_consts)


def state(value: Any) -> dict:
    """The attributes of an object, those in slots included."""
    found = {name: getattr(value, name) for name in slots(type(value)) if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})
