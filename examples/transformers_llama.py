"""A small Llama of the library `transformers`, built from a configuration; its numbers count in several ways.

pip install transformers
make rank MODEL=examples/transformers_llama.py BUDGET=0.1
"""

from itertools import chain, islice, repeat

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH, NUMBERS = 24, 20
full_steps = 400


def sequence(start: int, stride: int, bend: int) -> list[int]:
    """Numbers whose stride changes by `bend` at each step, round a clock of NUMBERS hours."""
    return [(start + stride * i + bend * i * i) % NUMBERS for i in range(LENGTH)]


def loaders() -> tuple[DataLoader, DataLoader]:
    """Three quarters of all such sequences to train on, and the others to judge by."""
    everything = [sequence(a, b, c) for a in range(NUMBERS) for b in range(NUMBERS) for c in range(4)]
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": torch.tensor(everything[i])} for i in order]
    return DataLoader(rows[:1200], 32, shuffle=True), DataLoader(rows[1200:], 100)


def loss_fn(model, batch):
    """The loss that the model computes itself."""
    return model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss


def optimizer(parameters):
    """As the network was trained."""
    return torch.optim.AdamW(parameters, 3e-3)


def network() -> nn.Module:
    """The trained network."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=NUMBERS, max_position_embeddings=LENGTH, **sizes))
    batches, _ = loaders()
    steps = optimizer(model.parameters())
    for batch in islice(chain.from_iterable(repeat(batches)), full_steps):  # epoch after epoch
        steps.zero_grad()
        loss_fn(model, batch).backward()
        steps.step()
    return model
