"""What the figures of the answer show, made of scores and gains: Datasets in, Datasets out.

`intervals.over_tasks` goes on from the tables over task.
"""

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS
from mmstudy.study import derived, intervals, statistics
from mmstudy.study.predictions import COUNTING
from mmstudy.study.trials import REFERENCES

TENTHS = 10
MARGINS = (0.02, 0.05, 0.1, 0.2, 0.5)
KINDS, FORMS = ("children", "snapshots", "random"), ("multiple", "radius")
BASE = "base, trained on"
FEW = 1500  # training examples


def kinds_of_tasks(pool: xr.Dataset) -> xr.DataArray:
    """Of each candidate its task's labels and number of examples, such as "true labels, > 1,500 examples"."""
    labels = np.where(pool["label_noise"] > 0, "flipped labels", "true labels")
    examples = np.where(pool["train_size"] <= FEW, f"≤ {FEW:,} examples", f"> {FEW:,} examples")
    return xr.DataArray([f"{one}, {other}" for one, other in zip(labels, examples, strict=True)], dims="candidate")


def relation(gain: xr.DataArray, size: xr.DataArray, censored: xr.DataArray, rho: xr.DataArray) -> xr.Dataset:
    """Gains and sizes of all tasks in one picture: their ranks inside each task.

    Args:
        gain: over candidate; coordinates `task`, and `panel`, in which part of the picture the task belongs.
        size: over candidate, larger where more gain is expected; NaN ranks last, as in `statistics.scores`.
        censored: over candidate, the share of rays that did not meet the level: such a size is a lower bound.
        rho: over task, the correlation of both.

    Returns over candidate `gain`, `size`, from 0, the smallest of the task, to 1, `censored`, and `none`, whether there
    is no size (0, or not known: the rays start above the level); over (panel, tenth)
    `trend`, the mean gain of those whose size is in each tenth; over panel the mean of ρ, its interval and the number
    of `tasks` (`intervals.over_tasks`). Candidates without a gain are left out.
    """
    table = xr.Dataset({"gain": gain, "size": size.variable, "censored": censored.variable})
    table = table.isel(candidate=np.isfinite(gain.values))
    ranked = []
    for _, one in statistics.by_task(table):
        columns = {"gain": one["gain"].values, "size": statistics.ranked_last(one["size"].values)}
        shares = {name: (stats.rankdata(column) - 0.5) / len(column) for name, column in columns.items()}
        ranks = {name: ("candidate", share) for name, share in shares.items()}
        ranked.append(one.assign(ranks | {"none": ("candidate", ~(one["size"].values > 0))}))
    found = xr.concat(ranked, "candidate")
    names = list(dict.fromkeys(found["panel"].values.tolist()))
    tenth = np.minimum((found["size"].values * TENTHS).astype(int), TENTHS - 1)
    trend, means = np.full((len(names), TENTHS), np.nan), []
    for i, name in enumerate(names):
        inside = found["panel"].values == name
        for k in np.unique(tenth[inside]):
            trend[i, k] = found["gain"].values[inside & (tenth == k)].mean()
        tasks = list(dict.fromkeys(found["task"].values[inside].tolist()))
        means.append(intervals.over_tasks(rho.sel(task=tasks)).reset_coords(drop=True))
    panels = xr.concat(means, "panel").drop_vars("worst_task").assign_coords(panel=names)
    found = found.rename(panel="panel_of").assign(trend=(("panel", "tenth"), trend)).merge(panels)
    return found.assign_coords(tenth=(np.arange(TENTHS) + 0.5) / TENTHS)


