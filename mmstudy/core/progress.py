"""Progress bars: in a terminal, or in Jupyter while a cell runs; never in what a notebook keeps."""

import contextlib
import os
import sys
from collections.abc import Collection, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")


@contextlib.contextmanager
def bar(total: int | None, title: str, unit: str = "it", done: int = 0) -> Iterator[tqdm]:
    """A progress bar for a while.

    It is drawn on the terminal that MMSTUDY_TERMINAL names, as the runner of the notebooks does for their kernels; else
    on stderr, if that is a terminal or Jupyter's, from which it goes when all is done.

    Args:
        total: how many there are; None where nobody knows.
        unit: of what; bytes ("B") are shown in thousands and millions.
        done: how many are done already.

    Yields:
        The bar, whose `update` says how many more are done.
    """
    in_jupyter = not _named() and type(sys.stderr).__module__.startswith("ipykernel")
    with _terminal(_named()) as stream:
        hidden = False if in_jupyter else None  # None: shown in a terminal only
        with tqdm(
            total=total,
            initial=done,
            desc=title,
            unit=unit,
            unit_scale=unit == "B",
            file=stream,
            disable=hidden,
            leave=not in_jupyter,
        ) as made:
            yield made


def through(items: Collection[T], title: str) -> Iterator[T]:
    """The items one after another, with a bar."""
    with bar(len(items), title) as shown:
        for item in items:
            yield item
            shown.update()


def tell(text: str) -> None:
    """Print a line where bars are drawn, or on stderr, where they are hidden."""
    with _terminal(_named().removeprefix(os.devnull)) as stream:
        print(text, file=stream, flush=True)


def _named() -> str:
    return os.environ.get("MMSTUDY_TERMINAL", "")


def _terminal(name: str) -> contextlib.AbstractContextManager[TextIO]:
    return open(name, "w") if name else contextlib.nullcontext(sys.stderr)
