"""An expanded network on disk: its recipe and its tensors, in one safetensors file, without pickle."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmstudy.core.results import atomically
from mmstudy.expansion.candidate import Candidate

# What makes the same architecture as an operator that learns from data, without the data.
STAND_INS = {"firefly": "net2net", "gradmax": "zero_outgoing", "ligo": "bert2bert"}


def save(path: str | Path, candidate: Candidate, network: nn.Module) -> Path:
    """Write the network that `candidate` made (and that may have been trained since), atomically."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _tensors(network).items()}
    with atomically(path) as beside:
        save_file(tensors, beside, {"candidate": json.dumps(candidate.as_dict())})
    return Path(path)


def load(path: str | Path, base: nn.Module, inputs: Tensor) -> tuple[Candidate, nn.Module]:
    """The candidate and the network that were saved: the base is expanded by the recipe, then the tensors are put in.

    Args:
        base: a network of the base's architecture; its values do not matter.
        inputs: an example batch, on the base's device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of ours, is damaged, or belongs to another base.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            recipe = (file.metadata() or {}).get("candidate")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged or no safetensors file") from error
    if recipe is None:
        raise ValueError(f"{path} holds tensors but no candidate: it was not written by mmstudy.checkpoints.save")
    candidate = Candidate.from_dict(json.loads(recipe))
    network = _without_data(candidate).expand(base, inputs)
    own = _tensors(network)
    wrong = [
        n for n in own.keys() | tensors.keys() if n not in own or n not in tensors or own[n].shape != tensors[n].shape
    ]
    if wrong:
        raise ValueError(f"{path} was expanded from another base: {', '.join(sorted(wrong))} do not match")
    for name, tensor in own.items():
        tensor.detach().copy_(tensors[name])
    return candidate, network


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, tied ones by their first name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _without_data(candidate: Candidate) -> Candidate:
    then = _without_data(candidate.then) if candidate.then else None
    return replace(candidate, operator=STAND_INS.get(candidate.operator, candidate.operator), then=then)
