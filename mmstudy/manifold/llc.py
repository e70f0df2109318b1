"""The local learning coefficient: how fast the set shrinks as the level falls, size as singular learning theory has it.

Chains sample exp(−t·L) about the parent, at the temperature 1/t at which they live as high as the level. They follow
the exact gradient and are corrected (Hamiltonian Monte Carlo: Neal 2011, arXiv 1206.1901; Langevin's with one leap),
so that a step size can be inefficient but not wrong.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.objective import Objective
from mmstudy.manifold import estimate
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.estimate import PASS, STEP, Budget

FEWEST = 12  # proposals, below which the halves of a chain say nothing
ACCEPTANCE = 0.75  # what the step size aims at
AGREE, DRIFT, NEAR = 1.1, 3.0, 3.0  # a plateau has R̂, drift (in standard errors) and misfit of the height up to these
MOST = 16.0  # the factor by which t may change at once
SIDES = 4  # directions that the first step size is taken from
FURTHEST, LOOKS, COARSE = 2.0**20, 24, 0.2  # how far along them, in how many looks, how precisely


def llc(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    level: float,
    budget: Budget,
    generator: torch.Generator,
    *,
    leaps: int = 2,
    reach: float = 30.0,
) -> xr.Dataset:
    """λ̂ = t·(E[L(θ)] − L(θ_p)), θ ~ exp(−t·L(θ) − γ/2 ‖θ − θ_p‖²): Lau et al. 2023, arXiv 2308.12108, with t = nβ.

    `budget.samples` chains start at the parent. During the first third of their steps t is moved to where the mean loss
    is the level (Lau et al. take t = n / ln n), and the step size to an acceptance of ¾; then both are fixed. The
    second half counts, a chain's mean being one sample. γ⁻½ is `reach` times the spread of random directions that end
    at the level. Step size and momentum of the budget play no part.

    A larger λ̂ is a SMALLER set: its volume goes as ε^λ. No unit; for ε → 0 D/2 at a quadratic minimum whatever its
    curvatures, ½ less for each flat direction and ¼ less for each quartic one, so that 0 < λ ≤ D/2 at minima. γ takes
    off what is flatter than it: ½ Σ h/(h + γ/t) is left of curvatures h, with γ/t near their mean / reach². γ
    comes from 4 directions, and `size_se` is that of the chains alone, given γ: over seeds, the size of a linear
    regression of 20 parameters deviated about twice as much.

    Neuron permutation changes nothing; rescaling ReLUs and duplicating neurons leave λ as it is, and change λ̂ only
    through the reach. So it compares networks of different D. Trained networks have so many nearly flat directions that
    chains with a reach of 30 seldom settle in time; with one of 3 they do sooner, and γ then matters: `slope` tells.

    Args:
        parents: (m, dim).
        level: ℓ, one height for all.
        leaps: gradients for each proposal.
        reach: how far chains may go, in units of the distance to the level.

    Returns:
        As every estimator (`estimate.report`); also over parent: `temperature` 1/t (nats); `slope`, dλ̂/d ln t =
        λ̂ − t² Var(L), by which λ̂ depends on the temperature (at t times e^±½ it is λ̂ ± slope/2); `height`, the mean
        excess over ℓ − L(θ_p), 1 if the temperature is right; `step_size`; `localization` γ; `acceptance`; `rhat`,
        split R̂ (Gelman et al. 2013) of the loss; `drift`, the first half of what counts minus the second, in standard
        errors. Status: ok; no_plateau (R̂ > 1.1, |drift| > 3, or a height off by more than 3 times, as on a landscape
        without a rise: no number); outside (the parent is not below the level); nan.

    Raises:
        ValueError: leaps that leave fewer than 12 proposals, a reach below 2, and what
            `estimate.starting` refuses.
    """
    proposals, count = budget.steps // leaps if leaps > 0 else 0, budget.samples
    if proposals < FEWEST:
        raise ValueError(f"{budget.steps} steps in leaps of {leaps}: take leaps ≥ 1 and steps ≥ {FEWEST} times as many")
    if not 2 <= reach < np.inf:
        raise ValueError(f"the reach must be finite and ≥ 2, so that the level lies well within it; got {reach}")
    status, _ = estimate.starting(objective, parents, level, generator)
    base, gradient = objective.gradient(parents)
    gap = level - base
    step, looks = _scale(objective, parents, base, level, generator)
    pull, t = (reach * step) ** -2, parents.shape[1] / 2 / gap
    at = _Chains(*(x.unsqueeze(1).expand(-1, count, *x.shape[1:]) for x in (parents, base, gradient)))
    excesses, rates = [], []
    for proposal in range(proposals):
        at, rate = _propose(objective, parents, at, (t, pull, step), leaps, generator)
        excesses.append(at.loss - base.unsqueeze(1))
        rates.append(rate)
        if proposal < proposals // 3:
            gain = (1 + proposal) ** -0.5
            change = (excesses[-1].mean(1) / gap).clamp(1 / MOST, MOST) ** (gain * rate)
            t, step = t * change, step * change**-0.5 * (2 * gain * (rate - ACCEPTANCE)).exp()
    kept = t[:, None, None] * torch.stack(excesses[proposals // 2 :], dim=2)  # (m, chains, proposals)
    samples = kept.mean(2)
    size, error = samples.mean(1), estimate.standard_error(samples)
    rhat, drift = _agreement(kept)
    height = size / t / gap
    settled = (rhat <= AGREE) & (drift.abs() <= DRIFT) & (height >= 1 / NEAR) & (height <= NEAR)
    start = np.where((status == "ok") & (gap <= 0).cpu().numpy(), "outside", status)
    status = np.where((start == "ok") & ~settled.cpu().numpy(), "no_plateau", start)
    more = {"temperature": 1 / t, "slope": size - kept.var((1, 2)), "height": height, "step_size": step}
    more |= {"localization": pull, "acceptance": torch.stack(rates[proposals // 2 :]).mean(0)}
    passes = PASS * (1 + looks) + STEP * (1 + count * proposals * leaps)
    return estimate.report(
        objective, level, size, error, samples, status, objective.examples * passes, **more, rhat=rhat, drift=drift
    )


@dataclass(frozen=True)
class _Chains:
    place: Float[Tensor, "m n dim"]
    loss: Float[Tensor, "m n"]
    gradient: Float[Tensor, "m n dim"]


def _scale(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    base: Float[Tensor, " m"],
    level: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " m"], np.ndarray]:
    """The a at which the mean loss at θ_p + a·N(0, 1) were the level if it is quadratic; what each search took."""
    draw = torch.randn((SIDES, parents.shape[1]), generator=generator, dtype=torch.float64).to(parents)
    along = draw.expand(len(parents), -1, -1)
    lines = crossings(objective, parents, along, level, 1.0, FURTHEST, COARSE, LOOKS, 0, origin=base)
    curved = lines.multiple.to(base) ** -2  # in proportion to the curvatures along them
    return curved.mean(1) ** -0.5, lines.looks


def _propose(
    objective: Objective,
    parents: Float[Tensor, "m dim"],
    at: _Chains,
    scales: tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]],
    leaps: int,
    generator: torch.Generator,
) -> tuple[_Chains, Float[Tensor, " m"]]:
    """The chains after one proposal (leapfrog, then Metropolis), and how likely each parent's were to be accepted."""
    t, pull, step = (x[:, None] for x in scales)
    count, dim = at.place.shape[1:]
    momentum = torch.randn((count, dim), generator=generator, dtype=torch.float64).to(at.place).expand_as(at.place)
    jitter, luck = torch.rand((2, count), generator=generator, dtype=torch.float64).to(t)
    by = (step * (0.7 + 0.6 * jitter)).unsqueeze(-1).to(at.place)  # orbits of one length could come back to their start
    hot, hold, home = t.unsqueeze(-1).to(at.place), pull.unsqueeze(-1).to(at.place), parents[:, None]

    def energy(chains: _Chains, momentum: Tensor) -> Tensor:
        away, speed = ((x * x).sum(-1, dtype=torch.float64) for x in (chains.place - home, momentum))
        return t * chains.loss + (pull * away + speed) / 2

    def push(chains: _Chains) -> Tensor:
        return hot * chains.gradient + hold * (chains.place - home)

    new, moving = at, momentum - by / 2 * push(at)
    for leap in range(leaps):
        place = new.place + by * moving
        new = _Chains(place, *objective.gradient(place))
        moving = moving - (by if leap < leaps - 1 else by / 2) * push(new)
    chance = (energy(at, momentum) - energy(new, moving)).exp().nan_to_num(0, posinf=1).clamp(max=1)
    moved = luck < chance
    wide = moved.unsqueeze(-1)
    kept = _Chains(
        new.place.where(wide, at.place), new.loss.where(moved, at.loss), new.gradient.where(wide, at.gradient)
    )
    return kept, chance.mean(1)


def _agreement(kept: Float[Tensor, "m n steps"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Split R̂, and the mean change from the first to the second half of the chains in its standard errors."""
    half = kept.shape[2] // 2
    first, second = kept[..., :half], kept[..., -half:]
    halves = torch.cat([first, second], dim=1)
    ratio = halves.mean(2).var(1) / halves.var(2).mean(1)
    change = first.mean(2) - second.mean(2)
    return ((half - 1) / half + ratio).sqrt(), change.mean(1) / estimate.standard_error(change)
