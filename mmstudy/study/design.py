"""What is compared on which task: the pools of candidates, and how each family of networks is trained."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.core import arguments, cluster, tasks
from mmstudy.core.networks import ResNet
from mmstudy.core.seeds import seed_of
from mmstudy.core.tasks import Data, Task
from mmstudy.expansion import pools
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import COPIES, NEW_UNITS, NOT, OPERATORS
from mmstudy.ranking import files
from mmstudy.study.draws import shown
from mmstudy.study.protocol import Protocol
from mmstudy.tracing.couplings import couplings

PARTS = ("pilot", "confirmation")
SHAPES: dict[str, dict[str, Any]] = {  # of pools: what `pools.candidate_pool` takes
    "MLP": {"factors": (1.5, 2, 4, 8), "extra_layers": (1, 2), "matched": (2,)},
    "other": {"factors": (2,), "extra_layers": (1,), "matched": ()},
}
OTHERS = {"steps": 600, "batch": 64, "validations": 5, "test_examples": 5000}  # than perceptrons: each step costs more
TRAINING = {
    "ResNet": {"step_size": 0.2, **OTHERS},
    "ViT": {"step_size": 0.1, **OTHERS},
    "decoder": {"step_size": 0.4, **OTHERS},
    "deep ResNet": {"step_size": 0.1, **OTHERS},
}
DEEPER = tuple(name for name, each in OPERATORS.items() if not each.widens)
LEAST, SPARE = 40, "net2net"  # fewer candidates of a perceptron are filled up with this operator's
SAME = {"MLP": {"interleave"}}  # operators that do to such small networks what another one (stack) does


def tasks_of(parts: Mapping[str, Sequence[Sequence[Any]]]) -> dict[Task, str]:
    """The tasks that are listed as [dataset, widths, examples, share of flipped labels, seed, family], and their part.

    Raises:
        ValueError: an unknown part, a task in two places, or no task at all.
        TypeError: what is no such list.
    """
    found: dict[Task, str] = {}
    for part, rows in parts.items():
        arguments.one_of(part, PARTS, "part")
        if isinstance(rows, str) or not isinstance(rows, Sequence):
            raise TypeError(f"the {part} tasks must be a list of tasks; got {arguments.described(rows)}")
        for row in rows:
            if isinstance(row, str) or not isinstance(row, Sequence) or not 5 <= len(row) <= 6:
                raise TypeError(f"a task is [dataset, widths, examples, noise, seed] and a family; got {row!r}")
            dataset, widths, *rest = row
            if not isinstance(widths, list | tuple) or not widths:
                raise TypeError(f"widths of a task must be a list, such as [8, 8]; got {widths!r}")
            task = Task(dataset, tuple(widths), *rest)
            if task in found:
                raise ValueError(f"{task} is listed twice, as {found[task]} and as {part}")
            found[task] = part
    if not found:
        raise ValueError(f"no task in any of {', '.join(parts)}")
    return found


def wider_operators(task: Task) -> tuple[str, str, str]:
    """Three operators for the task, drawn by its name, so that each is in some task's pool.

    One copies units; one adds new ones that keep the function; one adds new ones that don't.
    """
    copies = [name for name, each in OPERATORS.items() if each.kind == COPIES]
    new = [name for name, each in OPERATORS.items() if each.kind == NEW_UNITS]
    kinds = copies, [n for n in new if OPERATORS[n].preserves != NOT], [n for n in new if OPERATORS[n].preserves == NOT]
    first, second, third = (kind[seed_of("operators", i, task) % len(kind)] for i, kind in enumerate(kinds))
    return first, second, third


def locations(network: nn.Module, inputs: Tensor) -> list[str]:
    """Where a network that is no perceptron grows: all blocks alike at each kind of place, and everywhere at once.

    The blocks of a residual network are alike inside a stage. The groups of a group normalization stay as many as they
    are.
    """
    kinds = defaultdict(list)
    for name in couplings(network, inputs):
        if isinstance(network, ResNet):
            if not name.endswith("[0]"):
                kinds[re.sub(r"^(stages\.\d+)\.\d+", r"\1", name)].append(name)
        else:
            kinds[name.rpartition(".")[2]].append(name)
    everywhere = [name for names in kinds.values() for name in names]
    return ["&".join(names) for names in [*kinds.values(), everywhere]]


def pool(task: Task, data: Data, shape: Mapping[str, Any] | None = None) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The task's candidates by label, and those that were refused, with the reason.

    Args:
        shape: options of `pools.candidate_pool`, instead of the study's. Without `wider`, `deeper` or `locations`
            among them, those are the study's.
    """
    network, examples = tasks.base(task, data), shown(data)
    options = dict(shape or SHAPES.get(task.family, SHAPES["other"]))
    if task.family != "MLP":
        options.setdefault("locations", locations(network, examples.inputs))
    options.setdefault("deeper", [name for name in DEEPER if name not in SAME.get(task.family, ())])
    ways = (options.pop("wider"),) if "wider" in options else (wider_operators(task), (SPARE,))
    kept: dict[str, Candidate] = {}
    refused: dict[str, str] = {}
    for wider in ways:
        found = pools.candidate_pool(network, examples.inputs, wider=wider, **options)
        found = {label: each for label, each in found.items() if label not in kept and label not in refused}
        reasons = pools.pool_table(found, network, examples)["refused"]
        kept |= {label: each for label, each in found.items() if not reasons[label]}
        refused |= dict(reasons[reasons != ""])
        if shape or task.family != "MLP" or len(kept) >= LEAST:
            break
    return kept, refused


