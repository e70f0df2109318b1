"""The ranking of a network's expansions: what is asked of the user, and what then happens, stage by stage."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmstudy.batched import engine
from mmstudy.batched.asked import measurable
from mmstudy.batched.determinism import check
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments, paths, progress, results
from mmstudy.expansion import asked as expansion
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.pools import Size, size_of
from mmstudy.ranking import given, places, policy, settings
from mmstudy.ranking import pool as pools
from mmstudy.ranking.foretold import foretold
from mmstudy.ranking.loops import Loop
from mmstudy.ranking.places import Looks
from mmstudy.ranking.policy import Plan
from mmstudy.ranking.posterior import Pool, posterior, standardized
from mmstudy.ranking.priors import PRIORS, STRETCH
from mmstudy.ranking.report import OWN, Ranking, Seen, concluded, early_order
from mmstudy.ranking.rows import Metric, Row, Rows, accuracy
from mmstudy.ranking.training import Training, device_of, moved

OUTLIER = 100  # scaled median absolute deviations; the pools of which the priors know had no score beyond 68


@torch.inference_mode(False)  # not `alone`: threads that look for it take turns themselves
def rank_expansions(
    network: nn.Module,
    loss_fn: LossFn,
    train_loader: Iterable[Batch],
    validation_loader: Iterable[Batch],
    *,
    pool: Mapping[str, Candidate] | None = None,
    budget: float | int = 0.1,
    full_steps: int = 10_000,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer | None = None,
    schedule: Callable[[Optimizer], LRScheduler] | None = None,
    metric: Metric | None = None,
    train: Loop | None = None,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    accumulate: int = 1,
    measured_examples: int = 2000,
    folder: str | Path = "ranking",
    seed: int = 0,
    scheduler: str = "",
    say: Callable[[str], object] = print,
) -> Ranking:
    """Which expansion of a trained network is worth its training?

    What can grow, and what the ranking will cost, is said before anything is trained. Then every candidate, and the
    network itself beside them, is trained for a part of the full training (`policy`), and some of them to the end if
    the budget allows it. All is kept under `folder`: after any end the same call goes on and gives the same ranking.

    Small candidates of one shape are trained as one batch, where the optimizer allows it (`together`): each becomes
    what it would alone, but for rounding.

    Args:
        network: a trained network; it is left as it is.
        loss_fn: (model, batch) → mean loss.
        train_loader: batches for training, read anew for each epoch; with `train`, a few, to check the network.
        validation_loader: batches that are read once, and of which `measured_examples`, spread evenly over them, are
            what all are compared by; the first ones where it has no length. These data are used up by the choice:
            report what the chosen network does on others.
        pool: candidates by label; by default those of `pool.default`.
        budget: the share of the steps of training all of them, and the network itself, to the end. As a step of a large
            candidate takes longer than that of a small one, it may be another share of the time.
        full_steps: what training to the end means.
        optimizer: of parameters, e.g. `lambda p: torch.optim.AdamW(p, lr=3e-4)`; or the network's own, whose state is
            then carried over to each candidate. Needed, but for `train`, with which it is not used.
        schedule: of an optimizer, e.g. `lambda o: CosineAnnealingLR(o, 10_000)`; steps once a step.
        metric: (model, batch) → a score, a mean over examples, larger is better; by default the accuracy for the
            default loss (`ensemble.classification`), for others the loss, turned round.
        train: a loop of one's own, (network, optimizer_state, steps, seed) → (network, losses), or (network, losses,
            optimizer_state) to get that state back (tensors and plain values) when the training goes on. It is called
            once or more for each network; the seed is `seed` plus the steps that the network has behind it, so that a
            loop that draws its i-th batch by seed + i draws the same however the steps are parted. What is kept is what
            a call returns: killed within one, that call is made again. No schedule, clip, autocast or accumulate then.
        clip: the largest norm of a gradient.
        autocast: a type such as `torch.bfloat16` to train in; what is measured is measured without.
        accumulate: batches of the loader that make one step.
        measured_examples: of the validation loader, as many as there are at most.
        folder: where networks on their way are kept, about as large as all candidates with their optimizers.
        seed: of the order of examples, and of what is drawn in training.
        scheduler: the address of a Dask scheduler, such as "tcp://192.168.0.2:8786", whose workers train, each a
            group of candidates at a time; they must see `folder`.
        say: what is told on the way goes there.

    Returns:
        The candidates in the order in which one should train them; its `best` is the network to go on with.

    Raises:
        TypeError: an argument of another kind.
        ValueError: one that is out of range, a loader that is empty or whose batches change their form, a loss that is
            not finite, a network on several devices or without numbers, functions that fail (`given.functions`), fewer
            than two candidates, a folder of another ranking or that cannot be written, or workers of a cluster that
            are not fit (`cluster.executor`).
        ConnectionError: the scheduler is gone; what was finished is kept.
    """
    network = arguments.network(network)
    budget, full_steps, accumulate, measured_examples, clip, seed = given.in_range(
        budget, full_steps, accumulate, measured_examples, clip, autocast, seed
    )
    training = Training(
        arguments.function(loss_fn), train_loader, optimizer, schedule, clip, autocast, accumulate, train, seed
    )
    device, folder = device_of(network), paths.folder(folder)
    given.functions(network, training, metric, say)
    chosen = None if pool is None else given.pool(pool)
    score = metric if metric is not None else accuracy if loss_fn is classification else None
    seen = given.first_batches(train_loader, seed, "train_loader")
    with arguments.naming("train_loader"):
        batch = arguments.batch(moved(seen[0], device))
    measured = given.measured_part(validation_loader, measured_examples, seed, device, say)
    given.fit(network, batch, loss_fn, "train_loader")
    given.stepped(network, batch, training, full_steps)
    measurable([network], measured, loss_fn, given.fit(network, measured, loss_fn, "validation_loader"))
    check(network, measured, loss_fn)
    given.scored(network, measured, score)

    if chosen is None:
        chosen = given.pool(_default(network, batch, loss_fn, say))
    own = size_of(network, batch, loss_fn)
    known = settings.of(network, training, chosen, measured, full_steps=full_steps, metric=score)
    settings.claim(folder, known)
    traced = pools.traced(network, batch, loss_fn)
    sizes, refused = pools.sizes(network, chosen, batch, loss_fn, traced)
    for label, reason in refused.items():
        say(f"left out: {label}: {reason}")
    if len(sizes) < 2:
        raise ValueError(f"only {len(sizes)} of {len(chosen)} candidates can be grown: {'; '.join(refused.values())}")
    candidates: dict[str, Candidate | None] = {label: chosen[label] for label in sizes} | {OWN: None}
    rows = Rows(network, training, batch, measured, score, candidates, folder / "runs", traced)
    look = engine.count(measured) / (3 * accumulate * engine.count(batch))  # a step costs three passes, a look one
    look *= 1 if score is None else 2
    how = policy.plan(len(sizes), full_steps, budget, look)
    say(foretold(rows, how, full_steps, [*sizes.values(), own], look))

    with places.looking(rows, scheduler, say) as looks:
        seen_of = _carried_out(rows, how, full_steps, [*sizes.values(), own], looks)
    ranking = Ranking(concluded(rows, how, full_steps, seen_of, refused), rows)
    results.save(ranking.data, folder / "ranking.nc")
    say(ranking.summary)
    return ranking


def _carried_out(rows: Rows, how: Plan, full_steps: int, sizes: list[Size], looks: Looks) -> Seen:
    """All rows early, those that were trained to the end, and what is then known of all.

    Raises:
        ValueError: every training diverged.
    """
    labels, last = list(rows.candidates), len(sizes) - 1
    rest = full_steps - how.probe_steps
    final: list[Row | None] = [None] * len(labels)
    with progress.bar(len(labels) * how.probe_steps + how.finished * rest, "training", "step") as bar:

        def seen(groups: Iterable[Sequence[str]], steps: int, more: int) -> list[Row]:
            """The rows of these groups after so many steps, `more` than before."""
            found: dict[str, Row] = {}
            before = bar.n
            for each in looks(list(groups), steps, bar.update):
                found |= {row.label: row for row in each}
                bar.update(max(0, before + more * len(found) - bar.n))  # what was there before counts too
            return [found[label] for label in labels if label in found]

        early = seen(rows.groups, how.probe_steps, how.probe_steps)
        if all(row.diverged for row in early):
            raise ValueError(f"every training diverged within {how.probe_steps} steps: {_cure(rows)}")
        known = pool_of(early, sizes, [_operator(each) for each in rows.candidates.values()], how)
        prior = PRIORS[how.anchored]

        def finish(which: Iterable[int]) -> None:
            for row in seen([[labels[i]] for i in which], full_steps, rest):
                final[labels.index(row.label)] = row

        if how.finished == len(labels) or not rest:
            final = list(seen(rows.groups, full_steps, rest))
        elif how.anchored:
            value = np.where(np.arange(len(labels)) == last, np.nan, known.rank)
            value[[row.diverged for row in early]] = np.nan
            finish(dict.fromkeys([last, *policy.anchors(value)]))
            while sum(row is not None for row in final) < how.finished:
                expected = posterior(known, scores_of(final), prior).mean
                expected = known.rank if np.isnan(expected).any() else expected
                open_rows = [i for i, row in enumerate(final) if row is None and not early[i].diverged]
                if not open_rows:
                    break
                finish([max(open_rows, key=lambda i: expected[i])])
        ended = [row for row in final if row is not None]
        if ended and all(row.diverged for row in ended):
            raise ValueError(f"every training diverged before its end, {full_steps} steps: {_cure(rows)}")
    return Seen(sizes, early, final, posterior(known, scores_of(final), prior, STRETCH[how.anchored]))


def _cure(rows: Rows) -> str:
    if rows.training.train is None:
        return "give a smaller step size"
    return "what train= returned has a loss, its own or on the validation data, that is no finite number"


def pool_of(early: list[Row], sizes: list[Size], operators: list[str], how: Plan) -> Pool:
    """What the early looks say of a pool; the last row is the network that is only trained on."""
    score, _, value = early_order(early, sizes, how.anchored)
    ranked, width = (standardized(each) for each in (policy.shares(value), np.log([size.parameters for size in sizes])))
    now = score[-1] if math.isfinite(score[-1]) else float(np.nanmean(score))
    return Pool(ranked, width, operators, float(now), spread_of(score[:-1]))


def spread_of(score: np.ndarray) -> float:
    """The standard deviation of scores, those of trainings that all but diverged left out; NaN where all are equal.

    Left out is what is further from the median than `OUTLIER` times the median distance, scaled as for Gaussian scores.
    """
    known = score[np.isfinite(score)]
    if known.size:
        apart = np.abs(known - np.median(known))
        usual = stats.median_abs_deviation(known, scale="normal")
        known = known[apart <= OUTLIER * usual] if usual else known
    return float(np.std(known)) if known.size and np.ptp(known) else math.nan


def scores_of(final: list[Row | None]) -> np.ndarray:
    """The final scores, NaN where there is none; a training that diverged has the lowest of all."""
    lowest = min((row.score for row in final if row is not None and not row.diverged), default=math.nan)
    return np.array([math.nan if row is None else lowest if row.diverged else row.score for row in final])


def _operator(candidate: Candidate | None) -> str:
    return candidate.operator if candidate else OWN


def _default(network: nn.Module, batch: Batch, loss_fn: LossFn, say: Callable[[str], object]) -> dict[str, Candidate]:
    covered = expansion.coverage(network, batch, loss_fn)
    say(f"What can grow:\n{covered}\n")
    return pools.default(network, batch, loss_fn, covered)
