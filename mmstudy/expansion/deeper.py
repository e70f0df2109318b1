"""Deeper: every published way to make a layer or block that is added to a trained network (`insertion` adds it).

What the tensors of a block are for is known from the trace, not from their names.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.core.networks import initialize
from mmstudy.expansion.attributes import relabel
from mmstudy.expansion.replacing import put
from mmstudy.tracing.graph import CONSUMED, MEAN, SCALE, SHIFT, VARIANCE, WEIGHT, Note, Trace

NEUTRAL = {SCALE: 1.0, VARIANCE: 1.0, SHIFT: 0.0, MEAN: 0.0}


@dataclass(frozen=True)
class Block:
    """A member of a list of modules, and what the trace says of it.

    `common`: what it shares with the rest of its network, by number (`id`) → what stands for that in the new network;
    `square`: it keeps the shape of its input.
    """

    network: nn.Module
    path: str
    traced: Trace
    generator: torch.Generator
    common: Mapping[int, Any] = field(default_factory=dict)
    square: bool = False

    @property
    def notes(self) -> dict[str, Note]:
        """Its tensors, by their names inside it → what they do with the units that they make."""
        inside = f"{self.path}."
        return {
            n.tensor.removeprefix(inside): n
            for n in self.traced.notes
            if n.tensor.startswith(inside) and n.role != CONSUMED
        }

    @property
    def branches(self) -> list[str]:
        """The tensors, by their names inside it, that write what is added to the block's stream."""
        inside = f"{self.path}."
        sums = [names for module, names in self.traced.sums if f"{module}.".startswith(inside)]
        return [name.removeprefix(inside) for names in sums for name in names if name.startswith(inside)]

    def copied(self) -> nn.Module:
        """A copy of the module, which shares with the new network what the module shares with the rest of its own."""
        return copy.deepcopy(self.network.get_submodule(self.path), dict(self.common))

    def shares(self, name: str) -> bool:
        """Whether a tensor, by its name inside it, is one of other modules too, so that it has to stay as it is."""
        return id(_tensor(self.network.get_submodule(self.path), name)) in self.common


@dataclass(frozen=True)
class Way:
    """How a block is made, and what that asks of `insertion`.

    Attributes:
        make: a module, of (a copy of) the block that it shall follow.
        trained: it keeps the block's trained parameters, and the optimizer's averages go with them.
        together: all places are repeated as a whole behind the last of them, equally often.
        layers: it makes single layers as well, not only blocks that keep the shape of what runs through.
        silent: its branches end in zeros; that it changes nothing is checked.
        fits: its normalization is fitted to what runs through.
    """

    make: Callable[[Block], nn.Module]
    trained: bool = False
    together: bool = False
    layers: bool = False
    silent: bool = False
    fits: bool = False

    def __call__(self, block: Block) -> nn.Module:
        """The block that is inserted."""
        return self.make(block)


def stack(block: Block) -> nn.Module:
    """A copy of trained blocks, as a whole behind the last of them: depth up-scaling, stacking.

    Gong et al. 2019 (progressive stacking, ICML); Kim et al. 2023, SOLAR (arXiv 2312.15166); Du et al. 2024, G_stack
    (arXiv 2405.15319). The function changes. Applied again and again it is gradual stacking (Reddi et al. 2023).
    """
    return block.copied()


def interleave(block: Block) -> nn.Module:
    """A copy of each trained block right behind it (Chang et al. 2018, arXiv 1710.10348). The function changes."""
    return block.copied()


def identity_block(block: Block) -> nn.Module:
    """A copy of a trained residual block whose branches end in zeros: exact.

    LLaMA Pro: Wu et al. 2024 (arXiv 2401.02415), section 3.2.
    """
    return _silenced(_residual(block), block.copied())


def zero_residual(block: Block) -> nn.Module:
    """A residual block drawn anew whose branches end in zeros: exact.

    Goyal et al. 2017 (arXiv 1706.02677), section 5.1, for residual networks; Fixup: Zhang et al. 2019 (1901.09321).
    """
    return _silenced(block, deeper_random(_residual(block)))


def deeper_random(block: Block) -> nn.Module:
    """A layer or block drawn anew at the default scale: the function changes.

    Its buffers stay, such as a mask or a constant, but for the statistics of normalizations.
    """
    module = block.copied() if block.branches else _square(block)
    initialize(module, block.generator, [tensor for name, tensor in module.named_parameters() if block.shares(name)])
    for name, note in block.notes.items():
        if note.role in NEUTRAL and _own(module, block, name):
            _tensor(module, name).fill_(NEUTRAL[note.role])
    return module


