"""The study's abstract: sentences whose every number and verdict is computed.

    python -m mmstudy.study.abstract README.md outputs/reference/summary.md

puts it into the README, between the marks that stand there.
"""

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from mmstudy.study import choices, intervals
from mmstudy.study.predictors import PREDICTORS
from mmstudy.study.summaries import BASE
from mmstudy.study.wording import interval, mean, number, pair, points, signed, tested, verdict

LOSS, COUNT, ACCURACY = "final training loss", "parameter count", "validation_accuracy @100%"
EARLY = (choices.HEADLINE, choices.RIVAL, choices.VALIDATION_RIVAL, choices.COMBINED)
ANCHORED = ("anchored size", "anchored loss, 5%")
FREE = ("parameters", "flops", "loss")  # no statistics that others have proposed
SCRATCH = "scratch"
BEGIN, END = "<!-- answer -->\n", "<!-- end of the answer -->\n"


def written(relation: xr.Dataset, prediction: xr.Dataset, choice: xr.Dataset) -> str:
    """The abstract in Markdown, of the results of the three notebooks that look at the confirmation tasks.

    Raises:
        ValueError: there is no confirmation task.
    """
    relation, prediction, choice = (_confirmed(each) for each in (relation, prediction, choice))
    choice = choice.sel(task=relation["task"].values)  # intervals draw tasks by their place: one order for all
    tasks = relation.sizes["task"]
    families = ", ".join(f"{n} {name}" for name, n in _counts(relation["architecture"]).items())
    return (
        "\n\n".join(
            [
                f"*{tasks} confirmation tasks ({families}); means over tasks, 95% intervals.*",
                _short(relation["spearman"], prediction["spearman"], choice),
                _relation(relation),
                _prediction(prediction),
                _choice(choice),
                _by_family(relation, prediction),
                _goals(relation, prediction, choice),
            ]
        )
        + "\n"
    )


