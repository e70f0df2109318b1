"""The figures of the results, each from a small Dataset: what is in them, and that it can be read in a column."""

import warnings
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text

from mmstudy.expansion.operators import NEW_UNITS, NOT, Operator
from mmstudy.figures import answer, beyond, families, ranking, rankings, regimes, style, training
from mmstudy.study import intervals, summaries
from mmstudy.study.derived import LEVELS
from mmstudy.study.predictors import FAMILIES

WORDS = {"loss @10%": "minibatch loss at 10%"}
PREDICTORS = ["parameters", "loss @10%", "validation @10%", "extent @10%"]
TASKS = [f"mnist1d {n}{noise}, 12-12, seed {n % 7}" for n in (400, 1000, 4000) for noise in ("", ", 20% flipped")]


@pytest.fixture(autouse=True)
def _strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def summary(rng, dims, coords, **more):
    shape = [len(coords[dim]) for dim in dims]
    mean = rng.uniform(-0.3, 0.8, shape)
    table = {"mean": mean, "low": mean - 0.1, "high": mean + 0.2, "worst": mean - 0.4}
    return xr.Dataset({name: (dims, each) for name, each in table.items()}, coords).assign(more)


def by_family(names):
    return {"predictor": names, "family": ("predictor", [FAMILIES[i % 4] for i in range(len(names))])}


def words(figure):
    """The texts that are seen, with their places in pixels."""
    figure.draw_without_rendering()
    inside = figure.bbox.padded(2)
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    places = [(t, t.get_window_extent()) for t in found]
    ticks = {id(t) for axis in figure.findobj(plt.Axes) for t in hidden_ticks(axis)}
    return [(t, box) for t, box in places if id(t) not in ticks and inside.overlaps(box)]


def hidden_ticks(axis):
    """Labels of ticks outside the limits, which are not drawn."""
    for each, box in ((axis.xaxis, axis.bbox.intervalx), (axis.yaxis, axis.bbox.intervaly)):
        for tick in [*each.get_major_ticks(), *each.get_minor_ticks()]:
            at = axis.transData.transform((tick.get_loc(), tick.get_loc()))[int(each is axis.yaxis)]
            if not axis.axison or not box[0] - 0.1 <= at <= box[1] + 0.1:
                yield from (tick.label1, tick.label2)


def assert_legible(figure, may_touch=False):
    """As wide as a column, letters of at least 6 points, all inside the figure and none on another."""
    found = words(figure)
    assert figure.get_figwidth() == pytest.approx(8.5 / 2.54)
    assert min(text.get_fontsize() for text, _ in found) >= 6
    low, high = figure.bbox.intervalx
    assert not [text.get_text() for text, box in found if box.x0 < low - 2 or box.x1 > high + 2]
    touching = [
        (a.get_text(), b.get_text())
        for (a, first), (b, second) in combinations(found, 2)
        if first.padded(-1).overlaps(second.padded(-1))
    ]
    assert may_touch or not touching


def texts(figure):
    return [text.get_text() for text, _ in words(figure)]


def a_relation(rng, panels, censored=0.0, gain=None):
    task = np.repeat(TASKS[: len(panels)], 12)
    coords = {
        "task": ("candidate", task),
        "panel": ("candidate", np.repeat(panels, 12)),
        "operator": ("candidate", ["net2net", "random", "stack", "lemon"] * (3 * len(panels))),
    }
    size = xr.DataArray(rng.uniform(0.1, 1, len(task)), dims="candidate")
    gain = rng.normal(size=len(task)) if gain is None else gain
    rho = xr.DataArray(rng.uniform(size=len(panels)), {"task": TASKS[: len(panels)]})
    return summaries.relation(xr.DataArray(gain, coords, dims="candidate"), size, 0 * size + censored, rho)


def points(axis):
    """Filled and hollow points of a scatter, without the trend and the crosses."""
    marks = [line for line in axis.lines if line.get_linestyle() == "None" and line.get_marker() != "x"]
    return [sum(len(m.get_xdata()) for m in marks if (m.get_mfc() == "none") == hollow) for hollow in (False, True)]


