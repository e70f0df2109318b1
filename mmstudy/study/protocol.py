"""How an experiment is done: how long candidates are trained and probed, and what is measured on them."""

from dataclasses import dataclass

from mmstudy.manifold.estimate import STEP
from mmstudy.manifold.estimators import ESTIMATORS


@dataclass(frozen=True)
class Protocol:
    """How much is trained and measured. Costs are counted in example-evaluations.

    A probe of length b: `children` copies of the candidate train b / children steps each, at a constant step size;
    the rays start at the children's centre (their mean) and go up to the base network's loss plus `margin`, as far as
    `farthest` times a direction, those along random filter-normalized directions as far as `random_farthest` times.
    Losses are measured on as few training examples, the same for all candidates of a task, as tell a network at that
    level from the base to a standard error of `probe_error` nats. `rates` multiply the training's step size in probes.
    `estimators`, keys of `ESTIMATORS`, are measured too, at the children's centre up to the same level.
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
    estimators: tuple[str, ...] = ()

    def __post_init__(self):
        if self.seeds < 2 or self.children < 3:
            raise ValueError(f"needs ≥ 2 seeds and ≥ 3 children; got {self.seeds} and {self.children}")
        if not self.probes or any(b % self.children or b <= 0 for b in self.probes):
            raise ValueError(f"probes {self.probes} must be positive multiples of the {self.children} children")
        if self.early_steps % self.early_bin:
            raise ValueError(f"early_steps = {self.early_steps} is no multiple of early_bin = {self.early_bin}")
        if unknown := [name for name in self.estimators if name not in ESTIMATORS]:
            raise ValueError(f"unknown estimators {unknown}; known: {', '.join(ESTIMATORS)}")

    @property
    def full_cost(self) -> int:
        """Example-evaluations of training one candidate in full once."""
        return STEP * self.steps * self.batch
