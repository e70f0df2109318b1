"""One task's trials: its base network trained, its candidates probed and trained in full, each as a batch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import training
from mmstudy.batched.objective import Objective, of_networks
from mmstudy.core import networks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Split, Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold import children, directions
from mmstudy.manifold.estimate import PASS, STEP
from mmstudy.manifold.rays import crossings
from mmstudy.study import predictors
from mmstudy.tracing.trace import trace

CHECKPOINTS = ("last", "best validation")
FIRST_LOOK = 512  # training examples that foretell how many are needed
SCORES = ("accuracy", "nll", "ece")
SIZES = (
    *("reach", "gyration", "diameter", "effective_dimension", "log_volume", "disagreement"),
    *("extent_children", "extent_differences", "extent_random"),
)


@dataclass(frozen=True)
class Budget:
    """How much is trained and measured. Costs are counted in example-evaluations.

    A probe of length b: `children` copies of the candidate train b / children steps each, at a constant step size;
    the rays start at the children's centre (their mean) and go up to the base network's loss plus `margin`, as far as
    `farthest` times a direction, those along random filter-normalized directions as far as `random_farthest` times.
    Losses are measured on as few training examples, the same for all candidates of a task, as tell a network at that
    level from the base to a standard error of `probe_error` nats. `rates` multiply the training's step size in probes.
    """

    steps: int = 2500
    batch: int = 128
    step_size: float = 0.05
    momentum: float = 0.9
    seeds: int = 3
    validations: int = 10
    rates: tuple[float | int, ...] = (1.0, 2.0)
    probes: tuple[int, ...] = (20, 40, 100, 200, 400)
    early_steps: int = 500
    early_bin: int = 5
    children: int = 4
    margin: float = 0.1
    probe_error: float = 0.05
    random_rays: int = 4
    farthest: float = 16.0
    random_farthest: float = 0.8

    def __post_init__(self):
        if self.seeds < 2 or self.children < 3:
            raise ValueError(f"needs ≥ 2 seeds and ≥ 3 children; got {self.seeds} and {self.children}")
        if not self.probes or any(b % self.children or b <= 0 for b in self.probes):
            raise ValueError(f"probes {self.probes} must be positive multiples of the {self.children} children")
        if self.early_steps % self.early_bin:
            raise ValueError(f"early_steps = {self.early_steps} is no multiple of early_bin = {self.early_bin}")

    @property
    def full_cost(self) -> int:
        """Example-evaluations of training one candidate in full once."""
        return STEP * self.steps * self.batch


def train_base(task: Task, data: Data, budget: Budget) -> xr.Dataset:
    """Train the task's base network, then train it on as the control, once for each seed.

    Returns the base's parameters and loss, and the control's scores over (seed, checkpoint).

    Raises:
        ValueError: the base network diverged.
    """
    stacked = en.stack([new_base(task, data)])
    order = _order(task, data, budget, ["base"], budget.steps)
    ((_, base, _),) = training.train(stacked, data.training, order, _schedule(budget), budget.momentum)
    if not en.vectors(base).isfinite().all():
        raise ValueError(f"the base network of {task} diverged: step_size={budget.step_size:g} is too large")
    control = train_in_full(task, data, base[torch.zeros(budget.seeds, dtype=torch.long)], budget)
    examples, cost = examples_needed(task, data, base, budget)
    return xr.Dataset(
        {
            "base": ("dimension", en.vectors(base)[0].cpu().numpy()),
            "base_loss": ((), en.losses(base, probe_split(task, data, examples)).item()),
            "probe_examples": ((), examples),
            "examples_cost": ((), cost),
            **{f"base_{name}": ((), score.item()) for name, score in en.evaluate(base, data.test).items()},
            **{f"control_{name}": (("seed", "checkpoint"), value) for name, value in control.items()},
        }
    )


def new_base(task: Task, data: Data) -> nn.Module:
    """The task's base network before any training."""
    inputs, targets = data.training
    network = networks.MLP(inputs[0].numel(), task.widths, int(targets.max()) + 1)
    return networks.initialize(network, generator("initialize", task)).to(inputs.device)


def _schedule(budget: Budget) -> Tensor:
    return training.cosine(budget.step_size, budget.steps)


def _order(task: Task, data: Data, budget: Budget, names: Iterable[object], steps: int) -> Tensor:
    """Minibatch orders, one for each name; the same name gives every candidate of a task the same order."""
    generators = [generator("minibatches", task, name) for name in names]
    return training.minibatches(generators, len(data.training.inputs), steps, budget.batch)


