"""In how many digits torch computes: in measurements, all those of float32, whatever a program has set for training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import backends

T = TypeVar("T")
_SETTINGS: list[Any] = [getattr(backends.mkldnn, name) for name in ("conv", "matmul")]  # what this build of torch has
if backends.cudnn.is_available():
    _SETTINGS += [*(getattr(backends.cudnn, name) for name in ("conv", "rnn")), backends.cuda.matmul]


def settings() -> tuple[str, ...]:
    """What torch may make of numbers in float32, operation by operation: "tf32", "bf16", or "ieee" and "none"."""
    return tuple(each.fp32_precision for each in _SETTINGS)


@contextmanager
def full() -> Iterator[None]:
    """No TF32 and no bfloat16 inside of convolutions and matrix products for a while.

    Convolutions on a GPU take TF32 (10 bits of 23) by default, matrix products where `set_float32_matmul_precision`
    says so. Torch has two ways to say it, and refuses to read the older one where the newer one has been used: both are
    put back.
    """
    before = settings()
    if not {"tf32", "bf16"}.intersection(before):
        yield
        return
    convolutions, products = _said(lambda: backends.cudnn.allow_tf32), _said(torch.get_float32_matmul_precision)
    try:
        backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        _set(["ieee"] * len(_SETTINGS))
        yield
    finally:
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        _set(before)


@contextmanager
def autocast(off: bool = False) -> Iterator[list[str]]:
    """Notes for a while what runs under autocast, a network's own regions too.

    One thread at a time may do so.

    Args:
        off: it runs without, and computes in the numbers of its tensors.

    Yields:
        The devices of what runs under autocast, or would have, one for each time.
    """
    met: list[str] = []
    switch: Callable[..., None] = torch.set_autocast_enabled
    outside = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]

    def noted(*given: Any) -> None:  # (device, whether), or only the latter, of a GPU
        *device, enabled = given
        met.extend(["".join(device) or "cuda"] * enabled)
        switch(*device, enabled and not off)

    try:
        torch.set_autocast_enabled = noted  # type: ignore[assignment]  # `torch.autocast` calls it so
        for device in outside:
            noted(device, True)
        yield met
    finally:
        torch.set_autocast_enabled = switch
        for device in outside:
            switch(device, True)


def _set(precisions: Sequence[str]) -> None:
    for each, precision in zip(_SETTINGS, precisions, strict=True):
        each.fp32_precision = precision


def _said(read: Callable[[], T]) -> T | None:
    """What was said in the older way; None where it was said in the newer one."""
    try:
        return read()
    except RuntimeError:
        return None
