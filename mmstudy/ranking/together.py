"""Networks of one shape trained as one: the user's optimizer makes its step on their stacked parameters.

That is the step that each would have made alone, as far as an optimizer treats every number by itself, as those in
`ELEMENTWISE` do; and the gradients are each network's own, which is tried on a batch before anything is trained.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmstudy.batched import engine, hooks
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, at, at_once, stack, vectors
from mmstudy.batched.tape import Function
from mmstudy.core import arguments
from mmstudy.core.networks import evaluating
from mmstudy.core.threads import ALONE

ELEMENTWISE = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop, optim.Adagrad,
    optim.Adadelta,
)  # fmt: skip
SCALARS = ("step", "mu_product")  # of an optimizer's state: one number for all of a parameter
CLOSE = 1e-3  # relative: by how much losses, gradients and statistics may differ from those of a network alone


def fit(networks: Sequence[nn.Module], optimizers: Sequence[Optimizer | None], batch: Batch, loss_fn: LossFn) -> bool:
    """Whether networks train together, and gain by it.

    They are small, of one shape, without hooks on gradients, and have the losses and gradients together that they have
    alone on this batch. All are as they were afterwards, and so are torch's random numbers.
    """
    if any(map(hooks.on_gradients, networks)):
        return False
    try:
        ensemble = stack(networks)
    except ValueError:
        return False
    known = [each for each in optimizers if each is not None and type(each) in ELEMENTWISE]
    forms = {_form(*pair) for pair in zip(networks, known, strict=False)}
    trained = {name for names in _names(networks[0], known[0]) for name in names} if known else set()
    if len(known) < len(optimizers) or len(forms) > 1 or not trained <= ensemble.parameters.keys():
        return False
    with torch.random.fork_rng(devices=[]):
        return together_at_most(ensemble, batch, loss_fn) > 1 and _as_alone(networks, ensemble, batch, loss_fn)


def together_at_most(ensemble: Ensemble, batch: Batch, loss_fn: LossFn) -> int:
    """How many networks of this shape go into one call in training; 1 where none gains by it."""
    with evaluating(ensemble.network):
        ensemble.network.train()
        return at_once(ensemble, batch, loss_fn)


class Together:
    """Networks on their common way; `settle` brings each to where it has come."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        schedules: Sequence[LRScheduler | None],
        loss_fn: LossFn,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        clip: float | None = None,
    ):
        self.networks, self.optimizers, self.schedules = networks, optimizers, schedules
        self.ensemble, self.loss_fn, self.clip = stack(networks), loss_fn, clip
        self.points = vectors(self.ensemble)
        self.buffers = [buffer.clone() for buffer in self.ensemble.buffers.values()]
        self.change = torch.zeros_like(self.points)
        self.most: int | None = None
        self._learners: dict[tuple, Function] = {}
        self._leaves = {name: view.detach() for name, view in self._views(self.points).items()}
        for name, view in self._views(self.change).items():
            self._leaves[name].grad = view
        self.optimizer = _stacked(networks, optimizers, self._leaves)
        self.schedule = schedule(self.optimizer) if schedule else None
        for ours, theirs in zip(self.optimizer.param_groups, optimizers[0].param_groups, strict=True):
            ours.update(_options(theirs))  # a schedule has set a rate when it was made
        if self.schedule is not None and schedules[0] is not None:
            self.schedule.load_state_dict(schedules[0].state_dict())

    def step(self, batches: Sequence[Batch]) -> list[float]:
        """One step of each network on the same batches, and their mean losses."""
        total = torch.zeros(len(self.points), dtype=torch.float64)
        self.change.zero_()
        for batch in batches:
            with arguments.explained(batch):
                loss, gradient = self._learn(batch)
            self.change.add_(gradient, alpha=1 / len(batches))
            total += loss.double().cpu() / len(batches)
        if self.clip is not None:
            norm = torch.linalg.vector_norm(self.change, dim=1, keepdim=True)
            self.change.mul_((self.clip / (norm + 1e-6)).clamp(max=1.0))  # as `clip_grad_norm_` does
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return total.tolist()

    def settle(self) -> None:
        """Bring networks, optimizers and schedules to where they have come together."""
        running = dict(zip(self.ensemble.buffers, self.buffers, strict=True))
        for k, (network, optimizer, schedule) in enumerate(
            zip(self.networks, self.optimizers, self.schedules, strict=True)
        ):
            own = dict(network.named_parameters())
            with torch.no_grad():
                for name, leaf in self._leaves.items():
                    own[name].copy_(leaf[k])
                for name, buffer in network.named_buffers():
                    buffer.copy_(running[name][k])
            for ours, theirs in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
                theirs.update(_options(ours))
                for leaf, parameter in zip(ours["params"], theirs["params"], strict=True):
                    if state := self.optimizer.state.get(leaf):
                        optimizer.state[parameter] = {key: _of_member(key, v, k) for key, v in state.items()}
            if schedule is not None and self.schedule is not None:
                schedule.load_state_dict(self.schedule.state_dict())

    def _learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each network's loss on a batch that all share, and its gradient, (K, dim)."""
        leaves, tree = tree_flatten(batch)
        constants = tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves)
        key = str(tree), repr(constants)
        if key not in self._learners:
            self._learners[key] = _learner(self.ensemble, self.loss_fn, tree, constants)
        if self.most is None:
            self.most = together_at_most(self.ensemble, batch, self.loss_fn)
        tensors, found = [leaf for leaf in leaves if isinstance(leaf, Tensor)], []
        for some in engine.pieces(len(self.points), self.most):
            running = [buffer[some] for buffer in self.buffers]
            found.append(self._learners[key](self.points[some], *tensors, *running))
        loss, gradient = map(torch.cat, zip(*found, strict=True))
        return loss, gradient

    def _views(self, points: Float[Tensor, "k dim"]) -> dict[str, Tensor]:
        """The parameters of all networks as parts of these points, which change with them."""
        own = self.ensemble.parameters
        pieces = points.split([p[0].numel() for p in own.values()], dim=1)
        return {name: piece.unflatten(1, p.shape[1:]) for (name, p), piece in zip(own.items(), pieces, strict=True)}