def probe_split(task: Task, data: Data, examples: int) -> Split:
    """So many training examples (or all there are), the same ones for everybody who asks."""
    inputs, targets = data.training
    some = torch.randperm(len(inputs), generator=generator("probe examples", task))[:examples]
    return Split(inputs[some], targets[some])


def examples_needed(task: Task, data: Data, base: en.Ensemble, budget: Budget) -> tuple[int, int]:
    """On how many training examples rays are measured, and the cost of finding out, in example-evaluations.

    What must be told apart are networks at the level and the base network. Random rays from the base lead to some.
    """
    split, start = probe_split(task, data, FIRST_LOOK), en.vectors(base)
    objective = of_networks(base, split)
    ways = directions.filter_normalized(base, start, budget.random_rays, generator("first look", task))
    own, far = en.example_losses(base, split), budget.random_farthest
    loss = own.mean(1)
    lines = crossings(objective, start, ways, loss.item() + budget.margin, far / 4, far, origin=loss)
    reached = torch.as_tensor(lines["multiple"].values).to(ways).unsqueeze(-1)
    there = en.example_losses(en.at(base, (start.unsqueeze(1) + reached * ways)[0]), split)
    evaluations = 1 + int(lines["evaluations"].sum()) + budget.random_rays
    count = en.examples_for(budget.probe_error, there - own)
    return min(count, len(data.training.targets)), PASS * evaluations * len(split.targets)


