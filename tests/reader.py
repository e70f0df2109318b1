"""What a reader does with a notebook: change some of its parameters, and run its code."""

import ast
import json
import linecache
from collections.abc import Container
from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@cache
def cells(name: str) -> list[tuple[str, bool]]:
    """The source of every code cell, and whether it holds the parameters."""
    found = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return [("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", [])) for cell in code]


def parameters(name: str) -> list[str]:
    """The names of what a notebook offers."""
    (code,) = [source for source, offers in cells(name) if offers]
    return [target.id for node in ast.parse(code).body for target in node.targets]


def run(name: str, folder: Path, which: Container[int] | None = None, **changed) -> dict:
    """Run the code of a notebook here, with some parameters changed; or only the cells that have these numbers."""
    names = {"display": lambda *shown, **options: None, "__name__": "__main__"}
    for number, (source, offers) in enumerate(cells(name)):
        if which is not None and number not in which:
            continue
        place = f"{name}, code cell {number}"
        linecache.cache[place] = len(source), None, source.splitlines(keepends=True), place  # for tracebacks
        exec(compile(source, place, "exec"), names)
        if offers:
            assert changed.keys() <= names.keys(), f"{name} has no parameters {sorted(changed.keys() - names.keys())}"
            names |= {"outputs": str(folder)} | changed
    plt.close("all")
    return names


class Here(Executor):
    """Does all work in this very process, at once: other processes would have to import everything first."""

    def submit(self, function, /, *args, **options) -> Future:
        done = Future()
        try:
            done.set_result(function(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done
