"""Networks as people write them, each with what can be said of it: what grows exactly, and what is refused and why."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from cases import Wired
from torch import Tensor, nn
from torch.nn import functional as F


class Recurrent(nn.Module):
    """A recurrence written by hand, over as many steps as there are."""

    def __init__(self, start: Callable[["Recurrent", Tensor], Tensor]):
        super().__init__()
        self.hidden, self.start = 6, start
        self.first, self.step, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.start(self, x)
        for t in range(x.shape[1]):
            h = (self.first(x[:, t]) + self.step(h)).tanh()
        return self.head(h)


class UNet(nn.Module):
    """Two levels down and up again, each joined with what went down; one join is normalized in groups."""

    def __init__(self):
        super().__init__()
        self.down, self.inner = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.deep, self.norm = nn.Conv2d(6, 5, 1), nn.GroupNorm(4, 12)
        self.rise, self.meet = nn.ConvTranspose2d(5, 6, 2, stride=2), nn.Conv2d(12, 6, 1)
        self.up, self.join, self.head = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        one = self.down(x).relu()
        two = self.inner(F.max_pool2d(one, 2)).relu()
        three = self.deep(F.max_pool2d(two, 2)).relu()
        two = self.meet(self.norm(torch.cat([two, self.rise(three)], 1))).relu()
        return self.head(self.join(torch.cat([one, self.up(two)], 1)).relu())


class Rotary(nn.Module):
    """Grouped-query attention with rotary positions and RMS norms by hand, as language models have it."""

    def __init__(self):
        super().__init__()
        self.heads, self.keys = 4, 2
        self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11, bias=False)
        self.scale1, self.scale2 = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.gate, self.up, self.down = (
            nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 16)
        )  # fmt: skip
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]), persistent=False)

    def norm(self, x, scale):
        return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))

    def turned(self, x, angles):
        half = x.shape[-1] // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    def forward(self, tokens):
        x = self.embedding(tokens)
        angles = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(1) * self.frequencies
        angles = torch.cat([angles, angles], -1)
        y = self.norm(x, self.scale1)
        q, k, v = (
            layer(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for layer, heads in ((self.q, self.heads), (self.k, self.keys), (self.v, self.keys))
        )
        y = F.scaled_dot_product_attention(self.turned(q, angles), self.turned(k, angles), v, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm(x, self.scale2)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Inception(nn.Module):
    """Convolutions of several extents beside each other, and a pool, normalized together and read by one layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.small, self.narrow = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 1)
        self.wide, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 16, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        branches = [self.small(x), self.wide(self.narrow(x).relu()), F.avg_pool2d(x, 3, 1, 1)]
        return self.head(self.norm(torch.cat(branches, 1)).relu().flatten(1))


class Experts(nn.Module):
    """Experts side by side in one tensor, mixed by a router; `top` of them, or all."""

    def __init__(self, top: int | None = None):
        super().__init__()
        self.top, self.stem, self.router, self.head = top, nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 2)
        self.up, self.down = nn.Parameter(torch.rand(4, 6, 5) - 0.5), nn.Parameter(torch.rand(4, 5, 6) - 0.5)

    def forward(self, x):
        x = self.stem(x)
        weights = self.router(x).softmax(-1)
        if self.top:
            least = weights.topk(self.top, -1).values.amin(-1, keepdim=True)
            weights = weights * (weights >= least)
        y = torch.einsum("bd,edh->beh", x, self.up).relu()
        return self.head(torch.einsum("beh,ehd->bed", y, self.down).mul(weights.unsqueeze(-1)).sum(1))


class Compared(nn.Module):
    """A branch that depends on how many examples there are."""

    def __init__(self):
        super().__init__()
        self.body, self.other, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        y = self.body(x).relu()
        return self.head(self.other(y) + y if len(x) > 4 else self.other(y))


class FrozenNorm(nn.Module):
    """A batch normalization whose numbers are buffers, written by hand."""

    def __init__(self, width: int):
        super().__init__()
        for name, value in {"weight": 1.2, "bias": 0.1, "mean": 0.3, "variance": 0.8}.items():
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x):
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.mean * scale)[:, None, None]


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def dense(net, x):
    for layer in net.layers:
        x = torch.cat([x, layer(x).relu()], 1)
    return net.head(x)


def twice(net, x):
    return net.head(net.same(net.same(net.stem(x)).relu()).relu())


def in_place(net, x):
    x = net.stem(x)
    y = net.side(x)
    y += x
    y.mul_(2).clamp_(-1, 1)
    return net.head(F.relu_(y))


