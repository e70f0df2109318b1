"""A ranking on a real Dask cluster is the one that a single process makes, also when a worker dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import xarray as xr
from cases import batch, mlp
from waiting import wait_until

import mmstudy as mm
from mmstudy.batched.ensemble import classification
from mmstudy.expansion.candidate import Candidate

distributed = pytest.importorskip("distributed", reason="needs the extra dask")
cloudpickle = pytest.importorskip("cloudpickle", reason="needs the extra dask")


@pytest.fixture(autouse=True, scope="module")
def functions_are_sent():
    """Workers don't import this file."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread each."""
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(n_workers=2, **options) as made:
        yield made


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def ranked(folder, scheduler: str = "", loss_fn=classification, **options) -> xr.Dataset:
    """The ranking of a small pool, on the cluster or here, but for what may differ."""
    ways = [(way, where) for where in ("hidden.0", "hidden.1") for way in ("net2net", "zero_outgoing", "random")]
    pool = {f"{way} {where}": Candidate(way, (where,), (9,)) for way, where in ways}
    data = [batch(16, seed) for seed in range(5)]
    given = {"pool": pool, "full_steps": 60, "optimizer": sgd, "measured_examples": 16, "budget": 0.95} | options
    loaders = data, [batch(40, 7)]
    ranking = mm.rank_expansions(mlp(), loss_fn, *loaders, folder=folder, scheduler=scheduler, **given)
    return ranking.data.drop_vars(["seconds", "full_seconds"]).drop_attrs()


def test_it_is_the_ranking_of_one_process_and_says_where_it_runs(cluster, tmp_path):
    said: list[str] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = ranked(tmp_path / "here", say=lambda text: None)
    finally:
        torch.set_num_threads(threads)
    there = ranked(tmp_path / "there", cluster.scheduler_address, say=said.append)
    xr.testing.assert_identical(here, there)
    assert any(f"2 workers at {cluster.scheduler_address}; dashboard: " in line for line in said)
    assert {"trained", "probed"} == set(there["status"].values)  # some were finished alone


def slow(model, some):
    """A loss that leaves time to be killed in."""
    if torch.is_grad_enabled() and not isinstance(model, type(slow)):
        threading.Event().wait(0.01)
    return classification(model, some)


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory) -> xr.Dataset:
    """The ranking that nobody disturbs."""
    return ranked(tmp_path_factory.mktemp("whole"), cluster.scheduler_address, slow, say=lambda text: None)


CLIENT = """
import sys
sys.path[:0] = {paths!r}
import cloudpickle
import test_places
cloudpickle.register_pickle_by_value(test_places)
test_places.ranked({folder!r}, {address!r}, test_places.slow, say=lambda text: None)
"""


def test_the_client_is_killed_and_comes_back(cluster, whole, tmp_path):
    here, folder = Path(__file__).parent, tmp_path / "killed"
    paths = [str(here.parents[1]), str(here.parent), str(here)]
    code = CLIENT.format(paths=paths, folder=str(folder), address=cluster.scheduler_address)
    client = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: list((folder / "runs").glob("*.json")))
        assert client.poll() is None
    finally:
        client.kill()
        client.wait()
    before = looks(folder)
    assert 0 < len(before) < whole.sizes["candidate"]
    xr.testing.assert_identical(whole, ranked(folder, cluster.scheduler_address, slow, say=lambda text: None))
    after = looks(folder)
    assert all(after[name].items() >= seen.items() for name, seen in before.items()), "what was finished is done again"


def looks(folder: Path) -> dict[str, dict]:
    """What has been seen of each row so far, after how many steps, with the seconds that it took."""
    return {path.name: json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")}


def test_the_work_of_a_worker_that_dies_is_done_by_others(cluster, whole, tmp_path):
    victim = next(iter(cluster.workers.values()))
    folder = tmp_path / "killed" / "runs"

    def kill() -> None:
        wait_until(lambda: list(folder.glob("*.json")))
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    xr.testing.assert_identical(whole, ranked(folder.parent, cluster.scheduler_address, slow, say=lambda text: None))
    killer.join()


def test_what_cannot_be_sent_is_refused(cluster, tmp_path):
    lock = threading.Lock()

    def locked(model, some):
        with lock:
            return classification(model, some)

    with pytest.raises(ValueError, match="cannot be sent to a worker"):
        ranked(tmp_path / "r", cluster.scheduler_address, locked, say=lambda text: None)


def test_without_a_scheduler_at_the_address_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        ranked(tmp_path / "r", "tcp://127.0.0.1:9", say=lambda text: None)
