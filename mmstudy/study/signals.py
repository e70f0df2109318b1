"""What can be read from a candidate's training on the way, each with all there is to say of it: `SIGNALS`.

A signal is a function of what the experiment has recorded: (experiment) → a value for each candidate and each share of
the training, (candidate, progress). To add one, enter it here or, from outside, in the dictionary. Each declares
beforehand which sign its relation to the gain is expected to have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import xarray as xr

from mmstudy.study import derived
from mmstudy.study.predictors import LOSS, SIZE, VALIDATION, check_declared


@dataclass(frozen=True)
class Signal:
    """A number for each candidate at each moment of its training, and what is expected of it.

    Attributes:
        sign: +1 where a larger value is expected to go with a larger gain, −1 where a smaller one is.
        description: what it is, in a few words.
        unit: of the number.
        family: one of `predictors.FAMILIES`.
        compute: (experiment) → the number, over (candidate, progress).
        expenses: what it takes beside the training up to there (`Protocol.costs`).
        source: the paper.
        combined: whether its ranks are also averaged with those of the parameter count.
        separate: it comes from a short run of its own: it has no progress, and takes no training up to there.
    """

    sign: int
    description: str
    unit: str
    family: str
    compute: Callable[[xr.Dataset], xr.DataArray]
    expenses: tuple[str, ...] = ()
    source: str = ""
    combined: bool = True
    separate: bool = False

    def __post_init__(self):
        check_declared("a signal", self.sign, self.family)


LAG = "Karp et al. 2024, arXiv 2406.02469"
TSE = "Ru et al. 2021, arXiv 2006.04492"
EPOCH = "i-Epoch, arXiv 2404.04111"
CHILDREN = ("children",)
CENTRE = (*CHILDREN, "centre")
CENTRE_VALIDATION = (*CHILDREN, "centre's validation predictions")
VALIDATED = ("short run", "validation")
WAYS = {"children": (*CENTRE, "children's rays"), "snapshots": ("centre", "snapshots' rays")}


def _recorded(rows: Mapping[str, tuple], separate: bool = False) -> dict[str, Signal]:
    """Signals that are variables of the experiment: (sign, description, unit, family, expenses, source if any)."""
    found = {}
    for name, (sign, text, unit, family, expenses, *source) in rows.items():
        of = partial(derived.recorded, name=name)
        found[name] = Signal(sign, text, unit, family, of, expenses, "".join(source), separate=separate)
    return found


def _extents(which: str, height: str) -> dict[str, Signal]:
    """How far rays go up to one of the levels. All but the base's follow from the losses at the children's centres."""
    found, heights = {}, () if which == "base" else CENTRE
    for kind, own in WAYS.items():
        expenses = own if kind == "children" else (*heights, *own)
        for form, unit in (("multiple", "1"), ("radius", "distance")):
            text = f"mean {form} of rays along ± {kind} up to {height} + 0.1"
            measure = partial(derived.extent, kind=kind, which=which, form=form)
            found[f"extent, {kind}, {which}, {form}"] = Signal(+1, text, unit, SIZE, measure, expenses)
    random = partial(derived.extent, kind="random", which=which, form="multiple")
    text, source = f"mean multiple of filter-normalized random directions up to {height} + 0.1", "Li et al. 2018, arXiv"
    expenses = (*CENTRE, "random rays")
    found[f"extent, random, {which}"] = Signal(+1, text, "1", SIZE, random, expenses, f"{source} 1712.09913")
    down, text = partial(derived.along_gradient, which=which), f"distance along the negative gradient up to {height}"
    expenses = (*heights, "gradient rays")
    found[f"extent, gradient, {which}"] = Signal(+1, f"{text} + 0.1", "distance", SIZE, down, expenses)
    return found


def _lower_loss(experiment: xr.Dataset) -> xr.DataArray:
    return -derived.minibatch_loss(experiment)


def _random_extent(experiment: xr.Dataset) -> xr.DataArray:
    return derived.extent(experiment, "random", "median", "multiple")


# fmt: off
SIGNALS: dict[str, Signal] = {
    "minibatch_loss": Signal(
        -1, "mean minibatch loss of the last fifth so far", "nat", LOSS, derived.minibatch_loss, (), LAG),
    "TSE": Signal(-1, "sum of all minibatch losses so far", "nat", LOSS, derived.training_speed, (), TSE),
    "TSE-EMA": Signal(
        -1, "minibatch losses so far, exponentially averaged", "nat", LOSS, derived.averaged_speed, (), TSE),
    "extrapolated_loss": Signal(
        -1, "minibatch loss at the end of the training, by a power law", "nat", LOSS, derived.extrapolated, (),
        "Domhan et al. 2015"),
    "centre_loss": Signal(
        -1, "loss at the children's centre, on the probe examples", "nat", LOSS, derived.centre_loss, CENTRE),
    "thermal_excess": Signal(
        -1, "minibatch losses that the children met, above the loss at their centre", "nat", SIZE,
        derived.thermal_excess, CENTRE, "after Lau et al. 2023, arXiv 2308.12108"),
    "fast_loss": Signal(
        -1, "mean of the last minibatch losses of a short run at twice the step size", "nat", LOSS, derived.fast_loss,
        ("short run",), separate=True),
    **_recorded({
        "cosine_loss": (
            -1, "mean of the last minibatch losses of a short cosine run", "nat", LOSS, ("short run",)),
        "cosine_training_loss": (
            -1, "training loss after a short cosine run", "nat", LOSS, ("short run", "training loss"), LAG),
        "cosine_validation_loss": (-1, "validation loss after a short cosine run", "nat", VALIDATION, VALIDATED),
        "cosine_validation_accuracy": (+1, "validation accuracy after a short cosine run", "1", VALIDATION, VALIDATED),
    }, separate=True),
    **_recorded({
        "training_loss": (-1, "loss on all training examples", "nat", LOSS, ("training loss",)),
        "explorer_loss": (-1, "mean minibatch loss that the children met", "nat", LOSS, CHILDREN),
        "validation_loss": (-1, "loss on the validation examples", "nat", VALIDATION, ("validation",)),
        "validation_accuracy": (+1, "accuracy on the validation examples", "1", VALIDATION, ("validation",), EPOCH),
        "centre_validation_loss": (
            -1, "validation loss at the children's centre", "nat", VALIDATION, CENTRE_VALIDATION),
        "centre_validation_accuracy": (
            +1, "validation accuracy at the children's centre", "1", VALIDATION, CENTRE_VALIDATION),
        "reach": (+1, "mean distance of the children from the network", "distance", SIZE, CHILDREN),
        "gyration": (+1, "radius of gyration of the children", "distance", SIZE, CHILDREN),
        "diameter": (+1, "largest distance between two children", "distance", SIZE, CHILDREN),
        "effective_dimension": (+1, "participation ratio of the children's covariance", "1", SIZE, CHILDREN),
        "log_volume": (
            +1, "log volume of the simplex of the network and its children", "ln distance^K", SIZE, CHILDREN),
        "disagreement": (
            +1, "share of training examples on which two children disagree", "1", SIZE,
            (*CHILDREN, "children's predictions")),
        "validation_disagreement": (
            +1, "share of validation inputs on which two children disagree", "1", SIZE,
            (*CHILDREN, "children's validation predictions")),
        "hessian_trace": (
            -1, "trace of the Hessian", "nat / distance²", SIZE, ("hessian products",), "Hutchinson 1990"),
    }),
    "flagged_loss": Signal(
        +1, "validation accuracy and, as far as it agrees, minibatch loss and parameters", "1", VALIDATION,
        partial(derived.flagged, of=_lower_loss), ("validation",), "ours", combined=False),
    "flagged_size": Signal(
        +1, "validation accuracy and, as far as it agrees, extent along random directions and parameters", "1",
        VALIDATION, partial(derived.flagged, of=_random_extent), (*CENTRE, "random rays", "validation"), "ours",
        combined=False),
    **{name: each for level in derived.LEVELS.items() for name, each in _extents(*level).items()},
}
# fmt: on
