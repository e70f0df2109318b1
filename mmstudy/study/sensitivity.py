"""How much does a size depend on its explorers, their number and their steps? And does another definition do better?

Candidates of a small pool are trained in full and looked at on the way, as in the experiment; each look is measured
with several numbers of children that train for several numbers of steps, and by the local learning coefficient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import nn

from mmstudy.batched import ensemble as en
from mmstudy.batched.objective import Objective, of_networks
from mmstudy.core import tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Task
from mmstudy.expansion import pools
from mmstudy.manifold import profiles
from mmstudy.manifold.children import offspring
from mmstudy.manifold.estimate import PASS, STEP
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.manifold.extent import ways_of
from mmstudy.study import derived, design, statistics, trials
from mmstudy.study.draws import minibatch_order, probe_split, take
from mmstudy.study.protocol import Protocol

KIND, LEVEL = "children", "median"  # of the extent, in multiples, as in `choices.RELATION`
LLC = ESTIMATORS["llc"]


def sensitivity(
    task: Task,
    protocol: Protocol,
    shape: Mapping[str, Any],
    children: Sequence[int],
    child_steps: Sequence[int],
    chain_steps: int = 800,
) -> xr.Dataset:
    """How well the extent and the local learning coefficient order the gains of a task's pool, both as it is measured.

    K children are drawn from one family of as many as the largest K, so that a smaller K has several disjoint draws.
    The coefficient is that of each network up to its own loss + margin, as it is local.

    Args:
        protocol: at which shares of the training candidates are looked at (0 is left out), and all else.
        shape: options of `pools.candidate_pool`.
        children: numbers K of children, each a divisor of the largest.
        child_steps: numbers T of steps that they train.
        chain_steps: of the chains from which the coefficient is estimated; with fewer, few of them settle.

    Returns over (progress, child_steps, children) `spearman` with the accuracy gain, the mean over draws; `agreement`,
    Spearman's correlation between the sizes of two draws, the mean over pairs (NaN where there is one draw only);
    `censored`, the share of rays that did not meet the level; over (child_steps, children) `cost`, a share of a full
    training. Over progress `llc_spearman`, of −λ̂ with the gain, among the candidates whose chains have settled;
    `llc_settled`, their share; `extent_spearman`, of the extent with the most children and steps among the same
    candidates. A correlation of fewer than four candidates is NaN.

    Raises:
        ValueError: a K that does not divide the largest.
    """
    check_children(children)
    data = tasks.load(task)
    pool, _ = design.pool(task, data, shape)
    looks, gain = _trained(task, data, pool, protocol)
    shares = [
        _at_once(task, data, networks, gain, protocol, children, child_steps, chain_steps, share)
        for share, networks in looks.items()
    ]
    costs = [[cost(protocol, count, steps) for count in children] for steps in child_steps]
    found = xr.concat(shares, "progress").assign_coords(progress=list(looks))
    return found.assign(cost=(("child_steps", "children"), costs))


def check_children(children: Sequence[int]) -> None:
    """Refuse numbers of children that the largest is no multiple of: each set is a part of the largest.

    Raises:
        ValueError: one is.
    """
    if wrong := [count for count in children if max(children) % count]:
        raise ValueError(f"numbers of children must divide the largest, {max(children)}; got {wrong}")


def cost(protocol: Protocol, children: int, child_steps: int) -> float:
    """What such a look takes, as a share of a full training: the children's, their centre's loss, and the rays."""
    rays = 2 * children * (protocol.doublings + 1)
    spent = STEP * protocol.batch * children * child_steps + PASS * protocol.probe_examples * (1 + rays)
    return spent / protocol.full_cost


def _trained(
    task: Task, data: Data, pool: Mapping[str, Any], protocol: Protocol
) -> tuple[dict[float, list[en.Ensemble]], Float[np.ndarray, " candidate"]]:
    """The candidates, architecture by architecture, after each share of the training; and their gains, in points."""
    small, base = tasks.base(task, data), trials.train_base(task, data, protocol)
    nn.utils.vector_to_parameters(torch.as_tensor(base["base"].values), small.parameters())
    looks: dict[float, list[en.Ensemble]] = {share: [] for share in protocol.progress[1:]}
    last, scores = trials.CHECKPOINTS.index("last"), []
    for group in pools.architectures(pool):
        many = len(group)
        start = en.stack([c.expand(small, data.training) for _, c in group for _ in range(protocol.seeds)])
        run = trials.in_full(task, data, start, protocol, watched=range(0, many * protocol.seeds, protocol.seeds))
        for i, share in enumerate(looks, start=1):
            looks[share].append(run.looks[list(range(i * many, (i + 1) * many))])
        scores.append(run.scores["accuracy"][:, last].view(many, protocol.seeds).mean(1))
    control = base["control_accuracy"].isel(checkpoint=last).mean().item()
    return looks, 100 * (torch.cat(scores).numpy() - control)


def _at_once(
    task: Task,
    data: Data,
    looks: Sequence[en.Ensemble],
    gain: Float[np.ndarray, " candidate"],
    protocol: Protocol,
    children: Sequence[int],
    child_steps: Sequence[int],
    chain_steps: int,
    share: float,
) -> xr.Dataset:
    """All that is measured after one share of the training, over (child_steps, children)."""
    split = probe_split(task, data, protocol)
    options: dict[str, Any] = {"training": data.training, "minibatch": protocol.batch, "take": take(data, protocol)}
    objectives = [of_networks(one, split, **options) for one in looks]
    order = minibatch_order(task, data, protocol, [f"child {i}" for i in range(max(children))], max(child_steps))
    parts = [
        _profiles(objective, en.vectors(one), order, protocol, children, child_steps)
        for objective, one in zip(objectives, looks, strict=True)
    ]
    names, rows = ("spearman", "agreement", "censored"), []
    ways = list(product(child_steps, children))
    sizes = {way: _sizes([part[way] for part in parts], task, share, protocol.margin) for way in ways}
    for size, censored in sizes.values():
        pairs = [spearman(size[[i]], size[j])[0] for i, j in combinations(range(len(size)), 2)]
        rows.append((spearman(size, gain).mean(), np.mean(pairs) if pairs else np.nan, censored))
    grid = np.array(rows).reshape(len(child_steps), len(children), len(names))
    table = xr.Dataset({name: (("child_steps", "children"), grid[..., i]) for i, name in enumerate(names)})
    table = table.assign_coords(child_steps=list(child_steps), children=list(children))
    chains = replace(LLC.budget, steps=chain_steps)
    found = [
        LLC.measure(
            above(objective, en.vectors(one)), en.vectors(one), protocol.margin, generator("llc", task, share), chains
        )
        for objective, one in zip(objectives, looks, strict=True)
    ]
    size, status = (np.concatenate([one[name].values for one in found]) for name in ("size", "status"))
    most, _ = sizes[max(child_steps), max(children)]
    return table.assign(_coefficients(LLC.sign * size, most[0], gain, status == "ok"))


def above(objective: Objective, parents: Float[torch.Tensor, "m dim"]) -> Objective:
    """The same loss less that of the owner of a point: one level is then as high above each parent."""
    base, (first, *others) = objective(parents), objective.terms

    def lowered(points: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        return first(points, owner) - base[owner]

    return replace(objective, terms=(lowered, *others))


def _coefficients(
    coefficient: Float[np.ndarray, " candidate"],
    extent: Float[np.ndarray, " candidate"],
    gain: Float[np.ndarray, " candidate"],
    settled: Bool[np.ndarray, " candidate"],
) -> dict[str, float]:
    """How two sizes order the gains of the candidates of which both are known, and the share of these."""
    both = np.stack([coefficient, extent])[:, settled]
    first, second = spearman(both, gain[settled])
    return {"llc_spearman": first, "extent_spearman": second, "llc_settled": settled.mean()}


def _profiles(
    objective: Objective,
    points: torch.Tensor,
    order: torch.Tensor,
    protocol: Protocol,
    children: Sequence[int],
    child_steps: Sequence[int],
) -> dict[tuple[int, int], xr.Dataset]:
    """The loss along ± the children of every draw: (T, K) → `ray_loss`, `ray_origin` over (candidate, draw, ray, …)."""
    places, found = profiles.multiples(protocol.doublings), {}
    rates = torch.full((len(points),), protocol.step_size)
    for steps, family, _ in offspring(objective, points, order, rates, protocol.momentum, child_steps):
        for count in children:
            losses, origins = [], []
            for some in family.split(count, dim=1):
                along, parted = ways_of(some)
                known = (parted & some.isfinite().flatten(1).all(1)).view(-1, 1, 1)
                centre = torch.where(known, some, 0.0).mean(1)
                losses.append(profiles.profiles(objective, centre, along, places).where(known, torch.nan))
                origins.append(objective(centre).unsqueeze(1).expand(along.shape[:2]).where(known[..., 0], torch.nan))
            dims = ("candidate", "draw", "ray", "place")
            stacked = {"ray_loss": torch.stack(losses, 1), "ray_origin": torch.stack(origins, 1)}
            variables = {name: (dims[: value.ndim], value.numpy()) for name, value in stacked.items()}
            found[steps, count] = xr.Dataset(variables, {"place": places})
    return found


def _sizes(
    parts: Sequence[xr.Dataset], task: Task, share: float, margin: float
) -> tuple[Float[np.ndarray, "draw candidate"], float]:
    """The extent of each candidate in each draw, and the share of rays that are censored."""
    whole = xr.concat(parts, "candidate").expand_dims(progress=[share])
    whole = whole.assign(ray_length=xr.ones_like(whole["ray_origin"]))  # a multiple does not depend on it
    coords = {"kind": ("ray", [KIND] * whole.sizes["ray"])}
    coords["task"] = "candidate", [str(task)] * whole.sizes["candidate"]
    whole = whole.assign_coords(coords)
    draws = [derived.crossings(whole.isel(draw=i), KIND, LEVEL, margin) for i in range(whole.sizes["draw"])]
    sizes = [one["multiple"].mean("ray", skipna=False).isel(progress=0).values for one in draws]
    return np.stack(sizes), float(np.mean([one["censored"].mean() for one in draws]))


def spearman(
    values: Float[np.ndarray, "row candidate"], gain: Float[np.ndarray, " candidate"]
) -> Float[np.ndarray, " row"]:
    """ρ of each row with the gains that are known; what could not be measured ranks last; NaN for fewer than four."""
    known = np.isfinite(gain)
    if known.sum() < statistics.FEWEST:
        return np.full(len(values), np.nan)
    ranked = statistics.ranked_last(values[:, known])
    return statistics.spearman(ranked, np.round(gain[known], statistics.DECIMALS))
