"""Checks of arguments that all functions of the face share: each names the value, and what to give instead."""

import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from mmstudy.core import failing

MOST_BYTES = 2**33  # what a call may plan to hold in memory
MOST_WHOLE = 2**63 - 1  # what torch holds of a whole number


def networks(given: Any, name: str = "network") -> list[nn.Module]:
    """One network or several as a list.

    Raises:
        TypeError: anything else than a module, or a sequence of modules; one that torch.jit has compiled.
        ValueError: none, or one without parameters, or with parameters that cannot have a gradient.
    """
    single = isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList)
    many = [given] if single else list(given) if isinstance(given, nn.ModuleList | list | tuple) else None
    if many is None:
        raise TypeError(f"{name} must be a torch.nn.Module or a list of them; got {described(given)}")
    if not many:
        raise ValueError(f"{name} must hold at least one network; got {described(given)}")
    for each in many:
        if not isinstance(each, nn.Module):
            raise TypeError(f"{name} must hold torch.nn.Modules; got {described(each)}")
        if isinstance(each, torch.jit.ScriptModule):
            raise TypeError(f"{name} is compiled by torch.jit: {type(each).__name__}; give the module it was made of")
        if not any(p.requires_grad for p in each.parameters()):
            raise ValueError(f"{name} has no parameter to train: {type(each).__name__}; call requires_grad_(True)")
        if any(p.is_inference() for p in each.parameters() if not is_lazy(p)):
            raise ValueError(f"{name} was made under torch.inference_mode(), so it has no gradients: make it outside")
    return many


def network(given: Any, name: str = "network") -> nn.Module:
    """One network; see `networks`."""
    (one,) = networks([given], name)
    return one


def batch(given: Any, examples: bool = True) -> Any:
    """A batch: a tensor, or a tree (tuple, dict, …) of tensors that share a first axis, that of `examples`, if asked.

    A mapping that torch doesn't know, such as a `UserDict`, becomes a dict, and a list a tuple. The gradients that led
    to it, if there are any, are left behind.

    Raises:
        TypeError: there is no tensor in it, something else, or a tensor without plain numbers (sparse, nested, meta).
        ValueError: no example, tensors of different lengths, or numbers that are not finite.
    """
    given = _plain(given)
    leaves = tree_leaves(given)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"batch must be a tensor, or a tuple or dict of tensors; got {described(given)}")
    for leaf in leaves:
        if leaf.is_nested or leaf.is_meta or leaf.layout != torch.strided:
            kind = "nested" if leaf.is_nested else "meta" if leaf.is_meta else str(leaf.layout)
            raise TypeError(f"batch must be plain tensors with their numbers; got a {kind} tensor: make it dense first")
    given = tree_map_only(Tensor, _free, given)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    apart = any(shape[:1] != shapes[0][:1] for shape in shapes) or not shapes[0]
    if (examples and apart) or any(shape[:1] == (0,) for shape in shapes):
        wanted = "tensors that share a first axis of at least one example"
        raise ValueError(f"batch must be {wanted}; found shapes {shapes}")
    for leaf in leaves:
        if leaf.is_floating_point() and (broken := int((~leaf.isfinite()).sum())):
            raise ValueError(f"batch has {broken} numbers that are NaN or infinite, of {leaf.numel()}: leave them out")
    return given


def _free(tensor: Tensor) -> Tensor:
    """The tensor where no gradient leads back from."""
    return tensor.clone() if tensor.is_inference() else tensor.detach() if tensor.requires_grad else tensor


