"""The examples define what `make rank` needs, with networks that nothing here has written, and can be ranked."""

import re
from pathlib import Path

import pytest
from torch import nn

import mmstudy as mm
from mmstudy.core.sources import imports
from mmstudy.ranking.report import OWN

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_ranked(path, tmp_path):
    if "transformers" in path.stem:
        pytest.importorskip("transformers")
    source = path.read_text()
    assert not any(name.startswith("mmstudy") for name in imports(source))
    assert f"MODEL=examples/{path.name}" in source
    given: dict = {}
    exec(re.sub(r"^full_steps = \d+", "full_steps = 3", source, flags=re.MULTILINE), given)
    network, (training, validation) = given["network"](), given["loaders"]()
    assert isinstance(network, nn.Module)
    batch = next(iter(training))
    batch = tuple(batch) if isinstance(batch, list) else batch
    pool = mm.candidate_pool(network, batch, given["loss_fn"], factors=(2,), wider=("random",), matched=())
    some = dict([*pool.items()][:1] + [*pool.items()][-1:])
    ranking = mm.rank_expansions(
        network, given["loss_fn"], training, validation, pool=some, budget=1.0, full_steps=3,
        optimizer=given["optimizer"], metric=given.get("metric"), measured_examples=20, folder=tmp_path / "r",
    )  # fmt: skip
    assert set(ranking.table.index) == {*some, OWN}
    assert ranking.data["final_score"].notnull().all()


def test_there_are_three_of_different_makes():
    assert {path.stem for path in EXAMPLES} == {"characters", "convolutional", "transformers_llama"}
