"""A network of one's own as a file in Python: what it must define."""

import runpy
from pathlib import Path
from typing import Any

from mmstudy.core import arguments

NEEDED = ("network", "loss_fn", "loaders", "optimizer")


def defined(path: str | Path) -> dict[str, Any]:
    """All that the file defines, run once.

    Raises:
        ValueError: it cannot be run, needs a package that is not installed, or lacks one of `NEEDED`.
    """
    try:
        found = runpy.run_path(str(path))
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} needs the package {error.name}, which is not installed: install it first") from error
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(f"{path} cannot be run as Python: {arguments.first_line(error)}") from error
    if missing := [name for name in NEEDED if not callable(found.get(name))]:
        raise ValueError(f"{path} does not define {', '.join(missing)}: see examples/convolutional.py")
    return found
