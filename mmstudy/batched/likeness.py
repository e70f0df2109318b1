"""Whether networks differ in more than their numbers: the first one's forward pass is used for all of an ensemble."""

import enum
import functools
import types
import weakref
from collections.abc import Mapping, Sequence, Set
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched.watch import slots
from mmstudy.core.arguments import described
from mmstudy.core.networks import named_tensors

PLAIN = (bool, int, float, complex, str, bytes, type(None), type, enum.Enum, range, slice, torch.Size)
TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
MODE = "training"  # every call sets it


def difference(first: nn.Module, other: nn.Module) -> str | None:
    """Where two networks compute differently whatever their parameters and buffers are; None where they don't.

    Compared are the classes of their modules, the names and shapes of all tensors, what is tied and what is frozen, and
    every attribute: numbers, activations, configurations, tensors that are no buffers, functions by their code. What
    cannot be compared counts as different.
    """
    if first is other:
        return None
    own, others = dict(first.named_modules()), dict(other.named_modules())
    if list(own) != list(others):
        return f"modules {sorted(own.keys() ^ others.keys()) or 'in another order'}"
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):  # what is tied has one name
        forms = [[(name, _form(tensor)) for name, tensor in kind(network)] for network in (first, other)]
        for (name, form), (another, its_form) in zip_longest(*forms, fillvalue=("nothing", "")):
            if (name, form) != (another, its_form):
                return f"{name} {form} against {another} {its_form}"
    registered = zip(named_tensors(first).values(), named_tensors(other).values(), strict=True)
    seen = {(id(a), id(b)) for a, b in registered}  # whatever their numbers are
    for name, module in own.items():
        where = name or type(module).__name__
        if type(module) is not type(others[name]):
            return f"{where}: {type(module).__name__} against {type(others[name]).__name__}"
        if found := _attributes_differ(vars(module), vars(others[name]), where, seen):
            return found
    return None


def tensors_differ(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Where tensors that are stacked along their first axis differ in name, shape, type or device."""
    forms = [{name: (tuple(t.shape[1:]), t.dtype, str(t.device)) for name, t in ts.items()} for ts in (first, other)]
    unlike = [name for name in forms[0] | forms[1] if forms[0].get(name) != forms[1].get(name)]
    return f"{unlike[0]}: {forms[0].get(unlike[0])} against {forms[1].get(unlike[0])}" if unlike else None


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}{'' if tensor.requires_grad else ' frozen'}"


def _attributes_differ(a: Mapping, b: Mapping, where: str, seen: set) -> str | None:
    tensors = {"_parameters", "_buffers", "_modules", MODE}
    for name in sorted((a.keys() | b.keys()) - tensors, key=str):
        if name not in a or name not in b:
            return f"{where}.{name}, which only one of them has"
        if found := _values_differ(a[name], b[name], f"{where}.{name}", seen):
            return found
    return None


def _values_differ(a: Any, b: Any, where: str, seen: set) -> str | None:
    if a is b or (id(a), id(b)) in seen:
        return None
    seen.add((id(a), id(b)))
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
        return difference(a, b) and unlike
    if isinstance(a, Mapping):
        return _attributes_differ(a, b, where, seen) or _attributes_differ(_state(a), _state(b), where, seen)
    if isinstance(a, Sequence):
        parts = [_values_differ(x, y, f"{where}[{i}]", seen) for i, (x, y) in enumerate(zip(a, b, strict=False))]
        return unlike if len(a) != len(b) else next(filter(None, parts), None)
    if isinstance(a, Set):
        return None if a == b else unlike
    if isinstance(a, types.FunctionType | types.MethodType | functools.partial):
        return _values_differ(_parts_of_function(a), _parts_of_function(b), where, seen) and unlike
    if state := _state(a):
        return _attributes_differ(state, _state(b), where, seen)
    try:
        return None if bool(a == b) else unlike
    except Exception:  # whatever a comparison of unknown things may raise
        return unlike


def _parts_of_function(function: Any) -> tuple:
    if isinstance(function, functools.partial):
        return function.func, function.args, function.keywords
    if isinstance(function, types.MethodType):
        bound = function.__self__  # of the network itself, usually, which is compared anyway
        return function.__func__, None if isinstance(bound, nn.Module) else bound
    closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
    code = function.__code__
    return code.co_code, code.co_names, _constants(code), function.__defaults__, function.__kwdefaults__, closure


def _constants(code: types.CodeType) -> tuple:
    """The constants in code, those of functions inside it included."""
    return tuple((c.co_code, c.co_names, _constants(c)) if isinstance(c, types.CodeType) else c for c in code.co_consts)


def _state(value: Any) -> dict:
    """The attributes of an object, those in slots included."""
    found = {name: getattr(value, name) for name in slots(type(value)) if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})
