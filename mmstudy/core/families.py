"""The families of base networks: what a task's widths mean in each, and the network that has them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mmstudy.core import networks
from mmstudy.core.datasets import Data

GROUPS = 4  # of a group normalization in `networks`
Widths = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """A kind of network: what its widths are, what is wrong with some ("" if nothing), and how it is built."""

    shape: str
    wrong: Callable[[Widths], str]
    build: Callable[[Widths, int, Data], nn.Module]  # (widths, classes, data) → an untrained network


def _no_stages(widths: Widths) -> str:
    if not widths:
        return "at least one stage is needed"
    return "" if all(width % GROUPS == 0 for width in widths) else f"channels must be multiples of {GROUPS}"


def _no_deep_stages(widths: Widths) -> str:
    return _no_stages(widths[:-1])


def _no_stream(widths: Widths) -> str:
    if len(widths) != 3:
        return "there must be three numbers"
    return "" if widths[0] % widths[1] == 0 else "the heads must divide the width"


def _mlp(widths: Widths, classes: int, data: Data) -> nn.Module:
    if data.vocabulary:
        raise ValueError("an MLP takes numbers, and these inputs are tokens: family='decoder'")
    return networks.MLP(data.training.inputs[0].numel(), widths, classes)


def _resnet(widths: Widths, classes: int, data: Data) -> nn.Module:
    return _deep_resnet((*widths, 1), classes, data)


def _deep_resnet(widths: Widths, classes: int, data: Data) -> nn.Module:
    (channels, *sides), (*stages, blocks) = _image(data), widths
    return networks.ResNet(channels, stages, [blocks] * len(stages), classes, "group", (sides[0], sides[1]))


def _vit(widths: Widths, classes: int, data: Data) -> nn.Module:
    image = _image(data)
    small = (2, 2) if image[1] > 1 else (1, 5)  # pixels; numbers of a signal
    patch = (4, 4) if image[1] > 16 else small
    width, heads, blocks = widths
    return networks.ViT(image, patch, width, blocks, heads, classes)


def _decoder(widths: Widths, _: int, data: Data) -> nn.Module:
    if not data.vocabulary:
        raise ValueError("a decoder takes tokens, and these inputs are numbers: Dataset(..., vocabulary=...)")
    width, heads, blocks = widths
    return networks.Decoder(data.vocabulary, data.training.inputs.shape[1], width, blocks, heads)


def _image(data: Data) -> tuple[int, int, int]:
    if not data.image:
        raise ValueError("this network takes images, and the dataset does not say their shape: Dataset(..., image=...)")
    return data.image


STREAM = "(width of the stream, heads, blocks)"
FAMILIES = {
    "MLP": Family("the widths of the hidden layers", lambda widths: "", _mlp),
    "ResNet": Family("the channels of each stage, of one block each, with group normalization", _no_stages, _resnet),
    "ViT": Family(STREAM, _no_stream, _vit),
    "decoder": Family(STREAM, _no_stream, _decoder),
    "deep ResNet": Family("the channels of each stage, then the blocks that each has", _no_deep_stages, _deep_resnet),
}
