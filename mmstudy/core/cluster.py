"""Where work is done: in processes of this machine, or by the workers of a Dask cluster, which are checked first.

A worker with other code or other packages would give other numbers under the same name. So every worker is asked what
it computes with: those that are there before anything is sent, and each again with its work, as workers may join at any
time.
"""

import contextlib
import pickle
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from mmstudy.core import arguments, processes, progress, results, sources
from mmstudy.core.extras import needed

if TYPE_CHECKING:
    from distributed import Client

EXAMPLE = "tcp://192.168.0.2:8786"
PATIENCE = 10.0  # seconds in which a scheduler has to answer
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "mnist1d")  # numbers may depend on their versions
CODE = "code"
Facts = tuple[tuple[str, str], ...]  # what a process computes with: its code, and the versions of packages

_TURN = Lock()  # of the threads of one worker: random streams and the number of threads belong to the whole process


@contextlib.contextmanager
def executor(
    scheduler: str | None = None,
    workers: int = 0,
    folder: str | Path | None = None,
    say: Callable[[str], object] | None = None,
) -> Iterator[Executor]:
    """Where work is done for a while: in processes of this machine, or by the workers of a Dask cluster.

    What has not been done when the block ends is called off.

    Args:
        scheduler: the address of a Dask scheduler, such as "tcp://192.168.0.2:8786"; without one, processes.
        workers: the number of processes, without a scheduler; 0 means one per core.
        folder: where the work is written; every worker must see it.
        say: what is told of the cluster goes there; by default to the terminal.

    Yields:
        An executor, as in `concurrent.futures`. A piece of work whose worker dies is given to another one; on a
        cluster, pieces that need the same process take turns, whatever its number of threads.

    Raises:
        ValueError: nobody answers at the address, or a worker has other code or packages, or doesn't see the folder.
        ConnectionError: the scheduler is gone before the work was done.
        ImportError: a scheduler, but Dask is not installed.
    """
    if not scheduler:
        pool = processes.pool(workers)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return
    client = _connected(scheduler)
    try:
        with _token(folder) as token:
            facts = _facts()
            _check(client, facts, token)
            (say or progress.tell)(_described(client, scheduler))
            yield _Checked(client.get_executor(pure=False), facts, token)
    except Exception as error:
        if isinstance(error, CancelledError) or client.status != "running":
            raise ConnectionError(
                f"the Dask scheduler at {scheduler} is gone. What was finished is kept: start it and its workers "
                "again, and the same command goes on from there"
            ) from error
        raise
    finally:
        client.close()


def address(given: Any) -> str:
    """The address of a Dask scheduler, as far as it can be one; empty for none.

    Raises:
        TypeError: no text.
        ValueError: no address.
    """
    if not isinstance(given, str):
        raise TypeError(f"scheduler must be an address, such as {EXAMPLE}, or empty; got {arguments.described(given)}")
    if given and not given.rpartition(":")[2].isdecimal():
        raise ValueError(f"scheduler must be an address with a port, such as {EXAMPLE}, or empty; got {given!r}")
    return given


class _Checked(Executor):
    """Hands work on to the executor of a cluster, together with what its workers must agree on."""

    def __init__(self, inner: Executor, facts: Facts, token: Path | None) -> None:
        self.inner, self.facts, self.token = inner, facts, token

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        import cloudpickle

        piece = cloudpickle.dumps(partial(function, *args, **options))  # the scheduler would load what is no bytes
        return self.inner.submit(_work, self.facts, self.token, piece)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.inner.shutdown(wait=wait and not cancel_futures)


def _work(facts: Facts, token: Path | None, piece: bytes) -> Any:
    """What a worker does: one piece of work at a time, if it is fit for it."""
    if wrong := _wrong(facts, token):
        from distributed import get_worker

        raise ValueError(f"the worker at {get_worker().address} {wrong}")
    with _TURN:
        return pickle.loads(piece)()


# ---- The cluster -----------------------------------------------------------------------------------------------------


def _connected(scheduler: str) -> "Client":
    with needed("dask"):
        from distributed import Client, sync
        from distributed.utils import LoopRunner
    runner = LoopRunner(asynchronous=False)
    runner.start()
    try:
        sync(runner.loop, _knock, scheduler, callback_timeout=PATIENCE)
        return Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except Exception as error:  # each kind of wrong address has its own
        raise ValueError(
            f"no Dask scheduler answers at {scheduler!r} ({error or 'silence'}). Start one with `dask scheduler`, and "
            "give the address that it prints, such as tcp://192.168.0.2:8786"
        ) from error
    finally:
        runner.stop()


async def _knock(scheduler: str) -> None:
    """Connect once: a client would wait forever for something else that listens there, such as a dashboard."""
    from distributed import Security
    from distributed.comm import connect

    comm = await connect(scheduler, timeout=PATIENCE, **Security().get_connection_args("client"))
    comm.abort()


def _described(client: "Client", scheduler: str) -> str:
    threads, words = client.nthreads(), ""
    with contextlib.suppress(KeyError):  # it may have been started without one
        words = f"; dashboard: {client.dashboard_link}"
    words = f"{len(threads)} workers at {scheduler}{words}"
    if not threads:
        words += "; the work waits until a worker has joined"
    elif sum(threads.values()) > len(threads):
        words += "; the threads of a worker take turns: start them with --nthreads 1"
    return words


@contextlib.contextmanager
def _token(folder: str | Path | None) -> Iterator[Path | None]:
    """A file in the folder, while the block lasts, that every worker must see."""
    if folder is None:
        yield None
        return
    token = Path(folder).absolute() / f".shared-{uuid.uuid4().hex}"
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


# ---- The check of a worker -------------------------------------------------------------------------------------------


def _check(client: "Client", facts: Facts, token: Path | None) -> None:
    """Raises ValueError for workers that are not fit."""
    found = client.run(_wrong, facts, token, on_error="return")
    wrong = {
        address: f"cannot run this code ({type(words).__name__}: {words})" if isinstance(words, Exception) else words
        for address, words in found.items()
    }
    if wrong := {address: words for address, words in wrong.items() if words}:
        (address, words), *others = wrong.items()
        raise ValueError(f"the worker at {address} {words}" + (f" ({len(others)} others too)" if others else ""))


@lru_cache(maxsize=8)
def _wrong(facts: Facts, token: Path | None) -> str:
    """Why this process may not work for one that has these facts and wrote this token; empty if it may."""
    here = dict(_facts())
    for name, value in facts:
        if here.get(name) != value:
            what = "other code of mmstudy" if name == CODE else f"{name} {here.get(name, 'missing')} instead of {value}"
            return f"has {what}: bring all machines to the same version, and start their workers again"
    if token and not token.exists():
        return f"does not see {token.parent}: give a folder that all machines share"
    return ""


@cache
def _facts() -> Facts:
    """What this process computes with; asked once and early, as files may change under a process that has read them."""
    known = results.versions()
    named = {name: known[name].split("+")[0] for name in PACKAGES if name in known}  # torch's builds: +cpu, +cu130
    return tuple(({CODE: sources.of_package()} | named).items())
