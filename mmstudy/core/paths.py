"""Where a notebook reads and where it writes: checked before any work, under the name of the parameter."""

import os
from pathlib import Path
from typing import Any

from mmstudy.core.arguments import described


def path(given: Any, name: str, kind: str = "folder") -> Path:
    """A path, of what may not be there yet.

    Raises:
        TypeError: no path.
        ValueError: an empty one.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{name} must be the path of a {kind}; got {described(given)}")
    if not os.fspath(given):
        raise ValueError(f"{name} must be the path of a {kind}; got an empty text")
    return Path(given)


def folder(given: Any, name: str = "folder") -> Path:
    """A folder to write in, which may not be there yet.

    Raises:
        TypeError: no path.
        ValueError: an empty one, or one with a file in its way.
    """
    found = path(given, name)
    there = next(part for part in (found, *found.parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"{name} must be a folder; {there} is a file: give another path than {str(given)!r}")
    return found


def file(given: Any, name: str) -> Path:
    """A file to read.

    Raises:
        TypeError: no path.
        ValueError: an empty one, or no file.
    """
    found = path(given, name, "file")
    if not found.is_file():
        raise ValueError(f"{name} is no file: {str(given)!r}; a path starts where the notebook is")
    return found
