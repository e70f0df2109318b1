"""The looks of predictors, the same in every figure: a family has a colour, a line and markers."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from matplotlib.lines import Line2D

from mmstudy.figures.style import COLORS
from mmstudy.study.predictors import FAMILIES, LOSS, SIZE, STATIC, VALIDATION

FAMILY_COLORS = {STATIC: "0.45", LOSS: COLORS[1], VALIDATION: COLORS[2], SIZE: COLORS[0]}
FAMILY_LINES = {STATIC: ":", LOSS: "--", VALIDATION: "-.", SIZE: "-"}
FAMILY_MARKERS = {STATIC: "sP", LOSS: "^v", VALIDATION: "D*", SIZE: "oh"}


def family_look(family: object, hollow: bool = False, shape: int = 0) -> dict[str, Any]:
    """Colour, marker and its face; black crosses for what belongs to no family."""
    known = str(family) in FAMILIES
    color = FAMILY_COLORS[str(family)] if known else "k"
    return {
        "color": color,
        "marker": FAMILY_MARKERS[str(family)][shape] if known else "xX"[hollow],
        "markerfacecolor": "w" if hollow else color,
        "markeredgecolor": color,
    }


def looks(families: Iterable[object]) -> list[dict[str, Any]]:
    """Looks of the lines of one figure: of one family, the second is hollow, the third has another marker."""
    used: Counter[str] = Counter()
    found = []
    for family in map(str, families):
        many = used[family] % 4
        found.append(family_look(family, many % 2 == 1, many // 2) | {"linestyle": FAMILY_LINES.get(family, "-")})
        used[family] += 1
    return found


def family_marks(families: Iterable[object]) -> list[Line2D]:
    """A mark of each family that is there, for a legend."""
    names = [*map(str, families)]
    present = [family for family in FAMILIES if family in names] + ["none of these"] * (not {*names} <= {*FAMILIES})
    return [Line2D([], [], linestyle="", label=family, **family_look(family)) for family in present]
