"""How well does each predictor order the gains? Dataset in, Dataset out.

`gains` and `predictions` turn the experiment into one table each; `scores` compares them; `bootstrap` takes the mean
over tasks and draws tasks, since the candidates of one task are not independent of each other.
"""

import json

import numpy as np
import xarray as xr
from scipy import stats

from mmstudy.expansion.pools import SAME_SIZE
from mmstudy.study import predictors

# Chosen on the tasks of the profile `pilot`, before those of `small` were run; all else is exploratory.
# `share` is the length of the probe (or of the early-loss run) as a share of the full training.
HEADLINE = {"measure": "extent_children", "rate": 1.0, "share": 0.04, "combined": True}
RIVAL = {"measure": "early_loss", "rate": 1.0, "share": 0.1, "combined": True}
WINDOW = 0.2  # the early loss is the mean over this last part of its run
EARLY = (0.01, 0.02, 0.05, 0.1, 0.2)  # lengths of the early-loss runs, as shares of the full training
CLASSES = {
    "deeper_identity": "deeper",
    "deeper_random": "deeper",
}  # of operators; a wider one is its own class


def gains(experiment: xr.Dataset) -> xr.Dataset:
    """What each expansion gains over the base network trained on, mean over seeds, with its standard error.

    Returns `gain`, `gain_se` over (score, checkpoint, task, candidate), more is better, in percentage points
    (accuracy, calibration) or nats; and `reliability` over (score, checkpoint, task): Cronbach's alpha of the
    seeds, 1 − MS_residual / MS_candidates. Its root is the noise ceiling: the correlation that a perfect predictor
    of the expected gain would be measured to have.
    """
    parts = []
    for score, sign in (("accuracy", 100.0), ("nll", -1.0), ("ece", -100.0)):
        each = sign * (experiment[score] - experiment[f"control_{score}"])  # (task, candidate, seed, checkpoint)
        n = each.sizes["seed"]
        centred = each - each.mean("candidate")
        between = n * centred.mean("seed").var("candidate", ddof=1)
        residual = centred - centred.mean("seed")
        count = each.sizes["candidate"]
        within = (residual**2).sum(("seed", "candidate")) / ((n - 1) * (count - 1))
        parts.append(
            xr.Dataset(
                {
                    "gain": each.mean("seed", skipna=False),
                    "gain_se": each.std("seed", ddof=1) / n**0.5,
                    "reliability": 1 - within / between,
                }
            )
        )
    return xr.concat(parts, "score").assign_coords(score=["accuracy", "nll", "ece"])


