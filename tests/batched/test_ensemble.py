import copy

import numpy as np
import pytest
import torch
from cases import batch, convolutional, mlp
from sklearn import metrics
from torch import nn

from mmstudy.batched import costs, scoring, training
from mmstudy.batched import ensemble as en
from mmstudy.core.seeds import generator, seed_of

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def networks(count=5):
    return [mlp(seed=i) for i in range(count)]


def test_losses_and_outputs_are_those_of_the_single_networks(monkeypatch):
    inputs, targets = batch(101)
    nets = networks()
    stacked = en.stack(nets)
    monkeypatch.setattr(costs, "EXAMPLES", 32)  # several ragged chunks
    each = torch.stack([nn.functional.cross_entropy(net(inputs), targets) for net in nets]).double()
    torch.testing.assert_close(en.losses(stacked, (inputs, targets)), each.detach(), **CLOSE)
    torch.testing.assert_close(en.outputs(stacked, inputs), torch.stack([n(inputs).detach() for n in nets]), **CLOSE)


@pytest.mark.parametrize(
    "schedule", ["constant", "cosine", "one step size for each network", "one cosine for each network"]
)
def test_training_is_that_of_a_plain_loop(schedule):
    inputs, targets = batch(40)
    nets, steps = networks(3), 12
    order = training.minibatches([generator("order", i) for i in range(3)], 40, steps, 8)
    sizes = {
        "constant": training.constant(0.1, steps),
        "cosine": training.cosine(0.1, steps),
        "one step size for each network": torch.tensor([0.05, 0.1, 0.2]).expand(steps, 3),
        "one cosine for each network": torch.stack([training.cosine(s, steps) for s in (0.05, 0.1, 0.2)], dim=1),
    }[schedule]
    trained = {
        step: (now, seen)
        for step, now, seen in training.train(en.stack(nets), (inputs, targets), order, sizes, 0.9, [5])
    }
    assert list(trained) == [5, steps]
    for k, net in enumerate(copy.deepcopy(nets)):
        optimizer, losses = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9), []
        # torch's velocity does not hold the step size, so it may change on the way
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = float(sizes[step] if sizes.ndim == 1 else sizes[step, k])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs[order[k, step]]), targets[order[k, step]])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step + 1 in trained:
                point = nn.utils.parameters_to_vector(net.parameters()).detach()
                torch.testing.assert_close(en.vectors(trained[step + 1][0])[k], point, rtol=1e-4, atol=1e-6)
        seen = torch.cat([trained[5][1][k], trained[steps][1][k]])
        torch.testing.assert_close(seen, torch.tensor(losses), **CLOSE)


def test_training_leaves_its_start_as_it_was():
    inputs, targets = batch(16)
    start = en.stack(networks(2))
    before = en.vectors(start).clone()
    order = training.minibatches([generator(0), generator(1)], 16, 3, 8)
    ((_, after, _),) = training.train(start, (inputs, targets), order, training.constant(0.1, 3))
    assert torch.equal(en.vectors(start), before)
    assert not torch.equal(en.vectors(after), before)


