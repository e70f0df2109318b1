"""Deeper: every published way to add layers or blocks to a trained network.

A place is a member of a `ModuleList` or `Sequential`, e.g. "blocks.1". What is inserted follows it and is modelled on
it, or, if it is a block that changes the shape of what runs through, on the nearest member that does not. What the
tensors of a block are for is known from the trace, not from their names.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmstudy.core.networks import evaluating, initialize
from mmstudy.expansion.surgery import put, relabel
from mmstudy.tracing.graph import CONSUMED, MEAN, SCALE, SHIFT, VARIANCE, WEIGHT, Note, Trace

NEUTRAL = {SCALE: 1.0, VARIANCE: 1.0, SHIFT: 0.0, MEAN: 0.0}


@dataclass(frozen=True)
class Block:
    """A member of a list of modules, and what the trace says of it."""

    network: nn.Module
    path: str
    walked: Trace
    generator: torch.Generator

    @property
    def notes(self) -> dict[str, Note]:
        """Its tensors, by their names inside it → what they do with the units that they make."""
        inside = f"{self.path}."
        return {
            n.tensor.removeprefix(inside): n
            for n in self.walked.notes
            if n.tensor.startswith(inside) and n.role != CONSUMED
        }

    @property
    def branches(self) -> list[str]:
        """The tensors, by their names inside it, that write what is added to the block's stream."""
        inside = f"{self.path}."
        sums = [names for module, names in self.walked.sums if f"{module}.".startswith(inside)]
        return [name.removeprefix(inside) for names in sums for name in names if name.startswith(inside)]

    def copied(self) -> nn.Module:
        """A copy of the module."""
        return copy.deepcopy(self.network.get_submodule(self.path))


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
    return _silenced(block, block.copied())


def zero_residual(block: Block) -> nn.Module:
    """A residual block drawn anew whose branches end in zeros: exact.

    Goyal et al. 2017 (arXiv 1706.02677), section 5.1, for residual networks; Fixup: Zhang et al. 2019 (1901.09321).
    """
    return _silenced(block, deeper_random(block))


def deeper_random(block: Block) -> nn.Module:
    """A layer or block drawn anew at the default scale: the function changes."""
    module = initialize(block.copied() if block.branches else _square(block), block.generator)
    for name, note in block.notes.items():
        if note.role in NEUTRAL:
            _tensor(module, name).fill_(NEUTRAL[note.role])
    return module


def deeper_identity(block: Block) -> nn.Module:
    """A layer that does nothing: W = 1, b = 0, its normalization undone by its scale and shift (see `insert`).

    Exact in evaluation mode where a ReLU (or nothing) follows, since relu(relu(x)) = relu(x); batch normalization
    in training sees another batch than the one it was fitted to. Net2DeeperNet: Chen, Goodfellow, Shlens 2016
    (arXiv 1511.05641), section 2.3 and appendix.

    Raises:
        ValueError: the place is a residual block, or more than one layer.
    """
    if block.branches:
        raise ValueError(f"{block.path} is a residual block: zero_residual or identity_block add one that does nothing")
    module = _square(block)
    for name, note in block.notes.items():
        tensor = _tensor(module, name)
        if note.role == WEIGHT:
            (nn.init.eye_ if tensor.ndim == 2 else nn.init.dirac_)(tensor)
        else:
            tensor.fill_(NEUTRAL.get(note.role, 0.0))
    return module


Way = Callable[[Block], nn.Module]  # what is inserted, made of (a copy of) what it shall follow


def insert(
    network: nn.Module,
    walked: Trace,
    numbers: Mapping[str, int],
    way: Way,
    generator: torch.Generator,
    inputs: Tensor,
) -> tuple[nn.Module, dict[str, str], frozenset[str]]:
    """Behind each place insert that many of what `way` makes of it (`stack`: of all places, behind the last of them).

    Args:
        walked: the trace of the network.
        inputs: a batch of examples; normalizations of layers that do nothing are fitted to it.

    Returns:
        The deeper network; for each of its parameters the old one that it is or is modelled on; which are inserted.

    Raises:
        ValueError: a place is no member of a list of modules, or the way does not fit what is there.
    """
    new = copy.deepcopy(network)
    source = {parameter: name for name, parameter in new.named_parameters()}
    old = set(source)
    places = sorted(numbers, key=_position)
    if way is stack:
        todo = {places[-1]: places * numbers[places[-1]]}
    else:
        todo = {place: [place] * numbers[place] for place in places}
    inserted: list[tuple[nn.Module, Block]] = []
    for place in sorted(todo, key=_position, reverse=True):  # from behind: an insertion moves what follows
        members, index = _member(new, place)
        for offset, wanted in enumerate(todo[place], start=1):
            block = _model(Block(network, wanted, walked, generator), way, inputs)
            with torch.no_grad():
                module = way(block)
            members.insert(index + offset, module)
            inserted.append((module, block))
            source |= {parameter: f"{block.path}.{name}" for name, parameter in module.named_parameters()}
    _run_in(new, inserted, inputs, fit=way is deeper_identity)
    origin = {name: source[parameter] for name, parameter in new.named_parameters()}
    return new, origin, frozenset(name for name, parameter in new.named_parameters() if parameter not in old)


