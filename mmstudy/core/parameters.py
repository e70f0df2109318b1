"""What a notebook asks of its parameters, before any work: each error names the parameter as the notebook does."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mmstudy.core.arguments import described, number, one_of, several, whole


def ranges(given: Mapping[str, Any], prefix: str, **bounds: tuple[float, float]) -> None:
    """Check the parameters `prefix_name`, for each name: whole numbers where the bounds are, else above the first.

    Raises:
        TypeError: no number, or no whole one.
        ValueError: out of the range.
    """
    for name, (least, most) in bounds.items():
        _in_range(given[f"{prefix}_{name}"], f"{prefix}_{name}", least, most)


def rising(given: Mapping[str, Any], prefix: str, **bounds: tuple[float, float]) -> None:
    """Check the parameters `prefix_name`, for each name: lists of such numbers, each larger than the one before.

    Raises:
        TypeError: no list, or others in it than `ranges` takes.
        ValueError: an empty list, a number out of the range, or one that does not rise.
    """
    for name, (least, most) in bounds.items():
        listed, full = given[f"{prefix}_{name}"], f"{prefix}_{name}"
        several(listed, full, partial(_in_range, least=least, most=most), 1)
        if list(listed) != sorted({*listed}):
            raise ValueError(f"{full} must be numbers that rise; got {described(list(listed))}")


def _in_range(given: Any, name: str, least: float, most: float) -> None:
    whole(given, name, least, most) if isinstance(least, int) else number(given, name, least, most)


def names(given: Any, known: Iterable[str], name: str, kind: str) -> Any:
    """A list of known names of a kind, one at least.

    Raises:
        TypeError: no list, or no names in it.
        ValueError: an empty list, an unknown name, or one that is there twice.
    """
    known = list(known)
    several(given, name, lambda each, _: one_of(each, known, f"{kind} of {name}"), 1)
    if twice := [each for i, each in enumerate(given) if each in given[:i]]:
        raise ValueError(f"{name} must hold no {kind} twice; got {twice[0]!r} again")
    return given
