"""The study's abstract: sentences whose every number and verdict is computed.

    python -m mmstudy.study.abstract README.md outputs/reference/summary.md

puts it into the README, between the marks that stand there.
"""

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from mmstudy.study import choices, intervals

LOSS, COUNT = "final training loss", "parameter count"
EARLY = (choices.HEADLINE, choices.RIVAL, choices.VALIDATION_RIVAL, choices.COMBINED)
ANCHORED = ("anchored size", "anchored loss, 5%")
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
BUDGET = 0.125  # of training the whole pool


def _short(final: xr.DataArray, early: xr.DataArray, choice: xr.Dataset) -> str:
    """Three sentences in plain words."""
    rho = intervals.over_tasks(final.sel(predictor=choices.RELATION))
    strength = next((word for least, word in STRENGTHS if float(rho["mean"]) >= least), STRENGTHS[-1][1])
    related = f"{strength} related" if float(rho["low"]) > 0 else "not shown to be related"
    rivals = {LOSS: choices.RELATION_RIVALS[0], COUNT: choices.RELATION_RIVALS[1]}
    verdicts = {f"the {name}": _verdict(final, choices.RELATION, rival) for name, rival in rivals.items()}
    rivals = {f"the {COUNT}": "parameters", "early validation accuracy": choices.VALIDATION_RIVAL}
    others = {name: _verdict(early, choices.HEADLINE, rival) for name, rival in rivals.items()}
    return (
        f"**In short.** (1) The size of the manifold around the trained network is {related} to what the expansion "
        f"gains. It {_compared(verdicts, BEATS)}: the claim that it beats such baselines {_holds(verdicts)}. "
        f"(2) Measured early, size {_compared(others, ORDERS)}. "
        f"(3) {_best(choice['regret'].mean('task'), choice['total'].mean('task'))}"
    )


