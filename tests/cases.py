"""The networks, data and places that the tests run through."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmstudy.batched.objective import Objective
from mmstudy.core import tasks
from mmstudy.core.networks import MLP, evaluating, initialize
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Task
from mmstudy.study.draws import minibatch_order
from mmstudy.study.protocol import Protocol
from mmstudy.validation.preservation import FAMILIES, Family

INPUTS, CLASSES = 7, 4
WIDTHS = {"one hidden layer": (5,), "two": (6, 4), "three": (4, 8, 3)}
TASK = Task("digits", (4, 4), 200)
TINY = Protocol(
    steps=40, batch=16, seeds=2, validations=4, progress=(0.0, 0.25, 1.0), bins=10, short=0.25, children=3,
    child_steps=3, probe_examples=40, random_rays=2, traces=2, doublings=4,
)  # fmt: skip


def mlp(widths=(6, 4), seed=0, dtype=torch.float32) -> MLP:
    """A small network with nothing special about its weights."""
    return initialize(MLP(INPUTS, widths, CLASSES).to(dtype), generator("case", seed))


def masked(seed=0) -> MLP:
    """One whose head never learns: a hook makes its gradient zero."""
    network = mlp(seed=seed)
    network.head.weight.register_hook(lambda slope: slope * 0)
    return network


def batch(count=32, seed=0, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs (count, INPUTS) and targets (count,)."""
    stream = generator("batch", seed)
    inputs = torch.randn(count, INPUTS, generator=stream, dtype=dtype)
    return inputs, torch.randint(CLASSES, (count,), generator=stream)


