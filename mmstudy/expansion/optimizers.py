"""An optimizer goes on with the expanded network: its averages follow the parameters that they belong to."""

import copy

import torch
from torch import Tensor, nn

from mmstudy.expansion.candidate import Expansion


def carried(optimizer: torch.optim.Optimizer, network: nn.Module, expansion: Expansion) -> torch.optim.Optimizer:
    """The optimizer of the expanded network: as the old one's, its momentum or Adam moments carried over.

    Training goes on without a jump (staged training: Shen et al. 2022, arXiv 2203.06211). Parameters that are new
    altogether join the group of the one they are modelled on and begin without history.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    new = dict(expansion.network.named_parameters())
    groups = []
    for group in optimizer.param_groups:
        members = {names[parameter] for parameter in group["params"]}
        groups.append({**group, "params": [new[name] for name, old in expansion.origin.items() if old in members]})
    result = type(optimizer)(groups)
    entries = {names[parameter]: dict(entry) for parameter, entry in optimizer.state.items()}
    for name, old in expansion.origin.items():  # what is no average of the parameter's shape, e.g. a count of steps
        if name not in expansion.fresh and old in entries:
            result.state[new[name]] = copy.deepcopy(entries[old])
    for key in {key for entry in entries.values() for key in entry}:
        values = {name: entry[key] for name, entry in entries.items() if isinstance(entry.get(key), Tensor)}
        averages = {name: value for name, value in values.items() if value.ndim}
        for name, value in expansion.carry(averages, "sq" in key or key == "sum").items():
            result.state[new[name]][key] = value
    return result
