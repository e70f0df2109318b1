"""What networks are worth, example by example and on all of them: losses, accuracy, calibration."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import Ensemble, at, classification, losses_of, measuring, outputs, vectors

CALIBRATION_BINS = 15


def example_losses(ensemble: Ensemble, batch: Batch, loss_fn: LossFn = classification) -> Float[Tensor, "k n"]:
    """The loss of every network on every example alone, (K, n) float64, in evaluation mode."""
    single = tree_map(lambda leaf: leaf.unsqueeze(1) if isinstance(leaf, Tensor) else leaf, batch)
    n, rows = engine.count(batch), []
    with torch.no_grad(), measuring(ensemble.network):
        for i, point in enumerate(vectors(ensemble)):
            same = at(ensemble, point.expand(n, -1), torch.full((n,), i))  # a view: one network, not n
            rows.append(losses_of(same, single, loss_fn, shared=False))
    return torch.stack(rows).double()


def examples_for(error: float, differences: Float[Tensor, "k n"]) -> int:
    """How many examples tell two networks' losses apart to a standard error, both being evaluated on the same ones.

    n = mean s²(l_a − l_b) / error², s² the variance over examples, the mean over pairs of networks (a, b): what is hard
    for both cancels, so that pairing takes fewer examples than each network's own s² would.

    Args:
        error: of a difference of two mean losses, nats; its root mean square over pairs.
        differences: l_a − l_b of some pairs like those to be told apart, on some examples (from `example_losses`).

    Raises:
        ValueError: an error that is not positive, no pair, fewer than two examples, differences that are not finite.
    """
    pairs, examples = differences.shape
    broken = int((~differences.isfinite()).sum())
    if not 0 < error < math.inf or not pairs or examples < 2 or broken:
        found = f"error={error}, {pairs} pairs, {examples} examples, {broken} differences not finite"
        raise ValueError(
            f"needs an error > 0, and finite differences of a pair of networks on ≥ 2 examples; got {found}"
        )
    return max(1, math.ceil(differences.double().var(1).mean().item() / error**2))


def evaluate(ensemble: Ensemble, batch: tuple[Tensor, Tensor]) -> dict[str, Float[Tensor, " k"]]:
    """Accuracy, negative log-likelihood (nats) and expected calibration error of every classifier, each (K,) float64.

    ECE: Σ_b (n_b / n) |accuracy_b − confidence_b| over 15 equal bins of the top probability (Guo et al. 2017,
    arXiv 1706.04599, equation 3). A network whose outputs are not numbers scores NaN.
    """
    inputs, targets = batch
    logp = outputs(ensemble, inputs).double().log_softmax(-1)  # (K, n, classes)
    k, n, _ = logp.shape
    confidence, guess = logp.max(-1)
    right = (guess == targets).double().where(~confidence.isnan(), torch.nan)
    picked = logp.gather(-1, targets.expand(k, n).unsqueeze(-1)).squeeze(-1)
    bins = (confidence.exp().nan_to_num() * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gap = torch.zeros(k, CALIBRATION_BINS, dtype=torch.float64, device=logp.device)
    gap.scatter_add_(1, bins, right - confidence.exp())
    return {"accuracy": right.mean(1), "nll": -picked.mean(1), "ece": gap.abs().sum(1) / n}
