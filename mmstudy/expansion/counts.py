"""Numbers that follow when a list of modules gets longer: the place that a member keeps, and counts of members."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmstudy.expansion.attributes import TooManyError, name, needed, stays
from mmstudy.expansion.slots import Slot, alike, slots

PLACES = ("idx", "index", "place", "layer_id", "block_id", "depth_id", "layer_num", "block_num")  # in names of places
FEW = 2  # members whose numbers 0 and 1 may be anything, such as a switch: there the name must say that it is a place


@dataclass(frozen=True)
class Longer:
    """A list of modules that has got longer; `sources`: which old member each is, or is modelled on."""

    path: str
    members: nn.Module
    before: int
    sources: tuple[int, ...]

    def then(self, value: Any) -> list[Any]:
        """What a number, or something that has a part for each member, may become with the list."""
        if type(value) is int and value == self.before:
            return [len(self.sources)]
        if isinstance(value, list | tuple) and value:
            found: list[Any] = []
            if len(value) == self.before and not hasattr(value, "_fields"):  # which has as many parts as it has names
                found.append(type(value)(value[i] for i in self.sources))
            if all(type(v) is int for v in value):
                for i in (i for i, v in enumerate(value) if v == self.before):
                    found.append(alike(value, (*value[:i], len(self.sources), *value[i + 1 :])))
            return found
        return []


def renumbered(longer: Longer, protected: Sequence[str] = ()) -> list[str]:
    """Let members that keep their place in a list keep their new one; says which numbers that are.

    A number is a place if, in all old members that have it, it is the member's number in the list. Where two members
    have it, or the only one, its name must say so.
    """
    members = [member for member in longer.members._modules.values() if member is not None]
    old = dict(zip(longer.sources, members, strict=True))  # one for each old place
    said = []
    for path, key in _places(old):
        changed = False
        for place, member in enumerate(members):
            module = dict(member.named_modules()).get(path)
            number = vars(module).get(key, place) if module is not None else place
            if type(number) is int and number != place and not stays(protected, name(longer.path, place, path, key)):
                setattr(module, key, place)
                changed = True
        if changed:
            where = name(longer.path, "*", path, key)
            said.append(f"{where}: 0 … {longer.before - 1} → 0 … {len(members) - 1}")
    return said


def _places(members: Mapping[int, nn.Module]) -> list[tuple[str, str]]:
    """(path inside a member, attribute) of all that is the member's place wherever it is."""
    found: dict[tuple[str, str], list[bool]] = {}
    for place, member in members.items():
        for path, module in member.named_modules():
            for key, value in vars(module).items():
                if type(value) is int and not key.startswith("_"):
                    found.setdefault((path, key), []).append(value == place)
    alone = len(members) == 1
    return [
        (path, key)
        for (path, key), right in found.items()
        if all(right) and (len(right) > FEW or ((alone or len(right) == FEW) and any(name in key for name in PLACES)))
    ]


def followed(
    network: nn.Module,
    beside: nn.Module,
    longer: Sequence[Longer],
    runs: Callable[[], bool],
    protected: Sequence[str] = (),
) -> list[str]:
    """Find and change the numbers without which a network does not call all members of its longer lists.

    Of numbers, and sequences with a part for each member, in modules and their configurations, as few are changed as
    will do. Nothing is, if no choice does.

    Args:
        beside: the network that was deepened; what both hold is not changed.

    Returns:
        What was changed, such as "depth: 3 → 4".
    """
    options: dict[tuple, tuple[list[Slot], str, Any]] = {}
    seen = {id(slot.owner) for module in beside.modules() for slot in slots(module)}
    for path, module in network.named_modules():
        for slot in slots(module):
            if slot.owner is not module and id(slot.owner) in seen:
                continue  # one configuration that many modules share, or both networks
            where = name(path, *slot.path)
            for then in [] if stays(protected, where) else [then for one in longer for then in one.then(slot.value)]:
                alike = (type(module), slot.path, repr(slot.value), repr(then))
                options.setdefault(alike, ([], where, then))[0].append(slot)
        seen |= {id(slot.owner) for slot in slots(module)}
    choices = list(options.values())

    def outcome(chosen: frozenset[int]) -> float | None:
        with _put([choices[i] for i in chosen]):
            return 0.0 if runs() else None

    try:
        chosen = needed(len(choices), outcome, 0.0)
    except TooManyError:
        chosen = None
    said = []
    for i in sorted(chosen or ()):
        some, where, then = choices[i]
        said.append(f"{where}: {some[0].value} → {then}")
        for slot in some:
            slot.put(then)
    return said


@contextmanager
def _put(choices: Sequence[tuple[list[Slot], str, Any]]) -> Iterator[None]:
    try:
        for some, _, then in choices:
            for slot in some:
                slot.put(then)
        yield
    finally:
        for some, _, _ in choices:
            for slot in some:
                slot.put(slot.value)
