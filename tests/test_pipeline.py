"""The Makefile and the runner, tried on stub notebooks in a folder of their own: what reruns, what a kill leaves."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
import waiting

from mmstudy.core import sources

ROOT = Path(__file__).parent.parent
PIPELINE = ("Makefile", "pyproject.toml", "constraints.txt", "notebooks/run.py")
PYTHON = (f"PYTHON={sys.executable}", "ENVIRONMENT=", "PROFILE=stub")
# Of the make that may have started these tests.
OUTER = ("MAKEFLAGS", "MAKELEVEL", "PROFILE", "SCHEDULER", "CONDA_DEFAULT_ENV")
CLEAN = {name: value for name, value in os.environ.items() if name not in OUTER}

# A stub writes the files that the Makefile expects of its namesake. While a file `wait` exists, it waits, with a child
# and a pool of one worker, as notebook 1 has.
STUB = """
import importlib, subprocess, sys, time
from pathlib import Path
assert isinstance(rate, float) and isinstance(sizes, list)
if Path("../fail").exists():
    raise ValueError("asked to fail")
if Path("../wait").exists():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    workers = importlib.import_module("mmstudy.core.processes").pool(1)  # in words that no rule reads
    workers.submit(abs, 1).result()
    workers.submit(time.sleep, 600)
    Path("../waiting").touch()
while Path("../wait").exists():
    time.sleep(0.05)
for file in {files}:
    Path(outputs, file).parent.mkdir(parents=True, exist_ok=True)
    Path(outputs, file).write_text("made")
"""

spec = importlib.util.spec_from_file_location("run", ROOT / "notebooks" / "run.py")
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)


def make(folder, *words, variables=PYTHON, env=CLEAN):
    return subprocess.run(["make", *variables, *words], cwd=folder, env=env, capture_output=True, text=True)


def planned(folder, *words):
    """The runs that `make -n` announces: notebook → the runner's options."""
    dry = make(folder, "-n", *words)
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.replace("\\\n", " ").splitlines()
    runs = [runner.arguments().parse_args(shlex.split(line)[2:]) for line in lines if "run.py" in line]
    return {run.notebook.stem: run for run in runs}


def acted_out(folder, *words):
    """The notebooks that make would run. What a run renews is touched, as `make -n` forgets that a rule with several
    targets renews them all (GNU make 4.3)."""
    names = set()
    while runs := planned(folder, *words):
        names |= runs.keys()
        for name, run in runs.items():
            for file in (*run.expect, f"notebooks/{name}.ipynb"):
                (folder / "outputs/stub" / file).touch()
    return names


