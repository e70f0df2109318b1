"""What to grow next: expansions in a row, each chosen by a rule among a few candidates, all rules at the same cost.

What it costs is counted in floating-point operations, as in `growing`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring
from mmstudy.core import networks, tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold.estimate import STEP
from mmstudy.study import derived
from mmstudy.study.growing import accuracy, new_bases, trained
from mmstudy.study.probes import probe
from mmstudy.study.protocol import Protocol
from mmstudy.tracing.couplings import couplings


class Seen(NamedTuple):
    """What is known of the candidates of a round: the networks after a share of their training, and their losses."""

    task: Task
    data: Data
    protocol: Protocol
    candidates: Sequence[nn.Module]
    losses: Sequence[Float[Tensor, " steps"]]


@dataclass(frozen=True)
class Rule:
    """How the next expansion is chosen: after a share of its training, by a score of each candidate (more is better).

    `expenses` are the parts of a look (`Protocol.costs`) that the score needs.
    """

    share: float
    score: Callable[[Seen], Sequence[float]]
    expenses: tuple[str, ...] = ()


def by_size(seen: Seen) -> list[float]:
    """The extent of the headline: the mean multiple of filter-normalized directions, up to the median loss + margin."""
    looks = []
    for network in seen.candidates:
        one = en.stack([network])
        still = en.vectors(one).unsqueeze(1).expand(-1, seen.protocol.children, -1)  # no snapshots: none are asked for
        looks.append(probe(seen.task, seen.data, one, still, 0.0, seen.protocol).rename(network="candidate"))
    whole = xr.concat(looks, "candidate").expand_dims(progress=[0.0])
    whole = whole.assign_coords(task=("candidate", [str(seen.task)] * len(looks)))
    return derived.extent(whole, "random", "median", "multiple", seen.protocol.margin).isel(progress=0).values.tolist()


def by_loss(seen: Seen) -> list[float]:
    """The early rival: ranks of the last fifth of the minibatch losses so far, with those of the parameter count."""
    late = [-float(loss[-max(1, round(derived.WINDOW * len(loss))) :].mean()) for loss in seen.losses]
    return (stats.rankdata(np.nan_to_num(late, nan=-np.inf)) + stats.rankdata(by_count(seen))).tolist()


def by_validation(seen: Seen) -> list[float]:
    """Accuracy on the validation part."""
    return [scoring.evaluate(en.stack([one]), seen.data.validation)["accuracy"].item() for one in seen.candidates]


def by_count(seen: Seen) -> list[float]:
    """The number of parameters."""
    return [float(networks.count_parameters(one)) for one in seen.candidates]


def by_lot(seen: Seen) -> list[float]:
    """No candidate is better than another."""
    return [0.0] * len(seen.candidates)


RULES = {
    "size": Rule(0.05, by_size, ("children", "centre", "random rays")),
    "early loss": Rule(0.1, by_loss),
    "validation": Rule(0.1, by_validation, ("validation",)),
    "largest": Rule(0.0, by_count),
    "random": Rule(0.0, by_lot),
}


APART = 0.03  # of the cost of two rules for a round, in which whole steps are trained


class Run(NamedTuple):
    """A training: where it starts, its whole length, after how many steps it is left, and the seed of its order."""

    start: nn.Module
    steps: int
    until: int
    seed: int


def in_a_row(
    task: Task, protocol: Protocol, rounds: int, factor: int, operators: Sequence[str], seeds: int
) -> xr.Dataset:
    """Expand again and again, each time what a rule of `RULES` likes best, at the same cost for every rule.

    The candidates of a round multiply the units of one coupling by `factor`, by one of the operators. A round may cost
    what `factor` to the power of the rounds before it trainings of the base cost: the chosen one's training, that of
    all the others up to the look, and what the looks take. Ties are drawn by lot.

    Returns over (rule, seed, round) test `accuracy` in percent, of the base in round 0, the number of `parameters`, and
    `spent`, as a share of what the round may cost.
    """
    data, everyone = tasks.load(task), list(range(seeds))
    stacked = en.stack(new_bases(task, data, seeds))
    bases, _ = trained(task, data, stacked, protocol, protocol.steps, "base", everyone)[protocol.steps]
    flops = networks.count_flops(bases.network, data.training.inputs[:1])
    now = {(name, seed): base for name in RULES for seed, base in enumerate(bases.members())}
    rows = [{key: (network, 1.0) for key, network in now.items()}]
    for turn in range(rounds):
        budget = factor**turn * STEP * protocol.batch * protocol.steps * flops
        rows.append(_round(task, data, protocol, now, budget, factor, operators, turn))
        now = {key: network for key, (network, _) in rows[-1].items()}
    table = xr.Dataset(coords={"rule": list(RULES), "seed": everyone, "round": range(rounds + 1)})
    kinds: dict[str, Callable[[nn.Module, float], float]] = {
        "accuracy": lambda network, _: accuracy(en.stack([network]), data).item(),
        "parameters": lambda network, _: networks.count_parameters(network),
        "spent": lambda _, spent: spent,
    }
    for name, of in kinds.items():
        values = [[[of(*row[rule, seed]) for row in rows] for seed in everyone] for rule in RULES]
        table[name] = ("rule", "seed", "round"), np.array(values, float)
    return table


Path = tuple[str, int]  # a rule and a seed


def _round(
    task: Task,
    data: Data,
    protocol: Protocol,
    now: Mapping[Path, nn.Module],
    budget: float | int,
    factor: int,
    operators: Sequence[str],
    turn: int,
) -> dict[Path, tuple[nn.Module, float]]:
    """The network that each path goes on with, trained, and the share of the budget that was spent.

    Every candidate would be trained at the same cost, with a cosine of its own. What is seen of it early is the
    beginning of just that training, which is done again for the chosen one, and counted once.

    Raises:
        ValueError: a budget that looks alone would use up.
    """
    grown, lengths, spent = {}, {}, {}
    for (name, seed), network in now.items():
        path = name, seed
        grown[path] = _candidates(network, data, factor, operators, seed)
        lengths[path], spent[path] = _afforded(name, grown[path], data, protocol, budget)
    begun = [
        Run(one, steps, round(RULES[path[0]].share * steps), path[1])
        for path in now
        for one, steps in zip(grown[path], lengths[path].tolist(), strict=True)
    ]
    looked = iter(_together(task, data, protocol, begun, f"round {turn}"))
    chosen = {}
    for path in now:
        seen, losses = zip(*[next(looked) for _ in grown[path]], strict=True)
        score = np.nan_to_num(RULES[path[0]].score(Seen(task, data, protocol, seen, losses)), nan=-np.inf)
        lot = torch.rand(len(seen), generator=generator("lot", task, *path, turn)).numpy()
        chosen[path] = int(np.lexsort((lot, score))[-1])
    finish = [Run(grown[path][i], int(lengths[path][i]), int(lengths[path][i]), path[1]) for path, i in chosen.items()]
    ended = _together(task, data, protocol, finish, f"round {turn}")
    return {
        path: (network, float(spent[path][i])) for (path, i), (network, _) in zip(chosen.items(), ended, strict=True)
    }


def check(task: Task, protocol: Protocol, factor: int, operators: Sequence[str]) -> None:
    """Refuse a protocol under which a round of `in_a_row` could not pay its looks, or would cost more by some rules.

    Raises:
        ValueError: one of these.
    """
    data = tasks.load(task)
    network = tasks.base(task, data)
    budget = STEP * protocol.batch * protocol.steps * networks.count_flops(network, data.training.inputs[:1])
    grown = _candidates(network, data, factor, operators, 0)
    for name in RULES:
        _, spent = _afforded(name, grown, data, protocol, budget)
        if (off := abs(spent - 1).max()) > APART:
            raise ValueError(
                f"with {protocol.steps} steps in minibatches of {protocol.batch}, a round by {name} would cost "
                f"{off:.0%} more or less than it may: take more steps"
            )


def _candidates(network: nn.Module, data: Data, factor: int, operators: Sequence[str], seed: int) -> list[nn.Module]:
    """What the network may become in a round."""
    return [
        Candidate(operator, (place,), (factor * group.size,), seed).expand(network, data.training)
        for place, group in couplings(network, data.training.inputs).items()
        for operator in operators
    ]


def _afforded(
    name: str, grown: Sequence[nn.Module], data: Data, protocol: Protocol, budget: float | int
) -> tuple[np.ndarray, np.ndarray]:
    """How many steps each candidate of a rule would be trained, and the share of the budget that is then spent.

    Raises:
        ValueError: a budget that looks alone would use up.
    """
    costs, rule = protocol.costs(len(data.training.targets), len(data.validation.targets)), RULES[name]
    flops = np.array([networks.count_flops(one, data.training.inputs[:1]) for one in grown])
    looks = sum(costs[part] for part in rule.expenses) * flops.sum()
    step = STEP * protocol.batch * flops
    lengths = np.round((budget - looks) / (1 + rule.share * (len(flops) - 1)) / step).astype(int)
    if (lengths < 1).any():
        raise ValueError(
            f"a budget of {budget:g} operations, {protocol.steps} steps in minibatches of {protocol.batch}, is too "
            f"small to look by {name}: take more steps, or larger minibatches"
        )
    left = np.round(rule.share * lengths)
    return lengths, (looks + (left * step).sum() + (lengths - left) * step) / budget


def _together(
    task: Task, data: Data, protocol: Protocol, runs: Sequence[Run], name: str
) -> list[tuple[nn.Module, Float[Tensor, " steps"]]]:
    """Each run's network and losses; those of one shape and length are trained as one batch."""
    alike = defaultdict(list)
    for i, run in enumerate(runs):
        shape = tuple((key, tuple(p.shape)) for key, p in run.start.named_parameters())
        alike[shape, run.steps, run.until].append(i)
    found: dict[int, tuple[nn.Module, Tensor]] = {}
    for (_, steps, until), some in alike.items():
        if not until:
            found |= {i: (runs[i].start, torch.zeros(0)) for i in some}
            continue
        stacked, seeds = en.stack([runs[i].start for i in some]), [runs[i].seed for i in some]
        ended, losses = trained(task, data, stacked, protocol, steps, name, seeds, [until])[until]
        found |= dict(zip(some, zip(ended.members(), losses, strict=True), strict=True))
    return [found[i] for i in range(len(runs))]