def _learner(ensemble: Ensemble, loss_fn: LossFn, tree, constants: Sequence[tuple | None]) -> Function:
    """(points, tensors of a batch, running statistics) → losses and gradients; the statistics follow."""
    network, names = ensemble.network, list(ensemble.buffers)
    given = sum(constant is None for constant in constants)

    def losses(points: Tensor, *tensors: Tensor) -> Tensor:
        left = iter(tensors[:given])
        batch = tree_unflatten([next(left) if constant is None else constant[0] for constant in constants], tree)
        running = dict(zip(names, tensors[given:], strict=True))
        with ALONE, evaluating(network):
            network.train()
            return engine.mapped(network, loss_fn, at(ensemble, points).parameters, running, batch, shared=True)

    return engine.gradients(losses, network)


def _stacked(networks: Sequence[nn.Module], optimizers: Sequence[Optimizer], leaves: dict[str, Tensor]) -> Optimizer:
    """The first one's optimizer on all networks' stacked parameters, with the states of all."""
    names = _names(networks[0], optimizers[0])
    groups = [
        _options(group) | {"params": [leaves[name] for name in own]}
        for group, own in zip(optimizers[0].param_groups, names, strict=True)
    ]
    kind: Any = type(optimizers[0])
    made = kind(groups)
    owned = [dict(network.named_parameters()) for network in networks]
    for group, name_of in zip(made.param_groups, names, strict=True):
        for leaf, name in zip(group["params"], name_of, strict=True):
            own = [o.state.get(known[name], {}) for known, o in zip(owned, optimizers, strict=True)]
            if own[0]:
                made.state[leaf] = {key: _of_all(key, [state[key] for state in own]) for key in own[0]}
    return made


def _of_all(key: str, values: Sequence[Any]) -> Any:
    """A part of several optimizers' states: stacked, but for what is the same for all."""
    if isinstance(first := values[0], Tensor):
        return first.clone() if key in SCALARS else torch.stack(list(values))
    return first


def _of_member(key: str, value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if key in SCALARS else value[index].clone()
    return value


def _options(group: dict) -> dict:
    """The options of a group of parameters; fused kernels want other memory."""
    return {name: v for name, v in group.items() if name not in ("params", "param_names", "fused", "foreach")}


def _names(network: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters that an optimizer trains, group by group."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def _form(network: nn.Module, optimizer: Optimizer) -> tuple:
    """What optimizers must have in common to be one: the parameters they train, their options, and steps made."""
    told = optimizer.state_dict()
    kept = {i: {key: float(v) if key in SCALARS else "" for key, v in own.items()} for i, own in told["state"].items()}
    return type(optimizer), repr(told["param_groups"]), repr(kept), repr(_names(network, optimizer))


def _as_alone(networks: Sequence[nn.Module], ensemble: Ensemble, batch: Batch, loss_fn: LossFn) -> bool:
    """Whether networks have the losses, gradients and running statistics together that they have alone.

    The ensemble is made of them. In evaluation mode where their training draws random numbers, as those drawn together
    are others.
    """
    one, other = (_alone(networks[0], batch, loss_fn, True, seed) for seed in (0, 1))
    if one is None or other is None or not _steady(networks[0], batch, loss_fn):
        return False
    training = all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    alone = [found for each in networks if (found := _alone(each, batch, loss_fn, training, 0)) is not None]
    if len(alone) < len(networks):
        return False
    running = {name: buffer.clone() for name, buffer in ensemble.buffers.items()}
    points = vectors(ensemble).requires_grad_()
    with ALONE, evaluating(ensemble.network), torch.enable_grad():
        ensemble.network.train(training)
        loss = engine.mapped(ensemble.network, loss_fn, at(ensemble, points).parameters, running, batch, shared=True)
        (gradient,) = torch.autograd.grad(loss.sum(), points)
    together = loss.detach(), gradient, *running.values()
    return all(_close(*pair) for pair in zip(together, map(torch.stack, zip(*alone, strict=True)), strict=True))


def _alone(network: nn.Module, batch: Batch, loss_fn: LossFn, training: bool, seed: int) -> tuple[Tensor, ...] | None:
    """The loss, its gradient, and what becomes of the buffers; None where a parameter gets no gradient."""
    own = copy.deepcopy(network).train(training)
    trained = [p for p in own.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    with torch.enable_grad():
        loss = loss_fn(own, batch)
        found = torch.autograd.grad(loss, trained, allow_unused=True)
    if any(gradient is None for gradient in found):  # alone, an optimizer leaves such a parameter out
        return None
    frozen = [p.detach() for p in own.parameters() if not p.requires_grad]
    return loss.detach(), torch.cat([g.flatten() for g in found]), *frozen, *own.buffers()


def _steady(network: nn.Module, batch: Batch, loss_fn: LossFn) -> bool:
    """Whether a call leaves nothing behind, such as a count of calls, by which the next one differs."""
    own, found = copy.deepcopy(network).train(), []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(loss_fn(own, batch))
    return torch.equal(*found)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.double(), b.double()
    return bool((a - b).norm() <= CLOSE * b.norm() + 1e-9)
