"""Models of `transformers`, called by keyword as they come: they get wider and stay the same function."""

import pytest
import torch

import mmstudy as mm
from mmstudy.expansion.candidate import Candidate
from mmstudy.tracing.calls import Call
from mmstudy.tracing.trace import trace

tf = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {  # the stream, the heads, the perceptron; how exact: a norm that computes in float32 is no more than that
    "GPT-2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(
            vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
        )),
        ("transformer.wte", "transformer.h.0.attn.c_attn[1]", "transformer.h.0.mlp.c_fc"), 1e-12,
    ),
    "Llama": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, num_key_value_heads=2)),
        ("model.embed_tokens", "model.layers.0.self_attn.q_proj[0]", "model.layers.0.mlp.gate_proj"), 1e-5,
    ),
    "BERT": (
        lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
        ("bert.embeddings.word_embeddings", "bert.encoder.layer.0.attention.self.query[0]",
         "bert.encoder.layer.0.intermediate.dense"), 1e-12,
    ),
}  # fmt: skip


def words(count: int, length: int) -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(count)
    tokens = torch.randint(3, 50, (count, length), generator=stream)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.parametrize("name", MODELS)
def test_streams_heads_and_perceptrons_get_wider_and_the_logits_stay(name):
    build, places, precision = MODELS[name]
    torch.manual_seed(0)
    network = build().double().eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch, longer = words(3, 7), words(2, 9)
    call = Call((), batch, "logits")
    traced = trace(network, call)
    for place in places:
        size = mm.couplings(network, batch)[place].size
        new = Candidate("lemon", (place,), (2 * size,)).grow(network, call, traced=traced).network
        for each in (batch, longer):
            with torch.no_grad():
                before, after = network(**each).logits, new(**each).logits
            assert (after - before).abs().max() <= precision * before.abs().max(), place
