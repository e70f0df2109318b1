"""Calls that leave no trace: not in the network's buffers, nor in what its modules keep, nor in the random numbers."""

import random
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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


@contextmanager
def restored(network: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Whatever calls of the network do to its buffers and its modules' attributes is undone, and to random numbers.

    Lists, dicts and sets that modules keep get back what was in them; other objects that they change stay changed.

    Args:
        but: modules whose buffers may change.
    """
    own = [module for module in network.modules() if module not in but]
    states = [(vars(module), dict(vars(module))) for module in own]
    held = [(value, _content(value)) for _, state in states for key, value in state.items() if _restorable(key, value)]
    buffers = [
        (b, b.detach().clone()) for module in own for b in module._buffers.values() if b is not None and _known(b)
    ]
    try:
        with seeded(network):
            yield
    finally:
        for state, before in states:
            for key in state.keys() - before.keys():
                del state[key]
            state.update(before)
        for value, content in held:
            if len(value) != len(content) or any(a is not b for a, b in zip(_content(value), content, strict=True)):
                _refill(value, content)
        with torch.no_grad():
            for buffer, before_it in buffers:
                if not torch.equal(buffer, before_it):
                    buffer.copy_(before_it)


def _restorable(key: str, value: Any) -> bool:
    return type(value) in HELD and not key.endswith("_hooks") and "_hooks_" not in key


def _known(buffer: Tensor) -> bool:
    return not buffer.is_meta and not buffer.is_inference()


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
