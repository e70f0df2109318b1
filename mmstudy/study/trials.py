"""One task's trials: its base network trained, its candidates trained in full and looked at on the way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring, training
from mmstudy.batched.likeness import difference
from mmstudy.core import networks
from mmstudy.core.datasets import Data, Split
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task
from mmstudy.core.tasks import base as new_base
from mmstudy.expansion.candidate import Candidate
from mmstudy.study.draws import minibatch_order, probe_split, shown, take
from mmstudy.study.probes import probe
from mmstudy.study.protocol import Protocol
from mmstudy.study.references import from_scratch, shrink_perturb
from mmstudy.tracing.trace import trace

CHECKPOINTS = ("last", "best validation")
BUDGETS = ("equal steps", "equal flops")
SCORES = ("accuracy", "nll", "ece")
REFERENCES = {"scratch": from_scratch, "shrink_perturb": shrink_perturb}
FAST = 2.0  # the step size of the short run at a constant one, over that of the training


def train_base(task: Task, data: Data, protocol: Protocol) -> xr.Dataset:
    """Train the task's base network, then train it on as the control, once for each seed.

    Returns the base's parameters, its loss and scores, and the control's scores over (seed, checkpoint).

    Raises:
        ValueError: the base network diverged, or training changes its buffers: checkpoints are parameters alone.
    """
    stacked = en.stack([new_base(task, data)])
    order = minibatch_order(task, data, protocol, ["base"], protocol.steps)
    rates = training.cosine(protocol.step_size, protocol.steps)
    ((_, ended, _),) = training.train(
        stacked, data.training, order, rates, protocol.momentum, take=take(data, protocol)
    )
    if not en.vectors(ended).isfinite().all():
        raise ValueError(f"the base network of {task} diverged: step_size={protocol.step_size:g} is too large")
    if running := [name for name, b in ended.buffers.items() if not torch.equal(b, stacked.buffers[name])]:
        raise ValueError(f"{task}: training changes {', '.join(running)}, which no checkpoint has: take another norm")
    judged = scoring.evaluate(ended, _judged(data, protocol))
    control = in_full(task, data, ended[torch.zeros(protocol.seeds, dtype=torch.long)], protocol).scores
    return xr.Dataset(
        {
            "base": ("dimension", en.vectors(ended)[0].cpu().numpy()),
            "base_loss": ((), en.losses(ended, probe_split(task, data, protocol)).item()),
            **{f"base_{name}": ((), score.item()) for name, score in judged.items()},
            **{f"control_{name}": (("seed", "checkpoint"), value.numpy()) for name, value in control.items()},
        }
    )


class Training(NamedTuple):
    """Networks trained in full: test scores, each (n, checkpoint), and what the watched ones came through.

    `looks`: the w watched networks at each mark, the marks varying slowest; `snapshots`: points of their training up to
    each mark, (marks · w, k, dim); `losses`: those of their minibatches, (w, steps).
    """

    scores: dict[str, Float[Tensor, "n checkpoint"]]
    looks: en.Ensemble
    snapshots: Float[Tensor, "looks k dim"]
    losses: Float[Tensor, "w steps"]


def in_full(
    task: Task,
    data: Data,
    start: en.Ensemble,
    protocol: Protocol,
    steps: int | None = None,
    watched: Sequence[int] = (),
) -> Training:
    """Train networks (the seeds varying fastest) for so many steps, those of the protocol by default.

    Scores are those of the last checkpoint and of the one with the best validation accuracy. A diverged network scores
    NaN.
    """
    steps, count, some = steps or protocol.steps, len(start), list(watched)
    order = minibatch_order(task, data, protocol, range(protocol.seeds), steps)
    validations = {max(1, round(steps * (i + 1) / protocol.validations)) for i in range(protocol.validations)}
    marks = {mark: _before(mark, protocol) for mark in (protocol.marks if watched else (0,))}
    best, points = torch.full((count,), -math.inf, dtype=torch.float64), en.vectors(start)
    passed, looks, losses = {0: en.vectors(start)[some]}, {0: start[some]}, []
    trained = training.train(
        start,
        data.training,
        order.repeat(count // protocol.seeds, 1, 1),
        training.cosine(protocol.step_size, steps),
        protocol.momentum,
        validations.union(*marks.values()) - {0},
        take=take(data, protocol),
    )
    for step, now, seen in trained:
        losses.append(seen[some].cpu())
        passed[step] = en.vectors(now)[some]
        if step in marks:
            looks[step] = now[some]
        if step in validations:
            score = scoring.evaluate(now, data.validation)["accuracy"].cpu()
            better = score > best
            best = torch.where(better, score, best)
            points = torch.where(better.to(points.device).unsqueeze(1), en.vectors(now), points)
    both = [scoring.evaluate(network, _judged(data, protocol)) for network in (now, en.at(start, points))]
    broken = ~en.vectors(now).isfinite().all(1).cpu()
    scores = {
        name: torch.stack([found[name].cpu() for found in both], dim=1).masked_fill(broken.unsqueeze(1), math.nan)
        for name in SCORES
    }
    snapshots = torch.cat([torch.stack([passed[step] for step in before], dim=1) for before in marks.values()])
    return Training(scores, en.concatenate([looks[mark] for mark in marks]), snapshots, torch.cat(losses, dim=1))


def _judged(data: Data, protocol: Protocol) -> Split:
    """The test examples by which networks are judged."""
    some = protocol.test_examples
    return Split(data.test.inputs[:some], data.test.targets[:some])


def _before(mark: int, protocol: Protocol) -> list[int]:
    """The steps of the snapshots at a mark: as many as children, as far apart as children train, if there is room."""
    gap = min(protocol.child_steps, mark // protocol.children)
    return [mark - i * gap for i in range(protocol.children)]


@dataclass(frozen=True)
class Piece:
    """(Labelled) candidates of a task that share one architecture, with all that it takes to measure them."""

    task: Task
    data: Data
    base: xr.Dataset  # of `train_base`
    candidates: Sequence[tuple[str, Candidate]]
    protocol: Protocol

    @cached_property
    def small(self) -> nn.Module:
        """The task's trained base network."""
        network = new_base(self.task, self.data)
        parameters = torch.as_tensor(self.base["base"].values, device=self.data.training.inputs.device)
        nn.utils.vector_to_parameters(parameters, network.parameters())
        return network

    @cached_property
    def grown(self) -> list[nn.Module]:
        """What the candidates make of it."""
        examples = shown(self.data)
        traced = trace(self.small, examples.inputs)
        return [c.grow(self.small, examples, traced=traced).network for _, c in self.candidates]


