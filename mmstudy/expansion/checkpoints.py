"""An expanded network on disk: its recipe and its tensors, in one safetensors file, without pickle.

A file is a stranger's: its recipe is checked before it is carried out, and no network is built that is much larger than
the file.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmstudy.core.networks import count_parameters, named_tensors
from mmstudy.core.results import atomically
from mmstudy.expansion import estimates
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS
from mmstudy.tracing.calls import Call
from mmstudy.tracing.couplings import of_trace
from mmstudy.tracing.trace import trace

MOST_STEPS = 64  # expansions one after another in a recipe
KINDS = {"operator": str, "locations": list, "sizes": list, "seed": int}  # of each


def save(path: str | Path, candidate: Candidate, network: nn.Module) -> Path:
    """Write the network that `candidate` made (and that may have been trained since), atomically.

    Returns:
        The path of the file.

    Raises:
        ValueError: the candidate is a chain of more than `MOST_STEPS` expansions.
    """
    if (count := _length(candidate)) > MOST_STEPS:
        raise ValueError(f"a checkpoint holds at most {MOST_STEPS} expansions one after another; got {count}")
    tensors = {name: tensor.detach().contiguous() for name, tensor in named_tensors(network).items()}
    with atomically(path) as beside:
        save_file(tensors, beside, {"candidate": json.dumps(candidate.as_dict())})
    return Path(path)


def load(path: str | Path, base: nn.Module, inputs: Tensor | Call) -> tuple[Candidate, nn.Module]:
    """The candidate and the network that were saved: the base is expanded by the recipe, then the tensors are put in.

    Args:
        base: a network of the base's architecture; its values do not matter.
        inputs: an example batch, on the base's device; a `calls.Call` for a network of several inputs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is damaged, or belongs to another base; its recipe names an operator
            that is not in `OPERATORS`, or sizes that its tensors do not have.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file")
    try:
        with safe_open(path, framework="pt") as file:  # compares what the header says with the file's size
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            candidate = _candidate(path, (file.metadata() or {}).get("candidate"))
            network = _expanded(path, candidate, base, inputs, shapes)
            own = named_tensors(network)
            wrong = [n for n in own.keys() | shapes if n not in own or tuple(own[n].shape) != shapes.get(n)]
            if wrong:
                raise ValueError(f"{path} was expanded from another base: {', '.join(sorted(wrong))} do not match")
            for name, tensor in own.items():
                tensor.detach().copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged or no safetensors file") from error
    return candidate, network


def _candidate(path: str | Path, text: str | None) -> Candidate:
    """The recipe of a file, once it is known to be one."""
    if text is None:
        raise ValueError(f"{path} holds tensors but no candidate: it was not written by mmstudy.checkpoints.save")
    try:
        plain, steps = json.loads(text), []
        while plain is not None:
            steps.append(_checked(plain))
            plain = plain["then"]
            if len(steps) > MOST_STEPS:
                raise ValueError(f"more than {MOST_STEPS} expansions one after another")
        candidate = None
        for step in reversed(steps):
            candidate = Candidate(**step, then=candidate)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no valid recipe: {error}") from error
    if candidate is None:
        raise ValueError(f"{path} has no valid recipe: it is empty")
    return candidate


def _checked(plain: Any) -> dict[str, Any]:
    """One expansion of a recipe, its fields of the right kinds."""
    if not isinstance(plain, dict) or plain.keys() != {*KINDS, "then"}:
        raise ValueError(f"an expansion has {', '.join(KINDS)} and then; found {str(plain)[:80]}")
    for key, kind in KINDS.items():
        if type(plain[key]) is not kind:
            raise ValueError(f"{key} is no {kind.__name__}: {str(plain[key])[:80]}")
    for key, kind in (("locations", str), ("sizes", int)):
        if not all(type(value) is kind for value in plain[key]):
            raise ValueError(f"{key} are not all of type {kind.__name__}: {str(plain[key])[:80]}")
    return {key: tuple(plain[key]) if kind is list else plain[key] for key, kind in KINDS.items()}


def _expanded(
    path: str | Path,
    candidate: Candidate,
    base: nn.Module,
    inputs: Tensor | Call,
    shapes: Mapping[str, tuple[int, ...]],
) -> nn.Module:
    """The base, expanded step by step as long as the network fits the file: not much larger, nor of more layers."""
    held = sum(prod(shape) for shape in shapes.values())
    network, most = base, held + count_parameters(base)
    for step in _steps(candidate):
        layers = 0 if OPERATORS[step.operator].widens else sum(step.sizes)
        if layers > len(shapes) or (wanted := _parameters(step, network, inputs)) > most:
            size = f"{layers} more layers" if layers > len(shapes) else f"a network of {wanted:,} parameters"
            raise ValueError(
                f"{path} belongs to another base, or is forged: its recipe ({step}) asks for {size}, "
                f"and it holds {len(shapes)} tensors of {held:,} numbers"
            )
        try:
            network = _without_data(step).expand(network, inputs)
        except ValueError as error:
            raise ValueError(f"{path} cannot be expanded from this base: {error}") from error
    return network


def _length(candidate: Candidate) -> int:
    """How many expansions a chain has."""
    count, rest = 1, candidate.then
    while rest is not None:
        count, rest = count + 1, rest.then
    return count


def _steps(candidate: Candidate) -> list[Candidate]:
    """The expansions of a chain, those that widen split into one for each location."""
    steps: list[Candidate] = []
    rest: Candidate | None = candidate
    while rest is not None:
        places = zip(rest.locations, rest.sizes, strict=True)
        if OPERATORS[rest.operator].widens:
            steps += [replace(rest, locations=(place,), sizes=(size,), then=None) for place, size in places]
        else:
            steps.append(replace(rest, then=None))
        rest = rest.then
    return steps


def _parameters(step: Candidate, network: nn.Module, inputs: Tensor | Call) -> int:
    """How many parameters the network has after the step, at least."""
    if OPERATORS[step.operator].widens:
        groups = of_trace(trace(network, inputs))
        sizes = zip(step.locations, step.sizes, strict=True)
        return max((groups[place].parameters(size) for place, size in sizes if place in groups), default=0)
    modules = dict(network.named_modules())
    added = [size * estimates.added(modules, place) for place, size in zip(step.locations, step.sizes, strict=True)]
    return count_parameters(network) + sum(added)


def _without_data(step: Candidate) -> Candidate:
    """A step that makes the same architecture without learning from data."""
    operator = OPERATORS[step.operator]
    if not operator.learns:
        return step
    if not operator.stand_in:
        raise ValueError(f"{step.operator} learns from data: its entry in OPERATORS needs a `stand_in` that does not")
    return replace(step, operator=operator.stand_in)