def test_the_relation_has_a_panel_for_each_group_and_a_point_for_each_candidate(rng):
    figure = answer.relation(
        a_relation(rng, ["true labels, few", "true labels, few", "true labels, few", "flipped, few"])
    )
    assert [points(axis) for axis in figure.axes] == [[36, 0], [12, 0]]
    clean, noisy = (axis.get_title() for axis in figure.axes)
    assert "true labels, few\n3 tasks\nρ = ." in clean and "[" in clean
    assert "flipped, few\n1 task" in noisy and "[" not in noisy  # one task has no interval
    assert_legible(figure)


def test_the_panels_of_the_relation_are_rows_of_labels_and_columns_of_examples(rng):
    tasks = xr.Dataset({"label_noise": ("candidate", [0.0, 0.2, 0.2]), "train_size": ("candidate", [4000, 1500, 1501])})
    panels = summaries.kinds_of_tasks(tasks).values.tolist()
    assert panels[1:] == ["flipped labels, ≤ 1,500 examples", "flipped labels, > 1,500 examples"]
    figure = answer.relation(a_relation(rng, panels))
    shown = [axis.get_title().partition("\n")[0] for axis in figure.axes]
    assert shown == ["", panels[0], *panels[1:]] and not figure.axes[0].get_visible()
    assert_legible(figure)


def test_candidates_of_size_0_are_crosses_and_counted(rng):
    table = a_relation(rng, ["true labels, few", "flipped, few"])
    table["none"][:6] = True
    figure = answer.relation(table)
    crosses = [sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() == "x") for axis in figure.axes]
    assert crosses == [6, 0]
    assert ["size 0: 50%" in axis.get_title() for axis in figure.axes] == [True, False]
    assert "size 0: centre above the level" in texts(figure)


def test_a_size_that_is_a_lower_bound_is_hollow_and_explained(rng):
    figure = answer.relation(a_relation(rng, ["clean"], censored=0.8))
    assert points(figure.axes[0]) == [0, 12]
    assert any("lower bound" in text for text in texts(figure))
    assert not any("lower bound" in text for text in texts(answer.relation(a_relation(rng, ["clean"]))))


def test_candidates_without_a_gain_are_no_points(rng):
    gain = rng.normal(size=24)
    gain[:5] = np.nan
    figure = answer.relation(a_relation(rng, ["one, few", "other, few"], gain=gain))
    assert sorted(points(axis) for axis in figure.axes) == [[7, 0], [12, 0]]


def test_the_build_up_shows_every_share_also_the_first_ones(rng):
    coords = {"measure": PREDICTORS, "progress": [0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]}
    table = summary(rng, ("measure", "progress"), coords, ceiling=0.95)
    table = table.assign_coords(family=("measure", list(FAMILIES)))
    for name in ("mean", "low", "high"):
        table[name][1, 0] = np.nan  # a loss that is not known before the training
    figure = answer.build_up(table, WORDS)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2", "5", "10", "20", "50", "100"]
    assert {"minibatch loss at 10%", "parameters", "noise ceiling"} <= {*texts(figure)}
    assert len(axis.containers) == len(PREDICTORS)
    assert_legible(figure)


def some_policies(rng, count):
    regret = rng.uniform(0.1, 3, count)
    table = {"regret": regret, "low": regret / 2, "high": regret * 1.5, "worst": regret * 3}
    table["total"] = np.geomspace(0.02, 1, count)
    coords = {"policy": [f"policy_{i}" for i in range(count)], "family": ("policy", ([*FAMILIES, ""] * 3)[:count])}
    return xr.Dataset({name: ("policy", each) for name, each in table.items()}, coords)