def scaled(net, x):
    x = net.stem(x)
    return net.head(x + net.gamma * net.down(F.gelu(net.up(x))))


def excited(net, x):
    x = net.stem(x)
    return net.head(x * net.up(net.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]).mean((2, 3))


def sliced(net, x):
    qkv = net.qkv(x)
    q, k, v = qkv[..., : net.width], qkv[..., net.width : 2 * net.width], qkv[..., 2 * net.width :]
    q, k, v = (part.unflatten(-1, (net.heads, -1)).transpose(1, 2) for part in (q, k, v))
    return net.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def sliced_by_numbers(net, x):
    y = net.body(x)
    return net.head(torch.cat([y[..., :3].relu(), y[..., 3:].tanh(), x], -1))


def normalized_together(net, x):
    return net.head(net.norm(torch.cat([net.one(x), net.two(x)], -1)))


def attended(net, x):
    x = net.stem(x)
    return net.head(x + net.attention(x, x, x, need_weights=False)[0])


def shuffled(net, x):
    return net.head(F.channel_shuffle(net.stem(x), 2).relu())


def one_and_scale(net, tokens):
    """RMS norms that are scaled by 1 + w, between an embedding and itself, as Gemma has it."""

    def norm(x, scale):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + net.eps) * (1.0 + scale)

    x = net.words(tokens)
    x = x + net.body(norm(x, net.first))
    return norm(x, net.last) @ net.words.weight.T


def tied(net, x):
    return F.linear(net.body(net.words(x).sigmoid()), net.words.weight)


def with_class_token(net, x):
    x = torch.cat([net.token.expand(len(x), -1, -1), net.stem(x)], 1)
    return net.head((x + net.inner(x))[:, 0])


def in_uneven_pieces(net, x):
    """Cut into pieces; one is padded to the length of the other, and both are averaged."""
    one, two = net.body(x).split([4, 2], -1)
    return net.head(torch.stack([one.tanh(), F.pad(two, (0, 2))], 1).mean(1))


def called_once(network: nn.Module) -> nn.Module:
    network(rows(2))
    return network


def perceptron(first: nn.Module) -> nn.Module:
    return chain(first, nn.ReLU(), nn.Linear(6, 2))


def masked(net, x):
    return net.head(F.linear(x, net.stem.weight * net.mask, net.stem.bias).relu())


def of_a_dictionary(net, x):
    return {"logits": net.head(net.body(x).relu()), "hidden": net.body(x)}


class Averages(nn.Module):
    """Averages of units, kept for later and never read in evaluation."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("average", torch.zeros(6))

    def forward(self, x):
        y = self.body(x).relu()
        if self.training:
            self.average.lerp_(y.detach().mean(0), 0.1)
        return self.head(y)


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 4, 4)


def rows(count: int) -> Tensor:
    return torch.randn(count, 3)


def sentences(count: int) -> Tensor:
    return torch.randn(count, count + 1, 3)


def words(count: int) -> Tensor:
    return torch.randint(11, (count, count + 2))


@dataclass(frozen=True)
class Animal:
    """A network, its inputs, the places that grow exactly by some operator, and the refusals: location → reason.

    `whole`: the whole network is refused, by this message. `examples`: how many make two batches.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor] = rows
    grows: dict[str, str] = field(default_factory=dict)  # location, or several joined by & → an exact operator
    refused: dict[str, str] = field(default_factory=dict)  # location → part of the reason
    whole: str = ""
    examples: tuple[int, int] = (4, 3)


def held(net, x):
    """Sizes of its layers stand in a list, a dict and an object, as configurations hold them."""
    x = net.first(x).view(-1, net.sizes[1]).relu()
    x = net.second(x).view(-1, net.options["model"]["second"]).relu()
    return net.head(net.third(x).view(-1, net.settings.third).relu())


