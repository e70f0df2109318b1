import math

import pytest
import torch
from cases import batch, mlp

from mmstudy.batched.ensemble import stack
from mmstudy.batched.objective import of_landscape, of_networks
from mmstudy.batched.training import minibatches
from mmstudy.manifold.estimate import Budget
from mmstudy.manifold.estimators import ESTIMATORS

BOWL, ORIGIN = of_landscape(lambda points: points.square().sum(-1), 3), torch.zeros(1, 3, dtype=torch.float64)
ENSEMBLE = stack([mlp()])
WRONG = [
    (lambda: Budget(step_size=math.inf), ValueError, "step_size must be a finite number > 0; got inf"),
    (lambda: Budget(step_size=math.nan), ValueError, "step_size must be a finite number > 0; got nan"),
    (lambda: Budget(samples=2.5), TypeError, "samples .* must be a whole number; got 2.5"),
    (lambda: Budget(steps=2.5), TypeError, "steps must be a whole number; got 2.5"),
    (lambda: Budget(momentum=1.0), ValueError, r"momentum must lie in \[0, 1\); got 1.0"),
    (lambda: of_landscape(lambda points: points.sum(-1), 3, noise=-1.0), ValueError, "at least 0; got -1.0"),
    (lambda: of_landscape(lambda points: points.sum(-1), 3, noise=math.nan), ValueError, "noise must be a finite"),
    (lambda: of_landscape(lambda points: points.sum(-1), 0), ValueError, "dim must be at least 1; got 0"),
    *(
        (
            lambda n=n: of_networks(ENSEMBLE, batch(), minibatch=n),
            ValueError,
            "minibatch must be at least 1 and at most",
        )
        for n in (0, -1, 10**6)
    ),
    *(
        (
            lambda each=each, given=given: each.measure(BOWL, ORIGIN, 1.0, given),
            TypeError,
            "a generator must be a torch.Gen",
        )
        for each in ESTIMATORS.values()
        for given in (None, "x", 3)
    ),
    (lambda: minibatches([None], 8, 2, 4), TypeError, "a generator must be a torch.Generator.*got None"),
    (lambda: minibatches([torch.Generator()], 8, 2, 2.5), TypeError, "batch must be a whole number; got 2.5"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_numbers_and_generators_that_cannot_be_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
