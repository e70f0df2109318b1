import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from cases import batch, convolutional, mlp
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

import mmstudy as mm
from mmstudy.batched.ensemble import classification, regression
from mmstudy.core import results
from mmstudy.core.networks import MLP, count_parameters
from mmstudy.expansion.candidate import Candidate
from mmstudy.ranking import policy, training
from mmstudy.ranking import rows as ranking_rows
from mmstudy.ranking.asked import scores_of, spread_of
from mmstudy.ranking.report import OWN, in_words
from mmstudy.ranking.rows import Row
from mmstudy.ranking.words import spent

STEPS = 40


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def pool(count: int = 6) -> dict[str, Candidate]:
    """Some candidates of a perceptron of two hidden layers, two at least."""
    every = [(way, where) for where in ("hidden.0", "hidden.1") for way in ("net2net", "zero_outgoing", "random")]
    return {f"{way} {where}": Candidate(way, (where,), (9,)) for way, where in every[:count]}


def loader(count: int = 80, seed: int = 1) -> DataLoader:
    return DataLoader(TensorDataset(*batch(count, seed)), 16, shuffle=True)


def asked(folder, network=None, **options) -> mm.ranking.report.Ranking:
    network = mlp() if network is None else network
    given = {
        "pool": pool(), "full_steps": STEPS, "optimizer": sgd, "measured_examples": 16, "budget": 0.3,
        "loss_fn": classification, "train_loader": loader(), "validation_loader": loader(40, 2), "say": lambda text: 0,
    } | options  # fmt: skip
    return mm.rank_expansions(network, folder=folder, **given)


def identical(first, second) -> None:
    """The same but for seconds."""
    one, other = (ranking.data.drop_vars(["seconds", "full_seconds"]).drop_attrs() for ranking in (first, second))
    xr.testing.assert_identical(one, other)
    assert first.summary == second.summary


