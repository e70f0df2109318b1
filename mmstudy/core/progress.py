"""Progress bars: in a terminal, or in Jupyter while a cell runs; never in what a notebook keeps."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from tqdm import tqdm


@contextlib.contextmanager
def bar(total: int, title: str, unit: str = "it", done: int = 0) -> Iterator[tqdm]:
    """A progress bar for a while.

    It is drawn on the terminal that MMSTUDY_TERMINAL names, as the runner of the notebooks does for their kernels; else
    on stderr, if that is a terminal or Jupyter's, from which it goes when all is done.
    """
    in_jupyter = not _named() and type(sys.stderr).__module__.startswith("ipykernel")
    with _terminal(_named()) as stream:
        hidden = False if in_jupyter else None  # None: shown in a terminal only
        with tqdm(
            total=total, initial=done, desc=title, unit=unit, file=stream, disable=hidden, leave=not in_jupyter
        ) as made:
            yield made


def tell(text: str) -> None:
    """Print a line where bars are drawn, or on stderr, where they are hidden."""
    with _terminal(_named().removeprefix(os.devnull)) as stream:
        print(text, file=stream, flush=True)


def _named() -> str:
    return os.environ.get("MMSTUDY_TERMINAL", "")


def _terminal(name: str) -> contextlib.AbstractContextManager[TextIO]:
    return open(name, "w") if name else contextlib.nullcontext(sys.stderr)
