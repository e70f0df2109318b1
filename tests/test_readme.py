"""What the README shows runs, and gives what it says."""

import re
from pathlib import Path

import pytest
import torch

from mmstudy.core import tasks
from mmstudy.core.networks import MLP, ViT

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A network, data and an optimizer by the names that the README uses."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    inputs, targets = tasks.load(tasks.Task("digits", (), 300)).training
    return {"network": MLP(64, (32, 16), 10), "inputs": inputs, "targets": targets}


def test_a_size_is_measured_as_shown(names):
    exec(BLOCKS[0], names)
    assert (names["extent"]["radius"] >= 0).all()
    assert names["extent"].sizes == {"parent": 1, "ray": 8}
    assert names["curved"]["status"].item() in ("ok", "few_samples", "saddle")
    assert names["wider"].hidden[0].out_features == 64


def test_a_network_is_expanded_as_shown(names):
    definition, use = BLOCKS[1].split("candidate = Candidate", 1)
    exec(definition, names)
    vit = names["vit"]
    groups = {name: group.size for name, group in names["couplings"](vit, names["inputs"]).items()}
    shown = eval(re.search(r"# (\{.*?)\.\.\.", definition, re.DOTALL)[1].replace("\n#", "\n") + "}")
    assert list(shown.items()) == list(groups.items())[: len(shown)]
    names["optimizer"] = torch.optim.Adam(vit.parameters())
    exec("candidate = Candidate" + use, names)
    network = names["network"]
    assert isinstance(network, ViT)
    assert len(network.blocks) == 3
    assert len(network.norm.weight) == 18
    for expected, found in zip(names["expansion"].network.parameters(), network.parameters(), strict=True):
        assert torch.equal(expected, found)
    assert len(names["optimizer"].param_groups[0]["params"]) == len(list(network.parameters()))
