import json

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
