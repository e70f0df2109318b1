"""What the functions below the face refuse: each names the value."""

from functools import partial

import pytest
import torch
from cases import batch, mlp
from torch import nan

from mmstudy.batched import training
from mmstudy.batched.ensemble import stack, vectors
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.expansion.copies import net2net
from mmstudy.expansion.optimizers import carried
from mmstudy.manifold import crossings, directions

ENSEMBLE = stack([mlp(), mlp(seed=1), mlp(seed=2)])
PARENTS = vectors(ENSEMBLE).detach()
OBJECTIVE = of_networks(ENSEMBLE, batch())
RAYS = directions.uniform(PARENTS, 2, generator("rays"))
ORDER = training.minibatches([generator("order", i) for i in range(3)], 32, 4, 8)

WRONG = {
    "noise that is negative": (partial(net2net, None, noise=-1), "noise must not be negative; got -1"),
    "noise that is no number": (partial(net2net, None, noise=nan), "noise must be a finite number; got nan"),
    "an infinite step size": (partial(training.constant, float("inf"), 3), "step_size must be .* > 0; got inf"),
    "a negative step size": (partial(training.cosine, -0.1, 3), "step_size must be a finite number > 0; got -0.1"),
    "less than no step": (partial(training.cosine, 0.1, -2), "steps must be at least 0; got -2"),
    "step sizes that are not finite": (
        lambda: list(training.train(ENSEMBLE, batch(32), ORDER, torch.tensor([0.1, nan, 0.1, nan]))),
        "step_sizes has 2 numbers that are NaN or infinite",
    ),
    "a momentum that grows": (
        lambda: list(training.train(ENSEMBLE, batch(32), ORDER, torch.full((4,), 0.1), 2.0)),
        r"momentum must lie in \[0, 1\); got 2.0",
    ),
    "an example that is not there": (
        lambda: list(training.train(ENSEMBLE, batch(32), ORDER + 9, torch.full((4,), 0.1))),
        "the order names examples 9 to 40; there are 32",
    ),
    "more minibatches than fit into memory": (
        partial(training.minibatches, [generator("order", 0)], 32, 10**13, 8), "an order of .* would take .* GB",
    ),
    "more directions than fit into memory": (
        partial(directions.uniform, PARENTS, 10**10, generator("many")), "directions of .* would take .* GB",
    ),
    "more normalized directions than fit into memory": (
        partial(directions.filter_normalized, ENSEMBLE, PARENTS, 10**10, generator("many")), "would take .* GB",
    ),
    "a level that is no number": (partial(crossings.crossings, OBJECTIVE, PARENTS, RAYS, nan), "level must be .* nan"),
    "no direction": (
        partial(crossings.crossings, OBJECTIVE, PARENTS, RAYS[:, :0], 9.0), r"no direction: .* shape \(3, 0, \d+\)",
    ),
    "no uniform direction": (
        partial(directions.uniform, PARENTS, 0, generator("none")), "count must be at least 1; got 0",
    ),
    "no normalized direction": (
        partial(directions.filter_normalized, ENSEMBLE, PARENTS, 0, generator("none")), "count must be at least 1",
    ),
    "no optimizer": (partial(carried, None, mlp(), None), "optimizer must be a torch.optim.Optimizer; got None"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_by_name(name):
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
