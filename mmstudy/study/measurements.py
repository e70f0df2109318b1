"""One task's trials: its base network trained, its candidates probed and trained in full, each as a batch."""

import math
from collections.abc import Iterable, Sequence

import torch
import xarray as xr
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring, training
from mmstudy.batched.objective import Objective, of_networks
from mmstudy.core import tasks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Split, Task
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold import directions
from mmstudy.manifold.children import disagreement, offspring, spread
from mmstudy.manifold.crossings import crossings
from mmstudy.manifold.estimate import PASS, STEP
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.manifold.extent import ways_of
from mmstudy.study import predictors
from mmstudy.study.protocol import Protocol
from mmstudy.tracing.trace import trace

CHECKPOINTS = ("last", "best validation")
FIRST_LOOK = 512  # training examples that foretell how many are needed
SCORES = ("accuracy", "nll", "ece")


def train_base(task: Task, data: Data, protocol: Protocol) -> xr.Dataset:
    """Train the task's base network, then train it on as the control, once for each seed.

    Returns the base's parameters and loss, and the control's scores over (seed, checkpoint).

    Raises:
        ValueError: the base network diverged.
    """
    stacked = en.stack([new_base(task, data)])
    order = _order(task, data, protocol, ["base"], protocol.steps)
    ((_, base, _),) = training.train(stacked, data.training, order, _schedule(protocol), protocol.momentum)
    if not en.vectors(base).isfinite().all():
        raise ValueError(f"the base network of {task} diverged: step_size={protocol.step_size:g} is too large")
    control = train_in_full(task, data, base[torch.zeros(protocol.seeds, dtype=torch.long)], protocol)
    examples, cost = examples_needed(task, data, base, protocol)
    return xr.Dataset(
        {
            "base": ("dimension", en.vectors(base)[0].cpu().numpy()),
            "base_loss": ((), en.losses(base, probe_split(task, data, examples)).item()),
            "probe_examples": ((), examples),
            "examples_cost": ((), cost),
            **{f"base_{name}": ((), score.item()) for name, score in scoring.evaluate(base, data.test).items()},
            **{f"control_{name}": (("seed", "checkpoint"), value) for name, value in control.items()},
        }
    )


def new_base(task: Task, data: Data) -> nn.Module:
    """The task's base network before any training."""
    return tasks.base(task, data)


def _schedule(protocol: Protocol) -> Tensor:
    return training.cosine(protocol.step_size, protocol.steps)


def _order(task: Task, data: Data, protocol: Protocol, names: Iterable[object], steps: int) -> Tensor:
    """Minibatch orders, one for each name; the same name gives every candidate of a task the same order."""
    generators = [generator("minibatches", task, name) for name in names]
    return training.minibatches(generators, len(data.training.inputs), steps, protocol.batch)


def probe_split(task: Task, data: Data, examples: int) -> Split:
    """So many training examples (or all there are), the same ones for everybody who asks."""
    inputs, targets = data.training
    some = torch.randperm(len(inputs), generator=generator("probe examples", task))[:examples]
    return Split(inputs[some], targets[some])


def examples_needed(task: Task, data: Data, base: en.Ensemble, protocol: Protocol) -> tuple[int, int]:
    """On how many training examples rays are measured, and the cost of finding out, in example-evaluations.

    What must be told apart are networks at the level and the base network. Random rays from the base lead to some.
    """
    split, start = probe_split(task, data, FIRST_LOOK), en.vectors(base)
    objective = of_networks(base, split)
    ways = directions.filter_normalized(base, start, protocol.random_rays, generator("first look", task))
    own, far = scoring.example_losses(base, split), protocol.random_farthest
    loss = own.mean(1)
    lines = crossings(objective, start, ways, loss.item() + protocol.margin, far / 4, far, origin=loss)
    reached = lines.multiple.to(ways).unsqueeze(-1)
    there = scoring.example_losses(en.at(base, (start.unsqueeze(1) + reached * ways)[0]), split)
    evaluations = 1 + int(lines.evaluations.sum()) + protocol.random_rays
    count = scoring.examples_for(protocol.probe_error, there - own)
    return min(count, len(data.training.targets)), PASS * evaluations * len(split.targets)


