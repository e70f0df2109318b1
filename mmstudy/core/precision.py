"""In how many digits torch computes: in measurements, all those of float32, whatever a program has set for training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, backends, nn
from torch.utils._pytree import tree_leaves

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


def advice(network: nn.Module | None, batch: Any) -> str:
    """What to do where a network fails on a batch."""
    return other_type(network, batch) or (
        "Check shapes, types and values of inputs and targets, and how the network is called on them"
    )


def other_type(network: nn.Module | None, batch: Any) -> str:
    """What to do where a network and a batch have one device or type of real numbers each, and not the same."""
    own = list(network.parameters()) if network is not None else []
    given = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    for where, kind, what in (("on ", lambda t: t.device, "move"), ("", lambda t: t.dtype, "convert")):
        kinds = [{kind(t) for t in some if what == "move" or t.is_floating_point()} for some in (own, given)]
        if kinds[0] != kinds[1] and all(len(each) == 1 for each in kinds):
            names = [f"{where}{str(*each).removeprefix('torch.')}" for each in kinds]
            return f"The network is {names[0]} and the batch {names[1]}: {what} one of them"
    return ""


def _set(precisions: Sequence[str]) -> None:
    for each, precision in zip(_SETTINGS, precisions, strict=True):
        each.fp32_precision = precision


def _said(read: Callable[[], T]) -> T | None:
    """What was said in the older way; None where it was said in the newer one."""
    try:
        return read()
    except RuntimeError:
        return None
