"""What a user has entered in the registries from outside: for the processes that measure, and for names of results.

Another process starts with the package's own entries. It is sent the others, and finds their functions by importing the
modules that these stand in.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from mmstudy.core import sources
from mmstudy.expansion.operators import OPERATORS
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study.predictors import PREDICTORS

REGISTRIES: tuple[dict[str, Any], ...] = (OPERATORS, ESTIMATORS, PREDICTORS)
Entries = tuple[dict[str, Any], ...]  # for each registry, by name


def from_outside() -> Entries:
    """The entries with a function that is not the package's own."""
    return tuple({name: entry for name, entry in known.items() if any(_foreign(entry))} for known in REGISTRIES)


def without_predictors(entries: Entries) -> Entries:
    """Those that have a part in training."""
    return tuple({} if known is PREDICTORS else new for known, new in zip(REGISTRIES, entries, strict=True))


def enter(entries: Entries, known: str) -> None:
    """Make them known in this process.

    Args:
        known: their `description` where they come from.

    Raises:
        ValueError: the files of their functions have another text here.
    """
    with contextlib.suppress(OSError):  # a function that was sent itself has no file here
        if description(entries) != known:
            names = ", ".join(name for new in entries for name in new)
            raise ValueError(f"the files that define {names} differ between the machines: give all of them the same")
    for registry, new in zip(REGISTRIES, entries, strict=True):
        registry.update(new)


def description(entries: Entries) -> str:
    """What names a result that they had a part in: their attributes, and the files that their functions stand in.

    What those files import, from elsewhere than this package, is not looked at.
    """
    texts = []
    for new in entries:
        for name, entry in sorted(new.items()):
            plain = [(f.name, v) for f in fields(entry) if not callable(v := getattr(entry, f.name))]
            texts.append(f"{name}: {plain} {[_source(function) for function in _foreign(entry)]}")
    return "\n".join(texts)


def check_importable(entries: Entries) -> None:
    """Refuse functions that another process could not find.

    Raises:
        ValueError: a function was defined in a notebook or at a prompt, inside another function, or as a lambda.
    """
    for new in entries:
        for name, entry in new.items():
            for function in _foreign(entry):
                prompt = function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
                if prompt or "<" in function.__qualname__:
                    raise ValueError(
                        f"worker processes cannot import {function.__qualname__} of {name!r}: define it in a file, or "
                        "measure in this process with executor=ThreadPoolExecutor(1)"
                    )


def _foreign(entry: Any) -> Iterator[Callable]:
    """The functions of an entry that are not the package's own; of an object that can be called, its class."""
    for field in fields(entry):
        function = getattr(entry, field.name)
        while isinstance(function, partial):
            function = function.func
        if callable(function) and not str(function.__module__).startswith(f"{sources.PACKAGE.name}."):
            yield function if hasattr(function, "__qualname__") else type(function)


def _source(function: Callable) -> str:
    """The text of the file that a function stands in, and a hash of what it uses of this package.

    The function's own text, where there is no such file.
    """
    try:
        text = Path(inspect.getsourcefile(function) or "").read_text()
    except (OSError, TypeError):
        return inspect.getsource(function)
    return text + sources.fingerprint(text)
