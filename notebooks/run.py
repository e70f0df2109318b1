"""Runs one notebook under a profile; what it makes appears in outputs/PROFILE only once all of it is finished.

    python notebooks/run.py notebooks/1_expansion.ipynb --profile smoke --expect data/expansion.nc

A profile is a flat YAML file, notebooks/profiles/PROFILE.yml. A notebook is passed those of its keys that are names in
its `parameters` cell, and `outputs`, the folder to write in. Paths on the command line start at the repository's root;
in a notebook they start at notebooks/.
"""

# ruff: noqa: E402

import os

PARENT = os.getppid()  # before the slow imports, during which make may die

import argparse
import ast
import contextlib
import difflib
import fcntl
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import papermill
import psutil
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = Path("notebooks")  # every path is relative to the root, where main() goes


class Refused(Exception):
    """The run can't start, or its results can't be used; the message tells the user why."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=PATH", help="pass a path as well")
    parser.add_argument("--value", action="append", default=[], metavar="NAME=VALUE", help="pass a value, in YAML")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where results go, instead of outputs/PROFILE")
    parser.add_argument("--expect", nargs="+", required=True, metavar="FILE", help="what the notebook makes")
    return parser


# ---- Parameters ------------------------------------------------------------------------------------------------------


def defaults(notebook: Path) -> dict[str, Any]:
    """The parameters that a notebook declares and their values; raises Refused where one is not a plain literal."""
    values = {}
    for name, parameter in papermill.inspect_notebook(notebook).items():
        try:
            values[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            raise Refused(f"{notebook}: parameter {name} = {parameter['default']} is no plain value") from None
    return values


def parameters(notebook: Path, profile: str, values: Sequence[str] = ()) -> dict[str, Any]:
    """The part of a profile that a notebook declares, and values in YAML; raises Refused for what no notebook has."""
    path = NOTEBOOKS / "profiles" / f"{profile}.yml"
    chosen = yaml.safe_load(path.read_text()) or {}
    chosen |= {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in values)}
    declared = {other: defaults(other) for other in sorted(NOTEBOOKS.glob("*.ipynb"))}
    known = {name for values in declared.values() for name in values}
    for key, value in chosen.items():
        if key not in known:
            close = difflib.get_close_matches(key, known)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise Refused(f"{path}: no notebook has a parameter {key}{hint}")
        for other, values in declared.items():
            if key in values and not agrees(value, values[key]):
                hint = "; YAML reads 1.0e-3 as a number, 1e-3 as a string" if isinstance(value, str) else ""
                raise Refused(f"{path}: {key} = {value!r}, but {other} has {values[key]!r}{hint}")
    return {key: value for key, value in chosen.items() if key in declared[notebook]}


def agrees(value: Any, default: Any) -> bool:
    """Whether a value has its default's type. A float may be a whole number, and anything may replace None."""
    if isinstance(default, list) and isinstance(value, list):
        kinds = [float(kind) if type(kind) is int else kind for kind in default]  # [2, 4] may become [1.5, 2]
        return not kinds or all(any(agrees(item, kind) for kind in kinds) for item in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return default is None or type(value) is type(default)


# ---- Processes -------------------------------------------------------------------------------------------------------


def end(status: int) -> NoReturn:
    """Ends this process at once, and before it the kernel and all that the kernel has started."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(status)


def end_with_parent() -> None:
    """Make dies of SIGKILL without a word: watch it, and end when this process has become an orphan."""

    def watch() -> None:
        while os.getppid() == PARENT:
            time.sleep(0.3)
        end(1)

    threading.Thread(target=watch, daemon=True).start()


def end_on_signals() -> None:
    """The kernel has a session of its own and gets no Ctrl-C; ignored signals (nohup) stay ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: end(128 + received))


