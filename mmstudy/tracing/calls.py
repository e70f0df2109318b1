"""How a network is called on an example batch: with which arguments, and without its user's noticing."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.nn.parameter import is_lazy

from mmstudy.batched.engine import LossFn, called_with
from mmstudy.batched.ensemble import classification
from mmstudy.batched.modes import measuring
from mmstudy.core import arguments
from mmstudy.core.states import restored
from mmstudy.tracing.trees import mapped, tensors

HOOKS = ("forward", "forward_pre", "backward", "backward_pre", "state_dict", "state_dict_pre")


Output = str | int | Callable[[Any], Any] | None


@dataclass(frozen=True)
class Call:
    """The arguments of a call: `network(*arguments, **options)`, and which part of what it returns counts.

    `output` is a key or attribute ("logits"), a place in a tuple or list (0), or a function of what the network
    returns; None is all of it. What does not count may change its shape when a network grows.
    """

    arguments: tuple = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    output: Output = None

    def of(self, network: Callable[..., Any]) -> Any:
        """What the network returns, as far as it counts; it may change its copy of the arguments in place.

        What a module's call does to its buffers and attributes is undone, so that all its calls are alike.
        """
        fresh = self.mapped(torch.clone)
        with restored(network) if isinstance(network, nn.Module) else nullcontext():
            return fresh.directly(network)

    def directly(self, network: Callable[..., Any]) -> Any:
        """The same with the arguments themselves."""
        return self._part(network(*self.arguments, **self.options))

    def under(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
        """The same of the network with other tensors, by name, in the place of its own."""
        fresh = self.mapped(torch.clone)
        with restored(network):
            return self._part(called_with(network, tensors, fresh.arguments, dict(fresh.options)))

    def mapped(self, function) -> "Call":
        """The call with every tensor replaced by a function of it, in order."""
        args, options = mapped(self.arguments, function), mapped(dict(self.options), function)
        return replace(self, arguments=args, options=options)

    def _part(self, returned: Any) -> Any:
        if self.output is None:
            return returned
        if isinstance(self.output, int) and not (isinstance(returned, tuple | list) or _ordered(returned)):
            what = arguments.described(returned) if isinstance(returned, Tensor) else f"a {type(returned).__name__}"
            raise TypeError(f"output={self.output!r} is a place in a tuple or list; the network returns {what}")
        try:
            if callable(self.output):
                return self.output(returned)
            if isinstance(self.output, str) and not isinstance(returned, Mapping):
                return getattr(returned, self.output)
            return returned[self.output]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            keys = f" of {', '.join(map(str, returned))}" if isinstance(returned, Mapping) else ""
            found = f"a {type(returned).__name__}{keys}"
            raise ValueError(f"output={self.output!r} is no part of what the network returns, {found}") from error

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors((self.arguments, self.options))

    @property
    def shapes(self) -> str:
        """Their shapes, for messages."""
        return ", ".join(str(tuple(t.shape)) for t in self.tensors)


def called(network: Any, batch: Any) -> Call:
    """How the network is called on a batch, as losses of `mmstudy.batched` do: `model(inputs)` of (inputs, targets).

    A tensor is the network's input. Of a tuple or list, the network takes as many of the first elements as its
    `forward` requires, at least one: the rest are targets. A mapping gives arguments by name, those that `forward`
    knows; so does a dataclass whose fields have these names, any other is the tuple of its fields. A `Call` says itself
    what it is.

    Raises:
        TypeError: `network` is no module, or the batch holds no tensor.
        ValueError: the batch lacks what the network requires, holds no example, or numbers that are NaN.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module; got {network!r}")
    if lazy := [name for name, p in network.named_parameters() if is_lazy(p)]:
        raise ValueError(f"{', '.join(lazy)}: no shape yet. Call the network once on a batch, then it has one")
    call = _call(network, batch)
    if any(tensor.requires_grad for tensor in call.tensors):
        call = call.mapped(Tensor.detach)
    found = call.tensors
    if not found:
        raise TypeError(f"a batch must be a tensor, or a tuple, dict or dataclass of tensors; got {batch!r}")
    for tensor in found:
        if not tensor.numel():
            raise ValueError(f"an empty batch, of shape {tuple(tensor.shape)}: give at least one example")
        if tensor.is_floating_point() and not tensor.is_meta and (broken := int(tensor.isnan().sum())):
            raise ValueError(f"{broken} of {tensor.numel()} numbers in the batch are NaN: leave such examples out")
    return call


