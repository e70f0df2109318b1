"""Imports run downward only, and pictures are drawn on the top floor only."""

import ast
from pathlib import Path

import pytest

import mmstudy

FLOORS = {
    0: {"couplings", "landscapes", "networks", "records", "seeds", "tasks"},
    1: {"ensemble", "expand"},
    2: {"connectivity", "evaluation", "manifold", "predictors"},
    3: {"study", "trials"},
    4: {"figures", "illustrations"},
}
FLOOR = {module: floor for floor, modules in FLOORS.items() for module in modules}
FILES = {path.stem: path for path in Path(mmstudy.__file__).parent.glob("*.py") if path.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_a_floor():
    assert FILES.keys() == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_do_not_go_up(module):
    ours = {name.split(".")[1] for name in imported(FILES[module]) if name.startswith("mmstudy.")}
    higher = {name for name in ours if name in FLOOR and FLOOR[name] > FLOOR[module]}
    assert not higher, f"{module} (floor {FLOOR[module]}) imports {higher}"


@pytest.mark.parametrize("module", sorted(FILES))
def test_only_the_top_floor_draws(module):
    drawing = {name for name in imported(FILES[module]) if name.split(".")[0] in ("matplotlib", "seaborn")}
    assert not drawing or FLOOR[module] == 4


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_fits_in_one_reading(module):
    assert len(FILES[module].read_text().splitlines()) <= 300
