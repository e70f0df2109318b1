"""What all tests share. Don't import mmstudy at the top here: its shapes are checked only if it is imported later."""

import torch
from hypothesis import settings

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
