"""What is computed of a task's candidates right after expansion: no training, so that a new predictor costs minutes."""

from collections.abc import Sequence

import torch
import xarray as xr

from mmstudy.batched import ensemble as en
from mmstudy.core.datasets import Data
from mmstudy.core.tasks import Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.study.draws import probe_split, shown
from mmstudy.study.predictors import start_values
from mmstudy.study.protocol import Protocol
from mmstudy.study.trials import Grown, alike, grow_all


def start(
    task: Task,
    data: Data,
    base: xr.Dataset,
    candidates: Sequence[tuple[str, Candidate]],
    protocol: Protocol,
    networks: Grown | None = None,
) -> xr.Dataset:
    """Every predictor of (labelled) candidates that share one architecture, and `expansion_cost`, over (candidate).

    Args:
        networks: what `grow_all` gives, if it is there.
    """
    _, grown = networks or grow_all(task, data, base, candidates)
    examples, parts = probe_split(task, data, protocol), []
    for some in alike(grown):
        values = start_values(en.stack([grown[i] for i in some]), examples)
        values["expansion_cost"] = torch.tensor([candidates[i][1].cost(len(shown(data).inputs)) for i in some])
        variables = {name: ("candidate", value.cpu().numpy()) for name, value in values.items()}
        parts.append(xr.Dataset(variables, {"candidate": [candidates[i][0] for i in some]}))
    return xr.concat(parts, "candidate", join="exact").sel(candidate=[label for label, _ in candidates])
