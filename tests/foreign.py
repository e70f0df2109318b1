"""Networks that others have written, from small configurations with random parameters, and what can be grown in them.

`MODELS` is the one table: tests run through it. It needs the package `transformers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmstudy.core.seeds import generator
from mmstudy.tracing.calls import Call

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
IMAGES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4, "num_labels": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """A class of `transformers`, its sizes, and what grows.

    `wider`: what gets twice as wide → a pattern of the places that do so at once, and the numbers of its configuration
    that follow; none, where no configuration of its class has such sizes. `single`: what is exact in single precision
    alone, as the model computes its new numbers in it. `blocks`: the list of its blocks; `depth`: the numbers that
    follow when one is inserted; `behind`: the norm behind the branches, for which no inserted block does nothing.
    """

    kind: str
    sizes: Mapping[str, Any]
    wider: Mapping[str, tuple[str, Mapping[str, Any]]]
    blocks: str
    depth: Mapping[str, Any] = field(default_factory=lambda: {"num_hidden_layers": 3})
    behind: str = ""
    single: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether it is a decoder, which writes tokens."""
        return self.kind.endswith("CausalLM") or self.kind.endswith("LMHeadModel")

    def network(self) -> nn.Module:
        """The model in float64, with parameters of its own everywhere."""
        import transformers

        kind = getattr(transformers, self.kind)
        with torch.random.fork_rng(devices=[]):
            network = kind(kind.config_class(**self.sizes)).double().eval()
        stream = generator("foreign", self.kind)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        return network

    def batch(self) -> Any:
        """What `call` calls it on, as a user has it."""
        call = self.call()
        return dict(call.options) or call.arguments[0]

    def call(self, examples: int = 2, length: int = 9, masked: bool = False) -> Call:
        """Tokens, with a mask if it shall be, or images."""
        stream = generator("foreign", "examples")
        if "image_size" in self.sizes or "depths" in self.sizes:
            return Call((torch.randn(examples, 3, 8, 8, generator=stream, dtype=torch.float64),))
        tokens = torch.randint(3, 61, (examples, length), generator=stream)
        return Call((), {"input_ids": tokens} | ({"attention_mask": torch.ones_like(tokens)} if masked else {}))


LAYERS = "model.layers"
TYPES = ["full_attention"] * 3
HEADS = {"num_attention_heads": 8}
GROUPS = {**HEADS, "num_key_value_heads": 4}
INNER = {"intermediate_size": 96}


def _wider(
    stream: str, heads: str, inner: str, configured: tuple[Mapping, ...], width: str = ""
) -> dict[str, tuple[str, Mapping]]:
    """Stream and heads at once, which most configurations tie together; heads alone; what is inside perceptrons.

    And the width of heads: of queries and keys, and of values, at once, since one number of the model is both.
    """
    found = dict(zip(WIDER, zip((f"{stream}|{heads}", heads, inner), configured, strict=True), strict=True))
    return found | ({"width of heads": (width, {})} if width else {})


WIDER = ("stream and heads", "heads", "perceptrons")
ROTARY = r".*q_proj\[2\]|.*v_proj\[1\]"
FLAT = r".*[qv]_proj\[1\]"
GATED = "model.embed_tokens", r".*q_proj\[0\]", ".*mlp.gate_proj"
PLAIN = r".*q_proj\[0\]", ".*fc1", ({"hidden_size": 64, **HEADS}, {}, INNER)
MODELS = {
    "GPT-2": Foreign(
        "GPT2LMHeadModel",
        {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        _wider(
            "transformer.wte",
            r".*c_attn\[1\]",
            ".*c_fc",
            ({"n_embd": 64, "n_head": 8, "n_inner": 128}, {}, {"n_inner": 256}),
        ),
        "transformer.h",
        {"n_layer": 3},
    ),
    "Llama": Foreign(
        "LlamaForCausalLM", GROUPED, _wider(*GATED, ({"hidden_size": 64, **GROUPS}, GROUPS, INNER), ROTARY), LAYERS
    ),
    "Mistral": Foreign(
        "MistralForCausalLM", GROUPED, _wider(*GATED, ({"hidden_size": 64, **GROUPS}, GROUPS, INNER), ROTARY), LAYERS
    ),
    "Qwen2": Foreign(
        "Qwen2ForCausalLM",
        GROUPED,
        _wider(*GATED, ({"hidden_size": 64, **GROUPS}, {}, INNER), ROTARY),
        LAYERS,
        {"num_hidden_layers": 3, "layer_types": TYPES},
    ),
    "Gemma": Foreign(
        "GemmaForCausalLM",
        {**GROUPED, "head_dim": 8},
        _wider(*GATED, ({}, GROUPS, INNER), ROTARY),
        LAYERS,
        single=("stream and heads",),  # its norms add 1 to their weights
    ),
    "Phi": Foreign(
        "PhiForCausalLM",
        GROUPED,
        _wider("model.embed_tokens", r".*q_proj\[0\]", ".*fc1", ({"hidden_size": 64, **GROUPS}, {}, INNER)),
        LAYERS,
    ),
    "OPT": Foreign(
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
        _wider(
            "model.decoder.embed_tokens",
            r".*q_proj\[0\]",
            ".*fc1",
            ({"hidden_size": 64, "word_embed_proj_dim": 64, **HEADS}, {}, {"ffn_dim": 96}),
            FLAT,
        ),
        "model.decoder.layers",
    ),
    "GPT-NeoX": Foreign(
        "GPTNeoXForCausalLM",
        SIZES,
        _wider(
            "gpt_neox.embed_in",
            r".*query_key_value\[0\]",
            ".*dense_h_to_4h",
            ({"hidden_size": 64, **HEADS}, {}, INNER),
        ),
        "gpt_neox.layers",
    ),
    "ViT": Foreign(
        "ViTForImageClassification",
        IMAGES,
        _wider("vit.embeddings.patch_embeddings.projection", *PLAIN, FLAT),
        "vit.layers",
    ),
    "DeiT": Foreign(
        "DeiTForImageClassification",
        IMAGES,
        _wider("deit.embeddings.patch_embeddings.projection", *PLAIN, FLAT),
        "deit.layers",
    ),
    "ResNet": Foreign(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3], "layer_type": "basic", "num_labels": 5},
        {
            "all stages": (".*convolution", {"embedding_size": 16, "hidden_sizes": [16, 32]}),
            "inside blocks": (r".*layer\.0\.convolution", {}),
        },
        "resnet.encoder.stages.1.layers",
        {"depths": [2, 4]},
    ),
    "RoBERTa": Foreign(
        "RobertaForMaskedLM",
        SIZES,
        _wider(
            "roberta.embeddings.word_embeddings",
            r".*query\[0\]",
            ".*intermediate.dense",
            ({"hidden_size": 64, **HEADS}, {}, INNER),
            r".*(query|value)\[1\]",
        ),
        "roberta.encoder.layer",
        behind=r"output\.LayerNorm",
    ),
    "DistilBERT": Foreign(
        "DistilBertForMaskedLM",
        {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        _wider(
            "distilbert.embeddings.word_embeddings",
            r".*q_lin\[0\]",
            ".*lin1",
            ({"dim": 64, "n_heads": 8}, {}, {"hidden_dim": 96}),
            r".*[qv]_lin\[1\]",
        ),
        "distilbert.transformer.layer",
        {"n_layers": 3},
        behind="output_layer_norm",
    ),
}