def inserted(readme: str, text: str) -> str:
    """The README with this text between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}, once each")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}"


def _confirmed(dataset: xr.Dataset) -> xr.Dataset:
    inside = (dataset["part"] == "confirmation").values
    if not inside.any():
        raise ValueError("there is no confirmation task, and pilot tasks confirm nothing")
    return dataset.isel(task=inside)


def _counts(names: xr.DataArray) -> dict[str, int]:
    found, counts = np.unique(names.values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


STRENGTHS = ((0.65, "closely"), (0.4, "moderately"), (-np.inf, "weakly"))  # from this mean ρ on
BEATS = {"better": "beats", "worse": "does worse than", "undecided": "is not shown to beat"}
ORDERS = {
    "better": "orders the candidates better than",
    "worse": "orders the candidates worse than",
    "undecided": "is not shown to order the candidates better than",
}
PAYS = {"better": "gains more than", "worse": "gains less than", "undecided": "is not shown to gain more than"}


def _short(final: xr.DataArray, early: xr.DataArray, choice: xr.Dataset) -> str:
    """A few sentences in plain words."""
    rho = intervals.over_tasks(final.sel(predictor=choices.RELATION))
    strength = next((word for least, word in STRENGTHS if float(rho["mean"]) >= least), STRENGTHS[-1][1])
    related = f"{strength} related" if float(rho["low"]) > 0 else "not shown to be related"
    rivals = {LOSS: choices.RELATION_RIVALS[0], COUNT: choices.RELATION_RIVALS[1]}
    verdicts = {f"the {name}": verdict(final, choices.RELATION, rival) for name, rival in rivals.items()}
    rivals = {f"the {COUNT}": "parameters", "early validation accuracy": choices.VALIDATION_RIVAL}
    others = {name: verdict(early, choices.HEADLINE, rival) for name, rival in rivals.items()}
    return (
        f"**In short.** (1) The size of the manifold around the trained network is {related} to what the expansion "
        f"gains. It {_compared(verdicts, BEATS)}: the claim that it beats such baselines {_holds(verdicts)}. "
        f"(2) Measured early, size {_compared(others, ORDERS)}. "
        f"(3) {_best(choice['regret'], choice['total'].mean('task'))} "
        f"(4) At equal FLOPs, the middle expansion {PAYS[_lead(choice)]} the small network itself, trained on."
    )


def _affordable(choice: xr.DataArray, total: xr.DataArray) -> list[str]:
    """The policies that cost no more than they may, those that do best first."""
    some = choice.mean("task").isel(policy=(total <= choices.GOAL_BUDGET).values)
    return some["policy"].values[np.argsort(some.values, kind="stable")].tolist()


def _best(regret: xr.DataArray, total: xr.DataArray) -> str:
    """Which policy chooses best at a small price, if one has such a price: in small pools none has."""
    if not (names := _affordable(regret, total)):
        return (
            f"Every policy costs more than {choices.GOAL_BUDGET:.0%} of training the whole pool, "
            f"{float(total.min()):.0%} at least."
        )
    best, *others = names
    said = (
        f"Of the policies that cost up to {choices.GOAL_BUDGET:.0%} of training the whole pool, “{best}” "
        f"({float(total.sel(policy=best)):.0%}) has the lowest regret here: it loses "
        f"{points(regret.sel(policy=best))} of accuracy against the pool's best candidate"
    )
    for second in others[:1]:
        gap = intervals.differences(regret.sel(policy=[best, second]), second, "policy", larger_is_better=False)
        shown = "more" if gap["verdict"].sel(policy=best).item() == "better" else "not shown to be more"
        said += (
            f"; “{second}” ({float(total.sel(policy=second)):.0%}) loses {points(regret.sel(policy=second))}, {shown}"
        )
    return f"{said}; the largest network loses {points(regret.sel(policy='largest'))}."


def _lead(choice: xr.Dataset) -> str:
    """Whether the middle expansion is ahead of the base, trained on for as many FLOPs."""
    found = intervals.over_tasks(choice["middle"].sel(reference=BASE, budget="equal flops"))
    return intervals.verdict(found).item()


def _compared(verdicts: dict[str, str], words: dict[str, str]) -> str:
    """What is said of two rivals, those that are beaten first: once where one verdict covers both."""
    first, second = sorted(verdicts, key=lambda name: [*words].index(verdicts[name]))
    one, other = verdicts[first], verdicts[second]
    if one == other:
        return f"{words[one]} {first} {'or' if one == 'undecided' else 'and'} {second}"
    return f"{words[one]} {first} {'but' if 'better' in (one, other) else 'and'} {words[other]} {second}"


def _holds(verdicts: dict[str, str]) -> str:
    """Whether it is so that every rival is beaten."""
    found = [*verdicts.values()]
    if "better" in found:
        return "holds" if set(found) == {"better"} else "holds for one of the two"
    return "does not hold" if "worse" in found else "is not confirmed"


def _by_family(relation: xr.Dataset, prediction: xr.Dataset) -> str:
    """A table of mean correlations, a row for each family of networks."""
    final, early = relation["spearman"], prediction["spearman"]
    columns = {
        "size, trained": final.sel(predictor=choices.RELATION),
        LOSS: final.sel(predictor=choices.RELATION_RIVALS[0]),
        COUNT: final.sel(predictor=choices.RELATION_RIVALS[1]),
        "size, early": early.sel(predictor=choices.HEADLINE),
        "early loss + parameters": early.sel(predictor=choices.RIVAL),
        "validation accuracy, early": early.sel(predictor=choices.VALIDATION_RIVAL),
    }
    lines = [f"| ρ with the gain | tasks | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, count in _counts(relation["architecture"]).items():
        inside = (relation["architecture"] == name).values
        means = [number(rho.isel(task=inside).mean()) for rho in columns.values()]
        lines.append(f"| {name} | {count} | {' | '.join(means)} |")
    return "\n".join(lines)


def _relation(relation: xr.Dataset) -> str:
    rho = relation["spearman"]
    loss, count = choices.RELATION_RIVALS
    given = relation["partial"].sel(predictor=choices.RELATION)
    return (
        "**Is it related?** At the trained network the size of the manifold (extent along ± children, up to a level "
        f"common to the pool) orders the gains with ρ = {mean(rho, choices.RELATION)}; the {LOSS} has "
        f"{mean(rho, loss)}, the {COUNT} {mean(rho, count)}. "
        f"Size minus loss: {pair(rho, choices.RELATION, loss)}; "
        f"size minus the {COUNT}: {pair(rho, choices.RELATION, count)}. With the {COUNT} held fixed, size has "
        f"ρ = {interval(given.sel(given='parameters'))}; with the {LOSS}, "
        f"{interval(given.sel(given='training loss'))}; with the loss at the children's centre, "
        f"{interval(given.sel(given='centre loss'))}. Up to a level of each candidate's own, in place of the common "
        f"one, ρ is {interval(_form(relation, level='own'))}; along random directions, in place of the children, "
        f"{interval(_form(relation, kind='random'))}. Validation accuracy at the same moment has "
        f"{mean(rho, ACCURACY)}; size minus that: {pair(rho, choices.RELATION, ACCURACY)}."
    )


def _form(relation: xr.Dataset, **instead: str) -> xr.DataArray:
    """The correlation of another form of the size that is tested."""
    _, kind, level, form = choices.RELATION.split(" @")[0].split(", ")
    return relation["extent"].sel({"kind": kind, "level": level, "form": form, "margin": 0.1} | instead)


def _prediction(prediction: xr.Dataset) -> str:
    rho = prediction["spearman"]
    cost = {str(name): f"{float(prediction['cost'].sel(predictor=name)):.0%}" for name in EARLY}
    return (
        f"**Can it be known early?** The size chosen on the pilot ({choices.HEADLINE}), for {cost[choices.HEADLINE]} "
        f"of the training, has ρ = {mean(rho, choices.HEADLINE)}; the {COUNT} {mean(rho, 'parameters')}; the early "
        f"loss on minibatches, its rank averaged with that of the {COUNT}, for {cost[choices.RIVAL]}, "
        f"{mean(rho, choices.RIVAL)}; validation accuracy, for {cost[choices.VALIDATION_RIVAL]}, "
        f"{mean(rho, choices.VALIDATION_RIVAL)}; and validation accuracy combined with that loss and the {COUNT}, "
        f"weighted by their agreement, for {cost[choices.COMBINED]}, {mean(rho, choices.COMBINED)}. Size minus the "
        f"{COUNT}: {pair(rho, choices.HEADLINE, 'parameters')}; size minus the early loss with the {COUNT}: "
        f"{pair(rho, choices.HEADLINE, choices.RIVAL)}.{_literature(prediction)}"
    )


def _literature(prediction: xr.Dataset) -> str:
    """How the statistics that others have proposed do, which look at the expanded network before any training."""
    names = [name for name in prediction["predictor"].values.tolist() if name in PREDICTORS and name not in FREE]
    if not names:
        return ""
    found = prediction["spearman"].sel(predictor=names).mean("task")
    best = str(found.idxmax().item())
    return (
        f" Of {found.size} statistics of the literature, computed right after the expansion, the best is "
        f"{best.replace('_', ' ')}, with ρ = {mean(prediction['spearman'], best)}, the worst has {number(found.min())}."
    )


def _choice(choice: xr.Dataset) -> str:
    regret, total = choice["regret"], choice["total"].mean("task")
    names = ("largest", "rank by size", "i-Epoch, 10%", "anchored loss, 5%", "train all")
    words = "; ".join(
        f"{name}: {float(regret.sel(policy=name).mean()):.1f} points at {float(total.sel(policy=name)):.0%}"
        for name in names
    )
    worth = intervals.over_tasks(choice["middle"])
    upper = interval(choice["upper"].sel(reference=BASE, budget="equal flops"), "points")

    def lead(reference: str) -> str:
        steps, flops = (worth.sel(reference=reference, budget=budget) for budget in ("equal steps", "equal flops"))
        return f"{signed(steps, 'points')} at equal steps, {signed(flops, 'points')} at equal FLOPs"

    return (
        f"**What should one do?** Accuracy lost against the best candidate, and what was spent, as a share of training "
        f"the whole pool: {words}. **Is expanding worth it?** The middle expansion of a pool is ahead of the small "
        f"network itself, trained on, by {lead(BASE)}, where a tenth of the expansions are ahead by more than {upper}. "
        f"Of the same shape from scratch it is ahead by {lead(SCRATCH)}."
    )


def _goals(relation: xr.Dataset, prediction: xr.Dataset, choice: xr.Dataset) -> str:
    loss, count = choices.RELATION_RIVALS
    rho, early = relation["spearman"], prediction["spearman"]
    given = intervals.over_tasks(relation["partial"].sel(predictor=choices.RELATION, given="parameters"))
    final, total = choice["spearman"], choice["total"].mean("task")
    regret = choice["regret"].mean("task")
    best = next(iter(_affordable(choice["regret"], total)), "")
    least = float(regret.sel(policy=best)) if best else np.inf
    named = (
        f"{best}; training all loses {float(regret.sel(policy='train all')):.2f}" if best else "none costs so little"
    )
    rows = [
        (f"relation: mean ρ ≥ {choices.GOAL_RHO} at 100%", number(rho.sel(predictor=choices.RELATION).mean()),
         float(rho.sel(predictor=choices.RELATION).mean()) >= choices.GOAL_RHO),
        ("relation: above the final training loss", *tested(rho, choices.RELATION, loss)),
        ("relation: above the parameter count", *tested(rho, choices.RELATION, count)),
        ("relation: positive given the parameter count", signed(given), float(given["low"]) > 0),
        *(row for name in ANCHORED for row in _anchored(name, final.sel(policy=name), total.sel(policy=name))),
        ("prediction: early size above early validation accuracy",
         *tested(early, choices.HEADLINE, choices.VALIDATION_RIVAL)),
        (f"choice: regret ≤ {choices.GOAL_REGRET} points for ≤ {choices.GOAL_BUDGET:.0%} ({named})", f"{least:.2f}",
         least <= choices.GOAL_REGRET),
    ]  # fmt: skip
    lines = [f"| {goal} | {value} | {'reached' if met else 'missed'} |" for goal, value, met in rows]
    return "\n".join(["| goal | measured | |", "|---|---|---|", *lines])


def _anchored(name: str, rho: xr.DataArray, total: xr.DataArray) -> list[tuple[str, str, bool]]:
    title = f"prediction, {name} ({float(total):.0%} in all)"
    return [
        (f"{title}: mean ρ ≥ {choices.GOAL_RHO}", number(rho.mean()), float(rho.mean()) >= choices.GOAL_RHO),
        (f"{title}: lowest task ≥ 0", number(rho.min()), float(rho.min()) >= 0),
    ]


if __name__ == "__main__":
    page, summary = map(Path, sys.argv[1:])
    page.write_text(inserted(page.read_text(), summary.read_text()))
