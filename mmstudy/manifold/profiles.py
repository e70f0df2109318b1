"""The loss along rays at fixed places: a profile, from which the crossing with any level can be read afterwards.

`crossings` finds one level's crossing to a tolerance, by a search. A profile costs the same for every ray, serves all
levels, and knows a crossing as well as a power of the distance fits the loss between two neighbouring places.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmstudy.batched.objective import Objective


def multiples(doublings: int) -> Float[np.ndarray, " places"]:
    """1, 2, 4, …: where rays are looked at, in multiples of their directions."""
    return 2.0 ** np.arange(doublings + 1)


def profiles(
    objective: Objective,
    origins: Float[Tensor, "m dim"],
    directions: Float[Tensor, "m rays dim"],
    places: Float[np.ndarray, " places"],
) -> Float[Tensor, "m rays places"]:
    """The loss at so many multiples of each direction from each origin, float64."""
    rows = [objective(origins.unsqueeze(1) + float(place) * directions) for place in places]
    return torch.stack(rows, dim=-1)


def read(
    losses: Float[np.ndarray, "*many places"],
    origin: Float[np.ndarray, "*#many"],
    places: Float[np.ndarray, " places"],
    level: Float[np.ndarray, "*#many"] | float,
) -> tuple[Float[np.ndarray, "*many"], Bool[np.ndarray, "*many"]]:
    """Where profiles first pass the level, in multiples of their directions, and which don't (`censored`).

    Between the last place below the level and the first above it, √(L − L(origin)) is taken for a power of the
    distance through both, a straight line from the origin. A censored ray counts as far as it was looked at. A ray from
    an origin above the level has length 0; the loss of one that is not a number is above every level; where the
    origin's or the level is not, the crossing is NaN.
    """
    losses, origin, level = np.broadcast_arrays(losses, np.asarray(origin)[..., None], np.asarray(level)[..., None])
    origin, level = origin[..., 0], level[..., 0]
    above = ~(losses <= level[..., None])
    first = above.argmax(-1)
    censored = ~above.any(-1)
    before = np.maximum(first - 1, 0)
    at_start = first == 0
    high, low = places[first], np.where(at_start, 0.0, places[before])
    with np.errstate(invalid="ignore", divide="ignore"):
        rise_high, rise_low = (
            np.sqrt(np.maximum(np.take_along_axis(losses, i[..., None], -1)[..., 0] - origin, 0))
            for i in (first, before)
        )
        target = np.sqrt(np.maximum(level - origin, 0))
        power = np.log(rise_high / rise_low) / np.log(high / low)
        curved = low * (target / rise_low) ** (1 / power)
        rise_low = np.where(at_start, 0.0, rise_low)
        straight = low + (target - rise_low) / (rise_high - rise_low) * (high - low)
        fits = ~at_start & (rise_low > 0) & (power > 0) & np.isfinite(power)
        found = np.clip(np.where(fits, curved, straight), low, high)
    found = np.where(np.isfinite(found), found, low)  # the loss beyond is infinite or no number
    found = np.where(origin > level, 0.0, np.where(censored, places[-1], found))
    unknown = np.isnan(origin) | np.isnan(level)
    return np.where(unknown, np.nan, found), censored & ~(origin > level) & ~unknown
