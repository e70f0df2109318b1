"""What the results in a folder depend on: a ranking goes on only where all of it is as it was."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmstudy.batched import hooks
from mmstudy.batched.engine import Batch
from mmstudy.core import results, sources
from mmstudy.expansion.candidate import Candidate
from mmstudy.ranking.training import Training


def of(
    network: nn.Module,
    training: Training,
    pool: Mapping[str, Candidate],
    batches: Iterable[Batch],
    measured: Batch,
    **numbers: Any,
) -> dict[str, str]:
    """Name → a hash or a value of everything on which a ranking depends.

    Functions are known by their code alone: not by what they read from elsewhere.
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
        "network": hash_of(type(network).__qualname__, network.state_dict()),
        "gradient hooks": hash_of(*(f"{place}: {_code(hook)}" for place, hook in hooks.on_gradients(network))),
        "pool": hash_of(*(f"{label}: {candidate}, {candidate.seed}" for label, candidate in pool.items())),
        "loader": hash_of(list(batches)),
        "validation data": hash_of(measured),
        "optimizer": hash_of(type(optimizer).__name__, repr(options), state),
        "loss_fn": _code(training.loss_fn),
        "schedule": _code(training.schedule),
        "train": _code(training.train),
        "clip": repr(training.clip),
        "autocast": repr(training.autocast),
        "accumulate": repr(training.accumulate),
        "seed": repr(training.seed),
        **{name: _code(value) if callable(value) else repr(value) for name, value in numbers.items()},
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


def hash_of(*things: Any) -> str:
    """A hash of tensors and plain values, in trees of any form."""
    digest = hashlib.sha256()
    for leaf in tree_leaves(things):
        if isinstance(leaf, Tensor):
            value = leaf.detach().cpu().contiguous()
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:32]


def _code(function: Callable | None) -> str:
    """A hash of what a function does, as far as its own code says it."""
    if function is None:
        return "none"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return getattr(function, "__qualname__", type(function).__qualname__)
    return hashlib.sha256(_meaning(code).encode()).hexdigest()[:32]


def _meaning(code: Any) -> str:
    """Bytecode, names and constants, those of functions inside it too."""
    constants = [_meaning(each) if hasattr(each, "co_code") else repr(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))