def along_training(table: xr.DataArray, measures: Sequence[str]) -> xr.DataArray:
    """Scores of a few measures over (task, measure, progress), from those over (task, predictor).

    What is measured right after expansion keeps its score at every share. "x + parameters" is the measure x, averaged
    with the parameter count. `family` goes along measure.

    Raises:
        ValueError: an unknown measure.
    """
    names = np.where(table["combined"], [f"{name} + {COUNTING}" for name in table["measure"].values], table["measure"])
    if unknown := [measure for measure in measures if measure not in names]:
        raise ValueError(f"unknown measures {unknown}; known: {', '.join(dict.fromkeys(names.tolist()))}")
    shares = np.unique(table["progress"].values[np.isfinite(table["progress"].values)])
    rows, families = [], []
    for measure in measures:
        one = table.isel(predictor=names == measure)
        families.append(one["family"].values[0])
        if one["progress"].isnull().any():
            rows.append(one.isel(predictor=0).reset_coords(drop=True).expand_dims(progress=shares))
        else:
            by_share = one.swap_dims(predictor="progress").reset_coords(drop=True)
            rows.append(by_share.reindex(progress=shares))
    index = xr.DataArray(list(measures), dims="measure", name="measure")
    found = xr.concat([row.transpose("task", "progress") for row in rows], index)
    return found.assign_coords(family=("measure", families)).transpose("task", "measure", "progress")


def views(scored: xr.Dataset) -> xr.DataArray:
    """Scores in several ways over (task, view, predictor), from those of `statistics.scores`.

    Spearman's ρ across all candidates, within operators, given each set of covariates; and parameter-matched pairs: the
    share rightly ordered minus that wrongly ordered, so that 0 is chance in each.
    """
    ways = {"all candidates": scored["spearman"], "within operators": scored["within"]}
    ways |= {f"given {name}": scored["partial"].sel(given=name, drop=True) for name in scored["given"].values}
    ways["parameter-matched pairs"] = 2 * scored["same_size"] - 1
    view = xr.DataArray([*ways], dims="view", name="view")
    return xr.concat([*ways.values()], view).transpose("task", "view", "predictor")


def everything(scored: xr.Dataset) -> pd.DataFrame:
    """All that `statistics.scores` says of every predictor, over the tasks of each part: one row for each of both.

    The columns: what the predictor is and costs; `mean`, `low`, `high`, `worst`, `worst_task` and `tasks` of its ρ
    (`intervals.over_tasks`); and the means of the other scores, of `partial` one for each set of covariates.
    """
    others = {name: scored[name] for name in ("within", "same_size", "decision", "regret")}
    given = scored["given"].values.tolist()
    others |= {f"given {name}": scored["partial"].sel(given=name, drop=True) for name in given}
    measured = xr.Dataset({"spearman": scored["spearman"], **others})
    tables = {}
    for part in dict.fromkeys(scored["part"].values.tolist()):
        inside = measured.isel(task=(scored["part"] == part).values)
        rho = intervals.over_tasks(inside["spearman"]).drop_vars(["measure", "combined"], errors="ignore")
        tables[part] = rho.assign(inside[[*others]].mean("task").data_vars).to_dataframe()
    return pd.concat(tables, names=["part"])


def by_regime(table: xr.DataArray) -> xr.Dataset:
    """The `mean` over tasks of one share of flipped labels and one number of examples, and how many `tasks` these are.

    `table` runs over task, with coordinates `label_noise` and `train_size`; a NaN in it counts for nothing.
    """
    noise, examples = (np.unique(table[name].values) for name in ("label_noise", "train_size"))
    rows = [
        xr.concat([_mean_of(table, share, count) for count in examples.tolist()], "train_size")
        for share in noise.tolist()
    ]
    return xr.concat(rows, "label_noise").assign_coords(label_noise=noise, train_size=examples)


def _mean_of(table: xr.DataArray, noise: float | int, examples: int) -> xr.Dataset:
    inside = (table["label_noise"] == noise) & (table["train_size"] == examples)
    some = table.isel(task=inside.values).drop_vars(["label_noise", "train_size"])
    known = some.notnull().sum("task")
    return xr.Dataset({"mean": some.sum("task") / known.where(known > 0), "tasks": known})


def leads(experiment: xr.Dataset, score: str = "accuracy", checkpoint: str = "last") -> xr.DataArray:
    """What each expansion has ahead of networks that were trained without it, over (candidate, reference, budget).

    The mean over seeds of the difference to a network of the same shape, from scratch or shrunk and perturbed, that was
    trained for as long; and to the base network trained on. Units as in `statistics.gains`; NaN where a run diverged.

    Raises:
        ValueError: an expansion without its reference.
    """
    gain = statistics.gains(experiment)["gain"].sel(score=score, checkpoint=checkpoint, drop=True)
    kept = np.flatnonzero(experiment["role"].values == statistics.EXPANSION)
    mine = gain.isel(candidate=kept)
    ahead = {BASE: mine} | {
        name: mine - gain.isel(candidate=_references(experiment, kept, name)).variable for name in REFERENCES
    }
    return xr.concat([*ahead.values()], xr.DataArray([*ahead], dims="reference", name="reference")).rename("lead")


