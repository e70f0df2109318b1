"""How a budget is spent: how far all are trained, how many to the end, and in which order one would choose.

Where the budget allows it, a few candidates are trained to the end, as anchors: those at both ends and in the middle of
an early order, and then the favourite. That is the policy with the lowest regret in the study for 15% of the training.
Otherwise all are trained for as long as the budget allows, and ordered by their validation scores and, as far as these
agree with it, by their training losses. In the study that is not the best for so little: anchors chosen by parameters
alone lose less (notebook 7). But they are three full trainings, which a small budget pays for in large pools only, and
without a look at every candidate no gain can be expected of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

PROBE = 0.05  # of the training, before anchors are chosen
PLACES = (0.0, 0.5, 1.0)  # of the anchors, in the early order
WINDOW = 0.2  # the last part of a training whose minibatch losses are averaged
PERMUTATIONS = 10_000
DISAGREE = 0.3  # a flag below which the training loss is not to be trusted


@dataclass(frozen=True)
class Plan:
    """How far every row of the pool is trained, in steps, and how many rows to the end."""

    probe_steps: int
    finished: int
    share: float  # of training all rows to the end that this takes, looks at validation data included

    @property
    def anchored(self) -> bool:
        """Whether some are trained to the end before the choice."""
        return self.finished > 0


def plan(candidates: int, full_steps: int, budget: float | int, look: float = 0.0) -> Plan:
    """The way that fits into a budget, of which the network that is only trained on takes its part.

    Args:
        candidates: how many there are beside that network.
        budget: the share of training all of them to the end.
        look: what one look at the validation data costs, in steps.

    Raises:
        ValueError: the budget does not allow one step of each.
    """
    rows = candidates + 1
    allowed = budget * rows * (full_steps + look)
    probe = max(1, round(PROBE * full_steps))
    least = min(rows, len(PLACES) + 2)  # the anchors, a favourite, and the network that is only trained on
    finished = int((allowed - rows * (probe + look)) / (full_steps - probe + look)) if full_steps > probe else 0
    if budget == 1 or finished >= rows:
        finished = rows
    if finished >= least:
        spent = rows * (probe + look) + finished * (full_steps - probe + look)
        return Plan(probe, finished, min(1.0, spent / (rows * (full_steps + look))))
    steps = int(allowed / rows - look)
    if steps < 1:
        needed = (1 + look) / (full_steps + look)
        raise ValueError(
            f"budget={budget:g} of {full_steps} steps leaves no step for each network, as a look at the validation "
            f"data takes as long as {look:.3g} steps: give at least budget={math.ceil(1000 * needed) / 1000:g}, more "
            "steps, or fewer measured_examples"
        )
    return Plan(min(steps, full_steps), 0, (steps + look) / (full_steps + look))


def late(losses: Sequence[float]) -> float:
    """The mean of the last fifth of minibatch losses; NaN where one of them is."""
    return float(np.mean(losses[-max(1, round(WINDOW * len(losses))) :])) if losses else math.nan


def shares(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Ranks as shares of the rows, ties in the middle; NaN ranks last."""
    return stats.rankdata(np.where(np.isnan(values), -np.inf, values)) / len(values)


def flag(score: Float[np.ndarray, " row"], loss: Float[np.ndarray, " row"]) -> float:
    """Spearman's correlation of validation scores with lower training losses; NaN where one of them tells nothing."""
    known = np.isfinite(score) & np.isfinite(loss)
    if known.sum() < 3 or np.ptp(score[known]) == 0 or np.ptp(loss[known]) == 0:
        return math.nan
    return float(stats.spearmanr(score[known], -loss[known]).statistic)


def chance_of(flag: float, count: int) -> float:
    """The probability of a flag as low as this where scores and losses of so many rows are unrelated (permutations)."""
    random = np.random.default_rng(0)
    ranks = np.arange(count)
    apart = (random.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1) - ranks) ** 2
    found = 1 - 6 * apart.sum(1) / (count * (count**2 - 1))  # Spearman's ρ
    return float((found <= flag + 1e-9).mean())


def order(
    anchored: bool,
    score: Float[np.ndarray, " row"],
    loss: Float[np.ndarray, " row"],
    parameters: Float[np.ndarray, " row"],
) -> Float[np.ndarray, " row"]:
    """What the rows are ordered by early, larger where more is expected; NaN for a row that diverged.

    With anchors, the ranks of low training loss and of the parameter count; without, those of the validation score and,
    times the flag, where it is known, of the other two.
    """
    both = shares(-loss) + shares(parameters)
    value = both if anchored else shares(score) + np.nan_to_num(flag(score, loss)) * both
    return np.where(np.isnan(score) | np.isnan(loss), np.nan, value)


def anchors(value: Float[np.ndarray, " row"]) -> list[int]:
    """The rows at both ends and in the middle of an order, those that diverged left out; ties in the order of rows."""
    known = np.flatnonzero(~np.isnan(value))
    ranked = known[np.argsort(value[known], kind="stable")]
    if not known.size:
        return []
    return [int(ranked[i]) for i in np.unique(np.rint(np.multiply(PLACES, len(ranked) - 1)).astype(int))]
