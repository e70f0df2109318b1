"""What an installation needs: few packages for measurements, extras for the rest; and what a first import loads."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmstudy.core.sources import imports, of_notebook

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "dask-jobqueue": "dask_jobqueue"}
STANDARD = sys.stdlib_module_names | {"mmstudy", "__future__"}

FACE = """
import sys
sys.modules["dask"] = None  # which xarray loads wherever it is installed
import mmstudy as mm
assert "torch" not in sys.modules
import torch
from torch import nn
torch.manual_seed(0)
network, other, third = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(3))
batch = torch.randn(20, 4), torch.randint(3, (20,))
assert mm.couplings(network, batch) and mm.candidate_pool(network, batch)
mm.check(network, batch)
wider = mm.expand(network, batch, "lemon", {"0": 9})
mm.size([network, wider], batch, method="rays")
mm.sizes(network, batch, methods=["curvature"])
mm.barrier(network, other, batch, match=True)
mm.line(network, other, batch)
mm.plane(network, other, third, batch)
print(*sorted({name.split(".")[0] for name, module in sys.modules.items() if module}))
"""


def packages(*extras):
    """What the core and some extras ask for, by the names that code imports."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    found = {IMPORTED_AS.get(name, name) for name in (Requirement(line).name for line in lines)}
    return found - {"mmstudy"}


def imported_first(path):
    """The packages that are imported with a module itself, not inside of its functions."""
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for name in imports(ast.unparse(ast.Module(top, [])))} - STANDARD


def test_the_face_loads_nothing_of_the_extras():
    done = subprocess.run([sys.executable, "-c", FACE], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"IPython", "pytest", *packages(*EXTRAS)} - packages()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "mmstudy").rglob("*.py")), ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_modules_import_what_the_core_installs(path):
    allowed = packages("figures") if path.parent.name == "figures" else packages()
    assert imported_first(path) <= allowed
    everywhere = {name.split(".")[0] for name in imports(path.read_text())} - STANDARD
    assert everywhere <= packages("study", "figures", "dask", "slurm")


def test_notebooks_import_what_their_extra_installs():
    assert "mmstudy[study,figures]" in EXTRAS["notebooks"]
    code = [of_notebook(path) for path in (ROOT / "notebooks").glob("*.ipynb")]
    code.append((ROOT / "notebooks/run.py").read_text())
    found = {name.split(".")[0] for text in code for name in imports(text)} - STANDARD
    optional = packages("foreign")  # a notebook leaves out what needs it
    assert found <= packages("study", "figures", "notebooks") | optional | {"jupyter_client", "nbclient"}


def test_extras_ask_for_nothing_twice():
    asked = [Requirement(line).name for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    assert len({*asked} - {"mmstudy"}) == len([name for name in asked if name != "mmstudy"])


def test_make_installs_what_its_commands_need():
    installed = re.search(r"-e '?\.\[([\w,]+)\]'?", (ROOT / "Makefile").read_text())[1].split(",")
    assert set(installed) <= EXTRAS.keys()
    reached, waiting = set(), [*installed]
    while waiting:
        extra = waiting.pop()
        reached.add(extra)
        waiting += [more for line in EXTRAS[extra] for more in Requirement(line).extras]
    assert reached == EXTRAS.keys() - {"foreign", "slurm"}  # tests of what these bring are skipped without