def measure(piece: Piece) -> xr.Dataset:
    """Train the candidates of a piece, and networks of their shape to compare them with.

    Returns a Dataset over (candidate, …); see `sweep.variables` for the variables.
    """
    task, data, candidates, protocol, grown = piece.task, piece.data, piece.candidates, piece.protocol, piece.grown
    place, seeds = candidates[0][0].split(" ", 1)[-1], range(protocol.seeds)
    compared = {
        f"{name} {place}": [make(grown[0], generator(name, task, place, seed)) for seed in seeds]
        for name, make in REFERENCES.items()
    }
    level = float(piece.base["base_loss"]) + protocol.margin
    parts: list[xr.Dataset] = []
    for some in alike(grown):
        own, labelled = [grown[i] for i in some], [candidates[i] for i in some]
        parts.append(_together(task, data, level, piece.small, own, labelled, {} if parts else compared, protocol))
    rows = [label for label, _ in candidates] + list(compared)
    return xr.concat(parts, "candidate", join="exact").sel(candidate=rows)


def alike(grown: Sequence[nn.Module]) -> list[list[int]]:
    """Which networks have one forward pass: an operator may change a normalization's eps, where others leave it."""
    groups: list[list[int]] = []
    for i, network in enumerate(grown):
        for group in groups:
            if difference(grown[group[0]], network) is None:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _together(
    task: Task,
    data: Data,
    level: float,
    small: nn.Module,
    grown: Sequence[nn.Module],
    candidates: Sequence[tuple[str, Candidate]],
    compared: Mapping[str, Sequence[nn.Module]],
    protocol: Protocol,
) -> xr.Dataset:
    """What `measure` returns of grown candidates that have one forward pass, and of networks compared with them."""
    labels, seeds = [label for label, _ in candidates], range(protocol.seeds)
    start = en.stack([network for network in grown for _ in seeds] + [n for each in compared.values() for n in each])
    watched = range(0, len(grown) * protocol.seeds, protocol.seeds)
    run = in_full(task, data, start, protocol, watched=watched)
    flops = [networks.count_flops(network, data.training.inputs[:1]) for network in (small, grown[0])]
    fair = in_full(task, data, start, protocol, max(1, round(protocol.steps * flops[0] / flops[1])))
    everyone, by_seed = [*labels, *compared], (-1, protocol.seeds, len(CHECKPOINTS), 2)
    scores = {name: torch.stack([run.scores[name], fair.scores[name]], dim=-1).view(by_seed) for name in SCORES}
    trained = xr.Dataset(
        {name: (("candidate", "seed", "checkpoint", "budget"), value.numpy()) for name, value in scores.items()},
        {"candidate": everyone},
    )
    trained["parameters"] = "candidate", [networks.count_parameters(grown[0])] * len(everyone)
    trained["flops"] = "candidate", [flops[1]] * len(everyone)
    expanded = start[list(watched)]
    curves, looks = _curves(task, data, expanded, run.losses, protocol), _looks(task, data, run, level, protocol)
    measured = xr.merge([curves, looks]).assign_coords(candidate=labels)
    texts = {name: "" for name, each in measured.items() if each.dtype.kind in "OU"}  # NaN cannot be stored among them
    return xr.merge([trained, measured.reindex(candidate=everyone, fill_value=texts)])


