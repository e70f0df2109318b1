"""Layers and blocks inserted into a trained network, which is run to see that each of them, and all that ran, runs.

What is inserted follows a place (see `blocks`) and is modelled on the member there, or, if that is a block that changes
the shape of what runs through, on the nearest member that does not. Numbers that go with the length of a list follow:
the place that a member keeps of itself, the count of a loop, a configuration.

What is inserted learns, all of it, also behind blocks that are frozen. Only a copy that is trained already (`stack`,
`interleave`) is as frozen as what it is a copy of.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.expansion import blocks, configurations, counts
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.deeper import Block, Way
from mmstudy.expansion.differences import change
from mmstudy.expansion.replacing import common, sharing
from mmstudy.tracing.calls import Call
from mmstudy.tracing.graph import MEAN, SCALE, SHIFT, VARIANCE, Trace

STILL = 1e-6  # a change of the stream, as a share of how it varies, that is rounding


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
    pairs = dict[int, Any]()
    new = sharing(network, pairs)
    source = {parameter: name for name, parameter in new.named_parameters()}
    old, modules = set(source), dict(new.named_modules(remove_duplicate=False))
    at = {place: (place.rpartition(".")[0], blocks.member(network, place)[1]) for place in numbers}
    lists = {
        path: list(new.get_submodule(path)._modules.values()) for path in sorted({path for path, _ in at.values()})
    }
    places = sorted(numbers, key=lambda place: at[place])
    if way.together:
        todo = {places[-1]: places * numbers[places[-1]]}
    else:
        todo = {place: [place] * numbers[place] for place in places}
    models: dict[str, Block] = {}
    inserted: list[tuple[nn.Module, Block]] = []
    for place in sorted(todo, key=lambda place: at[place], reverse=True):  # an insertion moves what follows
        members, index = blocks.member(new, place)
        first = len(inserted)
        for wanted in todo[place]:
            if wanted not in models:
                models[wanted] = _model(network, wanted, generator, way, call, pairs, {} if traces is None else traces)
            block = models[wanted]
            with torch.no_grad():
                module = way(block)
            if not way.trained:
                _learns(module, block)
            inserted.append((module, block))
            copied = network.get_submodule(block.path)
            source |= {p: source[copied.get_parameter(name)] for name, p in module.named_parameters()}
        blocks.insert(members, index, [module for module, _ in inserted[first:]])
    longer = [_longer(modules, path, members, inserted) for path, members in lists.items()]
    changed = [said for one in longer for said in counts.renumbered(one, protected)]
    fitted, configuration = configurations.fit(network, new, call, longer, protected)
    before, hooks = blocks.counting(dict(network.named_modules()))
    blocks.run(network, call, hooks)
    wrong = _wrong(new, inserted, call, before, modules, way.fits)
    if wrong and not fitted:

        def runs() -> bool:
            return _wrong(new, inserted, call, before, modules, way.fits) is None

        followed = counts.followed(new, network, longer, runs, protected)
        changed += followed
        wrong = _wrong(new, inserted, call, before, modules, way.fits)
        if followed and not wrong and (off := configurations.astray(network, new, call)):
            raise ValueError(f"{', '.join(followed)}: {off}")
    if wrong:
        raise wrong
    _in_turn(new, inserted, call)
    if way.silent:
        _silent(new, inserted, call)
    origin = {name: source[parameter] for name, parameter in new.named_parameters()}
    own = frozenset(name for name, parameter in new.named_parameters() if parameter not in old)
    return Inserted(new, origin, own, (*changed, *fitted), configuration)


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


def _silent(network: nn.Module, inserted: Sequence[tuple[nn.Module, Block]], call: Call) -> None:
    """Refuse blocks that do something although their branches end in zeros; the message names the module that does.

    And those that would always do nothing.

    Raises:
        ValueError: one changes what runs through, or no gradient arrives where its branches end.
    """
    paths = {module: path for path, module in network.named_modules()}
    silent = blocks.silent(network, [module for module, _ in inserted], call, STILL)
    for module, block in inserted:
        if module in silent:
            continue
        before, after, last = blocks.passed(module, blocks.overheard(network, paths[module], call))
        if before.shape == after.shape and change(before, after) <= STILL:
            continue
        behind = f"{block.path}.{last} stands behind its branches, and" if last else "it"
        raise ValueError(
            f"no copy of {block.path} does nothing: {behind} changes what runs through even where they add nothing. "
            "stack, interleave and deeper_random insert one that changes the function"
        )
    for module, block in {block.path: (module, block) for module, block in inserted}.values():
        if not blocks.learns(module, block.branches, blocks.overheard(network, paths[module], call)):
            raise ValueError(
                f"a copy of {block.path} that does nothing would never learn on this batch: where its branches end "
                f"({', '.join(block.branches)}), all gradients are zero"
            )


def _longer(
    modules: Mapping[str, nn.Module],
    path: str,
    old: list[nn.Module | None],
    inserted: Sequence[tuple[nn.Module, Block]],
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


def _wrong(
    network: nn.Module,
    inserted: list[tuple[nn.Module, Block]],
    call: Call,
    before: Counter[str],  # how often each old module was called in the old network, by its name there
    old: Mapping[str, nn.Module],  # these modules in the new network
    fit: bool,
) -> ValueError | None:
    """Run the new network once: what is wrong, if not all that was inserted runs and keeps shapes, or not all that ran.

    Normalizations of layers that do nothing are fitted to their inputs meanwhile.
    """

    def check(module: nn.Module, given: tuple, options: dict, output: Any) -> None:
        now, then = blocks.stream((given, options), output)
        if now.shape != then.shape:
            raise RuntimeError(f"it turns {tuple(now.shape)} into {tuple(then.shape)}")

    paths = {module: path for path, module in network.named_modules()}
    copies = {paths[module]: block.path for module, block in inserted}
    new, new_hooks = blocks.counting({paths[module]: module for module, _ in inserted})
    still, old_hooks = blocks.counting(old)
    hooks = [*new_hooks, *old_hooks, *(m.register_forward_hook(check, with_kwargs=True) for m, _ in inserted)]
    if fit:
        hooks += [m.register_forward_pre_hook(lambda m, args, b=block: _fit(m, b, args[0])) for m, block in inserted]
    try:
        blocks.run(network, call, hooks, [module for module, _ in inserted] if fit else ())
    except Exception as error:  # whatever a network does when there is one member more than it expects
        wrong = ValueError(f"a copy of {inserted[0][1].path} does not fit where it was to be inserted: {error}")
        wrong.__cause__ = error
        return wrong
    idle = [f"{path}, a copy of {copied}, is inserted and" for path, copied in copies.items() if not new[path]]
    idle += [f"{path}, which runs in the old network," for path, count in before.items() if still[path] < count]
    if not idle:
        return None
    return ValueError(
        f"{idle[0]} does not run in the new network: the network does not call each member of that list once in "
        "turn. It may count them, call one by its number, or go through two lists side by side"
    )


def _in_turn(network: nn.Module, inserted: Sequence[tuple[nn.Module, Block]], call: Call) -> None:
    """See that what is inserted works on what the member before it puts out, by changing that.

    Raises:
        ValueError: it does not.
    """
    paths = {module: path for path, module in network.named_modules()}
    lists = [[m for m in each._modules.values() if m is not None] for each in network.modules()]  # some have no truth
    before = {two: one for members in lists for one, two in pairwise(members)}
    known = blocks.following(network, {module: before[module] for module, _ in inserted}, call)
    for module, block in inserted:
        if module in known:
            continue
        place, previous = paths[module], before[module]
        given = blocks.overheard(network, place, call)
        try:
            with blocks.moved(previous):
                after = blocks.overheard(network, place, call)
        except Exception:  # a network that fails on it works on it
            continue
        pairs = zip(given.tensors, after.tensors, strict=True)
        if all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            raise ValueError(
                f"{place}, a copy of {block.path}, is inserted, but does not work on what {paths[previous]} puts out: "
                "the members of that list are not called one after another, each on what the one before puts out"
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
