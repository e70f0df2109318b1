"""Loss landscapes with degenerate minima whose learning coefficient is known: the truth for `llc`.

The coefficient λ of a minimum says how the volume of {L ≤ ε} about it shrinks: as ε^λ (ln 1/ε)^(m−1), ε → 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmstudy.validation.landscapes import Landscape


def ellipsoid_coefficient(curvatures: Float[Tensor, " dim"]) -> float:
    """λ of `landscapes.ellipsoid`: half the number of directions that curve; a flat one counts nothing."""
    return float((curvatures > 0).sum()) / 2


def monomials(orders: tuple[int, ...]) -> Landscape:
    """L(θ) = Σ θᵢ^(2kᵢ), minimal at the origin: k = 1 is quadratic, k = 2 quartic."""
    return lambda points: (points ** (2 * torch.tensor(orders, device=points.device))).sum(-1)


def monomials_coefficient(orders: tuple[int, ...]) -> float:
    """λ = Σ 1/(2kᵢ), of multiplicity 1: {L ≤ ε} scales as ε^(1/(2kᵢ)) along the i-th axis."""
    return sum(1 / (2 * k) for k in orders)


def factorization_coefficient(rows: int, columns: int, hidden: int, rank: int) -> float:
    """λ of `landscapes.factorization`, ½‖U V − M‖² with M of this rank, at its most singular minimum.

    Aoyagi & Watanabe 2005 (reduced-rank regression). With s = hidden + rank: rows·columns/2 for s ≥ rows + columns;
    (hidden·n + rank·(N − hidden))/2 for the shorter side n and the longer N where s ≤ N − n; else
    (2 s (rows + columns) − (rows − columns)² − s² + odd)/8, with odd = 1 if rows + columns + s is odd, else 0. For
    hidden = rank, where {U V = M} is a smooth manifold, it is half its codimension, rank·(rows + columns − rank)/2.

    Raises:
        ValueError: a rank that no such product has.
    """
    if not 0 <= rank <= min(rows, columns, hidden):
        raise ValueError(f"no product of {rows} × {hidden} and {hidden} × {columns} matrices has rank {rank}")
    short, long, total = min(rows, columns), max(rows, columns), hidden + rank
    if total >= rows + columns:
        return rows * columns / 2
    if short + hidden <= long + rank:
        return (hidden * short + rank * (long - hidden)) / 2
    odd = (rows + columns + total) % 2
    return (2 * total * (rows + columns) - (rows - columns) ** 2 - total**2 + odd) / 8
