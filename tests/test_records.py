import json
import os
import subprocess

import numpy as np
import pytest
import xarray as xr

from mmstudy import records


@pytest.fixture
def dataset():
    made = xr.Dataset({"gain": (("task", "candidate"), np.arange(6.0).reshape(2, 3))}, {"task": ["a", "b×2"]})
    made = records.describe(made, {"gain": ("percentage points", "gain"), "absent": ("1", "is not there")})
    return made.assign_attrs(records.provenance({"steps": 3, "tasks": ["a"]}))


def test_what_is_saved_is_loaded(dataset, tmp_path):
    path = records.save(dataset, tmp_path / "new" / "gain.nc")
    again = records.load(path, requires=["gain"])
    xr.testing.assert_identical(again, dataset)
    assert xr.open_dataset(path)["gain"].attrs == {"units": "percentage points", "long_name": "gain"}
    assert json.loads(again.attrs["parameters"]) == {"steps": 3, "tasks": ["a"]}
    assert {"torch", "python", "mmstudy"} <= json.loads(again.attrs["versions"]).keys()


def test_labels_of_joined_files_keep_their_length(dataset, tmp_path):
    short = records.read(records.save(dataset.assign_coords(task=["a", "b"]), tmp_path / "short.nc"))
    long = records.read(records.save(dataset.assign_coords(task=["a long name", "b"]), tmp_path / "long.nc"))
    joined = xr.concat([short, long], "task", combine_attrs="override")
    again = records.load(records.save(joined, tmp_path / "joined.nc"))
    assert again["task"].values.tolist() == ["a", "b", "a long name", "b"]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(dataset, tmp_path):
    path = records.save(dataset, tmp_path / "gain.nc")
    with pytest.raises(TypeError):
        records.save(dataset.assign_attrs(wrong={"a": object()}), path)
    xr.testing.assert_identical(records.load(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["gain.nc"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no netCDF at all"])
def test_a_damaged_file_is_named(dataset, tmp_path, damage):
    path = records.save(dataset, tmp_path / "gain.nc")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"gain\.nc cannot be read.*delete it and run make"):
        records.load(path)


def test_what_is_missing_is_listed(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nc does not exist; `make all`"):
        records.load(tmp_path / "none.nc")
    del dataset["gain"].attrs["units"], dataset.attrs["commit"]
    with pytest.raises(ValueError, match=r"'gain' has no 'units'; no attribute 'commit'"):
        records.save(dataset, tmp_path / "gain.nc")
    records.write(dataset, tmp_path / "gain.nc")
    with pytest.raises(ValueError, match=r"gain\.nc: .*no variable 'loss'"):
        records.load(tmp_path / "gain.nc", requires=["loss"])


def test_a_write_that_fails_at_the_last_moment_leaves_the_old_file_and_no_litter(dataset, tmp_path, monkeypatch):
    path, beside = records.save(dataset, tmp_path / "gain.nc"), []

    def full(source, target):
        beside.append(os.path.getsize(source))
        raise OSError("no space left")

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        records.write(dataset + 1, path)
    assert beside[0] > 0  # the new file had been written, next to the old one
    monkeypatch.undo()
    xr.testing.assert_identical(records.load(path), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["gain.nc"]


def test_what_is_no_result_is_not_saved(dataset, tmp_path):
    with pytest.raises(ValueError, match="no attribute 'parameters'"):
        records.save(dataset.drop_attrs(deep=False), tmp_path / "gain.nc")
    assert not list(tmp_path.iterdir())


def test_describe_leaves_its_dataset_alone_and_only_names_what_is_there(dataset):
    plain = dataset.drop_attrs()
    described = records.describe(plain, {"gain": ("nat", "a gain"), "task": ("1", "a task"), "absent": ("1", "no")})
    assert described["gain"].attrs == {"units": "nat", "long_name": "a gain"}
    assert described["task"].attrs["long_name"] == "a task"
    assert not plain["gain"].attrs
    assert "absent" not in described.variables


def test_the_commit_is_that_of_the_source_and_says_when_the_source_differs(tmp_path, monkeypatch):
    source = tmp_path / "package" / "records.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(records, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records.commit() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "--no-verify", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "result").write_text("beside the source")
    assert records.commit() == head
    source.write_text("changed")
    assert records.commit() == head + "+changes"
