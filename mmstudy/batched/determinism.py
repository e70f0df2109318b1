"""What would turn a measurement into noise is found before anything is measured, and named.

Estimators take it for granted that the loss is one function of the parameters: the same at every call, a mean over
examples that are always the same. Nothing in a module or in a loader promises that.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import BatchSampler, SequentialSampler

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, classification, losses, parts_of, stack
from mmstudy.batched.modes import measuring


def check(
    network: nn.Module | Ensemble, batch: Batch, loss_fn: LossFn = classification, normalization: str = "frozen"
) -> None:
    """Refuse a loss that is no function of the parameters, in the mode in which measurements run.

    The loss is evaluated twice; where L(θ) ≠ L(θ), the first module is named whose outputs differ although its inputs
    agree. The network and torch's random state stay as they were.

    Args:
        network: one network, or an ensemble, whose every member is checked.
        normalization: as in `ensemble.losses`.

    Raises:
        ValueError: a module stays in training mode; batch normalization has no statistics of its own; the loss is not
            finite, differs from call to call, or is not the mean over the examples.
    """
    ensemble = network if isinstance(network, Ensemble) else stack([network])
    part = parts_of(ensemble, batch, loss_fn, normalization)[0]

    def whose(k: int) -> str:
        return f" of network {k}" if len(ensemble) > 1 else ""

    _check_modes(ensemble.network, normalization)
    with torch.random.fork_rng():
        calls_of = partial(_watched, ensemble, part, loss_fn, normalization)
        calls_of(0)
        first, second = (losses(ensemble, batch, loss_fn, normalization) for _ in range(2))
        for k in torch.nonzero(~(first + second).isfinite()).flatten().tolist():
            cause = _where_broken(ensemble, k, part, calls_of(k))
            raise ValueError(f"the loss{whose(k)} is {first[k]:g}: {cause}")
        for k in torch.nonzero(~_close(first, second)).flatten().tolist():
            cause = _where_random(calls_of(k), calls_of(k))
            raise ValueError(f"the loss{whose(k)} is {first[k]:g}, then {second[k]:g}: {cause}")
        single, double = _twice(ensemble, part, loss_fn, normalization)
        for k in torch.nonzero(~_close(single, double, 1e-3)).flatten().tolist():
            raise ValueError(_no_mean(single[k], double[k]))


def not_a_sum(ensemble: Ensemble, batch: Batch, loss_fn: LossFn) -> None:
    """Refuse a loss that is the sum over the examples.

    Raises:
        ValueError: the loss of examples that are each given twice is twice as large.
    """
    single, double = _twice(ensemble, batch, loss_fn, "frozen")
    for k in torch.nonzero(_close(2 * single, double) & (single.abs() > 1e-3)).flatten().tolist():
        raise ValueError(_no_mean(single[k], double[k]))


def _twice(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, normalization: str) -> tuple[Tensor, Tensor]:
    """The losses on half of the examples, or on all where a mask leaves none of these, and with each given twice."""
    once = engine.take(batch, slice(None, -(-engine.count(batch) // 2)))
    single = losses(ensemble, once, loss_fn, normalization)
    if not single.isfinite().all():
        once, single = batch, losses(ensemble, batch, loss_fn, normalization)
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf, once)
    return single, losses(ensemble, twice, loss_fn, normalization)


def _no_mean(single: Tensor, double: Tensor) -> str:
    found = f"it is {single:g}, but {double:g} with each given twice (reduction='sum'?)"
    return f"the loss must be the mean over the examples; {found}"


def fixed(loader: Iterable[Batch], examples: int) -> Batch:
    """The first examples of a loader as one batch, as many as asked for or as there are; it is read twice to be sure.

    Args:
        loader: a torch `DataLoader`, or anything else that gives batches (trees of tensors) anew every time.

    Returns:
        A batch of the same form; a list, as `DataLoader` makes them, becomes a tuple.

    Raises:
        ValueError: the loader shuffles, augments at random, or can be read only once; it is empty; its batches hold
            other things than tensors, or tensors that don't fit together.
    """
    if examples < 1:
        raise ValueError(f"needs at least one example; got examples={examples}")
    if isinstance(loader, Iterator):
        raise ValueError(f"a {type(loader).__name__} can be read only once: pass a DataLoader, or a list of batches")
    for sampler in _samplers(loader):
        if "Random" in type(sampler).__name__ or getattr(sampler, "shuffle", False):
            raise ValueError(f"the loader shuffles ({type(sampler).__name__}): pass shuffle=False")
    with torch.random.fork_rng(devices=[]):
        first, second = _read(loader, examples), _read(loader, examples)
    if not _agree(engine.tensors(first), engine.tensors(second)):
        raise ValueError(f"two readings differ: {_why_readings_differ(loader)}")
    return first


class _Call(NamedTuple):
    """A call of a module: copies of the tensors that went in and came out."""

    place: str
    given: list[Tensor]
    returned: list[Tensor]


def _watched(ensemble: Ensemble, batch: Batch, loss_fn: LossFn, normalization: str, index: int) -> list[_Call]:
    """The calls of one network's modules while its loss is evaluated, in the order in which they ended."""
    calls, under_way, handles = [], [], []
    own = [{name: t[index].clone() for name, t in kind.items()} for kind in (ensemble.parameters, ensemble.buffers)]

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:  # copied at once: a module may work in place
        under_way.append([t.clone() for t in engine.tensors((args, kwargs))])

    def after(place: str, module: nn.Module, args: tuple, output: object) -> None:
        calls.append(_Call(place, under_way.pop(), [t.clone() for t in engine.tensors(output)]))

    try:
        for name, module in ensemble.network.named_modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, _place(name, module))))
        with torch.no_grad(), measuring(ensemble.network, normalization):
            loss = engine.loss_of(ensemble.network, loss_fn)(*own, batch)
    finally:
        for handle in handles:
            handle.remove()
    if loss.ndim:
        raise ValueError(f"the loss must be one number, the mean over the examples; its shape is {tuple(loss.shape)}")
    return calls


