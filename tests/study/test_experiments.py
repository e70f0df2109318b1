"""Experiments that are joined are those that are swept together, and packed numbers are the numbers."""

import json

import numpy as np
import pytest
import xarray as xr

from mmstudy.study import experiments


def experiment(task: str, commit: str = "one", looks: int = 3) -> xr.Dataset:
    rows = ("candidate", "progress")
    return xr.Dataset(
        {"loss": (rows, np.random.default_rng(len(task)).random((2, looks)))},
        {"task": ("candidate", [task] * 2), "progress": np.linspace(0, 1, looks)},
        {
            "parameters": json.dumps({"tasks": [task], "protocols": [{"steps": 10}]}),
            "commit": commit,
            "device": "cpu",
            "versions": "{}",
            "wall_time_s": 2.5,
        },
    )


def test_joined_rows_are_those_of_each_and_say_where_they_come_from():
    one, other = experiment("a"), experiment("b c", "two")
    both = experiments.joined([one, other])
    for each in (one, other):
        xr.testing.assert_equal(both.isel(candidate=(both["task"] == each["task"][0]).values), each)
    assert json.loads(both.attrs["parameters"]) == {"tasks": ["a", "b c"], "protocols": [{"steps": 10}] * 2}
    assert both.attrs["commit"] == "one, two" and both.attrs["device"] == "cpu" and both.attrs["wall_time_s"] == 5


def test_one_experiment_joined_is_itself():
    assert experiments.joined([experiment("a")]).identical(experiment("a"))


@pytest.mark.parametrize(
    ("some", "said"),
    [
        ([], "no experiment"),
        ([experiment("a"), experiment("b"), experiment("a")], "found twice: a"),
        ([experiment("a"), experiment("b", looks=4)], "not measured alike"),
    ],
)
def test_what_cannot_be_joined_is_refused(some, said):
    with pytest.raises(ValueError, match=said):
        experiments.joined(some)


def test_packed_numbers_are_close_and_what_is_not_finite_stays():
    values = np.concatenate([np.random.default_rng(0).lognormal(0, 5, 1000), [0.0, -2.5, np.nan, np.inf, -np.inf]])
    names = ("ray_loss", "ray_length", "ray_origin", "curve", "fast_curve")
    packed = experiments.compact(xr.Dataset(dict.fromkeys(names, ("x", values))))
    for name in names:
        found = packed[name].values
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, rtol=2.0**-15)
        assert len(np.unique(found.view(np.int32) & (2 ** (23 - experiments.BITS) - 1))) <= 2  # zero, and that of NaN
    assert experiments.compact(packed).identical(packed)
