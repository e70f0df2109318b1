"""What the face asks of networks and a batch before any work: are they fit for each other?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched import costs, engine, places
from mmstudy.batched.determinism import check, not_a_sum
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import FAR, MEANS, Ensemble, classification, losses, stack, vectors
from mmstudy.batched.modes import measuring
from mmstudy.batched.objective import of_networks
from mmstudy.core import arguments
from mmstudy.core.memory import one_storage
from mmstudy.core.states import restored
from mmstudy.core.threads import ALONE

ROUNDING = 1e-4  # how far losses may lie apart that are the same up to rounding, as a share
ROUGHLY = 0.02  # the same of gradients


def fit(networks: Any, batch: Any, loss_fn: Any) -> tuple[list[nn.Module], Batch, list[float]]:
    """Networks as a list, the batch, and each network's loss on it, once all are known to be fit for each other.

    Raises:
        TypeError: one of them is of another kind, or a network that is wrapped to run on several devices.
        ValueError: what `arguments`, `classes` and `tried` refuse.
    """
    networks, batch = arguments.networks(networks), arguments.batch(batch)
    for each in networks:
        costs.forget(each)
        if isinstance(each, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TypeError(f"the network is wrapped by {type(each).__name__}: give network.module")
        if shared := one_storage(each):
            raise ValueError(shared)
    loss_fn = arguments.function(loss_fn)
    for each in networks if loss_fn is classification else ():
        classes(each, batch)
    return networks, batch, tried(networks, batch, loss_fn)


def measurable(networks: Sequence[nn.Module], batch: Batch, loss_fn: LossFn, plain: Sequence[float]) -> Ensemble:
    """The ensemble of networks of one shape, once it is known to measure what plain calls of the networks give.

    They are compared where the networks are, and at random places near and far, for which every network has other
    parameters for a moment: all are measured by the forward pass of the first, with tensors that are put in the place
    of its own. Once, all that the networks themselves have is NaN meanwhile, so that whatever still reads it shows.

    Args:
        plain: the loss of each network on the batch, by a plain call.

    Raises:
        ValueError: what `stack` refuses; the loss is a sum; a measurement differs from the plain call (the message says
            what may be the cause).
    """
    ensemble, found = stack(networks), {}
    for far in (False, True):
        there = replace(ensemble, parameters=places.moved(ensemble.parameters, far, seed=1))
        try:
            found[far] = there, [called(each, there, k, batch, loss_fn) for k, each in enumerate(networks)]
        except Exception:  # whatever the network or the loss does there
            if not far:
                raise
    with _aside(networks), _of_measurements(networks[0], batch, loss_fn):
        here = losses(ensemble, batch, loss_fn)
    _compared(plain, here, networks, batch, loss_fn)
    with _aside(networks):
        if loss_fn not in MEANS:
            with _of_measurements(networks[0], batch, loss_fn):
                not_a_sum(ensemble, batch, loss_fn)
        measured = {far: losses(there, batch, loss_fn) for far, (there, _) in found.items()}  # after a call elsewhere
        blind = _without_own(ensemble, networks, batch, loss_fn)
    for far, (_, expected) in found.items():
        _compared(expected, measured[far], networks, batch, loss_fn, FAR if far else ROUNDING)
    _compared(plain, blind, networks, batch, loss_fn)
    return ensemble


@contextmanager
def _aside(networks: Sequence[nn.Module]) -> Iterator[None]:
    """What is done leaves no trace in the networks, nor in the random numbers, which are not those of plain calls."""
    with untouched(networks), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        yield


def called(network: nn.Module, ensemble: Ensemble, k: int, batch: Batch, loss_fn: LossFn) -> float:
    """The loss of a plain call of a network, in the state in which it is, with the parameters of the k-th of others."""
    with torch.no_grad(), placed(network, {name: tensor[k] for name, tensor in ensemble.parameters.items()}):
        return float(loss_fn(network, batch))


def _without_own(ensemble: Ensemble, networks: Sequence[nn.Module], batch: Batch, loss_fn: LossFn) -> Tensor:
    """The measured losses while the networks' own parameters are NaN: the same, if nothing reads these."""
    with ExitStack() as each:
        for network in networks:
            own = {name: torch.full_like(p, nan) for name, p in network.named_parameters() if p.requires_grad}
            each.enter_context(placed(network, own, measured=False))
        try:
            return losses(ensemble, batch, loss_fn)
        except Exception:  # whatever is made of them
            return torch.full((len(networks),), nan)


