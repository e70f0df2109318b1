"""An optimizer goes on with the expanded network: its averages follow the parameters that they belong to."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.core import arguments
from mmstudy.expansion.candidate import Expansion

# What optimizers keep for each number of a parameter, by the names that torch.optim gives it.
GRADIENTS = ("exp_avg", "grad_avg", "momentum_buffer")  # averages of gradients
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta")  # of squares
NORMS = ("exp_inf",)  # of magnitudes


def carried(optimizer: torch.optim.Optimizer, network: nn.Module, expansion: Expansion) -> torch.optim.Optimizer:
    """The optimizer of the expanded network: as the old one's, its momentum or Adam moments carried over.

    Training goes on without a jump (staged training: Shen et al. 2022, arXiv 2203.06211). Parameters that are new
    altogether join the group of the one they are modelled on and begin without history. So do parameters that have
    grown, if something is kept for each of their numbers that is no average of gradients or of their squares (Rprop's
    step sizes, ASGD's averaged weights, Adafactor's rows and columns, all of LBFGS).

    Raises:
        TypeError: no optimizer of torch.
        ValueError: the optimizer has a parameter that the network lacks, or takes more than its defaults to be made.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {arguments.described(optimizer)}")
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    new, origin = dict(expansion.network.named_parameters()), expansion.origin
    result = _like(optimizer, [_group(i, group, names, new, origin) for i, group in enumerate(optimizer.param_groups)])
    if isinstance(optimizer, torch.optim.LBFGS):  # it keeps one vector for all parameters
        return result
    entries = {names[parameter]: dict(entry) for parameter, entry in optimizer.state.items()}
    followed, old = _carried(entries, expansion), dict(network.named_parameters())
    for name, model in origin.items():
        if model not in entries or name in expansion.fresh:
            continue
        grown = new[name].shape != old[model].shape
        if grown and not {key for key, value in entries[model].items() if _many(value)} <= followed[name].keys():
            continue
        entry = {**copy.deepcopy(entries[model]), **followed[name]}
        if grown and "grad_avg" in entry:  # a centred variance: E[g²] − E[g]²
            entry["square_avg"] = torch.maximum(entry["square_avg"], entry["grad_avg"] ** 2)
        result.state[new[name]] = entry
    return result


def _carried(entries: Mapping[str, Mapping[str, Any]], expansion: Expansion) -> dict[str, dict[str, Tensor]]:
    """New parameter → what is kept for each of its numbers, as far as it is known how that follows."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in expansion.origin}
    for key in (*GRADIENTS, *SQUARES, *NORMS):
        values = {name: entry[key] for name, entry in entries.items() if _many(entry.get(key))}
        if key in NORMS:
            values = {name: value.square() for name, value in values.items()}
        for name, value in expansion.carry(values, key not in GRADIENTS).items():
            found[name][key] = value.sqrt() if key in NORMS else value
    return found


def _many(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _group(i: int, group: dict, names: dict, new: Mapping[str, Tensor], origin: Mapping[str, str]) -> dict[str, Any]:
    """A group of the new optimizer: the parameters that come from those of the old one's, and its settings."""
    if lacking := [tuple(parameter.shape) for parameter in group["params"] if parameter not in names]:
        raise ValueError(
            f"group {i} of the optimizer has parameters that the network lacks, of shapes {lacking}: it was made for "
            "another network, or the network's parameters were replaced since"
        )
    members = {names[parameter] for parameter in group["params"]}
    own = [(name, new[name]) for name, old in origin.items() if old in members]
    settings = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
    return {**settings, "params": own if "param_names" in group else [parameter for _, parameter in own]}


def _like(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of the same class and defaults, of other groups."""
    taken = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in taken}
    try:
        result = type(optimizer)(groups, **options)
    except TypeError as error:
        raise ValueError(f"{type(optimizer).__name__} cannot be made of its groups and defaults: {error}") from error
    result.defaults = copy.deepcopy(optimizer.defaults)
    return result
