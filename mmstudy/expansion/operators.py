"""The ways to expand, each with all there is to say of it: `OPERATORS`.

To add one, enter it here or, from outside, in the dictionary: `OPERATORS["mine"] = Operator(...)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mmstudy.expansion import copies, deeper, new_units
from mmstudy.expansion.deeper import Way

EXACTLY, UP_TO_NOISE, NOT = "exactly", "up to noise", "no"
COPIES, NEW_UNITS, LAYERS = "copies of old units", "new units, or learned ones", "new layers or blocks"


@dataclass(frozen=True)
class Operator:
    """A way to expand, and what it promises.

    Attributes:
        apply: a function from a `Growth` to a plan (see `growth`), or, of the kind `LAYERS`, a `deeper.Way`.
        preserves: the function is kept `EXACTLY`, `UP_TO_NOISE`, or `NOT`.
        kind: what it has in common with others: `COPIES`, `NEW_UNITS` or `LAYERS`.
        idea: in a few words.
        source: the paper.
        color: in figures.
        parts: by training, new units become different from each other and from the old ones.
        cost: how many example-evaluations it takes to learn from so many examples; a forward pass is one per example, a
            training step three.
        stand_in: of an operator that learns: another one that makes the same architecture without data, to read
            checkpoints.
        family: operators of one family count as one where orders within operators are looked at; by default each is its
            own.
        marker: in figures, unlike those of its kind; by default one that no operator here has.
    """

    apply: Callable
    preserves: str
    kind: str
    idea: str
    source: str
    color: str
    parts: bool = True
    cost: Callable[[int], int] = lambda examples: 0
    stand_in: str = ""
    family: str = ""
    marker: str | tuple[int, int, int] = (3, 1, 0)

    @property
    def learns(self) -> bool:
        """Whether it learns from data, and needs targets."""
        return self.cost(1) > 0

    @property
    def widens(self) -> bool:
        """Whether it adds units to layers; the others add layers or blocks."""
        return self.kind != LAYERS

    @property
    def together(self) -> bool:
        """Whether it works on all its places as a whole, so that each has the same size."""
        return not self.widens and self.way.together

    @property
    def way(self) -> Way:
        """How what adds layers makes and places them."""
        return self.apply if isinstance(self.apply, Way) else Way(self.apply)


OPERATORS: dict[str, Operator] = {  # related hues: copies blue, unread units green, drawn or learned brown, deeper red
    "net2net": Operator(
        copies.net2net,
        UP_TO_NOISE,
        COPIES,
        "copies at random, parted by noise",
        "Chen et al. 2016, arXiv 1511.05641",
        "#0173b2",
        marker="o",
    ),
    "bert2bert": Operator(
        copies.bert2bert,
        EXACTLY,
        COPIES,
        "copies at random, left equal",
        "Chen et al. 2022, arXiv 2110.07143, FPI",
        "#56b4e9",
        parts=False,
        marker="s",
    ),
    "bert2bert_advanced": Operator(
        copies.bert2bert_advanced,
        NOT,
        COPIES,
        "new units from the next layer",
        "Chen et al. 2022, arXiv 2110.07143, AKI",
        "#0b2f6b",
        marker=(4, 1, 0),
    ),
    "lemon": Operator(
        copies.lemon,
        EXACTLY,
        COPIES,
        "copies in turn, read in uneven shares",
        "Wang et al. 2023, arXiv 2310.07999",
        "#17a8b8",
        marker="D",
    ),
    "hypercloning": Operator(
        copies.hypercloning,
        EXACTLY,
        COPIES,
        "whole clones, read with noise that cancels",
        "Samragh et al. 2024, arXiv 2409.12903",
        "#7b6fe0",
        marker="P",
    ),
    "firefly": Operator(
        copies.firefly,
        UP_TO_NOISE,
        COPIES,
        "units split along a learned direction",
        "Wu et al. 2020, arXiv 2102.08574",
        "#708090",
        cost=copies.firefly_cost,
        stand_in="net2net",
        marker="*",
    ),
    "zero_outgoing": Operator(
        new_units.zero_outgoing,
        EXACTLY,
        NEW_UNITS,
        "random units that nothing reads yet",
        "compare Evci et al. 2022, arXiv 2201.05125",
        "#029e73",
        marker="^",
    ),
    "zero_incoming": Operator(
        new_units.zero_incoming,
        EXACTLY,
        NEW_UNITS,
        "zero units, read by random weights",
        "compare Evci et al. 2022, arXiv 2201.05125",
        "#8fcb7c",
        parts=False,
        marker="v",
    ),
    "orthogonal": Operator(
        new_units.orthogonal,
        EXACTLY,
        NEW_UNITS,
        "orthogonal to the old units, not read yet",
        "Maile et al. 2022, arXiv 2202.08539",
        "#0f5a3c",
        marker="d",
    ),
    "gradmax": Operator(
        new_units.gradmax,
        EXACTLY,
        NEW_UNITS,
        "largest gradient, not read yet",
        "Evci et al. 2022, arXiv 2201.05125",
        "#8a9a00",
        cost=new_units.gradmax_cost,
        stand_in="zero_outgoing",
        marker=">",
    ),
    "random": Operator(
        new_units.random,
        NOT,
        NEW_UNITS,
        "random units, read by random weights",
        "the layers' default initialization",
        "#de8f05",
        marker="X",
    ),
    "ligo": Operator(
        new_units.ligo,
        NOT,
        NEW_UNITS,
        "both matrices learned",
        "Wang et al. 2023, arXiv 2303.00980",
        "#7a5230",
        cost=new_units.ligo_cost,
        stand_in="bert2bert",
        marker="H",
    ),
    "deeper_identity": Operator(
        Way(deeper.deeper_identity, layers=True, fits=True),
        EXACTLY,
        LAYERS,
        "a layer that does nothing",
        "Chen et al. 2016, arXiv 1511.05641",
        "#cc78bc",
        family="deeper",
        marker="<",
    ),
    "deeper_random": Operator(
        Way(deeper.deeper_random, layers=True),
        NOT,
        LAYERS,
        "a layer or block drawn anew",
        "the layers' default initialization",
        "#d55e00",
        family="deeper",
        marker=(6, 1, 0),
    ),
    "zero_residual": Operator(
        Way(deeper.zero_residual, silent=True),
        EXACTLY,
        LAYERS,
        "a new block that ends in zeros",
        "Goyal et al. 2017, arXiv 1706.02677",
        "#7b2a83",
        marker=(5, 1, 36),
    ),
    "identity_block": Operator(
        Way(deeper.identity_block, silent=True),
        EXACTLY,
        LAYERS,
        "a copied block that ends in zeros",
        "Wu et al. 2024, arXiv 2401.02415",
        "#e6459a",
        marker="p",
    ),
    "stack": Operator(
        Way(deeper.stack, trained=True, together=True),
        NOT,
        LAYERS,
        "all blocks once more, behind the last",
        "Gong et al. 2019; Du et al. 2024, arXiv 2405.15319",
        "#8c1c1c",
        marker="h",
    ),
    "interleave": Operator(
        Way(deeper.interleave, trained=True),
        NOT,
        LAYERS,
        "each block once more, behind itself",
        "Chang et al. 2018, arXiv 1710.10348",
        "#f2837a",
        marker="8",
    ),
}


def named(*, widens: bool) -> tuple[str, ...]:
    """The names of the operators that widen, or of those that deepen."""
    return tuple(name for name, operator in OPERATORS.items() if operator.widens == widens)


def of_kind() -> dict[str, tuple[str, ...]]:
    """The names of the operators of each kind, for panels and rows."""
    kinds = dict.fromkeys(operator.kind for operator in OPERATORS.values())
    return {kind: tuple(name for name, operator in OPERATORS.items() if operator.kind == kind) for kind in kinds}
