"""Imports run downward only, and pictures are drawn on the top floor only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mmstudy

FLOORS = {
    0: {"axes", "couplings", "layers", "notes", "tracing", "views", "landscapes", "networks", "records", "seeds"}
    | {"singular", "tasks"},
    1: {"checkpoints", "checks", "copies", "deeper", "engine", "ensemble", "expand", "fresh", "growth", "objective"}
    | {"optimizers", "recording", "surgery", "training"},
    2: {
        "children",
        "connectivity",
        "contracts",
        "curvature",
        "dimension",
        "directions",
        "evaluation",
        "llc",
        "manifold",
    }
    | {"pools", "predictors", "rays", "simplex", "symmetries", "volume"},
    3: {"estimators", "study", "trials", "truths"},
    4: {"figures", "illustrations", "portraits", "tour"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
FILES = {path.stem: path for path in Path(mmstudy.__file__).parent.glob("*.py") if path.stem != "__init__"}


def imported(source: str) -> set[str]:
    """Dotted names of what a module of mmstudy imports anywhere in it, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["mmstudy"] * bool(node.level) + [node.module] * bool(node.module)
            names |= {".".join([*parts, alias.name]) for alias in node.names}
    return names


def ours(source: str) -> set[str]:
    """The modules of mmstudy that a module imports."""
    return {name.split(".")[1] for name in imported(source) if name.startswith("mmstudy.")} & FLOOR.keys()


def test_every_module_has_a_floor():
    assert FILES.keys() == FLOOR.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import mmstudy.study",
        "import mmstudy.study as s",
        "from mmstudy import seeds, study",
        "from mmstudy.study import sweep",
        "from . import study",
        "from .study import sweep",
        "def late():\n    from mmstudy.study import sweep",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert "study" in ours(source)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_do_not_go_up(module):
    higher = {name for name in ours(FILES[module].read_text()) if FLOOR[name] > FLOOR[module]}
    assert not higher, f"{module} (floor {FLOOR[module]}) imports {higher}"


def test_imports_do_not_go_round():
    graph = {module: ours(path.read_text()) for module, path in FILES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # a cycle raises


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_the_top_floor_draws(module):
    drawing = {name.split(".")[0] for name in imported(FILES[module].read_text())} & {"matplotlib", "seaborn"}
    assert not drawing or FLOOR[module] == 4


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_fits_in_one_reading(module):
    assert len(FILES[module].read_text().splitlines()) <= 300
