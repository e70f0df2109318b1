"""One thread at a time: what measures a network, or expands it, changes it meanwhile, and torch's settings too."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

ALONE = threading.RLock()  # whoever calls a network in another state than its own holds it


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called by one thread at a time, and with gradients, in whichever mode it is called."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        with ALONE, torch.inference_mode(False):
            return function(*args, **options)

    return call