def test_any_module_goes_in_with_its_buffers():
    inputs, targets = batch(64)
    nets = [convolutional(seed) for seed in range(3)]
    stacked = en.stack(nets)
    order = training.minibatches([generator(i) for i in range(3)], 64, 60, 16)
    ((_, trained, seen),) = training.train(stacked, (inputs, targets), order, training.constant(0.1, 60))
    assert seen[:, -10:].mean() < seen[:, :10].mean()
    assert (trained.buffers["2.num_batches_tracked"] == 60).all()
    assert (stacked.buffers["2.num_batches_tracked"] == 0).all()
    single = copy.deepcopy(nets[1]).eval()
    single.load_state_dict({n: t[1] for n, t in (trained.parameters | trained.buffers).items()})
    torch.testing.assert_close(en.outputs(trained, inputs)[1], single(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_vectors_and_at_are_inverse():
    stacked = en.stack(networks())
    points = en.vectors(stacked)
    assert torch.equal(points[2], nn.utils.parameters_to_vector(mlp(seed=2).parameters()).detach())
    assert torch.equal(en.vectors(en.at(stacked, points)), points)
    assert len(en.at(stacked, points.expand(3, 5, -1))) == 15
    with pytest.raises(ValueError, match=f"dimension 3, but the network has {points.shape[1]}"):
        en.at(stacked, torch.zeros(2, 3))


def test_an_index_may_repeat_and_gives_a_copy():
    stacked = en.stack(networks(2))
    twice = stacked[torch.tensor([1, 1, 0])]
    assert len(twice) == 3
    twice.parameters["head.bias"].zero_()
    assert stacked.parameters["head.bias"].abs().min() > 0


def test_an_epoch_is_a_permutation_and_the_same_seed_the_same_order():
    order = training.minibatches([generator("a"), generator("b")], 20, 9, 6)  # 3 batches an epoch, 2 examples left out
    assert order.shape == (2, 9, 6)
    for epoch in order.view(2, 3, 18).unbind(1):
        assert all(len(set(row.tolist())) == 18 for row in epoch)
    assert torch.equal(order[:1], training.minibatches([generator("a")], 20, 9, 6))
    assert not torch.equal(order[0], order[1])
    with pytest.raises(ValueError, match="batch of 21 does not fit into 20"):
        training.minibatches([generator(0)], 20, 1, 21)


def test_seeds_are_stable_and_apart():
    assert seed_of("a", 1) == seed_of("a", 1) == 4742018630964328543  # the same on every machine
    assert len({seed_of("ab", "c"), seed_of("a", "bc"), seed_of("abc"), seed_of("a", "b", "c")}) == 4


def test_evaluation_against_the_obvious():
    inputs, targets = batch(200)
    nets = networks(4)
    scores = scoring.evaluate(en.stack(nets), (inputs, targets))
    for k, net in enumerate(nets):
        p = net(inputs).detach().double().softmax(-1).numpy()
        guess, confidence = p.argmax(1), p.max(1)
        ece = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                right = (guess == targets.numpy())[inside].mean()
                ece += inside.mean() * abs(right - confidence[inside].mean())
        assert scores["accuracy"][k] == pytest.approx((guess == targets.numpy()).mean())
        assert scores["nll"][k] == pytest.approx(-np.log(p[np.arange(200), targets.numpy()]).mean(), rel=1e-5)
        assert scores["ece"][k] == pytest.approx(ece, rel=1e-5)


def test_networks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"network 1 is another network.*\(4, 6\) against.*\(5, 6\)"):
        en.stack([mlp((6, 4)), mlp((6, 5))])
    with pytest.raises(ValueError, match="at least one network"):
        en.stack([])


def normalized(seed=0) -> nn.Module:
    """Convolution and normalization, nothing random: a plain loop can follow it exactly."""
    return nn.Sequential(*(layer for layer in convolutional(seed) if not isinstance(layer, nn.Dropout)))


def test_running_statistics_are_those_of_a_plain_loop():
    inputs, targets = batch(48)
    nets = [normalized(seed) for seed in range(3)]
    order = training.minibatches([generator("order", i) for i in range(3)], 48, 7, 12)
    ((_, trained, _),) = training.train(en.stack(nets), (inputs, targets), order, training.constant(0.05, 7))
    for k, net in enumerate(copy.deepcopy(nets)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for some in order[k]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[some]), targets[some]).backward()
            optimizer.step()
        for name, value in net.state_dict().items():
            now = (trained.parameters | trained.buffers)[name][k]
            torch.testing.assert_close(now, value, rtol=1e-4, atol=1e-6)
        expected = net.eval()(inputs).detach()
        torch.testing.assert_close(en.outputs(trained, inputs)[k], expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_in_training_alone_and_each_network_has_its_own():
    inputs, targets = batch(16)
    same = en.stack([convolutional(0)] * 3)
    first, second = en.outputs(same, inputs), en.outputs(same, inputs)
    assert torch.equal(first, second)
    order = training.minibatches([generator("same")] * 3, 16, 1, 16)[:1].expand(3, -1, -1)
    torch.manual_seed(0)
    ((_, _, seen),) = training.train(same, (inputs, targets), order, training.constant(0.1, 1))
    assert len(set(seen[:, 0].tolist())) == 3


def test_what_the_caller_does_at_a_milestone_does_not_change_the_training():
    inputs, targets = batch(32)
    order = training.minibatches([generator(i) for i in range(2)], 32, 6, 8)

    def last(at_milestone) -> torch.Tensor:
        start = en.stack([normalized(0), normalized(1)])
        for step, now, _ in training.train(start, (inputs, targets), order, training.constant(0.1, 6), 0.9, range(6)):
            if step < 6:
                at_milestone(now)
        return torch.cat([en.vectors(now), now.buffers["2.running_mean"]], dim=1)

    def spoil(now: en.Ensemble) -> None:
        scoring.evaluate(now, (inputs, targets))  # switches to evaluation mode
        for tensor in (*now.parameters.values(), *now.buffers.values()):
            tensor.zero_()

    assert torch.equal(last(spoil), last(lambda now: None))


def test_the_yielded_losses_leave_out_none_and_repeat_none():
    inputs, targets = batch(32)
    order = training.minibatches([generator(i) for i in range(2)], 32, 9, 8)
    runs = {}
    for marks in ((), (2, 3, 9), range(1, 10), (100,)):
        reports = list(
            training.train(en.stack(networks(2)), (inputs, targets), order, training.constant(0.1, 9), milestones=marks)
        )
        assert [step for step, _, _ in reports] == sorted({m for m in marks if m <= 9} | {9})
        runs[str(marks)] = torch.cat([seen for _, _, seen in reports], dim=1)
    first, *others = runs.values()
    assert first.shape == (2, 9)
    assert all(torch.equal(first, other) for other in others)


def test_schedules_are_their_formulas():
    steps = np.arange(8)
    assert training.constant(0.3, 8).numpy() == pytest.approx(np.full(8, 0.3))
    assert training.cosine(0.3, 8).numpy() == pytest.approx(0.15 * (1 + np.cos(np.pi * steps / 8)), abs=1e-6)
    assert training.cosine(0.3, 8)[0] == pytest.approx(0.3)


def test_other_losses_go_in():
    inputs, _ = batch(20)
    targets = torch.randn(20, 4, generator=generator("targets"))
    nets = networks(3)
    each = torch.stack([nn.functional.mse_loss(net(inputs), targets) for net in nets]).detach().double()
    torch.testing.assert_close(en.losses(en.stack(nets), (inputs, targets), en.regression), each, **CLOSE)
    by_name = en.losses(
        en.stack(nets), {"x": inputs, "y": targets}, lambda model, some: en.regression(model, (some["x"], some["y"]))
    )
    torch.testing.assert_close(by_name, each, **CLOSE)


def test_evaluation_does_not_depend_on_its_chunks_and_agrees_with_scikit_learn(monkeypatch):
    inputs, targets = batch(101)
    nets = networks(3)
    stacked = en.stack(nets)
    whole = scoring.evaluate(stacked, (inputs, targets))
    monkeypatch.setattr(costs, "EXAMPLES", 17)
    chunked = scoring.evaluate(stacked, (inputs, targets))
    for name, values in whole.items():
        torch.testing.assert_close(values, chunked[name], rtol=1e-6, atol=1e-9)
    for k, net in enumerate(nets):
        p = net(inputs).detach().double().softmax(-1).numpy()
        assert whole["accuracy"][k] == pytest.approx(metrics.accuracy_score(targets, p.argmax(1)))
        assert whole["nll"][k] == pytest.approx(metrics.log_loss(targets, p, labels=range(4)), rel=1e-5)


def test_evaluation_of_the_sure_the_unsure_and_the_broken():
    class Fixed(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits))

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    sure, unsure, broken = [200.0, 0, 0, 0], [0.0, 0, 0, 0], [torch.nan, 0, 0, 0]
    examples = torch.zeros(4, 1), torch.tensor([0, 0, 0, 1])
    scores = scoring.evaluate(en.stack([Fixed(logits) for logits in (sure, unsure, broken)]), examples)
    assert scores["accuracy"][:2].tolist() == pytest.approx([0.75, 0.75])
    assert scores["nll"][:2].tolist() == pytest.approx([200 / 4, np.log(4)])
    assert scores["ece"][:2].tolist() == pytest.approx([0.25, 0.5])  # |0.75 − 1| and |0.75 − 0.25|
    assert all(values[2].isnan() for values in scores.values())


