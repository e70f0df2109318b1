"""Two folders of results held against each other: what is in both, how much of it differs, and by how much.

python -m mmstudy.study.compare outputs/small/data outputs/reference/data
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from mmstudy.core import results

ROWS = ("task", "label")  # name a candidate, of which two experiments may have different ones
SAME = 1e-3  # relative; float32 training differs by more between processors


def compared(new: str | Path, reference: str | Path) -> pd.DataFrame:
    """Every variable of every file in both folders: values in both, the share that differs, the largest difference.

    Differences are relative to the variable's largest number, and count as such above `SAME`. Entries that only one
    of them has, such as tasks of another profile, are left out.

    Raises:
        FileNotFoundError: the folders have no file in common.
    """
    names = sorted(
        {path.name for path in Path(new).glob("*.nc")} & {path.name for path in Path(reference).glob("*.nc")}
    )
    if not names:
        raise FileNotFoundError(f"{new} and {reference} have no results in common: run make all first")
    rows = []
    for name in names:
        ours, theirs = (_indexed(results.read(Path(folder) / name)) for folder in (new, reference))
        for variable in [v for v in ours.data_vars if v in theirs and ours[v].dtype.kind in "fi"]:
            rows.append((name, variable, *_difference(ours[variable], theirs[variable])))
    return pd.DataFrame(rows, columns=["file", "variable", "values", "differ", "largest"]).set_index(
        ["file", "variable"]
    )


def _indexed(dataset: xr.Dataset) -> xr.Dataset:
    if "candidate" in dataset.dims and all(name in dataset.coords for name in ROWS):
        names = [f"{task} | {label}" for task, label in zip(*(dataset[name].values for name in ROWS), strict=True)]
        dataset = dataset.assign_coords(candidate=names)
    return dataset.reset_coords(drop=True)


def _difference(ours: xr.DataArray, theirs: xr.DataArray) -> tuple[int, float, float]:
    try:
        ours, theirs = xr.align(ours, theirs, join="inner")
    except ValueError:  # dimensions without names, of other lengths: nothing says what belongs together
        return 0, np.nan, np.nan
    a, b = ours.values.astype(float), theirs.transpose(*ours.dims).values.astype(float)
    if not a.size:
        return 0, np.nan, np.nan
    unlike = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(a == b, 0.0, np.abs(a - b)))
    scale = np.nanmax(np.abs(b[np.isfinite(b)]), initial=0) or 1.0
    relative = np.where(np.isnan(unlike), np.inf, unlike / scale)
    return a.size, float((relative > SAME).mean()), float(relative.max())


if __name__ == "__main__":
    table = compared(*sys.argv[1:])
    moved = table[~(table["differ"] == 0)]
    print(table.to_string(float_format="{:.3g}".format) if len(moved) else f"{len(table)} variables, no difference")
