"""The benchmarks run, and both ways that they time compute the same; how fast is not for a test to say."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmstudy.core import results

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, BENCHMARKS / "bench.py", "--quick", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_table_the_figure_and_the_data_are_written(bench):
    out, printed = bench
    assert {path.name for path in out.iterdir()} == {"bench.nc", "bench.md", "bench.svg", "bench.png"}
    assert (out / "bench.md").read_text().strip() == printed.strip()
    for network in ("MLP 16", "MLP 64", "convolutional", "ViT"):
        assert f"| training | {network} | 8 |" in printed
    assert "training, MLP 64, 8:" in printed  # a goal, met or not


def test_the_loop_and_the_batch_agree(bench):
    found = results.load(bench[0] / "bench.nc")
    assert (found["difference"] < 1e-4).all()
    assert (found["ratio"] > 0).all()
    assert found.sizes["case"] == 9


def test_growth_of_a_language_model_is_measured():
    pytest.importorskip("transformers")
    command = [sys.executable, BENCHMARKS / "coverage.py", "--quick", "couplings", "depth"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["couplings", "depth"]
    assert all(float(number) > 0 for row in rows[2:] for number in row[1:])
