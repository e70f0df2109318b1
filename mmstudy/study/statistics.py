"""How well do predictors order the gains? Tables with one row per candidate of any task in, Datasets out.

`gains` and `reliability` say what the expansions gain and how surely; `scores` holds every predictor against the gains
of each task; `intervals` goes on from there to means over tasks. A predictor declares its direction beforehand; none is
turned here.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy import stats

from mmstudy.expansion.operators import OPERATORS
from mmstudy.expansion.pools import pairs_of_one_size

UNITS = {"accuracy": 100.0, "nll": -1.0, "ece": -100.0}  # of a gain: percentage points or nats, more is better
OF_TASKS = {  # what all candidates of a task share, by its name along task; predictors have families as well
    "dataset": "dataset",
    "family": "architecture",
    "train_size": "train_size",
    "label_noise": "label_noise",
    "part": "part",
}
EXPANSION, REFERENCE = "expansion", "reference"  # the roles of rows
DECIMALS = 9  # gains that differ beyond are equal: means of the same scores differ in their rounding
FEWEST = 4  # candidates in which an order is looked for


def gains(experiment: xr.Dataset) -> xr.Dataset:
    """What each candidate gains over the base network trained on, mean over seeds, with its standard error.

    Returns `gain`, `gain_se` over (candidate, score, checkpoint) and whatever else the scores run over, but not seed;
    more is better, in percentage points (accuracy, calibration) or nats. One diverged run (NaN) leaves its candidate
    without a gain.
    """
    each = gains_of_seeds(experiment)
    spread = each.std("seed", ddof=1, skipna=False) if each.sizes["seed"] > 1 else each.mean("seed") * np.nan
    return xr.Dataset(
        {"gain": each.mean("seed", skipna=False), "gain_se": spread / each.sizes["seed"] ** 0.5}
    ).transpose(..., "score", "checkpoint")


def gains_of_seeds(experiment: xr.Dataset) -> xr.DataArray:
    """The gain of every single run over the control of its seed, units as in `gains`: (candidate, seed, …, score)."""
    each = [factor * (experiment[score] - experiment[f"control_{score}"]) for score, factor in UNITS.items()]
    return xr.concat(each, "score").assign_coords(score=list(UNITS))


def reliability(experiment: xr.Dataset) -> xr.Dataset:
    """How much of the differences between the expansions of a task is not noise of the seeds.

    Returns, over (task, score, checkpoint), `reliability`: Cronbach's alpha of the seeds (Cronbach 1951); and its root,
    the `ceiling`: the correlation that a perfect predictor of the expected gain would be measured to have.
    """
    parts = [alpha(gains_of_seeds(one)) for _, one in by_task(expansions(experiment))]
    found = xr.concat(parts, _task_index(experiment)).transpose("task", "score", "checkpoint")
    return xr.Dataset({"reliability": found, "ceiling": found.clip(min=0) ** 0.5}).assign_coords(_about(experiment))


def alpha(each: xr.DataArray) -> xr.DataArray:
    """Cronbach's alpha, 1 − MS_residual / MS_candidates, of gains over (candidate, seed, …).

    Candidates with a missing run are left out; NaN for fewer than two candidates or seeds, or equal candidates.
    """
    return xr.apply_ufunc(_alpha, each, input_core_dims=[["candidate", "seed"]], vectorize=True)


def _alpha(each: Float[np.ndarray, "candidate seed"]) -> float:
    known = each[np.isfinite(each).all(1)]
    count, n = known.shape
    if count < 2 or n < 2:
        return np.nan
    centred = known - known.mean(0)
    between = n * centred.mean(1).var(ddof=1)
    within = ((centred - centred.mean(1, keepdims=True)) ** 2).sum() / ((n - 1) * (count - 1))
    return float(1 - within / between) if between > 0 else np.nan


def expansions(experiment: xr.Dataset) -> xr.Dataset:
    """The candidates that are compared: references, networks of the same shape trained otherwise, are left out."""
    return experiment.isel(candidate=(experiment["role"] == EXPANSION).values)


def by_task(table: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """The name and the rows of every task, in the order of their first candidates."""
    for name in dict.fromkeys(table["task"].values.tolist()):
        yield name, table.isel(candidate=(table["task"] == name).values)


def _task_index(table: xr.Dataset) -> xr.DataArray:
    names = [name for name, _ in by_task(expansions(table))]
    return xr.DataArray(names, dims="task", name="task")


def _about(table: xr.Dataset) -> dict[str, tuple[str, list]]:
    """Along task: what all candidates of a task share."""
    firsts = [one.isel(candidate=0) for _, one in by_task(expansions(table))]
    kept = {name: new for name, new in OF_TASKS.items() if name in table.coords}
    return {new: ("task", [first[name].item() for first in firsts]) for name, new in kept.items()}


def scores(
    experiment: xr.Dataset,
    predicted: xr.Dataset,
    score: str = "accuracy",
    checkpoint: str = "last",
    given: Mapping[str, Sequence[xr.DataArray]] | None = None,
) -> xr.Dataset:
    """How well each predictor orders the gains of the expansions of each task.

    Args:
        experiment: one row per candidate, with `parameters` and the scores; coordinates `task`, `role`, `operator`,
            `label` (operator, place, amount).
        predicted: `value` (candidate, predictor) of the same rows, larger where more gain is expected; NaN (could not
            be measured) ranks last.
        score: accuracy, nll or ece.
        checkpoint: last or best validation.
        given: for each name, covariates over candidate; by default the number of parameters.

    Returns over (task, predictor): `spearman`; `within`, the same inside each class of operators, mean over those of at
    least four candidates, weighted by their numbers; `kendall` (τ-b); `same_size`, the share rightly ordered of the
    parameter-matched pairs (parameters within 2%) that differ in operator or place; `decision`, that share of all pairs
    (DataDecide, arXiv 2504.11393), pairs of equal gain left out, equal predictions half right; `regret`, gain lost by
    picking the favourite, in units of the gain, and `regret_share`, in ranges of the task's gains; `precision`, the
    share among the first three picked whose gain is at least the third best. The last three are expectations where ties
    are drawn by lot. Over (given, task, predictor): `partial`, the correlation of what the covariates' ranks leave of
    both ranks. Over (class, task, predictor): `spearman_class`. Over task: `candidates`, and `left_out`, those without
    a gain.

    A predictor that is constant, or nothing but the covariates, has correlation 0 (it tells nothing), and so have gains
    that are all equal. NaN: there are no such pairs or classes, or too few candidates for so many covariates.

    Raises:
        ValueError: the rows of the two tables differ; fewer than four candidates of a task have a gain; a covariate of
            one that has is missing.
    """
    xr.align(experiment, predicted, join="exact", exclude={"predictor"})
    for name in sorted({"task", "label"} & {*predicted.coords}):
        if (experiment[name].values != predicted[name].values).any():
            raise ValueError(f"experiment and predicted must have the same candidates, in one order; {name!r} differs")
    given = {"parameters": [experiment["parameters"]]} if given is None else given
    gain = gains(experiment)["gain"].sel(score=score, checkpoint=checkpoint, drop=True)
    value = predicted["value"].transpose("candidate", "predictor").reset_coords(drop=True)
    rows = expansions(experiment[["parameters"]].assign({"gain": gain, "value": value} | _columns(given)))
    parts = []
    for task, one in by_task(rows):
        known = np.isfinite(one["gain"].values)
        if known.sum() < FEWEST:
            raise ValueError(
                f"task {task!r}: {known.sum()} of {known.size} candidates have a gain; at least {FEWEST} needed"
            )
        parts.append(_of_task(one.isel(candidate=known), list(given)).assign(left_out=int((~known).sum())))
    table = xr.concat(parts, _task_index(experiment), join="outer")
    along = {name: coord for name, coord in predicted.coords.items() if "predictor" in coord.dims}
    return table.assign_coords(along | _about(experiment))


def _columns(given: Mapping[str, Sequence[xr.DataArray]]) -> dict[str, xr.DataArray]:
    """The covariates of each name beside each other."""
    return {
        f"given {name}": xr.concat([each.reset_coords(drop=True) for each in several], f"covariate {name}").T
        for name, several in given.items()
    }


def _of_task(one: xr.Dataset, given: Sequence[str]) -> xr.Dataset:
    y, size = np.round(one["gain"].values, DECIMALS), one["parameters"].values
    values = ranked_last(one["value"].values.T)  # (predictor, candidate)
    operator = one["operator"].values.tolist()
    classes = np.array([OPERATORS[each].family or each if each in OPERATORS else each for each in operator])
    counts = {each: int((classes == each).sum()) for each in dict.fromkeys(classes.tolist())}
    counts = {each: count for each, count in counts.items() if count >= FEWEST}
    inside = [spearman(values[:, classes == each], y[classes == each]) for each in counts]
    nothing = np.full(len(values), np.nan)
    kinds = np.array([f"{o} {_place(label)}" for o, label in zip(operator, one["label"].values, strict=True)])
    i, j = pairs_of_one_size(size)
    other = kinds[i] != kinds[j]
    regret = y.max() - picked(values, 1) @ y
    per = {
        "spearman": spearman(values, y),
        "within": np.average(inside, axis=0, weights=[*counts.values()]) if inside else nothing,
        "kendall": kendall(values, y),
        "same_size": ordered_rightly(values, y, i[other], j[other]),
        "decision": ordered_rightly(values, y, *np.triu_indices(len(y), 1)),
        "regret": regret,
        "regret_share": regret / (np.ptp(y) or 1.0),
        "precision": precision(values, y),
    }
    data = {name: ("predictor", value) for name, value in per.items()}
    partials = [partial_spearman(values, y, one[f"given {name}"].values) for name in given]
    tables = {
        "partial": (("given", "predictor"), np.reshape(partials, (len(given), len(values)))),
        "spearman_class": (("class", "predictor"), np.reshape(inside, (len(counts), len(values)))),
    }
    coords = {"given": list(given), "class": list(counts), "predictor": one["predictor"].values}
    return xr.Dataset(data | tables, coords).assign(candidates=len(y))


def _place(label: str) -> str:
    """Where a candidate grows, the second word of its label in a pool; of another label, all of it."""
    return [*str(label).split(" "), label][1]


def shares(values: Float[np.ndarray, "candidate *many"], task: np.ndarray) -> Float[np.ndarray, "candidate *many"]:
    """Ranks within each task, as shares of its candidates, the best 1; what could not be measured (NaN) ranks last."""
    ranks = np.empty(values.shape)
    for each in np.unique(task):
        rows = task == each
        ranks[rows] = stats.rankdata(np.where(np.isnan(values[rows]), -np.inf, values[rows]), axis=0) / rows.sum()
    return ranks


def ranked_last(values: np.ndarray) -> np.ndarray:
    """The values, and −∞ for what could not be measured (NaN)."""
    return np.where(np.isfinite(values), values, -np.inf)


def spearman(values: Float[np.ndarray, "predictor candidate"], y: np.ndarray) -> Float[np.ndarray, " predictor"]:
    """Spearman's ρ of every row of `values` with `y`; a constant row tells nothing and gets 0."""
    return _correlations(stats.rankdata(values, axis=1), stats.rankdata(y))


