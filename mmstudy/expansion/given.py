"""What is given of a network that shall grow: whether it can be called on the batch, and how."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched import asked
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.batched.modes import measuring
from mmstudy.core import arguments
from mmstudy.core.states import changed_by_mode, restored
from mmstudy.expansion import attributes
from mmstudy.tracing.calls import Call, Output, by_name, of_loss
from mmstudy.tracing.trees import tensors


def fit(network: Any, batch: Any, loss_fn: Any, output: Output = None) -> tuple[nn.Module, Batch | Call, Call]:
    """The network, the batch, and how one is called on the other, once both are known to be fit for each other.

    Raises:
        TypeError: one of them is of another kind.
        ValueError: the call fails, gives no tensor, or an output that does not depend on the network; or parameters
            change with the mode.
    """
    network, batch = arguments.network(network), batch if isinstance(batch, Call) else _batch(batch, loss_fn)
    if changed := changed_by_mode(network):
        raise ValueError(changed)
    loss_fn = arguments.function(loss_fn)
    if loss_fn is classification and not isinstance(batch, Tensor | Call | Mapping):
        asked.classes(network, batch)
    call = of_loss(network, batch, loss_fn, output)
    try:
        asked.tried([network], batch, lambda model, _: _probe(call.of(model)))
    except ValueError as error:
        if isinstance(error.__cause__, TypeError) and str(error.__cause__).startswith("output="):
            raise error.__cause__ from None
        raise
    if output is not None:
        with torch.no_grad(), restored(network), measuring(network):
            _depends(network(*call.arguments, **call.options), output)
    return network, batch, call


def _batch(batch: Any, loss_fn: Any) -> Batch:
    """A batch that has been checked; of one that gives arguments by name, flags and numbers are passed on as they are.

    Raises:
        TypeError: what is no batch.
        ValueError: as `arguments.batch`.
    """
    if not by_name(batch, loss_fn):
        return arguments.batch(batch, examples=False)
    flags = {
        name: value for name, value in batch.items() if value is None or isinstance(value, bool | int | float | str)
    }
    rest = {name: value for name, value in batch.items() if name not in flags}
    return arguments.batch(rest, examples=False) | flags


def _probe(outputs: Any) -> Tensor:
    found = [torch.view_as_real(t) if t.is_complex() else t for t in tensors(outputs) if t.numel()]
    if not found:
        raise ValueError(f"what counts of the network's output has no number in it: {arguments.described(outputs)}")
    finite = [t.double().where(~t.isinf(), 0) for t in found]  # what is masked may be infinite, and stays so
    return sum((t.mean() for t in finite), torch.zeros((), dtype=torch.float64))


def _depends(returned: Any, output: Output) -> None:
    """Refuse an output that stays the same whatever the network returns: any expansion would be exact.

    Raises:
        ValueError: it does.
    """

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.flip(0) + torch.rand_like(tensor) if tensor.ndim else tensor + 1
        return ~tensor if tensor.dtype == torch.bool else tensor + 1

    one = tensors(Call((), {}, output).of(lambda: returned))
    if not tensors(returned):  # it is of a kind that is not known
        return
    try:
        two = tensors(Call((), {}, output).of(lambda: Call((returned,)).mapped(other).arguments[0]))
    except Exception:  # a function that fails on other numbers looks at them
        return
    if len(one) == len(two) and all(map(torch.equal, one, two)):
        raise ValueError(f"output={output!r} does not depend on what the network returns, so that nothing must stay")


def further(network: nn.Module, also: Any, loss_fn: LossFn, output: Output) -> list[tuple[Batch | Call, Call]]:
    """More batches, each with how the network is called on it, as `fit` gives them.

    Raises:
        TypeError: no list, or what `fit` refuses; the message says which of them.
        ValueError: as `fit`.
    """
    found = []
    for i, each in enumerate(_listed(also, "also")):
        with arguments.naming(f"also[{i}]"):
            found.append(fit(network, each, loss_fn, output)[1:])
    return found


def protected(network: nn.Module, keep: Any) -> None:
    """See that patterns of numbers that must stay are such, and name some.

    Raises:
        TypeError: no list of strings.
        ValueError: one names no number of the network.
    """
    if strange := [pattern for pattern in _listed(keep, "keep") if not isinstance(pattern, str)]:
        raise TypeError(f"keep holds patterns of paths such as '*.layer_idx'; got {arguments.described(strange[0])}")
    attributes.check_protected(network, keep)


def _listed(given: Any, name: str) -> Sequence[Any]:
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name} must be a list; got {arguments.described(given)}")
    return given
