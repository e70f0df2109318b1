"""The graph of one call of a network, as torch.export makes it; if it makes none, a sentence says why."""

import linecache
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import Tensor, fx, nn

from mmstudy.core import failing
from mmstudy.tracing.calls import Call
from mmstudy.tracing.trees import tensors

PREFIX = "network."  # of names inside `_Called`


class _Called(nn.Module):
    """The network as a function of the tensors of a call, to those of its outputs."""

    def __init__(self, network: nn.Module, call: Call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rest = iter(given)
        return tuple(tensors(self.call.mapped(lambda old: next(rest)).directly(self.network)))


def exported(network: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """The graph of a call, in which names of tensors begin with `PREFIX`.

    Raises:
        NotImplementedError: the network runs but has no graph.
        ValueError: the network cannot be called so.
    """
    if failing.mismatch(network, call.tensors):  # the shapes that an export computes with do not show it
        _try(network, call)
    try:
        with _sources_forgotten(), _quiet():
            return torch.export.export(_Called(network, call), (tuple(call.tensors),), strict=False)
    except Exception as error:  # whatever the network, or the export, does not take
        _try(network, call)
        first = str(error).strip().partition("\n")[0]
        raise NotImplementedError(f"the network runs, but torch.export cannot follow it: {first}") from error


@contextmanager
def _sources_forgotten() -> Iterator[None]:
    """Take back the source code that torch.fx otherwise keeps for ever of every graph that it makes."""
    kept = fx.graph_module._loader.eval_cache
    before = set(kept)
    try:
        yield
    finally:
        for key in kept.keys() - before:
            del kept[key]
            linecache.cache.pop(key, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged, nor written to stderr: torch shows the graph of what it cannot export, as an error says."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _try(network: nn.Module, call: Call) -> None:
    """Raise what is wrong with the call, if it fails by itself."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            call.of(network)
    except Exception as error:
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in call.tensors)
        helps = failing.advice(network, call.tensors)
        raise ValueError(f"the network cannot be called on this batch ({shapes}): {error}. {helps}") from error
