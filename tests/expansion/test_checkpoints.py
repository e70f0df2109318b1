import json
import struct
import tracemalloc
from dataclasses import replace

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
    network = candidate.expand(base, (inputs, targets), family.loss_fn)
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
    learning = [operator for operator in OPERATORS.values() if operator.learns]
    assert len(learning) == 3
    assert not any(OPERATORS[each.stand_in].learns for each in learning)


PLAIN = {"operator": "zero_outgoing", "locations": ["hidden.0"], "sizes": [9], "seed": 0, "then": None}
FORGED = {
    "no JSON": ("{", "has no valid recipe"),
    "no object": ("[1, 2]", "an expansion has operator, locations, sizes, seed and then; found"),
    "nothing": ("null", "it is empty"),
    "a number of lines": ("1" * 5000, "has no valid recipe"),
    "a field more": (PLAIN | {"code": "import os"}, "an expansion has"),
    "a field less": ({k: v for k, v in PLAIN.items() if k != "seed"}, "an expansion has"),
    "unknown operator": (PLAIN | {"operator": "os.system"}, "unknown operator 'os.system'"),
    "operator of another kind": (PLAIN | {"operator": ["lemon"]}, "operator is no str"),
    "locations as a word": (PLAIN | {"locations": "hidden.0"}, "locations is no list"),
    "locations of numbers": (PLAIN | {"locations": [0]}, "locations are not all of type str"),
    "other lengths": (PLAIN | {"sizes": [9, 9]}, "needs a whole number > 0 for each"),
    "sizes as words": (PLAIN | {"sizes": ["9"]}, "sizes are not all of type int"),
    "a size of true": (PLAIN | {"sizes": [True]}, "sizes are not all of type int"),
    "a size below one": (PLAIN | {"sizes": [-9]}, "needs a whole number > 0 for each"),
    "half a seed": (PLAIN | {"seed": 0.5}, "seed is no int"),
    "then a word": (PLAIN | {"then": "again"}, "an expansion has"),
    "a location of others": (PLAIN | {"locations": ["__class__"]}, "cannot be expanded from this base: unknown"),
    "a thousand million units": (PLAIN | {"sizes": [10**9]}, "asks for a network of 12,0.* parameters"),
    "ten million layers": (
        PLAIN | {"operator": "deeper_random", "locations": ["hidden.1"], "sizes": [10**7]},
        "asks for 10000000 more layers",
    ),
    "many units after others": (PLAIN | {"then": PLAIN | {"sizes": [10**8]}}, "asks for a network of"),
    "many units at several places": (
        PLAIN | {"locations": ["hidden.0", "hidden.1"], "sizes": [9, 10**7]}, "asks for a network of"
    ),
}  # fmt: skip


def forged(path, recipe) -> None:
    tensors = {name: t.contiguous() for name, t in mlp((9, 4)).named_parameters()}
    save_file({k: t.detach() for k, t in tensors.items()}, path, {"candidate": recipe})


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_recipe_is_refused_before_anything_is_built(case, tmp_path):
    recipe, message = FORGED[case]
    forged(path := tmp_path / "forged.safetensors", recipe if isinstance(recipe, str) else json.dumps(recipe))
    with pytest.raises(ValueError, match=rf"forged\.safetensors.*{message}"):
        checkpoints.load(path, mlp(), torch.zeros(2, 7))


@pytest.mark.parametrize("depth", [65, 100_000])
def test_a_recipe_that_is_nested_deep_is_refused(depth, tmp_path):
    head, tail = json.dumps(PLAIN).rsplit("null", 1)
    forged(path := tmp_path / "deep.safetensors", head * depth + "null" + tail * depth)
    with pytest.raises(ValueError, match=r"deep\.safetensors has no valid recipe: (more than 64|.*recursion)"):
        checkpoints.load(path, mlp(), torch.zeros(2, 7))


def test_a_chain_that_could_not_be_read_is_not_written_and_one_of_many_places_is(tmp_path):
    chain = None
    for size in range(80, 10, -1):
        chain = Candidate("zero_outgoing", ("hidden.0",), (size,), then=chain)
    with pytest.raises(ValueError, match="at most 64 expansions one after another; got 70"):
        checkpoints.save(tmp_path / "n.safetensors", chain, mlp())
    base, inputs = mlp((3,) * 4), torch.randn(2, 7)
    wide = Candidate(
        "lemon", tuple(f"hidden.{i}" for i in range(4)), (5,) * 4, then=Candidate("stack", ("hidden.1",), (3,))
    )
    network = wide.expand(base, inputs)
    found, again = checkpoints.load(checkpoints.save(tmp_path / "n.safetensors", wide, network), base, inputs)
    assert found == wide
    assert change(network, again, inputs) == 0


def raw(path, header: dict | bytes, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "more than there is": ({"w": ONE | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, bytes(8)),
    "another shape than the bytes": ({"w": ONE | {"shape": [10**12]}}, bytes(8)),
    "bytes beyond": ({"w": ONE}, bytes(80)),
    "overlapping": ({"w": ONE, "v": ONE}, bytes(8)),
    "unknown type": ({"w": ONE | {"dtype": "object"}}, bytes(8)),
    "no JSON": (b"x" * 50, b""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_header_that_does_not_fit_its_file_is_refused(case, tmp_path):
    raw(path := tmp_path / "broken.safetensors", *BROKEN[case])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read"):
        checkpoints.load(path, mlp(), torch.zeros(2, 7))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_folder_and_a_pickle_are_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        checkpoints.load(tmp_path, mlp(), torch.zeros(2, 7))
    torch.save(mlp().state_dict(), tmp_path / "p.pt")
    with pytest.raises(ValueError, match=r"p\.pt cannot be read"):
        checkpoints.load(tmp_path / "p.pt", mlp(), torch.zeros(2, 7))


def test_an_operator_from_outside_is_known_while_it_is_registered(tmp_path, monkeypatch):
    base, inputs = mlp(), torch.randn(2, 7)
    monkeypatch.setitem(OPERATORS, "mine", OPERATORS["zero_outgoing"])
    monkeypatch.setitem(OPERATORS, "learned", OPERATORS["ligo"])
    monkeypatch.setitem(OPERATORS, "alone", replace(OPERATORS["ligo"], stand_in=""))
    candidate = Candidate("mine", ("hidden.0",), (9,))
    network = candidate.expand(base, inputs)
    path = checkpoints.save(tmp_path / "mine.safetensors", candidate, network)
    assert change(network, checkpoints.load(path, base, inputs)[1], inputs) == 0
    learned, alone = (
        checkpoints.save(tmp_path / f"{name}.safetensors", Candidate(name, ("hidden.0",), (9,)), network)
        for name in ("learned", "alone")
    )
    assert change(network, checkpoints.load(learned, base, inputs)[1], inputs) == 0
    with pytest.raises(ValueError, match="alone learns from data: its entry in OPERATORS needs a `stand_in`"):
        checkpoints.load(alone, base, inputs)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"mine\.safetensors has no valid recipe: unknown operator 'mine'"):
        checkpoints.load(path, base, inputs)
