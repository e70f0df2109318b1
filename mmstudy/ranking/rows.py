"""The rows of a ranking: grown anew, trained as far as is asked, and looked at; what was seen is kept."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from mmstudy.batched.engine import Batch, LossFn, Model
from mmstudy.batched.ensemble import losses, stack
from mmstudy.core import results
from mmstudy.expansion import optimizers, pools
from mmstudy.expansion.candidate import Averages, Candidate, Expansion
from mmstudy.expansion.replacing import parted
from mmstudy.ranking import fingerprints, policy, settings
from mmstudy.ranking.together import fit, together_at_most
from mmstudy.ranking.training import Run, Training, advance, begun, resume
from mmstudy.tracing.graph import Trace

Metric = LossFn  # (model, batch) → a mean over examples, of which more is better


@dataclass(frozen=True)
class Row:
    """What was seen of one network after some steps."""

    label: str
    steps: int
    minibatch_loss: float  # the mean of the last fifth of the training
    validation_loss: float
    score: float  # larger is better
    seconds: float  # of training, so far

    @property
    def diverged(self) -> bool:
        """Whether a loss was no finite number."""
        return not all(map(math.isfinite, (self.score, self.minibatch_loss, self.validation_loss)))


@dataclass(frozen=True)
class Rows:
    """A network's candidates, by label; None is the network itself."""

    network: nn.Module
    training: Training
    batch: Batch  # what candidates are grown on
    measured: Batch
    metric: Metric | None
    candidates: Mapping[str, Candidate | None]
    folder: Path
    traced: Trace | None = None  # of the network on that batch

    def __getstate__(self) -> dict:
        """What is sent to another process: that makes a trace of its own."""
        return {**self.__dict__, "traced": None}

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The rows, those of one shape that train as one together; a large network stands alone."""
        if not self._small:
            return tuple((label,) for label in self.candidates)
        known = {label: candidate for label, candidate in self.candidates.items() if candidate}
        alike = [[label for label, _ in group] for group in pools.architectures(known)]
        others = [[label] for label, candidate in self.candidates.items() if not candidate]
        return tuple(tuple(part) for group in [*alike, *others] for part in self._parts(group))

    def at(self, labels: Sequence[str], steps: int, stepped: Callable[[int], object] = lambda count: None) -> list[Row]:
        """What is seen of a group of rows, or of one row, after so many steps; trained as far as is missing."""
        known = [self._seen(label, steps) for label in labels]
        if len(found := [row for row in known if row is not None]) == len(labels):
            return found
        runs, path = self._runs(labels), self._state(labels)
        again = path.with_suffix(".again.pt")
        if earlier := len(runs[0].losses) > steps:  # than they were trained: the way there once more
            runs, path = [self.start(label) for label in labels], again
        advance(runs, self.training, steps, path, stepped)
        rows = []
        for label, run, seen in zip(labels, runs, known, strict=True):
            rows.append(seen or self._look(label, steps, run))
            self._keep(rows[-1])
        if earlier:
            again.unlink(missing_ok=True)
        return rows

    def run(self, label: str) -> Run:
        """The training of a row, as far as it is kept."""
        return self._runs([label])[0]

    def start(self, label: str) -> Run:
        """A row before its training, the optimizer's state carried along."""
        candidate = self.candidates[label]
        if candidate is None:
            return self._begun(unchanged(self.network))
        return self._begun(candidate.grow(self.network, self.batch, self.training.loss_fn, self.traced))

    def paced(self, labels: Sequence[str], steps: int) -> tuple[float, float]:
        """Seconds until the rows have made their first step together, and for each of some more; nothing is kept.

        A loop of the user's own is called once, so that its steps are not told apart.
        """
        path, began = self.folder / ".timed", time.perf_counter()
        runs = [self.start(label) for label in labels]
        times = [time.perf_counter()]
        advance(runs, self.training, 1 + steps, path, lambda count: times.append(time.perf_counter()))
        path.unlink(missing_ok=True)
        if len(times) <= 2:
            times = [times[0], *np.linspace(times[0], times[-1], 2 + steps)[1:].tolist()]
        return times[1] - began, (times[-1] - times[1]) / (len(times) - 2)

    def _begun(self, grown: Expansion) -> Run:
        return begun(grown.network, self._optimizer(grown), self.training)

    def _optimizer(self, grown: Expansion) -> Optimizer | None:
        made = self.training.optimizer
        if made is None or self.training.train is not None:
            return None
        if isinstance(made, Optimizer):
            return optimizers.carried(made, self.network, grown)
        return made([p for p in grown.network.parameters() if p.requires_grad])

    def _runs(self, labels: Sequence[str]) -> list[Run]:
        """The trainings of a group, as far as they are kept; of a row alone, from where its group has left it."""
        runs, path = [self.start(label) for label in labels], self._state(labels)
        group = next(group for group in self.groups if labels[0] in group)
        if path.exists() or len(labels) > 1 or len(group) == 1:
            resume(runs, path)
        else:
            place = group.index(labels[0])
            resume(runs, self._state(group), slice(place, place + 1))
        return runs

    @property
    def _small(self) -> bool:
        """Whether networks of this size gain by being trained as one."""
        if self.training.train is not None or self.training.autocast is not None:
            return False
        alone = stack([unchanged(self.network).network])
        return together_at_most(alone, self.batch, self.training.loss_fn) > 1

    def _parts(self, labels: Sequence[str]) -> list[Sequence[str]]:
        """Rows of one shape as one group, if that is right and pays; one by one otherwise."""
        if len(labels) == 1:
            return [labels]
        runs = [self.start(label) for label in labels]
        networks, optimizers = [run.network for run in runs], [run.optimizer for run in runs]
        together = fit(networks, optimizers, self.batch, self.training.loss_fn)
        return [labels] if together else [[label] for label in labels]

    def _seen(self, label: str, steps: int) -> Row | None:
        known = self._known(label).get(str(steps))
        return None if known is None else Row(label, steps, **known)

    def _known(self, label: str) -> dict:
        path = self._state([label]).with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else {}

    def _keep(self, row: Row) -> None:
        fields = {key: value for key, value in asdict(row).items() if key not in ("label", "steps")}
        with results.atomically(self._state([row.label]).with_suffix(".json")) as beside:
            beside.write_text(json.dumps(self._known(row.label) | {str(row.steps): fields}))

    def _state(self, labels: Sequence[str]) -> Path:
        names = [settings.name_of(label, self.candidates[label]) for label in labels]
        return self.folder / f"{names[0] if len(names) == 1 else 'group-' + fingerprints.of(names)}.pt"

    def _look(self, label: str, steps: int, run: Run) -> Row:
        if run.diverged:
            return Row(label, steps, math.nan, math.nan, math.nan, run.seconds)
        loss = _mean(run.network, self.measured, self.training.loss_fn)
        score = -loss if self.metric is None else _mean(run.network, self.measured, self.metric)
        return Row(label, steps, policy.late(run.losses), loss, score, run.seconds)


def _mean(network: nn.Module, batch: Batch, of: LossFn) -> float:
    return float(losses(stack([network]), batch, of)[0])


def accuracy(model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The share of examples whose class has the largest output."""
    return (model(batch[0]).argmax(-1) == batch[1]).float().mean()


def unchanged(network: nn.Module) -> Expansion:
    """A copy of the network with its hooks, as an expansion that expands nothing."""

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return dict(averages)

    names = {name: name for name, _ in network.named_parameters()}
    return Expansion(parted(network, network), names, frozenset(), frozenset(), carry)