def predictions(experiment: xr.Dataset) -> xr.Dataset:
    """Every predictor's value for every candidate, turned so that more is expected to be better.

    Returns `value` over (task, candidate, predictor) and, along predictor, `cost` (share of a candidate's full
    training, the mean over candidates), `family`, `measure`, `rate`, `length` (steps) and `combined` (whether it is
    rank-averaged with the log parameter count).
    """
    columns: list[np.ndarray] = []
    about: list[tuple[str, str, str, float, float, int]] = []
    known = {name: each for name, each in predictors.known().items() if name in experiment}

    def add(measure: str, value: xr.DataArray, cost: float = 0.0, rate: float = 0.0, length: int = 0) -> None:
        name = f"{measure} ×{rate:g} @{length}" if length else measure
        about.append((name, measure, known[measure].family, cost / full, rate, length))
        columns.append(known[measure].sign * value.transpose("task", "candidate").values)

    full = float(experiment.attrs["full_cost"])
    budget = json.loads(experiment.attrs["parameters"])["budget"]
    steps, bin_ = budget["steps"], budget["early_bin"]
    shared = float(experiment["examples_cost"].mean()) / experiment.sizes["candidate"]  # of all that looks at examples
    sizes = [name for name in known if "probe" in experiment[name].dims]
    for name, each in known.items():
        if each.compute:
            examples = float(experiment["probe_examples"].clip(max=each.examples).mean())
            add(name, experiment[name], each.looks * shared + each.passes * examples)
    for rate in experiment["rate"].values.tolist():
        for share in EARLY:
            length = bin_ * round(share * steps / bin_)
            curve = experiment["early_loss"].sel(rate=rate)
            if 0 < length <= int(curve["early"][-1]):
                last = curve.where((curve["early"] > length * (1 - WINDOW)) & (curve["early"] <= length)).mean("early")
                add("early_loss", last, full * length / steps, rate, length)
        for length in experiment["probe"].values.tolist():
            at = experiment.sel(rate=rate, probe=length)
            for measure in sizes:
                own = float(at[known[measure].cost].mean())
                add(measure, at[measure], own + known[measure].looks * shared, rate, length)
    alone = np.stack(columns, axis=-1)  # (task, candidate, predictor)
    ranks = _ranks(alone)
    names, measure, family, cost, rate, length = map(list, zip(*about, strict=True))
    other = [i for i, m in enumerate(measure) if known[m].combined]
    both = (ranks[..., other] + ranks[..., [names.index("parameters")]]) / 2
    labels = {"measure": measure, "family": family, "cost": cost, "rate": rate, "length": length}
    coords = {key: ("predictor", column + [column[i] for i in other]) for key, column in labels.items()}
    coords["combined"] = ("predictor", [False] * len(names) + [True] * len(other))
    coords["predictor"] = names + [f"{names[i]} + parameters" for i in other]
    value = (("task", "candidate", "predictor"), np.concatenate([alone, both], axis=-1))
    kept = {name: experiment[name] for name in ("task", "candidate", "operator", "label_noise", "dataset")}
    return xr.Dataset({"value": value}, kept | coords, {"steps": steps})


def find(predicted: xr.Dataset, measure: str, rate: float = 0.0, share: float = 0.0, combined: bool = False) -> str:
    """The name of the predictor of this measure and rate whose length is nearest to a share of the full training.

    Raises:
        ValueError: there is no such predictor; the message lists the measures.
    """
    of_kind = (predicted["measure"] == measure) & (predicted["rate"] == rate) & (predicted["combined"] == combined)
    if not of_kind.any():
        known = ", ".join(dict.fromkeys(predicted["measure"].values))
        raise ValueError(f"no predictor {measure!r} with rate {rate:g} and combined={combined}; measures: {known}")
    distance = abs(predicted["length"] - share * predicted.attrs["steps"]).where(of_kind)
    return str(predicted["predictor"].values[np.nanargmin(distance.values)])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks among a task's candidates (axis 1), the best highest; what could not be measured (NaN) ranks last."""
    return stats.rankdata(np.where(np.isnan(values), -np.inf, values), axis=1)


def scores(predicted: xr.Dataset, gained: xr.Dataset, score: str = "accuracy", checkpoint: str = "last") -> xr.Dataset:
    """How well each predictor orders the gains of each task.

    Over (task, predictor): `kendall` (τ-b), `partial` (Spearman given log parameter count), `regret` (gain lost by
    picking the favourite, in units of the gain), `precision` (share of the best three among the first three picked),
    both averages over ties;
    over (group, task, predictor): `spearman` within all candidates and within each class of operators;
    over (task, predictor): `same_size`, the share of pairs of one size (parameters within 2%) that are ordered rightly
    (ties count half).
    Candidates whose gain is unknown (diverged) are left out and counted in `left_out`.

    Raises:
        ValueError: fewer than four candidates of a task have a gain.
    """
    gain = gained["gain"].sel(score=score, checkpoint=checkpoint)
    tables = []
    for task in predicted["task"].values:
        y = gain.sel(task=task)
        known = np.isfinite(y.values)
        if known.sum() < 4:
            raise ValueError(f"task {task!r}: {known.sum()} of {known.size} candidates have a gain; at least 4 needed")
        x = predicted["value"].sel(task=task).isel(candidate=known).transpose("predictor", "candidate")
        tables.append(_scores_of_task(x, y.isel(candidate=known).values).assign(left_out=int((~known).sum())))
    table = xr.concat(tables, "task", coords="minimal", compat="override").assign_coords(task=predicted["task"])
    return table.assign_coords({n: c for n, c in predicted.coords.items() if "predictor" in c.dims})