def alike(first, second) -> None:
    """The same but for rounding, and what that does in some steps."""
    one, other = (ranking.data.sortby("candidate") for ranking in (first, second))
    assert (one["candidate"] == other["candidate"]).all()
    assert (one["steps"] == other["steps"]).mean() > 0.7
    np.testing.assert_allclose(one["early_loss"], other["early_loss"], rtol=1e-3)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A ranking, where it lies, and all that was said."""
    folder, said = tmp_path_factory.mktemp("ranking") / "one", []
    return asked(folder, say=said.append), folder, "\n".join(said)


def test_it_says_what_it_will_cost_before_it_trains(ranked):
    ranking, _, said = ranked
    assert "6 candidates, and the network as it is, are trained for 11 of 40 steps: " in said
    assert "% of the steps of training all to the end, looks at validation data included; " in said
    assert said.index("As 3 steps of the smallest and of the largest network tell") < said.index(ranking.summary)


def test_with_the_whole_budget_all_are_said_to_be_trained_to_the_end(tmp_path):
    said: list[str] = []
    asked(tmp_path / "r", budget=1.0, say=said.append)
    assert said[0].startswith("6 candidates, and the network as it is, are trained to the end, for 40 steps: 100.0% of")


def test_the_table_has_all_candidates_and_the_network_itself(ranked):
    ranking, _, _ = ranked
    assert set(ranking.table.index) == {*pool(), OWN}
    own = ranking.data.sel(candidate=OWN)
    assert own["gain"] == own["low"] == own["high"] == 0
    assert (ranking.data["low"] <= ranking.data["high"]).all()
    assert float(ranking.data["chance"].sum()) == pytest.approx(1)
    assert own["parameters"] == count_parameters(mlp())
    assert ranking.data.attrs["share"] <= 0.3
    results.check(ranking.data)
    pace = ranking.table["seconds"] / ranking.table["steps"]
    assert ranking.table["full_seconds"].values == pytest.approx((STEPS * pace).values)
    assert (ranking.table["full_seconds"] >= ranking.table["seconds"]).all()


def test_without_anchors_the_first_is_the_first_of_the_order(ranked):
    ranking, _, _ = ranked
    rest = ranking.data.drop_sel(candidate=OWN)
    assert rest["candidate"][0] == rest["candidate"][int(rest["order"].argmax())]


def test_it_reads_well(ranked):
    ranking, _, said = ranked
    assert ranking.summary in said
    assert "interval" in ranking.summary
    assert "probability that it is the best" in ranking.summary
    assert "<table" in ranking._repr_html_()
    assert str(ranking.data["candidate"].values[0]) in str(ranking)


def test_what_more_training_would_tell_counts_only_the_steps_that_are_left(ranked):
    ranking, _, _ = ranked
    left = (STEPS - 11) / STEPS / len(ranking.table)
    assert f"” to the end, {left:.1%} of the pool's steps more, is expected to add" in ranking.summary


@pytest.mark.parametrize("status", ["probed", "trained", "diverged"])
def test_where_the_network_itself_comes_first_it_says_what_the_next_one_gains(ranked, status):
    whole = ranked[0].data
    data = whole.sel(candidate=[OWN, *(label for label in whole["candidate"].values if label != OWN)]).copy(deep=True)
    for name, value in {"gain": -0.02, "low": -0.05, "high": 0.01}.items():
        data[name][1:] = np.nan if status == "diverged" else value
    data["status"] = "candidate", ["probed", *[status] * (data.sizes["candidate"] - 1)]
    first, second, third, *_ = in_words(data).splitlines()
    assert first == "Train the network on as it is: no candidate is expected to end with a higher score."
    label = data["candidate"].values[1]
    assert ("comes next" in in_words(data)) == (status != "diverged")
    if status == "diverged":
        return
    assert second.startswith(f"“{label}”") and "gain" in second and "−0.02" in second and "  " not in second
    assert ("80% interval" in second) == ("That interval holds zero" in third) == (status == "probed")


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training, tmp_path):
    network = convolutional().train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    asked(tmp_path / "r", network, pool=None)
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_same_call_gives_the_same_ranking_at_once(ranked, monkeypatch):
    ranking, folder, _ = ranked

    def timed_only(runs, how, steps, *rest):
        return training.advance(runs, how, steps, *rest) if steps <= 4 else 1 / 0

    monkeypatch.setattr(ranking_rows, "advance", timed_only)
    identical(ranking, asked(folder))


@pytest.mark.parametrize("together", [True, False])
def test_a_larger_budget_goes_on_with_what_there_is(together, tmp_path, monkeypatch):
    if not together:
        monkeypatch.setattr(ranking_rows, "fit", lambda *given: False)
    same = alike if together else identical  # a row that leaves its group at another moment differs in rounding
    asked(tmp_path / "one")
    for budget in (0.9, 1.0):
        same(asked(tmp_path / "one", budget=budget), asked(tmp_path / "fresh", budget=budget))
    assert not list((tmp_path / "one" / "runs").glob("*again*"))


def test_candidates_of_one_shape_train_together(ranked):
    ranking, folder, _ = ranked
    widths = [tuple(name for name in pool() if where in name) for where in ("hidden.0", "hidden.1")]
    assert ranking.rows.groups == (*widths, (OWN,))
    names = [path.name for path in (folder / "runs").glob("*.pt")]
    assert len(names) == 3
    assert sum(name.startswith("group-") for name in names) == 2


def test_the_best_of_a_group_can_be_gone_on_with(ranked):
    ranking, _, _ = ranked
    for label in ranking.rows.candidates:
        best = ranking.best(label)
        assert best.steps == int(ranking.data["steps"].sel(candidate=label))
        inputs, targets = ranking.rows.measured
        score = (best.network.eval()(inputs).argmax(-1) == targets).float().mean()
        assert ranking.data["early_score"].sel(candidate=label) == pytest.approx(score.item())


def test_hooks_on_gradients_run_in_every_training_the_controls_too(tmp_path):
    network = mlp()
    network.head.weight.register_hook(lambda slope: slope * 0)
    ranking = asked(tmp_path, network, pool=pool(3))  # of one shape: without hooks they train together
    assert all(len(group) == 1 for group in ranking.rows.groups)
    for label in (*pool(3), OWN):
        trained, begun = (run.network for run in (ranking.rows.run(label), ranking.rows.start(label)))
        assert torch.equal(trained.head.weight, begun.head.weight)
        assert not torch.equal(trained.head.bias, begun.head.bias)
    network.head.weight._backward_hooks.clear()
    with pytest.raises(ValueError, match="gradient hooks"):
        asked(tmp_path, network, pool=pool(3))


def test_with_the_whole_budget_the_best_is_the_best(tmp_path):
    ranking = asked(tmp_path / "r", budget=1.0)
    data = ranking.data
    assert (data["status"] == "trained").all()
    assert data["final_score"][0] == data["final_score"].max()
    np.testing.assert_allclose(data["gain"], data["final_score"] - data["final_score"].sel(candidate=OWN))
    np.testing.assert_allclose(data["low"], data["high"])
    assert "to the end as well" not in ranking.summary


def test_the_final_score_is_that_of_the_trained_network(tmp_path):
    ranking = asked(tmp_path / "r", budget=1.0, validation_loader=[batch(16, 5)])
    label = str(ranking.data["candidate"].values[0])
    best = ranking.best()
    assert best.label == label
    assert best.steps == STEPS
    inputs, targets = batch(16, 5)
    accuracy = (best.network.eval()(inputs).argmax(-1) == targets).float().mean()
    assert ranking.data["final_score"].sel(candidate=label) == pytest.approx(accuracy.item())


def test_the_optimizers_state_is_carried_along(tmp_path):
    network = mlp()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        classification(network, batch(16, seed)).backward()
        optimizer.step()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ranking = asked(tmp_path / "r", network, optimizer=optimizer)
    best = ranking.best("zero_outgoing hidden.0", trained=False)
    assert best.steps == 0
    kept, old = (opt.state[net.hidden[1].weight]["exp_avg"] for net, opt in
                 ((best.network, best.optimizer), (network, optimizer)))  # fmt: skip
    torch.testing.assert_close(kept[:, : old.shape[1]], old)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_pool_of_its_own_is_found_for_a_network_that_nobody_here_wrote(tmp_path):
    said: list[str] = []
    ranking = asked(tmp_path / "r", convolutional(), pool=None, say=said.append)
    assert said[0].startswith("What can grow:\n")
    assert len(ranking.table) > 6


def test_regression_is_ranked_by_its_loss(tmp_path):
    inputs, _ = batch(80)
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 16)
    network = MLP(7, (6, 4), 1)
    ranking = asked(
        tmp_path / "r", network, loss_fn=regression, train_loader=data, validation_loader=data, budget=1.0,
        measured_examples=80, optimizer=lambda p: torch.optim.AdamW(p, 1e-3),
    )  # fmt: skip
    assert ranking.data.attrs["score"] == "validation loss, turned round"
    loss = regression(ranking.best().network.eval(), (inputs, inputs.sum(1, keepdim=True)))
    assert ranking.data["final_score"][0] == pytest.approx(-loss.item(), rel=1e-5)


def test_a_metric_of_ones_own_decides(tmp_path):
    ranking = asked(tmp_path / "r", metric=lambda model, b: -classification(model, b), budget=1.0)
    assert ranking.data.attrs["score"] == "metric"
    assert (ranking.data["final_score"] < 0).all()


def own_loop(network, state, steps, seed):
    """As Lightning or a Trainer would be wrapped: any optimizer, its state handed back."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    if state is not None:
        optimizer.load_state_dict(state)
    random = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(classification(network, batch(16, int(torch.randint(9, (), generator=random)))))
        losses[-1].backward()
        optimizer.step()
    return network, losses, optimizer.state_dict()