def _square(block: Block) -> nn.Module:
    """A copy of a single layer, with as many inputs as it has outputs; their weights are zero."""
    module, weights = block.copied(), [name for name, note in block.notes.items() if note.role == WEIGHT]
    if len(weights) != 1:
        raise ValueError(f"{block.path} is no single layer: it has {len(weights)} weights")
    tensor, note = _tensor(module, weights[0]), block.notes[weights[0]]
    shape = list(tensor.shape)
    axes = block.walked.tensors[note.tensor]
    (read,) = (axes.index(n.axis) for n in block.walked.notes if n.tensor == note.tensor and n.role == CONSUMED)
    shape[read] = note.axis.size
    put(module, weights[0], tensor.new_zeros(shape))
    relabel(module)
    return module


def _silenced(block: Block, module: nn.Module) -> nn.Module:
    """The module with zeros in all that writes what its branches add to the stream."""
    if not block.branches:
        raise ValueError(f"{block.path} adds nothing to a stream: it is no residual block, which could end in zeros")
    for name in block.branches:
        _tensor(module, name).zero_()
    return module


def _tensor(module: nn.Module, name: str) -> Tensor:
    return module.state_dict()[name]  # shares its memory with the module


def _position(place: str) -> tuple[str, int]:
    parent, _, index = place.rpartition(".")
    return parent, int(index) if index.isdigit() else -1


def _member(network: nn.Module, place: str) -> tuple[nn.ModuleList | nn.Sequential, int]:
    parent, index = _position(place)
    lists = {path: m for path, m in network.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)}
    if parent not in lists or not 0 <= index < len(lists[parent]):
        known = [f"{path}.0 to {path}.{len(m) - 1}".lstrip(".") for path, m in lists.items() if len(m)]
        raise ValueError(f"{place} is no place to insert behind; lists of modules here: {', '.join(known) or 'none'}")
    return lists[parent], index


def _model(block: Block, way: Way, inputs: Tensor) -> Block:
    """The block that is copied: the wanted one if it can be, else the nearest that keeps the shape of its input."""
    members, index = _member(block.network, block.path)
    if way in (deeper_identity, deeper_random) and not block.branches:
        return block  # a single layer, which is made square
    parent = block.path.rpartition(".")[0]
    paths = [f"{parent}.{i}".lstrip(".") for i in sorted(range(len(members)), key=lambda i: (abs(i - index), i))]
    shapes = _shapes(block.network, paths, inputs)
    for path in paths:
        if shapes[path][0] == shapes[path][1]:
            return replace(block, path=path)
    raise ValueError(f"{way.__name__} needs a block that keeps the shape of its input; none beside {block.path} does")


def _shapes(network: nn.Module, paths: Sequence[str], inputs: Tensor) -> dict[str, tuple[torch.Size, torch.Size]]:
    seen = {}
    hooks = [
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.update({path: (args[0].shape, output.shape)})
        )
        for path in paths
    ]
    try:
        with evaluating(network), torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _run_in(network: nn.Module, inserted: list[tuple[nn.Module, Block]], inputs: Tensor, fit: bool) -> None:
    """Run the new network once: see that inserted layers keep shapes, fit their normalizations to their inputs."""

    def check(module, args, output):
        if output.shape != args[0].shape:
            raise RuntimeError(f"it turns {tuple(args[0].shape)} into {tuple(output.shape)}")

    hooks = [module.register_forward_hook(check) for module, _ in inserted]
    if fit:
        hooks += [m.register_forward_pre_hook(lambda m, args, b=block: _fit(m, b, args[0])) for m, block in inserted]
    try:
        with evaluating(network), torch.no_grad():
            network(inputs)
    except RuntimeError as error:
        raise ValueError(
            f"a copy of {inserted[0][1].path} does not fit where it was to be inserted: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _fit(module: nn.Module, block: Block, x: Tensor) -> None:
    """Let a layer that does nothing but normalize undo that: statistics of x, their inverse as scale and shift."""
    roles = {note.role: _tensor(module, name) for name, note in block.notes.items() if note.role in NEUTRAL}
    if not {MEAN, VARIANCE, SCALE, SHIFT} <= roles.keys():
        return
    others = [d for d in range(x.ndim) if d != 1]
    mean, variance = x.mean(others), x.var(others, correction=0)
    roles[MEAN].copy_(mean)
    roles[VARIANCE].copy_(variance)
    level = mean.view(-1, *[1] * (x.ndim - 2)).expand_as(x[:1])
    slope = module.forward(level + 1) - module.forward(level)  # 1 / √(variance + eps), whatever eps is
    roles[SCALE].copy_(1 / slope.mean(others))
    roles[SHIFT].copy_(mean)