def train_in_full(task: Task, data: Data, start: en.Ensemble, protocol: Protocol) -> dict[str, Tensor]:
    """Train networks (candidates × seeds, the seeds innermost) for as long as the protocol says; their test scores.

    Returns accuracy, nll and ece as (networks / seeds × seeds, checkpoint); checkpoints are the last one and the one
    with the best validation accuracy. A diverged network scores NaN.
    """
    count = len(start)
    order = _order(task, data, protocol, range(protocol.seeds), protocol.steps).repeat(count // protocol.seeds, 1, 1)
    marks = [round(protocol.steps * (i + 1) / protocol.validations) for i in range(protocol.validations)]
    best = torch.full((count,), -math.inf, dtype=torch.float64)
    points = en.vectors(start)
    trained = training.train(start, data.training, order, _schedule(protocol), protocol.momentum, marks)
    for _, now, _ in trained:
        score = scoring.evaluate(now, data.validation)["accuracy"].cpu()
        better = score > best
        best = torch.where(better, score, best)
        points = torch.where(better.to(points.device).unsqueeze(1), en.vectors(now), points)
    both = [scoring.evaluate(network, data.test) for network in (now, en.at(start, points))]
    broken = ~en.vectors(now).isfinite().all(1).cpu()
    return {
        name: torch.stack([scores[name].cpu() for scores in both], dim=1).masked_fill(broken.unsqueeze(1), math.nan)
        for name in SCORES
    }


def measure(
    task: Task, data: Data, base: xr.Dataset, candidates: Sequence[tuple[str, Candidate]], protocol: Protocol
) -> xr.Dataset:
    """Probe and train (labelled) candidates that share one architecture, all of them as one batch.

    Returns a Dataset over (candidate, seed, checkpoint, rate, early, probe); see `sweep.words` for the variables.
    """
    network = new_base(task, data)
    parameters = torch.as_tensor(base["base"].values, device=data.training.inputs.device)
    nn.utils.vector_to_parameters(parameters, network.parameters())
    traced = trace(network, data.training.inputs)
    expanded = en.stack([c.grow(network, data.training, traced=traced).network for _, c in candidates])
    split = probe_split(task, data, int(base["probe_examples"]))
    seeds = torch.arange(len(candidates)).repeat_interleave(protocol.seeds)
    scores = train_in_full(task, data, expanded[seeds], protocol)
    by_seed = (len(candidates), protocol.seeds, len(CHECKPOINTS))
    static = predictors.start_values(expanded, split)
    static["expansion_cost"] = torch.tensor([c.cost(len(data.training.inputs)) for _, c in candidates])
    return xr.merge(
        [
            xr.Dataset({n: (("candidate", "seed", "checkpoint"), v.view(by_seed)) for n, v in scores.items()}),
            xr.Dataset({name: ("candidate", value.cpu()) for name, value in static.items()}),
            probe(task, data, split, expanded, float(base["base_loss"]) + protocol.margin, protocol),
        ]
    ).assign_coords(candidate=[label for label, _ in candidates])


def probe(task: Task, data: Data, split: Split, expanded: en.Ensemble, level: float, protocol: Protocol) -> xr.Dataset:
    """Everything that is measured on candidates by training them a little, over (candidate, rate, early | probe).

    One run at each constant step size gives the early loss; the children of each candidate give its size, measured on
    the examples of `split`.
    """
    count, rates, k = len(expanded), len(protocol.rates), protocol.children
    starts = expanded[torch.arange(count).repeat_interleave(rates)]
    step_sizes = protocol.step_size * torch.tensor(protocol.rates).repeat(count)  # (candidate × rate)
    device = data.training.inputs.device

    order = _order(task, data, protocol, ["probe"], protocol.early_steps).repeat(len(starts), 1, 1)
    bins = range(protocol.early_bin, protocol.early_steps + 1, protocol.early_bin)
    schedule = step_sizes.to(device).expand(protocol.early_steps, -1)
    runs = training.train(starts, data.training, order, schedule, protocol.momentum, bins)
    early = torch.stack([seen.mean(1).cpu() for _, _, seen in runs])

    lengths = [b // k for b in sorted(protocol.probes)]
    order = _order(task, data, protocol, [f"child {i}" for i in range(k)], lengths[-1])
    objective = of_networks(starts, split, training=data.training, minibatch=protocol.batch)
    grown = offspring(objective, en.vectors(starts), order, step_sizes, protocol.momentum, lengths)
    sizes = [
        _sizes(task, split.inputs, objective, starts, children, seen, step, level, protocol)
        for step, children, seen in grown
    ]

    flat = xr.concat(sizes, "probe").assign_coords(probe=[k * length for length in lengths])
    flat = flat.assign_coords(early=list(bins)).assign(early_loss=(("early", "parent"), early))
    index = xr.DataArray(torch.arange(count * rates).view(count, rates), dims=("candidate", "rate"))
    return flat.isel(parent=index).assign(level=level).assign_coords(rate=list(protocol.rates))


def _sizes(
    task: Task,
    inputs: Tensor,
    objective: Objective,
    starts: en.Ensemble,
    children: Tensor,
    seen: Tensor,
    step: int,
    level: float,
    protocol: Protocol,
) -> xr.Dataset:
    """The sizes at one length of the probe, over (parent), and what each costs."""
    count, k, _ = children.shape
    start, (along, alive) = en.vectors(starts), ways_of(children)  # a diverged candidate has no size
    wide = alive.view(-1, 1, 1)
    children = torch.where(wide, children, start.unsqueeze(1))
    centre = children.mean(1)
    random = directions.filter_normalized(starts, centre, protocol.random_rays, generator("random rays", task))
    ways = torch.cat([along, torch.where(wide, directions.differences(children), 1.0)], dim=1)
    loss, far = objective(centre), protocol.random_farthest
    lines = crossings(objective, centre, ways, level, max_multiple=protocol.farthest, origin=loss)
    relative = crossings(objective, centre, random, level, far / 4, far, origin=loss)
    radius = lines.radius.cpu().numpy()
    whose = torch.arange(count).unsqueeze(1).expand(count, k)
    logits = en.outputs(en.at(starts, children, whose), inputs).unflatten(0, (count, k))
    values = {
        "disagreement": disagreement(logits).cpu(),
        "extent_children": radius[:, : 2 * k].mean(1),
        "extent_children_se": radius[:, : 2 * k].std(1, ddof=1) / (2 * k) ** 0.5,
        "extent_differences": radius[:, 2 * k :].mean(1),
        "extent_random": relative.multiple.cpu().numpy().mean(1),
        "connected": (lines.multiple[:, :k].cpu().numpy() >= 1).mean(1),
        "unbounded": (lines.status == "unbounded").mean(1),
        "outside": (lines.status == "outside").all(1),
        "centre_loss": loss.cpu(),
        "explorer_loss": seen.mean((1, 2)).cpu(),
    }
    sizes = spread(start, children).assign({name: ("parent", value) for name, value in values.items()})
    sizes = sizes.where(xr.DataArray(alive.cpu(), dims="parent"))
    trained = STEP * protocol.batch * k * step
    point = PASS * len(inputs)
    costs = {
        "children_cost": trained,
        "predictions_cost": trained + point * k,
        "centre_cost": trained + point,
        "rays_cost": ("parent", trained + point * (1 + lines.looks)),
        "random_cost": ("parent", trained + point * (1 + relative.looks)),
    }
    return sizes.assign(costs).merge(_estimates(task, objective, centre, alive.cpu(), trained, level, protocol))


def _estimates(
    task: Task, objective: Objective, centre: Tensor, alive: Tensor, trained: int, level: float, protocol: Protocol
) -> xr.Dataset:
    """What the protocol's estimators say at the children's centre, over (parent), and what each costs with these."""
    variables: dict[str, xr.DataArray] = {}
    for name in protocol.estimators:
        found = ESTIMATORS[name].measure(objective, centre, level, generator("estimator", name, task))
        known = xr.DataArray(alive, dims="parent")
        for part in ("size", "size_se"):
            variables[f"{name}_{part}"] = found[part].where(known)
        variables[f"{name}_size_status"] = found["status"].where(known, "nan")
        variables[f"{name}_size_cost"] = trained + found["cost"]
    return xr.Dataset(variables)
