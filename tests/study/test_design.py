from dataclasses import replace

import pytest
import torch
from cases import TASK

from mmstudy.core import tasks
from mmstudy.core.networks import count_parameters
from mmstudy.core.tasks import Task
from mmstudy.expansion.operators import COPIES, NEW_UNITS, NOT, OPERATORS
from mmstudy.study import design
from mmstudy.study.protocol import Protocol

SOME = [
    Task(dataset, widths, 400, noise, seed)
    for dataset in ("digits", "mnist1d")
    for widths in ((8, 8), (6, 10), (12, 12))
    for noise in (0.0, 0.2)
    for seed in (0, 1)
]


def test_every_operator_that_widens_is_drawn_for_some_task():
    drawn = {task: design.wider_operators(task) for task in SOME}
    assert len(SOME) == 24
    assert {name for names in drawn.values() for name in names} == {n for n, each in OPERATORS.items() if each.widens}
    for first, second, third in drawn.values():
        assert OPERATORS[first].kind == COPIES
        assert OPERATORS[second].kind == OPERATORS[third].kind == NEW_UNITS
        assert OPERATORS[second].preserves != NOT == OPERATORS[third].preserves
    assert {name for name, each in OPERATORS.items() if not each.widens} == set(design.DEEPER)


def test_what_is_drawn_depends_on_the_task_alone():
    assert [design.wider_operators(replace(task)) for task in SOME] == [design.wider_operators(task) for task in SOME]
    assert len({design.wider_operators(task) for task in SOME}) > 8


def test_operators_and_places_of_ones_own_take_the_place_of_the_studys():
    shape = {"factors": (2,), "extra_layers": (1,), "matched": (), "wider": ["lemon"], "deeper": ["deeper_identity"]}
    found, _ = design.pool(TASK, tasks.load(TASK), shape)
    assert {candidate.operator for candidate in found.values()} == {"lemon", "deeper_identity"}
    vit = Task("digits", (8, 2, 1), 200, 0.0, 0, "ViT")
    some, _ = design.pool(vit, tasks.load(vit), shape | {"locations": ["blocks.0.up"], "extra_layers": ()})
    assert list(some) == ["lemon blocks.0.up ×2"]


@pytest.fixture(scope="module")
def pool():
    return design.pool(TASK, tasks.load(TASK))


def test_a_perceptrons_pool_has_forty_candidates_or_more_and_the_rest_are_refused_with_a_reason(pool):
    candidates, refused = pool
    assert len(candidates) >= 40
    assert not candidates.keys() & refused.keys()
    assert all(reason for reason in refused.values())
    operators = {candidate.operator for candidate in candidates.values()} | {name.split(" ")[0] for name in refused}
    usual = {*design.wider_operators(TASK), *design.DEEPER} - design.SAME["MLP"]
    assert operators - {design.SPARE} == usual - {design.SPARE}
    assert {"deeper_identity", "deeper_random"} <= {candidate.operator for candidate in candidates.values()}
    assert "no residual block" in refused["zero_residual hidden.0 +1"]


def test_what_is_in_the_pool_can_be_grown_and_is_as_large_as_its_place_and_amount_say(pool):
    data, sizes = tasks.load(TASK), {}
    network = tasks.base(TASK, data)
    for label, candidate in list(pool[0].items())[::5]:
        size = count_parameters(candidate.expand(network, data.training))
        assert sizes.setdefault(label.split(" ", 1)[1], size) == size
        assert size > count_parameters(network)


def test_blocks_are_inserted_into_networks_that_have_some():
    vit = replace(TASK, family="ViT", widths=(4, 2, 1))
    candidates, refused = design.pool(vit, tasks.load(vit), {"factors": (), "extra_layers": (1,), "matched": ()})
    assert {"zero_residual", "identity_block"} <= {candidate.operator for candidate in candidates.values()}
    assert all(label.endswith(" +1") for label in candidates)
    assert list(refused) == ["deeper_identity blocks.0 +1"]


def test_pools_of_several_tasks_are_those_of_each():
    some = [replace(TASK, widths=(3,)), replace(TASK, widths=(3,), seed=1)]
    shape = {"factors": (2,), "extra_layers": (), "matched": ()}
    found = design.all_pools(some, shape, workers=1)
    assert found == {task: design.pool(task, tasks.load(task), shape) for task in some}
    assert all(label.endswith(" ×2") for candidates, _ in found.values() for label in candidates)


def test_a_protocol_is_the_familys_with_options_instead():
    assert design.protocol(TASK) == Protocol()
    assert design.protocol(TASK, seeds=5) == Protocol(seeds=5)
    vit = replace(TASK, family="ViT", widths=(4, 2, 1))
    assert design.protocol(vit).steps < Protocol().steps
    assert design.protocol(vit).progress == Protocol().progress, "all look equally often"
    assert design.protocol(vit, steps=3000, seeds=2) == replace(design.protocol(vit), steps=3000, seeds=2)


def test_a_deep_residual_network_grows_alike_in_the_blocks_of_a_stage():
    deep = replace(TASK, family="deep ResNet", widths=(8, 16, 3))
    data = tasks.load(deep)
    where = design.locations(tasks.base(deep, data), data.training.inputs)
    inner = ["&".join(f"stages.{stage}.{block}.conv1[1]" for block in range(3)) for stage in range(2)]
    assert set(inner) <= set(where)
    assert set(where[-1].split("&")) == {name for one in where[:-1] for name in one.split("&")}
    flat = replace(TASK, family="ResNet", widths=(8, 16))
    assert all("&" not in one for one in design.locations(tasks.base(flat, data), data.training.inputs)[:-1])


def test_a_device_is_there_or_refused(monkeypatch):
    for there, auto in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert design.device("auto") == auto
        assert design.device("cpu") == "cpu"
        if there:
            assert design.device("cuda:1") == "cuda:1"
        else:
            with pytest.raises(ValueError, match=r"no GPU here, so there is no device 'cuda'"):
                design.device("cuda")
