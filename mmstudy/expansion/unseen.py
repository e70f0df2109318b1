"""Numbers that change with the width of a network, and whose effect its batch does not show.

A network may compute numbers from its widths, such as `x * h.shape[-1] ** -0.5`. Where the result is thrown away on
the whole batch (a branch of `torch.where` that no example takes, an expert that the router does not choose), outputs
stay the same however wrong such a number is, and nothing is known of batches on which it counts.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from mmstudy.core.memory import storage
from mmstudy.core.seeds import generator
from mmstudy.tracing.trees import tensors

Numbers = tuple[float, ...]
Given = tuple[str, Numbers]  # an operation, in its module, and the numbers that it is given
Change = tuple[int, str, Numbers, Numbers]  # the place of an operation in the list, its name, its numbers then and now
Run = Callable[[nn.Module, Mapping[str, Tensor]], Any]  # calls a network with other tensors, by name, than its own
SAME = 1e-12  # of numbers, as a share: their rounding
KINDS = ("Tensor", "number", "float")  # of arguments that numbers compute with: others are places and sizes


class _Numbers(TorchDispatchMode):
    """Notes the operations that are given numbers beside their tensors; those of one may be others.

    What is computed from these is known, by whichever operations, in place too: see `reaches`.

    Args:
        running: the paths of the modules that run, the innermost last.
        instead: the number of the operation in the list, and what it is given instead.
    """

    def __init__(self, running: Sequence[str], instead: tuple[int, Numbers] = (-1, ())):
        super().__init__()
        self.found: list[Given] = []
        self.running, self.instead = running, instead
        self.reached, self.written = WeakIdKeyDictionary(), set[int]()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        asked = operation._schema.arguments
        named = {argument.name: argument.type for argument in asked}
        places = {i: value for i, value in enumerate(args) if _counts(value, asked[i].type)}
        keys = {key: value for key, value in kwargs.items() if _counts(value, named[key])}
        if operation is torch.ops.aten.lift_fresh.default and args[0].numel() == 1:  # torch.tensor(a number)
            places[0] = args[0].item()
        numbers = (*places.values(), *keys.values())
        changed = bool(numbers) and self.is_next
        other = iter(self.noted(operation, *numbers))
        args = [_like(value, next(other)) if i in places else value for i, value in enumerate(args)]
        kwargs = {key: next(other) if key in keys else value for key, value in kwargs.items()}
        return self.followed(operation, args, kwargs, changed)

    def followed(self, operation: Any, args: Sequence, kwargs: Mapping, changed: bool) -> Any:
        """What an operation makes; it is computed from other numbers if that is given some, or what is."""
        changed = changed or self.reaches(tree_leaves((args, kwargs)))
        made = operation(*args, **kwargs)
        if changed:
            results = [each for each in tree_leaves(made) if isinstance(each, Tensor)]
            self.reached.update(dict.fromkeys(results))
            if getattr(getattr(operation, "_schema", None), "is_mutable", False):  # all that shares this memory
                self.written.update(map(storage, results))
        return made

    def reaches(self, values: Sequence) -> bool:
        """Whether one of them is computed from the numbers that are others."""
        some = [each for each in values if isinstance(each, Tensor)] if self.reached or self.written else []
        return any(each in self.reached or (self.written and storage(each) in self.written) for each in some)

    @property
    def is_next(self) -> bool:
        """Whether the next operation with numbers is the one that is given others."""
        return len(self.found) == self.instead[0]

    def noted(self, operation: Any, *numbers: float) -> Numbers:
        """The numbers that an operation is to be given instead of these."""
        if not numbers:
            return ()
        given = self.instead[1] if self.is_next else numbers
        self.found.append((f"{operation} in {self.running[-1] or 'the network itself'}", numbers))
        return given


class _Attention(TorchFunctionMode):
    """Attention is one operation to `numbers`, whichever way torch computes it: that depends on the shapes."""

    def __init__(self, numbers: _Numbers):
        super().__init__()
        self.numbers = numbers

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        changed = False
        if kwargs.get("scale") is not None:
            changed = self.numbers.is_next
            (kwargs["scale"],) = self.numbers.noted("attention", kwargs["scale"])
        with _disable_current_modes():
            return self.numbers.followed(function, args, kwargs, changed)


def _counts(value: Any, kind: object) -> bool:
    return type(value) in (int, float) and str(kind).removeprefix("Optional[").rstrip("]") in KINDS


def _like(value: Any, number: float) -> Any:
    return torch.full_like(value, number) if isinstance(value, Tensor) else number


def with_numbers(network: nn.Module, run: Run) -> list[Given]:
    """The operations of a network that are given numbers, in order."""
    return _called(network, run)[1].found


def unseen(network: nn.Module, calls: Sequence[tuple[list[Given], Run]]) -> str | None:
    """What is to be said of a number that became another one, if the outputs are the same with the old one.

    Args:
        network: one that got wider.
        calls: of each batch, what `with_numbers` says of the network before that, and how it is called.
    """
    changed = _changed(network, *calls[0])
    if changed is None:
        return "it computes with other operations than before, so that nobody knows what it does on other batches"
    left = set(changed)
    for i, (before, run) in enumerate(calls if changed else ()):
        if i == 0 or _changed(network, before, run) == changed:  # else it takes another way, on which they are others
            left = _without_effect(network, run, left)
    if not left:
        return None
    _, operation, one, other = min(left)
    now, then = (", ".join(f"{number:g}" for number in numbers) for numbers in (one, other))
    return (
        f"{now} became {then} in {operation}, and the outputs on this batch do not depend on it, so that they do not "
        "tell whether that is right. Give a batch whose outputs do, by also=[...]"
    )


def _changed(network: nn.Module, before: list[Given], run: Run) -> set[Change] | None:
    """The numbers that are others now; None if they are given to other operations."""
    after = with_numbers(network, run)
    if [operation for operation, _ in before] != [operation for operation, _ in after]:
        return None
    pairs = enumerate(zip(before, after, strict=True))
    return {(i, *one, numbers) for i, (one, (_, numbers)) in pairs if not all(map(_alike, one[1], numbers))}


def _alike(one: float, other: float) -> bool:
    return one == other or isclose(one, other, rel_tol=SAME)  # what is computed from tensors is rounded


def _called(
    network: nn.Module, run: Run, opened: Mapping[str, Tensor] | None = None, instead: tuple[int, Numbers] = (-1, ())
) -> tuple[Any, _Numbers]:
    """What a network puts out with other tensors and numbers, and what is known of these."""
    running, hooks = [""], list[RemovableHandle]()
    for path, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda module, args, path=path: running.append(path)))
        hooks.append(module.register_forward_hook(lambda module, args, output: running.__delitem__(-1)))
    try:
        with _Numbers(running, instead) as numbers, _Attention(numbers):
            return run(network, opened or {}), numbers
    finally:
        for hook in hooks:
            hook.remove()


def _in_place_of_zeros(network: nn.Module) -> dict[str, Tensor]:
    """Random numbers for every parameter that is zero throughout."""
    closed = [(name, p) for name, p in network.named_parameters() if p.is_floating_point() and not p.any()]
    stream = generator("in place of zeros")
    return {name: torch.randn(p.shape, generator=stream).to(p) for name, p in closed}


def _without_effect(network: nn.Module, run: Run, changed: set[Change]) -> set[Change]:
    """The changes of numbers that outputs are computed from, and that leave these the same to the last bit.

    Zeros, which close a block, are opened. What no output is computed from has no effect on any batch.
    """
    opened = _in_place_of_zeros(network)
    try:
        after = tensors(_called(network, run, opened)[0])
    except Exception:  # whatever a network does with other tensors than its own
        return set()

    def hidden(change: Change) -> bool:
        try:
            outputs, numbers = _called(network, run, opened, (change[0], change[2]))
        except Exception:  # a size after all
            return False
        before = tensors(outputs)
        return numbers.reaches(before) and all(map(torch.equal, before, after))

    return set(filter(hidden, changed))
