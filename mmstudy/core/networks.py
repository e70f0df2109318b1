"""The networks of the study: plain modules that read like a textbook.

Shapes: B examples, C channels, T tokens, E embedding width, H heads, D head width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

NORMS = ("batch", "group")


class MLP(nn.Module):
    """A multilayer perceptron with a width per hidden layer: x → relu(W₁x + b₁) → … → Wx + b.

    With `normalized`, every hidden layer is followed by batch normalization, before its ReLU.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, normalized: bool = False):
        super().__init__()
        _positive(widths=widths)
        layers = [nn.Linear(a, b) for a, b in pairwise([inputs, *widths])]
        self.hidden = nn.ModuleList(layers)
        if normalized:
            self.hidden = nn.ModuleList(nn.Sequential(h, nn.BatchNorm1d(h.out_features)) for h in layers)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """The outputs; an example may have any shape."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.head(x)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut: the identity, or a 1 × 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), _norm(norm, width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b width h2 w2"]:
        """The block on feature maps."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """The CIFAR residual network (He et al. 2016, arXiv 1512.03385, section 4.2), of any shape.

    `widths` are the channels of each stage and `blocks` its number of blocks; every stage but the first halves the
    image. ResNet(3, (16, 32, 64), (3, 3, 3), 10) is the paper's ResNet-20, but for its shortcuts, which are
    projections here (the paper's option B). `norm` is "batch" or "group" (four groups).

    Inputs are images (B, channels, height, width), or rows that hold such images if `image` = (height, width) says so.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        outputs: int,
        norm: str = "batch",
        image: tuple[int, int] | None = None,
    ):
        super().__init__()
        _positive(widths=widths, blocks=blocks)
        if len(widths) != len(blocks):
            raise ValueError(f"widths {tuple(widths)} and blocks {tuple(blocks)} must name the same stages")
        if norm not in NORMS:
            raise ValueError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
        self.image = (channels, *image) if image else None
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = _norm(norm, widths[0])
        self.stages = nn.ModuleList()
        for stage, (before, width, count) in enumerate(zip([widths[0], *widths], widths, blocks, strict=False)):
            first = ResidualBlock(before, width, 2 if stage else 1, norm)
            self.stages.append(
                nn.ModuleList([first, *(ResidualBlock(width, width, 1, norm) for _ in range(count - 1))])
            )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """The outputs for images, which may come as rows where `image` says their shape."""
        if self.image:
            x = x.unflatten(1, self.image)
        x = self.norm(self.stem(x)).relu()
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]  # a list of modules
                x = block(x)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017).

    With fewer `key_heads`, several heads of queries share one head of keys and values (grouped-query attention, Ainslie
    et al. 2023, arXiv 2305.13245).
    """

    def __init__(self, width: int, heads: int, key_heads: int, head_width: int, causal: bool):
        super().__init__()
        if heads % key_heads:
            raise ValueError(f"{heads} heads of queries cannot share {key_heads} heads of keys evenly")
        self.heads, self.key_heads, self.causal = heads, key_heads, causal
        self.query = nn.Linear(width, heads * head_width)
        self.key = nn.Linear(width, key_heads * head_width)
        self.value = nn.Linear(width, key_heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Float[Tensor, "b t e"]) -> Float[Tensor, "b t e"]:
        """What each token gathers from the others."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        v = self.value(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        shared = self.heads != self.key_heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=shared)
        return self.out(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a two-layer perceptron at each token, each on a normalized copy of the stream (pre-norm)."""

    def __init__(self, width: int, heads: int, key_heads: int, head_width: int, hidden: int, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, key_heads, head_width, causal)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b t e"]) -> Float[Tensor, "b t e"]:
        """The stream, with what attention and the perceptron add to it."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _blocks(
    width: int, depth: int, heads: int, key_heads: int | None, ratio: float | int, causal: bool
) -> nn.ModuleList:
    if width % heads:
        raise ValueError(f"a width of {width} cannot be split into {heads} heads")
    shape = (width, heads, key_heads or heads, width // heads, round(ratio * width), causal)
    return nn.ModuleList(TransformerBlock(*shape) for _ in range(depth))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) that averages its tokens before the head.

    Inputs are images (B, channels, height, width), or rows that hold such images. Digits are ViT((1, 8, 8), (2, 2),
    ...); a signal of 40 numbers in segments of 5 is ViT((1, 1, 40), (1, 5), ...). `ratio` is the width of the
    perceptrons over that of the stream.
    """

    def __init__(
        self,
        image: tuple[int, int, int],
        patch: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        outputs: int,
        ratio: float | int = 4,
    ):
        super().__init__()
        channels, *sides = image
        if any(side % p for side, p in zip(sides, patch, strict=True)):
            raise ValueError(f"an image {tuple(sides)} cannot be cut into patches {tuple(patch)}")
        _positive(depth=[depth])
        tokens = sides[0] // patch[0] * (sides[1] // patch[1])
        self.image = tuple(image)
        self.embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.blocks = _blocks(width, depth, heads, None, ratio, causal=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """The outputs for images, in any shape that holds their pixels."""
        x = self.embedding(x.reshape(-1, *self.image)).flatten(2).transpose(1, 2)  # (B, T, E)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Decoder(nn.Module):
    """A causal language model of the same blocks (GPT-2: Radford et al. 2019) whose embedding is its output layer too.

    Inputs are tokens (B, T), T ≤ `context`; the outputs are the logits of each next token, (B, T, vocabulary).
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        key_heads: int | None = None,
        ratio: float | int = 4,
    ):
        super().__init__()
        _positive(depth=[depth])
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(context, width) * 0.02)
        self.blocks = _blocks(width, depth, heads, key_heads, ratio, causal=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Int[Tensor, "batch t"]) -> Float[Tensor, "batch t vocabulary"]:
        """The logits of each next token."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _norm(kind: str, width: int) -> nn.Module:
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(4, width)


def _positive(**sizes: Sequence[int]) -> None:
    for name, values in sizes.items():
        if not values or min(values) < 1:
            raise ValueError(f"{name} must be at least one number, each ≥ 1; got {tuple(values)}")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for a while; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what is tied has the first of its names."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def initialize(network: nn.Module, generator: torch.Generator, kept: Iterable[Tensor] = ()) -> nn.Module:
    """Draw every weight and bias anew from U(−1/√fan_in, 1/√fan_in), in place; returns the network.

    PyTorch's own default for linear and convolutional layers, but from a generator of ours, so that a seed names a
    network. Normalizations, which have no matrix, are left as they are: at scale 1 and shift 0 in a new network.

    Args:
        kept: parameters that stay.
    """
    drawn = set(kept)
    for module in network.modules():
        bound = None
        for parameter in module.parameters(recurse=False):  # a layer's bias follows its weight and shares its bound
            if parameter.ndim > 1:
                bound = parameter[0].numel() ** -0.5
            if bound is None or parameter in drawn:
                continue
            draw = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.copy_((2 * draw - 1) * bound)
            drawn.add(parameter)
    return network


def count_parameters(network: nn.Module) -> int:
    """The number of trainable scalars; a tied tensor counts once."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_flops(network: nn.Module, *example: Any, **options: Any) -> int:
    """Floating-point operations of one forward pass on one example (a multiply-add counts as two).

    Attention runs unfused meanwhile: of its fused forms the counter knows those of a GPU alone.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(*example, **options)
    return counter.get_total_flops()
