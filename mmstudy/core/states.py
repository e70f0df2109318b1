"""Calls that leave no trace: not in a network's tensors, nor in what its modules keep, nor in the random numbers."""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmstudy.core.memory import place

HELD = (list, dict, set, OrderedDict, deque)  # what a module may write into


@contextmanager
def seeded(network: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Random numbers of torch, numpy and Python for a while from this seed; then they go on as if nothing had been.

    Args:
        network: its devices are the ones whose random numbers count, beside the CPU's.
        seed: None lets them go on from where they are.
    """
    own = torch.default_generator
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    python, numbers, plain = random.getstate(), np.random.get_state(), own.get_state()  # noqa: NPY002
    there = {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        if seed is not None:
            own.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            for device in devices:
                torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
    finally:
        own.set_state(plain)
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        for device, state in there.items():
            torch.cuda.set_rng_state(state, device)


def uncompiled() -> AbstractContextManager[Any]:
    """Compiled modules run as they were written, so that hooks inside them run too; without any, nothing is done."""
    known = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if known else nullcontext()


@contextmanager
def restored(
    network: nn.Module, but: Collection[nn.Module] = (), parameters: bool = False
) -> Iterator[Mapping[int, Tensor]]:
    """Whatever calls of the network do to its buffers and its modules' attributes is undone, and to random numbers.

    Lists, dicts and sets that modules keep get back what was in them; other objects that they change stay changed.

    Args:
        but: modules whose buffers may change.
        parameters: undo changes of parameters too, which takes a copy of them.

    Yields:
        The number (`id`) of each tensor that gets back what was in it → that.
    """
    own = [module for module in network.modules() if module not in but]
    states = [(vars(module), dict(vars(module))) for module in own]
    held = [(value, _content(value)) for _, state in states for key, value in state.items() if _restorable(key, value)]
    named = [b for module in own for b in module._buffers.values()]
    named += [p for module in own for p in module._parameters.values()] if parameters else []
    tensors = [(t, t.data, t.detach().clone()) for t in named if t is not None and _known(t)]
    try:
        with seeded(network):
            yield {id(tensor): numbers for tensor, _, numbers in tensors}
    finally:
        for state, before in states:
            for key in state.keys() - before.keys():
                del state[key]
            state.update(before)
        for value, content in held:
            if len(value) != len(content) or any(a is not b for a, b in zip(_content(value), content, strict=True)):
                _refill(value, content)
        with torch.no_grad():
            for tensor, memory, numbers in tensors:
                if tensor.layout == torch.strided and place(tensor) != place(memory):
                    tensor.data = memory
                if not torch.equal(tensor, numbers):
                    tensor.copy_(numbers)


def changed_by_mode(network: nn.Module) -> str:
    """What to say of a network whose modules change parameters when their mode changes; nothing if none does.

    A change of weights of low rank (LoRA) that evaluation mode adds to them is one.
    """
    own = [m for m in network.modules() if type(m).train is not nn.Module.train or type(m).eval is not nn.Module.eval]
    if not own:
        return ""
    with restored(network, parameters=True) as known:
        before = {name: known[id(p)] for name, p in network.named_parameters() if id(p) in known}
        for mode in (True, False):
            network.train(mode)
            for name, now in network.named_parameters():
                if name in before and not torch.equal(now, before[name]):
                    return (
                        f"{name} changes when the network changes between training and evaluation mode, by a train() "
                        f"of {', '.join(sorted({type(m).__name__ for m in own}))}: merge what is added there for good, "
                        "or take it out"
                    )
    return ""


def _restorable(key: str, value: Any) -> bool:
    return type(value) in HELD and not key.endswith("_hooks") and "_hooks_" not in key


def _known(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta and not tensor.is_inference()


def _content(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair] if isinstance(value, dict) else list(value)


def _refill(value: Any, content: list[Any]) -> None:
    value.clear()
    if isinstance(value, dict):
        value.update(zip(content[::2], content[1::2], strict=True))
    elif isinstance(value, set):
        value.update(content)
    else:
        value.extend(content)
