"""K networks of one shape as one batch (`torch.func`): losses, outputs, gradients, scores.

Any `nn.Module` goes in. Examples come as a batch: a tree of tensors that share their first axis, such as a
`tasks.Split`. The loss is a function of (model, batch); `classification` is what is used where none is given.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn, Model
from mmstudy.batched.replay import ALONE
from mmstudy.core.networks import evaluating

CALIBRATION_BINS = 15
NORMALIZATION = ("frozen", "recomputed")


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
    """The ensemble of the given networks, which must have one shape; tied tensors stay one.

    Parameters that are frozen (`requires_grad` is false) are buffers: they are no dimensions, and training leaves them.

    Raises:
        ValueError: no network, or networks of different shapes, or parameters that are not all of one device and one
            type, which must be float32 or float64; networks that are frozen altogether, or not in the same places.
    """
    if not networks:
        raise ValueError("an ensemble needs at least one network; got none")
    shapes = [{name: tuple(tensor.shape) for name, tensor in n.state_dict().items()} for n in networks]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"network {i} has another shape than network 0: {shape} against {shapes[0]}")
    own = [_tensors(network) for network in networks]
    for i, network in enumerate(networks):  # the first one's forward pass is that of all
        if str(network) != str(networks[0]) or list(own[i][0]) != list(own[0][0]):
            raise ValueError(f"network {i} has other layers, tied or frozen tensors than network 0: {network}")
    if not own[0][0]:
        raise ValueError("the networks have no parameter to train: requires_grad_(True) on what shall be measured")
    kinds = {(p.device, p.dtype) for network in networks for p in network.parameters()}
    if len(kinds) != 1:
        raise ValueError(f"all parameters must be on one device and of one type; found {sorted(map(str, kinds))}")
    if not {dtype for _, dtype in kinds} <= {torch.float32, torch.float64}:
        raise ValueError(f"parameters must be float32 or float64, not {kinds.pop()[1]}: call network.float() first")
    parameters, buffers = (
        {name: torch.stack([tensors[name].detach() for tensors in kind]) for name in kind[0]}
        for kind in zip(*own, strict=True)
    )
    return Ensemble(networks[0], parameters, buffers)


def _tensors(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What can be trained, and what cannot."""
    named = dict(network.named_parameters())
    frozen = {name: p for name, p in named.items() if not p.requires_grad}
    return {name: p for name, p in named.items() if p.requires_grad}, frozen | dict(network.named_buffers())


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


def at(ensemble: Ensemble, points: Float[Tensor, "*many dim"], owner: Int[Tensor, " *many"] | None = None) -> Ensemble:
    """The networks of this shape that lie at `points` of parameter space.

    Args:
        owner: which network's buffers (running statistics) a point has; the first one's where none is given.

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
    many = len(pieces[0])
    whose = torch.zeros(many, dtype=torch.long) if owner is None else owner.reshape(-1)
    return Ensemble(ensemble.network, parameters, {n: b[whose.to(b.device)] for n, b in ensemble.buffers.items()})


def classification(model: Model, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of a batch (inputs, targets); of sentences, over their tokens too.

    `cross_entropy` in operations that `vmap` batches well.
    """
    inputs, targets = batch
    return -model(inputs).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()


