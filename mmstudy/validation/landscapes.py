"""Analytic loss landscapes of known size: the truth that the estimators are tested on.

A landscape is a function from points (..., dim) to losses (...); next to each stands the exact radius of its
sub-level set along a direction, and its volume.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Landscape
from mmstudy.manifold.volume import log_ball


def ellipsoid(curvatures: Float[Tensor, " dim"]) -> Landscape:
    """L(θ) = ½ Σ hᵢ θᵢ², minimal at the origin; a curvature of 0 is a flat direction."""
    return lambda points: 0.5 * (curvatures * points**2).sum(-1)


def ellipsoid_radius(
    curvatures: Float[Tensor, " dim"], directions: Float[Tensor, "*many dim"], level: float
) -> Float[Tensor, "*many"]:
    """How far one can go from the origin until the loss is `level`: √(2ℓ / uᵀHu), infinite along a flat direction."""
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return (2 * level / (curvatures * unit**2).sum(-1)).sqrt()


def ellipsoid_log_volume(curvatures: Float[Tensor, " dim"], level: float) -> float:
    """ln of the volume of {L ≤ level}: ln V_D + ½ Σ ln(2ℓ/hᵢ), infinite with a flat direction."""
    return log_ball(len(curvatures)) + 0.5 * float((2 * level / curvatures.double()).log().sum())


def stationary_variance(
    curvatures: Float[Tensor, " dim"], noise: float, step_size: float, momentum: float
) -> Float[Tensor, " dim"]:
    """The variance of each coordinate of SGD with heavy-ball momentum, long after its start, on an ellipsoid.

    With gradient noise N(0, σ²): η σ² (1 + μ) / (h (1 − μ) (2 (1 + μ) − η h)), by solving the covariance's fixed point
    Σ = A Σ Aᵀ + η² σ² B of the linear recursion in (θ, v); infinite along a flat direction, where it diffuses.
    """
    h, eta, mu = curvatures, step_size, momentum
    return eta * noise**2 * (1 + mu) / (h * (1 - mu) * (2 * (1 + mu) - eta * h))


def gaussian_density(variances: Float[Tensor, " dim"]) -> Landscape:
    """The density over unit directions of Gaussian draws with these variances, over the uniform one.

    Angular central Gaussian (Tyler 1987): |Λ|^(−1/2) (uᵀΛ⁻¹u)^(−D/2), Λ the diagonal of the variances.
    """
    dim = len(variances)
    return lambda unit: (unit**2 / variances).sum(-1) ** (-dim / 2) / variances.prod().sqrt()


def ring(radius: float = 1.0, stiffness: float = 1.0) -> Landscape:
    """L(θ) = ½ k (‖θ‖ − R)²: a circle of minima in 2-D, a spherical shell in more dimensions."""
    return lambda points: 0.5 * stiffness * (points.norm(dim=-1) - radius) ** 2


def ring_radius(angle: Tensor, radius: float, stiffness: float, level: float) -> Tensor:
    """The first exit from the ring's sub-level set, seen from a minimum θ = (R, 0), at `angle` to the outward normal.

    The set is the annulus R − w ≤ ‖θ‖ ≤ R + w with w = √(2ℓ/k). The ray leaves through the inner circle if it
    meets it (a chord; beyond the hole it would enter again, which does not count), else through the outer one.
    """
    w = (2 * level / stiffness) ** 0.5
    cosine = torch.cos(angle)
    outer = -radius * cosine + ((radius * cosine) ** 2 + (radius + w) ** 2 - radius**2).sqrt()
    discriminant = (radius * cosine) ** 2 + (radius - w) ** 2 - radius**2
    inner = -radius * cosine - discriminant.clamp(min=0).sqrt()
    hits_the_hole = (discriminant >= 0) & (cosine < 0) & (w < radius)
    return torch.where(hits_the_hole, inner, outer)


def shell_log_volume(dim: int, radius: float, stiffness: float, level: float, points: int = 100_001) -> float:
    """ln of the volume that is seen from a minimum of the ring or, in more dimensions, the shell, by quadrature.

    vol = A_{D−2}/D ∫₀^π r(φ)^D sin(φ)^{D−2} dφ, φ the angle to the outward normal and A_{D−2} = 2π^{(D−1)/2}/Γ((D−1)/2)
    the surface of the unit sphere in D − 1 dimensions; r from `ring_radius`. The midpoint rule, as r jumps where the
    ray first meets the hole.
    """
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * math.pi / points
    surface = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
    exponent = dim * ring_radius(angle, radius, stiffness, level).log() + (dim - 2) * angle.sin().log()
    return surface - math.log(dim) + float(exponent.logsumexp(0)) + math.log(math.pi / points)


def barrier(height: float = 1.0) -> Landscape:
    """L(θ) = height · (θ₁² − 1)²: two minima at θ₁ = ±1, cut from each other by a barrier of `height` at 0."""
    return lambda points: height * (points[..., 0] ** 2 - 1) ** 2


def factorization(target: Float[Tensor, "rows columns"], hidden: int) -> Landscape:
    """L(U, V) = ½‖U V − M‖²_F on points (U, V) of dim hidden · (rows + columns), M the target: a linear network."""
    rows, columns = target.shape

    def loss(points: Tensor) -> Tensor:
        left = points[..., : rows * hidden].unflatten(-1, (rows, hidden))
        right = points[..., rows * hidden :].unflatten(-1, (hidden, columns))
        return 0.5 * (left @ right - target.to(points)).square().sum((-1, -2))

    return loss


def factorization_minimum(target: Float[Tensor, "rows columns"], hidden: int) -> Float[Tensor, " dim"]:
    """The balanced point U V = M, UᵀU = V Vᵀ = the singular values of M.

    Raises:
        ValueError: a target of rank above `hidden`, which no U V equals.
    """
    if (rank := int(torch.linalg.matrix_rank(target))) > hidden:
        raise ValueError(f"a target of rank {rank} has no factors with hidden={hidden}: take hidden ≥ {rank}")
    left, values, right = torch.linalg.svd(target, full_matrices=False)
    roots = torch.zeros(hidden).to(target)
    used = min(hidden, len(values))
    roots[:used] = values[:used].sqrt()
    u = torch.nn.functional.pad(left[:, :used], (0, hidden - used)) * roots
    v = torch.nn.functional.pad(right[:used], (0, 0, 0, hidden - used)) * roots.unsqueeze(1)
    return torch.cat([u.flatten(), v.flatten()])


def factorization_dimension(rows: int, columns: int, hidden: int, rank: int) -> int:
    """The dimension of {U V = M} for M of this rank, and the nullity of the Hessian at its generic points.

    The Jacobian (dU, dV) → dU V + U dV misses (rows − rank U)(columns − rank V) of the matrices. The U of rank a whose
    columns span those of M have a · hidden + (a − rank)(rows − a) dimensions, the V for each of them
    (hidden − a) · columns; the set's dimension is the largest sum, a from `rank` to min(rows, hidden). It is hidden²
    for hidden = rank, and hidden · (rows + columns) − rows · columns for hidden ≥ rows + columns − rank. The balanced
    minimum is such a generic point for hidden = rank; for more the set crosses itself there.

    Raises:
        ValueError: a rank that no such product has.
    """
    if not 0 <= rank <= min(rows, columns, hidden):
        raise ValueError(f"no product of {rows} × {hidden} and {hidden} × {columns} matrices has rank {rank}")
    ranks = range(rank, min(rows, hidden) + 1)
    return max(a * hidden + (a - rank) * (rows - a) + (hidden - a) * columns for a in ranks)


def duplicated(inputs: Float[Tensor, "n features"], weight: Float[Tensor, " features"], outgoing: float) -> Landscape:
    """L(w₁, w₂, a₁, a₂) = ½ meanₓ (a₁ relu(w₁x) + a₂ relu(w₂x) − a relu(w x))²: two neurons that learn one.

    Points have dim 2 · features + 2, in this order. w₁ = w₂ = w, a₁ + a₂ = a are the minima with two copies.
    """
    features = len(weight)
    target = outgoing * (inputs @ weight).relu()

    def loss(points: Tensor) -> Tensor:
        incoming = points[..., : 2 * features].unflatten(-1, (2, features))
        hidden = (incoming @ inputs.T.to(points)).relu()  # (..., 2, n)
        return 0.5 * ((points[..., -2:].unsqueeze(-1) * hidden).sum(-2) - target.to(points)).square().mean(-1)

    return loss


def duplicated_minimum(weight: Float[Tensor, " features"], first: float, second: float) -> Float[Tensor, " dim"]:
    """Two copies of a neuron, with outgoing weights a₁ = first and a₂ = second, that sum to the original's."""
    return torch.cat([weight, weight, weight.new_tensor([first, second])])


def duplicated_flat(
    weight: Float[Tensor, " features"], first: float, second: float
) -> Float[Tensor, "features_and_2 dim"]:
    """All flat directions at `duplicated_minimum`: features + 2, independent, as rows.

    Nearby the loss is a function of a₁w₁ + a₂w₂ alone, as long as no input crosses a neuron's boundary, and has a
    strict minimum in it if the inputs with w x > 0 span the space. So the flat directions are: exchange of outgoing
    weight, a₁ + a₂ = const, straight and without end; rescaling of the first neuron, (w₁, a₁) → (s w₁, a₁/s), curved;
    and for each feature the neurons leaning apart, w₁ + a₂ t eⱼ and w₂ − a₁ t eⱼ, straight until an input crosses.
    """
    features, zeros = len(weight), torch.zeros_like(weight)
    exchange = torch.cat([zeros, zeros, weight.new_tensor([1.0, -1.0])])
    rescale = torch.cat([weight, zeros, weight.new_tensor([-first, 0.0])])
    unit = torch.eye(features).to(weight)
    lean = torch.cat([second * unit, -first * unit, unit.new_zeros(features, 2)], dim=1)
    return torch.cat([torch.stack([exchange, rescale]), lean])
