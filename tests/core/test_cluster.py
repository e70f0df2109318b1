"""Work on a real Dask cluster: the same numbers from any number of workers, and nothing lost when one of all dies.

Schedulers and workers are processes, started and killed here as they are on a cluster.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import xarray as xr
from cases import TASK, TINY
from waiting import wait_until

from mmstudy.core import cluster, processes, slurm, sources, tasks
from mmstudy.expansion import pools
from mmstudy.study import design, sweep

distributed = pytest.importorskip("distributed", reason="needs the extra dask")
cloudpickle = pytest.importorskip("cloudpickle", reason="needs the extra dask")

ROOT = Path(__file__).parents[2]
DATA = tasks.load(TASK)
SHAPE = {"factors": (2,), "extra_layers": (1,), "matched": (), "wider": ("random",), "deeper": ("deeper_identity",)}
POOL = pools.candidate_pool(tasks.base(TASK, DATA), DATA.training.inputs, **SHAPE)
PIECES = 5  # candidates, each of another architecture
FILES = 1 + 2 * PIECES  # a base; each architecture, before and in training

CLIENT = """
from test_cluster import swept
swept({cache!r}, {address!r})
"""


def importing(*folders):
    """The environment of a process that imports from these folders first."""
    here = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, *[here] * bool(here))))}


class Cluster:
    """A Dask scheduler and its workers."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        file = folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = self.start("dask_scheduler", *options, "--scheduler-file", file)
        self.address = json.loads(wait_until(lambda: file.exists() and file.read_text()))["address"]
        self.client = distributed.Client(self.address, set_as_default=False)

    def start(self, module, *options, package=ROOT):
        environment = importing(package) | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def join(self, count, **options):
        """Start workers, until so many are there."""
        flags = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        while len(self.workers) < count:
            self.workers.append(self.start("dask_worker", self.address, *flags, **options))
        wait_until(lambda: len(self.client.nthreads()) == count)

    def kill(self, worker):
        self.workers.remove(worker)
        worker.kill()
        worker.wait()

    def end(self):
        self.client.close()
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextlib.contextmanager
def started(folder, workers):
    made = Cluster(folder)
    try:
        made.join(workers)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cluster for tests that leave it as it was, with one worker or more."""
    with started(tmp_path_factory.mktemp("cluster"), 1) as made:
        yield made


@pytest.fixture(autouse=True, scope="module")
def functions_are_sent():
    """Workers don't import this file."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def gated(folder, number):
    """Say who has begun, and end once the gate is open."""
    (folder / f"{number} {os.getpid()}").touch()
    while not (folder / "open").exists():
        time.sleep(0.02)
    return number


def begun(folder, count):
    """(number, process) of the work that has begun, once so much has."""
    names = wait_until(lambda: len(found := [path.name for path in folder.glob("* *")]) >= count and found)
    return [tuple(map(int, name.split())) for name in names]


# ---- The sweep -------------------------------------------------------------------------------------------------------


def swept(cache, scheduler="", executor=None):
    return sweep.sweep({TASK: POOL}, {TASK: TINY}, cache, scheduler=scheduler, executor=executor)


def assert_same(found, expected):
    xr.testing.assert_identical(found.drop_attrs(deep=False), expected.drop_attrs(deep=False))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process finds."""
    with ThreadPoolExecutor(1) as executor:
        return swept(tmp_path_factory.mktemp("expected"), executor=executor)


def finished(cache):
    """When each piece was written."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("*.nc")}


def under_way(cache):
    """`finished`, once a candidate's piece is."""
    return wait_until(lambda: any(name.startswith("candidates") for name in finished(cache)) and finished(cache))


def test_the_number_of_workers_does_not_matter(shared, expected, tmp_path, monkeypatch):
    monkeypatch.delattr(processes, "pool")
    for count in (1, 2, 4):
        while len(shared.workers) > count:
            shared.kill(shared.workers[-1])
        shared.join(count)
        assert_same(swept(tmp_path / str(count), shared.address), expected)
        assert len(finished(tmp_path / str(count))) == FILES


