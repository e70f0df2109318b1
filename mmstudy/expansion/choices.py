"""Which changes of a configuration let a class build tensors of given names and shapes: found by building.

Counts, widths and gaps are told from each other by the shapes that come of them, not by their names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from operator import itemgetter
from typing import Any

from torch import nn

from mmstudy.expansion.attributes import fewest, name, stays
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.rebuilding import Choice, Configured, Shapes, built, origins, shapes_of
from mmstudy.expansion.slots import Path, alike, slots

Lengths = set[tuple[int, int]]  # of axes: before and after
Turned = Mapping[tuple[str, str], tuple[float, float]]  # fractions: (module, attribute) → (then, now)


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
    turned = _turned(old, new, origins(old, new, longer))
    moved = _moved(values, turned)
    search = _Search(part, target, values, longer)
    seen: list[Choice] = []
    for choice in search.fitting({}):
        more = ({**choice, **_needed(part, choice, moved, turned)}, {**choice, **moved}) if moved else ()
        for full in (*more, choice):
            if full not in seen:
                seen.append(full)
                yield full
    changed = {both for key in before.keys() & target.keys() for both in _lengths(before[key], target[key])}
    for choice in list(seen):
        yield from search.unseen(choice, changed)


@dataclass(frozen=True)
class _Search:
    """Values are changed, one after another or several at once, as long as fewer tensors have the wrong shape."""

    part: Configured
    target: Shapes
    values: Choice  # that may change, as they are now
    longer: Sequence[Longer]

    def wrong(self, choice: Choice) -> int | None:
        """How many tensors are missing, too many or of another shape; None if nothing is built."""
        shapes = self.part.shapes(choice)
        return None if shapes is None else len(dict(shapes.items() ^ self.target.items()))

    def fitting(self, choice: Choice) -> Iterator[Choice]:
        """Choices that begin with this one and build the target."""
        here = self.wrong(choice)
        if here == 0:
            yield choice
            return
        refused: list[Choice] = []
        for some in self._next(choice):
            after = [(self.wrong(more), more) for path, then in some for more in ({**choice, path: then},)]
            better = [(count, more) for count, more in after if count is not None and (here is None or count < here)]
            if better:  # the best first; shapes alone do not tell the number of heads from their width
                for _, more in sorted(better, key=itemgetter(0)):
                    yield from self.fitting(more)
                return
            refused += [more for count, more in after if count is None]
        for several in self._at_once(choice, here):
            yield from self.fitting(several)
        for one, other in combinations(refused, 2):  # numbers that go together
            count = self.wrong({**one, **other})
            if count is not None and (here is None or count < here):
                yield from self.fitting({**one, **other})

    def unseen(self, choice: Choice, lengths: Lengths) -> Iterator[Choice]:
        """Choices with numbers that no shape shows, as one of heads, or of heads and of heads of keys."""
        given, unset = list[Choice](), list[Choice]()
        for path, value in self.values.items():
            if path not in choice:
                (unset if value is None else given).extend({**choice, path: then} for then in _scaled(value, lengths))
        fit = [more for more in given if self.wrong(more) == 0]
        broken = [more for more in given if more not in fit]
        pairs = ({**one, **other} for one, other in combinations(broken, 2) if one.keys() != other.keys())
        yield from chain(fit, (more for more in chain(pairs, unset) if self.wrong(more) == 0))

    def _next(self, choice: Choice) -> Iterator[list[tuple[Path, Any]]]:
        """Values that may change next, the likelier first: counts and lengths, their divisors, gaps."""
        made = self.part.shapes(choice) or {}
        wrong = {both for key in made.keys() & self.target.keys() for both in _lengths(made[key], self.target[key])}
        free = {path: value for path, value in self.values.items() if path not in choice}
        first = [(path, then) for path, value in free.items() for one in self.longer for then in one.then(value)]
        first += [(path, b) for path, value in free.items() for a, b in wrong if type(value) is int and value == a]
        yield first
        scaled = [(path, then) for path, value in free.items() for then in _scaled(value, wrong)]
        yield [option for option in scaled if option not in first and free[option[0]] is not None]
        yield [option for option in scaled if free[option[0]] is None]

    def _at_once(self, choice: Choice, here: int | None) -> Iterator[Choice]:
        """Values that go with a list that has got longer and must change at once: all, or all sequences and a count."""

        def no_worse(some: Choice, most: int) -> bool:
            count = self.wrong({**choice, **some})
            return count is not None and count <= most

        for one in self.longer:
            thens = {path: one.then(value) for path, value in self.values.items() if path not in choice}
            every = {path: some[0] for path, some in thens.items() if some}
            sequences = {path: then for path, then in every.items() if type(then) is not int}
            for some in (every, *({**sequences, path: then} for path, then in every.items() if path not in sequences)):
                most = self.wrong({**choice, **some})
                if some and most is not None and (here is None or most < here):
                    yield {**choice, **_fewest(some, partial(no_worse, most=most))}


def _moved(values: Choice, turned: Turned) -> Choice:
    """The fractions that become what such attributes of modules have become; not where these went two ways."""
    ways = {then: {now for before, now in turned.values() if before == then} for then, _ in turned.values()}
    numbers = {then: min(some) for then, some in ways.items() if len(some) == 1}
    return {path: numbers[value] for path, value in values.items() if type(value) is float and value in numbers}


def _needed(part: Configured, choice: Choice, moved: Choice, turned: Turned) -> Choice:
    """The fewest of the moved values by which the class sets as many attributes right as by all of them."""

    def right(some: Choice) -> int:
        made = built(part.kind, part.changed({**choice, **some}), "meta")
        modules = {} if made is None else dict(made.named_modules())
        return sum(vars(modules[at]).get(key) == turned[at, key][1] for at, key in turned if at in modules)

    most = right(moved)
    return {} if most == right({}) else _fewest(moved, lambda some: right(some) == most)


def _fewest(values: Choice, good: Callable[[Choice], bool]) -> Choice:
    """The fewest of the values that are good, if all of them are."""
    paths = tuple(values)

    def some(chosen: frozenset[int]) -> Choice:
        return {paths[i]: values[paths[i]] for i in sorted(chosen)}

    return some(fewest(frozenset(), False, tuple(range(len(paths))), lambda chosen: good(some(chosen))))


def _turned(old: nn.Module, new: nn.Module, before: Mapping[str, str]) -> Turned:
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


def _scaled(value: Any, lengths: Lengths) -> list[Any]:
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
