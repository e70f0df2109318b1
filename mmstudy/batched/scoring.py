"""What networks are worth, example by example and on all of them: losses, accuracy, calibration."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import (
    Ensemble,
    at,
    at_once,
    classification,
    losses_of,
    output,
    parts_of,
    vectors,
)
from mmstudy.batched.modes import measuring

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
    arXiv 1706.04599, equation 3). A network whose outputs are not numbers scores NaN. Of sentences, with outputs
    (n, T, classes) and targets (n, T), every token counts as one example.

    Raises:
        ValueError: targets of another shape than the outputs (n, …, classes) have without their last axis.
    """
    inputs, targets = batch
    rows = (len(ensemble), len(targets))
    right, nll = (torch.zeros(rows, dtype=torch.float64, device=targets.device) for _ in range(2))  # of each example
    gap = torch.zeros(len(ensemble), CALIBRATION_BINS, dtype=torch.float64, device=targets.device)
    for some, part, logits in _in_parts(ensemble, inputs):
        hits, losses, confidence = (t.view(*logits.shape[:2], -1) for t in _judged(logits, targets[part]))
        right[some, part], nll[some, part] = hits.mean(2), losses.mean(2)
        bins = (confidence.nan_to_num() * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
        gap[some].scatter_add_(1, bins.flatten(1), (hits - confidence).flatten(1))
    return {"accuracy": right.mean(1), "nll": nll.mean(1), "ece": gap.abs().sum(1) / targets.numel()}


def _in_parts(ensemble: Ensemble, inputs: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Outputs, (some networks, some examples, ...), with which these are: as many at a time as run in one call."""
    start = 0
    with torch.no_grad(), measuring(ensemble.network):
        for part in parts_of(ensemble, inputs, output, "frozen"):
            for some in engine.pieces(len(ensemble), at_once(ensemble, part, output)):
                yield some, slice(start, start + len(part)), losses_of(ensemble[some], part, output)
            start += len(part)


def _judged(logits: Float[Tensor, "k n ... classes"], targets: Int[Tensor, "n ..."]) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each guess is right, its negative log-likelihood and its confidence, each (k, n, …)."""
    if logits.shape[1:-1] != targets.shape:
        shapes = f"outputs {tuple(logits.shape[1:])}, targets {tuple(targets.shape)}"
        raise ValueError(f"the classes must be the outputs' last axis, and targets have the others; got {shapes}")
    logp = logits.double().log_softmax(-1)
    top, guess = logp.max(-1)
    right = (guess == targets).double().where(~top.isnan(), torch.nan)
    return right, -logp.gather(-1, targets.expand(guess.shape).unsqueeze(-1)).squeeze(-1), top.exp()
