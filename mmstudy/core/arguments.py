"""Checks of arguments that all functions of the face share: each names the value, and what to give instead."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

MOST_BYTES = 2**33  # what a call may plan to hold in memory


def networks(given: Any, name: str = "network") -> list[nn.Module]:
    """One network or several as a list.

    Raises:
        TypeError: anything else than a module, or a sequence of modules.
        ValueError: none, or one without parameters.
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
        if not any(p.requires_grad for p in each.parameters()):
            raise ValueError(f"{name} has no parameter to train: {type(each).__name__}; call requires_grad_(True)")
    return many


def network(given: Any, name: str = "network") -> nn.Module:
    """One network; see `networks`."""
    (one,) = networks([given], name)
    return one


def batch(given: Any) -> Any:
    """A batch: a tensor, or a tree (tuple, dict, …) of tensors that share a first axis of at least one example.

    A mapping that torch doesn't know, such as a `UserDict`, becomes a dict, and a list a tuple.

    Raises:
        TypeError: there is no tensor in it, or something else.
        ValueError: no example, tensors of different lengths, or numbers that are not finite.
    """
    given = _plain(given)
    leaves = tree_leaves(given)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise TypeError(f"batch must be a tensor, or a tuple or dict of tensors; got {described(given)}")
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if any(shape[:1] != shapes[0][:1] for shape in shapes) or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"batch must be tensors that share a first axis of at least one example; found shapes {shapes}"
        )
    for leaf in leaves:
        if leaf.is_floating_point() and (broken := int((~leaf.isfinite()).sum())):
            raise ValueError(f"batch has {broken} numbers that are NaN or infinite, of {leaf.numel()}: leave them out")
    return given


def _plain(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {key: _plain(value) for key, value in given.items()}
    if isinstance(given, list):
        return tuple(_plain(value) for value in given)
    return given


def whole(given: Any, name: str, least: int = 0, most: float | int = math.inf) -> int:
    """A whole number in a range.

    Raises:
        TypeError: no integer.
        ValueError: out of the range.
    """
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{name} must be a whole number; got {described(given)}")
    if not least <= given <= most:
        upper = f" and at most {most}" if most < math.inf else ""
        raise ValueError(f"{name} must be at least {least}{upper}; got {given}")
    return given


def number(given: Any, name: str, above: float | int = -math.inf) -> float:
    """A finite number above a bound.

    Raises:
        TypeError: no number.
        ValueError: NaN, infinite, or not above the bound.
    """
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"{name} must be a number; got {described(given)}")
    if not math.isfinite(given) or not given > above:
        raise ValueError(f"{name} must be a finite number{f' > {above}' if above > -math.inf else ''}; got {given}")
    return float(given)


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
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown {name} {given!r}{guess} Known: {', '.join(known)}")
    return given


def function(given: Any, name: str = "loss_fn") -> Any:
    """A function of (model, batch).

    Raises:
        TypeError: not callable, or a module such as `nn.CrossEntropyLoss()`, which takes outputs and targets.
    """
    if isinstance(given, nn.Module) or not callable(given):
        wanted = "a function loss_fn(model, batch) → mean loss"
        raise TypeError(f"{name} must be {wanted}, e.g. lambda model, b: f(model(b[0]), b[1]); got {described(given)}")
    return given


def fits(bytes_needed: int, what: str) -> None:
    """Refuse what would not fit into memory.

    Raises:
        ValueError: more than `MOST_BYTES`.
    """
    if bytes_needed > MOST_BYTES:
        raise ValueError(
            f"{what} would take {bytes_needed / 2**30:.1f} GB, more than {MOST_BYTES / 2**30:g}: ask for less"
        )


@contextmanager
def explained(given: Any) -> Iterator[None]:
    """What torch says of a first call, with the batch's tensors.

    Raises:
        ValueError: the call fails.
    """
    try:
        yield
    except (RuntimeError, IndexError, AttributeError, ZeroDivisionError, KeyError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"the loss of the network on this batch ({described(given)}) fails: {first}. Check shapes, types and "
            "values of inputs and targets, and how loss_fn calls the model"
        ) from error


def described(given: Any) -> str:
    """A value in a few words: tensors by type, shape and range."""
    if isinstance(given, Tensor):
        span = ""
        if given.numel() and not given.is_complex():
            flat = given.detach()
            span = f" from {flat.min().item():g} to {flat.max().item():g}"
        return f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}{span}"
    if isinstance(given, dict):
        return "{" + ", ".join(f"{key!r}: {described(value)}" for key, value in given.items()) + "}"
    if isinstance(given, tuple | list):
        return "(" + ", ".join(map(described, given)) + ")"
    if isinstance(given, nn.Module | torch.Generator):
        return f"a {type(given).__name__}"
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."
