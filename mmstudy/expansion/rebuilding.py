"""Modules that their classes build from a configuration: found, and built anew.

Nothing is known of any class or name. What is built to see its shapes takes no memory for its tensors.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmstudy.expansion.attributes import name
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.slots import Path, is_configuration, slots

BUILDS = 64  # ways to change a configuration that are built
DRAWS = {name for name in vars(nn.init) if name.endswith("_")}  # names of functions and methods that draw

Shapes = dict[str, tuple[int, ...]]
Choice = Mapping[Path, Any]  # the values that change → what they become


@dataclass
class Configured:
    """A module of a network, the configuration that its class builds it from, and how often that was tried."""

    path: str
    kind: type[nn.Module]
    config: Any
    key: str  # of the configuration in the module
    builds: int = 0
    known: dict[str, Shapes | None] = field(default_factory=dict)

    def changed(self, choice: Choice) -> Any:
        """A copy of the configuration with other values."""
        new = copy.deepcopy(self.config)
        places = {slot.path: slot for slot in slots(new)}
        for path, then in choice.items():
            places[path].put(copy.copy(then))
        return new

    def shapes(self, choice: Choice) -> Shapes | None:
        """The tensors that the class builds with other values; None if it builds nothing, or the tries are used up."""
        key = repr(sorted(choice.items(), key=repr))
        if key not in self.known:
            self.builds += 1
            module = built(self.kind, _loaded(self.changed(choice)), "meta") if self.builds <= BUILDS else None
            self.known[key] = shapes_of(module) if module is not None else None
        return self.known[key]

    @property
    def kinds(self) -> set[type]:
        """The classes of the configuration and of those in it."""
        return {type(self.config), *(type(value) for value in vars(self.config).values() if is_configuration(value))}


def configured(network: nn.Module) -> tuple[list[Configured], list[str]]:
    """The outermost modules that their class builds anew, tensor by tensor, from a configuration that they keep.

    Beside them: what is to be said of configurations of outermost modules that are left alone.
    """
    found: list[Configured] = []
    strange: dict[int, str] = {}  # by the configuration
    for path, module in network.named_modules():
        if any(part.path == "" or f"{path}.".startswith(f"{part.path}.") for part in found):
            continue
        kept = {key: value for key, value in vars(module).items() if is_configuration(value) and any(slots(value))}
        for key, value in kept.items():
            if id(value) in strange:
                continue
            part, kind = Configured(path, type(module), copy.deepcopy(value), key), type(module).__name__
            if _places(part.config) & _places(value):  # to try changes on it would change the network's
                strange[id(value)] = (
                    f"a copy of the {key} of {kind} is no copy of all that it holds, so it stays as it is"
                )
            elif part.shapes({}) == shapes_of(module):
                found.append(part)
                break
            else:
                strange[id(value)] = f"{kind} does not build what it was from its {key}, which stays as it is"
    inside = {id(value) for part in found for value in vars(network.get_submodule(part.path)).values()}
    return found, [said for each, said in strange.items() if each not in inside]


def _places(config: Any) -> set[int]:
    return {id(slot.owner) for slot in slots(config)}


def shapes_of(module: nn.Module) -> Shapes:
    """The tensors that are saved of a module: name → shape."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _loaded(config: Any) -> Any:
    """The configuration as it is after it was written down and read again; None if its class refuses it."""
    kind = type(config)
    if not callable(getattr(kind, "from_dict", None)) or not callable(getattr(kind, "to_dict", None)):
        return config
    try:
        return kind.from_dict(config.to_dict())
    except Exception:  # whatever a class says of numbers that do not go together
        return None


class _Undrawn(TorchFunctionMode):
    """Parameters are not drawn, which takes most of the time of building: others are put in their place.

    What draws is known by its name: a package may have put functions of its own in the place of those of `nn.init`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        drawn = args[0] if args else kwargs.get("tensor")
        draws = getattr(function, "__name__", "") in DRAWS and isinstance(drawn, nn.Parameter)
        return drawn if draws else function(*args, **kwargs)


def built(kind: type[nn.Module], config: Any, device: str) -> nn.Module | None:
    """What a class builds from a configuration, its parameters but for their shapes left open; None if it does not."""
    if config is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), _Undrawn():
            return kind(config)
    except Exception:  # whatever a class does with numbers that do not go together
        return None


def origins(old: nn.Module, new: nn.Module, longer: Sequence[Longer]) -> dict[str, str]:
    """The path of each module of a grown network → that of the old one which it is, or is modelled on."""
    sources = {id(one.members): one.sources for one in longer}
    found = dict[str, str]()

    def follow(now: nn.Module, then: nn.Module, path: str, before: str) -> None:
        found[path] = before
        names = list(then._modules)
        for place, (key, inner) in enumerate(now._modules.items()):
            origin = names[sources[id(now)][place]] if id(now) in sources else key
            other = then._modules.get(origin)
            if inner is not None and other is not None:
                follow(inner, other, name(path, key), name(before, origin))

    follow(new, old, "", "")
    return found