@pytest.mark.parametrize("count", [3, 14])
def test_choices_are_numbered_and_named(rng, count):
    table = some_policies(rng, count)
    table["low"][0] = table["high"][0] = np.nan  # too few tasks
    figure = answer.choices(table.isel(policy=slice(None, None, -1)), {"policy_0": "any"})
    assert {str(i + 1) for i in range(count)} <= {*texts(figure)}
    assert any(text.startswith("any: ") for text in texts(figure))  # the cheapest comes first
    assert {"worst task", "beaten by none"} <= {*texts(figure)}
    markers = [line for line in figure.axes[0].lines if line.get_marker() in ("s", "^", "D", "o", "x")]
    assert len(markers) == count
    assert_legible(figure, may_touch=True)


def test_choices_that_cost_the_same_stand_side_by_side_and_none_is_lost_at_zero(rng):
    table = some_policies(rng, 3).assign(total=("policy", [0.1, 0.1, 1.0]))
    table["regret"][2] = table["low"][2] = table["high"][2] = table["worst"][2] = 0.0
    axis = answer.choices(table, {}).axes[0]
    first, second, last = (line for line in axis.lines if line.get_marker() in ("s", "^", "D", "o", "x"))
    assert 0 < second.get_xdata()[0] - first.get_xdata()[0] < 0.5
    assert axis.transData.transform(last.get_xydata())[0, 1] > axis.bbox.y0  # the marker is inside


def test_forty_predictors_are_ranked_the_best_on_top(rng):
    names = [f"extent_{i}, children @10%" for i in range(38)] + ["parameters", "loss @10%"]
    table = summary(rng, ("predictor",), by_family(names), ceiling=0.97)
    table = table.assign_coords(combined=("predictor", [i % 3 == 0 for i in range(40)]))
    figure = rankings.ranking(table, WORDS)
    (axis,) = figure.axes
    best = names[table["mean"].values.argmax()]
    assert axis.get_yticklabels()[0].get_text() == WORDS.get(best, best.replace("_", " "))
    assert axis.get_ylim()[0] > axis.get_ylim()[1] and len(axis.containers) == 40
    assert {*FAMILIES, "worst task", "noise ceiling", "hollow: + parameters"} <= {*texts(figure)}
    bold = [text.get_text() for text in axis.get_yticklabels() if text.get_fontweight() == "bold"]
    assert bold == ["minibatch loss at 10%"]  # the one that is named
    assert_legible(figure)


def test_the_views_are_rows_with_every_predictor_in_each(rng):
    ways = ["all candidates", "within operators", "given parameters", "given training loss", "parameter-matched pairs"]
    table = summary(rng, ("view", "predictor"), {"view": ways} | by_family(PREDICTORS))
    table["mean"][4, 0] = np.nan  # no pairs
    figure = rankings.within(table, WORDS)
    (axis,) = figure.axes
    assert [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()] == ways
    assert len(axis.containers) == len(PREDICTORS)
    assert_legible(figure)


@pytest.mark.parametrize("count", [2, 30])
def test_tasks_are_rows_and_what_is_not_known_is_empty(rng, count):
    names = [f"permuted_mnist1d {100 + i}, 20% flipped, 12-12, seed {i}" for i in range(count)]
    rho = xr.DataArray(rng.uniform(-1, 1, (count, 4)), {"task": names, "predictor": PREDICTORS})
    rho[0, 2] = np.nan
    figure = rankings.tasks(xr.Dataset({"spearman": rho, "ceiling": ("task", np.full(count, 0.97))}), WORDS)
    (axis,) = figure.axes
    assert len(axis.texts) == 5 * count - 1
    assert {text.get_text() for text in axis.texts} >= {style.signed(float(rho[0, 0])), ".97"}
    assert axis.get_yticklabels()[0].get_text() == "permuted 100, 20%, 12-12"
    assert len(axis.patches) == sum(text.get_text().startswith("−") for text in axis.texts)  # hatched
    assert_legible(figure)


