"""What was inserted into a network is seen to run, in its turn, and to do nothing where that is promised."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmstudy.expansion import blocks, configurations, counts, lineage
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.deeper import Block, Way
from mmstudy.expansion.differences import change
from mmstudy.tracing.calls import Call
from mmstudy.tracing.graph import MEAN, SCALE, SHIFT, VARIANCE

NOT_IN_TURN = (
    "the network does not call each member of that list once in turn. It may count them, call one by its number, or go "
    "through two lists side by side"
)
TRIES = 8  # runs in training mode, before something is said to be left out for good
STILL = 1e-6  # a change of the stream, as a share of how it varies, that is rounding

Made = Sequence[tuple[nn.Module, Block]]  # what was inserted, each with its model


def all_run(
    network: nn.Module,
    new: nn.Module,
    inserted: Made,
    call: Call,
    modules: Mapping[str, nn.Module],
    way: Way,
    longer: Sequence[Longer],
    protected: Sequence[str],
) -> list[str]:
    """See that all that was inserted runs, and all that ran; numbers that say how long these lists are may follow.

    Args:
        modules: what stands for the old network's modules in the new one, by their names in the old one.
        longer: the lists whose counts may follow.

    Returns:
        Those that did, in words.

    Raises:
        ValueError: something does not run, or the class would build another function with the numbers that followed.
    """
    before, hooks = _counting(dict(network.named_modules()))
    blocks.run(network, call, hooks)

    def wrong() -> ValueError | None:
        return _wrong(new, inserted, call, before, modules, way.fits)

    problem, followed = wrong(), list[str]()
    if problem and longer:
        followed = counts.followed(new, network, longer, lambda: wrong() is None, protected)
        problem = wrong()
        if followed and not problem and (off := configurations.astray(network, new, call)):
            raise ValueError(f"{', '.join(followed)}: {off}")
    if problem := problem or _idle_in_training(network, new, inserted, call, modules):
        raise problem
    return followed


def _idle_in_training(
    network: nn.Module, new: nn.Module, inserted: Made, call: Call, old: Mapping[str, nn.Module]
) -> ValueError | None:
    """What is wrong, if something does not run in training mode that runs there in the old network.

    Blocks may be left out at random (stochastic depth): what seems to be left out is looked for in more runs. Of the
    new network the most calls count, of the old one the fewest.
    """
    own, paths = dict(network.named_modules()), {module: path for path, module in new.named_modules()}
    copies = {paths[module]: block.path for module, block in inserted}
    fewest, most, most_new = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(TRIES):
        before, hooks = _counting(own)
        try:
            blocks.run(network, call, hooks, training=seed)
        except Exception:  # not every network can be trained on every batch
            return None
        still, hooks = _counting(old)
        ours, more = _counting({path: new.get_submodule(path) for path in copies})
        try:
            blocks.run(new, call, [*hooks, *more], training=seed)
        except Exception as error:  # whatever a network does when there is one member more than it expects
            return _misfit(inserted, "in training mode", error)
        fewest = before & fewest if seed else before
        most, most_new = most | still, most_new | ours
        if not (idle := _idle(fewest, most, most_new, {path: one for path, one in copies.items() if fewest[one]})):
            return None
    return ValueError(f"in training mode {idle[0]} does not run in the new network: {NOT_IN_TURN}")


def _misfit(inserted: Made, where: str, error: Exception) -> ValueError:
    wrong = ValueError(f"a copy of {inserted[0][1].path} does not fit {where}: {error}")
    wrong.__cause__ = error
    return wrong


def _idle(before: Counter[str], still: Counter[str], new: Counter[str], copies: Mapping[str, str]) -> list[str]:
    """What does not run, in words: of what was inserted, and of what ran before."""
    idle = [f"{path}, a copy of {old}, is inserted and" for path, old in copies.items() if not new[path]]
    return idle + [f"{path}, which runs in the old network," for path, n in before.items() if still[path] < n]


def _counting(modules: Mapping[str, nn.Module]) -> tuple[Counter[str], list[RemovableHandle]]:
    """How often modules are called, by name, as it will stand after a run with these hooks."""
    counts: Counter[str] = Counter()
    hooks = [m.register_forward_pre_hook(lambda m, args, n=name: counts.update([n])) for name, m in modules.items()]
    return counts, hooks


def in_turn(network: nn.Module, inserted: Made, call: Call) -> None:
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


def given_alike(
    network: nn.Module, new: nn.Module, lists: Mapping[str, Sequence[nn.Module | None]], call: Call
) -> None:
    """See that what stood in lists before is still given the same masks and positions, whatever the batch.

    Args:
        lists: the path of each list that got longer → the members that it had, as they are in the new network.

    Raises:
        ValueError: a member is given others: it stands elsewhere now, and its place decides.
    """
    known: dict[tuple, int] = {}
    old, now = dict[str, nn.Module](), dict[str, nn.Module]()
    for path, members in lists.items():
        for (name, theirs), ours in zip(network.get_submodule(path)._modules.items(), members, strict=True):
            if theirs is not None and ours is not None:
                place = f"{path}.{name}".lstrip(".")
                old[place], now[place] = theirs, ours
    before, after = (lineage.given(net, some, call, known) for net, some in ((network, old), (new, now)))
    if moved := lineage.moved(before, after):
        raise ValueError(
            f"{', '.join(moved)}: given other masks or positions than before, because its place in the list decides "
            "which. They are equal on this batch, and need not be on another. Insert as many blocks as leave each of "
            "the old ones what it was given"
        )


def silent(network: nn.Module, inserted: Made, call: Call) -> None:
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


def _wrong(
    network: nn.Module,
    inserted: Made,
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
    new, new_hooks = _counting({paths[module]: module for module, _ in inserted})
    still, old_hooks = _counting(old)
    hooks = [*new_hooks, *old_hooks, *(m.register_forward_hook(check, with_kwargs=True) for m, _ in inserted)]
    if fit:
        hooks += [m.register_forward_pre_hook(lambda m, args, b=block: _fit(m, b, args[0])) for m, block in inserted]
    try:
        blocks.run(network, call, hooks, [module for module, _ in inserted] if fit else ())
    except Exception as error:  # whatever a network does when there is one member more than it expects
        return _misfit(inserted, "where it was to be inserted", error)
    idle = _idle(before, still, new, copies)
    return ValueError(f"{idle[0]} does not run in the new network: {NOT_IN_TURN}") if idle else None


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