def train_in_full(task: Task, data: Data, start: en.Ensemble, budget: Budget) -> dict[str, Tensor]:
    """Train networks (candidates × seeds, the seeds innermost) for the whole budget; their test scores.

    Returns accuracy, nll and ece as (networks / seeds × seeds, checkpoint); checkpoints are the last one and the one
    with the best validation accuracy. A diverged network scores NaN.
    """
    count = len(start)
    order = _order(task, data, budget, range(budget.seeds), budget.steps).repeat(count // budget.seeds, 1, 1)
    marks = [round(budget.steps * (i + 1) / budget.validations) for i in range(budget.validations)]
    best = torch.full((count,), -math.inf, dtype=torch.float64)
    points = en.vectors(start)
    trained = training.train(start, data.training, order, _schedule(budget), budget.momentum, marks)
    for _, now, _ in trained:
        score = en.evaluate(now, data.validation)["accuracy"].cpu()
        better = score > best
        best = torch.where(better, score, best)
        points = torch.where(better.to(points.device).unsqueeze(1), en.vectors(now), points)
    both = [en.evaluate(network, data.test) for network in (now, en.at(start, points))]
    broken = ~en.vectors(now).isfinite().all(1).cpu()
    return {
        name: torch.stack([scores[name].cpu() for scores in both], dim=1).masked_fill(broken.unsqueeze(1), math.nan)
        for name in SCORES
    }


def measure(
    task: Task, data: Data, base: xr.Dataset, candidates: Sequence[tuple[str, Candidate]], budget: Budget
) -> xr.Dataset:
    """Probe and train (labelled) candidates that share one architecture, all of them as one batch.

    Returns a Dataset over (candidate, seed, checkpoint, rate, early, probe); see `WORDS` for the variables.
    """
    network = new_base(task, data)
    parameters = torch.as_tensor(base["base"].values, device=data.training.inputs.device)
    nn.utils.vector_to_parameters(parameters, network.parameters())
    example, walked = data.training.inputs[:1], trace(network, data.training.inputs)
    expanded = en.stack([c.grow(network, data.training, walked=walked).network for _, c in candidates])
    split = probe_split(task, data, int(base["probe_examples"]))
    seeds = torch.arange(len(candidates)).repeat_interleave(budget.seeds)
    scores = train_in_full(task, data, expanded[seeds], budget)
    by_seed = (len(candidates), budget.seeds, len(CHECKPOINTS))
    static = {
        "parameters": torch.full((len(candidates),), networks.count_parameters(expanded.network)),
        "flops": torch.full((len(candidates),), networks.count_flops(expanded.network, example)),
        "loss": en.losses(expanded, split),
        "gradient_norm": predictors.gradient_norm(expanded, split),
        "expansion_cost": torch.tensor([c.cost(len(data.training.inputs)) for _, c in candidates]),
    }
    return xr.merge(
        [
            xr.Dataset({n: (("candidate", "seed", "checkpoint"), v.view(by_seed)) for n, v in scores.items()}),
            xr.Dataset({name: ("candidate", value.cpu()) for name, value in static.items()}),
            probe(task, data, split, expanded, float(base["base_loss"]) + budget.margin, budget),
        ]
    ).assign_coords(candidate=[label for label, _ in candidates])


def probe(task: Task, data: Data, split: Split, expanded: en.Ensemble, level: float, budget: Budget) -> xr.Dataset:
    """Everything that is measured on candidates by training them a little, over (candidate, rate, early | probe).

    One run at each constant step size gives the early loss; the children of each candidate give its size, measured on
    the examples of `split`.
    """
    count, rates, k = len(expanded), len(budget.rates), budget.children
    starts = expanded[torch.arange(count).repeat_interleave(rates)]
    step_sizes = budget.step_size * torch.tensor(budget.rates).repeat(count)  # (candidate × rate)
    device = data.training.inputs.device

    order = _order(task, data, budget, ["probe"], budget.early_steps).repeat(len(starts), 1, 1)
    bins = range(budget.early_bin, budget.early_steps + 1, budget.early_bin)
    schedule = step_sizes.to(device).expand(budget.early_steps, -1)
    runs = training.train(starts, data.training, order, schedule, budget.momentum, bins)
    early = torch.stack([seen.mean(1).cpu() for _, _, seen in runs])

    lengths = [b // k for b in sorted(budget.probes)]
    order = _order(task, data, budget, [f"child {i}" for i in range(k)], lengths[-1])
    objective = of_networks(starts, split, training=data.training, minibatch=budget.batch)
    grown = children.offspring(objective, en.vectors(starts), order, step_sizes, budget.momentum, lengths)
    sizes = [
        _sizes(task, split.inputs, objective, starts, young, seen, step, level, budget) for step, young, seen in grown
    ]

    flat = xr.concat(sizes, "probe").assign_coords(probe=[k * length for length in lengths])
    flat = flat.assign_coords(early=list(bins)).assign(early_loss=(("early", "parent"), early))
    index = xr.DataArray(torch.arange(count * rates).view(count, rates), dims=("candidate", "rate"))
    return flat.isel(parent=index).assign(level=level).assign_coords(rate=list(budget.rates))


def _sizes(
    task: Task,
    inputs: Tensor,
    objective: Objective,
    starts: en.Ensemble,
    young: Tensor,
    seen: Tensor,
    step: int,
    level: float,
    budget: Budget,
) -> xr.Dataset:
    """The sizes at one length of the probe, over (parent), and what each costs."""
    count, k, _ = young.shape
    apart = (young - young.mean(1, keepdim=True)).norm(dim=-1)
    alive = (apart.isfinite() & (apart > 0)).all(1)  # a diverged candidate has no size
    start = en.vectors(starts)
    young = torch.where(alive.view(-1, 1, 1), young, start.unsqueeze(1))
    centre = young.mean(1)
    random = directions.filter_normalized(starts, centre, budget.random_rays, generator("random rays", task))
    ways = torch.cat([directions.from_centre(young), directions.differences(young)], dim=1)
    ways = torch.where(alive.view(-1, 1, 1), ways, 1.0)
    loss, far = objective(centre), budget.random_farthest
    lines = crossings(objective, centre, ways, level, most=budget.farthest, origin=loss)
    relative = crossings(objective, centre, random, level, far / 4, far, origin=loss)
    along, between = lines["radius"][:, : 2 * k], lines["radius"][:, 2 * k :]
    whose = torch.arange(count).unsqueeze(1).expand(count, k)
    logits = en.outputs(en.at(starts, young, whose), inputs).unflatten(0, (count, k))
    sizes = children.spread(start, young).assign(
        disagreement=("parent", children.disagreement(logits).cpu()),
        extent_children=along.mean("ray"),
        extent_children_se=along.std("ray", ddof=1) / (2 * k) ** 0.5,
        extent_differences=between.mean("ray"),
        extent_random=relative["multiple"].mean("ray"),
        connected=(lines["multiple"][:, :k] >= 1).mean("ray"),
        unbounded=(lines["status"] == "unbounded").mean("ray"),
        outside=(lines["status"] == "outside").all("ray"),
        centre_loss=("parent", loss.cpu()),
        explorer_loss=("parent", seen.mean((1, 2)).cpu()),
    )
    sizes = sizes.where(xr.DataArray(alive.cpu(), dims="parent"))
    trained = STEP * budget.batch * k * step
    point = PASS * len(inputs)
    return sizes.assign(
        children_cost=trained,
        predictions_cost=trained + point * k,
        centre_cost=trained + point,
        rays_cost=trained + point * (1 + lines["evaluations"].sum("ray")),
        random_cost=trained + point * (1 + relative["evaluations"].sum("ray")),
    )
