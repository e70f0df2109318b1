"""The words of the abstract follow the numbers: they turn when the numbers turn."""

import re

import numpy as np
import pytest
import xarray as xr

from mmstudy.study import abstract, choices

TASKS = [f"t{i}" for i in range(8)]
FAMILY = ["MLP"] * 5 + ["ViT"] * 3
FINAL = (choices.RELATION, *choices.RELATION_RIVALS, "validation_accuracy @100%")
EARLY = (choices.HEADLINE, "parameters", choices.RIVAL, choices.VALIDATION_RIVAL, choices.COMBINED)
POLICIES = {"largest": (3.0, 0.02), "rank by size": (2.0, 0.12), "i-Epoch, 10%": (2.5, 0.12), "train all": (0.5, 1.0),
            "anchored size": (1.5, 0.15), "anchored loss, 5%": (0.6, 0.12)}  # fmt: skip


def scores(means: dict[str, float]) -> xr.Dataset:
    """Correlations that vary a little from task to task about these means, and are not all moved alike."""
    noise = 0.02 * np.random.default_rng(0).normal(size=(len(TASKS), len(means)))
    coords = {"task": TASKS, "predictor": list(means), "architecture": ("task", FAMILY), "part": ("task", PARTS)}
    rho = xr.DataArray(np.array(list(means.values())) + noise - noise.mean(0), coords, ("task", "predictor"))
    partial = rho.expand_dims(given=["parameters", "training loss", "centre loss"])
    forms = {"kind": ["children", "random"], "level": ["median", "own"], "form": ["multiple"], "margin": [0.1]}
    extent = rho.isel(predictor=0, drop=True).expand_dims(forms)
    found = xr.Dataset({"spearman": rho, "partial": partial, "extent": extent})
    return found.assign_coords(cost=("predictor", [0.1] * len(means)))


PARTS = ["confirmation"] * len(TASKS)


def written(final: tuple[float, ...], early: tuple[float, ...], policies=POLICIES, lead: float = 1.0) -> str:
    tasks = {"task": TASKS, "part": ("task", PARTS)}
    regret, total = (np.tile(list(column), (len(TASKS), 1)).T for column in zip(*policies.values(), strict=True))
    middle = np.random.default_rng(1).normal(lead, 0.1, (len(TASKS), 2, 2))
    choice = xr.Dataset(
        {
            "regret": (("policy", "task"), regret),
            "total": (("policy", "task"), total),
            "spearman": (("policy", "task"), 0.4 + 0 * regret),
            "middle": (("task", "reference", "budget"), middle),
            "upper": (("task", "reference", "budget"), middle + 1),
        },
        tasks
        | {
            "policy": list(policies),
            "reference": [abstract.BASE, abstract.SCRATCH],
            "budget": ["equal steps", "equal flops"],
        },
    )
    return abstract.written(
        scores(dict(zip(FINAL, (*final, 0.8), strict=True))), scores(dict(zip(EARLY, early, strict=True))), choice
    )


@pytest.mark.parametrize(
    ("final", "said"),
    [
        (
            (0.7, 0.3, 0.2),
            r"closely related to .* It beats the final training loss and the parameter count: .* baselines holds\.",
        ),
        (
            (0.5, 0.7, 0.2),
            "moderately related .* It beats the parameter count but does worse than the final training loss: "
            "the claim .* holds for one of the two",
        ),
        ((0.3, 0.3, 0.2), "weakly related .* beats the parameter count but is not shown to beat the final training"),
        ((0.3, 0.3, 0.3), "is not shown to beat the final training loss or the parameter count: .* is not confirmed"),
        ((0.3, 0.5, 0.3), "worse than the final .* and is not shown to beat the parameter count: .* does not hold"),
        ((0.3, 0.5, 0.5), "It does worse than the final training loss and the parameter count: .* does not hold"),
        ((-0.3, 0.3, 0.2), "not shown to be related"),
    ],
)  # fmt: skip
def test_the_first_sentence_follows_the_relation(final, said):
    assert re.search(said, written(final, (0.3, 0.3, 0.3, 0.3, 0.3)).replace("\n", " "))


@pytest.mark.parametrize(
    ("count", "validation", "said"),
    [
        (0.2, 0.7, "orders the candidates better than the parameter count but orders the candidates worse than early"),
        (0.5, 0.5, "is not shown to order the candidates better than the parameter count or early validation"),
        (0.2, 0.2, "orders the candidates better than the parameter count and early validation accuracy."),
    ],
)
def test_the_second_sentence_follows_the_early_scores(count, validation, said):
    text = written((0.3, 0.3, 0.2), (0.5, count, 0.3, validation, 0.3))
    assert f"(2) Measured early, size {said}" in text


def test_each_early_score_comes_with_its_cost():
    assert written((0.3, 0.3, 0.2), (0.3,) * 5).count("for 10%") == 4


@pytest.mark.parametrize(
    ("regret", "best", "second"), [(0.6, "anchored loss, 5%", "rank by size"), (2.8, "rank by size", "i-Epoch, 10%")]
)
def test_the_best_policy_is_the_best_that_can_be_afforded(regret, best, second):
    text = written((0.3, 0.3, 0.2), (0.3,) * 5, POLICIES | {"anchored loss, 5%": (regret, 0.12)})
    assert f"“{best}” (12%) has the lowest regret here: it loses {min(regret, 2.0):.1f} points [" in text
    assert f"; “{second}” (12%) loses" in text


def test_whether_the_best_policy_is_better_than_the_next_is_tested():
    policies = {name: (regret, 0.1) for name, (regret, _) in POLICIES.items()}
    means = np.array([regret for regret, _ in policies.values()])[:, None]
    scattered = means + np.random.default_rng(0).normal(0, 1, (len(policies), len(TASKS)))
    close = xr.DataArray(
        scattered - scattered.mean(1, keepdims=True) + means, {"policy": list(policies), "task": TASKS}
    )
    total = xr.DataArray([0.1] * len(policies), {"policy": list(policies)}, "policy")
    assert ", not shown to be more; the largest" in abstract._best(close, total)
    apart = close * 0.01 + xr.DataArray(means[:, 0], {"policy": list(policies)}, "policy")
    assert ", more; the largest" in abstract._best(apart, total)


@pytest.mark.parametrize(
    ("lead", "said"), [(1.0, "gains more than"), (-1.0, "gains less than"), (0.0, "is not shown to gain more than")]
)
def test_whether_expanding_is_worth_it_follows_the_leads(lead, said):
    text = written((0.3, 0.3, 0.2), (0.3,) * 5, lead=lead)
    assert f"the middle expansion {said} the small network itself, trained on." in text


def test_each_family_has_a_row_of_its_own_means():
    text = written((0.3, 0.3, 0.2), (0.3,) * 5)
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if "| +0." in line}
    assert rows["MLP"] == "5" and rows["ViT"] == "3"


def test_pilot_tasks_confirm_nothing(monkeypatch):
    monkeypatch.setattr("test_abstract.PARTS", ["pilot"] * len(TASKS))
    with pytest.raises(ValueError, match="no confirmation task"):
        written((0.3, 0.3, 0.2), (0.3,) * 5)
