"""What is given to a ranking, looked at before anything is spent: loaders, functions, a pool, a folder, numbers."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mmstudy.batched import asked, engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.modes import measuring
from mmstudy.core import arguments
from mmstudy.expansion import optimizers
from mmstudy.expansion.candidate import Candidate, Expansion
from mmstudy.ranking import fingerprints
from mmstudy.ranking.randomness import random_kept
from mmstudy.ranking.rows import Metric, unchanged
from mmstudy.ranking.training import Training, epoch_of, moved
from mmstudy.ranking.words import OWN

SAME = 4  # batches that are read twice to see whether the loader gives the same under one seed
TRIED = 100_000  # steps of a schedule, which take a second
MOST_BATCHES, MOST_STEPS = 10_000, 10**9  # that make one step, or one training
OURS = ("schedule", "clip", "autocast", "accumulate")  # of a training, not of a loop of the user's own
KEPT = ("step", "state_dict", "load_state_dict")  # what a schedule must have, to be gone on with


def in_range(
    budget: Any, full_steps: Any, accumulate: Any, examples: Any, clip: Any, autocast: Any, seed: Any
) -> tuple[float, int, int, int, float | None, int]:
    """The numbers, autocast left out, as Python's own; those that are out of range are refused.

    Raises:
        TypeError: no numbers.
        ValueError: out of range.
    """
    if arguments.number(budget, "budget", 0) > 1:
        raise ValueError(f"budget is a share of training all candidates, above 0 and at most 1; got {budget}")
    if autocast not in (None, torch.bfloat16):
        raise ValueError(f"autocast must be torch.bfloat16 (float16 needs a scaled loss: give train=); got {autocast}")
    return (
        float(budget),
        arguments.whole(full_steps, "full_steps", 1, MOST_STEPS),
        arguments.whole(accumulate, "accumulate", 1, MOST_BATCHES),
        arguments.whole(examples, "measured_examples", 1, MOST_STEPS),
        None if clip is None else arguments.number(clip, "clip", 0),
        arguments.whole(seed, "seed"),
    )


def functions(network: nn.Module, training: Training, metric: Any, say: Any) -> None:
    """Refuse functions that are none, and try an optimizer and its schedule on a copy of the network.

    Raises:
        TypeError: no function, or an optimizer or a schedule that is none.
        ValueError: one that fails, a step size that is not finite, or options that a loop of one's own does not use.
    """
    arguments.function(say, "say", "a function of a text, such as print; lambda text: None says nothing")
    if metric is not None:
        arguments.function(metric, "metric", "a function metric(model, batch) → score, larger is better")
    if training.train is not None:
        wanted = "a function of (network, optimizer_state, steps, seed)"
        arguments.function(training.train, "train", wanted)
        if not _takes(training.train, 4):
            raise TypeError(f"train must be {wanted}; it takes {inspect.signature(training.train)}")
        if ignored := [name for name in OURS if getattr(training, name) != getattr(Training, name)]:
            raise ValueError(
                f"train= trains in its own way: leave out {', '.join(ignored)}, and do there what that should do"
            )
        return
    if training.optimizer is None:
        raise TypeError("give an optimizer, e.g. lambda parameters: torch.optim.AdamW(parameters, lr=3e-4), or train=")
    optimizer = _made(unchanged(network), network, training.optimizer)
    for group in optimizer.param_groups:
        arguments.number(float(group.get("lr", 1.0)), "the optimizer's lr")
    if training.schedule is not None:
        _scheduled(training.schedule, optimizer)


def _takes(function: Any, count: int) -> bool:
    """Whether a function takes so many arguments, as far as that is known."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True


def _made(copied: Expansion, network: nn.Module, given: Any) -> Optimizer:
    """The optimizer of a copy of the network."""
    if isinstance(given, Optimizer):
        return optimizers.carried(given, network, copied)
    arguments.function(given, "optimizer", "a torch.optim.Optimizer, or a function parameters → an optimizer")
    with arguments.called("optimizer", "the network's parameters"):
        found = given([p for p in copied.network.parameters() if p.requires_grad])
    if not isinstance(found, Optimizer):
        wanted = "a torch.optim.Optimizer, as lambda parameters: torch.optim.AdamW(parameters, lr=3e-4) does"
        raise TypeError(f"optimizer must return {wanted}; got {arguments.described(found)}")
    return found


def _scheduled(given: Any, optimizer: Optimizer) -> None:
    wanted = "one of torch.optim.lr_scheduler, as lambda o: CosineAnnealingLR(o, 10_000) does"
    arguments.function(given, "schedule", f"a function of an optimizer that returns {wanted}")
    with arguments.called("schedule", "the optimizer"):
        found = given(optimizer)
    if not all(callable(getattr(found, name, None)) for name in KEPT):
        raise TypeError(f"schedule must return {wanted}; got {arguments.described(found)}")
    if isinstance(found, ReduceLROnPlateau):
        raise TypeError("schedule must step without a number, once a step: ReduceLROnPlateau waits for a loss")


