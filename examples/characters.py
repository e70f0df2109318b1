"""A small causal transformer that predicts the next character of a text: Python's own documentation.

make rank MODEL=examples/characters.py BUDGET=0.1
"""

from itertools import chain, islice, repeat
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

LETTERS = sorted("\n !\"#%&'()*+,-./0123456789:;<=>?@[]_`{|}~ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
LENGTH = 32
full_steps = 600


class Block(nn.Module):
    """Causal attention and a perceptron, each added to the stream."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, stream):
        x = self.before(stream)
        attended = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), is_causal=True)
        stream = stream + self.out(attended)
        return stream + self.down(F.gelu(self.up(self.between(stream))))


class Writer(nn.Module):
    """One head of attention a block."""

    def __init__(self, width: int = 16, hidden: int = 16, depth: int = 2):
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(LETTERS))

    def forward(self, text):
        stream = self.letters(text) + self.places
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


class Snippets(Dataset):
    """Pieces of a text, one after another: LENGTH characters and the next one of each."""

    def __init__(self, text: str):
        numbers = {letter: i for i, letter in enumerate(LETTERS)}
        self.numbers = torch.tensor([numbers[letter] for letter in text if letter in numbers])

    def __len__(self) -> int:
        return (len(self.numbers) - 1) // LENGTH

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        piece = self.numbers[i * LENGTH : (i + 1) * LENGTH + 1]
        return piece[:-1], piece[1:]


def loaders() -> tuple[DataLoader, DataLoader]:
    """Batches of the first 200,000 characters, and of 60,000 later ones."""
    text = "\n".join(topics[name] for name in sorted(topics))
    train, validation = Snippets(text[:200_000]), Snippets(text[300_000:360_000])
    return DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(validation, 100)


def loss_fn(model, batch):
    """Cross-entropy of the next characters."""
    text, following = batch
    return F.cross_entropy(model(text).flatten(0, 1), following.flatten())


def optimizer(parameters):
    """As the network was trained."""
    return torch.optim.AdamW(parameters, 3e-3)


def network() -> nn.Module:
    """The trained network."""
    torch.manual_seed(0)
    model, (batches, _) = Writer(), loaders()
    steps = optimizer(model.parameters())
    for batch in islice(chain.from_iterable(repeat(batches)), full_steps):  # epoch after epoch
        steps.zero_grad()
        loss_fn(model, batch).backward()
        steps.step()
    return model
