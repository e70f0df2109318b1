"""How large a network will be, before it is built: what cannot fit is refused."""

from collections.abc import Mapping

from torch import nn

from mmstudy.core import arguments
from mmstudy.core.networks import count_parameters
from mmstudy.tracing.couplings import Coupling

MODULE_BYTES = 2**13  # what Python keeps of a module without parameters
MOST_LAYERS = 4096  # that are inserted at once; each is built, run and checked
MATRICES, NUMBER_BYTES = 3, 8  # of a plan, in float64: see `plans.Plan`


def wider_fits(network: nn.Module, coupling: Coupling, size: int) -> None:
    """Refuse a number of units that does not fit into memory.

    Raises:
        ValueError: the network, or the matrices that make it, would be larger than `arguments.MOST_BYTES`.
    """
    needed = max(coupling.parameters(size) * _bytes(network), MATRICES * size * coupling.size * NUMBER_BYTES)
    arguments.fits(needed, f"{coupling.name} with {size:,} units")


def deeper_fits(network: nn.Module, numbers: Mapping[str, int]) -> None:
    """Refuse a number of layers or blocks, place → how many, that does not fit into memory, or takes for ever.

    Raises:
        ValueError: there are more than `MOST_LAYERS`, or the network would be larger than `arguments.MOST_BYTES`.
    """
    modules, needed = dict(network.named_modules()), count_parameters(network) * _bytes(network)
    for place, number in numbers.items():
        count = len(list(modules[place].modules())) if place in modules else 1
        needed += number * (added(modules, place) * _bytes(network) + count * MODULE_BYTES)
    total = sum(numbers.values())
    arguments.fits(needed, f"{total:,} more layers or blocks behind {', '.join(numbers)}")
    if total > MOST_LAYERS:
        raise ValueError(
            f"{total:,} more layers or blocks behind {', '.join(numbers)}: at most {MOST_LAYERS:,} at once"
        )


def added(modules: Mapping[str, nn.Module], place: str) -> int:
    """How many parameters another member of a list of layers or blocks has, at least."""
    weights = [p for p in modules[place].parameters() if p.ndim > 1] if place in modules else []
    if len(weights) == 1:  # a layer, which is made square
        return weights[0].numel() // weights[0].shape[1] * len(weights[0])
    parent = modules.get(place.rpartition(".")[0], nn.ModuleList())
    alike = [count_parameters(member) for member in parent.children() if type(member) is type(modules.get(place))]
    return min(alike, default=0)


def _bytes(network: nn.Module) -> int:
    return max((p.element_size() for p in network.parameters()), default=1)
