"""What the results in a folder depend on: a ranking goes on only where all of it is as it was."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmstudy.batched import hooks
from mmstudy.batched.engine import Batch
from mmstudy.core import results, sources
from mmstudy.expansion.candidate import Candidate
from mmstudy.ranking import fingerprints
from mmstudy.ranking.training import Training


def of(
    network: nn.Module,
    training: Training,
    pool: Mapping[str, Candidate],
    measured: Batch,
    **numbers: Any,
) -> dict[str, str]:
    """Name → a hash or a value of everything on which a ranking depends.

    Functions are known by their code and what is fixed around them, as `fingerprints.of` says.
    """
    optimizer = training.optimizer
    if callable(optimizer):
        optimizer = optimizer(list(network.parameters()))
    options = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in (optimizer.param_groups if optimizer else ())
    ]
    state = optimizer.state_dict()["state"] if optimizer else {}
    return {
        "network": fingerprints.of(network),
        "gradient hooks": fingerprints.of(*hooks.on_gradients(network)),
        "pool": fingerprints.of(*(f"{label}: {candidate}, {candidate.seed}" for label, candidate in pool.items())),
        "loader": fingerprints.of_loader(training.loader, training.seed),
        "validation data": fingerprints.of(measured),
        "optimizer": fingerprints.of(type(optimizer).__name__, options, state),
        "loss_fn": fingerprints.of(training.loss_fn),
        "schedule": fingerprints.of(training.schedule),
        "train": fingerprints.of(training.train),
        "clip": repr(training.clip),
        "autocast": repr(training.autocast),
        "accumulate": repr(training.accumulate),
        "seed": repr(training.seed),
        **{name: fingerprints.of(value) if callable(value) else repr(value) for name, value in numbers.items()},
        "torch": torch.__version__,
        "mmstudy": sources.fingerprint("import mmstudy.ranking.rows"),
    }


def claim(folder: Path, settings: Mapping[str, str]) -> None:
    """Make the folder this ranking's own, or see that it is.

    Raises:
        ValueError: the folder holds a ranking of something else, or other files, or cannot be written.
    """
    try:
        _claim(folder, settings)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written or read ({error}): give another one") from error


def _claim(folder: Path, settings: Mapping[str, str]) -> None:
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} has files and no settings.json, so it is no ranking's: give a new folder")
        with results.atomically(path) as beside:
            beside.write_text(json.dumps(dict(settings), indent=1))
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): give a new folder") from error
    if changed := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
        details = [
            f"{name} ({before.get(name)} before, {settings.get(name)} now)" if len(str(before.get(name))) < 20 else name
            for name in changed
        ]
        raise ValueError(f"{folder} holds another ranking: {', '.join(details)} changed since. Give a new folder")


def name_of(label: str, candidate: Candidate | None) -> str:
    """A file name for a candidate."""
    return hashlib.sha256(f"{label}: {candidate}".encode()).hexdigest()[:16]
