"""K networks of one shape as one batch (`torch.func`): losses, outputs, gradients, scores.

Any `nn.Module` goes in. Examples come as a batch: a tree of tensors that share their first axis, such as a
`tasks.Split`. The loss is a function of (model, batch); `classification` is what is used where none is given.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmstudy.batched import costs, engine, hooks, places
from mmstudy.batched.engine import Batch, LossFn, Model
from mmstudy.batched.likeness import difference, tensors_differ
from mmstudy.batched.modes import measuring
from mmstudy.core import arguments
from mmstudy.core.networks import named_tensors
from mmstudy.core.threads import alone


@dataclass(frozen=True)
class Ensemble:
    """K networks of one shape: a `network` that gives the shape, and every tensor stacked along a first axis K."""

    network: nn.Module
    parameters: dict[str, Tensor]  # name → (K, *shape)
    buffers: dict[str, Tensor]  # name → (K, *shape)

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def members(self) -> list[nn.Module]:
        """The networks, each a module of its own with copies of its tensors."""
        found = []
        for k in range(len(self)):
            member = copy.deepcopy(self.network)
            own = named_tensors(member)
            for name, tensor in (self.parameters | self.buffers).items():
                own[name].data = tensor[k].detach().clone()
            found.append(member)
        return found

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Ensemble":
        """The sub-ensemble (a copy) of the networks at `index`, which may repeat."""
        index = [index] if isinstance(index, int) else index
        parameters, buffers = (
            {name: tensor[index].clone() for name, tensor in tensors.items()}
            for tensors in (self.parameters, self.buffers)
        )
        return Ensemble(self.network, parameters, buffers)


@alone
def stack(networks: nn.Module | Sequence[nn.Module]) -> Ensemble:
    """The ensemble of the given networks, or of one, which must have one shape; tied tensors stay one.

    Parameters that are frozen (`requires_grad` is false) are buffers: they are no dimensions, and training leaves them.

    Raises:
        TypeError: something else than modules.
        ValueError: no network, or networks that differ in more than their numbers (`likeness.difference`), or
            parameters that are not all of one device and one type, which must be float32 or float64; networks that are
            frozen altogether.
    """
    networks = arguments.networks(networks)
    for i, network in enumerate(networks):
        _same_form(networks[0], network, f"network {i}", "network 0")
    own = [_tensors(network) for network in networks]
    kinds = {(p.device, p.dtype) for network in networks for p in network.parameters()}
    if len(kinds) != 1:
        raise ValueError(f"all parameters must be on one device and of one type; found {sorted(map(str, kinds))}")
    if not {dtype for _, dtype in kinds} <= {torch.float32, torch.float64}:
        raise ValueError(f"parameters must be float32 or float64, not {kinds.pop()[1]}: call network.float() first")
    parameters, buffers = (
        {name: torch.stack([tensors[name].detach() for tensors in kind]) for name in kind[0]}
        for kind in zip(*own, strict=True)
    )
    return Ensemble(hooks.first(networks), parameters, buffers)


def _tensors(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What can be trained, and what cannot."""
    named = dict(network.named_parameters())
    frozen = {name: p for name, p in named.items() if not p.requires_grad}
    return {name: p for name, p in named.items() if p.requires_grad}, frozen | dict(network.named_buffers())


def _same_form(first: nn.Module, other: nn.Module, name: str, than: str) -> None:
    if found := difference(first, other):
        raise ValueError(f"{name} is another network than {than}, whose forward pass all would have: {found}")


def concatenate(ensembles: Sequence[Ensemble]) -> Ensemble:
    """One ensemble of all the networks of several, in order.

    Raises:
        ValueError: ensembles whose networks differ in more than their numbers, in device or type.
    """
    for i, other in enumerate(ensembles):
        same_kind(ensembles[0], other, f"ensemble {i}", "ensemble 0")
    parameters, buffers = (
        {name: torch.cat([getattr(e, kind)[name] for e in ensembles]) for name in getattr(ensembles[0], kind)}
        for kind in ("parameters", "buffers")
    )
    return Ensemble(hooks.first([e.network for e in ensembles]), parameters, buffers)


def same_kind(first: Ensemble, other: Ensemble, name: str, than: str) -> None:
    """Check that networks of both may be in one ensemble.

    Raises:
        ValueError: they differ in more than their numbers, or in device, type or shape of their tensors.
    """
    _same_form(first.network, other.network, name, than)
    if found := tensors_differ(first.parameters | first.buffers, other.parameters | other.buffers):
        raise ValueError(f"{name} and {than} differ in {found}")


def vectors(ensemble: Ensemble) -> Float[Tensor, "k dim"]:
    """Every network's parameters as one row, in the order of `named_parameters`."""
    return torch.cat([p.reshape(len(p), -1) for p in ensemble.parameters.values()], dim=1)


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
        name: piece.reshape(len(piece), *p.shape[1:])
        for (name, p), piece in zip(ensemble.parameters.items(), pieces, strict=True)
    }
    many = len(pieces[0])
    whose = torch.zeros(many, dtype=torch.long) if owner is None else owner.reshape(-1)
    return Ensemble(ensemble.network, parameters, {n: b[whose.to(b.device)] for n, b in ensemble.buffers.items()})