def of_loss(network: nn.Module, batch: Any, loss_fn: LossFn, output: Output = None) -> Call:
    """How the network is called where `loss_fn(model, batch)` is its loss, and what of its output counts.

    A tensor is the network's one argument, and a `Call` says itself what it is. By the default loss, which takes pairs,
    a mapping gives arguments by name (`input_ids`, `attention_mask`, ...), as `called` says. Of any other batch, the
    loss shows it by its first call of the model, in evaluation mode.

    Raises:
        TypeError: no batch of tensors, or no function of (model, batch).
        ValueError: the tensors share no first axis, the loss fails, or it never calls the model.
    """
    call = batch if isinstance(batch, Tensor | Call) or by_name(batch, loss_fn) else _shown(network, batch, loss_fn)
    call = called(network, call)
    return call if output is None else replace(call, output=output)


def _shown(network: nn.Module, batch: Any, loss_fn: LossFn) -> Call:
    """The first call that a loss makes.

    Raises:
        TypeError: no batch of tensors, or no function of (model, batch).
        ValueError: the loss fails, or never calls the model.
    """
    batch, loss_fn = arguments.batch(batch, examples=False), arguments.function(loss_fn)
    calls: list[Call] = []

    def watched(module: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        calls.append(Call(args, options))

    handle = network.register_forward_pre_hook(watched, prepend=True, with_kwargs=True)
    try:
        with arguments.explained(batch, network), torch.no_grad(), restored(network), measuring(network):
            loss_fn(network, batch)
    finally:
        handle.remove()
    if not calls:
        raise ValueError(f"loss_fn never called the model on this batch: {arguments.described(batch)}")
    return calls[0]


def by_name(batch: Any, loss_fn: LossFn) -> bool:
    """Whether a batch holds the arguments of a network by their names, since no loss of one's own takes it apart."""
    return isinstance(batch, Mapping) and loss_fn is classification


def _call(network: nn.Module, batch: Any) -> Call:
    if isinstance(batch, Call):
        return batch
    taken = inspect.signature(network.forward).parameters.values()
    if is_dataclass(batch) and not isinstance(batch, type | Mapping):
        named = {f.name: getattr(batch, f.name) for f in fields(batch)}
        batch = named if _required(taken) <= named.keys() else tuple(named.values())
    if isinstance(batch, Mapping):
        return _by_name(network, taken, batch)
    if not isinstance(batch, tuple | list):
        return Call((batch,))
    places = [p for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    count = max(1, len(places))
    if len(batch) < count:
        names = ", ".join(p.name for p in places) or "one argument"
        raise ValueError(f"{type(network).__name__} takes {names}, and the batch has {len(batch)} parts")
    return Call(tuple(batch[:count]))


def _by_name(network: nn.Module, taken, batch: Mapping[str, Any]) -> Call:
    anything = any(p.kind is p.VAR_KEYWORD for p in taken)
    known = {p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    options = {name: value for name, value in batch.items() if anything or name in known}
    if not options or not _required(taken) <= options.keys():
        wanted = ", ".join(sorted(known))
        raise ValueError(f"{type(network).__name__} takes {wanted} by name; the batch has {', '.join(map(str, batch))}")
    return Call((), options)


def _required(taken) -> set[str]:
    return {p.name for p in taken if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _ordered(returned: Any) -> bool:
    """Whether it is a mapping that is a tuple too, as the outputs of `transformers`, or has whole numbers as keys."""
    return isinstance(returned, Mapping) and (hasattr(returned, "to_tuple") or any(type(k) is int for k in returned))


def resized(call: Call, once: bool = False) -> list[Call]:
    """The call with twice the examples and with half of them, and with less of the length that one can have.

    A length is that of words, (examples, length) whole numbers; of sequences, (examples, length, features) or
    (examples, channels, length); the sides of images, and all axes of what has more. Which axes are features, the
    network says by failing. On a CPU, where a position that a network does not have is an error like any other, with
    twice the length too.

    Args:
        once: what can be halved is not doubled too.
    """
    given = [t for t in call.tensors if t.ndim]
    if not given:
        return []
    count = len(given[0])
    less = [_along(call, {0: count}, 1 / 2)] * (count > 1)
    found = less if once and less else [_along(call, {0: count}, 2), *less]
    words = [t for t in given if _words(t)]
    tried: list[dict[int, int]] = []  # words and what is embedded of them have one length
    for tensor in (*words[:1], *[t for t in given if t.ndim > 2][:1]):
        last = tensor.ndim - 1
        for axes in {2: [(1,)], 3: [(1,), (2,)]}.get(tensor.ndim, [tuple(range(2, last + 1)), tuple(range(1, last))]):
            sizes = {axis: tensor.shape[axis] for axis in axes}
            tried += [sizes] * (sizes not in tried)
    for sizes in tried:
        less = [_along(call, sizes, 1 / 2)] * (min(sizes.values()) > 1)
        found += less if once and less else [*less, *[_along(call, sizes, 2)] * (given[0].device.type == "cpu")]
    return found


def shortened(call: Call, examples: int, words: int) -> list[Call]:
    """The call with its first examples alone: with at most so many of their words, then with all of them."""
    given = [t for t in call.tensors if t.ndim]
    if not given:
        return []
    count = len(given[0])
    few = _along(call, {0: count}, examples / count) if count > examples else call
    texts = [t for t in given if _words(t)]
    length = texts[0].shape[1] if texts else 0
    return [_along(few, {1: length}, words / length), few] if length > words else [few]


def _words(tensor: Tensor) -> bool:
    """Whether a tensor may hold words: (examples, length) whole numbers."""
    return tensor.ndim == 2 and not tensor.is_floating_point() and tensor.dtype != torch.bool


def _along(call: Call, sizes: Mapping[int, int], times: float) -> Call:
    """The call with other sizes of what has these on these axes: cut, or repeated."""

    def other(tensor: Tensor) -> Tensor:
        if any(tensor.ndim <= axis or tensor.shape[axis] != size for axis, size in sizes.items()):
            return tensor
        for axis, size in sizes.items():
            tensor = tensor.narrow(axis, 0, int(size * times)) if times < 1 else torch.cat([tensor, tensor], axis)
        return tensor

    return call.mapped(other)


@contextmanager
def unnoticed(network: nn.Module) -> Iterator[None]:
    """Calls of the network for a while run no hooks of its user's, and leave its modules and buffers as they were.

    All kinds of hooks are taken off, global ones too, and put back in their order. Those that torch itself puts on
    modules stay, as they compute weights (weight norm, pruning).
    """
    local = [hooks for m in network.modules() for kind in HOOKS if (hooks := vars(m).get(f"_{kind}_hooks"))]
    everywhere = [hooks for name, hooks in vars(modules).items() if name.startswith("_global_") and "_hooks" in name]
    saved = [(hooks, dict(hooks)) for hooks in (*local, *everywhere)]
    try:
        with restored(network):
            for hooks in local:
                for key in [key for key, hook in hooks.items() if not _of_torch(hook)]:
                    del hooks[key]
            for hooks in everywhere:
                hooks.clear()
            yield
    finally:
        for hooks, before in saved:
            hooks.clear()
            hooks.update(before)


def _of_torch(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).split(".")[0] == "torch"
