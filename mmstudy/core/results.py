"""Results as labelled data that explain themselves: units, names, provenance; files written whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from mmstudy import __version__

LARGE = 10_000  # numbers in an array that is compressed
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LITTLE = 2**20  # bytes on a disk that is as good as full
HALTED = ("inline_container", "basic_ios::clear")  # what torch says where a file could not grow
CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("torch", "numpy", "scipy", "xarray", "scikit-learn", "mnist1d")


def _processor() -> str:
    """What the rounding of a processor depends on, as far as the system tells."""
    try:
        told = re.search(r"^model name\s*:\s*(.+?)\s*$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        told = None
    parts = told and told.group(1), platform.machine(), torch.backends.cpu.get_cpu_capability()
    return f"cpu ({', '.join(filter(None, parts))})"


def provenance(parameters: dict, device: str = "cpu") -> dict[str, str]:
    """The attributes that reproduce a result: parameters, versions, commit, device, threads and the time of day."""
    return {
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
        "versions": json.dumps(versions()),
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": str(torch.get_num_threads()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """The versions of Python, this package, and those of the packages it computes with that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"mmstudy": __version__, "python": platform.python_version()}


def commit() -> str:
    """The git commit of this package, with "+changes" where its files differ from it.

    Without a repository that keeps this very file (an installed package, in whatever repository that may lie), the
    package's version.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        package = [*git, "status", "--porcelain", "--", ".."]
        dirty = subprocess.run(package, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return head + ("+changes" if dirty else "")


def describe(dataset: xr.Dataset, words: dict[str, tuple[str, str]]) -> xr.Dataset:
    """The dataset with (units, long name) on the variables and coordinates that `words` names and it has."""
    dataset = dataset.copy()
    for name in dataset.variables.keys() & words.keys():
        dataset[name].attrs.update(zip(("units", "long_name"), words[str(name)], strict=True))
    return dataset


def check(dataset: xr.Dataset, requires: Iterable[str] = ()) -> None:
    """Refuse a dataset that is no result of this study.

    Raises:
        ValueError: lists what is missing: required variables, units, long names, provenance.
    """
    wrong = [f"no variable {name!r}" for name in requires if name not in dataset.variables]
    for name, variable in dataset.data_vars.items():
        wrong += [f"{name!r} has no {attr!r}" for attr in ("units", "long_name") if attr not in variable.attrs]
    wrong += [f"no attribute {name!r}" for name in ("parameters", "versions", "commit") if name not in dataset.attrs]
    if wrong:
        raise ValueError("not a result of this study: " + "; ".join(wrong))


def checksum(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of tensors, of their types and shapes too."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """A file is written beside its place: it moves there when the block has ended well, and is gone if not.

    A reader sees the old file or the new one, never a half.

    Yields:
        The path to write to.

    Raises:
        OSError: there is no room for the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield beside
        os.replace(beside, path)
    except Exception as error:  # not every library says that the disk is full, or by this error
        full = getattr(error, "errno", None) in NO_ROOM or any(words in str(error) for words in HALTED)
        if full or shutil.disk_usage(path.parent).free < LITTLE:
            raise OSError(
                errno.ENOSPC,
                f"no room for {path}: free some, and run again. What was written before is whole ({error})",
            ) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def write(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write netCDF atomically, large arrays of numbers compressed, each as one chunk, as it is read whole.

    How a dataset was stored before (its encoding: string lengths, for one) has no say in how it is stored now.

    Returns:
        The path of the file.
    """
    large = [name for name, values in dataset.variables.items() if values.size > LARGE and values.dtype.kind in "fi"]
    with atomically(path) as beside:
        packed = {name: {"zlib": True, "shuffle": True, "chunksizes": dataset[name].shape} for name in large}
        dataset.drop_encoding().to_netcdf(beside, engine="h5netcdf", encoding=packed)
    return Path(path)


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Check the dataset, then `write` it."""
    check(dataset)
    return write(dataset, path)


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as .csv atomically, for other programs to read: numbers to four significant digits.

    Returns:
        The path of the file.
    """
    with atomically(path) as beside:
        table.to_csv(beside, float_format="%.4g")
    return Path(path)


def read(path: str | Path) -> xr.Dataset:
    """Read a netCDF file wholly into memory and close it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no netCDF (half-written, corrupt).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; `make all` makes the results")
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # h5py, h5netcdf and xarray each raise their own
        raise ValueError(f"{path} cannot be read ({error}); delete it and run make again") from error


def load(path: str | Path, requires: Iterable[str] = ()) -> xr.Dataset:
    """`read` a result and `check` it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or is no result of this study; the message names it.
    """
    dataset = read(path)
    try:
        check(dataset, requires)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return dataset
