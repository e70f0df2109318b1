"""In which mode a network is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmstudy.core import precision
from mmstudy.core.networks import evaluating
from mmstudy.core.threads import ALONE

NORMALIZATION = ("frozen", "recomputed")


@contextmanager
def measuring(network: nn.Module, normalization: str = "frozen", training: bool = False) -> Iterator[None]:
    """The network in evaluation mode, float32 with all its digits, batch normalization as said; then all as it was.

    With `training`, everything is in training mode, but running statistics don't follow.

    Raises:
        ValueError: an unknown normalization.
    """
    if normalization not in NORMALIZATION:
        raise ValueError(f"unknown normalization {normalization!r}; known: {', '.join(NORMALIZATION)}")
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracked, shortcuts = [m.track_running_stats for m in norms], torch.backends.mha.get_fastpath_enabled()
    with ALONE, evaluating(network), precision.full():
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it has no derivative
            network.train(training)
            for module in norms if normalization == "recomputed" else ():
                module.training, module.track_running_stats = True, False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(shortcuts)
            for module, track in zip(norms, tracked, strict=True):
                module.track_running_stats = track