def _scores_of_task(x: xr.DataArray, y: np.ndarray) -> xr.Dataset:
    values = np.where(np.isfinite(x.values), x.values, -np.inf)  # (predictor, candidate)
    operator = np.array([CLASSES.get(o, o) for o in x["operator"].values])
    groups = {"all": np.ones(len(y), bool)} | {name: operator == name for name in dict.fromkeys(operator)}
    spearman = np.stack([_spearman(values[:, inside], y[inside]) for inside in groups.values()])
    size = values[list(x["predictor"].values).index("parameters")]
    with_size = _spearman(values, size)
    gain_size = _spearman(size[None], y)
    with np.errstate(invalid="ignore", divide="ignore"):
        partial = (spearman[0] - with_size * gain_size) / np.sqrt((1 - with_size**2) * (1 - gain_size**2))
    partial[np.isclose(with_size, 1)] = np.nan
    top = np.argsort(-y)[:3]
    i, j = np.triu_indices(len(y), 1)
    pairs = (np.abs(size[i] - size[j]) <= SAME_SIZE * np.maximum(size[i], size[j])) & (y[i] != y[j])
    agree = np.sign(_difference(values, i[pairs], j[pairs])) * np.sign(y[i] - y[j])[pairs]
    per = {
        "kendall": np.array([stats.kendalltau(v, y).statistic for v in values]),
        "partial": partial,
        "same_size": (agree.mean(1) + 1) / 2 if pairs.any() else np.full(len(values), np.nan),
        "regret": y.max() - _picked(values, 1) @ y,
        "precision": _picked(values, 3)[:, top].mean(1),
    }
    return xr.Dataset(
        {"spearman": (("group", "predictor"), spearman), **{n: ("predictor", v) for n, v in per.items()}},
        {"group": list(groups), "predictor": x["predictor"].values},
    )


def _picked(values: np.ndarray, count: int) -> np.ndarray:
    """The chance of each column to be among the first `count` of its row, where ties are drawn by lot."""
    better = (values[:, None, :] > values[:, :, None]).sum(2)
    tied = (values[:, None, :] == values[:, :, None]).sum(2)
    return np.clip((count - better) / tied, 0, 1)


def _difference(values: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    a, b = values[:, i], values[:, j]
    return np.where(a == b, 0.0, np.where(a > b, 1.0, -1.0))  # −∞ against −∞ is a tie


def _spearman(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every row of `values` with `y`; a constant row tells nothing and gets 0."""
    a = stats.rankdata(values, axis=1)
    a = a - a.mean(1, keepdims=True)
    b = stats.rankdata(y) - (len(y) + 1) / 2
    scale = np.sqrt((a**2).sum(1) * (b**2).sum())
    return np.divide(a @ b, scale, out=np.zeros(len(a)), where=scale > 0)


def bootstrap(table: xr.DataArray, repetitions: int = 2000, seed: int = 0) -> xr.Dataset:
    """The mean over tasks and its 95% percentile interval, tasks drawn with replacement.

    With few tasks such an interval is too short; it says what more draws of *these* tasks would give.
    """
    draws = np.random.default_rng(seed).integers(table.sizes["task"], size=(repetitions, table.sizes["task"]))
    means = table.isel(task=xr.DataArray(draws, dims=("repetition", "draw"))).mean("draw")
    low, high = (means.quantile(q, "repetition", skipna=False).drop_vars("quantile") for q in (0.025, 0.975))
    return xr.Dataset({"mean": table.mean("task"), "low": low, "high": high})


def front(cost: np.ndarray, merit: np.ndarray) -> np.ndarray:
    """Which points no other point beats: cheaper or as cheap, and better. Boolean, in the order given."""
    order = np.lexsort((-merit, cost))
    best = np.maximum.accumulate(merit[order])
    leads = np.concatenate([[True], best[1:] > best[:-1]])
    on = np.zeros(len(order), bool)
    on[order[leads]] = True
    return on
