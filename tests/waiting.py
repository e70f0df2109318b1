"""Tests of several processes wait for what must come, never for a while."""

import time


def wait_until(condition, seconds=60):
    """What a condition gives once it holds; fails if it never does."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
    return found