def write_notebook(path, *cells):
    codes = [nbformat.v4.new_code_cell(code) for code in cells]
    codes[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=codes, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the pipeline with stub notebooks, after `make -j2 all`."""
    folder = tmp_path_factory.mktemp("finished")
    for file in PIPELINE:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    (folder / "notebooks/profiles").mkdir()
    (folder / "notebooks/profiles/stub.yml").write_text("rate: 0.5\nsizes: [1.5, 2]\n")
    shutil.copytree(ROOT / "mmstudy", folder / "mmstudy", ignore=shutil.ignore_patterns("__pycache__"))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder / "notebooks")
    for name, options in planned(folder, "all").items():
        given = ["outputs", *(pair.split("=")[0] for pair in options.set)]
        cell = "".join(f'{parameter} = "../outputs/{name}"\n' for parameter in given) + "rate = 0.1\nsizes = [2, 4]"
        imports = [
            line for line in sources.of_notebook(ROOT / f"notebooks/{name}.ipynb").splitlines() if "mmstudy" in line
        ]
        unread = "".join(f"    {line}\n" for line in imports if re.match("(from|import) mmstudy", line))
        stub = f"if False:\n    pass\n{unread}{STUB.format(files=options.expect)}"  # what its namesake imports
        write_notebook(folder / "notebooks" / f"{name}.ipynb", cell, stub)
    done = make(folder, "-j2", "all")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "project")  # keeps the files' times


# ---- What reruns -------------------------------------------------------------------------------------------------


def modules() -> dict[str, set[str]]:
    """Notebook → what it imports from mmstudy, directly or not, as paths from the root."""
    return {
        path.stem: {file.relative_to(ROOT).as_posix() for file in sources.files(sources.of_notebook(path))}
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }


def test_rules_name_the_modules_that_notebooks_import(project):
    """Not one fewer, or results go stale; not one more, or notebooks run in vain."""
    database = make(project, "-pn", "all").stdout.splitlines()
    for name, used in modules().items():
        rule = next(line for line in database if line.startswith(f"outputs/stub/notebooks/{name}.ipynb:"))
        assert {word for word in rule.split() if word.startswith("mmstudy/")} == used, name


def test_second_make_does_nothing(project):
    start = time.monotonic()
    assert make(project, "-q", "all").returncode == 0
    assert time.monotonic() - start < 5


RESULTS = {"5_relation", "6_prediction", "7_choice"}
OWN = {"0_your_network", "1_expansion", "2_estimators", "3_manifold", "10_ranking", "11_advice"}
FIGURES = OWN | {"8_answer", "9_beyond"} | RESULTS
EXPERIMENT = {"4_experiment", "8_answer", "9_beyond"} | RESULTS
ALL = FIGURES | EXPERIMENT


@pytest.mark.parametrize(
    ("file", "reruns"),
    [
        ("notebooks/1_expansion.ipynb", {"1_expansion"}),
        ("notebooks/2_estimators.ipynb", {"2_estimators"}),
        ("notebooks/3_manifold.ipynb", {"3_manifold"}),
        ("notebooks/4_experiment.ipynb", EXPERIMENT),
        ("notebooks/5_relation.ipynb", {"5_relation", "8_answer"}),
        ("notebooks/8_answer.ipynb", {"8_answer"}),
        ("notebooks/profiles/stub.yml", ALL),
        ("notebooks/run.py", ALL),
        ("mmstudy/figures/style.py", FIGURES),
        ("outputs/stub/data/experiment.nc", RESULTS | {"8_answer", "9_beyond"}),
        ("outputs/stub/data/choice.nc", {"8_answer"}),
        ("pyproject.toml", set()),
        ("constraints.txt", set()),
        ("Makefile", set()),
    ],
)
def test_touching_a_file_reruns_what_depends_on_it(project, file, reruns):
    (project / file).touch()
    assert acted_out(project, "all") == reruns


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "mmstudy").glob("*/__init__.py")))
def test_touching_a_module_reruns_its_users(project, room):
    *_, module = sorted((ROOT / "mmstudy" / room).glob("*.py"))  # one of each room; all of them are in the rules
    path = module.relative_to(ROOT).as_posix()
    users = {name for name, used in modules().items() if path in used}
    (project / path).touch()
    if "4_experiment" in users:
        users |= EXPERIMENT
    if users & RESULTS:
        users |= {"8_answer"}
    assert acted_out(project, "all") == users


def test_a_scheduler_goes_to_the_notebooks_that_have_one_and_makes_nothing_stale(project):
    word = "SCHEDULER=tcp://192.168.0.2:8786"
    assert make(project, "-q", word, "all").returncode == 0
    given = {name: run.value for name, run in planned(project, "-B", word, "all").items() if run.value}
    with_one = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb") if "scheduler" in runner.defaults(path)}
    assert given == {name: ["scheduler=tcp://192.168.0.2:8786"] for name in with_one}
    assert not any(run.value for run in planned(project, "-B", "all").values())


def test_another_profile_has_its_own_results(project):
    shutil.copy(project / "notebooks/profiles/stub.yml", project / "notebooks/profiles/other.yml")
    assert set(planned(project, "all", "PROFILE=other")) == ALL


def test_a_deleted_file_is_made_again_with_what_follows(project):
    (project / "outputs/stub/data/experiment.nc").unlink()
    assert make(project, "-q", "all").returncode == 1
    done = make(project, "all")
    assert done.returncode == 0
    assert [word for word in done.stdout.split() if word in ALL] == sorted(EXPERIMENT)
    assert (project / "outputs/stub/data/experiment.nc").exists()
    assert make(project, "-q", "all").returncode == 0


# ---- What a failure leaves ---------------------------------------------------------------------------------------


def processes(folder):
    """The processes at work in a folder: make, the runner, kernels and their children."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


wait_until = partial(waiting.wait_until, seconds=30)


TARGET = "outputs/stub/data/expansion.nc"


def results(project):
    return [*project.glob("outputs/stub/*/expansion*"), *project.glob("outputs/stub/notebooks/1_expansion*")]


@pytest.fixture
def undone(project):
    for path in results(project):
        path.unlink()
    return project


def test_failing_notebook_leaves_no_result_but_its_story(undone):
    (undone / "fail").touch()
    done = make(undone, TARGET)
    assert done.returncode != 0
    assert "ValueError: asked to fail" in done.stderr
    assert not results(undone)
    told = Path(done.stderr.split("See ")[1].split()[0])
    assert "asked to fail" in (undone / told).read_text()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("'data/other.nc'", "has not written data/expansion.nc"),
        ("'data/expansion.nc', 'data/other.nc'", "has written data/other.nc, which the Makefile doesn't name"),
    ],
)
def test_other_files_than_the_makefile_names_are_a_failure(undone, written, message):
    notebook = undone / "notebooks/1_expansion.ipynb"
    notebook.write_text(notebook.read_text().replace("'data/expansion.nc'", written))
    done = make(undone, TARGET)
    assert done.returncode != 0
    assert message in done.stderr
    assert not results(undone)