def test_a_loop_of_ones_own_trains(tmp_path):
    ranking = asked(tmp_path / "r", optimizer=None, train=own_loop, budget=0.9)
    assert "trained" in ranking.data["status"]
    assert ranking.best().optimizer is None


def seeded_loop(network, state, steps, seed):
    """Its i-th batch is drawn by seed + i."""
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.1), []
    for i in range(steps):
        optimizer.zero_grad()
        losses.append(classification(network, batch(16, (seed + i) % 23)))
        losses[-1].backward()
        optimizer.step()
    return network, losses


def test_a_loop_seeded_step_by_step_goes_on_as_if_it_had_not_stopped(tmp_path):
    seeds = set()

    def noted(network, state, steps, seed):
        seeds.add(seed)
        return seeded_loop(network, state, steps, seed)

    options = {"optimizer": None, "train": noted}
    assert set(asked(tmp_path / "one", budget=0.4, **options).data["status"].values) == {"probed"}
    identical(asked(tmp_path / "one", budget=1.0, **options), asked(tmp_path / "fresh", budget=1.0, **options))
    assert seeds >= {0, 2, 15}  # steps behind it: none, the probe, and what the smaller budget allowed


@pytest.mark.parametrize("option", [{"clip": 1.0}, {"accumulate": 2}, {"autocast": torch.bfloat16}, {"schedule": sgd}])
def test_what_a_loop_of_ones_own_would_not_use_is_refused(option, tmp_path):
    with pytest.raises(ValueError, match=f"train= trains in its own way: leave out {next(iter(option))}, and"):
        asked(tmp_path / "r", optimizer=None, train=own_loop, **option)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_mixed_precision_trains_and_is_not_measured_in(accumulate, tmp_path):
    ranking = asked(tmp_path / "r", autocast=torch.bfloat16, accumulate=accumulate, budget=1.0, clip=1.0)
    assert all(p.dtype == torch.float32 for p in ranking.best().network.parameters())
    assert np.isfinite(ranking.data["final_score"]).all()