@pytest.mark.parametrize("sizes", [(400, 4000), (200, 400, 500, 1000, 1500, 2000, 4000)])
def test_regimes_have_a_row_for_each_kind_of_task_that_there_is(rng, sizes):
    coords = {"label_noise": [0.0, 0.2, 0.4], "train_size": list(sizes)}
    table = summary(rng, ("predictor", "label_noise", "train_size"), by_family(PREDICTORS) | coords)[["mean"]]
    table["mean"][:, 1, 1] = np.nan
    table["mean"][0, 0, 0] = -0.45
    table["tasks"] = 2 * table["mean"].notnull().astype(int)
    figure = regimes.regimes(table, WORDS)
    (axis,) = figure.axes
    assert [label.get_text().replace("\n", " ") for label in axis.get_xticklabels()] == [
        "parameters", "minibatch loss at 10%", "validation @10%", "extent @10%"
    ]  # fmt: skip
    rows = [label.get_text() for label in axis.get_yticklabels()]
    assert len(rows) == 3 * len(sizes) - 1 and rows[0] == f"0%, {sizes[0]:,} (2)"
    assert len(axis.texts) == len(rows) * len(PREDICTORS) and "−.45" in [text.get_text() for text in axis.texts]
    assert len(axis.patches) == int((table["mean"] < -0.005).sum()) > 0
    assert_legible(figure)


def test_from_scratch_there_is_a_row_for_each_task_and_one_for_their_mean(rng):
    references, budgets = [summaries.BASE, "scratch", "shrink_perturb"], ["equal steps", "equal flops"]
    middle = xr.DataArray(rng.normal(size=(6, 3, 2)), {"task": TASKS, "reference": references, "budget": budgets})
    middle[2, 1] = np.nan  # all runs from scratch diverged
    table = xr.Dataset({"lower": middle - 2, "middle": middle, "upper": middle + 1})
    figure = regimes.scratch(table.merge(intervals.over_tasks(middle, 99)))
    assert len(figure.axes) == 3
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["mean over tasks", *style.short_tasks(TASKS)]
    assert {"equal steps", "equal FLOPs"} <= {*texts(figure)}
    assert_legible(figure)


def test_the_sensitivity_has_maps_above_and_margins_below(rng):
    coords = {"kind": ["children", "snapshots", "random"], "form": ["multiple", "radius"], "level": list(LEVELS)}
    coords["margin"] = [0.02, 0.05, 0.1, 0.2, 0.5]
    table = summary(rng, ("kind", "form", "level", "margin"), coords)
    table["censored"] = ("kind", "level", "margin"), rng.uniform(size=(3, 4, 5))
    figure = regimes.sensitivity(table, "children", "multiple", 0.1)
    rho, cut, margins, censored = figure.findobj(plt.Axes)
    assert len(rho.texts) == 24 and len(cut.texts) == 12
    assert len(margins.containers) == 4 and len(censored.lines) == 4
    assert [label.get_text() for label in censored.get_xticklabels()] == ["0.02", "0.05", "0.1", "0.2", "0.5"]
    assert_legible(figure, may_touch=True)  # matplotlib counts labels of ticks twice in a figure of figures
    table["censored"] *= 0
    assert len(regimes.sensitivity(table, "children", "multiple", 0.1).findobj(plt.Axes)) == 3


def test_predictors_of_one_family_differ_without_colours():
    looks = families.looks(["size", "size", "size", "size", "static"])
    shown = {(look["marker"], look["markerfacecolor"] == "w") for look in looks}
    assert len(shown) == 5
    assert len({look["color"] for look in looks[:4]}) == 1


def test_the_seed_of_a_task_is_named_only_where_it_tells_tasks_apart():
    names = [
        "digits 400, 20% flipped, 8-8, seed 1",
        "digits 400, 20% flipped, 8-8, seed 2",
        "my_own 5, ViT 8-2-1, seed 3",
    ]
    assert style.short_tasks(names) == ["digits 400, 20%, 8-8 (1)", "digits 400, 20%, 8-8 (2)", "my own 5, ViT 8-2-1"]


