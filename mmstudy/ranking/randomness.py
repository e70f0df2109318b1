"""The random numbers of torch, numpy and Python together: seeded, kept, and given back to the user."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def seed_all(number: int) -> None:
    """Set the draws of torch, numpy and Python to a number."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (users' loaders draw from it)
    random.seed(number)


def random_state() -> dict[str, Any]:
    """Where the draws of all of them have come to: tensors and plain values."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    kind, key, *rest = np.random.get_state()  # noqa: NPY002
    state["numpy"] = [kind, torch.tensor(np.asarray(key, np.int64)), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Let them go on from there."""
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(state["python"])
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """The user's own random numbers go on afterwards as if nothing had been drawn."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
