"""Losses that a measurement has taken, held against plain calls of the networks afterwards."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import inf, isfinite
from typing import NamedTuple

from torch import Tensor, nn

from mmstudy.batched.asked import called, close, untouched
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, at
from mmstudy.batched.objective import Objective

KEPT = 3  # of the first calls, and of the last
DRIFT = 0.02  # of what the level is above a parent's loss: a change that moves no crossing by much


class Note(NamedTuple):
    """A point of parameter space, the parent that it belongs to, and its loss as it was measured."""

    point: Tensor
    owner: int
    loss: float


@dataclass(frozen=True)
class Noted(Objective):
    """An objective that notes some of the losses it is asked for: of a call the one that is nearest to the level."""

    level: float = 0.0
    first: list[Note] = field(default_factory=list, compare=False)
    last: deque[Note] = field(default_factory=lambda: deque(maxlen=KEPT), compare=False)

    def at_points(self, points: Tensor, owner: Tensor) -> Tensor:
        """See `Objective.at_points`."""
        found = super().at_points(points, owner)
        if len(found):
            near = int((found - self.level).abs().nan_to_num(nan=inf).argmin())
            note = Note(points[near].detach().clone(), int(owner[near]), float(found[near]))
            (self.first if len(self.first) < KEPT else self.last).append(note)
        return found


def noted(objective: Objective, level: float) -> Noted:
    """The objective as one that notes what it is asked for."""
    return Noted(**{each.name: getattr(objective, each.name) for each in fields(objective)}, level=level)


def audit(
    objective: Noted,
    ensemble: Ensemble,
    networks: Sequence[nn.Module],
    points: Tensor,
    plain: Sequence[float],
    batch: Batch,
    loss_fn: LossFn,
) -> None:
    """Refuse what has been measured if plain calls of the networks give other losses, at some of the points and now.

    The networks must be in the state in which they were given: a plain call finds nothing that measuring left in them.
    Losses far above the level need not agree: whether they are above is all that counts.

    Args:
        objective: what has measured; its notes are taken away.
        points: the networks' own parameters, (k, dim).
        plain: the networks' losses before anything was measured.

    Raises:
        ValueError: a loss is another one.
    """
    notes = [*objective.first, *objective.last]
    with untouched(networks):
        after = objective(points).tolist()
    for k, (before, now) in enumerate(zip(plain, after, strict=True)):
        if not _near(before, now, before, objective.level):
            raise ValueError(
                f"network {k}: its loss was {before:g} before it was measured, and is {now:g} after: the network or "
                "the loss keeps a state that changes from call to call (a running average, an annealed weight). Let it "
                "be fixed meanwhile"
            )
    for kept in (objective.first, objective.last):
        kept.clear()
    for point, k, measured in notes:
        alone = called(networks[k], at(ensemble, point.unsqueeze(0)), 0, batch, loss_fn)
        if not _near(alone, measured, plain[k], objective.level):
            raise ValueError(
                f"network {k}: at a point that was looked at, a plain call gives a loss of {alone:g}, and its "
                f"measurement was {measured:g}. What several networks at once compute, or calls that are repeated, is "
                "another function here: random numbers with a seed of their own, errors that are caught, or a state "
                "that is kept"
            )


def _near(plain: float, measured: float, parent: float, level: float) -> bool:
    """Whether two losses are one for what is measured of a parent up to a level."""
    if not (isfinite(plain) and isfinite(measured)):
        return isfinite(plain) == isfinite(measured) or max(plain, measured) > level  # infinite is above, like NaN
    gap = max(level - parent, 0.0)
    if min(plain, measured) > level + gap:
        return True
    return close(plain, measured, beyond=DRIFT * gap)
