"""A reader changes a parameter of a notebook: it runs; what can go wrong on the way is said in a sentence."""

import ast

import pytest
import reader
from reader import run

SMALL = {
    "manifold_base_steps": 60, "manifold_parent_steps": 40, "manifold_child_steps": 20, "manifold_train_size": 200,
    "manifold_examples": 100, "manifold_children": 3, "manifold_operators": ["net2net"], "manifold_margin": 0.5,
}  # fmt: skip
CHANGES = [
    {"manifold_dataset": "mnist1d"},
    {"manifold_widths": [9]},
    {"manifold_widths": [4, 8, 5], "manifold_factor": 1.5},
    {"manifold_operators": ["gradmax", "zero_incoming"]},
    {"manifold_operators": ["ligo", "lemon"], "manifold_seeds": 3},
    {"manifold_operators": ["bert2bert", "firefly", "hypercloning"]},
    {"manifold_base_steps": 1, "manifold_parent_steps": 1, "manifold_margin": 9.0},
    {"manifold_children": 5, "manifold_child_steps": 60, "manifold_step_size": 0.2},
    {"manifold_batch": 100, "manifold_examples": 200, "manifold_margin": 1.0},
    {"manifold_train_size": 60, "manifold_examples": 1, "manifold_batch": 1, "manifold_step_size": 0.001},
]


@pytest.mark.parametrize("changed", CHANGES, ids=[" ".join(change) for change in CHANGES])
def test_the_manifold_is_shown_for_other_parameters(changed, tmp_path):
    run("3_manifold", tmp_path, **SMALL | changed)
    assert (tmp_path / "data" / "manifold.nc").exists()


def test_parents_above_the_level_are_named(tmp_path):
    with pytest.raises(AssertionError, match=r"nats above the level: raise manifold_parent_steps or manifold_margin"):
        run(
            "3_manifold",
            tmp_path,
            **SMALL | {"manifold_operators": ["random"], "manifold_parent_steps": 1, "manifold_margin": 1e-9},
        )


def test_children_that_see_the_same_steps_span_no_plane(tmp_path):
    with pytest.raises(ValueError, match="three corners on one line"):
        run("3_manifold", tmp_path, **SMALL | {"manifold_batch": 200, "manifold_examples": 200, "manifold_margin": 1.0})


@pytest.mark.parametrize("name", reader.NAMES)
def test_assertions_that_a_reader_can_meet_carry_a_sentence(name):
    """Of what was expected; where a changed parameter is the likely cause, of that."""
    code = [ast.parse(source) for source, _ in reader.cells(name)]
    met = [node for cell in code for node in ast.walk(cell) if isinstance(node, ast.Assert)]
    assert not [ast.unparse(node) for node in met if not is_sentence(node.msg)]


def is_sentence(message: ast.expr | None) -> bool:
    """Whether it is text of several words, with or without values in it."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    said = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return len(" ".join(said).split()) >= 3
