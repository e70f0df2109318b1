import json
import os
import platform
import resource
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import mmstudy
from mmstudy.core import results


@pytest.fixture
def dataset():
    made = xr.Dataset({"gain": (("task", "candidate"), np.arange(6.0).reshape(2, 3))}, {"task": ["a", "b×2"]})
    made = results.describe(made, {"gain": ("percentage points", "gain"), "absent": ("1", "is not there")})
    return made.assign_attrs(results.provenance({"steps": 3, "tasks": ["a"]}))


def test_what_is_saved_is_loaded(dataset, tmp_path):
    path = results.save(dataset, tmp_path / "new" / "gain.nc")
    again = results.load(path, requires=["gain"])
    xr.testing.assert_identical(again, dataset)
    assert xr.open_dataset(path)["gain"].attrs == {"units": "percentage points", "long_name": "gain"}
    assert json.loads(again.attrs["parameters"]) == {"steps": 3, "tasks": ["a"]}
    assert {"torch", "python", "mmstudy"} <= json.loads(again.attrs["versions"]).keys()


def test_a_table_is_written_for_other_programs(tmp_path):
    table = pd.DataFrame({"mean": [1 / 3, None], "worst_task": ["a, b", ""]}, pd.Index(["x", "y"], name="predictor"))
    path = results.save_table(table, tmp_path / "new" / "table.csv")
    assert path.read_text().splitlines() == ["predictor,mean,worst_task", 'x,0.3333,"a, b"', "y,,"]


def test_labels_of_joined_files_keep_their_length(dataset, tmp_path):
    short = results.read(results.save(dataset.assign_coords(task=["a", "b"]), tmp_path / "short.nc"))
    long = results.read(results.save(dataset.assign_coords(task=["a long name", "b"]), tmp_path / "long.nc"))
    joined = xr.concat([short, long], "task", combine_attrs="override")
    again = results.load(results.save(joined, tmp_path / "joined.nc"))
    assert again["task"].values.tolist() == ["a", "b", "a long name", "b"]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(dataset, tmp_path):
    path = results.save(dataset, tmp_path / "gain.nc")
    with pytest.raises(TypeError):
        results.save(dataset.assign_attrs(wrong={"a": object()}), path)
    xr.testing.assert_identical(results.load(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["gain.nc"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no netCDF at all"])
def test_a_damaged_file_is_named(dataset, tmp_path, damage):
    path = results.save(dataset, tmp_path / "gain.nc")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"gain\.nc cannot be read.*delete it and run make"):
        results.load(path)


def test_what_is_missing_is_listed(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nc does not exist; `make all`"):
        results.load(tmp_path / "none.nc")
    del dataset["gain"].attrs["units"], dataset.attrs["commit"]
    with pytest.raises(ValueError, match=r"'gain' has no 'units'; no attribute 'commit'"):
        results.save(dataset, tmp_path / "gain.nc")
    results.write(dataset, tmp_path / "gain.nc")
    with pytest.raises(ValueError, match=r"gain\.nc: .*no variable 'loss'"):
        results.load(tmp_path / "gain.nc", requires=["loss"])


def test_a_write_that_fails_at_the_last_moment_leaves_the_old_file_and_no_litter(dataset, tmp_path, monkeypatch):
    path, beside = results.save(dataset, tmp_path / "gain.nc"), []

    def full(source, target):
        beside.append(os.path.getsize(source))
        raise OSError("no space left")

    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        results.write(dataset + 1, path)
    assert beside[0] > 0  # the new file had been written, next to the old one
    monkeypatch.undo()
    xr.testing.assert_identical(results.load(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["gain.nc"]


def test_where_there_is_no_room_the_file_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(OSError, match=r"no room for .*state: free some, and run again"),
            results.atomically(path) as beside,
        ):
            beside.write_bytes(b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_library_that_does_not_say_that_the_disk_is_full_is_understood(tmp_path, monkeypatch):
    monkeypatch.setattr(results.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"no room for .*failed writing"), results.atomically(tmp_path / "state"):
        raise RuntimeError("failed writing file data/0")


@pytest.mark.parametrize("limit", [500, 2000, 6000, 20_000])
def test_where_torch_may_write_no_more_it_is_said_that_there_is_no_room(limit, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"no room for .*state"), results.atomically(tmp_path / "state") as beside:
            torch.save({str(i): torch.zeros(500) for i in range(40)}, beside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_is_no_result_is_not_saved(dataset, tmp_path):
    with pytest.raises(ValueError, match="no attribute 'parameters'"):
        results.save(dataset.drop_attrs(deep=False), tmp_path / "gain.nc")
    assert not list(tmp_path.iterdir())


def test_describe_leaves_its_dataset_alone_and_only_names_what_is_there(dataset):
    plain = dataset.drop_attrs()
    described = results.describe(plain, {"gain": ("nat", "a gain"), "task": ("1", "a task"), "absent": ("1", "no")})
    assert described["gain"].attrs == {"units": "nat", "long_name": "a gain"}
    assert described["task"].attrs["long_name"] == "a task"
    assert not plain["gain"].attrs
    assert "absent" not in described.variables


def test_the_commit_is_that_of_the_source_and_says_when_the_source_differs(tmp_path, monkeypatch):
    source = tmp_path / "package" / "core" / "results.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(results, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    version = f"version {mmstudy.__version__}"
    assert results.commit() == version
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    (tmp_path / "of_a_user").write_text("a repository in which the package is installed")
    for words in (["init", "-q"], ["add", "of_a_user"], ["commit", "-q", "--no-verify", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    assert results.commit() == version
    for words in (["add", "."], ["commit", "-q", "--no-verify", "-m", "second"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "result").write_text("beside the source")
    assert results.commit() == head
    source.write_text("changed")
    assert results.commit() == head + "+changes"


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(results, "PACKAGES", ("torch", "no-such-package"))
    assert results.versions().keys() == {"torch", "mmstudy", "python"}


@pytest.mark.parametrize("told", ["flags\t: sse\nmodel name\t: Some Processor 7 \n" * 2, None])
def test_results_name_the_processor_that_rounded_them_where_the_system_tells(told, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(results, "CPU_INFO", info)
    if told:
        info.write_text(told)
    found = results.provenance({})["device"]
    assert found.startswith("cpu (Some Processor 7, " if told else f"cpu ({platform.machine()}, ")
    assert torch.backends.cpu.get_cpu_capability() in found
