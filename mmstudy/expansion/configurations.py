"""The configuration of a grown network: changed so that the network's class builds from it what the network has become.

Nothing is known of any class or name. A configuration is a set of named values that a module keeps, and from which the
module's class builds its tensors anew, by name and shape. It fits a grown network if the class builds that from it, and
what is built is the same function with the same tensors: so what is saved with it is loaded by it.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.core.seeds import generator
from mmstudy.expansion import blocks
from mmstudy.expansion.attributes import name, stays
from mmstudy.expansion.choices import choices
from mmstudy.expansion.counts import Longer
from mmstudy.expansion.differences import change
from mmstudy.expansion.rebuilding import Choice, Configured, built, configured, origins, shapes_of
from mmstudy.expansion.slots import slots
from mmstudy.tracing.calls import Call

CONFIRMED = 8  # ways to change a configuration that are built with their tensors, and called
SHOWN = 3  # numbers that a message names
UNLOADABLE = "its class does not load what is saved of it: that fails, or gives another function"
FAINT = 1e-3  # a tensor whose entries are all smaller hides what it is multiplied with
SAME = 1e-6  # a change of the outputs, as a share of how they vary, that is rounding

Place = tuple[str, str]  # of a number: the path of a module, an attribute of it


def fit(
    old: nn.Module, new: nn.Module, call: Call, longer: Sequence[Longer] = (), protected: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Let a grown network have the configuration that its class would build it from.

    The numbers of sizes and places that its modules keep are then as the class sets them, but for those that were
    others than that before, as they are once somebody has set them: they stay. The network stays as it is if no
    configuration fits.

    Args:
        old: the network before, which its configuration fits.
        longer: its lists of modules that have got longer.
        protected: numbers that must stay, as `attributes.stays` says.

    Returns:
        What was changed; and what is to be said of the configuration, nothing if there is none.
    """
    said: list[str] = []
    parts, words = configured(old)
    for part in parts:
        module = new.get_submodule(part.path)
        kind = part.kind.__name__
        if shapes_of(module) == part.shapes({}):
            continue
        with nullcontext() if longer else _told(new):
            found = _confirmed(part, old, new, call, longer, protected)
        if found is None:
            words.append(
                f"no configuration of {kind} with these numbers changed builds the grown network: it works as it is, "
                f"but {UNLOADABLE}"
            )
            continue
        choice, numbers = found
        before = {slot.path: slot.value for slot in slots(part.config)}
        said += [f"{name(part.path, part.key, *p)}: {before[p]} → {then}" for p, then in choice.items()]
        said += numbers
        words.append(f"{kind} builds the grown network from its configuration")
    return tuple(said), "; ".join(words)


def _confirmed(
    part: Configured,
    old: nn.Module,
    new: nn.Module,
    call: Call,
    longer: Sequence[Longer],
    protected: Sequence[str],
) -> tuple[Choice, list[str]] | None:
    """The first choice that builds the grown network, which then has it; and the numbers of modules that changed."""
    before = None if longer else blocks.run(new, call)  # a longer network may not run without its configuration
    module, model, tried = new.get_submodule(part.path), old.get_submodule(part.path), 0
    stay = _set_since(part, model, origins(model, module, longer))
    for choice in choices(part, module, longer, model, protected):
        if (tried := tried + 1) > CONFIRMED:
            return None
        whole = built(part.kind, part.changed(choice), "cpu")
        if whole is None:
            continue
        _load(whole, module, stay)
        with _as_built(module, whole, part, protected, stay) as (numbers, keep):
            try:
                now = blocks.run(new, call)
                same = change(now, _instead(new, part.path, whole, call)) <= SAME and (
                    before is None or change(before, now) <= SAME
                )
            except Exception:  # whatever a network does with numbers that are wrong
                same = False
            if same:
                keep.append(True)
                if longer:  # what does nothing yet may still have another scale than the class gives it
                    for own, key, then, said in list(_numbers(module, whole, part.path, protected, stay)):
                        setattr(own, key, then)
                        numbers.append(said)
                return choice, numbers
    return None


@contextmanager
def _told(network: nn.Module) -> Iterator[None]:
    """The network with other numbers, for a while, in all tensors that hide what comes before them, as zeros do."""
    faint = [p for p in network.parameters() if p.is_floating_point() and p.numel() and _faint(p)]
    before, stream = [p.data for p in faint], generator("configuration")
    try:
        for p in faint:  # other memory: the old network may have the same tensors
            p.data = (torch.randn(p.shape, generator=stream) / 10).to(p)
        yield
    finally:
        for p, numbers in zip(faint, before, strict=True):
            p.data = numbers


def _faint(tensor: Tensor) -> bool:
    """Whether all entries are small; told without a copy of them."""
    low, high = tensor.aminmax()
    return bool((low > -FAINT) & (high < FAINT))