def convolutional(seed=0) -> nn.Module:
    """A network that is no MLP: convolution, normalization with running statistics, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, INPUTS)), nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(15, CLASSES),
    )  # fmt: skip


class Wired(nn.Module):
    """Modules, parameters and numbers by name, and a function of (this, inputs) that says how they are connected."""

    def __init__(self, forward: Callable[["Wired", Tensor], Tensor], **parts: object):
        super().__init__()
        self.wiring = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def _gated(net, x):
    return net.down(F.silu(net.gate(x)) * net.up(x))


def _rms(net, x):
    x = net.embedding(x)
    x = x + net.down(F.silu(net.up(net.norm1(x))))
    return net.head(net.norm2(x))


def _class_token(net, x):
    x = torch.cat([net.token.expand(len(x), -1, -1), net.embedding(x)], 1) + net.position
    x = x + net.scale * net.down(F.gelu(net.up(net.norm1(x))))
    return net.head(net.norm2(x).mean(1))


def _post_norm(net, x):
    x = net.norm1(net.embedding(x))
    x = net.norm2(x + net.down(F.gelu(net.up(x))))
    return net.head(x)


def _normalized_queries(net, x):
    y = F.scaled_dot_product_attention(net.norm_q(net.q(x)), net.norm_k(net.k(x)), net.v(x))
    return net.out(y.mean(1))


def _attended(net, q, k, v, **options):
    """The heads are known by their number, `net.heads`; what they put out is averaged over the tokens."""
    y = F.scaled_dot_product_attention(q, k, v, **options)
    return net.head(net.out(y.transpose(1, 2).flatten(2)).mean(1))


def _chunked(net, x):
    return _attended(net, *(t.unflatten(-1, (net.heads, -1)).transpose(1, 2) for t in net.qkv(x).chunk(3, -1)))


def _split(net, x):
    sizes = [net.width] * 3
    return _attended(net, *(t.unflatten(-1, (net.heads, -1)).transpose(1, 2) for t in net.qkv(x).split(sizes, -1)))


def _unbound(net, x):
    qkv = net.qkv(x).reshape(len(x), x.shape[1], 3, net.heads, -1)
    return _attended(net, *qkv.permute(2, 0, 3, 1, 4).unbind(0))


def _unbound_inside(net, x):
    return _attended(net, *(t.transpose(1, 2) for t in net.qkv(x).unflatten(-1, (3, net.heads, -1)).unbind(2)))


def _parted(net, x, heads, layer):
    return layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)


def _repeated(net, x):
    q, k, v = _parted(net, x, net.heads, net.q), _parted(net, x, net.keys, net.k), _parted(net, x, net.keys, net.v)
    each = net.heads // net.keys
    return _attended(net, q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1))


def _grouped_queries(net, x):
    q, k, v = _parted(net, x, net.heads, net.q), _parted(net, x, net.keys, net.k), _parted(net, x, net.keys, net.v)
    return _attended(net, q, k, v, enable_gqa=True)


def _excited(net, x):
    x = net.conv(x)
    gate = net.up(net.down(x.mean((2, 3))).relu()).sigmoid()
    return net.head((x * gate[:, :, None, None]).mean((2, 3)))


def _fused(forward):
    parts = {"qkv": nn.Linear(5, 36), "out": nn.Linear(12, 6), "head": nn.Linear(6, 2)}
    return Wired(forward, **parts, heads=3, width=12)


def _few_keys(forward):
    sizes = {"q": (5, 24), "k": (5, 8), "v": (5, 8), "out": (24, 6), "head": (6, 2)}
    return Wired(forward, heads=6, keys=2, **{name: nn.Linear(*size) for name, size in sizes.items()})


@dataclass(frozen=True)
class Case:
    """A network beyond the families, the shape of an example, and its couplings, counted by hand."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: dict[str, int]

    def network(self, seed: int = 0) -> nn.Module:
        return uneven(initialize(self.build(), generator("wired", seed)), seed)

    def inputs(self, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(count, *self.shape, generator=generator("inputs"), dtype=dtype)


FUSED, SHARED = {"qkv[1]": 3, "out": 6}, {"q[0]": 2, "q[1]": 3, "q[2]": 4, "v[1]": 4, "out": 6}
CASES = {
    "gated": Case(
        lambda: Wired(_gated, gate=nn.Linear(3, 6), up=nn.Linear(3, 6), down=nn.Linear(6, 2)), (3,), {"gate": 6}
    ),
    "RMS norm": Case(
        lambda: Wired(
            _rms, embedding=nn.Linear(3, 8), norm1=nn.RMSNorm(8, 1e-3), up=nn.Linear(8, 5), down=nn.Linear(5, 8),
            norm2=nn.RMSNorm(8, 1e-2), head=nn.Linear(8, 2),
        ), (3,), {"embedding": 8, "up": 5},
    ),
    "post-norm": Case(
        lambda: Wired(
            _post_norm, embedding=nn.Linear(3, 8), norm1=nn.LayerNorm(8), up=nn.Linear(8, 5), down=nn.Linear(5, 8),
            norm2=nn.LayerNorm(8), head=nn.Linear(8, 2),
        ), (3,), {"embedding": 8, "up": 5},
    ),
    "normalized queries": Case(
        lambda: Wired(
            _normalized_queries, q=nn.Linear(5, 6), k=nn.Linear(5, 6), v=nn.Linear(5, 6), norm_q=nn.LayerNorm(6),
            norm_k=nn.LayerNorm(6), out=nn.Linear(6, 2),
        ), (4, 5), {"q": 6, "v": 6},
    ),
    "class token": Case(
        lambda: Wired(
            _class_token, embedding=nn.Linear(3, 8), token=torch.zeros(1, 1, 8), position=torch.zeros(6, 8),
            norm1=nn.LayerNorm(8), up=nn.Linear(8, 8), down=nn.Linear(8, 8), scale=torch.ones(8),
            norm2=nn.LayerNorm(8), head=nn.Linear(8, 2),
        ), (5, 3), {"embedding": 8, "up": 8},
    ),
    "depthwise": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 4, 2),
        ), (3, 4, 4), {"0": 8, "4": 6},
    ),
    "grouped": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 12, 3, groups=4), nn.Tanh(), nn.Conv2d(12, 6, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        ), (3, 4, 4), {"0[0]": 4, "0[1]": 2, "2[1]": 3, "4": 6},
    ),
    "squeeze and excite": Case(
        lambda: Wired(
            _excited, conv=nn.Conv2d(3, 8, 1), down=nn.Linear(8, 4), up=nn.Linear(4, 8), head=nn.Linear(8, 2)
        ), (3, 4, 4), {"conv": 8, "down": 4},
    ),
    "parameters": Case(
        lambda: Wired(lambda net, x: (x @ net.w + net.b).relu() @ net.v, w=torch.ones(7, 5), b=torch.ones(5),
                      v=torch.ones(5, 3)), (7,), {"w": 5},
    ),
    "fused, chunk": Case(lambda: _fused(_chunked), (5, 5), FUSED),
    "fused, split": Case(lambda: _fused(_split), (5, 5), FUSED),
    "fused, unbind": Case(lambda: _fused(_unbound), (5, 5), FUSED),
    "fused, unbind inside": Case(lambda: _fused(_unbound_inside), (5, 5), FUSED),
    "few keys, repeated": Case(lambda: _few_keys(_repeated), (4, 5), SHARED),
    "few keys": Case(lambda: _few_keys(_grouped_queries), (4, 5), SHARED),
}  # fmt: skip


