"""The rows of a ranking: each is grown anew, trained as far as is asked, and looked at; what was seen is kept."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from mmstudy.batched.engine import Batch, LossFn, Model
from mmstudy.batched.ensemble import losses, stack
from mmstudy.core import results
from mmstudy.expansion import optimizers
from mmstudy.expansion.candidate import Averages, Candidate, Expansion
from mmstudy.ranking import policy, settings
from mmstudy.ranking.training import Run, Training, advance, begun, resume

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
        return not math.isfinite(self.score) or not math.isfinite(self.minibatch_loss)


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

    def at(self, label: str, steps: int, stepped: Callable[[int], object] = lambda count: None) -> Row:
        """What is seen of a row after so many steps; trained as far as is missing, unless it was seen before."""
        state, seen = self._paths(label)
        known = json.loads(seen.read_text()) if seen.exists() else {}
        if str(steps) in known:
            return Row(label, steps, **known[str(steps)])
        run = self.run(label)
        again = state.with_suffix(".again.pt")
        if earlier := len(run.losses) > steps:  # than it was trained: the way there once more
            run, state = self.start(label), again
        advance(run, self.training, steps, state, stepped)
        row = self._look(label, steps, run)
        if earlier:
            again.unlink(missing_ok=True)
        fields = {key: value for key, value in asdict(row).items() if key not in ("label", "steps")}
        with results.atomically(seen) as beside:
            beside.write_text(json.dumps(known | {str(steps): fields}))
        return row

    def run(self, label: str) -> Run:
        """The training of a row, as far as it is kept."""
        run = self.start(label)
        resume(run, self._paths(label)[0])
        return run

    def start(self, label: str) -> Run:
        """A row before its training, the optimizer's state carried along."""
        candidate = self.candidates[label]
        if candidate is None:
            return self._begun(unchanged(self.network))
        return self._begun(candidate.grow(self.network, self.batch, self.training.loss_fn))

    def seconds_a_step(self, steps: int) -> float:
        """How long a step of the network itself takes, measured on a few; nothing of it is kept."""
        run = self._begun(unchanged(self.network))
        path = self.folder / ".timed"
        advance(run, self.training, 1, path)  # the first is slower
        began = time.perf_counter()
        advance(run, self.training, 1 + steps, path)
        path.unlink(missing_ok=True)
        return (time.perf_counter() - began) / steps

    def _begun(self, grown: Expansion) -> Run:
        return begun(grown.network, self._optimizer(grown), self.training)

    def _optimizer(self, grown: Expansion) -> Optimizer | None:
        made = self.training.optimizer
        if made is None or self.training.train is not None:
            return None
        if isinstance(made, Optimizer):
            return optimizers.carried(made, self.network, grown)
        return made([p for p in grown.network.parameters() if p.requires_grad])

    def _paths(self, label: str) -> tuple[Path, Path]:
        name = settings.name_of(label, self.candidates[label])
        return self.folder / f"{name}.pt", self.folder / f"{name}.json"

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
    """A copy of the network, as an expansion that expands nothing."""

    def carry(averages: Averages, squares: bool) -> dict[str, Tensor]:
        return dict(averages)

    names = {name: name for name, _ in network.named_parameters()}
    return Expansion(copy.deepcopy(network), names, frozenset(), frozenset(), carry)
