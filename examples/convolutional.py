"""A small convolutional network that reads handwritten digits (8 × 8 pixels, scikit-learn's), some labels wrong.

make rank MODEL=examples/convolutional.py BUDGET=0.1
"""

from itertools import chain, islice, repeat

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

full_steps = 800
schedule = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, full_steps)  # noqa: E731


class Reader(nn.Module):
    """Two convolutions with batch normalization, the mean over all places, and a linear layer."""

    def __init__(self, first: int = 4, second: int = 6):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first)
        self.second = nn.Conv2d(first, second, 3, padding=1)
        self.head = nn.Linear(second, 10)

    def forward(self, images):
        x = F.max_pool2d(self.norm(self.first(images)).relu(), 2)
        return self.head(self.second(x).relu().mean((2, 3)))


def data() -> tuple[TensorDataset, TensorDataset]:
    """900 images to train on, of which a tenth have a random label, and the others to judge by."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=random)
    train, validation = order[:900], order[900:]
    noisy = labels.clone()
    wrong = train[:90]
    noisy[wrong] = torch.randint(10, (len(wrong),), generator=random)
    return TensorDataset(images[train], noisy[train]), TensorDataset(images[validation], labels[validation])


def loaders() -> tuple[DataLoader, DataLoader]:
    """Batches to train on, and to judge by."""
    train, validation = data()
    return DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(validation, 300)


def loss_fn(model, batch):
    """Cross-entropy."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def metric(model, batch):
    """Accuracy."""
    images, labels = batch
    return (model(images).argmax(-1) == labels).float().mean()


def optimizer(parameters):
    """As the network was trained."""
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def network() -> nn.Module:
    """The trained network."""
    torch.manual_seed(0)
    model, (batches, _) = Reader(), loaders()
    steps = optimizer(model.parameters())
    rate = schedule(steps)
    for batch in islice(chain.from_iterable(repeat(batches)), full_steps):  # epoch after epoch
        steps.zero_grad()
        loss_fn(model, batch).backward()
        steps.step()
        rate.step()
    return model
