"""Experiments as data: read, several joined to one, and stored in few bytes."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import xarray as xr

from mmstudy.core import paths, results
from mmstudy.study.protocol import Protocol

NEEDED = ("part", "accuracy", "control_accuracy", "curve", "ray_loss")  # variables of an experiment
ALIGNED: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "equals", "join": "exact"}
BITS = 14  # of a mantissa that are kept: an error below 1 in 32,000


def joined(experiments: Sequence[xr.Dataset]) -> xr.Dataset:
    """One experiment of several, each on tasks of its own, as if all had been swept together.

    What is known of how they were made is kept of each: their parameters in order, and all their commits.

    Raises:
        ValueError: none at all, a task in two of them, or experiments with other looks, rays or seeds.
    """
    if not experiments:
        raise ValueError("no experiment to join")
    tasks = [task for each in experiments for task in dict.fromkeys(each["task"].values.tolist())]
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise ValueError(f"a task can be in one experiment only; found twice: {'; '.join(twice)}")
    try:
        whole = xr.concat(experiments, "candidate", **ALIGNED, combine_attrs="override")
    except ValueError as error:
        raise ValueError(f"these experiments were not measured alike: {error}") from error
    asked = [json.loads(each.attrs["parameters"]) for each in experiments]
    whole.attrs["parameters"] = json.dumps({key: [*chain(*(each[key] for each in asked))] for key in asked[0]})
    for name in ("commit", "device", "versions"):
        whole.attrs[name] = ", ".join(dict.fromkeys(each.attrs[name] for each in experiments))
    whole.attrs["wall_time_s"] = sum(each.attrs["wall_time_s"] for each in experiments)
    return compact(whole)


def check(experiment: xr.Dataset, protocol: Protocol) -> None:
    """Refuse an experiment that could not be joined to one of this protocol.

    Raises:
        ValueError: it has other seeds, looks or rays.
    """
    rays = 4 * protocol.children + protocol.random_rays + 2
    asked = {"seed": protocol.seeds, "bin": protocol.bins, "place": protocol.doublings + 1, "ray": rays}
    wrong = [
        f"{experiment.sizes[dim]} × {dim}, not {size}" for dim, size in asked.items() if experiment.sizes[dim] != size
    ]
    looks = tuple(experiment["progress"].values.tolist())
    wrong += [f"looks after {looks}, not {protocol.progress}"] if looks != tuple(map(float, protocol.progress)) else []
    if wrong:
        raise ValueError(
            f"experiments must be measured alike to be joined; the one made elsewhere has {'; '.join(wrong)}"
        )


def load(path: str, looks: Sequence[float]) -> xr.Dataset:
    """The experiment in a file, which must have confirmation tasks, and a look after each of these shares of training.

    Raises:
        TypeError: no path.
        ValueError: no file, no experiment, no task of the confirmation, or a look is missing.
    """
    experiment = results.load(paths.file(path, "experiment"), NEEDED)
    if "confirmation" not in experiment["part"].values:
        raise ValueError(f"{path} has no confirmation task: name some in experiment_confirmation of notebook 4")
    there = experiment["progress"].values.tolist()
    if missing := [share for share in looks if share not in there]:
        raise ValueError(
            f"the experiment must have looks after {missing} of the training, and has {there}: put them into "
            "experiment_progress of notebook 4"
        )
    return experiment


def compact(dataset: xr.Dataset) -> xr.Dataset:
    """With what there is most of, losses along rays and curves, in single precision, rounded to `BITS`."""
    large = [name for name in ("ray_loss", "ray_length", "ray_origin", "curve", "fast_curve") if name in dataset]
    return dataset.assign({name: dataset[name].copy(data=_rounded(dataset[name].values)) for name in large})


def _rounded(values: np.ndarray) -> np.ndarray:
    """Float32 with the last bits of the mantissa zero, which packs well; what is not finite stays."""
    single, spare = values.astype(np.float32), np.finfo(np.float32).nmant - BITS
    bits = (single.view(np.int32) + (1 << (spare - 1))) & ~((1 << spare) - 1)
    return np.where(np.isfinite(single), bits.view(np.float32), single)
