"""A network's training as its user runs it: kept on the way, and gone on with after any end as if there had been none.

The batches come in an order that the seed decides, the same for all networks, so that what is compared has met the
same examples.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map_only

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.core import arguments, results
from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import seed_of
from mmstudy.ranking import loops
from mmstudy.ranking.loops import Loop
from mmstudy.ranking.randomness import random_kept, random_state, seed_all, set_random_state
from mmstudy.ranking.together import Together

KEEP_EVERY = 60.0  # seconds between two states on disk


@dataclass(frozen=True)
class Training:
    """How networks are trained; for the fields see `asked.rank_expansions`."""

    loss_fn: LossFn
    loader: Iterable[Batch]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer | None = None
    schedule: Callable[[Optimizer], LRScheduler] | None = None
    clip: float | None = None
    autocast: torch.dtype | None = None
    accumulate: int = 1
    train: Loop | None = None
    seed: int = 0


@dataclass
class Run:
    """A training under way."""

    network: nn.Module
    optimizer: Optimizer | None = None
    schedule: LRScheduler | None = None
    own: Any = None  # the state that a loop of the user's own handed back
    losses: list[float] = field(default_factory=list)  # of each step so far
    place: tuple[int, int] = (0, 0)  # (epoch, batches of it) that were used
    random: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def diverged(self) -> bool:
        """Whether a loss was no finite number, after which nothing is trained."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])


def begun(network: nn.Module, optimizer: Optimizer | None, training: Training) -> Run:
    """A training of a network that has not made a step."""
    schedule = training.schedule(optimizer) if training.schedule and optimizer else None
    return Run(network, optimizer, schedule)


def advance(
    runs: Sequence[Run],
    training: Training,
    steps: int,
    path: Path,
    stepped: Callable[[int], object] = lambda count: None,
) -> None:
    """Train until so many steps have been made in all, several that have come equally far as one (`together`).

    The states are kept at `path`. A loss that is no finite number ends a training there.

    Args:
        stepped: is told of steps that were made.

    Raises:
        ValueError: the loader gives no batch; the user's own loop returns something else than it should.
    """
    first = runs[0]
    if len(first.losses) >= steps or all(run.diverged for run in runs):
        return
    began, kept = time.perf_counter() - sum(run.seconds for run in runs), time.perf_counter()

    def keep_all() -> None:
        nonlocal kept
        state = random_state() if training.train is None else {}
        for run in runs:
            run.place, run.random = first.place, state
            run.seconds = (time.perf_counter() - began) / len(runs)
        keep(runs, path)
        kept = time.perf_counter()

    if training.train is not None:
        missing = steps - len(first.losses)
        _own_loop(first, training, missing)
        stepped(missing)
        keep_all()
        return
    with random_kept(), contextlib.ExitStack() as modes:
        for run in runs:
            modes.enter_context(evaluating(run.network))
            run.network.train()
        stream = _batches(training, first)
        step, settle = _stepper(runs, training)
        while len(first.losses) < steps and not all(run.diverged for run in runs):
            batches = [moved(next(stream), device_of(first.network)) for _ in range(training.accumulate)]
            for run, loss in zip(runs, step(batches), strict=True):
                run.losses.append(math.nan if run.diverged else loss)
            stepped(len(runs))
            if time.perf_counter() - kept > KEEP_EVERY:
                settle()
                keep_all()
        settle()
        keep_all()


def _stepper(
    runs: Sequence[Run], training: Training
) -> tuple[Callable[[list[Batch]], list[float]], Callable[[], None]]:
    """What makes a step, of one network as it would be written down, and what brings networks to where that came."""
    if len(runs) == 1:
        return lambda batches: [_step(runs[0], training, batches)], lambda: None
    optimizers = [run.optimizer for run in runs if run.optimizer is not None]
    schedules = [run.schedule for run in runs]
    how = training.loss_fn, training.schedule, training.clip
    both = Together([run.network for run in runs], optimizers, schedules, *how)
    return both.step, both.settle


def _own_loop(run: Run, training: Training, missing: int) -> None:
    assert training.train is not None
    behind = len(run.losses)
    with random_kept():
        seed_all(seed_of(training.seed, "own loop", behind))
        found = loops.called(training.train, run.network, run.own, missing, training.seed + behind)
    run.network, losses, run.own = found
    run.losses += losses