def kendall(values: Float[np.ndarray, "predictor candidate"], y: np.ndarray) -> Float[np.ndarray, " predictor"]:
    """Kendall's τ-b of every row of `values` with `y`; a constant row tells nothing and gets 0."""
    i, j = np.triu_indices(len(y), 1)
    x, y = (stats.rankdata(each, axis=-1) for each in (values, y))
    x, y = np.sign(x[:, i] - x[:, j]), np.sign(y[i] - y[j])
    untied = np.sqrt((x**2).sum(1) * (y**2).sum())
    return np.divide(x @ y, untied, out=np.zeros(len(x)), where=untied > 0)


def partial_spearman(
    values: Float[np.ndarray, "predictor candidate"], y: np.ndarray, covariates: np.ndarray
) -> Float[np.ndarray, " predictor"]:
    """Correlation of what is left of both ranks after a linear fit to the ranks of covariates, (candidate, covariate).

    0 where nothing is left: the covariates say it all. NaN where fewer than two dimensions are left for any residual.
    The fit is linear in ranks. The rank of a sum of two covariates is not, so that about 0.2 can be left of a predictor
    that is nothing but such a sum.

    Raises:
        ValueError: a covariate is missing.
    """
    if not np.isfinite(covariates).all():
        raise ValueError(f"{(~np.isfinite(covariates)).sum()} covariates of candidates that have a gain are missing")
    design = np.column_stack([np.ones(len(y)), stats.rankdata(covariates, axis=0)])
    if len(y) - np.linalg.matrix_rank(design) < 2:
        return np.full(len(values), np.nan)
    ranks = np.vstack([stats.rankdata(values, axis=1), stats.rankdata(y)])
    left = ranks - (design @ (np.linalg.pinv(design) @ ranks.T)).T
    left[np.linalg.norm(left, axis=1) <= 1e-9 * np.linalg.norm(ranks, axis=1)] = 0
    return _correlations(left[:-1], left[-1])