@contextlib.contextmanager
def alone(staging: Path) -> Iterator[None]:
    """Keeps other runs out of a staging folder; the system opens the lock again however this process ends.

    Raises Refused where another run is at work there.
    """
    staging.parent.mkdir(parents=True, exist_ok=True)
    with staging.with_suffix(".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Refused(f"process {lock.read()} is at work in {staging}: wait until it has ended") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def check_kernel() -> None:
    """Raises Refused if `python3` would run another interpreter than this one."""
    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if Path(command).parent not in (Path("."), Path(sys.executable).parent):
        raise Refused(f"the kernel python3 is {command}, not {sys.executable}: `jupyter kernelspec remove python3`")


# ---- The run ---------------------------------------------------------------------------------------------------------


def from_notebooks(path: Path | str) -> str:
    return Path(os.path.relpath(path, NOTEBOOKS)).as_posix()


def run(notebook: Path, values: dict[str, Any], paths: dict[str, str], into: Path, expected: list[str]) -> None:
    """Executes the notebook in a staging folder of its own, from where what it makes is moved when all is there."""
    staging = into / ".staging" / notebook.stem
    with alone(staging):
        started = time.time_ns()
        execute(notebook, values, paths, staging)
        move(made(notebook, staging, expected), staging, started)
        shutil.rmtree(staging)
    print(f"{notebook.stem} ({into.name}): {(time.time_ns() - started) / 1e9:.0f} s", flush=True)


def execute(notebook: Path, values: dict[str, Any], paths: dict[str, str], staging: Path) -> None:
    """Runs the notebook with these values, and `outputs` in an empty staging folder; what it prints stays there."""
    paths = {"outputs": from_notebooks(staging)} | {name: from_notebooks(path) for name, path in paths.items()}
    if undeclared := paths.keys() - defaults(notebook).keys():
        raise Refused(f"{notebook}: its cell `parameters` has no {', '.join(sorted(undeclared))}")

    shutil.rmtree(staging, ignore_errors=True)
    for folder in ("data", "figures", "notebooks", "runtime"):
        (staging / folder).mkdir(parents=True)
    # The kernel has no terminal of its own: mmstudy draws progress bars on this one, if there is one.
    os.environ["MMSTUDY_TERMINAL"] = os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else os.devnull
    os.environ["JUPYTER_RUNTIME_DIR"] = str((staging / "runtime").resolve())  # what a killed kernel leaves behind
    executed = staging / "notebooks" / notebook.name
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            values | paths,
            kernel_name="python3",
            cwd=NOTEBOOKS,
            progress_bar=sys.stderr.isatty(),
            start_timeout=120,
            extra_arguments=["--log-level=CRITICAL"],  # the kernel's own log, not what the notebook prints
        )
    except PapermillExecutionError as error:
        raise Refused(f"{notebook}: {error.ename}: {error.evalue}\nSee {executed}") from None


def made(notebook: Path, staging: Path, expected: list[str]) -> list[Path]:
    """What the notebook has made: its files, then its executed copy; raises Refused for other files than expected."""
    executed = staging / "notebooks" / notebook.name
    places = (staging.glob("*"), *((staging / folder).rglob("*") for folder in ("data", "figures")))
    files = [path for place in places for path in place if path.is_file()]
    written = {path.relative_to(staging).as_posix() for path in files if path.stat().st_size}
    if missing := set(expected) - written:
        raise Refused(f"{notebook} has not written {', '.join(sorted(missing))} under `outputs`\nSee {executed}")
    if unknown := written - set(expected):
        raise Refused(f"{notebook} has written {', '.join(sorted(unknown))}, which the Makefile doesn't name")
    return [*files, executed]


def move(files: list[Path], staging: Path, started: int) -> None:
    """Moves finished files from the staging folder into the profile's."""
    for source in files:
        target = staging.parent.parent / source.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.utime(source, ns=(started, started))  # older than what is edited while the notebook runs
        os.replace(source, target)


def main() -> None:
    options = arguments().parse_args()
    os.chdir(ROOT)
    end_with_parent()
    end_on_signals()
    try:
        check_kernel()
        values = parameters(options.notebook, options.profile, options.value)
        into = options.into or Path("outputs") / options.profile
        run(options.notebook, values, dict(pair.split("=", 1) for pair in options.set), into, options.expect)
    except (Refused, FileNotFoundError) as error:
        sys.exit(f"run.py: {error}")
    except DeadKernelError:
        print(f"run.py: the kernel of {options.notebook} died: out of memory?", file=sys.stderr)
        end(138)


if __name__ == "__main__":
    main()
