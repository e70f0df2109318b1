"""The loss as a function of parameter space: what every estimator of size takes, be it a landscape or networks."""

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial, reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmstudy.batched import engine, hooks
from mmstudy.batched.augmentation import Take
from mmstudy.batched.derivatives import ComposedWeightNorm
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, at, at_once, classification, parts_of
from mmstudy.batched.modes import measuring
from mmstudy.batched.replay import recorded
from mmstudy.batched.tape import Function
from mmstudy.batched.training import minibatches
from mmstudy.core import arguments, precision

MINIBATCH = 128

Landscape = Callable[[Tensor], Tensor]  # points (..., dim) → losses (...); an `Objective` is one too
Term = Callable[[Float[Tensor, "n dim"], Int[Tensor, " n"]], Float[Tensor, " n"]]  # (points, owners) → losses
Noisy = Callable[[Float[Tensor, "n dim"], Int[Tensor, " n"], Tensor], Float[Tensor, " n"]]
Draws = Callable[[Sequence[torch.Generator], int], Tensor]  # (generators, steps) → (generators, steps, ...)


@dataclass(frozen=True)
class Objective:
    """A loss over parameter space, with its stochastic version and what both cost.

    Points belong to a parent (their owner), whose buffers a network at that point has. All points are evaluated in
    batches of `at_once`, and a loss is a sum of differentiable `terms`, so that memory stays bounded.
    """

    terms: Sequence[Term]
    noisy: Noisy  # the loss that a step of training sees, given its draw
    draws: Draws  # the draws of some independent streams
    examples: int  # cost of one loss, in example-evaluations
    batch: int  # cost of one noisy loss, likewise
    at_once: int
    noisy_at_once: Callable[[], int]  # looked at when something is trained: some batches can be measured only
    normalization: str = "none"  # what batch normalization uses, if there is any
    network: nn.Module | None = None  # whose training mode the losses set
    parents: int | None = None  # how many; None where they differ in nothing but their points

    def __call__(self, points: Float[Tensor, "m *many dim"]) -> Float[Tensor, "m *many"]:
        """The loss at points of each parent (first axis), float64, without gradient."""
        return self.at_points(*self._flat(points)).view(points.shape[:-1])

    def at_points(self, points: Float[Tensor, "n dim"], owner: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss at any points of these owners, float64, without gradient."""
        if not points.shape[0]:
            return points.new_zeros(0, dtype=torch.float64)
        with precision.full():
            (total,) = engine.in_pieces(self._losses, self.at_once, points, owner)
        return total

    def gradient(
        self, points: Float[Tensor, "m *many dim"]
    ) -> tuple[Float[Tensor, "m *many"], Float[Tensor, "m *many dim"]]:
        """The loss, float64, and its gradient at points of each parent."""
        with precision.full():
            value, gradient = engine.in_pieces(self._gradients, self.at_once, *self._flat(points))
        return value.view(points.shape[:-1]), gradient.view(points.shape)

    def noisy_gradient(
        self, points: Float[Tensor, "n dim"], owner: Int[Tensor, " n"], draw: Tensor
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n dim"]]:
        """The noisy loss, and its gradient, at any points of these owners, each with a draw of its own."""
        with precision.full():
            draw = draw.to(points.device)
            value, gradient = engine.in_pieces(self._noisy_gradients, self.noisy_at_once(), points, owner, draw)
        return value, gradient

    def hessian_vector(
        self, points: Float[Tensor, "m dim"], vectors: Float[Tensor, "m p dim"]
    ) -> Float[Tensor, "m p dim"]:
        """H(θ) v for several vectors at a point of each parent (Pearlmutter 1994), which share its gradient.

        Attention runs unfused: fused, it has no H. Weight normalization is composed: torch's own has a wrong one on the
        CPU.

        Raises:
            ValueError: networks with hooks on gradients (`hooks.refuse`).
        """
        if self.network is not None:
            hooks.refuse(self.network)
        owner, probes = torch.arange(len(points), device=points.device), vectors.transpose(0, 1)
        together = max(1, self.at_once // 2)  # a second backward pass keeps about twice as much
        rows: list[Tensor] = []
        with sdpa_kernel(SDPBackend.MATH), ComposedWeightNorm(), precision.full():
            for some in engine.pieces(len(points), max(1, together // len(probes))):
                products = [_curved(term, points[some], owner[some], probes[:, some], together) for term in self.terms]
                rows.append(sum(products))  # type: ignore[arg-type]  # of one term or more
        return torch.cat(rows, dim=1).transpose(0, 1)

    def _flat(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points as rows, and the parent of each."""
        if points.ndim < 2 or (self.parents is not None and len(points) > self.parents):
            raise ValueError(f"points must be (parents, …, dim), of {self.parents} parents; got {tuple(points.shape)}")
        return points.reshape(-1, points.shape[-1]), _owners(len(points), points.shape[1:-1].numel(), points.device)

    @cached_property
    def _losses(self) -> Function:
        terms = self.terms

        def losses(points: Tensor, owner: Tensor) -> tuple[Tensor]:
            return (reduce(operator.add, (term(points, owner).double() for term in terms)),)

        return recorded(losses, self.network)

    @cached_property
    def _gradients(self) -> Function:
        parts = [
            engine.gradients(term, self.network) for term in self.terms
        ]  # one after another: one graph at a time is kept

        def value_and_gradient(points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = zip(*(part(points, owner) for part in parts), strict=True)
            return sum(v.double() for v in value), sum(gradient)

        return value_and_gradient

    @cached_property
    def _noisy_gradients(self) -> Function:
        return engine.gradients(self.noisy, self.network)


def of_landscape(landscape: Callable[[Tensor], Tensor], dim: int, noise: float = 0.0) -> Objective:
    """A function of points (..., dim) as an objective; training on it sees gradients with N(0, noise²) added.

    Raises:
        TypeError: no function, or numbers that are none.
        ValueError: fewer than one dimension, or noise that is negative or not finite.
    """
    arguments.function(landscape, "landscape", "a function of points (..., dim) → losses (...)")
    dim = arguments.whole(dim, "dim", 1)
    if arguments.number(noise, "noise") < 0:
        raise ValueError(f"noise is a standard deviation, at least 0; got {noise}")

    def draws(generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return torch.stack([noise * torch.randn(steps, dim, generator=g, dtype=torch.float64) for g in generators])

    def noisy(points: Tensor, owner: Tensor, draw: Tensor) -> Tensor:
        return landscape(points) + (draw.to(points) * points).sum(-1)

    return Objective((lambda points, owner: landscape(points),), noisy, draws, 1, 1, 2**22 // dim, lambda: 2**22 // dim)


def of_networks(
    ensemble: Ensemble,
    batch: Batch,
    loss_fn: LossFn = classification,
    training: Batch | None = None,
    minibatch: int | None = None,
    normalization: str = "frozen",
    take: Take = engine.take,
) -> Objective:
    """The loss of networks of one shape on a fixed batch, as a function of all their parameters.

    Args:
        ensemble: the parents; a point of the i-th parent has the i-th network's buffers.
        loss_fn: (model, batch) → the mean loss of the batch's examples.
        training: the examples that training draws minibatches from; the batch itself if none are given.
        minibatch: their size; by default 128, or all examples if there are fewer.
        normalization: what batch normalization uses: the parent's own statistics ("frozen"), or those of the batch at
            every point ("recomputed").
        take: how a step of training makes a minibatch of draws; `Objective.draws` draws the examples as they are.

    Raises:
        ValueError: a minibatch larger than the examples, or, once gradients are asked for, a loss that has none.
    """
    network, examples = ensemble.network, engine.count(batch)
    training = batch if training is None else training
    several = engine.count(training)
    minibatch = min(MINIBATCH, several) if minibatch is None else arguments.whole(minibatch, "minibatch", 1, several)
    with measuring(network, normalization):
        parts = parts_of(ensemble, batch, loss_fn, normalization)

    def term(part: Batch) -> Term:
        share = engine.count(part) / examples

        def loss(points: Tensor, owner: Tensor) -> Tensor:
            with measuring(network, normalization):
                here = at(ensemble, points, owner)
                mean = engine.mapped(network, loss_fn, here.parameters, here.buffers, part, shared=True).double()
            return _differentiable(mean if len(parts) == 1 else share * mean, points)

        return loss

    def draws(generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return minibatches(generators, engine.count(training), steps, minibatch)

    def noisy(points: Tensor, owner: Tensor, draw: Tensor) -> Tensor:
        with measuring(network, "recomputed", training=True):
            here, some = at(ensemble, points, owner), take(training, draw)
            losses = engine.mapped(network, loss_fn, here.parameters, here.buffers, some, shared=False)
            return _differentiable(losses, points)

    @cache
    def noisy_most() -> int:
        with measuring(network, "recomputed", training=True):
            return at_once(ensemble, engine.take(training, slice(minibatch)), loss_fn, shared=False)

    with measuring(network, normalization):
        most = at_once(ensemble, parts[0], loss_fn)
    parents = len(ensemble) if ensemble.buffers else None
    costs = examples, minibatch, most, noisy_most
    return Objective(tuple(map(term, parts)), noisy, draws, *costs, normalization, network, parents)


def _differentiable(losses: Tensor, points: Tensor) -> Tensor:
    """The losses, once it is known that they have the gradient that is asked for."""
    if points.requires_grad and not losses.requires_grad:
        raise ValueError(
            "the loss has no gradient: it was detached, or does not depend on the parameters. Compute it from the "
            "model's outputs, or take a size that needs none, such as rays"
        )
    return losses


def _curved(term: Term, points: Tensor, owner: Tensor, probes: Float[Tensor, "p n dim"], together: int) -> Tensor:
    here = points.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(term(here, owner).sum(), here, create_graph=True)
    if not gradient.requires_grad:  # a linear loss has no curvature
        return torch.zeros_like(probes)
    again = partial(torch.autograd.grad, gradient, here, retain_graph=True, materialize_grads=True)
    if together > 1:
        with suppress(RuntimeError):  # group normalization, say, has no rule for several
            return torch.cat([again(some, is_grads_batched=True)[0].expand_as(some) for some in probes.split(together)])
    return torch.stack([again(probe)[0] for probe in probes])


@lru_cache(maxsize=64)  # a search asks for the same ones at every step
def _owners(parents: int, points: int, device: torch.device) -> Int[Tensor, " n"]:
    """The parent of each of so many points of each parent; not to be changed."""
    return torch.arange(parents, device=device).repeat_interleave(points)
