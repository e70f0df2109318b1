"""What the README shows runs, and gives what it says."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from mmstudy.core import tasks
from mmstudy.core.networks import MLP, ViT

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def trained(seed, inputs, targets):
    torch.manual_seed(seed)
    network = MLP(64, (32, 16), 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    return network


@pytest.fixture
def names():
    """Two trained networks and their data by the names that the README uses."""
    inputs, targets = tasks.load(tasks.Task("digits", (), 300)).training
    networks = {"network": trained(0, inputs, targets), "other": trained(1, inputs, targets)}
    return networks | {"inputs": inputs, "targets": targets}


def test_sizes_and_barriers_are_what_is_printed(names):
    exec(BLOCKS[0], names)
    assert names["wider"].hidden[0].out_features == 64
    assert list(names["found"]["status"].values) == ["ok", "ok"]
    shown = [float(number) for number in re.search(r"round\(1\)  # \[(.*?)\]", BLOCKS[0])[1].split()]
    assert names["found"]["size"].values == pytest.approx(shown, abs=0.2)
    near, far = map(float, re.search(r"# ([\d.]+) nats; without match ([\d.]+)", BLOCKS[0]).groups())
    mm, pair = names["mm"], (names["network"], names["other"], names["batch"])
    assert mm.barrier(*pair, match=True) == pytest.approx(near, abs=0.05)
    assert mm.barrier(*pair) == pytest.approx(far, abs=0.05)


def test_expansions_are_ranked_as_shown(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = TensorDataset(names["inputs"], names["targets"])
    names |= {"loss_fn": lambda model, batch: cross_entropy(model(batch[0]), batch[1]), "torch": torch}
    names |= {"training_loader": DataLoader(data, 60, shuffle=True), "validation_loader": DataLoader(data, 100)}
    exec(BLOCKS[0].partition("\n\n")[0], names)  # its imports
    block = next(block for block in BLOCKS if "rank_expansions" in block)
    exec(block.replace("full_steps=400", "full_steps=40"), names)
    assert names["ranking"].summary in capsys.readouterr().out
    assert names["best"].label == names["ranking"].table.index[0]


def test_a_decoder_gets_deeper_as_shown(names, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    sizes = transformers.LlamaConfig(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
                                     num_attention_heads=2)  # fmt: skip
    names |= {"model": transformers.LlamaForCausalLM(sizes), "tokens": torch.randint(31, (2, 7))}
    exec(BLOCKS[0].partition("\n\n")[0], names)  # its imports
    exec(next(block for block in BLOCKS if "mm.receipt" in block), names)
    assert names["deeper"].config.num_hidden_layers == len(names["deeper"].model.layers) == 6
    assert (tmp_path / "deeper" / "config.json").exists()


def test_any_network_is_covered_as_shown(names):
    pytest.importorskip("transformers")
    exec(BLOCKS[0].partition("\n\n")[0], names)  # its imports
    names["torch"] = torch
    exec(BLOCKS[3], names)
    shown = eval(re.search(r"\.exact  # (\(.*?\))", BLOCKS[3])[1])
    assert names["covered"]["transformer.wte"].exact == shown
    assert names["larger"].transformer.h[0].mlp.c_fc.nf == 96


def test_a_network_is_expanded_as_shown(names):
    exec(BLOCKS[2], names)
    groups = {name: group.size for name, group in names["mm"].couplings(names["vit"], names["inputs"]).items()}
    shown = eval(re.search(r"# (\{.*?)\.\.\.", BLOCKS[2], re.DOTALL)[1].replace("\n#", "\n") + "}")
    assert list(shown.items()) == list(groups.items())[: len(shown)]
    larger = names["larger"]
    assert isinstance(larger, ViT)
    assert len(larger.blocks) == 3
    assert len(larger.norm.weight) == 18
