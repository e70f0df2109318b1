"""Where tensors lie in memory; parameters that are several tensors and one place are tied, and no copy keeps that."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def one_storage(network: nn.Module) -> str:
    """What to say of different parameters of a network that lie at one place in memory; nothing if there are none."""
    shared = together(dict(network.named_parameters()))
    if not shared:
        return ""
    return (
        f"{' and '.join(shared[0])} are several parameters of one storage, which no copy keeps tied: tie them as one "
        "parameter, e.g. b.weight = a.weight"
    )


def together(parameters: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors that begin at one place in memory, where there are several."""
    groups: dict[object, list[str]] = {}
    for name, tensor in parameters.items():
        groups.setdefault(place(tensor) or id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def place(tensor: Tensor) -> object:
    """Where a tensor lies; None: nowhere."""
    if is_lazy(tensor) or tensor.is_meta or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr()


def storage(tensor: Tensor) -> int:
    """Where in memory what a tensor is a view of lies; 0: nowhere."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or made up
        return 0
