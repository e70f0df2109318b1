"""K networks of one shape as one batch (`torch.func`): losses, gradients, training, evaluation.

Any `nn.Module` goes in. Inputs and targets are either shared by all networks, (n, ...), or given to each, (K, n, ...).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

LossFn = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) → scalar mean loss
CALIBRATION_BINS = 15
ROWS = 2**16  # examples × networks evaluated at once: bounds memory


@dataclass(frozen=True)
class Ensemble:
    """K networks of one shape: a `network` that gives the shape, and every tensor stacked along a first axis K."""

    network: nn.Module
    parameters: dict[str, Tensor]  # name → (K, *shape)
    buffers: dict[str, Tensor]  # name → (K, *shape)

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __getitem__(self, index: Tensor | slice) -> "Ensemble":
        """The sub-ensemble (a copy) of the networks at `index`, which may repeat."""
        parameters, buffers = (
            {name: tensor[index].clone() for name, tensor in tensors.items()}
            for tensors in (self.parameters, self.buffers)
        )
        return Ensemble(self.network, parameters, buffers)


def stack(networks: Sequence[nn.Module]) -> Ensemble:
    """The ensemble of the given networks, which must have one shape.

    Raises:
        ValueError: no network, or networks of different shapes.
    """
    if not networks:
        raise ValueError("an ensemble needs at least one network; got none")
    shapes = [{name: tuple(tensor.shape) for name, tensor in n.state_dict().items()} for n in networks]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"network {i} has another shape than network 0: {shape} against {shapes[0]}")
    parameters, buffers = stack_module_state(list(networks))
    return Ensemble(networks[0], {name: p.detach().clone() for name, p in parameters.items()}, buffers)


def concatenate(ensembles: Sequence[Ensemble]) -> Ensemble:
    """One ensemble of all the networks of several, in order; all of one shape."""
    parameters, buffers = (
        {name: torch.cat([getattr(e, kind)[name] for e in ensembles]) for name in getattr(ensembles[0], kind)}
        for kind in ("parameters", "buffers")
    )
    return Ensemble(ensembles[0].network, parameters, buffers)


def vectors(ensemble: Ensemble) -> Float[Tensor, "k dim"]:
    """Every network's parameters as one row, in the order of `named_parameters`."""
    return torch.cat([p.flatten(1) for p in ensemble.parameters.values()], dim=1)


def at(ensemble: Ensemble, points: Float[Tensor, "*many dim"]) -> Ensemble:
    """The networks of this shape that lie at `points` of parameter space; buffers are those of the first network.

    Raises:
        ValueError: the points have another dimension than the networks have parameters.
    """
    sizes = [p[0].numel() for p in ensemble.parameters.values()]
    if points.shape[-1] != sum(sizes):
        raise ValueError(f"points of dimension {points.shape[-1]}, but the network has {sum(sizes)} parameters")
    pieces = points.reshape(-1, points.shape[-1]).split(sizes, dim=1)
    parameters = {
        name: piece.reshape(-1, *p.shape[1:])
        for (name, p), piece in zip(ensemble.parameters.items(), pieces, strict=True)
    }
    count = len(next(iter(parameters.values())))
    return Ensemble(
        ensemble.network,
        parameters,
        {n: b[:1].expand(count, *b.shape[1:]) for n, b in ensemble.buffers.items()},
    )