def classification(model: Model, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of a batch (inputs, targets); of sentences, over their tokens too.

    `cross_entropy` in operations that `vmap` batches well.

    Raises:
        ValueError: targets of another shape than the outputs (*many, classes) have without their last axis.
    """
    inputs, targets = batch
    found = model(inputs)
    if found.shape[:-1] != targets.shape:
        shapes = f"outputs {tuple(found.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"the classes must be the outputs' last axis, and targets have the others; got {shapes}")
    return -found.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()


def regression(model: Model, batch: tuple[Tensor, Tensor]) -> Float[Tensor, ""]:
    """Mean squared error of a batch (inputs, targets).

    Raises:
        ValueError: targets of another shape than the outputs, which would broadcast.
    """
    inputs, targets = batch
    found = model(inputs)
    if found.shape != targets.shape:
        shapes = f"outputs {tuple(found.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"targets must have the shape of the outputs (unsqueeze(-1)?); got {shapes}")
    return (found - targets).square().mean()


MEANS = (classification, regression)  # of the examples, whatever they are
FAR = 1e-3  # what rounding may make of a loss far from the parameters, as a share


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
    return total / engine.count(batch)  # type: ignore[return-value]  # of one part or more


def parts_of(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, normalization: str) -> list[Batch]:
    """The batch in parts that are evaluated one after another, their losses to be weighted by their examples.

    One part where the statistics of the batch are what normalizes, where the network mixes examples, or where the loss
    is no mean over them (class weights, masks). With a loss of this module the network is tried on a few examples,
    once; another loss is cut only where memory asks for it, and only if its parts add up on this batch.
    """
    same_device(ensemble, batch)
    if normalization == "recomputed":
        return [batch]
    mean = loss_fn in (*MEANS, output)
    limit = costs.EXAMPLES if mean else engine.count(batch)
    most = costs.examples_at_once(ensemble.network, ensemble.parameters, ensemble.buffers, batch, loss_fn, limit)
    parts = [engine.take(batch, part) for part in engine.pieces(engine.count(batch), most)]
    if len(parts) == 1:
        return parts
    adds_up = _apart(ensemble, batch, loss_fn) if mean else _adds_up(ensemble, batch, parts, loss_fn)
    return parts if adds_up else [batch]


def _apart(ensemble: Ensemble, batch: Batch, loss_fn: LossFn) -> bool:
    """Whether the network takes each example by itself: tried on a few from all over the batch."""
    known = costs.learnt(ensemble.network, loss_fn)
    if "one by one" not in known:
        last = engine.count(batch) - 1
        few = engine.take(batch, torch.linspace(0, last, 16, device=engine.tensors(batch)[0].device).long())
        known["one by one"] = _adds_up(
            ensemble, few, [engine.take(few, part) for part in engine.pieces(16, 8)], loss_fn
        )
    return known["one by one"]


def _adds_up(ensemble: Ensemble, batch: Batch, parts: list[Batch], loss_fn: LossFn) -> bool:
    """Whether what the batch gives is what its parts give, at random places near and far: no two examples are alike."""
    first = ensemble[:1]
    near, far = (replace(first, parameters=places.moved(first.parameters, far)) for far in (False, True))
    return _add_up(near, batch, parts, loss_fn, 1e-5) and _add_up(far, batch, parts, loss_fn, FAR, blindly=True)


def _add_up(
    there: Ensemble, batch: Batch, parts: list[Batch], loss_fn: LossFn, rounding: float, blindly: bool = False
) -> bool:
    """Whether they do there; `blindly`, also where that is no finite number."""
    with torch.no_grad():
        whole, *found = [losses_of(there, some, loss_fn).double() for some in (batch, *parts)]
    if loss_fn is output:
        together = torch.cat(found, dim=1)
    else:
        shares = [engine.count(part) / engine.count(batch) for part in parts]
        together = sum(share * loss for share, loss in zip(shares, found, strict=True))  # type: ignore[assignment]
    scale = max(1.0, *(float(each.abs().max()) for each in (whole, *found)))
    if blindly and not (whole.isfinite().all() and together.isfinite().all()):
        return True
    return whole.shape == together.shape and bool(((whole - together).abs() <= rounding * scale).all())


def at_once(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, shared: bool = True) -> int:
    """How many networks of this shape, in the mode in which the network is, go into one call on such a batch.

    Args:
        shared: whether all are called with the same batch, or each with one of its own.
    """
    device = same_device(ensemble, batch)
    tensors = ensemble.parameters, ensemble.buffers
    return costs.at_once(costs.cost(ensemble.network, *tensors, batch, loss_fn, shared), device)


def losses_of(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, shared: bool = True) -> Float[Tensor, "k ..."]:
    """What `loss_fn` says of every network, differentiable, in the mode in which the network is.

    On one batch that all networks share, or with batches of their own, (K, n, ...); in one call as many as fit.
    """
    rows, most = [], at_once(ensemble, batch if shared else engine.take(batch, 0), loss_fn, shared)
    for some in engine.pieces(len(ensemble), most):
        kinds = (ensemble.parameters, ensemble.buffers)
        parameters, buffers = ({n: t[some] for n, t in kind.items()} for kind in kinds)
        own = batch if shared else engine.take(batch, some)
        rows.append(engine.mapped(ensemble.network, loss_fn, parameters, buffers, own, shared))
    return torch.cat(rows)


def outputs(ensemble: Ensemble, inputs: Tensor) -> Tensor:
    """The outputs of every network on shared inputs, (K, n, ...), in evaluation mode."""
    with torch.no_grad(), measuring(ensemble.network):
        parts = parts_of(ensemble, inputs, output, "frozen")
        return torch.cat([losses_of(ensemble, part, output) for part in parts], dim=1)


def output(model: Model, inputs: Tensor) -> Tensor:
    """The outputs themselves, as a loss function."""
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
