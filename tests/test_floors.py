"""The rooms of the package: imports run downward only, and figures are drawn on the top floor only."""

from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import mmstudy
from mmstudy.core.sources import imports

ROOMS = ("core", "batched", "tracing", "expansion", "manifold", "validation", "ranking", "study", "figures")  # upward
PACKAGE = Path(mmstudy.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE
}


def ours(source: str) -> set[str]:
    """The modules of the package that some code imports, without the package's own name."""
    names = (name.split(".")[1:] for name in imports(source) if name.startswith("mmstudy."))
    modules = {".".join(parts[:length]) for parts in names for length in range(1, len(parts) + 1)}
    return modules & MODULES.keys()


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(ROOMS)
    assert all((PACKAGE / folder / "__init__.py").read_text() for folder in folders)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_modules(room):
    folder = PACKAGE / room
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert import_module(f"mmstudy.{room}").__all__ == sorted(modules)


@pytest.mark.parametrize(
    "source",
    [
        "import mmstudy.study.sweep",
        "import mmstudy.study.sweep as s",
        "from mmstudy.study import protocol, sweep",
        "from mmstudy.study.sweep import sweep",
        "def late():\n    from mmstudy.study.sweep import sweep",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert "study.sweep" in ours(source)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_do_not_go_up(module):
    floor = ROOMS.index(module.split(".")[0])
    names = {name.split(".")[1] for name in imports(MODULES[module].read_text()) if name.startswith("mmstudy.")}
    higher = {room for room in names & set(ROOMS) if ROOMS.index(room) > floor}
    assert not higher, f"{module} (room {floor}) imports from {higher}"


def test_imports_do_not_go_round():
    graph = {module: ours(path.read_text()) for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # a cycle raises


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_top_floor_draws(module):
    drawing = {name.split(".")[0] for name in imports(MODULES[module].read_text())} & {"matplotlib", "seaborn"}
    assert not drawing or module.startswith("figures.")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_fits_in_one_reading(module):
    assert len(MODULES[module].read_text().splitlines()) <= 300


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}))
def test_tests_mirror_the_rooms(folder):
    assert folder in ROOMS
