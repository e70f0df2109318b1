"""Where the rows of a ranking are trained: in this process, or by the workers of a Dask cluster."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from functools import lru_cache
from pathlib import Path

from mmstudy.batched import hooks
from mmstudy.core import cluster, results
from mmstudy.ranking.rows import Row, Rows

# (groups of rows, steps, what is told of steps that were made) → what is seen of each group after so many steps
Looks = Callable[[Sequence[Sequence[str]], int, Callable[[int], object]], Iterator[list[Row]]]


@contextlib.contextmanager
def looking(rows: Rows, scheduler: str, say: Callable[[str], object]) -> Iterator[Looks]:
    """Where rows are trained for a while; what they are is written into their folder for the workers of a cluster.

    Yields:
        How groups of rows are looked at, here or by the workers.

    Raises:
        ValueError: what `cluster.executor` refuses, or rows that cannot be sent to another process.
        ConnectionError: the scheduler is gone.
    """
    if not scheduler:
        yield lambda groups, steps, stepped: (rows.at(group, steps, stepped) for group in groups)
        return
    if found := hooks.on_gradients(rows.network):
        raise ValueError(f"{found[0][0]}, which may be lost on the way to a worker: rank without scheduler=")
    with cluster.executor(scheduler, folder=rows.folder, say=say) as workers:
        assert rows.groups  # found once, by growing, and sent along
        sent = _sent(rows)

        def looks(groups: Sequence[Sequence[str]], steps: int, _: Callable[[int], object]) -> Iterator[list[Row]]:
            for future in as_completed([workers.submit(_at, sent, group, steps) for group in groups]):
                yield future.result()

        yield looks


def _sent(rows: Rows) -> Path:
    """The rows, with all that they need, in a file: network and data are read once by each worker."""
    import cloudpickle  # it comes with Dask

    try:
        packed = cloudpickle.dumps(rows)
    except Exception as error:  # whatever hinders an object from being pickled
        raise ValueError(
            f"the network, loss or loader cannot be sent to a worker ({error}): rank without one"
        ) from error
    path = (rows.folder / "rows.pickle").absolute()
    with results.atomically(path) as beside:
        beside.write_bytes(packed)
    return path


def _at(sent: Path, group: Sequence[str], steps: int) -> list[Row]:
    return _received(sent, sent.stat().st_mtime_ns).at(group, steps)


@lru_cache(maxsize=1)
def _received(sent: Path, written: int) -> Rows:
    """What was sent, read once."""
    return pickle.loads(sent.read_bytes())
