"""The directions that rays go: drawn, relative to filters, or along what training has explored."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.ensemble import Ensemble, at
from mmstudy.batched.objective import Objective
from mmstudy.core import arguments


def uniform(parents: Float[Tensor, "m dim"], count: int, generator: torch.Generator) -> Float[Tensor, "m count dim"]:
    """Uniform unit directions, the same for every parent.

    Raises:
        TypeError: no generator, or a count that is no whole number.
        ValueError: fewer than one direction, or more than fit into memory.
    """
    _check(parents, count, generator)
    draw = torch.randn(count, parents.shape[1], generator=generator, dtype=torch.float64)
    return (draw / draw.norm(dim=1, keepdim=True)).to(parents).expand(len(parents), -1, -1)


def filter_normalized(
    ensemble: Ensemble, parents: Float[Tensor, "m dim"], count: int, generator: torch.Generator
) -> Float[Tensor, "m count dim"]:
    """Random directions in which every filter has the norm of the parent's filter (Li et al. 2018, arXiv 1712.09913).

    A filter is one row of a weight; biases and other vectors get zero, as in the paper. A multiple of such a
    direction is a relative change: it does not respond to a rescaling of ReLUs that is the same for all units of a
    layer; where each unit has its own, the next layer's rows change in proportion, and it does respond.

    Args:
        ensemble: networks whose shape says what the filters are.

    Raises:
        TypeError: no generator, or a count that is no whole number.
        ValueError: fewer than one direction, or more than fit into memory.
    """
    _check(parents, count, generator)
    pieces = []
    for parameter in at(ensemble, parents).parameters.values():
        flat = parameter.detach().flatten(2) if parameter.ndim > 2 else torch.zeros_like(parameter).unsqueeze(-1)
        draw = torch.randn((count, *flat.shape[1:]), generator=generator).to(flat)  # the same for all parents
        unit = draw / draw.norm(dim=-1, keepdim=True)
        pieces.append((unit * flat.norm(dim=-1)[:, None, :, None]).flatten(2))
    return torch.cat(pieces, dim=-1)


def _check(parents: Float[Tensor, "m dim"], count: int, generator: torch.Generator) -> None:
    arguments.generator(generator)
    arguments.whole(count, "count", 1)
    arguments.fits(8 * count * parents.shape[1], f"{count} directions of {parents.shape[1]} parameters")


def from_centre(children: Float[Tensor, "m k dim"]) -> Float[Tensor, "m 2*k dim"]:
    """From the children's centre to each child, then the opposite ways."""
    away = children - children.mean(1, keepdim=True)
    return torch.cat([away, -away], dim=1)


def differences(children: Float[Tensor, "m k dim"]) -> Float[Tensor, "m k dim"]:
    """From each child to the one before it, the first's being the last."""
    return children - children.roll(-1, dims=1)


def preconditioner(
    objective: Objective, parents: Float[Tensor, "m dim"], probes: int, generator: torch.Generator, floor: float = 1e-3
) -> Float[Tensor, "m dim"]:
    """A scale for each coordinate, |diag H|^(−1/2), in which the loss is about equally stiff: for `volume.directions`.

    diag H by Hutchinson's estimator E[z ⊙ Hz] with Rademacher z (Bekas et al. 2007), from below bounded by
    `floor` times its largest entry.
    """
    draw = torch.randint(0, 2, (probes, parents.shape[1]), generator=generator).to(parents) * 2 - 1
    z = draw.expand(len(parents), -1, -1)
    diagonal = (z * objective.hessian_vector(parents, z)).mean(1).abs()
    return torch.maximum(diagonal, floor * diagonal.amax(1, keepdim=True)).rsqrt()