def test_joined_ensembles_keep_their_order():
    nets = networks(5)
    joined = en.concatenate([en.stack(nets[:2]), en.stack(nets[2:])])
    assert torch.equal(en.vectors(joined), en.vectors(en.stack(nets)))


def test_a_stack_is_a_copy():
    net = mlp()
    stacked = en.stack([net])
    stacked.parameters["head.bias"].zero_()
    assert net.head.bias.abs().min() > 0


@pytest.mark.parametrize("large_call", [0, costs.LARGE_CALL])
def test_losses_of_single_examples_are_those_of_batches_of_one(large_call, monkeypatch):
    monkeypatch.setattr(costs, "LARGE_CALL", large_call)
    monkeypatch.setattr(costs, "EXAMPLES", 7)
    nets, (inputs, targets) = networks(3), batch(20)
    found = scoring.example_losses(en.stack(nets), (inputs, targets))
    one = [
        [nn.functional.cross_entropy(net(inputs[i : i + 1]), targets[i : i + 1]).item() for i in range(20)]
        for net in nets
    ]
    np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean(1), en.losses(en.stack(nets), (inputs, targets)), **CLOSE)


def test_as_many_examples_as_the_error_asks_for():
    """Two networks whose losses differ by N(0, 0.3²) for each example, and share far larger differences."""
    draw = torch.randn(3, 100_000, generator=generator("pairs"), dtype=torch.float64)
    one, two = 5 * draw[0] + 0.3 * draw[1], 5 * draw[0]
    difference = (one - two).unsqueeze(0)
    assert scoring.examples_for(0.01, difference) == pytest.approx(900, rel=0.02)
    assert scoring.examples_for(0.02, difference) == pytest.approx(225, rel=0.02)
    assert scoring.examples_for(10.0, difference) == 1
    pairs = torch.stack([one - two, one + 0.6 * draw[2] - two])  # 0.3² and 0.3² + 0.6²: the mean square counts
    assert scoring.examples_for(0.01, pairs) == pytest.approx(2700, rel=0.02)