def test_dead_kernel_is_a_failure(undone):
    (undone / "wait").touch()
    running = start(undone)
    for process in (child(undone), kernel(undone)):  # its pool must watch for itself
        process.kill()
    _, errors = running.communicate(timeout=30)
    assert running.returncode != 0
    assert "out of memory?" in errors
    wait_until(lambda: not processes(undone))
    assert not results(undone)


def kernel(folder):
    (found,) = (process for process in processes(folder) if "ipykernel_launcher" in process.cmdline())
    return found


def child(folder):
    """The process that a stub has started by itself."""
    (found,) = (process for process in processes(folder) if process.cmdline()[-1:] == ["import time; time.sleep(600)"])
    return found


def start(folder):
    """Make, in a process group of its own, once the stub waits with its child."""
    command, pipe = ["make", *PYTHON, TARGET], subprocess.PIPE
    # a background job of a script ignores Ctrl-C, and so would all that it starts
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, cwd=folder, env=CLEAN, stderr=pipe, text=True, start_new_session=True, preexec_fn=heed
    )
    wait_until((folder / "waiting").exists)
    assert len(processes(folder)) >= 5  # make, the runner, the kernel, its child, its pool's worker
    return running


@contextlib.contextmanager
def at_work(folder):
    """Make, as `start` starts it, until it has ended; when something goes wrong, nothing stays."""
    with start(folder) as running:
        try:
            yield running
            running.wait(60)
        except BaseException:
            for process in processes(folder):
                process.kill()
            raise


@pytest.mark.parametrize(
    ("kill", "number"),
    [(os.killpg, signal.SIGINT), (os.killpg, signal.SIGTERM), (os.kill, signal.SIGKILL)],
    ids=["Ctrl-C", "TERM", "KILL to make alone"],
)
def test_a_kill_leaves_no_process_and_no_result(undone, kill, number):
    (undone / "wait").touch()
    running = start(undone)
    kill(running.pid, number)
    wait_until(lambda: not [process for process in processes(undone) if process.pid != running.pid])
    assert running.wait(10) != 0
    running.stderr.close()
    assert not results(undone)

    (undone / "wait").unlink()
    assert make(undone, TARGET).returncode == 0
    assert make(undone, "-q", "all").returncode == 0


@pytest.mark.parametrize("victim", ["the runner", "the process group"])
def test_a_pool_ends_with_a_kernel_that_nobody_could_end(undone, victim):
    (undone / "wait").touch()
    with at_work(undone) as running:
        if victim == "the process group":
            os.killpg(running.pid, signal.SIGKILL)  # the kernel has a session of its own
        else:
            kernel(undone).parent().kill()
    other = child(undone)
    wait_until(lambda: processes(undone) == [other])
    other.kill()


# ---- What a rerun leaves -----------------------------------------------------------------------------------------


def state(project):
    """The results of all notebooks: file → its time."""
    folders = [project / "outputs/stub" / name for name in ("data", "figures", "notebooks")]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}


def test_a_rerun_that_fails_keeps_the_results_before_it(project):
    before = state(project)
    (project / "fail").touch()
    for name in ("1_expansion", "4_experiment"):
        (project / f"notebooks/{name}.ipynb").touch()
    assert make(project, "-k", "all").returncode != 0
    assert state(project) == before
    assert planned(project, "all").keys() == {"1_expansion", "4_experiment"}  # they do not pass for new ones
    (project / "fail").unlink()
    assert make(project, TARGET).returncode == 0
    after = state(project)
    assert {path for path in before if after[path] != before[path]} == {*results(project)}


