"""What one could compute before a candidate is trained in full, each with all there is to say of it: `PREDICTORS`.

To add one, enter it here or, from outside, in the dictionary: `PREDICTORS["mine"] = Predictor(...)`. Each declares
beforehand which sign its relation to the gain is expected to have.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.engine import Batch
from mmstudy.batched.ensemble import Ensemble, losses, vectors
from mmstudy.batched.objective import of_networks
from mmstudy.core import networks
from mmstudy.manifold.curvature import PRODUCT
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.study import rivals

STATIC, LOSS, VALIDATION, SIZE = FAMILIES = ("static", "training loss", "validation", "size")


def check_declared(what: str, sign: Any, family: Any) -> None:
    """Refuse what an entry declares, if it is no sign or no family.

    Raises:
        ValueError: names the value, and what there is.
    """
    if sign not in (1, -1):
        raise ValueError(f"{what} declares the sign 1 or -1; got sign={sign!r}")
    if family not in FAMILIES:
        raise ValueError(f"{what}'s family is one of {', '.join(FAMILIES)}; got family={family!r}")


@dataclass(frozen=True)
class Predictor:
    """A number for each candidate right after expansion, and what is expected of it.

    Attributes:
        sign: +1 where a larger value is expected to go with a larger gain, −1 where a smaller one is.
        description: what it is, in a few words.
        unit: of the number.
        family: one of `FAMILIES`; each has a colour in figures.
        source: the paper.
        compute: (networks, probe examples) → one number for each network.
        passes: its cost: so many passes over each example.
        examples: the examples that it takes, if there are more.
        combined: whether its ranks are also averaged with those of the parameter count.
    """

    sign: int
    description: str
    unit: str = "1"
    family: str = STATIC
    source: str = ""
    compute: Callable[[Ensemble, Batch], Tensor] = field(kw_only=True)
    passes: float | int = 0
    examples: float | int = math.inf
    combined: bool = True

    def __post_init__(self):
        check_declared("a predictor", self.sign, self.family)
        if not (self.passes >= 0 and self.examples > 0):
            cost = f"passes={self.passes}, examples={self.examples}"
            raise ValueError(f"a predictor costs passes ≥ 0 over examples > 0; got {cost}")


def parameters(ensemble: Ensemble, batch: Batch) -> Tensor:
    """The number of parameters, of each network alike."""
    return torch.full((len(ensemble),), networks.count_parameters(ensemble.network))


def flops(ensemble: Ensemble, batch: Batch) -> Tensor:
    """Floating-point operations of a forward pass on one example, of each network alike."""
    return torch.full((len(ensemble),), networks.count_flops(ensemble.network, batch[0][:1]))


def gradient_norm(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """‖∇L‖₂ of every network over the examples."""
    _, gradients = of_networks(ensemble, batch).gradient(vectors(ensemble))
    return gradients.norm(dim=1)


PREDICTORS: dict[str, Predictor] = {
    "parameters": Predictor(+1, "parameters of the candidate", family=STATIC, compute=parameters, combined=False),
    "flops": Predictor(
        +1,
        "floating-point operations of one forward pass on one example",
        "flop",
        STATIC,
        compute=flops,
        combined=False,
    ),
    "loss": Predictor(-1, "loss right after expansion", "nat", STATIC, compute=losses, passes=1),
    "gradient_norm": Predictor(
        +1,
        "norm of the loss gradient right after expansion; its square is the gain of gradient flow at first order",
        "nat",
        STATIC,
        "Evci et al. 2022, arXiv 2201.05125 (GradMax)",
        compute=gradient_norm,
        passes=3,
    ),
    "snip": Predictor(
        +1,
        "sum of |parameter × its gradient| (SNIP)",
        "nat",
        STATIC,
        "Lee et al. 2019, arXiv 1810.02340; Abdelfattah et al. 2021, arXiv 2101.08134",
        compute=rivals.snip,
        passes=3,
    ),
    "grasp": Predictor(
        +1,
        "−θᵀHg, what shrinking the parameters adds to ½‖gradient‖² (GraSP)",
        "nat²",
        STATIC,
        "Wang et al. 2020, arXiv 2002.07376; Abdelfattah et al. 2021, arXiv 2101.08134",
        compute=rivals.grasp,
        passes=6 + PRODUCT,  # g, g again with its graph, and a pass back through that
    ),
    # three passes over one input of ones, which count as nothing, as do those of `flops`
    "synflow": Predictor(
        +1,
        "log of the sum of |parameter × its gradient| of the flow of ones (SynFlow)",
        "1",
        STATIC,
        "Tanaka et al. 2020, arXiv 2006.05467; Abdelfattah et al. 2021, arXiv 2101.08134",
        compute=rivals.synflow,
    ),
    "fisher": Predictor(
        +1,
        "trace of the empirical Fisher matrix of the parameters",
        "nat²",
        STATIC,
        "Abdelfattah et al. 2021, arXiv 2101.08134",
        compute=rivals.fisher,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "jacobian_covariance": Predictor(
        +1,
        "score of how little the input Jacobians of examples correlate",
        "1",
        STATIC,
        "Mellor et al. 2021, arXiv 2006.04647v1; Abdelfattah et al. 2021, arXiv 2101.08134",
        compute=rivals.jacobian_covariance,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "gradient_confusion": Predictor(
        -1,
        "− the least inner product of two minibatch gradients",
        "nat²",
        STATIC,
        "Sankararaman et al. 2020, arXiv 1904.06963",
        compute=rivals.gradient_confusion,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "gradient_cosine": Predictor(
        +1,
        "least cosine of two minibatch gradients",
        "1",
        STATIC,
        "Sankararaman et al. 2020, arXiv 1904.06963",
        compute=rivals.gradient_cosine,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "gradient_diversity": Predictor(
        +1,
        "sum of squared norms of the examples' gradients over that of their sum",
        "1",
        STATIC,
        "Yin et al. 2018, arXiv 1706.05699",
        compute=rivals.gradient_diversity,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "ntk_condition": Predictor(
        -1,
        "condition number of the empirical neural tangent kernel",
        "1",
        STATIC,
        "Chen et al. 2021, arXiv 2102.11535",
        compute=rivals.ntk_condition,
        passes=3,
        examples=rivals.KERNEL,
    ),
    "sam_sharpness": Predictor(
        -1,
        "rise of the loss at SAM's ascent step",
        "nat",
        STATIC,
        "Foret et al. 2021, arXiv 2010.01412",
        compute=rivals.sam_sharpness,
        passes=4,
    ),
    "hessian_top": Predictor(
        -1,
        "eigenvalue of the Hessian of the largest magnitude",
        "nat / distance²",
        STATIC,
        "Yao et al. 2020, arXiv 1912.07145",
        compute=rivals.hessian_top,
        passes=PRODUCT * (1 + rivals.ITERATIONS),
    ),
    "natural_gain": Predictor(
        +1,
        "gᵀ(F + 0.01)⁻¹g, twice the gain promised to a damped natural-gradient step",
        "nat",
        STATIC,
        "Mitchell et al. 2023, arXiv 2307.04526",
        compute=rivals.natural_gain,
        passes=3,
        examples=rivals.EXAMPLES,
    ),
    "tiny": Predictor(
        +1,
        "what the layers' best updates gain at first order, summed over layers (TINY)",
        "nat²",
        STATIC,
        "Verbockhaven et al. 2024, arXiv 2405.19816",
        compute=rivals.tiny,
        passes=3,
    ),
}


def start_values(ensemble: Ensemble, batch: Batch) -> dict[str, Tensor]:
    """What is computed right after expansion, by name, one number for each network.

    Raises:
        ValueError: a predictor gives anything but one number for each network.
    """
    values = {name: each.compute(ensemble, batch) for name, each in PREDICTORS.items()}
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.shape != (len(ensemble),):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"predictor {name!r} must give a tensor with one number for each network; got {got}")
    return values


def variables(others: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """(unit, long name) of every predictor, of its standard error, and of other variables of the experiment.

    Raises:
        ValueError: a predictor has the name of another variable.
    """
    if taken := sorted(PREDICTORS.keys() & others.keys()):
        raise ValueError(f"the experiment has variables {taken} already: enter the predictor by another name")
    found = dict(others)
    found |= {name: (each.unit, each.description) for name, each in PREDICTORS.items()}
    for name, each in ESTIMATORS.items():
        found[f"{name}_size"] = each.unit, f"{each.description}, at the children's centre"
        found[f"{name}_size_se"] = each.unit, f"standard error of {name}_size"
        found[f"{name}_size_status"] = "1", f"ok where {name}_size can be trusted, and else why not"
        found[f"{name}_size_cost"] = "example-evaluations", f"cost of {name}_size alone"
    return found