def _plain(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {key: _plain(value) for key, value in given.items()}
    if isinstance(given, list):
        return tuple(_plain(value) for value in given)
    return given


def whole(given: Any, name: str, least: int = 0, most: float | int = MOST_WHOLE) -> int:
    """A whole number in a range, as an int; those of numpy count.

    Raises:
        TypeError: no integer.
        ValueError: out of the range.
    """
    try:
        found = operator.index(None if isinstance(given, bool | Tensor) else given)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {described(given)}") from None
    if not least <= found <= most:
        upper = f" and at most {most}" if most != MOST_WHOLE or found > most else ""
        raise ValueError(f"{name} must be at least {least}{upper}; got {described(found)}")
    return found


def number(given: Any, name: str, above: float | int = -math.inf, most: float | int = sys.float_info.max) -> float:
    """A finite number above a bound, as a float; those of numpy count.

    Raises:
        TypeError: no number.
        ValueError: NaN, infinite, not above the bound, or larger than the most.
    """
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{name} must be a number; got {described(given)}")
    value: Any = given.item() if hasattr(given, "item") else given
    if not above < value <= most or value < -sys.float_info.max:
        lower = f" > {above:g}" if above > -math.inf else ""
        upper = f" and at most {most:g}" if most < sys.float_info.max else ""
        raise ValueError(f"{name} must be a finite number{lower}{upper}; got {described(given)}")
    return float(given)


def several(given: Any, name: str, check: Callable[[Any, str], object], least: int = 0) -> Any:
    """A list of so many things at least, each of which passes a check of (value, name).

    Raises:
        TypeError: no list.
        ValueError: fewer.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise TypeError(f"{name} must be a list; got {described(given)}")
    if len(given) < least:
        raise ValueError(
            f"{name} must not be empty: give one at least"
            if least == 1
            else f"{name} must hold {least} at least; got {len(given)}"
        )
    for i, each in enumerate(given):
        check(each, f"{name}[{i}]")
    return given


def wholes(given: Any, name: str, least: int = 0, most: float | int = MOST_WHOLE) -> Any:
    """A list of whole numbers in a range, one at least; see `several` and `whole`."""
    return several(given, name, lambda each, place: whole(each, place, least, most), 1)


def momentum(given: Any) -> float:
    """A share of the last step that the next one keeps.

    Raises:
        TypeError: no number.
        ValueError: outside [0, 1).
    """
    if not 0 <= number(given, "momentum") < 1:
        raise ValueError(f"momentum must lie in [0, 1); got {given}")
    return float(given)


def generator(given: Any) -> torch.Generator:
    """A source of random numbers, which says how to come by the same ones again.

    Raises:
        TypeError: none.
    """
    if not isinstance(given, torch.Generator):
        raise TypeError(f"a generator must be a torch.Generator().manual_seed(…); got {described(given)}")
    return given


def one_of(given: Any, known: Iterable[str], name: str) -> str:
    """One of the known names.

    Raises:
        TypeError: no string.
        ValueError: an unknown one; the message says which are near.
    """
    known = list(known)
    if not isinstance(given, str):
        raise TypeError(f"{name} must be one of {', '.join(known)}; got {described(given)}")
    if given not in known:
        near = get_close_matches(given, known, 3)
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(f"unknown {name} {given!r}{guess} Known: {', '.join(known)}")
    return given


LOSS = "a function loss_fn(model, batch) → mean loss, e.g. lambda model, b: f(model(b[0]), b[1])"


def function(given: Any, name: str = "loss_fn", wanted: str = LOSS) -> Any:
    """A function; by default one of (model, batch).

    Raises:
        TypeError: not callable, or a module such as `nn.CrossEntropyLoss()`, which takes outputs and targets.
    """
    if isinstance(given, nn.Module) or not callable(given):
        raise TypeError(f"{name} must be {wanted}; got {described(given)}")
    return given


def differentiable(loss: Any) -> Tensor:
    """A loss that the parameters can learn from: one finite real number with a gradient.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(f"the loss must be one real number, a float tensor; got {described(loss)}")
    if not bool(loss.isfinite()):
        raise ValueError(f"the loss is {loss.item()}: look at the weights, the inputs and the targets")
    if not loss.requires_grad:
        wrong = "it was detached or made of plain numbers, or it does not depend on the parameters"
        raise ValueError(f"the loss, {loss.item():g}, has no gradient: {wrong}. Compute it from the model's outputs")
    return loss


def fits(bytes_needed: int, what: str) -> None:
    """Refuse what would not fit into memory.

    Raises:
        ValueError: more than `MOST_BYTES`.
    """
    if bytes_needed > MOST_BYTES:
        size = f"{bytes_needed / 2**30:.1f} GB" if bytes_needed < 2**80 else "more memory than there is"
        raise ValueError(f"{what} would take {size}, more than {MOST_BYTES / 2**30:g}: ask for less")


@contextmanager
def explained(given: Any, network: nn.Module | None = None) -> Iterator[None]:
    """What torch says of a first call, with the batch's tensors, and what may help.

    Raises:
        ValueError: the call fails.
    """
    try:
        yield
    except Exception as error:  # whatever a user's own code raises
        fails = f"the loss of the network on this batch ({described(given)}) fails: {first_line(error)}"
        raise ValueError(f"{fails}. {failing.advice(network, given)}") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What is refused, with the name of the argument that it belongs to.

    Raises:
        TypeError: one is raised.
        ValueError: one is raised.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


@contextmanager
def called(name: str, how: str) -> Iterator[None]:
    """What a function of the user's own raises when it is tried, with its name and how it was called.

    Raises:
        ValueError: the call fails.
    """
    try:
        yield
    except Exception as error:  # as above
        raise ValueError(f"{name} fails when called with {how}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def described(given: Any) -> str:
    """A value in a few words: tensors by type, shape and range."""
    if isinstance(given, Tensor):
        span = ""
        if given.numel() and not given.is_complex() and not given.is_meta:
            flat = given.detach()
            span = f" from {flat.min().item():g} to {flat.max().item():g}"
        return f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}{span}"
    if isinstance(given, dict):
        return "{" + ", ".join(f"{key!r}: {described(value)}" for key, value in given.items()) + "}"
    if isinstance(given, tuple | list):
        return "(" + ", ".join(map(described, given)) + ")"
    if isinstance(given, nn.Module | torch.Generator):
        return f"a {type(given).__name__}"
    if isinstance(given, int) and abs(given) > 10**20:
        return "a whole number of more than 20 digits"
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."
