"""The numbers that the study's claims rest on, and where in the results each of them stands.

A number is named by a file, a variable and what to select, the rest being averaged:
`relation.nc / spearman / part=confirmation / predictor=parameters`; with ` minus ` between two such names, it is the
mean of the difference, task by task.
"""

from pathlib import Path

import xarray as xr

from mmstudy.core import results

MINUS = " minus "


def number(folder: str | Path, name: str) -> float:
    """The number of this name in the results of a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such variable, or nothing to select; the message lists what there is.
    """
    parts = [_values(Path(folder), part) for part in name.split(MINUS)]
    if len(parts) > 2:
        raise ValueError(f"a number is one name, or two with {MINUS!r} between them; got {name!r}")
    return float((parts[0] - parts[1] if len(parts) == 2 else parts[0]).mean())


def _values(folder: Path, name: str) -> xr.DataArray:
    file, variable, *selections = (part.strip() for part in name.split(" / "))
    dataset = results.read(folder / file)
    if variable not in dataset:
        raise ValueError(f"{file} has no variable {variable!r}; it has {', '.join(map(str, dataset.data_vars))}")
    values = dataset[variable]
    for selection in selections:
        coordinate, _, wanted = selection.partition("=")
        if coordinate not in values.coords or values[coordinate].ndim != 1:
            known = ", ".join(map(str, values.coords))
            raise ValueError(f"{variable} of {file} has no coordinate {coordinate!r}; it has {known}")
        texts = [str(value) for value in values[coordinate].values.tolist()]
        (dim,) = values[coordinate].dims
        inside = [i for i, text in enumerate(texts) if text == wanted]
        if not inside:
            known = ", ".join(dict.fromkeys(texts))[:1000]
            raise ValueError(f"{coordinate}={wanted!r} is not in {file}; known: {known}")
        values = values.isel({dim: inside}) if len(inside) > 1 else values.isel({dim: inside[0]})
    return values.reset_coords(drop=True)