def uneven(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network, its vectors moved: normalizations have scales, shifts and running statistics of their own."""
    stream = generator("uneven", seed)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.data += 0.3 * torch.rand(tensor.shape, generator=stream)
    return network


def of_family(name: str, count=16, seed=0, dtype=torch.float64) -> tuple[Family, nn.Module, Tensor, Tensor]:
    """A family by name, with an uneven network and so many examples of its own."""
    family = FAMILIES[name]
    examples = family.examples(count, seed)
    inputs = examples.inputs if family.language else examples.inputs.to(dtype)
    return family, uneven(family.network(seed), seed).to(dtype), inputs, examples.targets


def change(old: nn.Module, new: nn.Module, inputs: Tensor, training: bool = False) -> float:
    """The largest change of an output, over the largest output."""
    if training:
        with torch.no_grad():
            before, after = old.train()(inputs), new.train()(inputs)
    else:
        with evaluating(old), evaluating(new), torch.no_grad():
            before, after = old(inputs), new(inputs)
    return float((after - before).abs().max() / before.abs().max())


def angles(step=1) -> tuple[Tensor, Tensor]:
    """Angles around the circle, and the directions at them, (1, angles, 2)."""
    angle = torch.arange(0, 360, step, dtype=torch.float64) * torch.pi / 180
    return angle, torch.stack([angle.cos(), angle.sin()], dim=1)[None]


def counted(objective: Objective, points: list[int], trained: list[int]) -> Objective:
    """The objective, which adds to these lists the examples that its losses, and its noisy losses, are evaluated on."""

    def term(where, owner):
        points.append(len(where) * objective.examples)
        return objective.terms[0](where, owner)

    def noisy(where, owner, draw):
        trained.append(draw.numel())
        return objective.noisy(where, owner, draw)

    return replace(objective, terms=(term,), noisy=noisy)


def plainly(network: nn.Module, name: str, seed: int, steps: int, until: int | None = None) -> nn.Module:
    """Training on `TASK` by torch's optimizer with a cosine of so many steps, left after some of them."""
    data = tasks.load(TASK)
    order = minibatch_order(TASK, data, TINY, [f"{name} {seed}"], steps)[0]
    optimizer = torch.optim.SGD(network.parameters(), TINY.step_size, TINY.momentum)
    for step in range(steps if until is None else until):
        optimizer.param_groups[0]["lr"] = TINY.step_size * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        F.cross_entropy(network(data.training.inputs[order[step]]), data.training.targets[order[step]]).backward()
        optimizer.step()
    return network
