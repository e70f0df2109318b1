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

    `blocks`: the list of its blocks; `depth`: the numbers of its configuration that follow when one is inserted;
    `behind`: the norm behind the branches, for which no inserted block does nothing.
    """

    kind: str
    sizes: Mapping[str, Any]
    blocks: str
    depth: Mapping[str, Any] = field(default_factory=lambda: {"num_hidden_layers": 3})
    behind: str = ""

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

    def call(self, examples: int = 2, length: int = 9) -> Call:
        """Tokens or images."""
        stream = generator("foreign", "examples")
        if "image_size" in self.sizes or "depths" in self.sizes:
            return Call((torch.randn(examples, 3, 8, 8, generator=stream, dtype=torch.float64),))
        return Call((), {"input_ids": torch.randint(3, 61, (examples, length), generator=stream)})


LAYERS = "model.layers"
TYPES = ["full_attention"] * 3
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
        "transformer.h",
        {"n_layer": 3},
    ),
    "Llama": Foreign("LlamaForCausalLM", GROUPED, LAYERS),
    "Mistral": Foreign("MistralForCausalLM", GROUPED, LAYERS),
    "Qwen2": Foreign("Qwen2ForCausalLM", GROUPED, LAYERS, {"num_hidden_layers": 3, "layer_types": TYPES}),
    "Gemma": Foreign("GemmaForCausalLM", {**GROUPED, "head_dim": 8}, LAYERS),
    "Phi": Foreign("PhiForCausalLM", GROUPED, LAYERS),
    "OPT": Foreign(
        "OPTForCausalLM", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}, "model.decoder.layers"
    ),
    "GPT-NeoX": Foreign("GPTNeoXForCausalLM", SIZES, "gpt_neox.layers"),
    "ViT": Foreign("ViTForImageClassification", IMAGES, "vit.layers"),
    "DeiT": Foreign("DeiTForImageClassification", IMAGES, "deit.layers"),
    "ResNet": Foreign(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 3], "layer_type": "basic", "num_labels": 5},
        "resnet.encoder.stages.1.layers",
        {"depths": [2, 4]},
    ),
    "RoBERTa": Foreign("RobertaForMaskedLM", SIZES, "roberta.encoder.layer", behind=r"output\.LayerNorm"),
    "DistilBERT": Foreign(
        "DistilBertForMaskedLM",
        {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        "distilbert.transformer.layer",
        {"n_layers": 3},
        behind="output_layer_norm",
    ),
}