def test_a_candidate_that_diverges_is_last_and_says_so(tmp_path):
    def fails(model, b):
        hidden = sum(p.numel() for p in getattr(model, "module", model).parameters()) if isinstance(model, nn.Module) \
            else 0  # fmt: skip
        loss = classification(model, b)
        return loss * torch.inf if torch.is_grad_enabled() and hidden == widened else loss

    widened = count_parameters(pool()["random hidden.1"].expand(mlp(), batch()))
    ranking = asked(tmp_path / "r", loss_fn=fails, budget=1.0)
    status = ranking.data["status"]
    assert (status.values[-3:] == "diverged").all()
    assert (status.values[:-3] == "trained").all()
    assert np.isnan(ranking.data["final_score"][-1])
    assert np.isnan(ranking.data["gain"][-3:]).all()
    assert (ranking.data["chance"][-3:] == 0).all()


def test_one_training_that_explodes_leaves_the_expected_gains_of_the_others(tmp_path):
    score = np.array([-0.71, -0.75, -0.73, -25.4, np.nan])
    assert spread_of(score) == np.std(score[:3])
    assert spread_of(score[:3]) == np.std(score[:3])
    assert spread_of(np.array([0.5, 0.5, 0.5, 0.4])) > 0  # half of them equal: none is left out


@pytest.mark.parametrize("budget", [0.3, 0.9])
def test_equal_early_scores_tell_nothing_and_it_says_so(budget, tmp_path):
    ranking = asked(tmp_path, metric=lambda model, b: (model(b[0]) < torch.inf).float().mean(), budget=budget)
    data, words = ranking.data, ranking.summary
    probed = data["status"] == "probed"
    assert bool(probed.any())
    assert np.isnan(data[["gain", "low", "high", "chance"]].isel(candidate=probed.values).to_array()).all()
    assert "The early scores tell nothing" in words
    assert "agree in this pool is unknown" in words
    assert "probability" not in words
    assert "expected to" not in words
    if budget == 0.3:
        assert ranking.best().label == OWN
    else:
        assert "trained to the end has a higher score" in words or "its score gains 0 over" in words