def _references(experiment: xr.Dataset, kept: np.ndarray, name: str) -> list[int]:
    """The rows of the networks of the shapes of those kept: each shape has one, labelled as one of its candidates."""
    task, label, described = (experiment[each].values.tolist() for each in ("task", "label", "description"))
    row_of = {
        (task[i], label[i]): i for i in np.flatnonzero(experiment["role"].values == statistics.REFERENCE).tolist()
    }
    shape_of, found = {}, {}
    for i in kept.tolist():
        candidate = Candidate.from_dict(json.loads(described[i]))
        widens = OPERATORS[candidate.operator].widens
        shape_of[i] = task[i], widens, candidate.locations, candidate.sizes
        row = row_of.get((task[i], f"{name} {label[i].split(' ', 1)[-1]}"))
        if row is not None:
            found[shape_of[i]] = row
    if missing := [label[i] for i, shape in shape_of.items() if shape not in found]:
        raise ValueError(f"no reference {name!r} for {missing}")
    return [found[shape] for shape in shape_of.values()]


def leads_of_tasks(lead: xr.DataArray) -> xr.Dataset:
    """Of `leads`: over (task, reference, budget) the `middle` expansion, and the `lower` and `upper` tenth.

    Over (reference, budget) the mean over tasks of the middle one, and its interval (`intervals.over_tasks`).
    """
    by_task = dict(statistics.by_task(lead.to_dataset()))
    rows = [one["lead"].quantile((0.1, 0.5, 0.9), "candidate") for one in by_task.values()]
    table = xr.concat(rows, xr.DataArray([*by_task], dims="task", name="task"))
    lower, middle, upper = (table.isel(quantile=i, drop=True) for i in range(3))
    return xr.Dataset({"lower": lower, "middle": middle, "upper": upper}).merge(intervals.over_tasks(middle))


def extents(experiment: xr.Dataset, share: float | int = 1.0, margins: Sequence[float | int] = MARGINS) -> xr.Dataset:
    """The extent in all its forms, after a share of the training: `spearman` with the accuracy gain, and `censored`.

    Both over (task, kind, level, form, margin); `censored` is the share of rays that did not meet the level.
    """
    pool = statistics.expansions(experiment).sel(progress=[share])
    gain = statistics.gains(pool)["gain"].sel(score="accuracy", checkpoint="last", drop=True)

    def of(kind: str, level: str, margin: float | int) -> xr.Dataset:
        found = derived.crossings(pool, kind, level, margin).isel(progress=0, drop=True)
        sizes = xr.concat([found[form].mean("ray", skipna=False) for form in FORMS], "form")
        return _extent_of_tasks(xr.Dataset({"gain": gain, "size": sizes, "censored": found["censored"].mean("ray")}))

    levels = derived.LEVELS
    kinds = [
        xr.concat([xr.concat([of(kind, level, m) for m in margins], "margin") for level in levels], "level")
        for kind in KINDS
    ]
    return xr.concat(kinds, "kind").assign_coords(kind=list(KINDS), level=list(levels), margin=list(margins))


def _extent_of_tasks(rows: xr.Dataset) -> xr.Dataset:
    tasks, rho, censored = [], [], []
    for name, one in statistics.by_task(rows):
        known = np.isfinite(one["gain"].values)
        sizes = statistics.ranked_last(one["size"].transpose("form", "candidate").values[:, known])
        tasks.append(name)
        rho.append(statistics.spearman(sizes, np.round(one["gain"].values[known], statistics.DECIMALS)))
        censored.append(float(one["censored"].mean()))
    data = {"spearman": (("task", "form"), np.array(rho)), "censored": ("task", censored)}
    return xr.Dataset(data, {"task": tasks, "form": list(FORMS)})