def _looks(task: Task, data: Data, run: Training, level: float, protocol: Protocol) -> xr.Dataset:
    """What is measured on the way, over (candidate, progress)."""
    found = probe(task, data, run.looks, run.snapshots, level, protocol)
    marks = len(protocol.progress)
    index = xr.DataArray(torch.arange(len(run.looks)).view(marks, -1).T.numpy(), dims=("candidate", "progress"))
    return found.isel(network=index).assign_coords(progress=list(protocol.progress))


def _curves(
    task: Task, data: Data, expanded: en.Ensemble, losses: Float[Tensor, "w steps"], protocol: Protocol
) -> xr.Dataset:
    """Minibatch losses of the training, over (candidate, bin), and of the short runs, over (candidate, short bin)."""
    steps, width = round(protocol.short * protocol.steps), protocol.steps // protocol.bins
    order = minibatch_order(task, data, protocol, ["short"], steps).repeat(2 * len(expanded), 1, 1)
    schedules = torch.stack(
        [training.cosine(protocol.step_size, steps), training.constant(FAST * protocol.step_size, steps)], dim=1
    )
    twice = expanded[torch.arange(len(expanded)).repeat_interleave(2)]
    ((_, ended, seen),) = training.train(
        twice, data.training, order, schedules.repeat(1, len(expanded)), protocol.momentum, take=take(data, protocol)
    )
    cosine, fast = seen.cpu().unflatten(0, (-1, 2)).unbind(1)
    short = ended[::2]
    validation = scoring.evaluate(short, data.validation)
    variables = {
        "curve": (("candidate", "bin"), _binned(losses, width).numpy()),
        "fast_curve": (("candidate", "short_bin"), _binned(fast, width).numpy()),
        "cosine_loss": ("candidate", cosine[:, -max(1, steps // 5) :].mean(1).numpy()),
        "cosine_training_loss": ("candidate", en.losses(short, data.training).cpu().numpy()),
        "cosine_validation_loss": ("candidate", validation["nll"].cpu().numpy()),
        "cosine_validation_accuracy": ("candidate", validation["accuracy"].cpu().numpy()),
    }
    return xr.Dataset(variables)


def _binned(losses: Float[Tensor, "w steps"], width: int) -> Float[Tensor, "w bins"]:
    """Means over bins of so many steps; a ragged end is left out."""
    return losses[:, : losses.shape[1] // width * width].unflatten(1, (-1, width)).mean(-1)
