"""Which candidate of a pool would one end up with, and what would it cost? Policies that choose.

A policy sees one task, a Dataset over candidate with `parameters`, coordinate `operator`, and what it asks for by name:

- `value` (candidate, predictor), larger where more gain is expected, with `cost` (of measuring it, its part of the
  training included) and `trained` (that part, if it is the candidate's own training and goes on from there) along
  predictor, both in full trainings of one candidate;
- signals over (candidate, progress), larger where more gain is expected, after these shares of the training;
- `trial` (candidate): what the full training of a candidate shows, once, on data that a choice may be based on.

NaN ranks last everywhere.

One convention of cost for all: `cost` is what is spent before the choice is made, trainings included, and `finish` what
it then takes to train the chosen one to the end. Both are shares of training every candidate of the pool in full once.
A training that has begun goes on from where it is. Ties are drawn by lot: expectations, exact at the final choice, and
means over `LOTS` seeded draws where a tie decides which candidates are trained on.

`judging` compares the policies of many tasks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from scipy import stats

from mmstudy.study.statistics import DECIMALS, picked, ranked_last

LOTS = 200
ENDS_AND_MIDDLE = (0.0, 0.5, 1.0)
FEATURES = ("rank", "parameters", "operator")


@dataclass(frozen=True)
class Choice:
    """What a policy ends with.

    `chance`: of each candidate to be chosen, summing to 1; `cost` and `finish` as above; `order`: of each draw of lots,
    larger is placed higher in the end; constant where nothing was ordered.
    """

    chance: Float[np.ndarray, " candidate"]
    cost: float
    finish: float
    order: Float[np.ndarray, "draw candidate"]


def random(task: xr.Dataset) -> Choice:
    """Any candidate."""
    return _favourite(np.zeros(task.sizes["candidate"]), 0.0)


def largest(task: xr.Dataset) -> Choice:
    """The one with most parameters."""
    return _favourite(task["parameters"].values.astype(float), 0.0)


def train_all(task: xr.Dataset) -> Choice:
    """Train all once, and keep the best trial; since a trial is a single run, that is not always the best candidate."""
    return _favourite(task["trial"].values, 1.0, 1.0)


def rank(task: xr.Dataset, predictor: str) -> Choice:
    """Measure a predictor on all, and keep the favourite."""
    return _favourite(*_measured(task, predictor))


def i_epoch(task: xr.Dataset, signal: str, share: float | int, look: float | int = 0.0) -> Choice:
    """Train all for a share of the training, and keep the best by then (i-Epoch, arXiv 2404.04111).

    `look`: what measuring the signal of a candidate once costs, in full trainings.

    Raises:
        ValueError: the signal was not measured at that share.
    """
    return _favourite(_at(task[signal], share), share + look, share)


def successive_halving(
    task: xr.Dataset, signal: str, rungs: Sequence[float | int], eta: float | int = 2.0, look: float | int = 0.0
) -> Choice:
    """Train to the first rung, keep the best 1/eta (rounded up), go on to the next (Jamieson & Talwalkar 2016).

    After the last rung, the best of those left is chosen: by the signal there or, if that is the whole training, by the
    trials that they were. Nothing more is spent once one is left. The final order is by the rung at which a candidate
    was left, then by the signal there. `look`: as of `i_epoch`.

    Raises:
        ValueError: rungs that do not rise from above 0 to at most 1, or where the signal was not measured; eta ≤ 1.
    """
    return _halved(task, signal, rungs, eta, look, ())


def anchored(
    task: xr.Dataset,
    predictor: str,
    places: Sequence[float | int] = ENDS_AND_MIDDLE,
    fit: Sequence[str] = ("rank",),
    ridge: float | int = 1.0,
) -> Choice:
    """Train a few anchors in full, learn from their trials how gains go, and keep the best of them and a favourite.

    A ridge regression of the anchors' trials on the features in `fit` (`rank`: that of the predictor; `parameters`:
    their logarithm; `operator`: an effect of each) orders the candidates; what it leaves tied stays in the predictor's
    order. On the rank alone this is the predictor's order or, if the anchors' trials fall along it, the opposite.
    The favourite of that order is trained as well, unless it is an anchor, and the best trial is chosen.

    `places`: quantiles of the predictor's order at which the anchors stand. `ridge`: the penalty on the coefficients of
    rank and logarithm, scaled to variance 1 over the pool, and on the effects of operators; the intercept is free.

    Raises:
        ValueError: no places, a place outside 0 to 1, no or an unknown feature, a ridge that is not above 0.
    """
    value, cost, trained = _measured(task, predictor)
    if not places or not fit or set(fit) - set(FEATURES) or not ridge > 0:
        raise ValueError(
            f"places and fit (of {', '.join(FEATURES)}) must not be empty, and ridge above 0; "
            f"got places={places}, fit={fit}, ridge={ridge}"
        )
    n, trial = len(value), ranked_last(task["trial"].values)
    ranks = stats.rankdata(ranked_last(value))
    features = np.column_stack([_feature(task, ranks, name) for name in fit])

    def run(lots: np.random.Generator) -> Choice:
        anchors = _anchors(value, places, lots)
        order = stats.rankdata(_fitted(features, trial, anchors, ridge)) + ranks / (2 * n)
        order[np.isnan(value)] = -np.inf
        final = np.union1d(anchors, _best(order, 1, lots))
        return _best_trial(trial, final, cost + len(final) * (1 - trained) / n, order)

    return _over_lots(run)


def anchored_halving(
    task: xr.Dataset,
    signal: str,
    rungs: Sequence[float | int],
    eta: float | int = 2.0,
    look: float | int = 0.0,
    places: Sequence[float | int] = ENDS_AND_MIDDLE,
) -> Choice:
    """Successive halving whose signal is turned round, at each rung, if the anchors' trials fall along it there.

    The anchors stand at quantiles of the signal's order at the first rung and are trained in full from there; they are
    halved like the others, which costs nothing more. The last favourite is trained in full, and the best trial of it
    and the anchors is chosen.

    Raises:
        ValueError: as of `successive_halving`; no places, or a place outside 0 to 1.
    """
    if not places:
        raise ValueError("no places for anchors; without them, this is successive_halving")
    return _halved(task, signal, rungs, eta, look, places)


def _halved(
    task: xr.Dataset,
    signal: str,
    rungs: Sequence[float | int],
    eta: float | int,
    look: float | int,
    places: Sequence[float | int],
) -> Choice:
    if not rungs or rungs[0] <= 0 or rungs[-1] > 1 or (np.diff(rungs) <= 0).any() or not eta > 1:
        raise ValueError(f"rungs must rise from above 0 to at most 1, and eta be above 1; got rungs={rungs}, eta={eta}")
    signals = [_at(task[signal], rung) for rung in rungs]  # NaN: unknown
    trial = ranked_last(task["trial"].values) if places or rungs[-1] == 1 else np.zeros(len(signals[0]))
    n = len(trial)

    def run(lots: np.random.Generator) -> Choice:
        anchors = _anchors(signals[0], places, lots)
        left, order = np.arange(n), np.zeros(n)
        spent, reached = float(len(anchors)), 0.0
        for k, (rung, now) in enumerate(zip(rungs, signals, strict=True)):
            spent += len(np.setdiff1d(left, anchors)) * (rung - reached) + look * len(np.union1d(left, anchors))
            reached = rung
            now = trial if rung == 1 else ranked_last(-now if _falls(trial, now, anchors) else now)
            order[left] = k + stats.rankdata(now[left]) / (n + 1)
            if k + 1 == len(rungs):
                break
            left = left[_best(now[left], math.ceil(len(left) / eta), lots)]
            order[left] = k + 1
            if len(left) == 1:
                break
        if not places:
            return Choice(picked(order[None], 1)[0], spent / n, (1 - reached) / n, order[None])
        final = left if reached == 1 else left[_best(order[left], 1, lots)]
        spent += len(np.setdiff1d(final, anchors)) * (1 - reached)
        return _best_trial(trial, np.union1d(anchors, final), spent / n, order)

    return _over_lots(run)


def _favourite(order: Float[np.ndarray, " candidate"], cost: float, trained: float = 0.0) -> Choice:
    """The highest of an order; all candidates have been trained to the same share."""
    rows = ranked_last(order)[None]
    return Choice(picked(rows, 1)[0], cost, (1 - trained) / len(order), rows)


def _best_trial(trial: np.ndarray, final: np.ndarray, cost: float, order: np.ndarray) -> Choice:
    """The best of those that were trained in full."""
    chance = np.zeros(len(trial))
    chance[final] = picked(trial[None, final], 1)[0]
    return Choice(chance, cost, 0.0, order[None])


def _measured(task: xr.Dataset, predictor: str) -> tuple[Float[np.ndarray, " candidate"], float, float]:
    """Value, cost and the share trained of a predictor."""
    one = task["value"].sel(predictor=predictor)
    return one.values.astype(float), float(one["cost"]), float(one["trained"])


def _at(signal: xr.DataArray, share: float | int) -> Float[np.ndarray, " candidate"]:
    progress = signal["progress"].values
    (at,) = np.nonzero(np.isclose(progress, share))
    if not at.size:
        raise ValueError(f"{signal.name} was measured at {progress.tolist()} of the training, not at {share}")
    return signal.transpose("progress", "candidate").values[at[0]].astype(float)


def _best(values: np.ndarray, count: int, lots: np.random.Generator) -> Int[np.ndarray, " count"]:
    """Places of the highest; ties at the cut are drawn by lot."""
    cut = np.sort(values)[-count]
    tied = (values >= cut).sum() > count
    return np.lexsort((_drawn(len(values), tied, lots), values))[-count:]


def _drawn(count: int, tied: bool | np.bool, lots: np.random.Generator) -> Float[np.ndarray, " count"]:
    """Lots, if any are needed: none drawn means that nothing was left to chance."""
    return lots.random(count) if tied else np.zeros(count)


def _anchors(value: np.ndarray, places: Sequence[float | int], lots: np.random.Generator) -> Int[np.ndarray, " anchor"]:
    """The candidates at quantiles of an order of those that could be measured (of all, if none could)."""
    if not all(0 <= place <= 1 for place in places):
        raise ValueError(f"places are quantiles, from 0 to 1; got {places}")
    known = np.flatnonzero(~np.isnan(value)) if not np.isnan(value).all() else np.arange(len(value))
    values = ranked_last(value)[known]
    at = np.unique(np.rint(np.multiply(places, len(known) - 1)).astype(int))
    tied = (values[:, None] == np.sort(values)[at]).sum() > len(at)
    return known[np.lexsort((_drawn(len(known), tied, lots), values))[at]]


def _falls(trial: np.ndarray, value: np.ndarray, anchors: np.ndarray) -> bool:
    """Whether the anchors' trials fall along their ranks, by least squares."""
    of = anchors[np.isfinite(trial[anchors])]
    ranks = stats.rankdata(ranked_last(value)[of])
    return bool(len(of) and (ranks - ranks.mean()) @ trial[of] < 0)


