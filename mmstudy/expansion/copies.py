"""Wider by copies: units are copied or split, and what reads them is shared out among the copies.

Copies that stay equal get equal gradients and never part; each way says what parts its own.
"""

import torch
from torch import Tensor

from mmstudy.core import arguments
from mmstudy.expansion.growth import NOISE, Growth, copied, direction, draw, gradients, normal
from mmstudy.expansion.plans import NEW, Plan, Touch, plan, transform, units_first
from mmstudy.expansion.surgery import rebuilt
from mmstudy.tracing.couplings import Use
from mmstudy.tracing.graph import CONSUMED, WEIGHT


def net2net(growth: Growth, noise: float = NOISE) -> tuple[Plan, Touch | None]:
    """Copy units drawn at random and split what reads them evenly; noise parts the copies.

    Without the noise they would stay equal for ever: equal weights have equal gradients and equal weight decay.
    Net2WiderNet: Chen, Goodfellow, Shlens 2016 (arXiv 1511.05641), equations 3 to 5.

    Raises:
        TypeError: the noise is no number.
        ValueError: it is negative or not finite.
    """
    if arguments.number(noise, "noise") < 0:
        raise ValueError(f"noise must not be negative; got {noise}")
    grown = plan(growth.coupling, copied(growth, growth.generator))
    makers = growth.coupling.makers()

    def touch(use: Use, tensor: Tensor) -> Tensor:
        if use in makers:
            new = slice(growth.coupling.size, None)
            tensor[new] += noise * tensor[: growth.coupling.size].std(correction=0) * normal(tensor[new], growth)
        return tensor

    return grown, touch if noise else None


def bert2bert(growth: Growth) -> tuple[Plan, Touch | None]:
    """Copy units drawn at random and split what reads them evenly: the copies stay equal until something parts them.

    Function-preserving initialization (FPI): Chen et al. 2022, bert2BERT (arXiv 2110.07143), section 3.2.
    """
    return net2net(growth, noise=0.0)


def bert2bert_advanced(growth: Growth) -> tuple[Plan, Touch | None]:
    """Copy units in turn, as `bert2bert`, but with the incoming weights of the same units of the next layer.

    Advanced knowledge initialization (AKI): Chen et al. 2022, bert2BERT (arXiv 2110.07143), section 3.3: neighbouring
    layers are alike, so that the function changes little, and the copies differ from what they copy. Second copies of
    a unit, beyond twice the size, are equal to the first.

    Raises:
        ValueError: no later layer has tensors of the same shapes.
    """
    grown = plan(growth.coupling, copied(growth))
    own = {name: p.detach() for name, p in growth.network.named_parameters()}
    makers = growth.coupling.makers()
    following = transform({use.tensor: own[_successor(use.tensor, own)] for use in makers}, grown)

    def touch(use: Use, tensor: Tensor) -> Tensor:
        if use in makers:
            later = units_first(following[use.tensor], use, growth.size)
            tensor[growth.coupling.size :] = later[growth.coupling.size :]
        return tensor

    return grown, touch


def _successor(name: str, tensors: dict[str, Tensor]) -> str:
    """The same tensor in the next layer: its name with one number raised by one."""
    parts = name.split(".")
    for i in reversed([i for i, part in enumerate(parts) if part.isdigit()]):
        later = ".".join([*parts[:i], str(int(parts[i]) + 1), *parts[i + 1 :]])
        if later in tensors and tensors[later].shape == tensors[name].shape:
            return later
    raise ValueError(f"bert2bert_advanced copies from the next layer, and {name} has no successor of its shape")


def lemon(growth: Growth) -> tuple[Plan, Touch | None]:
    """Copy units in turn and split what reads them unevenly, in random shares, so that the copies part by themselves.

    LEMON: Wang et al. 2023 (arXiv 2310.07999), section 4: lossless also for normalized widths that are no multiples,
    where the rest are averages, and what reads those is drawn (it reads zeros).
    """
    source = copied(growth)
    weight = 0.5 + torch.rand(growth.size, generator=growth.generator, dtype=torch.float64)
    copies = (source.unsqueeze(1) == torch.arange(growth.coupling.size)).double()
    grown = plan(growth.coupling, source, copies @ (1 / (copies.T @ weight)) * weight)
    return grown, draw(growth, grown, CONSUMED)