def _check_modes(network: nn.Module, normalization: str) -> None:
    with measuring(network, normalization):
        for name, module in network.named_modules():
            place, normalizes = _place(name, module), isinstance(module, _BatchNorm)
            if module.training and not (normalizes and normalization == "recomputed"):
                raise ValueError(
                    f"{place} stays in training mode after .eval(): a train() of its own or around it does it"
                )
            if normalizes and module.running_mean is None and normalization == "frozen":
                raise ValueError(f"{place} has no running statistics to be frozen: pass normalization='recomputed'")


def _where_broken(ensemble: Ensemble, index: int, batch: Batch, calls: list[_Call]) -> str:
    own = {f"its {name}": [t[index]] for name, t in (ensemble.parameters | ensemble.buffers).items()}
    for what, tensors in (own | {"the batch": engine.tensors(batch)}).items():
        if not _finite(tensors):
            return f"{what} is not finite"
    for place, given, returned in calls:
        if _finite(given) and not _finite(returned):
            return f"{place} is the first to return what is not finite"
    return "no module returns it for the first examples; a later example does, or the loss function"


def _where_random(first: list[_Call], second: list[_Call]) -> str:
    for a, b in zip(first, second, strict=False):
        if _agree(a.given, b.given) and not _agree(a.returned, b.returned):
            why = "it draws random numbers (functional dropout needs training=self.training) or keeps a state"
            return f"{a.place} returns something else for the same inputs in evaluation mode; {why}"
    return "all modules agree; the loss function draws random numbers or keeps a state"


def _place(name: str, module: nn.Module) -> str:
    return f"{name or 'the network itself'} ({type(module).__name__})"


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _close(first: Tensor, second: Tensor, rounding: float = 1e-5) -> Tensor:  # a GPU adds up in any order
    return (first - second).abs() <= rounding * first.abs().clamp(min=1)


def _agree(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether tensors are the same up to rounding; NaN agrees with NaN."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return False
    pairs = [(a.double().nan_to_num(), b.double().nan_to_num()) for a, b in zip(first, second, strict=True)]
    return all(bool(_close(a, b).all()) for a, b in pairs)


def _samplers(loader: Iterable) -> list:
    outer = getattr(loader, "batch_sampler", None)
    return [s for s in (getattr(outer, "sampler", None), getattr(loader, "sampler", None), outer) if s is not None]


def _read(loader: Iterable[Batch], examples: int) -> Batch:
    parts, found = [], 0
    for part in loader:
        parts.append(tuple(part) if isinstance(part, list) else part)
        if others := {type(leaf).__name__ for leaf in tree_leaves(part) if not isinstance(leaf, Tensor)}:
            raise ValueError(f"a batch must hold tensors alone; found {', '.join(sorted(others))}: leave that out")
        found += engine.count(part)
        if found >= examples:
            break
    return engine.take(engine.joined(parts), slice(examples))


def _why_readings_differ(loader: Iterable) -> str:
    for sampler in _samplers(loader):
        if type(sampler) not in (SequentialSampler, BatchSampler):
            return f"the loader's {type(sampler).__name__} chooses another order each time: pass shuffle=False"
    dataset: Any = getattr(loader, "dataset", loader)
    while getattr(dataset, "transform", None) is None and hasattr(dataset, "dataset"):  # a Subset around it, say
        dataset = dataset.dataset
    how = f" (transform={dataset.transform})" if getattr(dataset, "transform", None) else ""
    return f"{type(dataset).__name__}{how} is random (augmentation?): use the transform that it is tested with"
