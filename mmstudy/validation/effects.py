"""What an expansion does to blocks, weights and the training that follows: what the first notebook shows."""

from collections.abc import Mapping

import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmstudy.batched.ensemble import Ensemble, losses
from mmstudy.batched.training import constant, train
from mmstudy.core.networks import MLP
from mmstudy.core.tasks import Split
from mmstudy.expansion.candidate import Expansion
from mmstudy.validation import preservation

WORDS = {
    **preservation.COLUMNS,
    "incoming": ("1", "weights that make the units of the layer"),
    "outgoing": ("1", "weights that read the units of the layer"),
    "inserted_weight": ("1", "weights of the layer that was inserted behind it"),
    "source": ("1", "which old block each block is or is modelled on"),
    "state": ("1", "where each block comes from: old, copy or drawn"),
    "added": ("1", "what each block adds to the stream, over the stream (norms, mean over examples)"),
    "curve": ("nat", "training loss during the first steps of gradient descent"),
    "base_curve": ("nat", "the same of the base, trained on"),
    "closest": ("1", "distance of the closest two units, relative to their mean length"),
    "adam": ("nat", "training loss during the first steps of Adam, its state carried along or fresh"),
    "base_adam": ("nat", "the same of the base, with its own state"),
    "base_fresh": ("nat", "the same of the base, with a fresh state"),
    **dict.fromkeys(("step", "adam_step"), ("step", "training steps after the expansion")),
    "seed": ("1", "seed of the expansion and of the minibatches"),
}


def lineage(base: nn.Module, expansion: Expansion | None, inputs: Tensor) -> xr.Dataset:
    """Of a transformer's blocks, expanded or not: which old one each is or is modelled on, its state, what it adds."""
    rows: list[tuple[int, str, float]] = []

    def note(block: nn.Module, before: tuple[Tensor], after: Tensor) -> None:
        name = f"blocks.{len(rows)}.up.weight"
        source = expansion.origin[name] if expansion else name
        copied = torch.equal(block.get_parameter("up.weight"), base.get_parameter(source))
        state = "old" if not expansion or name not in expansion.inserted else "copy" if copied else "drawn"
        added = (after - before[0]).norm(dim=-1) / before[0].norm(dim=-1)
        rows.append((int(source.split(".")[1]), state, float(added.mean())))

    network = expansion.network if expansion else base
    hooks = [block.register_forward_hook(note) for block in network.get_submodule("blocks").children()]
    with torch.no_grad():
        network(inputs)
    for hook in hooks:
        hook.remove()
    return pd.DataFrame(rows, columns=["source", "state", "added"]).rename_axis("block").to_xarray()


def around(base: MLP, wider: Mapping[str, MLP], layer: int) -> xr.Dataset:
    """The weights that make and that read the units of a hidden layer, in the base and in wider networks, by name."""
    parts = []
    for network in (base, *wider.values()):
        one, two = (network.get_parameter(f"hidden.{i}.weight").detach() for i in (layer, layer + 1))
        part = xr.Dataset({"incoming": (("unit", "input"), one), "outgoing": (("output", "unit"), two)})
        parts.append(part.assign_coords(unit=range(len(one))))
    return xr.concat(parts, pd.Index(["base", *wider], name="network"), join="outer")


def closest(networks: Ensemble, layer: str) -> Float[Tensor, " k"]:
    """The distance of the closest two units of a layer, relative to their mean length, in each network."""
    weight, bias = (networks.parameters[f"{layer}.{name}"] for name in ("weight", "bias"))
    rows = torch.cat([weight, bias.unsqueeze(-1)], dim=-1)
    gaps = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # the other way is not exact at zero
    gaps.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return gaps.amin((1, 2)) / rows.norm(dim=-1).mean(1)


def course(networks: Ensemble, layer: str, data: Split, order: Int[Tensor, "k t b"], step_size: float) -> xr.Dataset:
    """The training loss and the `closest` units of a layer at first and after some steps of gradient descent."""
    steps = constant(step_size, order.shape[1])
    marks = [mark for mark in (1, 2, 5, 10, 20, 50, 100, 200, 500) if mark < len(steps)]
    states = {0: networks} | {t: now for t, now, _ in train(networks, data, order, steps, milestones=marks)}
    curve = torch.stack([losses(now, data) for now in states.values()], dim=1)
    gaps = torch.stack([closest(now, layer) for now in states.values()], dim=1)
    return xr.Dataset({"curve": (("seed", "step"), curve), "closest": (("seed", "step"), gaps)}, {"step": [*states]})