def test_a_worker_is_killed_in_the_middle_of_a_sweep(shared, expected, tmp_path):
    shared.join(max(2, len(shared.workers)))
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(swept, tmp_path, shared.address)
        before = under_way(tmp_path)
        busy = [address for address, work in shared.client.processing().items() if work]
        victims = shared.client.run(os.getpid, workers=busy[:1]).values()
        assert not found.done()
        shared.kill(next(worker for worker in shared.workers if worker.pid in victims))
        assert_same(found.result(), expected)
    assert finished(tmp_path).items() >= before.items(), "what was finished has been done again"


def test_the_client_is_killed_and_comes_back(shared, expected, tmp_path):
    script = CLIENT.format(cache=str(tmp_path), address=shared.address)
    environment = importing(ROOT, ROOT / "tests", ROOT / "tests/core")
    client = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        before = under_way(tmp_path)
        assert client.poll() is None
    finally:
        client.kill()
        client.wait()
    assert len(before) < FILES
    assert_same(swept(tmp_path, shared.address), expected)
    after = finished(tmp_path)
    assert len(after) == FILES
    assert after.items() >= before.items(), "what was finished has been done again"


def test_the_scheduler_is_killed_and_another_one_goes_on(shared, expected, tmp_path):
    (tmp_path / "cluster").mkdir()
    cache = tmp_path / "cache"
    with started(tmp_path / "cluster", 1) as other, ThreadPoolExecutor(1) as thread:
        found = thread.submit(swept, cache, other.address)
        before = under_way(cache)
        other.scheduler.kill()
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"scheduler at tcp://127.*is gone\. What was finished is kept"):
            found.result()
        assert time.monotonic() - began < 10
        other.workers[0].wait(60)  # none stays behind
    assert_same(swept(cache, shared.address), expected)
    assert finished(cache).items() >= before.items(), "what was finished has been done again"


def test_pools_are_made_there_too(shared):
    shape = {"factors": (2,), "extra_layers": (), "matched": ()}
    assert design.all_pools([TASK], shape, scheduler=shared.address) == {TASK: design.pool(TASK, DATA, shape)}


# ---- Any work --------------------------------------------------------------------------------------------------------


def test_what_a_killed_worker_was_at_is_done_by_another_one(shared, tmp_path):
    shared.join(max(2, len(shared.workers)))
    with cluster.executor(shared.address) as executor:
        results = [executor.submit(gated, tmp_path, number) for number in range(6)]
        count = len(shared.workers)
        (number, victim), *_ = begun(tmp_path, count)
        shared.kill(next(worker for worker in shared.workers if worker.pid == victim))
        (tmp_path / "open").touch()
        assert [result.result() for result in results] == list(range(6))
    done = begun(tmp_path, 6 + 1)
    assert sorted(each for each, _ in done) == sorted([*range(6), number])
    assert len({process for each, process in done if each == number}) == 2


def interval():
    began = time.monotonic()
    time.sleep(0.02)
    return began, time.monotonic()


def test_threads_of_a_worker_take_turns():
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(cluster._work, cluster._facts(), None, cloudpickle.dumps(interval)) for _ in range(6)]
        times = sorted(future.result() for future in futures)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))


def test_errors_come_back_as_they_are(shared):
    with cluster.executor(shared.address) as executor, pytest.raises(ZeroDivisionError):
        executor.submit(divmod, 1, 0).result()


def test_the_dashboard_is_told_and_nothing_stays_in_the_folder(shared, tmp_path):
    told = []
    with cluster.executor(shared.address, folder=tmp_path / "new", say=told.append) as executor:
        assert executor.submit(pow, 2, 5).result() == 32
        assert list(executor.map(pow, (2, 3), (2, 2))) == [4, 9]
    (line,) = told
    assert line.startswith(f"{len(shared.workers)} workers at {shared.address}; dashboard: http://127.0.0.1:")
    with socket.create_connection(("127.0.0.1", int(line.split(":")[-1].split("/")[0]))):
        assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("scheduler", [None, ""])
