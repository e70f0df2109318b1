"""The configuration of a grown network: changed so that the network's class builds from it what the network has become.

Nothing is known of any class or name. A configuration is a set of named values that a module keeps, and from which the
module's class builds its tensors anew, by name and shape. It fits a grown network if the class builds that from it, and
what is built is the same function with the same tensors: so what is saved with it is loaded by it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import nn

from mmstudy.expansion import blocks
from mmstudy.expansion.counts import Longer, is_configuration, slots
from mmstudy.expansion.exactness import change
from mmstudy.tracing.calls import Call

BUILDS = 64  # ways to change a configuration that are built, without memory for their tensors
CONFIRMED = 8  # of them, with their tensors, and called
SAME = 1e-6  # a change of the outputs, as a share of how they vary, that is rounding

Shapes = dict[str, tuple[int, ...]]
Path = tuple[str | int, ...]  # of a value in a configuration
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
            module = _built(self.kind, _loaded(self.changed(choice)), "meta") if self.builds <= BUILDS else None
            self.known[key] = _shapes(module) if module is not None else None
        return self.known[key]

    @property
    def kinds(self) -> set[type]:
        """The classes of the configuration and of those in it."""
        return {type(self.config), *(type(value) for value in vars(self.config).values() if is_configuration(value))}


def fit(old: nn.Module, new: nn.Module, call: Call, longer: Sequence[Longer] = ()) -> tuple[tuple[str, ...], str]:
    """Let a grown network have the configuration that its class would build it from.

    The numbers of sizes and places that its modules keep are then as the class sets them. The network stays as it is if
    no configuration fits.

    Args:
        old: the network before, which its configuration fits.
        longer: its lists of modules that have got longer.

    Returns:
        What was changed; and what is to be said of the configuration, nothing if there is none.
    """
    said: list[str] = []
    parts, strange = configured(old)
    words = [f"{kind} does not build what it was from its {key}, which stays as it is" for kind, key in strange]
    for part in parts:
        module = new.get_submodule(part.path)
        target, kind = _shapes(module), part.kind.__name__
        if target == part.shapes({}):
            continue
        found = _confirmed(part, old, new, call, target, longer)
        if found is None:
            words.append(
                f"no configuration of {kind} with these numbers changed builds the grown network: it works as it is, "
                "but what is saved of it cannot be loaded by its class alone"
            )
            continue
        choice, numbers = found
        name = ".".join(filter(None, (part.path, part.key)))
        before = {slot.path: slot.value for slot in slots(part.config)}
        said += [f"{'.'.join(map(str, (name, *p)))}: {before[p]} → {then}" for p, then in choice.items()]
        said += numbers
        words.append(f"{kind} builds the grown network from its configuration")
    return tuple(said), "; ".join(words)


def configured(network: nn.Module) -> tuple[list[Configured], list[tuple[str, str]]]:
    """The outermost modules that their class builds anew, tensor by tensor, from a configuration that they keep.

    Beside them: (class, attribute) of configurations of outermost modules that do not build them.
    """
    found: list[Configured] = []
    strange: dict[int, tuple[str, str]] = {}  # by the configuration
    for path, module in network.named_modules():
        if any(part.path == "" or f"{path}.".startswith(f"{part.path}.") for part in found):
            continue
        kept = {key: value for key, value in vars(module).items() if is_configuration(value) and any(slots(value))}
        for key, value in kept.items():
            if id(value) in strange:
                continue
            part = Configured(path, type(module), copy.deepcopy(value), key)
            if part.shapes({}) == _shapes(module):
                found.append(part)
                break
            strange[id(value)] = (type(module).__name__, key)
    inside = {id(value) for part in found for value in vars(network.get_submodule(part.path)).values()}
    return found, [said for each, said in strange.items() if each not in inside]


def _shapes(module: nn.Module) -> Shapes:
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


def _built(kind: type[nn.Module], config: Any, device: str) -> nn.Module | None:
    """What a class builds from a configuration; None if it does not."""
    if config is None:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return kind(config)
    except Exception:  # whatever a class does with numbers that do not go together
        return None


def _confirmed(
    part: Configured, old: nn.Module, new: nn.Module, call: Call, target: Shapes, longer: Sequence[Longer]
) -> tuple[Choice, list[str]] | None:
    """The first choice that builds the grown network, which then has it; and the numbers of modules that changed."""
    before = None if longer else blocks.run(new, call)  # a longer network may not run without its configuration
    tried = 0
    for choice in _choices(part, target, longer, _shapes(old.get_submodule(part.path))):
        if (tried := tried + 1) > CONFIRMED:
            return None
        built = _built(part.kind, part.changed(choice), "cpu")
        if built is None:
            continue
        module = new.get_submodule(part.path)
        _load(built, module)
        with _as_built(module, built, part) as (numbers, keep):
            try:
                now = blocks.run(new, call)
                same = change(now, _instead(new, part.path, built, call)) <= SAME and (
                    before is None or change(before, now) <= SAME
                )
            except Exception:  # whatever a network does with numbers that are wrong
                same = False
            if same:
                keep.append(True)
                return choice, numbers
    return None


def _choices(part: Configured, target: Shapes, longer: Sequence[Longer], old: Shapes) -> Iterator[Choice]:
    """Choices that build tensors of these shapes, those that change fewer values first, as far as the tries go."""
    values = {slot.path: slot.value for slot in slots(part.config)}
    ratios = {(a, b) for name in old.keys() & target.keys() for a, b in _lengths(old[name], target[name])}

    def options(choice: Choice) -> Iterator[list[tuple[Path, Any]]]:
        """Values that may change next, the likelier first: counts and lengths, their divisors, gaps."""
        built = part.shapes(choice) or {}
        wrong = {(a, b) for name in built.keys() & target.keys() for a, b in _lengths(built[name], target[name])}
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

    def search(choice: Choice) -> Iterator[Choice]:
        here = wrong(choice)
        if here == 0:
            yield choice
            return
        refused: list[Choice] = []
        for some in options(choice):
            after = [(wrong(more), more) for path, then in some for more in ({**choice, path: then},)]
            better = [count for count, _ in after if count is not None and (here is None or count < here)]
            if better:
                for more in (more for count, more in after if count == min(better)):
                    yield from search(more)
                return
            refused += [more for count, more in after if count is None]
        for one, other in combinations(refused, 2):  # numbers that go together
            count = wrong({**one, **other})
            if count is not None and (here is None or count < here):
                yield from search({**one, **other})

    seen: list[Choice] = []
    for choice in search({}):
        if choice not in seen:
            seen.append(choice)
            yield choice
    for choice in list(seen):  # numbers that no shape shows, as one of heads
        for path, value in values.items():
            for then in _scaled(value, ratios) if path not in choice else ():
                if part.shapes({**choice, path: then}) == target:
                    yield {**choice, path: then}


def _lengths(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(before, after, strict=False) if a != b]


def _scaled(value: Any, lengths: set[tuple[int, int]]) -> list[Any]:
    """What a value may become where lengths of axes change: a number that divides one, or is a multiple, as it does."""
    if value is None:
        return sorted({b for _, b in lengths})
    if type(value) is int and value > 0:
        alike = [(a, b) for a, b in lengths if (a % value == 0 or value % a == 0) and (value * b) % a == 0]
        return sorted({value * b // a for a, b in alike} - {value})
    if isinstance(value, list | tuple) and all(type(v) is int for v in value):
        return [
            type(value)((*value[:i], then, *value[i + 1 :]))
            for i, v in enumerate(value)
            for then in _scaled(v, lengths)
        ]
    return []


def _load(built: nn.Module, module: nn.Module) -> None:
    """Give a module that was built anew the tensors of the other one."""
    like = next(iter(module.parameters()))
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    built.to(like.device)
    if len(kinds) == 1:
        built.to(kinds.pop())  # buffers that are not saved too
    built.load_state_dict(module.state_dict(), assign=True)


@contextmanager
def _as_built(module: nn.Module, built: nn.Module, part: Configured) -> Iterator[tuple[list[str], list[bool]]]:
    """The module with the configurations and the sizes of the one that was built; for good, if the list is filled."""
    others, keep = dict(built.named_modules()), list[bool]()
    undo: list[tuple[nn.Module, str, Any]] = []
    said: list[str] = []
    for name, own in module.named_modules():
        for key, then in vars(others[name]).items() if name in others else ():
            now = vars(own).get(key)
            number = _whole(then) and _whole(now) and now != then and key[0] != "_"
            if number or (type(then) in part.kinds and type(now) is type(then)):
                undo.append((own, key, now))
                if number:
                    said.append(f"{'.'.join(filter(None, (part.path, name, key)))}: {now} → {then}")
                setattr(own, key, then)
    try:
        yield said, keep
    finally:
        for own, key, now in reversed(undo if not keep else []):
            setattr(own, key, now)


def _whole(value: Any) -> bool:
    return type(value) is int or (type(value) is tuple and all(type(v) is int for v in value))


def _instead(network: nn.Module, path: str, module: nn.Module, call: Call) -> Any:
    """What the network puts out with another module at a path."""
    if not path:
        return blocks.run(module, call)
    parent, _, name = path.rpartition(".")
    around = network.get_submodule(parent)
    own = around._modules[name]
    try:
        around._modules[name] = module
        return blocks.run(network, call)
    finally:
        around._modules[name] = own
