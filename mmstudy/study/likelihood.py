"""Do accuracy, likelihood and calibration agree on which candidate is the best, and where not, is it overconfidence?"""

from itertools import combinations

import numpy as np
import xarray as xr

from mmstudy.study import statistics

PAIRS = list(combinations(statistics.UNITS, 2))


def agreement(experiment: xr.Dataset) -> xr.Dataset:
    """How far the scores agree on the candidates of each task, at both checkpoints.

    Args:
        experiment: one row per candidate, with the scores and, over progress, `training_loss`.

    Returns over (task, checkpoint, pair) `spearman`, between the gains in two scores, and `same`, whether both have the
    same favourite; over (task, checkpoint, score) `lost`, the points of accuracy gain that the favourite of a score has
    less than the best; over task `training_loss`, the median over candidates in the end; over (task, checkpoint)
    `confidence`, Spearman's correlation of a low final training loss with the gain in likelihood: negative where those
    that fit best are the worst by likelihood.

    Candidates without a gain are left out; of equal favourites the first counts.
    """
    pool = statistics.expansions(experiment)
    rows = pool[["training_loss"]].sel(progress=1.0, drop=True).assign(gain=statistics.gains(pool)["gain"])
    tasks, parts = [], []
    for name, one in statistics.by_task(rows):
        gain = one["gain"].transpose("candidate", "checkpoint", "score")
        known = np.isfinite(gain.values).all((1, 2))
        tasks.append(name)
        parts.append(_of_task(gain.isel(candidate=known), one["training_loss"].values[known]))
    return xr.concat(parts, xr.DataArray(tasks, dims="task", name="task"))


def _of_task(gain: xr.DataArray, loss: np.ndarray) -> xr.Dataset:
    values = np.round(gain.values, statistics.DECIMALS)  # (candidate, checkpoint, score)
    scores, checkpoints = gain["score"].values.tolist(), range(values.shape[1])
    best = values.argmax(0)  # (checkpoint, score)
    places = [(scores.index(a), scores.index(b)) for a, b in PAIRS]
    accuracy = values[:, :, scores.index("accuracy")]
    rho = [[statistics.spearman(values[None, :, c, a], values[:, c, b])[0] for a, b in places] for c in checkpoints]
    lost = [accuracy[:, c].max() - accuracy[best[c], c] for c in checkpoints]
    fitted = [statistics.spearman(-loss[None], values[:, c, scores.index("nll")])[0] for c in checkpoints]
    table = {
        "spearman": (("checkpoint", "pair"), rho),
        "same": (("checkpoint", "pair"), [[float(best[c, a] == best[c, b]) for a, b in places] for c in checkpoints]),
        "lost": (("checkpoint", "score"), lost),
        "confidence": ("checkpoint", fitted),
        "training_loss": ((), float(np.median(loss))),
    }
    coords = {"checkpoint": gain["checkpoint"].values, "score": scores, "pair": [f"{a}, {b}" for a, b in PAIRS]}
    return xr.Dataset(table, coords)