def _correlations(a: Float[np.ndarray, "row n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " row"]:
    a, b = a - a.mean(1, keepdims=True), b - b.mean()
    scale = np.sqrt((a**2).sum(1) * (b**2).sum())
    return np.divide(a @ b, scale, out=np.zeros(len(a)), where=scale > 0)


def ordered_rightly(
    values: Float[np.ndarray, "predictor candidate"],
    y: np.ndarray,
    i: Int[np.ndarray, " pair"],
    j: Int[np.ndarray, " pair"],
) -> Float[np.ndarray, " predictor"]:
    """The share of pairs of different gain that each row orders rightly, ties half; NaN without such pairs."""
    i, j = i[y[i] != y[j]], j[y[i] != y[j]]
    if not i.size:
        return np.full(len(values), np.nan)
    order = (values[:, i] > values[:, j]).astype(int) - (values[:, i] < values[:, j])  # −∞ against −∞ is a tie
    return (order * np.sign(y[i] - y[j]) + 1).mean(1) / 2


def picked(values: Float[np.ndarray, "predictor candidate"], count: int) -> Float[np.ndarray, "predictor candidate"]:
    """The chance of each column to be among the first `count` of its row, where ties are drawn by lot."""
    better = (values[:, None, :] > values[:, :, None]).sum(2)
    tied = (values[:, None, :] == values[:, :, None]).sum(2)
    return np.clip((count - better) / tied, 0, 1)


def precision(values: np.ndarray, y: np.ndarray, count: int = 3) -> Float[np.ndarray, " predictor"]:
    """Of the first `count` that each row picks, the expected share whose gain is at least the `count`-th best."""
    return picked(values, count) @ (y >= np.sort(y)[-count]) / count
