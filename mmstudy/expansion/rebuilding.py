"""Which changes of a configuration let a class build tensors of given names and shapes: found by building.

Nothing is known of any class or name. What is built to see its shapes takes no memory for its tensors.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, combinations
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmstudy.expansion.attributes import fewest, name, stays
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.slots import Path, alike, is_configuration, slots

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


def choices(
    part: Configured, new: nn.Module, longer: Sequence[Longer], old: nn.Module, protected: Sequence[str]
) -> Iterator[Choice]:
    """Which values of a configuration to change, so that it builds tensors of the shapes of the new module.

    A value that was that of a module's attribute which is another number now (the eps of a normalization) becomes that
    number, if the class sets the attribute by it; others that are equal to it by chance stay.

    Yields:
        Choices that do so, those that change fewer values first, as far as the tries go.
    """
    target, before = shapes_of(new), shapes_of(old)
    values = {slot.path: slot.value for slot in slots(part.config)}
    values = {p: value for p, value in values.items() if not stays(protected, name(part.path, part.key, *p))}
    ratios = {(a, b) for key in before.keys() & target.keys() for a, b in _lengths(before[key], target[key])}
    turned = _turned(old, new, origins(old, new, longer))
    ways = {now: {then for before, then in turned.values() if before == now} for now, _ in turned.values()}
    numbers = {now: min(some) for now, some in ways.items() if len(some) == 1}  # what changed in two ways is left out
    moved = {path: numbers[value] for path, value in values.items() if type(value) is float and value in numbers}

    def few(choice: Choice) -> Choice:
        """The fewest of the values that move by which the class sets as many attributes right as by all of them."""

        def right(some: Choice) -> int:
            made = built(part.kind, part.changed({**choice, **some}), "meta")
            modules = {} if made is None else dict(made.named_modules())
            return sum(vars(modules[at]).get(key) == turned[at, key][1] for at, key in turned if at in modules)

        most = right(moved)
        return {} if most == right({}) else _fewest(moved, lambda some: right(some) == most)

    def options(choice: Choice) -> Iterator[list[tuple[Path, Any]]]:
        """Values that may change next, the likelier first: counts and lengths, their divisors, gaps."""
        made = part.shapes(choice) or {}
        wrong = {(a, b) for key in made.keys() & target.keys() for a, b in _lengths(made[key], target[key])}
        free = {path: value for path, value in values.items() if path not in choice}
        first = [(path, then) for path, value in free.items() for one in longer for then in one.then(value)]
        first += [(path, b) for path, value in free.items() for a, b in wrong if type(value) is int and value == a]
        yield first
        scaled = [(path, then) for path, value in free.items() for then in _scaled(value, wrong)]
        yield [option for option in scaled if option not in first and free[option[0]] is not None]
        yield [option for option in scaled if free[option[0]] is None]

    def wrong(choice: Choice) -> int | None:
        shapes = part.shapes(choice)
        return None if shapes is None else len(dict(shapes.items() ^ target.items()))

    def together(choice: Choice, here: int | None) -> Iterator[Choice]:
        """Values that go with a list that has got longer and must change at once: all, or all sequences and a count."""

        def no_worse(some: Choice, most: int) -> bool:
            count = wrong({**choice, **some})
            return count is not None and count <= most

        for one in longer:
            thens = {path: one.then(value) for path, value in values.items() if path not in choice}
            every = {path: some[0] for path, some in thens.items() if some}
            sequences = {path: then for path, then in every.items() if type(then) is not int}
            for some in (every, *({**sequences, path: then} for path, then in every.items() if path not in sequences)):
                most = wrong({**choice, **some})
                if some and most is not None and (here is None or most < here):
                    yield {**choice, **_fewest(some, partial(no_worse, most=most))}

    def search(choice: Choice) -> Iterator[Choice]:
        here = wrong(choice)
        if here == 0:
            yield choice
            return
        refused: list[Choice] = []
        for some in options(choice):
            after = [(wrong(more), more) for path, then in some for more in ({**choice, path: then},)]
            better = [(count, more) for count, more in after if count is not None and (here is None or count < here)]
            if better:  # the best first; shapes alone do not tell the number of heads from their width
                for _, more in sorted(better, key=itemgetter(0)):
                    yield from search(more)
                return
            refused += [more for count, more in after if count is None]
        for several in together(choice, here):
            yield from search(several)
        for one, other in combinations(refused, 2):  # numbers that go together
            count = wrong({**one, **other})
            if count is not None and (here is None or count < here):
                yield from search({**one, **other})

    seen: list[Choice] = []
    for choice in search({}):
        for full in ({**choice, **few(choice)}, {**choice, **moved}, choice) if moved else (choice,):
            if full not in seen:
                seen.append(full)
                yield full
    for choice in list(seen):  # numbers that no shape shows, as one of heads, or of heads and of heads of keys
        given, unset = list[Choice](), list[Choice]()
        for path, value in values.items():
            if path not in choice:
                (unset if value is None else given).extend({**choice, path: then} for then in _scaled(value, ratios))
        fit = [more for more in given if part.shapes(more) == target]
        broken = [more for more in given if more not in fit]
        pairs = ({**one, **other} for one, other in combinations(broken, 2) if one.keys() != other.keys())
        yield from chain(fit, (more for more in chain(pairs, unset) if part.shapes(more) == target))


def _fewest(values: Choice, good: Callable[[Choice], bool]) -> Choice:
    """The fewest of the values that are good, if all of them are."""
    paths = tuple(values)

    def some(chosen: frozenset[int]) -> Choice:
        return {paths[i]: values[paths[i]] for i in sorted(chosen)}

    return some(fewest(frozenset(), False, tuple(range(len(paths))), lambda chosen: good(some(chosen))))


def _turned(old: nn.Module, new: nn.Module, before: Mapping[str, str]) -> dict[tuple[str, str], tuple[float, float]]:
    """The fractions that modules keep and that have changed: (module, attribute) → (then, now); `before`: `origins`."""
    others, modules = (dict(network.named_modules(remove_duplicate=False)) for network in (old, new))
    return {
        (path, key): (then, now)
        for path, origin in before.items()
        for key, now in vars(modules[path]).items()
        for then in (vars(others[origin]).get(key),)
        if type(now) is float and type(then) is float and now != then
    }


def _lengths(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(before, after, strict=False) if a != b]


def _scaled(value: Any, lengths: set[tuple[int, int]]) -> list[Any]:
    """What a value may become where lengths of axes change: a number that divides one, or is a multiple, as it does."""
    if value is None:
        return sorted({b for _, b in lengths})
    if type(value) is int and value > 0:
        fit = [(a, b) for a, b in lengths if (a % value == 0 or value % a == 0) and (value * b) % a == 0]
        return sorted({value * b // a for a, b in fit} - {value})
    if isinstance(value, list | tuple) and all(type(v) is int for v in value):
        whole = [[v * b // a for v in value] for a, b in lengths if all(v * b % a == 0 for v in value)]
        single = [[*value[:i], then, *value[i + 1 :]] for i, v in enumerate(value) for then in _scaled(v, lengths)]
        return [alike(value, each) for each in (*single, *whole)]
    return []