ZOO = {
    "sizes in a list, a dict, an object": Animal(
        lambda: Wired(
            held, first=nn.Linear(3, 6), second=nn.Linear(6, 6), third=nn.Linear(6, 6), head=nn.Linear(6, 2),
            sizes=[3, 6, 6, 6, 2], options={"model": {"second": 6}, "horizon": 6}, settings=SimpleNamespace(third=6),
        ),
        rows,
        {"first": "lemon", "second": "zero_outgoing", "third": "lemon"},
    ),
    "RMS norms, rotary grouped-query attention": Animal(
        Rotary, words,
        {"embedding": "lemon", "q[0]": "lemon", "q[2]": "lemon", "gate": "zero_outgoing", "v[1]": "zero_outgoing"},
        {"head": "network's output"},
    ),
    "U-Net": Animal(
        UNet, images,
        {"down": "lemon", "inner[1]": "hypercloning", "deep": "lemon", "meet": "orthogonal", "up": "lemon",
         "join": "zero_outgoing", "rise[0]": "lemon"},
        {"head": "network's output"},
    ),
    "DenseNet": Animal(
        lambda: Wired(dense, layers=nn.ModuleList([nn.Conv2d(2, 3, 1), nn.Conv2d(5, 3, 1)]), head=nn.Conv2d(8, 2, 1)),
        images, {"layers.0": "lemon", "layers.1": "zero_outgoing"},
    ),
    "inception": Animal(
        Inception, images, {"stem": "lemon", "small": "zero_outgoing", "narrow": "lemon", "wide": "zero_incoming"},
    ),
    "multi-head attention of torch": Animal(
        lambda: Wired(attended, stem=nn.Linear(3, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True),
                      head=nn.Linear(8, 2)),
        sentences, {"stem&attention[1]": "lemon"},
        {"stem": "does not run", "attention[1]": "does not run",
         "attention[2]": "both are made by attention.in_proj_weight"},
    ),
    "queries, keys, values sliced by hand": Animal(
        lambda: Wired(sliced, qkv=nn.Linear(3, 24), head=nn.Linear(8, 2), heads=2, width=8), sentences,
        {"qkv[0]": "lemon", "qkv[2]": "zero_outgoing"}, {"qkv[1]": "both are made by qkv.weight"},
    ),
    "units cut at a number, and data": Animal(
        lambda: Wired(sliced_by_numbers, body=nn.Linear(3, 8), head=nn.Linear(11, 2)), rows,
        {"body[1]": "lemon"}, {"body[0]": "does not run"},
    ),
    "normalized together": Animal(
        lambda: Wired(normalized_together, one=nn.Linear(3, 4), two=nn.Linear(3, 5), norm=nn.LayerNorm(9),
                      head=nn.Linear(9, 2)),
        rows, {}, {"one": "normalized together with other units", "two": "normalized together with other units"},
    ),
    "squeeze and excite": Animal(
        lambda: Wired(excited, stem=nn.Conv2d(2, 6, 1), down=nn.Linear(6, 3), up=nn.Linear(3, 6),
                      head=nn.Conv2d(6, 2, 1)),
        images, {"stem": "lemon", "down": "zero_outgoing"},
    ),
    "depthwise convolution, hard swish": Animal(
        lambda: chain(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Hardswish(), nn.Conv2d(6, 2, 1)),
        images, {"0": "lemon"},
    ),
    "grouped convolution": Animal(
        lambda: chain(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Mish(), nn.Conv2d(4, 2, 1)),
        images, {"0[1]": "lemon", "1[1]": "zero_outgoing"},
    ),
    "channel shuffle": Animal(
        lambda: Wired(shuffled, stem=nn.Conv2d(2, 6, 1), head=nn.Conv2d(6, 2, 1)), images, {"stem[1]": "lemon"},
    ),
    "pixel shuffle": Animal(
        lambda: chain(nn.Conv2d(2, 12, 1), nn.PixelShuffle(2), nn.ELU(), nn.Conv2d(3, 2, 1)),
        images, {"0[0]": "zero_outgoing"},
    ),
    "layer scale": Animal(
        lambda: Wired(scaled, stem=nn.Linear(3, 6), up=nn.Linear(6, 8), down=nn.Linear(8, 6), head=nn.Linear(6, 2),
                      gamma=torch.full((6,), 0.5)),
        rows, {"stem": "lemon", "up": "zero_outgoing"},
    ),
    "frozen batch norm, relu6": Animal(
        lambda: chain(nn.Conv2d(2, 6, 1), FrozenNorm(6), nn.ReLU6(), nn.Conv2d(6, 2, 1)), images, {"0": "lemon"},
    ),
    "weight norm": Animal(
        lambda: chain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)),
        rows, {}, {"0.bias": "aten._weight_norm"},
    ),
    "masked weights": Animal(
        lambda: Wired(masked, stem=nn.Linear(3, 6), mask=nn.Buffer(torch.ones(6, 3)), head=nn.Linear(6, 2)),
        rows, {}, {"stem.bias": "its weights are no parameter"},
    ),
    "flattened": Animal(
        lambda: chain(nn.Conv2d(2, 3, 3), nn.SELU(), nn.Flatten(), nn.Linear(12, 5), nn.Softsign(), nn.Linear(5, 2)),
        images, {"0": "lemon", "3": "zero_outgoing"},
    ),
    "used twice": Animal(
        lambda: Wired(twice, stem=nn.Linear(3, 6), same=nn.Linear(6, 6), head=nn.Linear(6, 2)), rows,
        {"stem": "bert2bert"},
    ),
    "in place": Animal(
        lambda: Wired(in_place, stem=nn.Linear(3, 6), side=nn.Linear(6, 6), head=nn.Linear(6, 2)), rows,
        {"stem": "lemon"},
    ),
    "gated linear unit, transposed convolution": Animal(
        lambda: chain(nn.Conv1d(2, 8, 1), nn.GLU(1), nn.ConvTranspose1d(4, 5, 2), nn.InstanceNorm1d(5, affine=True),
                      nn.PReLU(5), nn.Conv1d(5, 2, 1)),
        lambda count: torch.randn(count, 2, 5), {"0[1]": "lemon", "2": "lemon"},
    ),
    "mixture of experts": Animal(Experts, rows, {"stem": "lemon", "up": "zero_outgoing"}, {"router": "softmax"}),
    "mixture of the top experts": Animal(
        lambda: Experts(2), rows, {"stem": "lemon", "up": "zero_outgoing"}, {"router": "softmax"},
    ),
    "GRU": Animal(
        lambda: Wired(lambda net, x: net.head(net.gru(net.stem(x))[0]), stem=nn.Linear(3, 5),
                      gru=nn.GRU(5, 6, batch_first=True), head=nn.Linear(6, 2)),
        sentences, {}, {"stem": "aten.gru.input in gru"},
    ),
    "recurrence by hand": Animal(
        lambda: Recurrent(lambda net, x: torch.zeros_like(net.first(x[:, 0]))), sentences, {"first": "lemon"},
    ),
    "recurrence from zeros of a size": Animal(
        lambda: Recurrent(lambda net, x: x.new_zeros(len(x), net.hidden)), sentences, {},
        {"first": "made with a size that is written in numbers"},
    ),
    "a branch by the size of the batch": Animal(
        Compared, rows, {}, {"body": "on a batch of shape", "other": "on a batch of shape"}, examples=(4, 5),
    ),
    "a branch by numbers": Animal(
        lambda: Wired(lambda net, x: net.head(net.body(x) if x.sum() > 0 else -net.body(x)), body=nn.Linear(3, 6),
                      head=nn.Linear(6, 2)),
        rows, whole="the network runs, but torch.export cannot follow it",
    ),
    "tied embedding": Animal(
        lambda: Wired(tied, words=nn.Embedding(11, 6), body=nn.Linear(6, 6)), words,
        {"words": "lemon"},
    ),
    "RMS norms by 1 + w, tied embedding": Animal(
        lambda: Wired(one_and_scale, words=nn.Embedding(11, 6), body=nn.Linear(6, 6), first=torch.rand(6),
                      last=torch.rand(6), eps=1e-5),
        words, {"words": "lemon"},
    ),
    "class token": Animal(
        lambda: Wired(with_class_token, token=torch.rand(1, 1, 6), stem=nn.Linear(3, 6), inner=nn.Linear(6, 6),
                      head=nn.Linear(6, 2)),
        sentences, {"stem": "lemon"},
    ),
    "uneven pieces, padded": Animal(
        lambda: Wired(in_uneven_pieces, body=nn.Linear(3, 6), head=nn.Linear(4, 2)), rows, {},
        {"body[0]": "it has the size of the data", "body[1]": "it is padded"},
    ),
    "three-dimensional convolution": Animal(
        lambda: chain(nn.Conv3d(2, 4, 2), nn.Softplus(), nn.Conv3d(4, 2, 1)),
        lambda count: torch.randn(count, 2, 3, 3, 3), {"0": "orthogonal"},
    ),
    "compiled": Animal(
        lambda: torch.compile(perceptron(nn.Linear(3, 6)), backend="eager"), rows, {"_orig_mod.0": "lemon"},
    ),
    "data parallel": Animal(lambda: nn.DataParallel(perceptron(nn.Linear(3, 6))), rows, {"module.0": "zero_outgoing"}),
    "lazy": Animal(lambda: perceptron(nn.LazyLinear(6)), rows, whole="0.weight, 0.bias: no shape yet"),
    "lazy, called once": Animal(lambda: called_once(perceptron(nn.LazyLinear(6))), rows, {"0": "lemon"}),
    "averages kept for later": Animal(Averages, rows, {}, {"body": "average may have its 6 units too"}),
}  # fmt: skip
