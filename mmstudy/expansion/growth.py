"""What every way to get wider shares: the growth of one coupling, copies, draws.

A way takes a `Growth` (what grows, by how much, where randomness and data come from) and returns a plan and, where
the plan's matrices do not say it all, a touch that changes the new units in each tensor (see `plans`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments
from mmstudy.core.networks import evaluating
from mmstudy.core.states import restored
from mmstudy.expansion.plans import NEW, Plan, Touch
from mmstudy.tracing.calls import Call, Output, of_loss
from mmstudy.tracing.couplings import Coupling, Use
from mmstudy.tracing.graph import CONSUMED
from mmstudy.tracing.layouts import extent

NOISE = 1e-2  # what parts copies, as a share of each tensor's standard deviation


@dataclass(frozen=True)
class Growth:
    """A coupling of a network that shall have `size` units; some operators learn from the batch by the loss."""

    network: nn.Module
    coupling: Coupling
    size: int
    generator: torch.Generator
    batch: Batch | Call
    loss_fn: LossFn = classification  # (model, batch) → mean loss
    output: Output = None  # what of the network's outputs counts

    @property
    def extra(self) -> int:
        """The number of new units."""
        return self.size - self.coupling.size

    @property
    def call(self) -> Call:
        """How the network is called on the batch."""
        return of_loss(self.network, self.batch, self.loss_fn, self.output)

    @property
    def examples(self) -> int:
        """How many examples there are to learn from.

        Raises:
            ValueError: the batch has no targets, and the loss is none of one's own.
        """
        default = self.loss_fn is classification and isinstance(self.batch, Tensor | Mapping)
        if default or isinstance(self.batch, Call):
            raise ValueError("this operator learns from data: give it inputs and targets")
        return engine.count(self.batch)

    def taking(self, some: Tensor) -> "Growth":
        """The same on these examples alone."""
        return replace(self, batch=engine.take(self.batch, some.to(engine.tensors(self.batch)[0].device)))

    def loss(self, network: nn.Module, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The mean loss over the examples, in evaluation mode, of the network with some parameters replaced.

        Raises:
            ValueError: there are no targets, as `examples` says, or the loss is nothing to learn from.
        """
        _ = self.examples  # there is something to learn from
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # a call may write into them
        with evaluating(network), restored(network):
            loss = engine.loss_of(network, self.loss_fn)(parameters or {}, buffers, self.batch)
            return arguments.differentiable(loss)


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a loss, zero where it does not depend on a tensor; dense, also where an embedding's are not."""
    found = torch.autograd.grad(loss, list(tensors), allow_unused=True, materialize_grads=True)
    return [each.to_dense() if each.is_sparse else each for each in found]


def copied(growth: Growth, generator: torch.Generator | None = None) -> Tensor:
    """Which unit each new one is a copy of, (size,): drawn at random, or in turn.

    Units that are normalized together are copied in turn, and what is left over after whole rounds is NEW.
    """
    n, size = growth.coupling.size, growth.size
    if growth.coupling.normalizations:
        rounds = torch.arange(size) % n
        rounds[size // n * n :] = NEW
        return rounds
    if generator is None:
        return torch.arange(size) % n
    return torch.cat([torch.arange(n), torch.randint(n, (growth.extra,), generator=generator)])


def draw(growth: Growth, grown: Plan, *roles: str) -> Touch:
    """Draw the NEW units in tensors of these roles from the layers' default distribution, U(±1/√fan_in).

    A tensor that is no layer's (an embedding) is drawn with its own standard deviation. Where new units are averages,
    only what reads them through the normalization that takes the average off is drawn: the rest would feel them.
    """
    coupling = growth.coupling
    scales = {normalization.scale for normalization in coupling.normalizations}
    averages = bool((grown.make != grown.shown).any())

    def touch(use: Use, tensor: Tensor) -> Tensor:
        reading = coupling.reads(use)
        if (CONSUMED if reading else use.role) not in roles or (reading and averages and not scales & set(use.reads)):
            return tensor
        new = grown.fresh.to(tensor.device)
        if use.fan_in is None:
            bound = 3**0.5 * tensor[~new].std(correction=0)
        else:
            longer = extent(use.layout, growth.size) / extent(use.layout, coupling.size)
            bound = (use.fan_in * (longer if use.role == CONSUMED else 1)) ** -0.5
        drawn = torch.rand(tensor[new].shape, generator=growth.generator, dtype=tensor.dtype).to(tensor.device)
        tensor[new] = (2 * drawn - 1) * bound
        return tensor

    return touch


def repeatable(touch: Touch | None, generator: torch.Generator) -> Touch | None:
    """The touch that draws the same numbers however often it is asked about a tensor."""
    if touch is None:
        return None
    began, latest = dict[tuple[str, int], Tensor](), [generator.get_state()]

    def again(use: Use, tensor: Tensor) -> Tensor:
        place = use.tensor, use.axis
        first = place not in began
        generator.set_state(began.setdefault(place, latest[0]))
        touched = touch(use, tensor)
        if first:  # each tensor gets numbers of its own
            latest[0] = generator.get_state()
        return touched

    return again


def normal(like: Tensor, growth: Growth) -> Tensor:
    """Standard normal draws of the growth's generator, of the shape, type and device of `like`."""
    return torch.randn(like.shape, generator=growth.generator, dtype=like.dtype).to(like.device)


def direction(rows: Tensor) -> Tensor:
    """Every unit's direction at norm 1 (or 0, where there is none)."""
    return rows / rows.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, *[1] * (rows.ndim - 1))
