import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from mmstudy.core import processes
from mmstudy.core.sources import imports, of_notebook

ROOT = Path(__file__).parents[2]

PARENT = """
import signal
import time
from mmstudy.core import processes
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it (nohup)
if __name__ == "__main__":
    with processes.pool(2) as workers:
        for _ in range(2):
            workers.submit({work})
        time.sleep(600)
"""


def started(parent):
    """The pool's two workers, once both are at work."""
    family = psutil.Process(parent.pid).children(recursive=True)
    workers = [p for p in family if "spawn_main" in " ".join(p.cmdline()) and p.num_threads() > 1]
    return workers if len(workers) == 2 else None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "work", ["time.sleep, 600", "exec, 'while True: pass'", "abs, 1"], ids=["waiting", "busy", "idle"]
)
def test_workers_end_when_their_parent_is_killed(tmp_path, number, work):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(work=work))
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        workers = wait_until(lambda: started(parent))
    finally:
        os.kill(parent.pid, number)
        parent.wait()
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers), 10)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie processes to cores")
def test_cores_are_those_that_this_process_may_use():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code += "\nfrom mmstudy.core.processes import cores; print(cores())"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == 1


@pytest.mark.parametrize("known", [6, None])
def test_cores_where_nothing_says_which_may_be_used(monkeypatch, known):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    assert processes.cores() == (known or 1)
    with processes.pool() as workers:
        assert workers._max_workers == (known or 1)


def test_every_pool_of_the_package_and_the_notebooks_follows_its_parent():
    """Nobody else makes pools, or asks the system for cores."""
    codes = {path: path.read_text() for path in (ROOT / "mmstudy").rglob("*.py") if path.stem != "processes"}
    codes |= {path: of_notebook(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
    for path, code in codes.items():
        made = {name for name in imports(code) if name.split(".")[0] == "multiprocessing" or "PoolExecutor" in name}
        assert not made, path
        assert "sched_getaffinity" not in code, path
