"""Images from OpenML (Vanschoren et al. 2014): fetched once, then kept as bytes, with a checksum.

    python -m mmstudy.core.openml cifar10    # ahead of a run, where there is a network; without a name, all of them

`sklearn.datasets.fetch_openml` reads what OpenML has. It begins a download anew that broke off, and those of OpenML's
large files do break off, without an error (github.com/openml/openml.org/issues/377). So the files are downloaded here,
each attempt going on where the last one ended, into the places where scikit-learn looks before it asks the network.
What it has read is kept as NAME.safetensors, and checked whenever it is loaded.

Two variables of the environment: MMSTUDY_DATA is the folder for all of this (an absolute path; scikit-learn's own,
~/scikit_learn_data, if unset); MMSTUDY_OPENML is a mirror of the server.
"""

import fcntl
import gzip
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmstudy.core import arguments, progress
from mmstudy.core.extras import needed
from mmstudy.core.results import atomically, checksum

SERVER, API = "https://www.openml.org", "/api/v1/json/data/"
TRIES, PAUSE, TIMEOUT = 4, 2.0, 60.0  # attempts in a row that bring nothing new; seconds between them, of silence
PIECE = 2**16  # bytes that are written at a time


class Source(NamedTuple):
    """A dataset of OpenML by its number there, and what it must turn out to be."""

    number: int
    title: str
    examples: int
    classes: int
    image: tuple[int, int, int]  # (channels, height, width): a row holds one channel after another
    augmented: bool  # whether an image that is shifted or mirrored is as good an example of its class


# By these numbers public code fetches them, and it reads colours channel by channel. Nobody has asked the server for
# this package: what comes is held against the rest of the line.
SOURCES = {
    "mnist": Source(554, "mnist_784", 70_000, 10, (1, 28, 28), False),
    "fashion_mnist": Source(40996, "Fashion-MNIST", 70_000, 10, (1, 28, 28), True),
    "cifar10": Source(40927, "CIFAR_10", 60_000, 10, (3, 32, 32), True),
    "cifar100": Source(41983, "CIFAR-100", 60_000, 100, (3, 32, 32), True),
}


def directory() -> Path:
    """The folder that MMSTUDY_DATA names, or scikit-learn's own; made, if need be."""
    with needed("study"):
        from sklearn.datasets import get_data_home
    return Path(get_data_home(os.environ.get("MMSTUDY_DATA") or None))


