"""Stochastic gradient descent on many points of parameter space at once; minibatch orders, step-size schedules."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmstudy.batched import engine
from mmstudy.batched.augmentation import Take
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, at, at_once, classification, vectors
from mmstudy.core import arguments
from mmstudy.core.networks import evaluating
from mmstudy.core.threads import ALONE

# (points, step) → the loss at each, stochastic where it draws on the step, and its gradient
Gradient = Callable[[Float[Tensor, "n dim"], int], tuple[Float[Tensor, " n"], Float[Tensor, "n dim"]]]


def minibatches(
    generators: Sequence[torch.Generator], examples: int, steps: int, batch: int
) -> Int[Tensor, "k steps batch"]:
    """Minibatch orders, one for each generator: each epoch is a fresh permutation, its ragged end left out.

    Raises:
        TypeError: what is no generator, or numbers that are not whole.
        ValueError: a batch larger than the number of examples, fewer than one step, or more than fit into memory.
    """
    for each in generators:
        arguments.generator(each)
    given = {"examples": examples, "steps": steps, "batch": batch}
    examples, steps, batch = (arguments.whole(value, name, 1) for name, value in given.items())
    if batch > examples:
        raise ValueError(f"a batch of {batch} does not fit into {examples} examples")
    arguments.fits(8 * len(generators) * steps * batch, f"an order of {steps} minibatches of {batch}")
    per_epoch = examples // batch
    epochs = -(-steps // per_epoch)
    orders = [
        torch.cat([torch.randperm(examples, generator=g)[: per_epoch * batch] for _ in range(epochs)])
        for g in generators
    ]
    return torch.stack(orders)[:, : steps * batch].view(len(generators), steps, batch)


def constant(step_size: float, steps: int) -> Float[Tensor, " steps"]:
    """A constant step size.

    Raises:
        TypeError: no numbers.
        ValueError: a step size that is not above 0 or not finite, or a negative number of steps.
    """
    _schedule(step_size, steps)
    return torch.full((steps,), step_size)


def cosine(step_size: float, steps: int) -> Float[Tensor, " steps"]:
    """A cosine from `step_size` to zero (Loshchilov & Hutter 2017, without restarts).

    Raises:
        TypeError: no numbers.
        ValueError: a step size that is not above 0 or not finite, or a negative number of steps.
    """
    _schedule(step_size, steps)
    return step_size * (1 + torch.cos(torch.pi * torch.arange(steps) / steps)) / 2


def _schedule(step_size: float, steps: int) -> None:
    arguments.number(step_size, "step_size", 0)
    arguments.whole(steps, "steps")


def sgd(
    gradient: Gradient,
    points: Float[Tensor, "n dim"],
    step_sizes: Float[Tensor, "steps *n"],
    momentum: float = 0.9,
    milestones: Iterable[int] = (),
) -> Iterator[tuple[int, Float[Tensor, "n dim"], Float[Tensor, "n since"]]]:
    """Gradient descent with heavy-ball momentum on all points at once; yields at milestones.

    v ← μ v + ∇L, θ ← θ − η v, as `torch.optim.SGD`.

    Args:
        gradient: (points, step) → losses and their gradients, stochastic where they draw on the step.
        points: where to start; left as they are.
        step_sizes: (steps,) or, one for each point, (steps, n).
        milestones: steps after which to yield; the last step always does.

    Yields:
        (step, a copy of the points after that many steps, losses met since the last milestone (n, steps since)).

    Raises:
        TypeError: a momentum that is no number.
        ValueError: step sizes that are not finite, or a momentum outside of [0, 1).
    """
    momentum = arguments.momentum(momentum)
    if not step_sizes.isfinite().all():
        raise ValueError(f"step_sizes has {int((~step_sizes.isfinite()).sum())} numbers that are NaN or infinite")
    here, velocity, seen = points.detach().clone(), torch.zeros_like(points), []
    steps = len(step_sizes)
    marks = {*milestones, steps}
    for step, rate in enumerate(step_sizes.to(points).reshape(steps, -1, 1)):
        loss, change = gradient(here, step)
        velocity.mul_(momentum).add_(change)
        here.addcmul_(rate, velocity, value=-1)
        seen.append(loss)
        if step + 1 in marks:
            yield step + 1, here.clone(), torch.stack(seen, dim=1)
            seen = []


def train(
    ensemble: Ensemble,
    data: Batch,
    order: Int[Tensor, "k steps batch"],
    step_sizes: Float[Tensor, "steps *k"],
    momentum: float = 0.9,
    milestones: Iterable[int] = (),
    loss_fn: LossFn = classification,
    take: Take = engine.take,
) -> Iterator[tuple[int, Ensemble, Float[Tensor, "k since"]]]:
    """`sgd` on networks in training mode, each with minibatches of its own; running statistics follow.

    The ensemble's network is in training mode only while it is called, and then in its own again.

    Args:
        ensemble: where to start; left as it is.
        data: the training examples.
        order: which examples each network sees at each step (from `minibatches`).
        take: (training examples, some of the order) → a minibatch; `augmentation.take` takes variants of images.

    Yields:
        (step, the networks after that many steps (a copy), minibatch losses (K, steps since the last milestone)).

    Raises:
        TypeError: as `sgd`.
        ValueError: as `sgd`; or the order names an example that is not there (unless `take` is another one).
    """
    count = engine.count(data)
    if take is engine.take and order.numel() and not 0 <= int(order.min()) <= int(order.max()) < count:
        raise ValueError(f"the order names examples {int(order.min())} to {int(order.max())}; there are {count}")
    network, order = ensemble.network, order.to(engine.tensors(data)[0].device)
    names, buffers = list(ensemble.buffers), [b.clone() for b in ensemble.buffers.values()]
    with ALONE, evaluating(network):
        network.train()
        most = at_once(ensemble, take(data, order[0, 0]), loss_fn, shared=False)

    def losses(points: Tensor, some: Tensor, *statistics: Tensor) -> Tensor:
        here, running = at(ensemble, points).parameters, dict(zip(names, statistics, strict=True))
        with ALONE, evaluating(network):
            network.train()
            return engine.mapped(network, loss_fn, here, running, take(data, some), shared=False)

    learn, seen_at = engine.gradients(losses, network), order.unbind(1)

    def gradient(points: Tensor, step: int) -> tuple[Tensor, Tensor]:
        loss, change = engine.in_pieces(learn, most, points, seen_at[step], *buffers)
        return loss, change

    for step, points, seen in sgd(gradient, vectors(ensemble), step_sizes, momentum, milestones):
        copied = {name: b.clone() for name, b in zip(names, buffers, strict=True)}
        yield step, Ensemble(network, at(ensemble, points).parameters, copied), seen