def test_who_is_best_more_often_and_is_not_taken_is_explained(ranked):
    data = ranked[0].data.copy(deep=True)
    data["chance"][:2] = [0.1, 0.12]
    data["gain"][:2] = [0.2, 0.1]
    first, second = data["candidate"].values[:2]
    data["chance"][2:] = 0.0
    explained = (
        f"“{first}” has the higher expected gain; “{second}” is less certain, so that it is the best more often."
    )
    assert explained in in_words(data)
    data["chance"][:2] = [0.12, 0.1]
    assert "more often" not in in_words(data)


def test_a_flag_is_said_in_two_digits(ranked):
    data = ranked[0].data.copy()
    data.attrs["flag"] = -0.0909
    assert "hardly agree in this pool (ρ = −0.09)" in in_words(data)


@pytest.mark.parametrize(
    ("flag", "said"), [(-0.9, "may mean noisy labels"), (0.2, f"so do {policy.chance_of(0.2, 6):.0%} of pools of 6")]
)
def test_noisy_labels_are_suspected_only_where_chance_does_not_explain_it(flag, said, ranked):
    data = ranked[0].data.copy()
    data.attrs["flag"] = flag
    assert said in in_words(data)
    assert ("noisy labels" in in_words(data)) == (flag < 0)
    warning = "Do not trust the order of those that were not trained to the end."
    assert warning in in_words(data)
    data["status"] = "candidate", ["trained"] * data.sizes["candidate"]
    assert warning not in in_words(data)


def test_where_the_network_itself_comes_first_among_the_trained_an_open_one_may_be_expected_above_it(ranked):
    data = ranked[0].data.copy(deep=True)
    data = data.sel(candidate=[OWN, *(label for label in data["candidate"].values if label != OWN)])
    data["status"] = "candidate", ["trained", *["probed"] * (data.sizes["candidate"] - 1)]
    for gain, who in ((0.01, "that was trained to the end has"), (-0.01, "is expected to end with")):
        data["gain"] = "candidate", [0.0, *[gain] * (data.sizes["candidate"] - 1)]
        assert in_words(data).startswith(f"Train the network on as it is: no candidate {who} a higher score.")


@pytest.mark.parametrize("budget", [0.3, 0.9, 1.0])
def test_where_the_network_itself_diverges_no_gain_over_it_is_known(budget, tmp_path):
    def fails(model, b):
        size = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
        loss = classification(model, b)
        return loss * torch.inf if torch.is_grad_enabled() and size == own else loss

    own = count_parameters(mlp())
    ranking = asked(tmp_path / "r", loss_fn=fails, budget=budget)
    data, words = ranking.data, ranking.summary
    assert data["status"].sel(candidate=OWN) == "diverged"
    assert np.isnan(data[["gain", "low", "high"]].to_array()).all()
    assert "The network itself, trained on as it is, diverged: no gain over it is known." in words
    assert "over training the network on" not in words
    assert (
        "trained to the end, it has the highest score" if budget > 0.3 else "expected to end with the highest"
    ) in words
    assert "nan" not in words
    assert float(data["chance"].sum()) == pytest.approx(1)
    if budget == 1.0:
        scores = data["final_score"].values[:-1]
        assert (np.diff(scores) <= 0).all()


def test_what_it_took_is_told_in_steps_and_in_operations(tmp_path):
    data = asked(tmp_path / "r", budget=0.9).data
    whole = data["flops"].sum() * STEPS
    assert spent(data, "steps") == pytest.approx(data["steps"].mean().item() / STEPS)
    assert spent(data, "flops") == pytest.approx(((data["flops"] * data["steps"]).sum() / whole).item())
    assert spent(data, "steps") != spent(data, "flops")
    assert f"took {spent(data, 'steps'):.1%} of the steps, and {spent(data, 'flops'):.1%} of the floating" in in_words(
        data
    )