def _feature(task: xr.Dataset, ranks: np.ndarray, name: str) -> Float[np.ndarray, "candidate column"]:
    if name == "operator":
        operators = task["operator"].values
        return (operators[:, None] == np.unique(operators)).astype(float)
    column = ranks if name == "rank" else np.log(task["parameters"].values.astype(float))
    return ((column - column.mean()) / (column.std() or 1.0))[:, None]


def _fitted(
    features: Float[np.ndarray, "candidate column"], trial: np.ndarray, anchors: np.ndarray, ridge: float | int
) -> Float[np.ndarray, " candidate"]:
    """What ridge regression on the anchors' trials expects of all, up to a constant; failed trials are left out."""
    of = anchors[np.isfinite(trial[anchors])]
    if len(of) < 2:
        return np.zeros(len(trial))
    x, y = features[of] - features[of].mean(0), trial[of] - trial[of].mean()
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    return np.round(features @ weights, DECIMALS)  # what differs by rounding only is tied


def _over_lots(run: Callable[[np.random.Generator], Choice]) -> Choice:
    """The mean of a policy's choice over draws of lots; one run, if that needed none."""
    lots = np.random.default_rng(0)
    before = lots.bit_generator.state
    each = [run(lots)]
    if lots.bit_generator.state != before:
        each += [run(lots) for _ in range(LOTS - 1)]
    return Choice(
        np.mean([one.chance for one in each], axis=0),
        float(np.mean([one.cost for one in each])),
        float(np.mean([one.finish for one in each])),
        np.concatenate([one.order for one in each]),
    )