def some_runs(rng):
    """What `beyond.runs` returns, of three tasks and three seeds."""
    coords = {
        "task": TASKS[:3], "progress": [0.1, 1.0], "child_steps": [5, 20, 80], "children": [2, 4, 8, 16],
        "width": [2, 3, 4, 6, 8, 12, 16, 24, 32, 48], "seed": range(3), "operator": ["net2net", "random"],
    }  # fmt: skip
    dims = {"size_spearman": ("task", "progress", "child_steps", "children")}
    dims["size_agreement"] = dims["size_spearman"]
    dims |= {f"descent_{name}_error": ("width", "seed") for name in ("train", "test")}
    dims["descent_gain"] = ("operator", "width", "seed")
    table = {n: (d, rng.uniform(-0.5, 1, [len(coords[dim]) for dim in d])) for n, d in dims.items()}
    return xr.Dataset(table, coords)


def test_the_explorers_have_two_maps_for_each_share_of_the_training(rng):
    table = some_runs(rng)
    table["size_agreement"][..., -1] = np.nan  # one draw
    figure = beyond.explorers(table)
    assert [axis.get_title() for axis in figure.axes] == [
        "ρ with the gain, at 10%", "ρ with the gain, at 100%", "ρ between draws, at 10%", "ρ between draws, at 100%"
    ]  # fmt: skip
    assert [len(axis.texts) for axis in figure.axes] == [12, 12, 9, 9]
    mean = table["size_spearman"].mean("task")[1, 2, 0]
    assert figure.axes[1].texts[8].get_text() == style.signed(float(mean))
    assert_legible(figure)


def test_growing_has_a_mark_for_each_task_and_way(rng):
    ways = {"task": TASKS[:3], "way": ["scratch", "25%", "50%", "never"]}
    rules = {"task": TASKS[:3], "rule": ["size", "early loss", "validation", "largest"]}
    figure = beyond.growing(summary(rng, tuple(ways), ways), summary(rng, tuple(rules), rules))
    for axis, names in zip(figure.axes, (ways["way"], rules["rule"]), strict=True):
        assert [label.get_text() for label in axis.get_xticklabels()] == names
        assert [len(each.lines[0].get_xdata()) for each in axis.containers] == [4, 4, 4]
        assert len({each.lines[0].get_marker() for each in axis.containers}) == 3  # told apart without colours
    assert_legible(figure)


def test_churn_is_seen_along_the_training_and_given_other_numbers(rng):
    labels = ["true labels", "flipped labels"]
    coords = {
        "measure": ["churn", "extent", "accuracy"],
        "labels": labels,
        "progress": [0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0],
    }
    along = summary(rng, tuple(coords), coords).assign_coords(family=("measure", ["size", "size", "validation"]))
    given = {"given": ["nothing", "size", "training loss", "validation accuracy"], "labels": labels}
    figure = beyond.churn(along, summary(rng, tuple(given), given), {"churn": "churn"})
    assert [axis.get_title() for axis in figure.axes[:2]] == labels
    assert [len(axis.containers) for axis in figure.axes] == [3, 3, 1, 1]
    assert {"churn", "extent", "training\nloss"} <= {*texts(figure)}
    assert_legible(figure)


def test_descent_has_a_panel_of_each_error_and_one_of_gains_with_the_threshold_in_all(rng):
    table = some_runs(rng)
    table["descent_gain"][:, -1] = np.nan  # nothing is as wide
    figure = beyond.descent(table, 16.0)
    above, _, below = figure.axes
    assert [len(axis.containers) for axis in figure.axes] == [1, 1, 2]
    assert all([16.0, 16.0] in [[*line.get_xdata()] for line in axis.lines] for axis in figure.axes)
    assert [label.get_text() for label in below.get_xticklabels()] == [f"{w}" for w in table["width"].values]
    none = beyond.descent(table, np.nan)
    assert len(none.axes[0].lines) == len(above.lines) - 1
    assert_legible(figure)


def test_scores_have_a_mark_for_each_task_and_checkpoint(rng):
    coords = {
        "task": TASKS,
        "checkpoint": ["last", "best validation"],
        "pair": ["accuracy, nll", "accuracy, ece", "nll, ece"],
    }
    table = {n: (tuple(coords), rng.uniform(size=(6, 2, 3))) for n in ("spearman", "same")}
    figure = beyond.scores(xr.Dataset(table | {"training_loss": ("task", np.geomspace(1e-3, 1, 6))}, coords))
    left, _ = figure.axes
    assert [len(line.get_xdata()) for line in left.lines[:2]] == [6, 6]
    assert {line.get_marker() for line in left.lines[:2]} == {"o", "D"}
    assert {"accuracy,\nlikelihood", "checkpoint"} <= {*texts(figure)}
    assert_legible(figure)