def test_where_every_training_diverges_the_step_size_is_named(tmp_path):
    def fails(model, b):
        return classification(model, b) * (torch.inf if torch.is_grad_enabled() else 1.0)

    with pytest.raises(ValueError, match="every training diverged within 11 steps: give a smaller step size"):
        asked(tmp_path / "r", loss_fn=fails)


def test_a_network_without_a_loss_has_no_score_whatever_its_accuracy(tmp_path):
    def optimizer(parameters):
        return torch.optim.SGD(parameters, 1e30)

    with pytest.raises(ValueError, match=r"every training diverged (within|before its end, ) ?\d+ steps"):
        asked(tmp_path / "r", optimizer=optimizer, budget=1.0, full_steps=1)
    row = Row("a", 1, 0.7, float("nan"), 0.3, 0.0)
    assert row.diverged
    assert scores_of([Row("b", 1, 0.7, 0.7, 0.5, 0.0), row]).tolist() == [0.5, 0.5]


def test_equals_share_the_probability_of_being_the_best(tmp_path):
    ranking = asked(tmp_path / "r", optimizer=lambda parameters: torch.optim.SGD(parameters, 0.0), budget=1.0)
    best = ranking.data["final_score"] == ranking.data["final_score"].max()
    assert ranking.data["chance"].where(best, drop=True).values == pytest.approx(1 / int(best.sum()))


def test_candidates_that_cannot_be_grown_are_named_and_left_out(tmp_path):
    said: list[str] = []
    wrong = pool() | {"too small": Candidate("net2net", ("hidden.0",), (3,))}
    ranking = asked(tmp_path / "r", pool=wrong, say=said.append)
    assert any(line.startswith("left out: too small: ") for line in said)
    assert "too small" not in ranking.table.index


def spoiled(network) -> nn.Module:
    for parameter in network.parameters():
        nn.init.constant_(parameter, math.nan)
    return network


