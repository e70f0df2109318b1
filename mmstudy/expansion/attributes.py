"""The numbers that modules keep of their own sizes, such as a LayerNorm's shape or a number of heads, and which follow.

A number that merely equals a length that grows (an index of a layer, a horizon) must stay. So as few as possible are
changed: those without which the network does not run as predicted, or is another function.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import combinations, islice
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmstudy.expansion.slots import Path, Slot, alike, at, numbers, slots

TRIES = 48  # ways to choose among such numbers that are tried out
MORE = 16  # of them, to find those without which the network runs, as another function

Size = tuple[str, Path, object]  # (path of a module, that of a number in it, its new value)
Outcome = Callable[[frozenset[int]], float | None]  # those that change → change of the outputs; None: it does not run


class TooManyError(ValueError):
    """There are too many numbers to find out which of them must change."""


@dataclass(frozen=True)
class Kept:
    """A number, or a tuple of numbers, that modules of one class keep and that equals a length that grows."""

    kind: type
    place: Path
    now: object
    then: object
    paths: tuple[str, ...]  # modules of a class change alike

    def __str__(self) -> str:
        return f"{name(self.kind.__name__, *self.place)} = {self.now}"

    def put(self, network: nn.Module, value: object) -> None:
        """Let all these modules of a network keep another value there."""
        for path in self.paths:
            at(network.get_submodule(path), self.place).put(value)


def kept(
    network: nn.Module,
    lengths: Callable[[str], Mapping[int, int]],
    protected: Sequence[str] = (),
    beside: nn.Module | None = None,
    apart: bool = False,
) -> list[Kept]:
    """All that may have to follow; `lengths`: path of a module → its lengths that grow, now → then.

    What a pattern in `protected` names, such as "blocks.0.horizon" or "*.layer_idx", is left out.

    Args:
        beside: the network of which this one is a copy. If it is given, private attributes are looked at too, and what
            modules hold (configurations, dicts, lists, objects), unless both networks hold the very same.
        apart: several numbers of one tuple are changed one by one; else all of them at once.
    """
    deeply, theirs = beside is not None, set[int]()
    for module in beside.modules() if beside is not None else ():
        theirs |= {id(slot.owner) for slot in numbers(module, deeply)}
    places: dict[tuple, list[str]] = {}
    shared = set[tuple[int, str | int]]()  # places in what several modules hold
    for path, module in network.named_modules():
        longer = {now: then for now, then in lengths(path).items() if 1 < now != then}
        for slot in numbers(module, deeply) if longer else ():
            own = (id(slot.owner), slot.key)
            if own in shared or own[0] in theirs or stays(protected, name(path, *slot.path)):
                continue
            for place, now, then in _ways(slot, longer, apart):
                shared.add(own)
                places.setdefault((type(module), place, now, then), []).append(path)
    return [Kept(kind, place, now, then, tuple(paths)) for (kind, place, now, then), paths in places.items()]


def name(*parts: object) -> str:
    """The path of a number: of a module, an attribute and what is in it."""
    return ".".join(str(part) for part in parts if part != "")


def stays(protected: Sequence[str], path: str) -> bool:
    """Whether a number must stay, as patterns of paths say: "blocks.0.horizon", "*.layer_idx"."""
    return any(fnmatchcase(path, pattern) for pattern in protected)


def starred(name: str) -> str:
    """A module's name with stars for the numbers in it: members of lists are alike."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def check_protected(network: nn.Module, protected: Sequence[str]) -> None:
    """Refuse patterns that name no number of the network, nor one in a tuple, whatever the places in its lists.

    Raises:
        ValueError: one does.
    """
    known = set[str]()
    for path, module in network.named_modules():
        for slot in (*slots(module), *numbers(module, deeply=True)):
            known.add(name(path, *slot.path))
            if isinstance(slot.value, tuple):
                known |= {name(path, *slot.path, i) for i in range(len(slot.value))}
    for pattern in protected:
        if not any(stays([pattern, starred(pattern)], each) for each in known):
            last = {each.rpartition(".")[2]: each for each in sorted(known)}
            near = [last[each] for each in get_close_matches(pattern.rpartition(".")[2], last, 3)]
            guess = f"did you mean {' or '.join(near)}?" if near else f"it keeps {', '.join(sorted(last)[:8])}, …"
            raise ValueError(f"keep names no number of the network: {pattern!r}; {guess}")


