"""Layers and blocks inserted into a trained network; `running` sees that each of them runs, and all that ran before.

What is inserted follows a place (see `blocks`) and is modelled on the member there, or, if that is a block that changes
the shape of what runs through, on the nearest member that does not. Numbers that go with the length of a list follow:
the place that a member keeps of itself, the count of a loop, a configuration.

What is inserted learns, all of it, also behind blocks that are frozen. Only a copy that is trained already (`stack`,
`interleave`) is as frozen as what it is a copy of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from mmstudy.expansion import blocks, configurations, counts, running
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.deeper import Block, Way
from mmstudy.expansion.replacing import common, sharing
from mmstudy.tracing.calls import Call
from mmstudy.tracing.graph import Trace


@dataclass(frozen=True)
class Inserted:
    """A deeper network, which shares its parameters, but for those inserted, with the old one.

    `origin`: for each of its parameters the old one that it is or is modelled on; `new`: those that are inserted;
    `changed`: numbers that follow; `configuration`: what is to be said of the network's, if it has one.
    """

    network: nn.Module
    origin: dict[str, str]
    new: frozenset[str]
    changed: tuple[str, ...]
    configuration: str


def insert(
    network: nn.Module,
    numbers: Mapping[str, int],
    way: Way,
    generator: torch.Generator,
    call: Call,
    protected: Sequence[str] = (),
    traces: dict[str, Trace] | None = None,
) -> Inserted:
    """Behind each place insert that many of what `way` makes of it; if `together`, of all places, behind the last.

    Args:
        call: how the network is called on examples; normalizations of layers that do nothing are fitted to them.
        protected: numbers that must stay, as `attributes.stays` says.
        traces: those of members alone that earlier insertions into this network have made; new ones are added.

    Raises:
        NotImplementedError: a block has an operation whose effect is not known.
        ValueError: a place is no member of a list of modules, the way does not fit what is there, or something that
            was inserted, or that ran before, does not run in the new network, or what its class builds from a
            configuration that had to change is another function.
    """
    pairs, known = dict[int, Any](), {} if traces is None else traces
    new = sharing(network, pairs)
    modules = dict(new.named_modules(remove_duplicate=False))
    source = {parameter: name for name, parameter in new.named_parameters()}
    old = set(source)
    models = {place: _model(network, place, generator, way, call, pairs, known) for place in numbers}
    lists = {path: list(new.get_submodule(path)._modules.values()) for path in sorted(map(_list, numbers))}
    inserted = _put_in(new, numbers, way, models)
    for module, block in inserted:
        copied = network.get_submodule(block.path)
        source |= {p: source[copied.get_parameter(name)] for name, p in module.named_parameters()}
    longer = [_longer(modules, path, members, inserted) for path, members in lists.items()]
    changed = [said for one in longer for said in counts.renumbered(one, protected)]
    fitted, configuration = configurations.fit(network, new, call, longer, protected)
    changed += running.all_run(network, new, inserted, call, modules, way, () if fitted else longer, protected)
    running.in_turn(new, inserted, call)
    if way.silent:
        running.silent(new, inserted, call)
        running.given_alike(network, new, lists, call)
    origin = {name: source[parameter] for name, parameter in new.named_parameters()}
    own = frozenset(name for name, parameter in new.named_parameters() if parameter not in old)
    return Inserted(new, origin, own, (*changed, *fitted), configuration)


def _list(place: str) -> str:
    """The path of the list whose member is at a place."""
    return place.rpartition(".")[0]


def _put_in(
    new: nn.Module, numbers: Mapping[str, int], way: Way, models: Mapping[str, Block]
) -> list[tuple[nn.Module, Block]]:
    """Insert behind each place that many of what a way makes of its model; returns them, with their models."""
    at = {place: (_list(place), blocks.member(new, place)[1]) for place in numbers}
    places = sorted(numbers, key=at.__getitem__)
    if way.together:
        todo = {places[-1]: places * numbers[places[-1]]}
    else:
        todo = {place: [place] * numbers[place] for place in places}
    inserted: list[tuple[nn.Module, Block]] = []
    for place in sorted(todo, key=at.__getitem__, reverse=True):  # an insertion moves what follows
        members, index = blocks.member(new, place)
        first = len(inserted)
        for block in map(models.__getitem__, todo[place]):
            with torch.no_grad():
                module = way(block)
            if not way.trained:
                _learns(module, block)
            inserted.append((module, block))
        blocks.insert(members, index, [module for module, _ in inserted[first:]])
    return inserted


def _learns(module: nn.Module, block: Block) -> None:
    """Let what is new in a module be trained, also if it is modelled on something that is frozen."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not block.shares(name):
            parameter.requires_grad_()


def _model(
    network: nn.Module,
    wanted: str,
    generator: torch.Generator,
    way: Way,
    call: Call,
    pairs: dict[int, Any],
    traces: dict[str, Trace],
) -> Block:
    """The block that is copied: the wanted one if it can be, else the nearest that keeps the shape of its input."""

    @cache
    def of(path: str) -> Block:
        theirs = common(network, network.get_submodule(path), pairs)
        block = Block(network, path, Trace(), generator, theirs, path in shapes and len(set(shapes[path])) == 1)
        if way.trained:
            return block
        if path not in traces:
            traces[path] = blocks.alone(network, path, call, block.shares)
        return replace(block, traced=traces[path])

    members, index = blocks.member(network, wanted)
    parent, names = wanted.rpartition(".")[0], list(members._modules)
    paths = [f"{parent}.{names[i]}".lstrip(".") for i in sorted(range(len(names)), key=lambda i: (abs(i - index), i))]
    shapes = blocks.shapes(network, paths, call)
    if wanted not in shapes:
        raise ValueError(f"{wanted} is not called on this batch, so that nothing can be modelled on it")
    if way.layers and not (block := of(wanted)).branches:
        return block  # a single layer, which is made square
    for path in paths:
        if path in shapes and shapes[path][0] == shapes[path][1]:
            return of(path)
    raise ValueError(f"{way.make.__name__} needs a block that keeps the shape of its input; none beside {wanted} does")


def _longer(
    modules: Mapping[str, nn.Module],
    path: str,
    old: list[nn.Module | None],
    inserted: running.Made,
) -> Longer:
    """What has become of a list of these old members; `modules`: all that are old, by name."""
    number = {member: i for i, member in reversed(list(enumerate(old))) if member is not None}
    number |= {module: number.get(modules[block.path], -1) for module, block in inserted}
    sources: list[int] = []
    for member in modules[path]._modules.values():
        assert member is not None
        place = number[member]
        sources.append(
            sources[-1] if place < 0 else place
        )  # a copy of what is in another list goes with the one before
    return Longer(path, modules[path], len(old), tuple(sources))
