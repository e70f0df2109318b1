"""How the data that modules are given, such as masks and positions, has been computed from the batch.

Two masks may be equal on one batch and not on another: that of nearby words and that of all earlier words are on a
short text. They are equal on every batch if the same operations have made them of the same data.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from mmstudy.expansion import blocks
from mmstudy.tracing.calls import Call

LEARNED = -1  # parameters reach it, or nobody knows
Given = list[int | None]  # of each tensor how it was computed, of what is no tensor None


class _Lineage(TorchDispatchMode):
    """Numbers what operations make: the same number for what is computed alike, `LEARNED` for what parameters reach.

    Args:
        known: operation and the numbers of its operands → number; several networks may share it.
    """

    def __init__(self, network: nn.Module, known: dict[tuple, int]):
        super().__init__()
        self.known, self.numbers = known, WeakIdKeyDictionary()
        self.numbers.update(dict.fromkeys(network.parameters(), LEARNED))

    def of(self, tensor: Tensor) -> int:
        """The number of a tensor; what no operation has made is known by its values, if these can be read."""
        if tensor not in self.numbers:
            try:
                with _disable_current_modes():
                    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                self.numbers[tensor] = self._number(tensor.dtype, tensor.shape, hashlib.sha256(values).digest())
            except (NotImplementedError, RuntimeError, TypeError):  # sparse, say
                self.numbers[tensor] = LEARNED
        return self.numbers[tensor]

    def _number(self, *key: Any) -> int:
        return self.known.setdefault(key, len(self.known))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[override]
        kwargs = kwargs or {}
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        numbers = [self.of(operand) for operand in operands]
        made = operation(*args, **kwargs)
        learned = LEARNED in numbers
        call = "" if learned else repr(tree_map_only(Tensor, self.of, (args, kwargs)))
        for i, result in enumerate(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
            self.numbers[result] = LEARNED if learned else self._number(operation, call, i)
        return made


def given(network: nn.Module, members: Mapping[str, nn.Module], call: Call, known: dict[tuple, int]) -> dict[str, list]:
    """What modules are given when their network is called, by name, for each of their calls."""
    lineage, heard = _Lineage(network, known), {name: list[Given]() for name in members}

    def note(name: str, module: nn.Module, args: tuple, options: dict) -> None:
        leaves = tree_leaves((args, options))
        heard[name].append([lineage.of(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves])

    hooks = [m.register_forward_pre_hook(partial(note, name), with_kwargs=True) for name, m in members.items()]
    with lineage:
        blocks.run(network, call, hooks)
    return heard


def moved(before: Mapping[str, Sequence[Given]], after: Mapping[str, Sequence[Given]]) -> list[str]:
    """The modules that are given other data than before; what parameters reach may be anything."""

    def other(one: Given, two: Given) -> bool:
        return len(one) != len(two) or any(a != b and LEARNED not in (a, b) for a, b in zip(one, two, strict=True))

    return [
        name for name, calls in before.items() if len(calls) != len(after[name]) or any(map(other, calls, after[name]))
    ]
