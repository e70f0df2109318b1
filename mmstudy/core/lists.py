"""Checks of lists: names that are known, numbers that rise."""

from collections.abc import Iterable
from typing import Any

from mmstudy.core.arguments import described, one_of, several


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


def rising(given: Any, name: str, least: int = 1) -> Any:
    """A list of so many numbers at least, each larger than the one before.

    Raises:
        ValueError: fewer, or others.
    """
    if list(given) != sorted({*given}) or len(given) < least:
        raise ValueError(f"{name} must be numbers that rise, {least} or more of them; got {described(list(given))}")
    return given
