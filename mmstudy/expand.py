"""Expansion operators: a trained network in, a wider or deeper network out; the old one is not touched.

*Wider* operators are maps on a coupling (see `couplings`): they append rows to the tensors that produce a group of
hidden units and columns to those that consume it. *Deeper* operators insert a layer after a location.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmstudy.couplings import Coupling, couplings
from mmstudy.seeds import generator as substream

# (produced, consumed, extra units, generator) → (produced, consumed); the units' axis comes first in every tensor
WidenMap = Callable[[list[Tensor], list[Tensor], int, torch.Generator], tuple[list[Tensor], list[Tensor]]]

NOISE = 1e-2  # symmetry-breaking noise of Net2Net, as a share of each tensor's standard deviation


def _uniform(shape: tuple[int, ...], fan_in: int, like: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.rand(shape, generator=generator, dtype=like.dtype).to(like.device)
    return (2 * draw - 1) * fan_in**-0.5


def _fresh_rows(produced: list[Tensor], extra: int, generator: torch.Generator) -> list[Tensor]:
    fan_in = produced[0][0].numel()  # the weight comes first, its bias after it
    return [_uniform((extra, *p.shape[1:]), fan_in, p, generator) for p in produced]


def net2net(produced, consumed, extra, generator, noise: float = NOISE):
    """Copy units drawn at random and split their outgoing weights evenly among the copies; noise parts the copies.

    Function-preserving up to the noise (exactly, with noise 0). Net2WiderNet: Chen, Goodfellow, Shlens 2016
    (arXiv 1511.05641), equations 3 to 5.
    """
    size = len(produced[0])
    source = torch.cat([torch.arange(size), torch.randint(size, (extra,), generator=generator)])
    copies = torch.bincount(source)[source]
    wider = [p[source.to(p.device)] for p in produced]
    for p in wider:
        spread = p[:size].std(correction=0)
        p[size:] += noise * spread * torch.randn(p[size:].shape, generator=generator, dtype=p.dtype).to(p.device)
    share = [copies.to(c).view(-1, *[1] * (c.ndim - 1)) for c in consumed]
    return wider, [c[source.to(c.device)] / s for c, s in zip(consumed, share, strict=True)]


def zero_outgoing(produced, consumed, extra, generator):
    """New units with random incoming and zero outgoing weights: exactly function-preserving, and the units can learn.

    The simplest of the zero-initialized growths (compare Evci et al. 2022, GradMax, arXiv 2201.05125, which chooses
    the incoming weights by the gradient instead).
    """
    rows = _fresh_rows(produced, extra, generator)
    columns = [c.new_zeros(extra, *c.shape[1:]) for c in consumed]
    return _append(produced, rows), _append(consumed, columns)


def random(produced, consumed, extra, generator):
    """New units with random incoming and outgoing weights at the default scale: the function changes."""
    rows = _fresh_rows(produced, extra, generator)
    fan_in = len(produced[0]) + extra
    columns = [_uniform((extra, *c.shape[1:]), fan_in, c, generator) for c in consumed]
    return _append(produced, rows), _append(consumed, columns)


def _append(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(old, new, strict=True)]


WIDER: dict[str, WidenMap] = {"net2net": net2net, "zero_outgoing": zero_outgoing, "random": random}
DEEPER = ("deeper_identity", "deeper_random")
OPERATORS = (*WIDER, *DEEPER)
PRESERVING = {"net2net": "up to noise", "zero_outgoing": "exactly", "deeper_identity": "exactly"}


@dataclass(frozen=True)
class Candidate:
    """One way to expand: enough to build the same network again anywhere.

    `operator` is one of `OPERATORS`; `locations` are paths of modules whose output units grow (wider) or after which
    a layer is inserted (deeper); `amount` is the width factor (wider) or the number of new layers (deeper).
    """

    operator: str
    locations: tuple[str, ...]
    amount: float | int
    seed: int = 0

    def __post_init__(self):
        if self.operator not in OPERATORS:
            raise ValueError(f"unknown operator {self.operator!r}; known: {', '.join(OPERATORS)}")
        if not self.locations:
            raise ValueError(f"{self.operator} needs at least one location, e.g. ('hidden.0',)")

    def __str__(self) -> str:
        sign = "×" if self.operator in WIDER else "+"
        return f"{self.operator} {'&'.join(self.locations)} {sign}{self.amount:g}"

    def expand(self, network: nn.Module, inputs: Tensor) -> nn.Module:
        """The expanded network; `inputs` is an example batch, used for its shape alone."""
        generator = substream("expand", self.operator, *self.locations, f"{self.amount:g}", self.seed)
        if self.operator in WIDER:
            for location in self.locations:
                group = _coupling(network, location, inputs)
                network = _grow(network, location, group, round(self.amount * group.size), self.operator, generator)
            return network
        for location in sorted(self.locations, key=_position, reverse=True):  # an insertion moves what lies behind it
            for _ in range(round(self.amount)):
                network = deepen(network, location, self.operator, generator, inputs)
        return network


def widen(
    network: nn.Module, location: str, size: int, operator: str, generator: torch.Generator, inputs: Tensor
) -> nn.Module:
    """A copy of `network` in which the units that `location` produces number `size`.

    Raises:
        ValueError: the operator or the location is unknown, or `size` does not exceed the present one.
    """
    if operator not in WIDER:
        raise ValueError(f"unknown wider operator {operator!r}; known: {', '.join(WIDER)}")
    return _grow(network, location, _coupling(network, location, inputs), size, operator, generator)


def _grow(
    network: nn.Module, location: str, group: Coupling, size: int, operator: str, generator: torch.Generator
) -> nn.Module:
    if size <= group.size:
        raise ValueError(f"{location} has {group.size} units; widening to {size} would not expand it")
    wider = copy.deepcopy(network)
    axes = [*group.produced, *group.consumed]
    tensors = [wider.get_parameter(name).detach().movedim(axis, 0) for name, axis in axes]
    split = len(group.produced)
    produced, consumed = WIDER[operator](tensors[:split], tensors[split:], size - group.size, generator)
    for (name, axis), tensor in zip(axes, [*produced, *consumed], strict=True):
        _replace(wider, name, tensor.movedim(0, axis).contiguous())
    return wider


def deepen(network: nn.Module, location: str, operator: str, generator: torch.Generator, inputs: Tensor) -> nn.Module:
    """A copy of `network` with one more linear layer, as wide as its input, right after `location`.

    `deeper_identity` puts W = 1, b = 0 there: exact where the units are non-negative already, since relu(relu(x)) =
    relu(x) (Net2DeeperNet: Chen, Goodfellow, Shlens 2016, section 2.3); `deeper_random` draws the layer at the
    default scale.

    Raises:
        ValueError: the operator or location is unknown, the location is not in a `ModuleList` of linear layers, or
            identity is asked where the units are not rectified.
    """
    if operator not in DEEPER:
        raise ValueError(f"unknown deeper operator {operator!r}; known: {', '.join(DEEPER)}")
    group = _coupling(network, location, inputs)
    deeper = copy.deepcopy(network)
    parent, _, index = location.rpartition(".")
    layers = deeper.get_submodule(parent)
    if not isinstance(layers, nn.ModuleList) or not isinstance(deeper.get_submodule(location), nn.Linear):
        raise ValueError(f"{location} is not a linear layer in a ModuleList, so no layer can be inserted after it")
    if operator == "deeper_identity" and not group.rectified:
        raise ValueError(f"an identity layer after {location} is not exact: its units are not rectified")
    weight = deeper.get_submodule(location).weight.detach()
    layer = nn.Linear(group.size, group.size, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        if operator == "deeper_identity":
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        else:
            for parameter in (layer.weight, layer.bias):
                parameter.copy_(_uniform(parameter.shape, group.size, weight, generator))
    layers.insert(int(index) + 1, layer)
    return deeper


def _position(location: str) -> tuple[str, int]:
    parent, _, index = location.rpartition(".")
    return parent, int(index) if index.isdigit() else -1


def _coupling(network: nn.Module, location: str, inputs: Tensor) -> Coupling:
    groups = couplings(network, inputs)
    if location not in groups:
        raise ValueError(f"unknown location {location!r}; this network can grow at: {', '.join(groups)}")
    return groups[location]


def _replace(network: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    setattr(module, leaf, nn.Parameter(tensor))
    if isinstance(module, nn.Linear):  # keeps what the module prints true
        module.out_features, module.in_features = module.weight.shape