def test_without_a_scheduler_there_are_processes(scheduler):
    with cluster.executor(scheduler, 1) as executor:
        assert executor.submit(abs, -1).result() == 1
        assert executor._max_workers == 1
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(abs, -1)


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def deaf():
    """A place where something else listens, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "none://127.0.0.1:1", "deaf", "dashboard"])
def test_an_address_where_no_scheduler_is(address, deaf, shared, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    address = {"deaf": deaf, "dashboard": shared.client.dashboard_link.removesuffix("/status")}.get(address, address)
    address = address.replace("http", "tcp")
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"(?s)answers at '{address}'.*`dask scheduler`"), cluster.executor(address):
        pass
    assert time.monotonic() - began < 5


def test_a_worker_with_other_code_whenever_it_joins(tmp_path):
    other = shutil.copytree(sources.PACKAGE, tmp_path / "other" / "mmstudy")
    with (other / "study" / "choices.py").open("a") as file:
        file.write("\nmore = 1\n")
    wrong = r"the worker at tcp://\S+ has other code of mmstudy: bring all machines to the same version"
    with started(tmp_path, 1) as made:
        with cluster.executor(made.address) as executor:
            made.join(2, package=other.parent)
            futures = [executor.submit(gated, tmp_path, number) for number in range(2)]
            with pytest.raises(ValueError, match=wrong):
                wait_until(lambda: next((f for f in futures if f.done()), None)).result()
            (tmp_path / "open").touch()
        with pytest.raises(ValueError, match=wrong), cluster.executor(made.address):
            pass


def test_a_worker_with_another_version_of_a_package(shared, monkeypatch):
    facts = dict(cluster._facts())
    monkeypatch.setattr(cluster, "_facts", lambda: tuple((facts | {"torch": "0.1"}).items()))
    wrong = rf"worker at tcp://\S+ has torch {facts['torch']} instead of 0\.1: bring all machines to"
    with pytest.raises(ValueError, match=wrong), cluster.executor(shared.address):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that is another one in each process")
def test_a_folder_that_a_worker_does_not_see(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = r"worker at tcp://\S+ does not see /proc/self/cwd: give a folder that all machines share"
    with pytest.raises(ValueError, match=wrong), cluster.executor(shared.address, folder="/proc/self/cwd"):
        pass
    assert not list(tmp_path.iterdir())


# ---- SLURM -----------------------------------------------------------------------------------------------------------


def test_the_script_for_slurm():
    pytest.importorskip("dask_jobqueue", reason="needs the extra slurm")
    words = ["tcp://login:8786", "--workers", "8", "--gpus", "1", "--memory", "6GB", "--partition", "short"]
    command = [sys.executable, "-m", "mmstudy.core.slurm", *words]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"-J mmstudy", "-p short", "-n 1", "--cpus-per-task=1", "--mem=6G", "-t 08:00:00"} <= directives
    assert {"--array=1-8", "--gres=gpu:1"} <= directives
    (worker,) = (line for line in lines if "dask_worker" in line)
    assert worker.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://login:8786 ")
    assert "--nthreads 1 " in worker
    assert "--name worker-$SLURM_JOB_ID " in worker
    assert worker.rindex("--memory-limit 0") == worker.rindex("--memory-limit")
    assert "gres" not in slurm.script("tcp://login:8786", 1)


@pytest.mark.parametrize(("numbers", "message"), [((0, 0), "workers must be at least 1"), ((1, -1), "gpus must be")])
def test_numbers_that_make_no_script(numbers, message):
    with pytest.raises(ValueError, match=message):
        slurm.script("tcp://login:8786", *numbers)
