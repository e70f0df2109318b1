"""The loss as a function of parameter space: what every estimator of size takes, be it a landscape or networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmstudy import engine
from mmstudy.engine import Batch, LossFn
from mmstudy.ensemble import Ensemble, at, classification, losses_of, measuring, parts_of
from mmstudy.training import minibatches

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
    normalization: str = "none"  # what batch normalization uses, if there is any

    def __call__(self, points: Float[Tensor, "m *many dim"]) -> Float[Tensor, "m *many"]:
        """The loss at points of each parent (first axis), float64, without gradient."""
        return self.at_points(*_flat(points)).view(points.shape[:-1])

    def at_points(self, points: Float[Tensor, "n dim"], owner: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss at any points of these owners, float64, without gradient."""
        with torch.no_grad():
            rows = [
                sum(term(points[some], owner[some]).double() for term in self.terms)
                for some in engine.pieces(len(points), self.at_once)
            ]
        return torch.cat(rows) if rows else points.new_zeros(0, dtype=torch.float64)

    def gradient(
        self, points: Float[Tensor, "m *many dim"]
    ) -> tuple[Float[Tensor, "m *many"], Float[Tensor, "m *many dim"]]:
        """The loss, float64, and its gradient at points of each parent."""
        flat, owner = _flat(points)
        value, slope = flat.new_zeros(len(flat), dtype=torch.float64), torch.zeros_like(flat)
        for some in engine.pieces(len(flat), self.at_once):
            for term in self.terms:
                here = flat[some].detach().requires_grad_()
                part = term(here, owner[some])
                with engine.exact():
                    slope[some] += torch.autograd.grad(part.sum(), here)[0]
                value[some] += part.detach()
        return value.view(points.shape[:-1]), slope.view(points.shape)

    def hessian_vector(
        self, points: Float[Tensor, "m *many dim"], vectors: Float[Tensor, "m *many dim"]
    ) -> Float[Tensor, "m *many dim"]:
        """H(θ) v for each point and vector (Pearlmutter 1994). Attention runs unfused: fused, it has no H."""
        (flat, owner), along, product = _flat(points), vectors.reshape(-1, vectors.shape[-1]), torch.zeros_like(vectors)
        rows = product.view(-1, vectors.shape[-1])
        with sdpa_kernel(SDPBackend.MATH), engine.exact():
            for some in engine.pieces(len(flat), max(1, self.at_once // 2)):
                for term in self.terms:
                    here = flat[some].detach().requires_grad_()
                    (slope,) = torch.autograd.grad(term(here, owner[some]).sum(), here, create_graph=True)
                    if slope.requires_grad:  # a linear loss has no curvature
                        (second,) = torch.autograd.grad((slope * along[some]).sum(), here, allow_unused=True)
                        rows[some] += 0 if second is None else second
        return product


def of_landscape(landscape: Callable[[Tensor], Tensor], dim: int, noise: float = 0.0) -> Objective:
    """A function of points (..., dim) as an objective; training on it sees gradients with N(0, noise²) added."""

    def draws(generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return torch.stack([noise * torch.randn(steps, dim, generator=g, dtype=torch.float64) for g in generators])

    def noisy(points: Tensor, owner: Tensor, draw: Tensor) -> Tensor:
        return landscape(points) + (draw.to(points) * points).sum(-1)

    return Objective((lambda points, owner: landscape(points),), noisy, draws, 1, 1, 2**22 // dim)


def of_networks(
    ensemble: Ensemble,
    batch: Batch,
    loss_fn: LossFn = classification,
    training: Batch | None = None,
    minibatch: int = 128,
    normalization: str = "frozen",
) -> Objective:
    """The loss of networks of one shape on a fixed batch, as a function of all their parameters.

    Args:
        ensemble: the parents; a point of the i-th parent has the i-th network's buffers.
        loss_fn: (model, batch) → the mean loss of the batch's examples.
        training: the examples that training draws minibatches of this size from; the batch itself if none are given.
        normalization: what batch normalization uses: the parent's own statistics ("frozen"), or those of the batch at
            every point ("recomputed").
    """
    network, examples = ensemble.network, engine.count(batch)
    training = batch if training is None else training
    parts = parts_of(batch, normalization)

    def term(part: Batch) -> Term:
        share = engine.count(part) / examples

        def loss(points: Tensor, owner: Tensor) -> Tensor:
            with measuring(network, normalization):
                return share * losses_of(at(ensemble, points, owner), part, loss_fn).double()

        return loss

    def draws(generators: Sequence[torch.Generator], steps: int) -> Tensor:
        return minibatches(generators, engine.count(training), steps, minibatch)

    def noisy(points: Tensor, owner: Tensor, draw: Tensor) -> Tensor:
        with measuring(network, "recomputed", training=True):
            some = engine.take(training, draw.to(engine.tensors(training)[0].device))
            return losses_of(at(ensemble, points, owner), some, loss_fn, shared=False)

    with measuring(network, normalization):
        taken = engine.cost(network, ensemble.parameters, ensemble.buffers, parts[0], loss_fn)
    at_once = engine.at_once(taken, engine.tensors(batch)[0].device)
    return Objective(tuple(map(term, parts)), noisy, draws, examples, minibatch, at_once, normalization)


def _flat(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points as rows, and the parent of each."""
    owners = torch.arange(len(points), device=points.device)
    per_parent = points[0, ..., 0].numel()
    return points.reshape(-1, points.shape[-1]), owners.repeat_interleave(per_parent)
