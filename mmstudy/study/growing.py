"""When to grow: after part of the base's training, at its end, at once, or never, all at the same cost.

What it costs is counted in floating-point operations: a step of training takes three forward passes of its minibatch.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring, training
from mmstudy.core import networks, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.study.draws import minibatch_order, take
from mmstudy.study.protocol import Protocol
from mmstudy.study.references import from_scratch
from mmstudy.tracing.couplings import couplings


def new_bases(task: Task, data: Data, seeds: int) -> list[nn.Module]:
    """Untrained base networks of a task, one for each seed."""
    return [networks.initialize(tasks.base(task, data), generator("initialize", task, seed)) for seed in range(seeds)]


def trained(
    task: Task,
    data: Data,
    start: en.Ensemble,
    protocol: Protocol,
    steps: int,
    name: str,
    seeds: Sequence[int],
    until: Collection[int] = (),
) -> dict[int, tuple[en.Ensemble, Float[Tensor, "n since"]]]:
    """Networks trained with a cosine of so many steps: what they are after some of them, and their losses since then.

    Args:
        name: of the minibatch orders; networks of one seed share theirs.
        seeds: of each network.
        until: steps to look at, and to stop at the last one of; the last of all if none are given.
    """
    marks = sorted(until) or [steps]
    order = minibatch_order(task, data, protocol, [f"{name} {seed}" for seed in dict.fromkeys(seeds)], marks[-1])
    own = order[[list(dict.fromkeys(seeds)).index(seed) for seed in seeds]]
    rates = training.cosine(protocol.step_size, steps)[: marks[-1]]
    found = training.train(start, data.training, own, rates, protocol.momentum, marks, take=take(data, protocol))
    return {step: (ensemble, losses) for step, ensemble, losses in found}


def accuracy(ensemble: en.Ensemble, data: Data) -> Float[np.ndarray, " n"]:
    """Test accuracy in percent; NaN of what has diverged."""
    found = 100 * scoring.evaluate(ensemble, data.test)["accuracy"]
    return found.where(en.vectors(ensemble).isfinite().all(1), torch.nan).numpy()


def now_or_later(
    task: Task, protocol: Protocol, shares: Sequence[float | int], operators: Sequence[str], factor: int, seeds: int
) -> xr.Dataset:
    """Grow all hidden layers after a share of the base's training, and train on until all have cost the same.

    What all cost: the base's full training, and as many steps of the large network. Who grows earlier trains the large
    network for longer. The base's cosine is broken off where it grows, and a new one begins.

    Returns `accuracy` on the test part in percent over (share, operator, seed); over seed, at the same cost, `never`:
    the base trained on, and `scratch`: the large network from the start; `steps` of the large network over share.

    Raises:
        ValueError: shares outside (0, 1], or a network that is no perceptron.
    """
    if task.family != "MLP" or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"needs a perceptron, and shares in (0, 1]; got {task} and {list(shares)}")
    data, steps, everyone = tasks.load(task), protocol.steps, list(range(seeds))
    bases = new_bases(task, data, seeds)
    marks = [round(share * steps) for share in shares]
    passed = trained(task, data, en.stack(bases), protocol, steps, "base", everyone, {*marks, steps})
    places = tuple(couplings(bases[0], data.training.inputs))
    sizes = tuple(factor * width for width in task.widths)
    rows = []
    for mark in marks:
        grown = [
            Candidate(operator, places, sizes, seed).expand(member, data.training)
            for operator in operators
            for seed, member in enumerate(passed[mark][0].members())
        ]
        rows.append(grown)
    small, large = (networks.count_flops(one, data.training.inputs[:1]) for one in (bases[0], rows[0][0]))
    left = [steps + round((steps - mark) * small / large) for mark in marks]

    def end(start: Sequence[nn.Module], length: int) -> Float[np.ndarray, "ways seed"]:
        whose = everyone * (len(start) // seeds)
        found = trained(task, data, en.stack(start), protocol, length, "grown", whose)
        return accuracy(found[length][0], data).reshape(-1, seeds)

    fresh = [from_scratch(one, generator("scratch", task, seed)) for seed, one in enumerate(rows[0][:seeds])]
    table = {
        "accuracy": (("share", "operator", "seed"), np.stack([end(*row) for row in zip(rows, left, strict=True)])),
        "never": ("seed", end(passed[steps][0].members(), round(steps * large / small))[0]),
        "scratch": ("seed", end(fresh, steps + round(steps * small / large))[0]),
        "steps": ("share", left),
    }
    return xr.Dataset(table, {"share": list(shares), "operator": list(operators), "seed": everyone})