@pytest.mark.parametrize(
    ("error", "differences"),
    [
        (0.0, torch.zeros(2, 9)),
        (0.1, torch.zeros(0, 9)),
        (0.1, torch.zeros(2, 1)),
        (0.1, torch.full((2, 9), torch.nan)),
    ],
)
def test_an_error_that_no_number_of_examples_gives_is_refused(error, differences):
    with pytest.raises(ValueError, match="needs an error > 0, and finite differences of a pair of networks on ≥ 2"):
        scoring.examples_for(error, differences)


def test_frozen_parameters_are_no_dimensions_and_stay():
    nets = networks(3)
    for net in nets:
        net.hidden[0].weight.requires_grad_(False)
    stacked, (inputs, targets) = en.stack(nets), batch(40)
    frozen = nets[0].hidden[0].weight.numel()
    assert en.vectors(stacked).shape[1] == sum(p.numel() for p in nets[0].parameters()) - frozen
    each = torch.stack([nn.functional.cross_entropy(net(inputs), targets) for net in nets]).detach().double()
    torch.testing.assert_close(en.losses(stacked, (inputs, targets)), each, **CLOSE)
    order = training.minibatches([generator("frozen", i) for i in range(3)], 40, 60, 8)
    ((_, trained, _),) = training.train(stacked, (inputs, targets), order, training.constant(0.1, 60))
    for name, tensor in trained.buffers.items():
        torch.testing.assert_close(tensor, stacked.buffers[name], rtol=0, atol=0)
    assert not torch.equal(en.vectors(trained), en.vectors(stacked))
    nets[1].hidden[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"network 1 .*weight \(6, 7\) frozen against hidden\.0\.weight \(6, 7\)"):
        en.stack(nets)
    with pytest.raises(ValueError, match="no parameter to train: MLP; call requires_grad_"):
        en.stack([net.requires_grad_(False) for net in nets])
