import pytest
import torch
from cases import change, mlp, of_family
from safetensors.torch import save_file

from mmstudy.core.networks import initialize
from mmstudy.core.seeds import generator
from mmstudy.expansion import checkpoints
from mmstudy.expansion.candidate import Candidate
from mmstudy.expansion.operators import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_loaded_is_what_was_saved(operator, tmp_path):
    """Trained in between, and onto a base of other values: the file and the architecture of the base say it all."""
    name = "MLP" if operator == "deeper_identity" else "ViT"
    family, base, inputs, targets = of_family(name)
    place = {"MLP": "hidden.0", "ViT": "blocks.0.up" if OPERATORS[operator].widens else "blocks.0"}[name]
    candidate = Candidate(operator, (place,), (96 if OPERATORS[operator].widens else 2,), seed=3)
    network = candidate.expand(base, inputs, targets, family.loss_fn)
    for parameter in network.parameters():
        parameter.data += 0.01
    path = checkpoints.save(tmp_path / "folder" / "network.safetensors", candidate, network)
    other = initialize(family.build().double(), generator("another base"))
    found, again = checkpoints.load(path, other, inputs)
    assert found == candidate
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in network.state_dict().items())
    assert change(network, again, inputs) == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written beside it


def test_ties_running_statistics_and_eps_come_back(tmp_path):
    _, base, inputs, _ = of_family("decoder")
    candidate = Candidate("lemon", ("embedding",), (21,))  # no multiple: the eps of every norm changes
    network = candidate.expand(base, inputs)
    _, again = checkpoints.load(checkpoints.save(tmp_path / "d.safetensors", candidate, network), base, inputs)
    assert again.head.weight is again.embedding.weight
    assert again.norm.eps == network.norm.eps != base.norm.eps
    assert change(base, again, inputs) < 1e-12

    _, base, inputs, _ = of_family("ResNet, batch norm")
    candidate = Candidate("random", ("stem",), (6,), then=Candidate("stack", ("stages.0.0", "stages.0.1"), (1, 1)))
    network = candidate.expand(base, inputs).train()
    network(inputs)  # moves the running statistics
    _, again = checkpoints.load(checkpoints.save(tmp_path / "r.safetensors", candidate, network), base, inputs)
    assert again.norm.num_batches_tracked == network.norm.num_batches_tracked == 1
    assert change(network, again, inputs) == 0
    assert len(again.stages[0]) == 4


def test_bad_files_are_refused_by_name(tmp_path):
    base, inputs = mlp(), torch.zeros(2, 7)
    candidate = Candidate("zero_outgoing", ("hidden.0",), (9,))
    whole = checkpoints.save(tmp_path / "whole.safetensors", candidate, candidate.expand(base, inputs))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        checkpoints.load(tmp_path / "nowhere.safetensors", base, inputs)
    for kept in (0, 5, 100, whole.stat().st_size - 1):
        half = tmp_path / f"half{kept}.safetensors"
        half.write_bytes(whole.read_bytes()[:kept])
        with pytest.raises(ValueError, match=rf"half{kept}\.safetensors cannot be read.*damaged"):
            checkpoints.load(half, base, inputs)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors holds tensors but no candidate"):
        checkpoints.load(tmp_path / "foreign.safetensors", base, inputs)
    with pytest.raises(ValueError, match=r"another base: .*hidden\.1\.weight"):
        checkpoints.load(whole, mlp((6, 5)), inputs)
    assert base.hidden[0].out_features == 6


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    base, inputs = mlp(), torch.zeros(2, 7)
    candidate = Candidate("zero_outgoing", ("hidden.0",), (9,))
    path = checkpoints.save(tmp_path / "n.safetensors", candidate, candidate.expand(base, inputs))
    before = path.read_bytes()

    def broken(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(path, candidate, base)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_operator_that_learns_has_a_stand_in_that_does_not():
    learning = {name for name, operator in OPERATORS.items() if operator.learns}
    assert learning == checkpoints.STAND_INS.keys()
    assert not any(OPERATORS[name].learns for name in checkpoints.STAND_INS.values())