def _ways(slot: Slot, longer: Mapping[int, int], apart: bool) -> Iterator[tuple[Path, Any, Any]]:
    """How a number, or a tuple of numbers, may follow lengths, now → then: (its path in the module, now, then)."""
    value = slot.value
    follow = [i for i, v in enumerate(value) if v in longer] if isinstance(value, tuple) else []
    if apart and len(follow) > 1:
        yield from (((*slot.path, i), value[i], longer[value[i]]) for i in follow)
    elif follow:
        yield slot.path, value, alike(value, (longer.get(v, v) for v in value))
    elif value in longer:
        yield slot.path, value, longer[value]


@contextmanager
def changed(network: nn.Module, some: Iterable[Kept]) -> Iterator[None]:
    """The network with these numbers changed, for a while."""
    some = list(some)
    try:
        for each in some:
            each.put(network, each.then)
        yield
    finally:
        for each in some:
            each.put(network, each.now)


def keep(network: nn.Module, sizes: Iterable[Size]) -> None:
    """Set the sizes that modules keep for themselves."""
    for path, place, size in sizes:
        at(network.get_submodule(path), place).put(size)
    relabel(network)


def needed(
    count: int,
    outcome: Outcome,
    exact: float,
    confirmed: Callable[[frozenset[int]], bool] = lambda chosen: True,
    tries: int = TRIES,
) -> frozenset[int] | None:
    """Which of `count` numbers must change so that a network runs, and, if that is to be had, keeps its function.

    None of them, if that will do; else the fewest of all (QuickXplain: Junker 2004, AAAI), if the network runs with
    all; else one, two, … of them. `outcome` is asked at most `tries` times, and what is dear to know, whether a choice
    that runs is `confirmed`, only where that tells.

    Returns:
        Their numbers; None if the network runs with no choice.

    Raises:
        TooManyError: so many tries did not tell.
    """
    known: dict[frozenset[int], float | None] = {}

    def asked(chosen: frozenset[int]) -> float | None:
        if chosen not in known:
            if len(known) == tries:
                raise TooManyError(f"{tries} tries did not tell which of {count} numbers must change")
            known[chosen] = outcome(chosen)
        return known[chosen]

    def runs(chosen: frozenset[int]) -> bool:
        return asked(chosen) is not None and confirmed(chosen)

    def keeps(chosen: frozenset[int]) -> bool:
        change = asked(chosen)
        return change is not None and change <= exact and confirmed(chosen)

    everything = frozenset(range(count))
    some = (frozenset(each) for number in range(1, count) for each in combinations(range(count), number))
    found: frozenset[int] | None = frozenset()
    if not runs(frozenset()):
        found = fewest(frozenset(), False, tuple(range(count)), runs) if count and runs(everything) else None
        found = found if found is not None and runs(found) else next(filter(runs, some), None)
    if found is None or keeps(found):
        return found
    rest = tuple(everything - found)
    if rest and keeps(everything):
        more = found | fewest(found, False, rest, keeps)
        return more if keeps(more) else everything
    return next(filter(keeps, islice((found | {i} for i in rest), min(MORE, tries - len(known)))), found)


def fewest(base: frozenset[int], grew: bool, rest: tuple[int, ...], good: Callable[[frozenset[int]], bool]):
    """The fewest of the rest that are good together with the base, if all of them are and more is never worse."""
    if grew and good(base):
        return frozenset()
    if len(rest) == 1:
        return frozenset(rest)
    first, second = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    later = fewest(base.union(first), True, second, good)
    return later | fewest(base | later, bool(later), first, good)


def relabel(network: nn.Module, protected: Sequence[str] = ()) -> None:
    """Let what PyTorch's layers print of their sizes be true; they do not compute with it.

    Weights that are computed whenever they are read are left alone: reading them may change the network.

    Raises:
        ValueError: one that must change is protected.
    """
    for path, module in network.named_modules():
        for key, then in _labels(module).items():
            if vars(module).get(key) != then:
                guard(protected, path, key)
                setattr(module, key, then)


def guard(protected: Sequence[str], path: str, key: str) -> None:
    """Refuse to change a number that is protected.

    Raises:
        ValueError: it is.
    """
    if stays(protected, where := name(path, key)):
        raise ValueError(f"{where} must change, and keep= protects it")


def _labels(module: nn.Module) -> dict[str, int]:
    """What a layer says of its sizes, as its tensors are."""
    weight, mean = module._parameters.get("weight"), module._buffers.get("running_mean")
    known = [tensor for tensor in (weight, mean) if tensor is not None]
    if isinstance(module, _NormBase):
        return {"num_features": len(known[0])} if known else {}
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return {"out_channels": len(weight), "in_channels": weight.shape[1] * module.groups}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    return {"num_channels": len(weight)} if isinstance(module, nn.GroupNorm) else {}