def deeper_identity(block: Block) -> nn.Module:
    """A layer that does nothing: W = 1, b = 0, its normalization undone by its scale and shift (see `insertion`).

    Exact in evaluation mode where a ReLU (or nothing) follows, since relu(relu(x)) = relu(x); batch normalization
    in training sees another batch than the one it was fitted to. Net2DeeperNet: Chen, Goodfellow, Shlens 2016
    (arXiv 1511.05641), section 2.3 and appendix.

    Raises:
        ValueError: the place is a residual block, or more than one layer.
    """
    if block.branches:
        raise ValueError(f"{block.path} is a residual block: zero_residual or identity_block add one that does nothing")
    _read(block)
    module = _square(block)
    for name, note in block.notes.items():
        tensor = _tensor(module, name)
        if not _own(module, block, name):
            continue
        if note.role == WEIGHT:
            _one(tensor)
        else:
            tensor.fill_(NEUTRAL.get(note.role, 0.0))
    return module


def _one(weight: Tensor) -> None:
    """Let the weight of a square layer hand on what it gets; a convolution may be transposed, or have groups."""
    if weight.ndim == 2:
        nn.init.eye_(weight)
    else:
        nn.init.dirac_(weight, groups=max(len(weight) // weight.shape[1], 1))


def _square(block: Block) -> nn.Module:
    """A copy of a single layer, with as many inputs as it has outputs; their weights are zero.

    Raises:
        ValueError: it is no single layer, other modules share it, or it cannot be made square.
    """
    module, weights = block.copied(), [name for name, note in block.notes.items() if note.role == WEIGHT]
    if len(weights) != 1:
        raise ValueError(f"{block.path} is no single layer: it has {len(weights)} weights")
    if tied := ", ".join(filter(block.shares, block.notes)):
        raise ValueError(f"{tied} of {block.path} would have to change, and other modules share that: it must stay")
    tensor, note = _tensor(module, weights[0]), block.notes[weights[0]]
    shape = list(tensor.shape)
    if not block.square:
        axes = block.traced.tensors[note.tensor]
        consumed = {n.axis for n in block.traced.notes if n.tensor == note.tensor and n.role == CONSUMED}
        read = [place for place, axis in enumerate(axes) if axis in consumed]
        if len(read) != 1 or len(consumed) != 1:
            raise ValueError(
                f"{block.path} has not as many outputs as inputs, and how a copy that has is made is not known: it is "
                "transposed, or works in groups"
            )
        shape[read[0]] = note.axis.size
    put(module, weights[0], tensor.new_zeros(shape))
    relabel(module)
    return module


def _residual(block: Block) -> Block:
    """The block, if its branches are known; else a sentence says why none can end in zeros."""
    if not block.branches:
        raise ValueError(
            f"zeros do not silence {block.path}: what it adds to its stream is not zero where its parameters are"
            if block.traced.sums
            else f"{block.path} adds nothing to a stream: it is no residual block, which could end in zeros"
        )
    _read(block)
    return block


def _read(block: Block) -> None:
    """See that a call shows all that a block does.

    Raises:
        ValueError: some of its parameters are not read.
    """
    if block.traced.unread:
        raise ValueError(
            f"no copy of {block.path} is known to do nothing: {', '.join(block.traced.unread)} may change what runs "
            "through too, and this call never reads them. Give a batch on which the network reads them in evaluation "
            "mode, or take them out"
        )


def _silenced(block: Block, module: nn.Module) -> nn.Module:
    """The module with zeros in all that writes what its branches add to the stream."""
    if tied := ", ".join(filter(block.shares, block.branches)):
        raise ValueError(f"{tied} of {block.path} would have to be zero, and other modules share that: it must stay")
    for name in block.branches:
        _tensor(module, name).zero_()
    return module


def _own(module: nn.Module, block: Block, name: str) -> bool:
    """Whether a tensor is drawn with the module: a parameter, or what a normalization keeps beside its variance.

    Other buffers are masks and constants; what other modules share stays.
    """
    if block.shares(name):
        return False
    tensor, path = _tensor(module, name), name.rpartition(".")[0]
    beside = [
        other for other, note in block.notes.items() if note.role == VARIANCE and other.rpartition(".")[0] == path
    ]
    return isinstance(tensor, nn.Parameter) or any(_tensor(module, other).shape == tensor.shape for other in beside)


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)  # a buffer that is not saved is in no state_dict