@contextmanager
def placed(network: nn.Module, tensors: Mapping[str, Tensor], measured: bool = True) -> Iterator[list[nn.Parameter]]:
    """The network with other numbers in its parameters for a while, and as it is measured.

    The numbers come first: what the network makes of its parameters in evaluation mode, it makes of them.

    Yields:
        Its parameters that are not frozen.
    """
    own = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with ALONE, torch.random.fork_rng(devices=[]), restored(network, parameters=True):
        for name, p in own.items():
            p.data = tensors[name]
        with measuring(network) if measured else nullcontext():
            yield list(own.values())


def check_gradients(ensemble: Ensemble, networks: Sequence[nn.Module], batch: Batch, loss_fn: LossFn) -> None:
    """Refuse networks whose measured gradient is not the one that plain calls give.

    They are compared on a few examples at a random place nearby. A gradient that there is not, or that is no number, is
    left to those who need it.

    Args:
        ensemble: of these networks.

    Raises:
        ValueError: a gradient differs by more than rounding, or there is none where it is measured.
    """
    few = engine.take(batch, slice(costs.FEW))
    with untouched(networks), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        there = replace(ensemble, parameters=places.moved(ensemble.parameters, seed=2))
        points = vectors(there)
        try:
            plain = [_gradient(network, there.parameters, k, few, loss_fn) for k, network in enumerate(networks)]
        except RuntimeError:
            return
        twice = points.unsqueeze(1).expand(-1, 2, -1)  # as networks of a batch, where they can be one
        try:
            _, measured = of_networks(ensemble, few, loss_fn).gradient(twice)
        except RuntimeError as error:
            raise ValueError(
                f"{type(networks[0]).__name__} has a gradient in a plain call, but not with other tensors in the place "
                f"of its parameters, as measuring takes it: {error}. Take a size that needs no gradients, such as rays"
            ) from error
    for k, (a, b) in enumerate(zip(plain, measured, strict=True)):
        if bool((a - b).norm(dim=-1).gt(ROUGHLY * a.norm() + 1e-5).any()):  # never where one of them is NaN
            raise ValueError(
                f"network {k}: the gradient of a plain call has a norm of {a.norm():g}, and its measurement is "
                f"{float((a - b).norm(dim=-1).max()):g} away from it: an operation's gradient depends on more than its "
                "inputs (a Function with a backward pass of its own?), or is another for several networks at once. "
                "Take a size that needs no gradients, such as rays"
            )


def _gradient(network: nn.Module, tensors: Mapping[str, Tensor], k: int, batch: Batch, loss_fn: LossFn) -> Tensor:
    """The gradient of a plain call of the k-th network, where these are the parameters of all."""
    with torch.enable_grad(), placed(network, {name: tensor[k] for name, tensor in tensors.items()}) as own:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss_fn(network, batch), own, materialize_grads=True)]
        )


@contextmanager
def untouched(networks: Sequence[nn.Module]) -> Iterator[None]:
    """What measuring leaves in the networks is undone: a tensor that a call keeps, say, may be one of many networks."""
    with ExitStack() as each:
        for network in networks:
            each.enter_context(restored(network, parameters=True))
        yield


@contextmanager
def _of_measurements(network: nn.Module, batch: Batch, loss_fn: LossFn) -> Iterator[None]:
    """What measuring asks of a loss and a batch beyond a plain call, where it fails, in a sentence."""
    try:
        yield
    except AttributeError as error:
        raise TypeError(f"loss_fn must do no more with its model than call it, as model(inputs): {error}") from error
    except (RuntimeError, IndexError) as error:
        if _goes_in_parts(network, batch, loss_fn):
            raise ValueError(
                f"{type(network).__name__} works in a plain call, but not with other tensors in the place of its "
                f"parameters, as measuring calls it: {error}"
            ) from error
        raise ValueError(
            f"a part of the examples does not go through the network or the loss: {error}. The first axis of every "
            "tensor in the batch must count examples; pass what belongs to all of them in loss_fn"
        ) from error


