"""Processes that work for this one: how many the machine has room for, and pools that end with their parent."""

import multiprocessing
import os
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

KNOWN = "There is a performance drop"  # of attention under vmap, which was measured: its loop is no slower


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


def _follow(parent: int) -> None:
    """End this process soon after its parent has ended: an orphan has another parent."""
    warnings.filterwarnings("ignore", KNOWN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