def all_pools(
    some: Sequence[Task], shape: Mapping[str, Any] | None = None, workers: int = 0, scheduler: str = ""
) -> dict[Task, tuple[dict[str, Candidate], dict[str, str]]]:
    """The `pool` of each task, made side by side: every candidate is grown once, to see whether it can be.

    Args:
        workers: the number of processes; 0 means one per core.
        scheduler: the address of a Dask scheduler, whose workers take the place of processes (`core.cluster`).
    """
    with cluster.executor(scheduler, workers) as executor:
        return dict(zip(some, executor.map(_pool, some, [shape] * len(some)), strict=True))


def _pool(task: Task, shape: Mapping[str, Any] | None) -> tuple[dict[str, Candidate], dict[str, str]]:
    torch.set_num_threads(1)
    return pool(task, tasks.load(task), shape)


def protocol(task: Task, **options: Any) -> Protocol:
    """How the task is trained and measured, with options instead of the study's.

    Raises:
        ValueError: with options, minibatches of more examples than the task has.
    """
    found = Protocol(**(TRAINING.get(task.family, {}) | options))
    if options and found.batch > task.train_size:
        raise ValueError(f"batch must be at most {task.train_size}, the training examples of {task}; got {found.batch}")
    return found


def options(given: Any, progress: Any, name: str) -> dict[str, Any]:
    """What `protocol` takes beside the task, of two parameters of a notebook: `name`_options and `name`_progress.

    Raises:
        TypeError: no options by name, or no list of shares.
        ValueError: an unknown option, or `progress` among them.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}_options must be a mapping, {{'steps': 200}}; got {arguments.described(given)}")
    known = [field.name for field in fields(Protocol) if field.name != "progress"]
    for option in given:
        if option == "progress":
            raise ValueError(f"progress is no option of {name}_options: set {name}_progress instead")
        arguments.one_of(option, known, f"option of {name}_options")
    arguments.several(progress, f"{name}_progress", arguments.number)
    lists = {option: tuple(value) if isinstance(value, list) else value for option, value in given.items()}
    return lists | {"progress": tuple(progress)}


def check_cases(given: Any, name: str, least: int = 1) -> None:
    """Refuse what is neither the path of a file such as those in `examples/` nor a task as in the profiles.

    Raises:
        TypeError: no list, or another thing in it.
        ValueError: fewer than so many, a file that is not there or does not define a network, or an unknown task.
    """

    def check(case: Any, place: str) -> None:
        if not isinstance(case, str):
            tasks_of({"pilot": [case]})
        elif Path(case).is_file():
            files.defined(case)
        else:
            raise ValueError(f"{place} is no file: {case!r}; give one such as ../examples/convolutional.py, or a task")

    arguments.several(given, name, check, least)


def device(name: str, scheduler: str = "") -> str:
    """The device of that name; of "auto", a GPU where there is one.

    Args:
        scheduler: of a cluster, whose workers may have what this machine does not.

    Raises:
        TypeError: no name.
        ValueError: an unknown device, or a GPU that is not there.
    """
    if not isinstance(name, str):
        raise TypeError(f"a device must be 'cpu', 'cuda', 'cuda:1', … or 'auto'; got {arguments.described(name)}")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: take 'cpu', 'cuda', 'cuda:1', … or 'auto'")
    if name.startswith("cuda") and not scheduler and not torch.cuda.is_available():
        raise ValueError(f"torch sees no GPU here, so there is no device {name!r}: take 'cpu', or 'auto'")
    return name
