"""Layers and blocks inserted into a trained network, which is run to see that each of them, and all that ran, runs.

A place is a member of a `ModuleList` or `Sequential`, e.g. "blocks.1". What is inserted follows it and is modelled on
it, or, if it is a block that changes the shape of what runs through, on the nearest member that does not.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmstudy.core.networks import evaluating
from mmstudy.expansion.deeper import Block, Way, deeper_identity, deeper_random, stack
from mmstudy.expansion.replacing import copied
from mmstudy.tracing.calls import Call, tensors
from mmstudy.tracing.graph import MEAN, SCALE, SHIFT, VARIANCE, Trace


def insert(
    network: nn.Module,
    traced: Trace,
    numbers: Mapping[str, int],
    way: Way,
    generator: torch.Generator,
    call: Call,
) -> tuple[nn.Module, dict[str, str], frozenset[str]]:
    """Behind each place insert that many of what `way` makes of it (`stack`: of all places, behind the last of them).

    Args:
        traced: the trace of the network.
        call: how the network is called on examples; normalizations of layers that do nothing are fitted to them.

    Returns:
        The deeper network; for each of its parameters the old one that it is or is modelled on; which are inserted.

    Raises:
        ValueError: a place is no member of a list of modules, the way does not fit what is there, or something that
            was inserted, or that ran before, does not run in the new network.
    """
    new = copied(network)
    source = {parameter: name for name, parameter in new.named_parameters()}
    old, modules = set(source), dict(new.named_modules())
    places = sorted(numbers, key=_position)
    if way is stack:
        todo = {places[-1]: places * numbers[places[-1]]}
    else:
        todo = {place: [place] * numbers[place] for place in places}
    inserted: list[tuple[nn.Module, Block]] = []
    for place in sorted(todo, key=_position, reverse=True):  # from behind: an insertion moves what follows
        members, index = _member(new, place)
        for offset, wanted in enumerate(todo[place], start=1):
            block = _model(Block(network, wanted, traced, generator), way, call)
            with torch.no_grad():
                module = way(block)
            members.insert(index + offset, module)
            inserted.append((module, block))
            source |= {parameter: f"{block.path}.{name}" for name, parameter in module.named_parameters()}
    before, hooks = _counting(dict(network.named_modules()))
    _run(network, call, hooks)
    _run_in(new, inserted, call, before, modules, fit=way is deeper_identity)
    origin = {name: source[parameter] for name, parameter in new.named_parameters()}
    return new, origin, frozenset(name for name, parameter in new.named_parameters() if parameter not in old)


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


def _model(block: Block, way: Way, call: Call) -> Block:
    """The block that is copied: the wanted one if it can be, else the nearest that keeps the shape of its input."""
    members, index = _member(block.network, block.path)
    if way in (deeper_identity, deeper_random) and not block.branches:
        return block  # a single layer, which is made square
    parent = block.path.rpartition(".")[0]
    paths = [f"{parent}.{i}".lstrip(".") for i in sorted(range(len(members)), key=lambda i: (abs(i - index), i))]
    shapes = _shapes(block.network, paths, call)
    for path in paths:
        if path in shapes and shapes[path][0] == shapes[path][1]:
            return replace(block, path=path)
    raise ValueError(f"{way.__name__} needs a block that keeps the shape of its input; none beside {block.path} does")


def _shapes(network: nn.Module, paths: Sequence[str], call: Call) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The shapes of what modules are called with and of what they put out; of those that run."""
    seen = {}

    def note(path: str) -> Callable[..., None]:
        return lambda module, given, options, output: seen.update({path: _before_and_after(given, options, output)})

    hooks = [network.get_submodule(path).register_forward_hook(note(path), with_kwargs=True) for path in paths]
    _run(network, call, hooks)
    return seen


def _before_and_after(given: tuple, options: Mapping[str, Any], output: Any) -> tuple[torch.Size, torch.Size]:
    (before, *_), (after, *_) = tensors((given, options)), tensors(output)
    return before.shape, after.shape


def _counting(modules: Mapping[str, nn.Module]) -> tuple[Counter[str], list[RemovableHandle]]:
    """How often modules are called, by name, as it will stand after a run with these hooks."""
    counts: Counter[str] = Counter()
    hooks = [m.register_forward_pre_hook(lambda m, args, n=name: counts.update([n])) for name, m in modules.items()]
    return counts, hooks


def _run(network: nn.Module, call: Call, hooks: Sequence[RemovableHandle]) -> None:
    """Call the network once, and take the hooks off."""
    try:
        with evaluating(network), torch.no_grad():
            call.of(network)
    finally:
        for hook in hooks:
            hook.remove()


def _run_in(
    network: nn.Module,
    inserted: list[tuple[nn.Module, Block]],
    call: Call,
    before: Counter[str],  # how often each old module was called in the old network, by its name there
    old: Mapping[str, nn.Module],  # these modules in the new network
    fit: bool,
) -> None:
    """Run the new network once: see that what was inserted runs and keeps shapes, and that all that ran still does.

    Normalizations of layers that do nothing are fitted to their inputs meanwhile.

    Raises:
        ValueError: it does not run, or something in it does not that should.
    """

    def check(module: nn.Module, given: tuple, options: dict, output: Any) -> None:
        shapes = _before_and_after(given, options, output)
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"it turns {tuple(shapes[0])} into {tuple(shapes[1])}")

    paths = {module: path for path, module in network.named_modules()}
    copies = {paths[module]: block.path for module, block in inserted}
    new, new_hooks = _counting({paths[module]: module for module, _ in inserted})
    still, old_hooks = _counting(old)
    hooks = [*new_hooks, *old_hooks, *(m.register_forward_hook(check, with_kwargs=True) for m, _ in inserted)]
    if fit:
        hooks += [m.register_forward_pre_hook(lambda m, args, b=block: _fit(m, b, args[0])) for m, block in inserted]
    try:
        _run(network, call, hooks)
    except Exception as error:  # whatever a network does when there is one member more than it expects
        raise ValueError(
            f"a copy of {inserted[0][1].path} does not fit where it was to be inserted: {error}"
        ) from error
    idle = [f"{path}, a copy of {copy}, is inserted and" for path, copy in copies.items() if not new[path]]
    idle += [f"{path}, which runs in the old network," for path, count in before.items() if still[path] < count]
    if idle:
        raise ValueError(
            f"{idle[0]} does not run in the new network: the network does not call each member of that list once in "
            "turn. It may count them, call one by its number, or go through two lists side by side"
        )


def _fit(module: nn.Module, block: Block, x: Tensor) -> None:
    """Let a layer that does nothing but normalize undo that: statistics of x, their inverse as scale and shift."""
    state = module.state_dict()  # shares its memory with the module
    roles = {note.role: state[name] for name, note in block.notes.items() if name in state}
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