def load(name: str) -> tuple[UInt8[Tensor, "n features"], Int[Tensor, " n"]]:
    """The images of a dataset, (n, channels · height · width), and their classes, counted from 0; fetched if need be.

    Raises:
        FileNotFoundError: they are not in the data directory, and cannot be fetched; says how they get there.
        ValueError: an unknown name, a damaged file, or a dataset that is not what `SOURCES` says.
    """
    arguments.one_of(name, SOURCES, "dataset")
    path = directory() / f"{name}.safetensors"
    if not path.exists():
        with _alone(path):
            if not path.exists():  # another process may have fetched it meanwhile
                inputs, targets = _fetched(name, path.parent)
                with atomically(path) as beside:
                    save_file({"inputs": inputs, "targets": targets}, beside, {"sha256": checksum((inputs, targets))})
    return _read(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the system opens the lock again, however a process ends."""
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            known = (file.metadata() or {}).get("sha256")
            inputs, targets = file.get_tensor("inputs"), file.get_tensor("targets")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    if checksum((inputs, targets)) != known:
        raise ValueError(f"{path} is damaged (its checksum has changed): delete it, and it is made again")
    return inputs, targets


# ---- From the server ---------------------------------------------------------------------------------------------


def _fetched(name: str, folder: Path) -> tuple[Tensor, Tensor]:
    """A dataset as OpenML has it, from files that are downloaded unless they lie in the folder."""
    source, server = SOURCES[name], (os.environ.get("MMSTUDY_OPENML") or SERVER).rstrip("/")
    with needed("study"):
        from sklearn.datasets import fetch_openml
    try:
        features, _, about = (
            json.loads(gzip.decompress(_kept(server, f"{API}{part}{source.number}", folder, _is_json).read_bytes()))
            for part in ("features/", "qualities/", "")
        )
        url, md5 = (about["data_set_description"][name] for name in ("url", "md5_checksum"))
        home = "{0.scheme}://{0.netloc}".format(urlparse(url)) if server == SERVER else server
        _kept(home, urlparse(url).path, folder, lambda path: _md5(path) == md5)
        columns = features["data_features"]["feature"]
        words = {int(column["index"]): str for column in columns if column["is_target"] == "true"}
        found = fetch_openml(
            data_id=source.number,
            data_home=folder,
            as_frame=False,
            parser="pandas",
            read_csv_kwargs={"dtype": words},  # pandas 3.1 would read numbers, where scikit-learn 1.9 wants words
        )
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"the dataset {name!r} ({source.title}, https://www.openml.org/d/{source.number}) is not in {folder}, and "
            f"cannot be fetched: {error}. Where there is a network, `python -m mmstudy.core.openml {name}` fetches it; "
            f"a download that broke off goes on. From there, copy {name}.safetensors into {folder}, or name its folder "
            "by MMSTUDY_DATA"
        ) from error
    return _as_bytes(name, found.data, found.target)


def _kept(server: str, path: str, folder: Path, whole: Callable[[Path], bool]) -> Path:
    """A file of a server, compressed, in the place where scikit-learn looks for it."""
    place = folder / "openml" / "openml.org" / f"{path.lstrip('/')}.gz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part")
        _download(f"{server}{path}", part, whole)
        with part.open("rb") as plain, atomically(place) as beside, gzip.open(beside, "wb", 1) as packed:
            shutil.copyfileobj(plain, packed)
        part.unlink()
    return place


def _download(url: str, part: Path, whole: Callable[[Path], bool]) -> None:
    """Add to the file `part` what it lacks of the one at a URL, until it is whole.

    Raises:
        OSError: the server cannot be reached, says no, or has brought nothing new for `TRIES` attempts.
        ValueError: nothing lies beyond its end, and it is not whole: it is thrown away.
    """
    most, tries = _size(part), 0
    while not (part.exists() and whole(part)):
        try:
            ended = _more(url, part)
            reason = "it breaks off at the same place, or has a wrong checksum, again and again"
        except (OSError, HTTPException) as error:
            if getattr(error, "code", 500) < 500:  # it says no, and would say so again
                raise OSError(f"{url}: {error}") from error
            ended, reason = False, f"{error}"
        if ended:
            part.unlink()
            raise ValueError(f"{url} is not what OpenML says it is (another checksum): it was thrown away; try again")
        tries = 0 if _size(part) > most else tries + 1
        most = max(most, _size(part))
        if tries == TRIES:
            raise OSError(f"{url}: {reason}")
        if tries:
            time.sleep(PAUSE)


def _more(url: str, part: Path) -> bool:
    """Add to a file what the server sends from its end on; whether the server has said that there is nothing."""
    begun = _size(part)
    asked = Request(url, headers={"Accept-Encoding": "identity", "Range": f"bytes={begun}-"})
    try:
        answer = urlopen(asked, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # the range lies beyond the end; lengths that are announced are not to be trusted
            return True
        raise
    if answer.status != 206:  # it cannot go on, and sends all of it again
        begun = 0
    total = begun + answer.length if answer.length else None
    with answer, part.open("ab" if begun else "wb") as file, progress.bar(total, part.stem, "B", begun) as bar:
        while piece := answer.read(PIECE):
            file.write(piece)
            bar.update(len(piece))
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _as_bytes(name: str, data: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Pixels as bytes, labels as classes.

    Raises:
        ValueError: another number of images, pixels or classes than they should have, or pixels that are no bytes.
    """
    source, words = SOURCES[name], np.asarray(labels).astype(str)
    named = words.astype(int) if np.char.isdigit(words).all() else words  # class 10 comes after class 9
    classes, targets = np.unique(named, return_inverse=True)
    found, wanted = (*data.shape, len(classes)), (source.examples, math.prod(source.image), source.classes)
    page = f"https://www.openml.org/d/{source.number}"
    if found != wanted:
        raise ValueError(f"{name} must have {wanted} images, pixels and classes, and what {page} brought has {found}")
    pixels = data.astype(np.uint8, order="C")  # pandas keeps columns together
    if not (pixels == data).all():
        raise ValueError(f"pixels of {name} must be whole numbers from 0 to 255, and what {page} brought has others")
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def main(names: Sequence[str]) -> None:
    """Fetch datasets, or all of them, and say what is there."""
    for name in names or SOURCES:
        inputs, targets = load(name)
        print(f"{name}: {len(inputs)} images in {len(targets.unique())} classes, {directory() / name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