def _step(run: Run, training: Training, batches: Sequence[Batch]) -> float:
    """One step of the optimizer; the mean loss of its batches."""
    assert run.optimizer is not None
    device, total = device_of(run.network), 0.0
    run.optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        mixed = torch.autocast(device.type, training.autocast, enabled=training.autocast is not None)
        with arguments.explained(batch), mixed:
            loss = training.loss_fn(run.network, batch)
        if not bool(loss.isfinite()):
            return math.nan
        (arguments.differentiable(loss) / len(batches)).backward()
        total += loss.item() / len(batches)
    if training.clip is not None:
        nn.utils.clip_grad_norm_(run.network.parameters(), training.clip)
    run.optimizer.step()
    if run.schedule is not None:
        run.schedule.step()
    return total


def _batches(training: Training, run: Run) -> Iterator[Batch]:
    """The loader's batches, epoch after epoch, from where the run has come to."""
    state = run.random
    while True:
        epoch, used = run.place
        stream = epoch_of(training.loader, training.seed, epoch)
        skipped = sum(1 for _ in zip(range(used), stream, strict=False))  # what shuffles is the same each time
        if state:
            set_random_state(state)
            state = {}
        for batch in stream:
            run.place = epoch, run.place[1] + 1
            yield batch
        if not skipped and not run.place[1]:
            raise ValueError("the loader gives no batch")
        run.place = epoch + 1, 0


def epoch_of(loader: Iterable[Batch], seed: int, epoch: int | str) -> Iterator[Batch]:
    """One reading of a loader in an order that the seed decides; torch's, numpy's and Python's draws are set to it."""
    number = seed_of(seed, "epoch", epoch)
    seed_all(number)
    for part in (loader, getattr(loader, "sampler", None)):
        if isinstance(own := getattr(part, "generator", None), torch.Generator):
            own.manual_seed(number)
    return iter(loader)


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters are.

    Raises:
        ValueError: on several devices, or on the meta device, where there are no numbers.
    """
    devices = {str(parameter.device) for parameter in network.parameters()}
    if len(devices) > 1:
        raise ValueError(f"the network is on several devices, {', '.join(sorted(devices))}: move it to one, or train=")
    if devices == {"meta"}:
        raise ValueError("the network is on the meta device, without numbers: load its weights, or initialize them")
    return torch.device(devices.pop())


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; lists, as `DataLoader` makes them, become tuples."""
    plain = tuple(batch) if isinstance(batch, list) else batch
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), plain)


# ---- What is kept ------------------------------------------------------------------------------------------------


def keep(runs: Sequence[Run], path: Path) -> None:
    """Write the states of runs, whole or not at all."""
    states = [
        {
            "network": run.network.state_dict(),
            "optimizer": run.optimizer.state_dict() if run.optimizer else None,
            "schedule": run.schedule.state_dict() if run.schedule else None,
            "own": run.own,
            "losses": torch.tensor(run.losses, dtype=torch.float64),
            "place": run.place,
            "random": dict(run.random),
            "seconds": run.seconds,
        }
        for run in runs
    ]
    with results.atomically(path) as beside:
        torch.save(states, beside)


def resume(runs: Sequence[Run], path: Path, which: slice = slice(None)) -> None:
    """Bring runs that have just begun to the states at `path`, or to some of them; nothing, where there are none.

    Raises:
        ValueError: the file cannot be read, or belongs to other networks.
    """
    if not path.exists():
        return
    try:
        states = torch.load(path, weights_only=True, map_location=device_of(runs[0].network))[which]
        for run, state in zip(runs, states, strict=True):
            run.network.load_state_dict(state["network"])
            for part, name in ((run.optimizer, "optimizer"), (run.schedule, "schedule")):
                if part is not None:
                    part.load_state_dict(state[name])
            run.own, run.losses, run.place = state["own"], state["losses"].tolist(), tuple(state["place"])
            run.random, run.seconds = state["random"], state["seconds"]
    except Exception as error:  # pickle, zip and torch each raise their own
        raise ValueError(f"{path} cannot be read ({error}); delete it to train this network again") from error
