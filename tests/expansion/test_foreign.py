"""Models of `transformers` grow: the same function, the same tokens, and the same after they were saved."""

import re

import pytest
import torch
from foreign import MODELS
from torch.utils._pytree import tree_leaves

import mmstudy as mm
from mmstudy.expansion import differences
from mmstudy.expansion.candidate import Candidate, Expansion

pytest.importorskip("transformers")

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
EXACT, SINGLE = 1e-12, 1e-6


def difference(old, new, call) -> float:
    """The largest change of an output, over how much it varies."""
    with torch.no_grad():
        return differences.change(call.of(old).logits, call.of(new).logits)


def deeper(name: str, operator: str) -> tuple[torch.nn.Module, Expansion]:
    network = MODELS[name].network()
    return network, Candidate(operator, (f"{MODELS[name].blocks}.0",), (1,)).grow(network, MODELS[name].call())


def loaded(network, folder):
    network.save_pretrained(folder)
    return type(network).from_pretrained(folder, dtype=torch.float64).eval()


def saved_and_asked(model, network, new, folder):
    """See that what is saved of the grown network is the same function, and writes the same tokens."""
    again, before = loaded(new, folder / "new"), loaded(network, folder / "old")
    assert difference(before, again, model.call()) <= EXACT
    assert type(again) is type(new) is type(network)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in new.state_dict().items()}
    if model.generates:
        prompt = model.call(2, 5).options["input_ids"]
        tokens = [net.generate(prompt, **GREEDY) for net in (network, new, again)]
        assert all(torch.equal(tokens[0], each) for each in tokens)
        assert len(tokens[0].unique()) > 3  # something is written


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, model in MODELS.items() for what in model.wider])
def test_a_wider_model_is_the_same_function_and_its_configuration_follows_where_its_class_has_one(name, what, tmp_path):
    model = MODELS[name]
    network, (pattern, configured) = model.network(), model.wider[what]
    groups = mm.couplings(network, model.batch())
    places = {place: 2 * group.size for place, group in groups.items() if re.fullmatch(pattern, place)}
    assert places
    grown = Candidate("lemon", tuple(places), tuple(places.values())).grow(network, model.call())
    new = grown.network
    assert sum(p.numel() for p in new.parameters()) > sum(p.numel() for p in network.parameters())
    for call in (model.call(), model.call(3, 5), model.call(masked=True)):
        assert difference(network, new, call) <= (SINGLE if what in model.single else EXACT)
    assert {key: getattr(new.config, key) for key in configured} == configured
    if configured:
        assert grown.configuration == f"{model.kind} builds the grown network from its configuration"
        saved_and_asked(model, network, new, tmp_path)
    else:
        assert f"no configuration of {model.kind} with these numbers changed builds" in grown.configuration


@pytest.mark.parametrize("name", MODELS)
def test_an_inserted_block_does_nothing_or_the_norm_that_forbids_it_is_named(name, tmp_path):
    model = MODELS[name]
    if model.behind:
        with pytest.raises(ValueError, match=rf"{model.blocks}\.0 does nothing: .*{model.behind} stands behind"):
            deeper(name, "identity_block")
        return
    network, grown = deeper(name, "identity_block")
    new = grown.network
    assert {key: getattr(new.config, key) for key in model.depth} == model.depth
    assert grown.configuration == f"{model.kind} builds the grown network from its configuration"
    for call in (model.call(), model.call(3, 5)):
        assert difference(network, new, call) <= EXACT
    saved_and_asked(model, network, new, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_a_copied_block_changes_the_function_and_is_saved_with_the_configuration(name, tmp_path):
    model = MODELS[name]
    network, grown = deeper(name, "interleave")
    new = grown.network
    assert difference(network, new, model.call()) > 1e-6
    assert difference(new, loaded(new, tmp_path), model.call()) <= 1e-6  # Gemma builds a number in single precision
    members = new.get_submodule(model.blocks)
    places = [
        {value for m in member.modules() for key, value in vars(m).items() if key == "layer_idx"} for member in members
    ]
    assert all(each in (set(), {place}) for place, each in enumerate(places))
    assert {id(leaf) for leaf in tree_leaves(dict(new.named_parameters()))}.isdisjoint(map(id, network.parameters()))