def hypercloning(growth: Growth, noise: float = NOISE) -> tuple[Plan, Touch | None]:
    """Clone all units the same number of times, split what reads them evenly, and part it by noise that cancels.

    HyperCloning: Samragh et al. 2024 (arXiv 2409.12903), section 3: exact, and the clones part by their readers.

    Raises:
        ValueError: the new size is no multiple of the old one.
    """
    n = growth.coupling.size
    if growth.size % n:
        raise ValueError(f"hypercloning takes whole copies: {growth.size} is no multiple of {n}")

    def touch(use: Use, tensor: Tensor) -> Tensor:
        if growth.coupling.reads(use):
            drawn = normal(tensor, growth).mul_(noise * tensor.std(correction=0)).unflatten(0, (-1, n))
            tensor += drawn.sub_(drawn.mean(0)).flatten(0, 1)  # in place: it may be large
        return tensor

    return plan(growth.coupling, torch.arange(growth.size) % n), touch


SPLIT_STEPS = 4


def firefly_cost(examples: int) -> int:
    """Example-evaluations of `firefly`: a forward and a backward pass over all examples for every step."""
    return 3 * SPLIT_STEPS * examples


def firefly(growth: Growth, noise: float = NOISE, steps: int = SPLIT_STEPS) -> tuple[Plan, Touch | None]:
    """Split units into w + d and w − d, each with half the readers, along the d that lowers the loss most.

    The function changes in second order in d alone. Splitting: Wu, Wang, Liu 2019 (arXiv 1910.02366); in the form of
    Firefly: Wu et al. 2020 (arXiv 2102.08574), which learns d by gradient descent. Here `steps` of power iteration,
    d ← c d − S d, where S d is what the difference of the twins' gradients shows of the curvature S, and c the largest
    |S d| seen, so that the lowest curvature wins and not the largest; |d| is `noise` times the norm of the weights.
    """
    n = growth.coupling.size
    source = copied(growth)
    grown = plan(growth.coupling, source)
    copies = torch.bincount(source[source != NEW], minlength=n)[source]
    turn = torch.arange(growth.size) // n  # which copy of its unit each is; an odd one out stays in the middle
    sign = torch.where((turn == copies - 1) & (copies % 2 == 1), 0, 1 - 2 * (turn % 2)).double()
    sign[source == NEW] = 0
    makers = growth.coupling.makers(WEIGHT)
    directions: dict[str, Tensor] = {}

    def touch(use: Use, tensor: Tensor) -> Tensor:
        if use not in makers:
            return tensor
        unit = directions.setdefault(use.tensor, direction(normal(tensor[:n], growth)))
        signs = sign.to(tensor).view(-1, *[1] * (tensor.ndim - 1))
        size = noise * tensor[:n].flatten(1).norm(dim=1).mean()
        return tensor + signs * size * unit[source.clamp(min=0)]

    network = rebuilt(growth.network, grown, growth.call)
    own = {use.tensor: growth.network.get_parameter(use.tensor).detach() for use in makers}
    largest: dict[str, Tensor] = {}
    for _ in range(steps):
        split = {name: tensor.requires_grad_() for name, tensor in transform(own, grown, touch).items()}
        slopes = gradients(growth.loss(network, split), [split[use.tensor] for use in makers])
        for use, slope in zip(makers, slopes, strict=True):
            rows = units_first(slope, use, growth.size)
            signed = rows * sign.to(rows).view(-1, *[1] * (rows.ndim - 1))
            bent = torch.zeros_like(rows[:n]).index_add_(0, source.clamp(min=0).to(rows.device), signed)
            norm = bent.flatten(1).norm(dim=1).view(-1, *[1] * (bent.ndim - 1))
            largest[use.tensor] = norm.maximum(largest.get(use.tensor, norm))
            lower = largest[use.tensor] * directions[use.tensor] - bent
            flat = (lower == 0).flatten(1).all(1).view_as(norm)  # no kink in reach: stay
            directions[use.tensor] = torch.where(flat, directions[use.tensor], direction(lower))
    return grown, touch
