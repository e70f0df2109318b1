"""How a measure responds to changes of the parameters that leave the function unchanged, as no property of it should.

Every multilayer perceptron is one of many with the same function: its hidden units in another order, a unit's incoming
weights larger and its outgoing ones smaller by the same factor (relu(s x) = s relu(x) for s > 0), a unit split into
copies that share its outgoing weights. A measure of size that responds to these measures the parameterization.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import nn

from mmstudy.core.networks import MLP
from mmstudy.core.seeds import generator as substream
from mmstudy.expansion import plans, surgery
from mmstudy.expansion.replacing import parted
from mmstudy.tracing.couplings import couplings

Symmetry = Callable[[MLP, torch.Generator], MLP]


def permuted(network: MLP, generator: torch.Generator) -> MLP:
    """A copy whose hidden units stand in another order: W ← PW, b ← Pb, the next W ← WPᵀ, P drawn for every layer."""
    new = copy.deepcopy(network)
    for parts, reader in _layers(new):
        weight = parts[0].weight
        order = torch.randperm(len(weight), generator=generator).to(weight.device)
        for part in parts:
            for tensor in (*part.parameters(), *part.buffers()):
                if tensor.ndim:  # not a number of batches
                    tensor.data = tensor.data[order]
        reader.weight.data = reader.weight.data[:, order]
    return new


def rescaled(network: MLP, generator: torch.Generator, spread: float = 0.5, together: bool = False) -> MLP:
    """A copy whose hidden units are larger by s > 0, and what reads them smaller: W ← SW, b ← Sb, the next W ← WS⁻¹.

    With batch normalization it is its scale and shift that grow, so that the function stays in both modes.

    Args:
        spread: ln s ~ N(0, spread²).
        together: one s for all units of a layer, instead of one for each.

    Raises:
        ValueError: a spread that is negative or not finite.
    """
    if not 0 <= spread < float("inf"):
        raise ValueError(f"spread is a standard deviation of ln s, ≥ 0 and finite; got {spread}")
    new = copy.deepcopy(network)
    for parts, reader in _layers(new):
        weight, last = parts[0].weight, parts[-1]
        draw = torch.randn(1 if together else len(weight), generator=generator, dtype=torch.float64)
        scale = (spread * draw).exp().to(weight)
        last.weight.data.mul_(scale.view(-1, *[1] * (last.weight.ndim - 1)))
        last.bias.data.mul_(scale)
        reader.weight.data.div_(scale)
    return new


def duplicated(network: MLP, every: bool = False) -> MLP:
    """A wider copy: the first unit of each hidden layer, or every unit, is split in two with half its outgoing weights.

    It has more parameters, among them flat directions: the shares of two copies may move against each other.
    """
    weight, wider = next(network.parameters()), network  # of the first layer
    inputs = weight.new_zeros(2, weight.shape[1])
    for name in couplings(network, inputs):
        coupling = couplings(wider, inputs)[name]
        units = torch.arange(coupling.size)
        source = torch.cat([units, units if every else units[:1]])
        wider = surgery.rebuilt(wider, plans.plan(coupling, source), inputs)
    return parted(wider, network)


SYMMETRIES: dict[str, Symmetry] = {
    "permuted": permuted,
    "rescaled, every unit": rescaled,
    "rescaled, every layer": partial(rescaled, together=True),
    "duplicated, one unit": lambda network, generator: duplicated(network),
    "duplicated, every unit": lambda network, generator: duplicated(network, every=True),
}


def responses(measure: Callable[[Sequence[MLP]], xr.Dataset], networks: Sequence[MLP], seed: int = 0) -> xr.Dataset:
    """What is measured on networks before and after every symmetry.

    Args:
        measure: of all networks at once, each of its variables over `parent`; one that draws should draw the same for
            every network and every call.

    Returns:
        Dataset: `ratio` = `after` / `before` over (symmetry, measure, parent), 1 for a measure that does not respond;
        `before` over (measure, parent). For a measure that is a logarithm, take the difference instead.

    Raises:
        ValueError: no network.
    """
    if not networks:
        raise ValueError("nothing to measure: no networks")
    before, changed = measure(networks).to_array("measure"), []
    for name, change in SYMMETRIES.items():
        others = [change(network, substream("symmetry", name, i, seed)) for i, network in enumerate(networks)]
        changed.append(measure(others).to_array("measure"))
    after = xr.concat(changed, xr.DataArray(list(SYMMETRIES), dims="symmetry", name="symmetry"))
    return xr.Dataset({"before": before, "after": after, "ratio": after / before})


def changes(ratio: xr.DataArray, level: float = 0.003, least: float = 0.02) -> xr.Dataset:
    """What ratios say of a measure: their geometric mean over networks, and whether the measure responds.

    It does where the mean of ln ratio is not 0 (t-test), or where ln ratio is larger, whatever its sign, than under a
    permutation, which leaves all but the draws of a measure (F-test of mean squares).

    Args:
        ratio: after / before, over (symmetry, parent, …); one that is not positive and finite is left out.
        level: of either test.
        least: a root mean square of ln ratio that is no larger does not count.

    Returns:
        Dataset: `response`, the geometric mean, NaN of fewer than three networks; `changes`.
    """
    logs = xr.apply_ufunc(np.log, ratio.where((ratio > 0) & (ratio < np.inf)))
    count = logs.notnull().sum("parent")
    logs = logs.where(count >= 3)
    mean, noise, square = logs.mean("parent"), logs.std("parent", ddof=1) / count**0.5, (logs**2).mean("parent")
    shifted = abs(mean) > noise * xr.apply_ufunc(stats.t.ppf, 1 - level / 2, np.maximum(count - 1, 1))
    still, others = (x.sel(symmetry="permuted", drop=True) for x in (square, count))
    wider = square > still * xr.apply_ufunc(stats.f.ppf, 1 - level, count, others)
    return xr.Dataset({"response": np.exp(mean), "changes": (shifted | wider) & (square > least**2)})


def _layers(network: MLP) -> list[tuple[list[nn.Linear | nn.BatchNorm1d], nn.Linear]]:
    """Each hidden layer, its normalization second if it has one, and the linear layer that reads it."""
    layers: list[list[Any]] = [[*layer] if isinstance(layer, nn.Sequential) else [layer] for layer in network.hidden]
    return list(zip(layers, [*(layer[0] for layer in layers[1:]), network.head], strict=True))
