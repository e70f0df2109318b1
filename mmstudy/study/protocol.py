"""How an experiment is done: how long candidates are trained, when they are looked at, and what is measured then."""

from dataclasses import dataclass

from mmstudy.core import arguments
from mmstudy.manifold.curvature import PRODUCT
from mmstudy.manifold.estimate import PASS, STEP
from mmstudy.manifold.estimators import ESTIMATORS

PROGRESS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Protocol:
    """How much is trained and measured. Costs are counted in example-evaluations.

    A candidate is trained for so many `steps` with a cosine from `step_size` to zero, once for each of the `seeds`; its
    run with the first seed is looked at after each share of the training in `progress`. There, `children` copies train
    `child_steps` steps each at the constant step size; rays go along ± the directions from their centre to each of
    them, along ± those to as many snapshots of the run itself, along `random_rays` filter-normalized directions, and
    down and up the gradient. Each ray is a profile: losses on `probe_examples` training examples at 1, 2, 4, … times
    its direction, `doublings` + 1 points, so that its crossing with any level can be read off afterwards. Minibatch
    losses are kept as `bins` means. `short` is the length, as a share of the training, of two short runs that are
    rivals: a cosine of that length, and a constant step of twice the size. `traces` products estimate the Hessian's
    trace. Scores are those on the first `test_examples` of the test part.
    With `augment`, training (that of children too) sees images shifted and mirrored, where the dataset is one of images
    that may be; losses and scores are always those of the images as they are.
    `estimators`, keys of `ESTIMATORS`, are measured too, at the children's centre, up to the base's loss + `margin`.
    """

    steps: int = 2000
    batch: int = 128
    step_size: float = 0.05
    momentum: float = 0.9
    seeds: int = 3
    validations: int = 10
    test_examples: int = 20_000
    progress: tuple[float, ...] = PROGRESS
    bins: int = 100
    short: float = 0.1
    children: int = 4
    child_steps: int = 20
    probe_examples: int = 200
    random_rays: int = 4
    traces: int = 4
    doublings: int = 9
    margin: float = 0.1
    estimators: tuple[str, ...] = ()
    augment: bool = False

    def __post_init__(self):
        for name in ("steps", "batch", "validations", "test_examples", "bins", "child_steps", "probe_examples"):
            object.__setattr__(self, name, arguments.whole(getattr(self, name), name, 1))
        for name in ("seeds", "children", "random_rays", "traces", "doublings"):
            object.__setattr__(self, name, arguments.whole(getattr(self, name), name))
        for name in ("step_size", "margin"):
            arguments.number(getattr(self, name), name, 0)
        arguments.momentum(self.momentum)
        for share in (self.short, *self.progress):
            arguments.number(share, "a share of the training")
        if self.seeds < 2 or self.children < 3:
            raise ValueError(f"needs ≥ 2 seeds and ≥ 3 children; got {self.seeds} and {self.children}")
        if list(self.progress) != sorted({0.0, *self.progress, 1.0}) or self.progress[-1] > 1:
            raise ValueError(f"progress must rise from 0 to 1, both included; got {self.progress}")
        if self.steps % self.bins:
            raise ValueError(f"steps = {self.steps} is no multiple of bins = {self.bins}")
        if not 0 < self.short < 1 or min(self.short, *self.progress[1:]) * self.steps < self.children:
            shortest = min(self.short, *self.progress[1:])
            raise ValueError(
                f"short runs and progress must be {self.children} steps or more, of {self.steps}, and short < 1; got "
                f"short={self.short}, and the smallest share {shortest}: take more steps, or larger shares"
            )
        if isinstance(self.estimators, str):
            raise TypeError(f"estimators must be a list of names; got {self.estimators!r}")
        if unknown := [name for name in self.estimators if name not in ESTIMATORS]:
            raise ValueError(f"unknown estimators {unknown}; known: {', '.join(ESTIMATORS)}")

    @property
    def full_cost(self) -> int:
        """Example-evaluations of training one candidate in full once."""
        return STEP * self.steps * self.batch

    @property
    def marks(self) -> tuple[int, ...]:
        """The steps after which a run is looked at."""
        return tuple(round(share * self.steps) for share in self.progress)

    def costs(self, training: int, validation: int) -> dict[str, int]:
        """What each part of a look costs, beside the training that led there; `training` and `validation` are counts.

        The children's training; their predictions on the probe examples or the validation inputs; the rays of each
        kind; the loss on all training examples; predictions on the validation examples; a short run.
        """
        k, ray = self.children, PASS * self.probe_examples * (self.doublings + 1)
        return {
            "children": STEP * self.batch * k * self.child_steps,
            "children's predictions": PASS * self.probe_examples * k,
            "children's validation predictions": PASS * validation * k,
            "centre": PASS * self.probe_examples,
            "centre's validation predictions": PASS * validation,
            "children's rays": ray * 2 * k,
            "snapshots' rays": ray * 2 * k,
            "random rays": ray * self.random_rays,
            "gradient rays": STEP * self.probe_examples + ray * 2,
            "training loss": PASS * training,
            "hessian products": PRODUCT * self.traces * self.probe_examples,
            "validation": PASS * validation,
            "short run": STEP * self.batch * round(self.short * self.steps),
        }