def losses(
    ensemble: Ensemble, inputs: Tensor, targets: Tensor, loss_fn: LossFn = nn.functional.cross_entropy
) -> Float[Tensor, " k"]:
    """The mean loss of every network over the examples, (K,) float64, in evaluation mode, chunk by chunk."""
    ensemble.network.eval()
    total = torch.zeros(len(ensemble), dtype=torch.float64, device=inputs.device)
    with torch.no_grad():
        for some in torch.arange(len(inputs), device=inputs.device).split(max(1, ROWS // len(ensemble))):
            total += _losses(ensemble, loss_fn, shared=True)(inputs[some], targets[some]).double() * len(some)
    return total / len(inputs)


def outputs(ensemble: Ensemble, inputs: Tensor) -> Tensor:
    """The outputs of every network on shared inputs, (K, n, ...), in evaluation mode."""
    ensemble.network.eval()
    with torch.no_grad():
        chunks = inputs.split(max(1, ROWS // len(ensemble)))
        return torch.cat([_forward(ensemble, shared=True)(chunk) for chunk in chunks], dim=1)


def gradients(
    ensemble: Ensemble, inputs: Tensor, targets: Tensor, loss_fn: LossFn = nn.functional.cross_entropy
) -> Float[Tensor, "k dim"]:
    """The gradient of every network's mean loss over shared examples, laid out like `vectors`, evaluation mode."""
    ensemble.network.eval()
    leaves = {name: p.detach().requires_grad_() for name, p in ensemble.parameters.items()}
    alive = Ensemble(ensemble.network, leaves, ensemble.buffers)
    total = _losses(alive, loss_fn, shared=True)(inputs, targets).sum()  # the networks do not meet: one backward
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(total, list(leaves.values()))], dim=1)


def minibatches(
    generators: Sequence[torch.Generator], examples: int, steps: int, batch: int
) -> Int[Tensor, "k steps batch"]:
    """Minibatch orders, one for each generator: each epoch is a fresh permutation, its ragged end left out.

    Raises:
        ValueError: a batch larger than the number of examples.
    """
    if not 1 <= batch <= examples:
        raise ValueError(f"a batch of {batch} does not fit into {examples} examples")
    per_epoch = examples // batch
    epochs = -(-steps // per_epoch)
    orders = [
        torch.cat([torch.randperm(examples, generator=g)[: per_epoch * batch] for _ in range(epochs)])
        for g in generators
    ]
    return torch.stack(orders)[:, : steps * batch].view(len(generators), steps, batch)


def constant(step_size: float, steps: int) -> Float[Tensor, " steps"]:
    """A constant step size."""
    return torch.full((steps,), step_size)


def cosine(step_size: float, steps: int) -> Float[Tensor, " steps"]:
    """A cosine from `step_size` to zero (Loshchilov & Hutter 2017, without restarts)."""
    return step_size * (1 + torch.cos(torch.pi * torch.arange(steps) / steps)) / 2


def train(
    ensemble: Ensemble,
    inputs: Tensor,
    targets: Tensor,
    order: Int[Tensor, "k steps batch"],
    step_sizes: Float[Tensor, "steps *k"],
    momentum: float = 0.9,
    milestones: Iterable[int] = (),
    loss_fn: LossFn = nn.functional.cross_entropy,
) -> Iterator[tuple[int, Ensemble, Float[Tensor, "k since"]]]:
    """Stochastic gradient descent with heavy-ball momentum on all networks at once; yields at milestones.

    v ← μ v + ∇L, θ ← θ − η v, as `torch.optim.SGD`. One ordinary backward pass of the summed losses gives every
    network its own gradient, as no network's loss depends on another's parameters.

    Args:
        ensemble: where to start; left as it is.
        inputs, targets: the training examples, (n, ...) and (n, ...).
        order: which examples each network sees at each step (from `minibatches`).
        step_sizes: (steps,) or, one for each network, (steps, K).
        milestones: steps after which to yield; the last step always does.

    Yields:
        (step, the networks after that many steps (a copy), minibatch losses (K, steps since the last milestone)).
    """
    ensemble.network.train()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in ensemble.parameters.items()}
    buffers = {name: b.clone() for name, b in ensemble.buffers.items()}
    current = Ensemble(ensemble.network, parameters, buffers)
    loss_of, leaves = _losses(current, loss_fn, shared=False), list(parameters.values())
    velocity = [torch.zeros_like(p) for p in leaves]
    steps, seen = order.shape[1], []
    sizes = step_sizes.tolist() if step_sizes.ndim == 1 else None
    marks = {*milestones, steps}
    for step in range(steps):
        batch = order[:, step].to(inputs.device)
        loss = loss_of(inputs[batch], targets[batch])
        slopes = torch.autograd.grad(loss.sum(), leaves)
        with torch.no_grad():
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, slopes)
            if sizes:
                torch._foreach_add_(leaves, velocity, alpha=-sizes[step])
            else:
                eta = step_sizes[step].to(inputs.device)
                scaled = [v * eta.view(-1, *[1] * (v.ndim - 1)) for v in velocity]
                torch._foreach_sub_(leaves, scaled)
        seen.append(loss.detach())
        if step + 1 in marks:
            frozen = Ensemble(ensemble.network, {n: p.detach() for n, p in parameters.items()}, buffers)
            yield step + 1, frozen[:], torch.stack(seen, dim=1)
            seen = []
            ensemble.network.train()  # whoever evaluated meanwhile has switched the mode


def evaluate(ensemble: Ensemble, inputs: Tensor, targets: Tensor) -> dict[str, Float[Tensor, " k"]]:
    """Accuracy, negative log-likelihood (nats) and expected calibration error of every classifier, each (K,) float64.

    ECE: Σ_b (n_b / n) |accuracy_b − confidence_b| over 15 equal bins of the top probability (Guo et al. 2017,
    arXiv 1706.04599, equation 3). A network whose outputs are not numbers scores NaN.
    """
    logp = outputs(ensemble, inputs).double().log_softmax(-1)  # (K, n, classes)
    k, n, _ = logp.shape
    confidence, guess = logp.max(-1)
    right = (guess == targets).double().where(~confidence.isnan(), torch.nan)
    picked = logp.gather(-1, targets.expand(k, n).unsqueeze(-1)).squeeze(-1)
    bins = (confidence.exp().nan_to_num() * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gap = torch.zeros(k, CALIBRATION_BINS, dtype=torch.float64, device=logp.device)
    gap.scatter_add_(1, bins, right - confidence.exp())
    return {"accuracy": right.mean(1), "nll": -picked.mean(1), "ece": gap.abs().sum(1) / n}


def _forward(ensemble: Ensemble, shared: bool) -> Callable[[Tensor], Tensor]:
    def one(parameters, buffers, inputs):
        return functional_call(ensemble.network, (parameters, buffers), (inputs,))

    batched = vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")
    return lambda inputs: batched(ensemble.parameters, ensemble.buffers, inputs)


def _losses(ensemble: Ensemble, loss_fn: LossFn, shared: bool) -> Callable[[Tensor, Tensor], Tensor]:
    forward = _forward(ensemble, shared)
    per_network = vmap(loss_fn, in_dims=(0, None if shared else 0))
    return lambda inputs, targets: per_network(forward(inputs), targets)