def test_losses_have_a_line_for_each_way_and_a_thin_one_for_each_seed():
    losses = np.arange(40.0).reshape(2, 2, 10)
    dataset = xr.Dataset(
        {"loss": (("way", "seed", "step"), losses)}, {"way": ["small", "large"], "seed": [0, 1], "step": range(1, 11)}
    )
    axis = training.curves(dataset, window=2).axes[0]
    named = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(named) == {"small", "large"} and len(axis.lines) == 2 * 3
    expected = losses[0].mean(0)
    assert named["small"].get_ydata() == pytest.approx([expected[0], *((expected[1:] + expected[:-1]) / 2)])


def test_a_ranking_has_a_row_for_each_network_and_an_interval_where_the_gain_is_not_known(rng):
    names = ["a", "b", "c", "train on"]
    data = xr.Dataset(
        {
            "gain": ("candidate", [0.2, 0.1, -0.1, 0.0]),
            "low": ("candidate", [0.2, 0.0, -0.3, 0.0]),
            "high": ("candidate", [0.2, 0.3, 0.1, 0.0]),
        },
        {
            "candidate": names,
            "operator": ("candidate", ["net2net", "random", "lemon", "train on"]),
            "status": ("candidate", ["trained", "probed", "diverged", "trained"]),
        },
    )
    figure = ranking.ranking(data)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == names
    bars = {tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2}
    assert {(0.2, 0.2), (0.0, 0.3), (0.0, 0.0)} <= bars
    assert (-0.3, 0.1) not in bars
    assert {"trained to the end", "expected", "diverged", "80% interval"} <= {*texts(figure)}
    assert_legible(figure)


def test_operators_differ_without_colours_also_from_one_that_somebody_else_entered(monkeypatch):
    names = [*style.OPERATORS]
    mine = Operator(print, NOT, NEW_UNITS, "an idea", "a source", "#000000")
    monkeypatch.setitem(style.OPERATORS, "mine", mine)
    assert len({style.operator_marker(name) for name in [*names, "mine"]}) == len(names) + 1
    assert style.operator_look("train on") == style.NO_OPERATOR


def test_advice_is_shown_against_what_came_for_each_case_and_budget(rng):
    row, cases = ("anchored", "row"), ["digits 200, 4-4, seed 1", "convolutional"]
    labels = ["a", "b", "train on"] * 2
    gain = rng.normal(size=(2, 6))
    told = xr.Dataset(
        {
            "gain": (row, gain),
            "low": (row, gain - 0.1),
            "high": (row, gain + 0.1),
            "trained": (row, [[False] * 6, [False, True, True] * 2]),
            "chosen": (row, [[True, False, False] * 2] * 2),
            "share": (row, [[0.1] * 6, [0.25] * 6]),
            "final_score": ("row", rng.normal(size=6)),
            "test_score": ("row", rng.normal(size=6)),
        },
        {
            "anchored": [False, True],
            "label": ("row", labels),
            "case": ("row", np.repeat(cases, 3)),
            "operator": ("row", ["net2net", "random", "train on"] * 2),
        },
    )
    figure = ranking.advice(told)
    shapes = [style.operator_marker(name) for name in ("net2net", "random")]
    points = [sum(line.get_marker() in shapes and line.get_fillstyle() == "full" for line in axis.lines)
              for axis in figure.axes]  # fmt: skip
    assert points == [2, 1, 2, 1]  # what was trained to the end is no prediction
    titles = {"digits 200, 4-4\n10%, 0 to the end", "convolutional\n25%, 1 to the end"}
    assert titles | {"net2net", "random", "chosen", "best", "expected, 80% interval"} <= {*texts(figure)}
    assert_legible(figure)