def _best(regret: xr.DataArray, total: xr.DataArray) -> str:
    """Which policy chooses best at a small price, if one has such a price: in small pools none has."""
    affordable = regret.isel(policy=(total <= BUDGET).values)
    if not affordable.size:
        return (
            f"Every policy costs more than {BUDGET:.0%} of training the whole pool, {float(total.min()):.0%} at least."
        )
    best = affordable["policy"].values[int(affordable.values.argmin())]
    return (
        f"Of all that costs up to {BUDGET:.0%} of training the whole pool, “{best}” chooses best: it costs "
        f"{float(total.sel(policy=best)):.0%} and loses {float(regret.sel(policy=best)):.1f} "
        "points of accuracy against the pool's best candidate, where the largest network loses "
        f"{float(regret.sel(policy='largest')):.1f}."
    )


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
        "early loss": early.sel(predictor=choices.RIVAL),
        "validation accuracy, early": early.sel(predictor=choices.VALIDATION_RIVAL),
    }
    lines = [f"| ρ with the gain | tasks | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, count in _counts(relation["architecture"]).items():
        inside = (relation["architecture"] == name).values
        means = [_number(rho.isel(task=inside).mean()) for rho in columns.values()]
        lines.append(f"| {name} | {count} | {' | '.join(means)} |")
    return "\n".join(lines)


def _relation(relation: xr.Dataset) -> str:
    rho = relation["spearman"]
    loss, count = choices.RELATION_RIVALS
    given = relation["partial"].sel(predictor=choices.RELATION)
    return (
        "**Is it related?** At the trained network the size of the manifold (extent along ± children, up to a level "
        f"common to the pool) orders the gains with ρ = {_mean(rho, choices.RELATION)}; the {LOSS} has "
        f"{_mean(rho, loss)}, the {COUNT} {_mean(rho, count)}. "
        f"Size against loss: {_pair(rho, choices.RELATION, loss)}; "
        f"against the {COUNT}: {_pair(rho, choices.RELATION, count)}. Given the {COUNT}, "
        f"{_interval(given.sel(given='parameters'))} of it is left; given the {LOSS}, "
        f"{_interval(given.sel(given='training loss'))}."
    )


def _prediction(prediction: xr.Dataset) -> str:
    rho = prediction["spearman"]
    cost = {str(name): f"{float(prediction['cost'].sel(predictor=name)):.0%}" for name in EARLY}
    return (
        f"**Can it be known early?** The size chosen on the pilot ({choices.HEADLINE}), for {cost[choices.HEADLINE]} "
        f"of the training, has ρ = {_mean(rho, choices.HEADLINE)}; the {COUNT} {_mean(rho, 'parameters')}; a well-run "
        f"early loss, for {cost[choices.RIVAL]}, {_mean(rho, choices.RIVAL)}; validation accuracy, for "
        f"{cost[choices.VALIDATION_RIVAL]}, {_mean(rho, choices.VALIDATION_RIVAL)}; and validation accuracy combined "
        f"with the early loss, weighted by their agreement, for {cost[choices.COMBINED]}, "
        f"{_mean(rho, choices.COMBINED)}. Size against the {COUNT}: {_pair(rho, choices.HEADLINE, 'parameters')}; "
        f"against the early loss: {_pair(rho, choices.HEADLINE, choices.RIVAL)}."
    )


def _choice(choice: xr.Dataset) -> str:
    regret, total = choice["regret"], choice["total"].mean("task")
    names = ("largest", "rank by size", "i-Epoch, 10%", "anchored loss, 5%", "train all")
    words = "; ".join(
        f"{name}: {float(regret.sel(policy=name).mean()):.1f} points at {float(total.sel(policy=name)):.0%}"
        for name in names
    )
    middle = choice["middle"].sel(reference="scratch")
    worth = intervals.over_tasks(middle)
    leads = {budget: _signed(worth.sel(budget=budget), "points") for budget in worth["budget"].values.tolist()}
    return (
        f"**What should one do?** Accuracy lost against the best candidate, and what was spent, as a share of training "
        f"the whole pool: {words}. The middle expansion is ahead of the same shape from scratch by "
        f"{' at equal steps, by '.join([leads['equal steps'], leads['equal flops']])} at equal FLOPs."
    )


def _goals(relation: xr.Dataset, prediction: xr.Dataset, choice: xr.Dataset) -> str:
    loss, count = choices.RELATION_RIVALS
    rho, early = relation["spearman"], prediction["spearman"]
    given = intervals.over_tasks(relation["partial"].sel(predictor=choices.RELATION, given="parameters"))
    final, total = choice["spearman"], choice["total"].mean("task")
    affordable = choice["regret"].mean("task").isel(policy=(total <= BUDGET).values)
    least, best = min(
        zip(affordable.values.tolist(), affordable["policy"].values, strict=True), default=(np.inf, "none")
    )
    rows = [
        ("relation: mean ρ ≥ 0.65 at 100%", _number(rho.sel(predictor=choices.RELATION).mean()),
         float(rho.sel(predictor=choices.RELATION).mean()) >= 0.65),
        ("relation: above the final training loss", *_tested(rho, choices.RELATION, loss)),
        ("relation: above the parameter count", *_tested(rho, choices.RELATION, count)),
        ("relation: positive given log parameters", _signed(given), float(given["low"]) > 0),
        *(row for name in ANCHORED for row in _anchored(name, final.sel(policy=name), total.sel(policy=name))),
        ("prediction: size ahead of the best rival", *_tested(early, choices.HEADLINE, choices.VALIDATION_RIVAL)),
        (f"choice: regret ≤ 0.3 points for ≤ 12% ({best})", f"{least:.2f}", least <= 0.3),
    ]  # fmt: skip
    lines = [f"| {goal} | {value} | {'reached' if met else 'missed'} |" for goal, value, met in rows]
    return "\n".join(["| goal, set beforehand | measured | |", "|---|---|---|", *lines])


def _anchored(name: str, rho: xr.DataArray, total: xr.DataArray) -> list[tuple[str, str, bool]]:
    title = f"prediction, {name} ({float(total):.0%} in all)"
    return [
        (f"{title}: mean ρ ≥ 0.65", _number(rho.mean()), float(rho.mean()) >= 0.65),
        (f"{title}: lowest task ≥ 0", _number(rho.min()), float(rho.min()) >= 0),
    ]


def _interval(values: xr.DataArray) -> str:
    return _signed(intervals.over_tasks(values))


def _mean(rho: xr.DataArray, predictor: str) -> str:
    return _interval(rho.sel(predictor=predictor))


def _difference(rho: xr.DataArray, mine: str, rival: str) -> xr.Dataset:
    return intervals.differences(rho.sel(predictor=[mine, rival]), rival).sel(predictor=mine)


def _verdict(rho: xr.DataArray, mine: str, rival: str) -> str:
    return _difference(rho, mine, rival)["verdict"].item()


def _pair(rho: xr.DataArray, mine: str, rival: str) -> str:
    pair = _difference(rho, mine, rival)
    return f"{_signed(pair)}, {pair['verdict'].item()}"


def _tested(rho: xr.DataArray, mine: str, rival: str) -> tuple[str, bool]:
    words = _pair(rho, mine, rival)
    return words, words.endswith("better")


def _signed(one: xr.Dataset, unit: str = "") -> str:
    mean, low, high = (_number(one[name]) for name in ("mean", "low", "high"))
    return f"{mean}{unit and ' ' + unit} [{low}, {high}]"


def _number(value: xr.DataArray) -> str:
    return f"{float(value):+.2f}".replace("-", "−").replace("nan", "?")


if __name__ == "__main__":
    page, summary = map(Path, sys.argv[1:])
    page.write_text(inserted(page.read_text(), summary.read_text()))
