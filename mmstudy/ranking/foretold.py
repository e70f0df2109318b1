"""What a ranking will take, foretold in words before anything is trained."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mmstudy.expansion.pools import Size
from mmstudy.ranking.policy import Plan
from mmstudy.ranking.rows import Rows

TRIED = 3  # steps by which the time of a step is measured


def foretold(rows: Rows, how: Plan, full_steps: int, sizes: Sequence[Size], look: float) -> str:
    """What it will take: shares of training all to the end, and time.

    Args:
        sizes: of all rows, the network itself being the last.
        look: what one look at the validation data costs, in steps.
    """
    count, flops = len(sizes), np.array([size.flops for size in sizes], float)
    alone, together = paces(rows, flops)
    rest = full_steps - how.probe_steps
    looks = look * alone[:, 1].sum()
    whole = _seconds(together, full_steps) + looks
    if how.finished == count or not rest:
        spent, upto = whole, f"trained to the end, for {full_steps} steps"
    else:
        upto = f"trained for {how.probe_steps} of {full_steps} steps"
        upto += f", {how.finished} of them to the end" if how.finished else ""
        ends = (_seconds(alone, rest) + looks) * how.finished / count
        spent = _seconds(together, how.probe_steps) + looks + ends
    return (
        f"{count - 1} candidates, and the network as it is, are {upto}: {how.share:.1%} of the steps of training all "
        f"to the end, looks at validation data included; {_operations(flops, how, full_steps)}. As {TRIED} steps of "
        f"the smallest and of the largest network tell, that takes about {duration(spent)}; all would take "
        f"{duration(whole)}."
    )


def paces(
    rows: Rows, flops: Float[np.ndarray, " row"]
) -> tuple[Float[np.ndarray, "row 2"], Float[np.ndarray, "row 2"]]:
    """Seconds until a row has made its first step, and for each further one: alone, and as it is trained with others.

    Timed are the network itself and the largest candidate, and the largest group; between them time is linear in
    floating-point operations.
    """
    labels = list(rows.candidates)
    large = int(flops.argmax())
    own, most = (np.array(rows.paced([labels[i]], TRIED)) for i in (-1, large))
    place = np.clip((flops - flops[-1]) / ((flops[large] - flops[-1]) or 1.0), 0, 1)
    alone = own + place[:, None] * (most - own)
    group = max(rows.groups, key=lambda group: (len(group), flops[labels.index(group[0])]))
    if len(group) == 1:
        return alone, alone
    one = alone[labels.index(group[0])] * len(group)
    shared = np.array([len(each) > 1 for label in labels for each in rows.groups if label in each])
    return alone, alone * np.where(shared[:, None], np.array(rows.paced(group, TRIED)) / one, 1.0)


def _seconds(pace: Float[np.ndarray, "row 2"], steps: int) -> float:
    """That so many steps of all rows take."""
    return float((pace @ [1, steps - 1]).sum())


def _operations(flops: Float[np.ndarray, " row"], how: Plan, full_steps: int) -> str:
    """The share of floating-point operations; a range, where it depends on which rows are trained to the end."""
    finished, whole = how.finished, flops.sum() * full_steps or 1.0
    if not finished or finished == len(flops):
        return f"{how.share:.1%} of the floating-point operations"
    ranked = np.sort(flops[:-1])
    ends = (flops[-1] + part[: finished - 1].sum() for part in (ranked, ranked[::-1]))
    low, high = ((flops.sum() * how.probe_steps + (full_steps - how.probe_steps) * end) / whole for end in ends)
    return f"{low:.1%} to {high:.1%} of the floating-point operations, as small or large ones are trained to the end"


def duration(seconds: float) -> str:
    """Seconds in words."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} seconds"
