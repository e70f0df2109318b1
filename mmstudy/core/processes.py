"""Processes that work for this one: how many the machine has room for, pools that end with their parent, a terminal."""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TextIO


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pool(workers: int = 0) -> ProcessPoolExecutor:
    """A pool of fresh processes that end soon after this process has ended, however that ended.

    Args:
        workers: the number of processes; 0 means one per core.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers or cores(), context, initializer=_follow, initargs=(os.getpid(),))


def terminal() -> contextlib.AbstractContextManager[TextIO]:
    """Where progress is seen: the terminal that runs the notebook, if its runner names one, else stderr.

    A kernel's own stderr ends up in the notebook, where a bar has no place (and tqdm shows none: it is no terminal).
    """
    name = os.environ.get("MMSTUDY_TERMINAL")
    return open(name, "w") if name else contextlib.nullcontext(sys.stderr)


def tell(text: str) -> None:
    """Print a line on the `terminal`."""
    with terminal() as stream:
        print(text, file=stream, flush=True)


def _follow(parent: int) -> None:
    """End this process soon after its parent has ended: an orphan has another parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
