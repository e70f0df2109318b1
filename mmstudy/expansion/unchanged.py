"""What an expansion must leave alone (modes, ties, frozen parameters, types), and the numbers that it changed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmstudy.core.memory import together
from mmstudy.expansion.blocks import List
from mmstudy.expansion.rebuilding import configured
from mmstudy.expansion.slots import everything

Finding = tuple[str, int, list[str]]  # what must stay, of how many things, and those that did not


def stayed(old: nn.Module, new: nn.Module) -> list[Finding]:
    """What has to stay: modes, ties, frozen parameters, rows for padding, types of numbers and kinds of buffers."""
    before, after = (dict(net.named_parameters(remove_duplicate=False)) for net in (old, new))
    origin = _origins(old, new)
    frozen = [name for name, then in after.items() if name in origin and not before[origin[name]].requires_grad]
    loose = [name for name in frozen if after[name].requires_grad]
    ties, kept = _ties(before), {frozenset(origin.get(name, "") for name in group) for group in _ties(after)}
    parted = [group for group in ties if not any(group <= each for each in kept)]
    padding, rows = map(_padded, (old, new))
    zero = [path for path, row in padding.items() if path in rows and not row.any()]
    types = [name for name in origin if after[name].dtype != before[origin[name]].dtype]
    buffers, now = (dict(net.named_buffers()) for net in (old, new))
    types += [name for name, b in buffers.items() if name in now and now[name].dtype != b.dtype]
    types += [name for name in _saved(old) ^ _saved(new) if name in buffers and name in now]
    modes, other = ({m.training for m in net.modules()} for net in (old, new))
    return [
        ("modes are as they were", len(modes), [f"training = {mode}" for mode in sorted(modes ^ other)]),
        ("tied tensors stay tied", len(ties), [" = ".join(sorted(group)) for group in parted]),
        ("frozen parameters stay frozen", len(frozen), loose),
        ("rows for padding stay zero", len(zero), [path for path in zero if rows[path].any()]),
        ("types of numbers, and kinds of buffers, stay", len(origin) + len(buffers), types),
    ]


def _origins(old: nn.Module, new: nn.Module) -> dict[str, str]:
    """Each new parameter → the old one that it is: of its name, or of the same member of a list that got longer."""
    moved = _moved(old, new)
    own, found = {name for name, _ in old.named_parameters(remove_duplicate=False)}, {}
    for name, _ in new.named_parameters(remove_duplicate=False):
        prefix = next((each for each in moved if name.startswith(each)), "")
        before_it = moved[prefix] if prefix else ""
        if before_it is not None and (known := before_it + name.removeprefix(prefix)) in own:
            found[name] = known
    return found


def _moved(old: nn.Module, new: nn.Module) -> dict[str, str | None]:
    """Of lists that got longer, the path of each new member, with a dot → that of the old one that it is, if it is one.

    A member is an old one if all its tensors are the same; those that are none are new.
    """
    modules, moved = dict(new.named_modules()), dict[str, str | None]()
    for path, before in old.named_modules():
        after = modules.get(path)
        if isinstance(before, List) and isinstance(after, List) and len(after) != len(before):
            left = list(before._modules.items())
            for name, member in after._modules.items():
                place = next((i for i, (_, other) in enumerate(left) if _same(other, member)), None)
                moved[f"{path}.{name}.".lstrip(".")] = (
                    None if place is None else f"{path}.{left[place][0]}.".lstrip(".")
                )
                left = left if place is None else left[place + 1 :]
    return moved


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same tensors."""
    before, after = one.state_dict(), other.state_dict()
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (before, after)]
    return shapes[0] == shapes[1] and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def configurations(old: nn.Module, new: nn.Module) -> list[tuple[str, str, bool]]:
    """Where the old network is built by its class from a configuration: whether the new one is.

    Where it is not, the network works as it is, but its class does not load what is saved of it: that fails, or gives
    another function.
    """
    parts = configured(old)[0]
    now = {part.path for part in configured(new)[0]} if parts else set()
    lost = ", ".join(part.kind.__name__ for part in parts if part.path not in now)
    return [("yes", f"NO: {lost} builds another network" if lost else "yes", not lost)] if parts else []


def _ties(parameters: Mapping[str, Tensor]) -> list[frozenset[str]]:
    """The sets of names that one tensor has, or several of one storage."""
    return list(map(frozenset, together(parameters)))


def _padded(network: nn.Module) -> dict[str, Tensor]:
    """Embedding → its row for padding."""
    tables = {path: m for path, m in network.named_modules() if isinstance(m, nn.Embedding)}
    return {path: m.weight.detach()[m.padding_idx] for path, m in tables.items() if m.padding_idx is not None}


def _saved(network: nn.Module) -> set[str]:
    return {name for name in network.state_dict() if name in dict(network.named_buffers())}


def changed(old: nn.Module, new: nn.Module) -> list[str]:
    """The numbers that modules keep, in themselves or in a configuration, and that are others now.

    Modules are the same if they have the same name, or are in the same member of a list that got longer.
    """
    modules, said, seen = dict(new.named_modules()), list[str](), set[int]()
    now_at = {before: after for after, before in _moved(old, new).items() if before is not None}
    for path, before in old.named_modules():
        prefix = next((each for each in now_at if f"{path}.".startswith(each)), "")
        after = modules.get((now_at.get(prefix, "") + f"{path}.".removeprefix(prefix)).rstrip("."))
        if after is None or type(after) is not type(before):
            continue
        if isinstance(before, List) and isinstance(after, List) and len(after) != len(before):
            said.append(f"{path}: {len(before)} → {len(after)} members")
        kept, now = everything(before), {slot.path: slot for slot in everything(after)}
        for slot in kept:
            other = now.get(slot.path)
            if other is None or id(slot.owner) in seen or repr(other.value) == repr(slot.value):
                continue
            name = ".".join(map(str, filter(None, (path, *slot.path))))
            said.append(f"{name}: {slot.value} → {other.value}")
        seen |= {id(slot.owner) for slot in kept}
        floats = {k: v for k, v in vars(before).items() if type(v) is float and k.startswith("_")}  # no slots
        moved = {key: vars(after)[key] for key, value in floats.items() if vars(after).get(key, value) != value}
        said += [f"{path}.{key}: {floats[key]} → {then}".lstrip(".") for key, then in moved.items()]
    return said