def stepped(network: nn.Module, batch: Batch, training: Training, steps: int) -> None:
    """Try a step of the optimizer on a copy of the network, and all steps of the schedule, `TRIED` at most.

    Raises:
        ValueError: one of them fails.
    """
    if training.train is not None:
        return
    copied = unchanged(network)
    optimizer = _made(copied, network, training.optimizer)
    schedule = training.schedule(optimizer) if training.schedule else None
    with random_kept():
        with arguments.explained(batch):
            loss = training.loss_fn(copied.network.train(), batch)
        if bool(loss.isfinite()):  # a training that diverges is one
            arguments.differentiable(loss).backward()
            wanted = (
                "Give one whose step() needs gradients alone, such as torch.optim.AdamW, or a loop of your own, train="
            )
            with _failing(f"a step of the optimizer {type(optimizer).__name__} fails", wanted):
                optimizer.step()
    if schedule is not None:
        for count in range(1, min(steps, TRIED) + 1):
            wanted = "It steps once a step: make it as long as the training"
            with _failing(f"schedule fails at step {count} of full_steps={steps}", wanted):
                schedule.step()


@contextlib.contextmanager
def _failing(what: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(f"{what}: {arguments.first_line(error)}. {wanted}") from error


def fit(network: nn.Module, batch: Batch, loss_fn: LossFn, name: str) -> list[float]:
    """The loss of the network on a loader's batch, alone in a list, once it is known that it can be taken.

    Raises:
        TypeError: no batch for this loss.
        ValueError: the loss fails on it, or is no finite number.
    """
    with arguments.naming(name):
        return asked.fit(network, batch, loss_fn)[2]


def scored(network: nn.Module, batch: Batch, metric: Metric | None) -> None:
    """See that a metric gives one finite number.

    Raises:
        ValueError: it fails, or gives something else.
    """
    if metric is None:
        return
    quiet = torch.random.fork_rng(devices=[])
    with arguments.called("metric", "(model, batch)"), torch.no_grad(), quiet, measuring(network):
        score = metric(lambda *given, **options: network(*given, **options), copy.copy(batch))
    if not isinstance(score, Tensor) or score.numel() != 1 or score.is_complex() or not bool(score.isfinite().all()):
        raise ValueError(f"metric must return one finite number, a tensor; got {arguments.described(score)}")


def pool(given: Any) -> Mapping[str, Candidate]:
    """Candidates by label, two at least.

    Raises:
        TypeError: anything else.
        ValueError: fewer than two, or one with the name of the network itself.
    """
    wanted = 'candidates by label, such as {"wider": mm.Candidate("lemon", ("hidden.0",), (64,)), …}'
    if not isinstance(given, Mapping):
        raise TypeError(f"pool must be {wanted}; got {arguments.described(given)}")
    if strange := [each for each in given.values() if not isinstance(each, Candidate)]:
        raise TypeError(f"pool must be {wanted}; it holds {arguments.described(strange[0])}")
    if OWN in given:
        raise ValueError(
            f"pool has a candidate “{OWN}”, which is the network itself in a ranking: give it another name"
        )
    if len(given) < 2:
        raise ValueError(f"needs at least two candidates to compare; got {list(given)}")
    return given


def first_batches(loader: Iterable[Batch], seed: int, name: str) -> list[Batch]:
    """The first batches of a loader's first epoch; read twice, to see that the seed decides them.

    Raises:
        TypeError: no loader.
        ValueError: it can be read once only, gives nothing, or other batches at each reading.
    """
    if isinstance(loader, Iterator):
        raise ValueError(f"{name} is a {type(loader).__name__}, which can be read only once: give a DataLoader or list")
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"{name} must give batches, as a DataLoader does; got {arguments.described(loader)}")
    with random_kept():
        one, two = ([moved(b, torch.device("cpu")) for b in islice(epoch_of(loader, seed, 0), SAME)] for _ in range(2))
    if not one:
        raise ValueError(f"{name} gives no batch")
    if fingerprints.of(one) != fingerprints.of(two):
        if getattr(loader, "persistent_workers", False):
            raise ValueError(
                f"{name} gives another order at its first reading than at later ones, as persistent_workers=True keeps "
                "its workers: leave that out"
            )
        raise ValueError(
            f"{name} gives other batches at each reading, under one seed of torch, numpy and Python: its dataset or "
            "sampler draws random numbers of its own. Seed them from one of these"
        )
    return one


def measured_part(
    loader: Iterable[Batch], examples: int, seed: int, device: torch.device, say: Callable[[str], object]
) -> Batch:
    """So many examples of the validation data, or as many as there are, as one batch.

    They are spread evenly over the loader, which may be sorted; one without a length may have no end, and is read from
    its beginning only.

    Raises:
        ValueError: as `first_batches`; or batches that do not fit together.
    """
    first_batches(loader, seed, "validation_loader")
    endless = fingerprints.length(loader) is None
    parts: list[Batch] = []
    kept, seen, every = 0, 0, 1  # one of so many examples is kept
    with random_kept(), arguments.naming("validation_loader"):
        for part in epoch_of(loader, seed, "validation"):
            here = moved(part, device)
            count, first = engine.count(here), -seen % every
            if first < count:
                parts.append(here if every == 1 else engine.take(here, torch.arange(first, count, every)))
                kept += engine.count(parts[-1])
            seen += count
            if endless and kept >= examples:
                say(f"validation_loader has no length: networks are compared by its first {examples} examples")
                break
            while kept > 2 * examples:
                parts, every = [engine.take(engine.joined(parts), torch.arange(0, kept, 2))], 2 * every
                kept = engine.count(parts[0])
        spread = slice(examples) if endless or kept <= examples else torch.arange(examples) * kept // examples
        return arguments.batch(engine.take(engine.joined(parts), spread))
