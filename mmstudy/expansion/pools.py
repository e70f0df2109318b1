"""Which expansions of a network are compared with each other: candidate pools."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.batched.modes import measuring
from mmstudy.core import arguments
from mmstudy.core.networks import count_flops, count_parameters
from mmstudy.expansion import estimates
from mmstudy.expansion.blocks import List
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.exactness import Reference
from mmstudy.expansion.operators import OPERATORS, named
from mmstudy.tracing.calls import Call, Output, of_loss
from mmstudy.tracing.couplings import Coupling, couplings, fixed

SAME_SIZE = 0.02  # networks whose parameter counts differ by less are of one size


def candidate_pool(
    network: nn.Module,
    batch: Any,
    factors: Sequence[float | int] = (1.5, 2, 4, 8),
    extra_layers: Sequence[int] = (1, 2),
    matched: Sequence[float | int] = (2,),
    wider: Sequence[str] = ("net2net", "zero_outgoing", "random"),
    deeper: Sequence[str] = ("deeper_identity", "deeper_random"),
    locations: Sequence[str] | None = None,
) -> dict[str, Candidate]:
    """Operators × locations × amounts for a network, by labels that name the same expansion of other base sizes too.

    Wider operators multiply the units of each coupling, and of all of them together, by each factor; deeper ones
    insert layers or blocks behind each member of a list of modules. Different operators at one location and amount
    have exactly the same architecture. For each factor in `matched`, every other coupling also gets the number of
    units at which the network has as many parameters, within 2%, as with the first one times that factor: pairs that
    differ in where they grow, but not in how much.

    Args:
        locations: what gets wider, for a smaller pool: couplings, or some that grow together, joined by &, such as
            "blocks.0.up&blocks.1.up". By default each one, and all together; an empty list is refused.

    Raises:
        TypeError: an option of another kind.
        ValueError: a factor that is not above 1, an unknown operator or coupling, a network that would not fit into
            memory, or a pool that would be empty.
    """
    options = {"factors": factors, "extra_layers": extra_layers, "matched": matched, "wider": wider, "deeper": deeper}
    check_options(options if locations is None else options | {"locations": locations})
    groups = couplings(network, batch)
    wide = [*((name,) for name in groups), *([tuple(groups)] if len(groups) > 1 else [])]
    if locations is not None:
        wide = [_members(where, groups, f"locations[{i}]") for i, where in enumerate(locations)]
    first, *others = [where[0] for where in wide if len(where) == 1] or [""]
    for factor in (*factors, *(matched if others else ())):
        for name in dict.fromkeys(chain(*wide)):
            estimates.wider_fits(network, groups[name], round(factor * groups[name].size))
    if extra_layers and deeper:
        for place in places(network):
            estimates.deeper_fits(network, {place: max(extra_layers)})
    pool: dict[str, Candidate] = {}

    def add(label: str, where: tuple[str, ...], sizes: Sequence[int], operators: Sequence[str]) -> None:
        pool.update({f"{operator} {label}": Candidate(operator, where, tuple(sizes)) for operator in operators})

    for factor in factors:
        for where in wide:
            sizes = [round(factor * groups[name].size) for name in where]
            add(f"{'&'.join(where)} ×{factor:g}", where, sizes, wider)
    for factor in matched if others else ():
        wanted = groups[first].parameters(round(factor * groups[first].size))
        for name in others:
            if size := _size_for(groups[name], wanted):
                add(f"{name} ≈ {first} ×{factor:g}", (name,), [size], wider)
    for number in extra_layers:
        for place in places(network):
            add(f"{place} +{number}", (place,), [number], deeper)
    if not pool:
        whys = [f"{name}: {why}" for name, why in fixed(network, batch).items()]
        refused = f"; what cannot grow: {'; '.join(whys)}" if whys and not groups else ""
        raise ValueError(f"an empty pool: factors={factors}, extra_layers={extra_layers}, matched={matched}{refused}")
    return pool


def check_options(options: Any, name: str = "") -> None:
    """Refuse what is no option of `candidate_pool`, or a value that it cannot have for any network.

    Args:
        name: of the parameter that holds the options, to be named with them.

    Raises:
        TypeError: no options by name, or a value of another kind.
        ValueError: an unknown option, or a value out of range.
    """
    whole = name or "options of a pool"
    if not isinstance(options, Mapping):
        raise TypeError(f"{whole} must be a mapping, {{'factors': [2]}}; got {arguments.described(options)}")
    checks: dict[str, Callable[[Any, str], object]] = {
        "factors": lambda factor, place: arguments.number(factor, place, 1),
        "extra_layers": lambda number, place: arguments.whole(number, place, 1),
        "matched": lambda factor, place: arguments.number(factor, place, 1),
        "wider": lambda operator, place: arguments.one_of(operator, named(widens=True), place),
        "deeper": lambda operator, place: arguments.one_of(operator, named(widens=False), place),
        "locations": lambda where, place: None,  # which there are, the network says
    }
    for option, given in options.items():
        arguments.one_of(option, checks, f"option of candidate_pool{name and f' in {name}'}")
        place = f"{name}[{option!r}]" if name else option
        arguments.several(given, place, checks[option], 1 if option == "locations" else 0)
    if all(option in options and not options[option] for option in ("factors", "extra_layers", "matched")):
        raise ValueError(f"an empty pool: {whole} must have factors, extra_layers or matched")


def architectures(pool: Mapping[str, Candidate]) -> list[tuple[tuple[str, Candidate], ...]]:
    """The pool in groups of one architecture: same locations and sizes, all wider or all deeper, step by step."""
    groups: dict[tuple, list[tuple[str, Candidate]]] = {}
    for label, candidate in pool.items():
        step: Candidate | None = candidate
        shape = []
        while step:
            shape.append((OPERATORS[step.operator].widens, step.locations, step.sizes))
            step = step.then
        groups.setdefault(tuple(shape), []).append((label, candidate))
    return [tuple(group) for group in groups.values()]


def _members(where: Any, groups: Mapping[str, Coupling], name: str) -> tuple[str, ...]:
    """The couplings that a location names."""
    parts = where.split("&") if isinstance(where, str) else [where]
    return tuple(arguments.one_of(part, groups, name) for part in parts)


def _size_for(coupling: Coupling, wanted: int) -> int | None:
    """The number of units at which the network has the wanted number of parameters, if that is possible within 2%."""
    high = coupling.size
    while coupling.parameters(high) < wanted:
        high *= 2
    sizes = range(coupling.size, high + 1)
    above = sizes[bisect_left(sizes, wanted, key=coupling.parameters)]
    size = min(max(above - 1, coupling.size), above, key=lambda n: abs(coupling.parameters(n) - wanted))
    near = abs(coupling.parameters(size) / wanted - 1) <= SAME_SIZE
    return size if near and size > coupling.size else None


def places(network: nn.Module) -> list[str]:
    """Members of the lists of layers or blocks of a network, behind which more of them may be inserted.

    Of a `Sequential` or `ModuleDict`, which may hold anything, these are the members with modules of their own of whose
    class there are several. A member that is such a list itself is none.
    """
    found = [
        f"{path}.{name}".lstrip(".")
        for path, members in network.named_modules()
        if isinstance(members, List)
        for name, member in members._modules.items()
        if member is not None and (isinstance(members, nn.ModuleList) or _is_block(member, members))
    ]
    lists = {place.rpartition(".")[0] for place in found}
    lists |= {path for path, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    return [place for place in found if place not in lists]


def _is_block(member: nn.Module, members: List) -> bool:
    """Whether one of several members of a class, with modules of their own."""
    alike = sum(type(other) is type(member) for other in members._modules.values())
    return alike > 1 and bool(list(member.children()))


def pool_table(
    pool: Mapping[str, Candidate],
    network: nn.Module,
    batch: Batch | Call,
    loss_fn: LossFn = classification,
    output: Output = None,
) -> pd.DataFrame:
    """Every candidate of a pool: a row each, by its label.

    Returns:
        Table with the columns `operator`; `description`; `parameters`; `flops`, of a forward pass of one example;
        `same_size`, candidates of other architectures with as many parameters, within 2%, one of each architecture;
        `refused`, why it cannot be built, and then the three before are missing.
    """
    reference, rows = Reference(network, of_loss(network, batch, loss_fn, output)), []
    traced = reference.traced  # what cannot be followed says so here
    for label, candidate in pool.items():
        row: dict[str, object] = {"candidate": label, "operator": candidate.operator, "description": str(candidate)}
        try:
            expanded = candidate.grow(network, batch, loss_fn, traced, output=output, references=[reference]).network
        except (ValueError, NotImplementedError) as error:
            rows.append(row | {"refused": str(error)})
        else:
            rows.append(row | asdict(size_of(expanded, batch, loss_fn)) | {"refused": ""})
    columns = ["candidate", "operator", "description", "parameters", "flops", "refused"]
    table = pd.DataFrame(rows, columns=columns).set_index("candidate")
    table.insert(4, "same_size", _same_sizes(pool, table["parameters"]))
    return table


def _same_sizes(pool: Mapping[str, Candidate], parameters: pd.Series) -> pd.Series:
    """Of each candidate, one of every other architecture that has as many parameters."""
    groups = [[label for label, _ in group if parameters[label] > 0] for group in architectures(pool)]
    built = [labels for labels in groups if labels]
    near: list[list[str]] = [[] for _ in built]
    for i, j in zip(*pairs_of_one_size(np.array([parameters[one] for one, *_ in built])), strict=True):
        near[i].append(built[j][0])
        near[j].append(built[i][0])
    found = {label: ", ".join(others) for labels, others in zip(built, near, strict=True) for label in labels}
    return pd.Series(dict.fromkeys(pool, "") | found)


def pairs_of_one_size(size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two members of all pairs whose parameter counts differ by at most 2% of the larger."""
    i, j = np.triu_indices(len(size), 1)
    near = np.abs(size[i] - size[j]) <= SAME_SIZE * np.maximum(size[i], size[j])
    return i[near], j[near]


@dataclass(frozen=True)
class Size:
    """How large a network is."""

    parameters: int
    flops: int  # of a forward pass of one example


def size_of(network: nn.Module, batch: Batch | Call, loss_fn: LossFn = classification) -> Size:
    """Parameters and operations of a network, as it measures: running statistics stay.

    A network that takes no single example (one that works on a graph) has its operations on the batch, over the number
    of its examples.
    """
    call = of_loss(network, batch, loss_fn)
    examples = next((len(t) for t in call.tensors if t.ndim), 1)
    with torch.random.fork_rng(devices=[]), measuring(network):
        parameters = count_parameters(network)
        try:
            one = call.mapped(lambda tensor: tensor[:1] if tensor.ndim else tensor)
            return Size(parameters, count_flops(network, *one.arguments, **one.options))
        except Exception:  # whatever a network does with another batch than it was given
            return Size(parameters, round(count_flops(network, *call.arguments, **call.options) / examples))
