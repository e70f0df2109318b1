"""Rival statistics of an expanded network: what one could compute instead of the manifold's size.

Each declares beforehand which sign its relation to the gain is expected to have.
"""

from jaxtyping import Float
from torch import Tensor

from mmstudy.batched.engine import Batch
from mmstudy.batched.ensemble import Ensemble, vectors
from mmstudy.batched.objective import of_networks

# +1: a larger value is expected to go with a larger gain; −1: a smaller one
DIRECTION = {
    "parameters": 1,
    "flops": 1,
    "loss": -1,
    "gradient_norm": 1,
    "early_loss": -1,
    "explorer_loss": -1,
    "centre_loss": -1,
    "reach": 1,
    "gyration": 1,
    "diameter": 1,
    "effective_dimension": 1,
    "log_volume": 1,
    "disagreement": 1,
    "extent_children": 1,
    "extent_differences": 1,
    "extent_random": 1,
}


def gradient_norm(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """‖∇L‖₂ of every network over the examples."""
    _, slopes = of_networks(ensemble, batch).gradient(vectors(ensemble))
    return slopes.norm(dim=1)
