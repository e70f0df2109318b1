"""What all tests share. Don't import mmstudy at the top here: its shapes are checked only if it is imported later."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Every shape annotation is checked while the tests run, in the modules that have some: elsewhere mypy's checks will do.
PACKAGE = Path(__file__).parents[1] / "mmstudy"
SHAPED = [path for path in PACKAGE.rglob("*.py") if "from jaxtyping import" in path.read_text()]
names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in SHAPED]
jaxtyping.install_import_hook(names, "beartype.beartype")

# Two busy cores: no deadlines, and the same examples in every run.
settings.register_profile("mmstudy", deadline=None, derandomize=True)
settings.load_profile("mmstudy")


def pytest_runtest_setup(item):
    """What a test, or a fixture of its own, draws without a generator is the same in every run."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Nbval gives a cell's last message five seconds, too few on a busy machine."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60


@pytest.fixture
def unchecked():
    """As a user calls it, without this suite's checks of annotations, which would answer first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
