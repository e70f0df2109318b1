"""The benchmarks run, and both ways that they time compute the same; how fast is not for a test to say."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmstudy.core import results

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
REFERENCE = Path(__file__).parent.parent / "outputs/reference/bench"


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
    assert (found["difference"] < (1e-3 if torch.cuda.is_available() else 1e-4)).all()
    assert (found["ratio"] > 0).all()
    assert found.sizes["case"] == 9


def test_what_the_readme_says_of_a_gpu_was_measured():
    found = results.load(REFERENCE / "h200/bench.nc")
    assert found.attrs["device"] == "NVIDIA H200" and found.attrs["versions"].count("2.11")
    many = found["ratio"].where(found["count"] == 64, drop=True)
    training, points = (many[(many["what"] == what).values] for what in ("training", "points"))
    assert training.values.round().tolist() == [26, 26, 26, 30]
    assert (points[points["network"].str.startswith("MLP").values].round() >= 30).all()
    assert set(results.load(REFERENCE / "h200/images.nc").dims) == {"task"}
    full = results.load(REFERENCE / "h100/images.nc")
    assert full.attrs["device"].startswith("NVIDIA H100") and "false" in full.attrs["parameters"]
    assert full["task"].str.startswith("fashion_mnist 10000").all()
    assert (60 * full["hours"]).round(1).values.tolist() == [2.5, 2.8]


def test_where_the_readme_calls_others_faster_they_are():
    found = results.load(REFERENCE / "bench.nc")
    others = found["ratio"].where(~found["reference"].isin(["loop", "not compiled"]), drop=True)
    faster = others[(others < 1).values]
    assert set(faster["network"].values) == {"convolutional"}
    cases = zip(faster["reference"].values, faster["what"].values, faster.values.round(2), strict=True)
    assert set(cases) == {
        ("loss-landscapes", "line", 0.90),
        ("loss-landscapes", "plane", 0.81),
        ("curvlinops", "Hessian trace", 0.65),
    }
    text = (REFERENCE.parents[2] / "README.md").read_text()
    assert "takes 0.90 of our time for a line and 0.81 for a plane, and curvlinops 0.65 for a Hessian trace" in text
    assert "never slower than the loop" in (REFERENCE / "bench.md").read_text()


def test_what_images_take_is_estimated(tmp_path):
    command = [sys.executable, BENCHMARKS / "images.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = results.load(tmp_path / "images.nc")
    assert found["task"].str.contains("deep ResNet|ViT").all() and found.sizes["task"] == 2
    assert (found[["together", "alone", "base", "hours", "networks"]].to_array() > 0).all()
    assert len((tmp_path / "images.md").read_text().splitlines()) == 2 + 2 + 2


def test_the_cost_of_a_cluster_is_measured(tmp_path):
    pytest.importorskip("distributed")
    command = [sys.executable, BENCHMARKS / "scheduling.py", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"scheduling.{kind}" for kind in ("nc", "md", "svg", "png")}
    found = results.load(tmp_path / "scheduling.nc")
    assert (found["overhead"] > 0).all()
    assert found.sizes["piece"] == 1 + 3  # the base; the places that grow
    assert "**On paper** (a simulation" in (tmp_path / "scheduling.md").read_text()


@pytest.fixture(scope="module")
def scheduling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as for a script, which imports what lies beside it
        return importlib.import_module("scheduling")


@pytest.mark.parametrize(
    ("lengths", "workers", "serve", "seconds"),
    [
        ([3.0, 2.0, 1.0], 1, 0.0, 6.0),
        ([3.0, 2.0, 1.0], 2, 0.0, 3.0),
        ([1.0] * 10, 2, 0.0, 5.0),
        ([1.0] * 10, 1, 0.1, 10.1),  # what is in hand hides all waiting but the first
        ([1.0] * 10, 10, 0.5, 6.0),  # the queue is the bound
        ([0.1] * 100, 1, 1.0, 100.1),
    ],
)
def test_a_queue_on_paper(scheduling, lengths, workers, serve, seconds):
    assert scheduling.simulated(lengths, workers, serve) == pytest.approx(seconds)


def test_growth_of_a_language_model_is_measured():
    pytest.importorskip("transformers")
    command = [sys.executable, BENCHMARKS / "coverage.py", "--quick", "couplings", "depth"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows[2:]] == ["couplings", "depth"]
    assert all(float(number) > 0 for row in rows[2:] for number in row[1:])
