"""The members of lists of modules: found by place, listened to while their network is called, looked at alone.

A place is a member of a `ModuleList`, `Sequential` or `ModuleDict`, e.g. "blocks.1" or "features.second".
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmstudy.core.networks import evaluating
from mmstudy.core.states import restored, seeded, uncompiled
from mmstudy.expansion.differences import change
from mmstudy.expansion.silencing import learning, silencers, unread
from mmstudy.tracing.calls import Call
from mmstudy.tracing.graph import Trace
from mmstudy.tracing.trace import trace
from mmstudy.tracing.trees import tensors

List = nn.ModuleList | nn.Sequential | nn.ModuleDict
DATA = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Mapping, tuple, list)


def member(network: nn.Module, place: str) -> tuple[List, int]:
    """The list that has a place, and the member's number in it.

    Raises:
        ValueError: there is no such place.
    """
    parent, _, name = place.rpartition(".")
    lists = {path: list(m._modules) for path, m in network.named_modules() if isinstance(m, List)}
    if name not in lists.get(parent, ()):
        known = [f"{path}.{names[0]} to {path}.{names[-1]}".lstrip(".") for path, names in lists.items() if names]
        raise ValueError(f"{place} is no place to insert behind; lists of modules here: {', '.join(known) or 'none'}")
    return network.get_submodule(parent), lists[parent].index(name)  # type: ignore[return-value]  # it is a list


def insert(members: List, index: int, some: Sequence[nn.Module]) -> None:
    """Put modules behind the one of this number; where members have names of their own, they are named after that."""
    names, modules = list(members._modules), list(members._modules.values())
    modules[index + 1 : index + 1] = some
    if names == [str(i) for i in range(len(names))]:
        names = [str(i) for i in range(len(modules))]
    else:
        free = (name for i in count(1) if (name := f"{names[index]}_{i}") not in members._modules)
        names[index + 1 : index + 1] = list(islice(free, len(some)))
    members._modules.clear()
    members._modules.update(zip(names, modules, strict=True))


def run(
    network: nn.Module,
    call: Call,
    hooks: Sequence[RemovableHandle] = (),
    fitted: Collection[nn.Module] = (),
    training: int | None = None,
) -> Any:
    """Call the network once, and take the hooks off; only modules that they fit are changed.

    Args:
        training: in training mode, random numbers from this seed; by default in evaluation mode.
    """
    own = {inner for module in fitted for inner in module.modules()}
    try:
        with evaluating(network), torch.no_grad(), restored(network, own), seeded(network, training), uncompiled():
            network.train(training is not None)
            return call.mapped(Tensor.clone).directly(network)
    finally:
        for hook in hooks:
            hook.remove()


def stream(given: Any, output: Any) -> tuple[Tensor, Tensor]:
    """What runs through a module: of the tensors that it is given the one like its output, and that; else the first.

    Masks, positions and the like come beside it; of a tuple or a mapping that is put out, the first tensor counts.
    """
    before, after = tensors(given), tensors(output)[0]
    like = [t for t in before if t.is_floating_point() and t.shape == after.shape]
    return (like or before)[0], after


def shapes(network: nn.Module, paths: Sequence[str], call: Call) -> dict[str, tuple[torch.Size, torch.Size]]:
    """The shapes of what runs into modules and out of them; of those that are called."""
    seen = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple, options: dict, output: Any) -> None:
            if tensors((given, options)) and tensors(output):
                before, after = stream((given, options), output)
                seen[path] = before.shape, after.shape

        return hook

    hooks = [network.get_submodule(path).register_forward_hook(note(path), with_kwargs=True) for path in paths]
    run(network, call, hooks)
    return seen


def overheard(network: nn.Module, path: str, call: Call) -> Call:
    """What a module is called with when its network is called, the first time; as it is before the module sees it.

    What is no data (a cache that blocks write into) is left out if the module does the same without it.
    """
    heard: list[Call] = []

    def note(module: nn.Module, given: tuple, options: dict) -> None:
        if not heard:
            heard.append(copy.deepcopy(Call(given, options)))

    module = network.get_submodule(path)
    run(network, call, [module.register_forward_pre_hook(note, with_kwargs=True)])
    whole = heard[0]
    bare = Call(tuple(map(_data, whole.arguments)), {key: _data(value) for key, value in whole.options.items()})
    try:
        same = change(run(module, copy.deepcopy(whole)), run(module, copy.deepcopy(bare))) == 0
    except Exception:  # whatever a module does without something that it needs
        same = False
    return bare if same else whole


def passed(module: nn.Module, call: Call) -> tuple[Tensor, Tensor, str]:
    """What runs into a module and out of it, and the innermost of its modules that put that out, if one did."""
    last: list[tuple[str, Tensor]] = []

    def note(path: str) -> Callable[..., None]:
        return lambda inner, given, output: last.append((path, output)) if isinstance(output, Tensor) else None

    leaves = {path: inner for path, inner in module.named_modules() if path and not list(inner.children())}
    hooks = [inner.register_forward_hook(note(path)) for path, inner in leaves.items()]
    before, after = stream((call.arguments, call.options), run(module, copy.deepcopy(call), hooks))
    return before, after, next((path for path, output in reversed(last) if output is after), "")


def _data(value: Any) -> Any:
    return value if isinstance(value, DATA) else None


def learns(module: nn.Module, names: Sequence[str], call: Call) -> bool:
    """Whether, while these tensors of a module are zero, a gradient arrives at one of them."""
    with uncompiled():
        return learning(module, names, call, partial(_through, call)) > 0


def _through(call: Call, output: Any) -> tuple[Tensor, Tensor]:
    return stream((call.arguments, call.options), output)


class _Alone(nn.Module):
    """A module at the path that it has in its network, with nothing around it."""

    def __init__(self, path: str, module: nn.Module):
        super().__init__()
        *around, name = path.split(".")
        parent: nn.Module = self
        for each in around:
            parent.add_module(each, nn.Module())
            parent = parent.get_submodule(each)
        parent.add_module(name, module)
        self.inside = [module]  # not by its name: that may be any

    def forward(self, *given: Any, **options: Any) -> Any:
        return self.inside[0](*given, **options)


def alone(network: nn.Module, path: str, call: Call, stays: Callable[[str], bool] = lambda name: False) -> Trace:
    """The trace of one member as its network calls it, with the names that it has there.

    Of the tensors that end its branches, those are noted without which it does something. A member that cannot be
    traced is tried out instead (see `silencing`). Unread are the parameters that this very call does not read.

    Args:
        stays: whether a tensor, by its name inside the member, cannot be made zero.

    Raises:
        NotImplementedError: it cannot be traced, and nothing silences it.
        TypeError: nor is it called with tensors.
        ValueError: nor can it be called alone.
    """
    module, heard = network.get_submodule(path), overheard(network, path, call)
    silent = partial(silencers, module, heard, partial(_through, heard))
    free = [name for name, _ in module.named_parameters() if not stays(name)]
    try:
        traced = trace(_Alone(path, module), copy.deepcopy(heard))
        ends = {name.removeprefix(f"{path}.") for _, names in traced.sums for name in names}
        found = silent([name for name in free if name in ends]) or (silent(free) if traced.sums else [])
    except (NotImplementedError, TypeError, ValueError):  # it may be called with what is no data
        traced, found = Trace(), silent(free)
        if not found:
            raise
    with uncompiled():
        left = unread(module, heard)
    traced.unread = {f"{path}.{name}": tuple(module.get_parameter(name).shape) for name in left}
    if found:
        traced.sums = [(path, tuple(f"{path}.{name}" for name in found))]
    return traced


def _instead(output: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """An output whose first tensor of numbers is replaced by a function of it and of a ramp from 0 to 1."""
    done: list[bool] = []

    def first(tensor: Tensor) -> Tensor:
        if done or not tensor.is_floating_point():
            return tensor
        done.append(True)
        ramp = torch.arange(1, tensor.numel() + 1, device=tensor.device).view(tensor.shape) / tensor.numel()
        return function(tensor, ramp.to(tensor))

    return Call((output,)).mapped(first).arguments[0]


def following(network: nn.Module, previous: Mapping[nn.Module, nn.Module], call: Call) -> set[nn.Module]:
    """Those modules that are seen to work on what the other one puts out: one run, in which gradients lead back.

    Of the others that is not known. Each output is replaced by a ramp, so that no gradient leads further.
    """
    starts: dict[nn.Module, Tensor] = {}
    met: set[nn.Module] = set()
    found: set[nn.Module] = set()

    def start(module: nn.Module, given: tuple, options: dict, output: Any) -> Any:
        def ramped(tensor: Tensor, ramp: Tensor) -> Tensor:
            starts[module] = ramp.requires_grad_()
            return starts[module].clone()  # what follows may write into it

        return _instead(output, ramped)

    def end(module: nn.Module, given: tuple, options: dict) -> None:
        leaf, reached = starts.get(previous[module]), [t for t in tensors((given, options)) if t.requires_grad]
        if module in met or leaf is None or not reached:
            return
        met.add(module)
        weights = [torch.linspace(1, 2, t.numel()).view(t.shape).to(t) for t in reached]
        (slope,) = torch.autograd.grad(reached, leaf, weights, retain_graph=True, allow_unused=True)
        if slope is not None and bool((slope != 0).any()):
            found.add(module)

    hooks = [module.register_forward_hook(start, with_kwargs=True) for module in set(previous.values())]
    hooks += [module.register_forward_pre_hook(end, with_kwargs=True) for module in previous]
    try:
        with evaluating(network), torch.enable_grad(), uncompiled():
            call.of(network)
    except Exception:  # whatever a network does with other numbers
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found


def silent(network: nn.Module, modules: Sequence[nn.Module], call: Call, still: float) -> set[nn.Module]:
    """Those modules that are seen to put out what runs into them, but for rounding; of the others that is not known."""
    given_to: dict[nn.Module, Any] = {}
    seen: dict[nn.Module, bool] = {}

    def before(module: nn.Module, given: tuple, options: dict) -> None:
        given_to[module] = Call(given, options).mapped(Tensor.clone)  # they may be written into

    def after(module: nn.Module, given: tuple, options: dict, output: Any) -> None:
        own = given_to.pop(module)
        then, now = stream((own.arguments, own.options), output)
        seen[module] = seen.get(module, True) and then.shape == now.shape and change(then, now) <= still

    hooks = [module.register_forward_pre_hook(before, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    run(network, call, hooks)
    return {module for module, same in seen.items() if same}


@contextmanager
def moved(module: nn.Module) -> Iterator[None]:
    """The module for a while puts out something else in its stream."""

    def push(module: nn.Module, given: tuple, options: dict, output: Any) -> Any:
        return _instead(output, lambda tensor, ramp: tensor + (1 + tensor.abs().max()) * ramp)

    hook = module.register_forward_hook(push, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
