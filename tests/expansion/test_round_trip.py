"""A decoder of `transformers`, grown in every way at once, writes on as before, and so does what is saved of it."""

import pytest
import torch

import mmstudy as mm

transformers = pytest.importorskip("transformers")


def test_a_decoder_grown_in_stream_heads_perceptron_and_depth_is_saved_loaded_and_generates_the_same(tmp_path):
    sizes = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=30,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(sizes).double().eval()
        tokens = torch.randint(1, 30, (2, 9))
    batch = {"input_ids": tokens}
    covered = mm.coverage(model, batch)
    heads, inner = (
        {name: 2 * covered[name].units for name in covered.growing if part in name} for part in ("q_proj", "mlp")
    )
    steps = [("lemon", {"model.embed_tokens": 24}), ("lemon", heads), ("hypercloning", inner)]
    larger = mm.expand(model, batch, [*steps, ("identity_block", {"model.layers.1": 2})])
    receipt = mm.receipt(model, larger, batch)
    gap, spread = receipt.differences["float64", "evaluation"]
    assert not receipt.wrong and gap <= 1e-5 * spread  # its norms compute in float32
    found = larger.config
    assert (found.hidden_size, found.intermediate_size, found.num_hidden_layers) == (24, 48, 4)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (8, 4, 4)
    larger.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    written = [each.generate(tokens, max_new_tokens=12, do_sample=False) for each in (model, larger, loaded)]
    assert torch.equal(written[0], written[1]) and torch.equal(written[0], written[2])
    assert len(set(written[0][0, 9:].tolist())) > 1  # it does not say one word only
