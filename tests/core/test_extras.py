import subprocess
import sys

import pytest

from mmstudy.core.extras import needed

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{code}
"""


@pytest.mark.parametrize(
    ("absent", "extra", "code"),
    [
        ("sklearn", "study", "from mmstudy.core.tasks import Task, load\nload(Task('digits', (6,), 100))"),
        ("mnist1d", "study", "from mmstudy.core.tasks import Task, load\nload(Task('mnist1d', (6,), 100))"),
        ("matplotlib", "figures", "from mmstudy.figures import answer"),
        ("seaborn", "figures", "import mmstudy.figures.style"),
        ("distributed", "dask", "from mmstudy.core import cluster\ncluster.executor('tcp://a:1').__enter__()"),
        ("dask_jobqueue", "slurm", "from mmstudy.core import slurm\nslurm.script('tcp://a:1', 1)"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(absent, extra, code):
    script = ABSENT.format(absent=[absent], code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == f'ImportError: {absent} is not installed: pip install "mmstudy[{extra}]"'


def test_other_errors_pass():
    with pytest.raises(ImportError, match="cannot import name"), needed("study"):
        from math import nothing  # noqa: F401
    with needed("study"):
        import math  # noqa: F401
