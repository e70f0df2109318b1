"""What is computed of a task's candidates right after expansion: no training, so that a new predictor costs minutes."""

import torch
import xarray as xr

from mmstudy.batched import ensemble as en
from mmstudy.study.draws import probe_split, shown
from mmstudy.study.predictors import start_values
from mmstudy.study.trials import Piece, alike


def start(piece: Piece) -> xr.Dataset:
    """Every predictor of the candidates of a piece, and `expansion_cost`, over (candidate)."""
    candidates, grown, parts = piece.candidates, piece.grown, []
    examples, count = probe_split(piece.task, piece.data, piece.protocol), len(shown(piece.data).inputs)
    for some in alike(grown):
        values = start_values(en.stack([grown[i] for i in some]), examples)
        values["expansion_cost"] = torch.tensor([candidates[i][1].cost(count) for i in some])
        variables = {name: ("candidate", value.cpu().numpy()) for name, value in values.items()}
        parts.append(xr.Dataset(variables, {"candidate": [candidates[i][0] for i in some]}))
    return xr.concat(parts, "candidate", join="exact").sel(candidate=[label for label, _ in candidates])