SHIFTED = (batch(16)[0], batch(16)[1] + 9)
WRONG = [
    ({"budget": 0.0}, ValueError, "budget must be a finite number > 0"),
    ({"budget": 1.5}, ValueError, "above 0 and at most 1; got 1.5"),
    ({"budget": 0.001}, ValueError, "give at least budget="),
    ({"full_steps": 0}, ValueError, "full_steps must be at least 1"),
    ({"optimizer": None}, TypeError, "give an optimizer"),
    ({"pool": pool(1)}, ValueError, "at least two candidates"),
    ({"pool": {name: Candidate("net2net", ("hidden.0",), (3,)) for name in "ab"}}, ValueError, "only 0 of 2"),
    ({"train_loader": []}, ValueError, "train_loader gives no batch"),
    ({"validation_loader": []}, ValueError, "validation_loader gives no batch"),
    ({"train_loader": iter([batch()])}, ValueError, "can be read only once"),
    ({"train_loader": batch()[0]}, TypeError, "train_loader must give batches"),
    ({"loss_fn": nn.CrossEntropyLoss()}, TypeError, "loss_fn must be a function"),
    ({"loss_fn": lambda model, b: classification(model, b) * torch.nan}, ValueError, "the loss of MLP on this batch"),
    ({"autocast": torch.float16}, ValueError, "autocast must be torch.bfloat16"),
    ({"clip": -1.0}, ValueError, "clip must be a finite number"),
    ({"accumulate": 0}, ValueError, "accumulate must be at least 1"),
    (
        {"accumulate": 10**400},
        ValueError,
        "accumulate must be .*at most 10000; got a whole number of more",
    ),
    ({"full_steps": 10**400}, ValueError, "full_steps must be at least 1 and at most"),
    ({"clip": 10**400}, ValueError, "clip must be a finite number"),
    ({"train_loader": [(batch(16)[0] * math.nan, batch(16)[1])]}, ValueError, "train_loader: batch has .* NaN"),
    ({"validation_loader": [(batch(16)[0] * math.nan, batch(16)[1])]}, ValueError, "validation_loader: batch has"),
    ({"validation_loader": [SHIFTED]}, ValueError, "validation_loader: targets must lie in 0 … 3"),
    ({"validation_loader": [(*batch(), batch()[1])]}, TypeError, "validation_loader: .* takes .inputs, targets."),
    (
        {"train_loader": [batch(16, 1)] * 3 + [SHIFTED] * 3},
        ValueError,
        "the loss of the network on this batch .* fails",
    ),
    ({"optimizer": lambda p: None}, TypeError, "optimizer must return a torch.optim.Optimizer"),
    ({"optimizer": lambda p: 1 / 0}, ValueError, "optimizer fails when called with the network's parameters: division"),
    ({"optimizer": lambda p: torch.optim.SGD(p, math.nan)}, ValueError, "the optimizer's lr must be a finite number"),
    ({"optimizer": 3}, TypeError, "optimizer must be a torch.optim.Optimizer, or a function"),
    ({"schedule": lambda o: None}, TypeError, "schedule must return one of torch.optim.lr_scheduler.*got None"),
    ({"schedule": lambda o: torch.tensor(1.0)}, TypeError, "schedule must return one of torch.optim.lr_scheduler"),
    ({"schedule": lambda o: 1 / 0}, ValueError, "schedule fails when called with the optimizer: division by zero"),
    ({"schedule": ReduceLROnPlateau}, TypeError, "schedule must step without a number"),
    ({"schedule": 3}, TypeError, "schedule must be a function of an optimizer"),
    (
        {"schedule": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30)},
        ValueError,
        "schedule fails at step 31 of full_steps=40: Tried to step 31 times",
    ),
    ({"optimizer": torch.optim.LBFGS}, ValueError, "a step of the optimizer LBFGS fails: .*closure.*or a loop of your"),
    ({"optimizer": lambda p: torch.optim.SparseAdam(list(p))}, ValueError, "a step of the optimizer SparseAdam fails"),
    (
        {"pool": {OWN: Candidate("random", ("hidden.0",), (9,)), "b": Candidate("lemon", ("hidden.0",), (9,))}},
        ValueError,
        "pool has a candidate “train on”, which is the network itself",
    ),
    (
        {"train": lambda n, s, k, i: (n, [1.0] * k) if spoiled(n) else None},
        ValueError,
        "every training diverged within 11 steps: what train= returned has a loss, its own or on the validation data",
    ),
    ({"metric": 3}, TypeError, "metric must be a function metric"),
    ({"metric": lambda model, b: "a"}, ValueError, "metric must return one finite number, a tensor; got 'a'"),
    ({"metric": lambda model, b: model(b[0])}, ValueError, "metric must return one finite number, a tensor; got float"),
    ({"metric": lambda model, b: 1 / 0}, ValueError, "metric fails when called with .model, batch.: division by zero"),
    ({"pool": list(pool().values())}, TypeError, "pool must be candidates by label"),
    ({"pool": {"a": "lemon", "b": "lemon"}}, TypeError, "pool must be candidates by label.*holds 'lemon'"),
    ({"folder": None}, TypeError, "folder must be the path of a folder"),
    ({"folder": __file__}, ValueError, "folder must be a folder; .* is a file"),
    ({"folder": "/proc/ranking"}, ValueError, "folder /proc/ranking cannot be written"),
    ({"say": None}, TypeError, "say must be a function of a text"),
    ({"train": 3}, TypeError, "train must be a function of .network, optimizer_state, steps, seed."),
    ({"train": lambda network: None}, TypeError, "train must be a function of .*; it takes .network."),
    ({"train": lambda *given: None}, ValueError, "train must return .network, losses."),
    (
        {"train": lambda n, s, k, i: (mlp((9,)), [1.0] * k)},
        ValueError,
        "train must return the network that it was given",
    ),
    ({"loss_fn": lambda m, b: classification(m, b).detach()}, ValueError, "has no gradient: it was detached"),
    ({"network": mlp().to("meta")}, ValueError, "the network is on the meta device"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_bad_input_is_refused_by_name(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        asked(**{"folder": tmp_path / "r"} | options)


def test_a_network_on_two_devices_is_refused(tmp_path):
    network = mlp()
    network.head.to("meta")
    with pytest.raises(ValueError, match="on several devices, cpu, meta"):
        asked(tmp_path / "r", network)


def test_a_loader_that_draws_numbers_of_its_own_is_refused(tmp_path):
    class Own:
        def __iter__(self):
            inputs, targets = batch()
            yield inputs + torch.randn(7, generator=stream), targets

    stream = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="gives other batches at each reading"):
        asked(tmp_path / "r", train_loader=Own())


def test_workers_that_are_kept_are_named_where_they_change_the_order(tmp_path):
    data = TensorDataset(*batch(80))
    options = {"num_workers": 1, "persistent_workers": True}
    with pytest.raises(ValueError, match=r"train_loader gives another order at its first reading .*persistent_workers"):
        asked(tmp_path / "r", train_loader=DataLoader(data, 16, shuffle=True, **options))


def relabelled() -> DataLoader:
    """The examples of `loader`, those of the last batch with other targets."""
    data = loader()
    *_, (last, _) = training.epoch_of(data, 0, 0)
    inputs, targets = data.dataset.tensors
    in_it = (inputs[:, None] == last).all(-1).any(1)
    return DataLoader(TensorDataset(inputs, torch.where(in_it, 3 - targets, targets)), 16, shuffle=True)


def frozen() -> nn.Module:
    network = mlp()
    network.hidden[0].requires_grad_(False)
    return network


CHANGED = {
    "network": {"network": mlp(seed=3)},
    "network, of which a layer is frozen": {"network": frozen()},
    "pool": {"pool": pool(5)},
    "loader": {"train_loader": loader(80, 7)},
    "loader, of which some targets": {"train_loader": relabelled()},
    "validation data": {"validation_loader": loader(40, 7)},
    "optimizer": {"optimizer": lambda p: torch.optim.SGD(p, 0.2, momentum=0.9)},
    "loss_fn": {"loss_fn": lambda model, b: 2 * classification(model, b)},
    "seed": {"seed": 1},
    "full_steps": {"full_steps": 60},
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_folder_of_another_ranking_is_refused(name, ranked):
    _, folder, _ = ranked
    with pytest.raises(ValueError, match=rf"holds another ranking: .*{name.split(',')[0]}.*Give a new folder"):
        asked(folder, **CHANGED[name])


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"no settings\.json"):
        asked(tmp_path)


def test_broken_settings_are_named(ranked, tmp_path):
    (tmp_path / "settings.json").write_text("{half")
    with pytest.raises(ValueError, match=r"settings\.json cannot be read"):
        asked(tmp_path)


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import test_ranking
from mmstudy.ranking import policy, training
training.KEEP_EVERY = 0.0
print("ready", flush=True)
test_ranking.asked({folder!r}, budget=0.9)
"""


def test_killed_at_any_moment_the_same_call_gives_the_same_ranking(tmp_path):
    whole = asked(tmp_path / "whole", budget=0.9)
    here, folder = Path(__file__).parent, tmp_path / "killed"
    code = KILLED.format(tests=str(here.parent), here=str(here), folder=str(folder))
    for seconds in (0.2, 0.6, 1.0):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        threading.Timer(seconds, lambda process=process: os.kill(process.pid, signal.SIGKILL)).start()
        process.wait()
    identical(whole, asked(folder, budget=0.9))
    assert json.loads((folder / "settings.json").read_text())