@pytest.mark.parametrize(
    ("kill", "number"),
    [(os.killpg, signal.SIGINT), (os.killpg, signal.SIGTERM), (os.kill, signal.SIGTERM), (os.kill, signal.SIGKILL)],
    ids=["Ctrl-C", "TERM", "TERM to make alone", "KILL to make alone"],
)
def test_a_rerun_that_is_killed_keeps_the_results_before_it(project, kill, number):
    before = state(project)
    (project / "wait").touch()
    (project / "notebooks/1_expansion.ipynb").touch()
    with at_work(project) as running:
        kill(running.pid, number)
    wait_until(lambda: not processes(project))
    assert state(project) == before
    assert "1_expansion" in planned(project, "all")


def test_make_alone_interrupted_lets_the_run_finish(project):
    """Make waits for what it has started; no signal reaches that, and nothing is lost."""
    (project / "wait").touch()
    (project / "notebooks/1_expansion.ipynb").touch()
    before = state(project)
    with at_work(project) as running:
        running.send_signal(signal.SIGINT)
        child(project).kill()
        (project / "wait").unlink()
    assert not processes(project)
    after = state(project)
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] != before[path]} == {*results(project)}


def test_a_second_make_says_who_is_at_work(undone):
    (undone / "wait").touch()
    with at_work(undone) as running:
        second = make(undone, TARGET)
        runner_at_work = kernel(undone).parent().pid
        assert second.returncode != 0
        assert f"process {runner_at_work} is at work in outputs/stub/.staging/1_expansion" in second.stderr
        assert not results(undone)
        child(undone).kill()
        (undone / "wait").unlink()
    assert running.returncode == 0
    assert len(results(undone)) == 14
    assert make(undone, "-q", "all").returncode == 0


# ---- Profiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rates: 0.5", "no notebook has a parameter rates; did you mean rate?"),
        ("rate: 1e-3", "YAML reads 1.0e-3 as a number"),
        ("sizes: [1, two]", "sizes = [1, 'two'], but"),
        ("sizes: 3", "sizes = 3, but"),
    ],
)
def test_profile_with_a_mistake_is_refused(project, monkeypatch, line, message):
    monkeypatch.chdir(project)
    Path("notebooks/profiles/stub.yml").write_text(line)
    with pytest.raises(runner.Refused) as refused:
        runner.parameters(Path("notebooks/1_expansion.ipynb"), "stub")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("value", "default", "good"),
    [
        (1, 0.1, True),
        (1.0, 1, False),
        (True, 1, False),
        ("a", None, True),
        ([1.5], [2, 4], True),
        ([["digits", [6, 6]]], [["mnist1d", [16, 16]]], True),
        ([["digits", 6]], [["mnist1d", "6"]], False),
        ([], ["a"], True),
    ],
)
def test_agrees(value, default, good):
    assert runner.agrees(value, default) is good


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "notebooks/profiles").glob("*.yml")))
def test_committed_profiles_fit_the_notebooks(profile, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert runner.parameters(Path("notebooks/4_experiment.ipynb"), profile) or profile == "rank"


def test_undeclared_path_is_refused(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(runner.Refused, match="has no speed"):
        runner.run(Path("notebooks/1_expansion.ipynb"), {}, {"speed": "outputs"}, Path("outputs/stub"), [])


# ---- Commands ----------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(project):
    listed = {line.split()[1] for line in make(project, "help").stdout.splitlines()}
    assert listed == {
        "all",
        "bench",
        "compare",
        "docs",
        "test",
        "lint",
        "notebooks",
        "rank",
        "reference",
        "clean",
        "help",
    }


def test_clean_keeps_the_reference(project):
    (project / "outputs/reference").mkdir()
    assert make(project, "clean").returncode == 0
    assert [path.name for path in (project / "outputs").iterdir()] == ["reference"]


def test_old_make_is_told(project):
    done = make(project, ".FEATURES=", "help")
    assert done.returncode != 0
    assert "GNU make >= 4.3" in done.stderr


def test_old_python_is_told(project):
    done = make(project, ".venv/.installed", "PYTHON3=false")
    assert done.returncode != 0
    assert "Python >= 3.11 is needed" in done.stderr


def test_half_made_environment_is_made_again(project):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").touch()
    assert "venv --clear .venv" in make(project, "-n", ".venv/.installed").stdout


def test_active_conda_environment_is_used_as_it_is(project):
    conda = make(project, "-n", "lint", variables=(), env=CLEAN | {"CONDA_DEFAULT_ENV": "mmstudy"})
    assert conda.stdout == "python -m ruff check .\npython -m mypy\n"
    other = make(project, "-n", "lint", variables=(), env=CLEAN | {"CONDA_DEFAULT_ENV": "base"})
    assert "-m venv" in other.stdout
    assert ".venv/bin/python -m ruff check ." in other.stdout