def _goes_in_parts(network: nn.Module, batch: Batch, loss_fn: LossFn) -> bool:
    """Whether plain calls on some of the examples work."""
    try:
        with measuring(network):
            for some in (min(costs.FEW, engine.count(batch)), -(-engine.count(batch) // 2)):
                loss_fn(network, engine.take(batch, slice(some)))
    except (RuntimeError, IndexError):
        return False
    return True


def _compared(
    plain: Sequence[float],
    measured: Tensor,
    networks: Sequence[nn.Module],
    batch: Batch,
    loss_fn: LossFn,
    rounding: float = ROUNDING,
) -> None:
    for k, (a, b) in enumerate(zip(plain, measured.tolist(), strict=True)):
        if (isfinite(a) or isfinite(b)) and not close(a, b, rounding):
            with untouched([networks[k]]), suppress(RuntimeError):
                check(networks[k], batch, loss_fn)  # which names what is random, keeps a state, or is no mean
            raise ValueError(
                f"network {k}: a plain call gives a loss of {a:g}, its measurement {b:g}. Something reads a parameter "
                "elsewhere than at its place in its module (a list, a closure, a network that the loss keeps), or asks "
                "the model for more than a call (an attribute, `training`): give loss_fn(model, batch) that only calls "
                "the model, and modules that own what they use"
            )


def close(one: float, other: float, rounding: float = ROUNDING, beyond: float = 0.0) -> bool:
    """Whether two losses are one but for rounding, a share of them, and what is allowed `beyond` it; NaN is none."""
    return abs(one - other) <= beyond + rounding * max(abs(one), abs(other)) + 1e-6


def tried(networks: Sequence[nn.Module], batch: Batch, loss_fn: LossFn, normalization: str = "frozen") -> list[float]:
    """The loss of each network on the batch, once every problem that one call shows is ruled out.

    Raises:
        ValueError: targets that the loss would misread, a call that fails, or a loss that is no finite number.
    """
    found = []
    for network in networks:
        before = _versions(batch)
        with (
            arguments.explained(batch, network),
            torch.no_grad(),
            restored(network, parameters=True),
            measuring(network, normalization),
        ):
            loss = loss_fn(network, batch)
        if _versions(batch) != before:
            raise ValueError(
                f"{type(network).__name__}, or the loss, changes the batch in place (an operation that ends in _, "
                "inplace=True on the inputs), so that every call would see another one: let it work on a copy"
            )
        if not isinstance(loss, Tensor) or loss.ndim or loss.is_complex() or not loss.is_floating_point():
            raise ValueError(f"the loss must be one number, the mean over examples; got {arguments.described(loss)}")
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss of {type(network).__name__} on this batch is {loss.item()}: look at its weights"
            )
        found.append(loss.item())
    return found


def _versions(batch: Batch) -> list[int]:
    return [t._version for t in engine.tensors(batch) if not t.is_inference()]


def classes(network: nn.Module, batch: Batch) -> None:
    """Refuse what the default loss, a classifier's on (inputs, targets), would misread or fail on.

    Raises:
        TypeError: the batch is no pair.
        ValueError: outputs that are no classes, or targets that are no class numbers of their shape and range.
    """
    if not isinstance(batch, tuple) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        wanted = "(inputs, targets); for any other batch pass loss_fn(model, batch)"
        raise TypeError(f"the default loss, cross-entropy, takes {wanted}. Got {arguments.described(batch)}")
    inputs, targets = batch
    with arguments.explained(batch, network), torch.no_grad(), restored(network, parameters=True), measuring(network):
        outputs = network(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ValueError(f"the default loss takes outputs (batch, classes); got {arguments.described(outputs)}")
    found, count = arguments.described(targets), outputs.shape[-1]
    if targets.dtype != torch.long:
        raise ValueError(f"targets must be class numbers, int64; got {found}: call .long(), or pass a loss_fn")
    if targets.shape != outputs.shape[:-1]:
        raise ValueError(f"targets must have the shape {tuple(outputs.shape[:-1])}; got {found}")
    if int(targets.min()) < 0 or int(targets.max()) >= count:
        raise ValueError(f"targets must lie in 0 … {count - 1}, as the network has {count} outputs; got {found}")