def regression(model: Model, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean squared error of a batch (inputs, targets)."""
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def losses(
    ensemble: Ensemble, batch: Batch, loss_fn: LossFn = classification, normalization: str = "frozen"
) -> Float[Tensor, " k"]:
    """The mean loss of every network over the examples, (K,) float64, in evaluation mode.

    Args:
        normalization: what batch normalization uses: its stored statistics ("frozen"), or those of all the examples,
            which then go in at once ("recomputed").
    """
    with torch.no_grad(), measuring(ensemble.network, normalization):
        parts = parts_of(ensemble, batch, loss_fn, normalization)
        total = sum(losses_of(ensemble, part, loss_fn).double() * engine.count(part) for part in parts)
    return total / engine.count(batch)


def parts_of(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, normalization: str) -> list[Batch]:
    """The batch in parts that are evaluated one after another; one part where its statistics are what normalizes."""
    same_device(ensemble, batch)
    most = engine.count(batch)
    if normalization != "recomputed":
        most = engine.examples_at_once(ensemble.network, ensemble.parameters, ensemble.buffers, batch, loss_fn)
    return [engine.take(batch, part) for part in engine.pieces(engine.count(batch), most)]


def at_once(ensemble: Ensemble, batch: Batch, loss_fn: LossFn) -> int:
    """How many networks of this shape, in the mode in which the network is, go into one call on such a batch."""
    device = same_device(ensemble, batch)
    return engine.at_once(engine.cost(ensemble.network, ensemble.parameters, ensemble.buffers, batch, loss_fn), device)


def losses_of(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, shared: bool = True) -> Float[Tensor, "k ..."]:
    """What `loss_fn` says of every network, differentiable, in the mode in which the network is.

    On one batch that all networks share, or with batches of their own, (K, n, ...); in one call as many as fit.
    """
    rows, most = [], at_once(ensemble, batch if shared else engine.take(batch, 0), loss_fn)
    for some in engine.pieces(len(ensemble), most):
        tensors = [{n: t[some] for n, t in kind.items()} for kind in (ensemble.parameters, ensemble.buffers)]
        own = batch if shared else engine.take(batch, some)
        rows.append(engine.mapped(ensemble.network, loss_fn, *tensors, own, shared))
    return torch.cat(rows)


def example_losses(ensemble: Ensemble, batch: Batch, loss_fn: LossFn = classification) -> Float[Tensor, "k n"]:
    """The loss of every network on every example alone, (K, n) float64, in evaluation mode."""
    single = tree_map(lambda leaf: leaf.unsqueeze(1) if isinstance(leaf, Tensor) else leaf, batch)
    n, rows = engine.count(batch), []
    with torch.no_grad(), measuring(ensemble.network):
        for i, point in enumerate(vectors(ensemble)):
            same = at(ensemble, point.expand(n, -1), torch.full((n,), i))  # a view: one network, not n
            rows.append(losses_of(same, single, loss_fn, shared=False))
    return torch.stack(rows).double()


def examples_for(error: float, differences: Float[Tensor, "k n"]) -> int:
    """How many examples tell two networks' losses apart to a standard error, both being evaluated on the same ones.

    n = mean s²(l_a − l_b) / error², s² the variance over examples, the mean over pairs of networks (a, b): what is hard
    for both cancels, so that pairing takes fewer examples than each network's own s² would.

    Args:
        error: of a difference of two mean losses, nats; its root mean square over pairs.
        differences: l_a − l_b of some pairs like those to be told apart, on some examples (from `example_losses`).

    Raises:
        ValueError: an error that is not positive, no pair, fewer than two examples, differences that are not finite.
    """
    pairs, examples = differences.shape
    broken = int((~differences.isfinite()).sum())
    if not 0 < error < math.inf or not pairs or examples < 2 or broken:
        found = f"error={error}, {pairs} pairs, {examples} examples, {broken} differences not finite"
        raise ValueError(
            f"needs an error > 0, and finite differences of a pair of networks on ≥ 2 examples; got {found}"
        )
    return max(1, math.ceil(differences.double().var(1).mean().item() / error**2))


def outputs(ensemble: Ensemble, inputs: Tensor) -> Tensor:
    """The outputs of every network on shared inputs, (K, n, ...), in evaluation mode."""
    with torch.no_grad(), measuring(ensemble.network):
        return torch.cat(
            [losses_of(ensemble, some, _output) for some in parts_of(ensemble, inputs, _output, "frozen")], dim=1
        )


def evaluate(ensemble: Ensemble, batch: tuple[Tensor, Tensor]) -> dict[str, Float[Tensor, " k"]]:
    """Accuracy, negative log-likelihood (nats) and expected calibration error of every classifier, each (K,) float64.

    ECE: Σ_b (n_b / n) |accuracy_b − confidence_b| over 15 equal bins of the top probability (Guo et al. 2017,
    arXiv 1706.04599, equation 3). A network whose outputs are not numbers scores NaN.
    """
    inputs, targets = batch
    logp = outputs(ensemble, inputs).double().log_softmax(-1)  # (K, n, classes)
    k, n, _ = logp.shape
    confidence, guess = logp.max(-1)
    right = (guess == targets).double().where(~confidence.isnan(), torch.nan)
    picked = logp.gather(-1, targets.expand(k, n).unsqueeze(-1)).squeeze(-1)
    bins = (confidence.exp().nan_to_num() * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gap = torch.zeros(k, CALIBRATION_BINS, dtype=torch.float64, device=logp.device)
    gap.scatter_add_(1, bins, right - confidence.exp())
    return {"accuracy": right.mean(1), "nll": -picked.mean(1), "ece": gap.abs().sum(1) / n}


@contextmanager
def measuring(network: nn.Module, normalization: str = "frozen", training: bool = False) -> Iterator[None]:
    """The network in evaluation mode for a while, TF32 off, batch normalization as said; then all as it was.

    With `training`, everything is in training mode, but running statistics don't follow.

    Raises:
        ValueError: an unknown normalization.
    """
    if normalization not in NORMALIZATION:
        raise ValueError(f"unknown normalization {normalization!r}; known: {', '.join(NORMALIZATION)}")
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked, shortcuts = [m.track_running_stats for m in norms], torch.backends.mha.get_fastpath_enabled()
    with ALONE, evaluating(network), engine.exact():
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it has no derivative
            network.train(training)
            for module in norms if normalization == "recomputed" else ():
                module.training, module.track_running_stats = True, False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(shortcuts)
            for module, track in zip(norms, tracked, strict=True):
                module.track_running_stats = track


def _output(model: Model, inputs: Tensor) -> Tensor:
    return model(inputs)


def same_device(ensemble: Ensemble, batch: Batch) -> torch.device:
    """Where the networks and the examples are.

    Raises:
        ValueError: they are on several devices.
    """
    device = next(iter(ensemble.parameters.values())).device
    if elsewhere := {str(leaf.device) for leaf in engine.tensors(batch)} - {str(device)}:
        raise ValueError(f"the networks are on {device}, examples on {', '.join(elsewhere)}: move one of them")
    return device
