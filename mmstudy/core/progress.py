"""Progress bars: in a terminal, or in Jupyter while a cell runs; never in what a notebook keeps."""

import contextlib
import os
import sys
from collections.abc import Iterator

from tqdm import tqdm


@contextlib.contextmanager
def bar(total: int, title: str, unit: str = "it", done: int = 0) -> Iterator[tqdm]:
    """A progress bar for a while.

    It is drawn on the terminal that MMSTUDY_TERMINAL names, as the runner of the notebooks does for their kernels; else
    on stderr, if that is a terminal or Jupyter's, from which it goes when all is done.
    """
    terminal = os.environ.get("MMSTUDY_TERMINAL")
    in_jupyter = not terminal and type(sys.stderr).__module__.startswith("ipykernel")
    with open(terminal, "w") if terminal else contextlib.nullcontext(sys.stderr) as stream:
        hidden = False if in_jupyter else None  # None: shown in a terminal only
        with tqdm(
            total=total, initial=done, desc=title, unit=unit, file=stream, disable=hidden, leave=not in_jupyter
        ) as made:
            yield made