def astray(old: nn.Module, new: nn.Module, call: Call) -> str:
    """What is to be said of a grown network that its class builds from its configuration as another function.

    What is saved of it would be loaded without an error, and be wrong.

    Args:
        old: the network before, which its configuration fits.

    Returns:
        A sentence that names numbers that differ; nothing if all is well, or if loading fails and so says it itself.
    """
    for part in configured(old)[0]:
        module = new.get_submodule(part.path)
        whole = built(part.kind, copy.deepcopy(vars(module).get(part.key)), "cpu")
        if whole is None or shapes_of(whole) != shapes_of(module):
            continue
        _load(whole, module)
        try:
            gap = change(blocks.run(new, call), _instead(new, part.path, whole, call))
        except Exception:  # it is seen when it is loaded
            continue
        if not gap <= SAME:
            differing = [said for *_, said in _numbers(whole, module, part.path, ())]
            where = f" ({', '.join(differing[:SHOWN])}{', …' if len(differing) > SHOWN else ''})" if differing else ""
            return (
                f"{part.kind.__name__} builds another function from its configuration with the numbers that the grown "
                f"network needs{where}: what is saved of it would be loaded without an error, and its outputs be off "
                f"by {gap:.0e} of how much they vary"
            )
    return ""


def _set_since(part: Configured, old: nn.Module, before: Mapping[str, str]) -> set[Place]:
    """The numbers of a grown module that are its user's: those of the old one that its class does not set so.

    Args:
        before: as `origins` says.
    """
    fresh = built(part.kind, part.changed({}), "meta")
    modules, made = dict(old.named_modules(remove_duplicate=False)), dict[str, nn.Module]()
    made |= dict(fresh.named_modules(remove_duplicate=False)) if fresh is not None else {}
    return {
        (path, key)
        for path, origin in before.items()
        if origin in made
        for key, value in vars(modules[origin]).items()
        if (type(value) is float or _whole(value)) and repr(value) != repr(vars(made[origin]).get(key, value))
    }


def _numbers(
    module: nn.Module, whole: nn.Module, path: str, protected: Sequence[str], stay: Collection[Place] = ()
) -> Iterator[tuple[nn.Module, str, float, str]]:
    """The fractions that modules keep and that are others where they were built: (module, attribute, then, words)."""
    others = dict(whole.named_modules())
    for inner, own in module.named_modules():
        for key, now in vars(own).items():
            then = vars(others[inner]).get(key) if inner in others else None
            where, fixed = name(path, inner, key), (inner, key) in stay
            if type(now) is float and type(then) is float and now != then and not fixed and not stays(protected, where):
                yield own, key, then, f"{where}: {now:.4g} → {then:.4g}"


def _load(whole: nn.Module, module: nn.Module, stay: Collection[Place] = ()) -> None:
    """Give a module that was built anew the tensors of the other one, and these numbers."""
    like = next(iter(module.parameters()))
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()}
    whole.to(like.device)
    if len(kinds) == 1:
        whole.to(kinds.pop())  # buffers that are not saved too
    whole.load_state_dict(module.state_dict(), assign=True)
    modules, others = dict(module.named_modules()), dict(whole.named_modules())
    for path, key in stay:
        if path in modules and path in others:
            setattr(others[path], key, vars(modules[path])[key])


@contextmanager
def _as_built(
    module: nn.Module, whole: nn.Module, part: Configured, protected: Sequence[str], stay: Collection[Place]
) -> Iterator[tuple[list[str], list[bool]]]:
    """The module with the configurations and the sizes of the one that was built; for good, if the list is filled."""
    others, keep = dict(whole.named_modules()), list[bool]()
    undo: list[tuple[nn.Module, str, Any]] = []
    said: list[str] = []
    for path, own in module.named_modules():
        for key, then in vars(others[path]).items() if path in others else ():
            now, where = vars(own).get(key), name(part.path, path, key)
            fixed = key[0] == "_" or (path, key) in stay or stays(protected, where)
            number = _whole(then) and _whole(now) and now != then and not fixed
            if number or (type(then) in part.kinds and type(now) is type(then)):
                undo.append((own, key, now))
                if number:
                    said.append(f"{where}: {now} → {then}")
                setattr(own, key, then)
    try:
        yield said, keep
    finally:
        for own, key, now in reversed(undo if not keep else []):
            setattr(own, key, now)


def _whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, tuple) and all(type(v) is int for v in value))


def _instead(network: nn.Module, path: str, module: nn.Module, call: Call) -> Any:
    """What the network puts out with another module at a path."""
    if not path:
        return blocks.run(module, call)
    parent, _, name = path.rpartition(".")
    around = network.get_submodule(parent)
    own = around._modules[name]
    try:
        around._modules[name] = module
        return blocks.run(network, call)
    finally:
        around._modules[name] = own
