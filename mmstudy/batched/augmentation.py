"""Images shifted by up to four pixels and mirrored, made on their device, for all networks of a step at once.

The usual augmentation of small images (He et al. 2016, arXiv 1512.03385, section 4.2), but that the pixels of the edge
are repeated where the image has moved away, which needs no word for black.

An augmented training set is a larger one, in which every image has `VARIANTS`. A draw is a number in that larger set:
draw = example + variant · examples. So what a network sees is in its minibatch order, and networks that share an order
see the same images, whatever they are batched with. Variant 0 is the image itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

SHIFT = 4  # pixels, either way
VARIANTS = 2 * (2 * SHIFT + 1) ** 2  # of an image: mirrored or not, at each place

Take = Callable[[Any, Tensor], Any]  # (batch, draws) → the batch of what was drawn


def varied(
    order: Int[Tensor, "k steps batch"], examples: int, generators: Sequence[torch.Generator]
) -> Int[Tensor, "k steps batch"]:
    """Minibatch orders of draws: a variant for each example that an order names, from that order's own generator."""
    variants = torch.stack([torch.randint(VARIANTS, order.shape[1:], generator=g) for g in generators])
    return order + variants * examples


def take(image: tuple[int, int, int], device: torch.device) -> Take:
    """What picks the variants that were drawn of the examples of a batch (inputs, targets), draws of any shape.

    Args:
        image: the shape (channels, height, width) of the image that a row of inputs holds, channel by channel.
        device: where the examples are.
    """
    shown = pixels(image).to(device)

    def taken(batch: tuple[Tensor, Tensor], draws: Int[Tensor, " *many"]) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        example, variant = draws % len(inputs), draws // len(inputs)
        return inputs[example].gather(-1, shown[variant]), targets[example]

    return taken


def pixels(image: tuple[int, int, int]) -> Int[Tensor, "variants features"]:
    """Which pixel of the row each pixel of each variant shows."""
    channels, height, width = image
    moved = torch.arange(2 * SHIFT + 1)
    moved = torch.where(moved > SHIFT, SHIFT - moved, moved)  # 0, 1, …, 4, −1, …, −4
    down, right, mirrored = (index.flatten() for index in torch.meshgrid(moved, moved, torch.arange(2), indexing="ij"))
    rows = (torch.arange(height) + down.unsqueeze(1)).clamp(0, height - 1)  # (variants, height)
    columns = (torch.arange(width) + right.unsqueeze(1)).clamp(0, width - 1)
    columns = torch.where(mirrored.unsqueeze(1) == 1, width - 1 - columns, columns)
    place = rows.unsqueeze(2) * width + columns.unsqueeze(1)  # (variants, height, width)
    channel = torch.arange(channels).view(-1, 1, 1) * height * width
    return (place.unsqueeze(1) + channel).flatten(1)
