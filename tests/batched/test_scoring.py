"""Scores of classifiers of sentences: every token counts as one example."""

import numpy as np
import pytest
import torch
from cases import batch, mlp

from mmstudy.batched import costs, scoring
from mmstudy.batched import ensemble as en
from mmstudy.core.networks import Decoder, initialize
from mmstudy.core.seeds import generator

TOKENS, CONTEXT = 7, 5


def decoders(count=3) -> list[Decoder]:
    return [initialize(Decoder(TOKENS, CONTEXT, 8, 1, 2), generator("decoder", i)) for i in range(count)]


def sentences(count=40) -> tuple[torch.Tensor, torch.Tensor]:
    whole = torch.randint(TOKENS, (count, CONTEXT + 1), generator=generator("sentences"))
    return whole[:, :-1], whole[:, 1:]


def scored(network, inputs, targets) -> dict[str, float]:
    """The obvious: one network, all of its tokens in a row."""
    p = network(inputs).detach().double().softmax(-1).flatten(0, -2).numpy()
    truth = targets.flatten().numpy()
    right, confidence = p.argmax(1) == truth, p.max(1)
    which = np.ceil(confidence * 15)
    gaps = [abs((right - confidence)[which == b].sum()) for b in range(1, 16)]
    return {"accuracy": right.mean(), "nll": -np.log(p[np.arange(len(p)), truth]).mean(), "ece": sum(gaps) / len(p)}


@pytest.mark.parametrize("most", [512, 16, 7])
def test_every_token_counts_as_one_example_however_the_batch_is_cut(most, monkeypatch):
    monkeypatch.setattr(costs, "EXAMPLES", most)
    nets, (inputs, targets) = decoders(), sentences()
    scores = scoring.evaluate(en.stack(nets), (inputs, targets))
    for k, network in enumerate(nets):
        for name, value in scored(network, inputs, targets).items():
            assert scores[name][k].item() == pytest.approx(value, rel=1e-5)


def test_only_a_part_of_the_outputs_is_held_at_a_time(monkeypatch):
    monkeypatch.setattr(costs, "EXAMPLES", 8)
    monkeypatch.setattr(costs, "BYTES", 2**16)
    nets, seen, judged = decoders(6), [], scoring._judged
    monkeypatch.setattr(
        scoring, "_judged", lambda logits, targets: seen.append(logits.shape) or judged(logits, targets)
    )
    scores = scoring.evaluate(en.stack(nets), sentences())
    assert max(shape[0] * shape[1] for shape in seen) < 6 * 40 / 4
    assert sum(shape[0] * shape[1] for shape in seen) == 6 * 40
    alone = scoring.evaluate(en.stack(nets[4:5]), sentences())
    for name, value in alone.items():
        assert scores[name][4].item() == pytest.approx(value.item(), rel=1e-5)


def test_targets_of_another_shape_than_the_outputs_are_refused():
    inputs, targets = sentences()
    with pytest.raises(ValueError, match=r"outputs \(40, 5, 7\), targets \(40, 4\)"):
        scoring.evaluate(en.stack(decoders()), (inputs, targets[:, 1:]))
    inputs, targets = batch(20)
    with pytest.raises(ValueError, match=r"outputs \(20, 4\), targets \(20, 1\)"):
        scoring.evaluate(en.stack([mlp()]), (inputs, targets.unsqueeze(1)))
