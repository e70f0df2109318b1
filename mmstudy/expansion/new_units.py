"""Wider by new units, drawn or chosen by the gradient; and wider by a learned linear map."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmstudy.expansion.growth import NOISE, Growth, copied, direction, draw, gradients, normal
from mmstudy.expansion.plans import NEW, Plan, Touch, plan, transform
from mmstudy.expansion.surgery import rebuilt
from mmstudy.tracing.couplings import Use
from mmstudy.tracing.graph import BIAS, CONSUMED, WEIGHT
from mmstudy.tracing.layouts import UNITS


def random(growth: Growth) -> tuple[Plan, Touch | None]:
    """New units with random incoming and outgoing weights at the layers' default scale: the function changes."""
    grown = _appended(growth, keep=False)
    return grown, draw(growth, grown, WEIGHT, BIAS, CONSUMED)


def zero_outgoing(growth: Growth) -> tuple[Plan, Touch | None]:
    """New units with random incoming weights that nothing reads yet: exact, and they learn from the second step on.

    The simplest of the zero-initialized growths (compare GradMax: Evci et al. 2022, arXiv 2201.05125, section 3).

    Raises:
        ValueError: the units are normalized together, so that new ones would be felt.
    """
    grown = _unread(growth)
    return grown, draw(growth, grown, WEIGHT, BIAS)


def zero_incoming(growth: Growth) -> tuple[Plan, Touch | None]:
    """New units that are zero (or, normalized together, their average) and are read by random weights.

    Exact where a unit of zero stays zero on its way to what reads it. Behind a ReLU, whose derivative at zero is
    zero, such units never learn; behind a GELU or a normalization across the units they do.
    """
    grown = _appended(growth, keep=True)
    return grown, draw(growth, grown, CONSUMED)


def orthogonal(growth: Growth) -> tuple[Plan, Touch | None]:
    """New units whose incoming weights are orthogonal to the old ones', as far as there is room, and are not read yet.

    NORTH-select's idea as an initialization: Maile, Rachelson, Luga, Wilson 2022 (arXiv 2202.08539), section 4.
    """

    def rows(old: Tensor) -> Tensor:
        old = old if old.dtype == torch.float64 else old.float()  # in less there is no such decomposition
        units, inputs = old.shape
        drawn = normal(old.new_empty(growth.extra, inputs), growth)
        if inputs > units:
            basis = torch.linalg.qr(old.mT).Q
            drawn = drawn - drawn @ basis @ basis.mT
        room = inputs - units if inputs > units else inputs
        return torch.cat([torch.linalg.qr(some.mT).Q.mT for some in drawn.split(room)])

    return _unread(growth), _given(growth, rows)


def gradmax_cost(examples: int) -> int:
    """Example-evaluations of `gradmax`: twice a forward and a backward pass over all examples."""
    return 6 * examples


def gradmax(growth: Growth) -> tuple[Plan, Touch | None]:
    """New units that are not read yet, whose incoming weights make the gradient of what will read them largest.

    With x the input of the layer that makes the units and δ the gradient at the output of the layer that reads them,
    the gradient of the reading weights of a linear unit w is M w, M = Σ δ xᵀ, which is largest along the top right
    singular vectors of M (and random ones, if more units than inputs are wanted). Each is taken with the sign that
    makes the true gradient larger. GradMax: Evci et al. 2022
    (arXiv 2201.05125), equations 4 to 11, which also treats the mirror image (zero incoming weights), where ReLUs
    have no gradient.

    Raises:
        ValueError: not one layer makes the units and one reads them, or there is no data, or no finite gradient.
    """
    (maker, x), (reader, slope) = _around(growth)

    def response(incoming: Tensor, outgoing: Tensor) -> Tensor:
        """⟨δ, reader(maker(x))⟩ for one linear unit, bilinear in its weights."""
        read = _with_weight(reader, outgoing.unsqueeze(1), _with_weight(maker, incoming.unsqueeze(0), x))
        if read.shape != slope.shape:
            raise RuntimeError(f"shapes {tuple(read.shape)} and {tuple(slope.shape)}")
        return (read * slope).sum()

    one = maker.weight[0].detach(), reader.weight[:, 0].detach()  # type: ignore[index]  # both have a weight
    try:
        mixed = torch.func.jacrev(torch.func.grad(response, argnums=1))(*one)  # ∂²/∂outgoing ∂incoming
    except RuntimeError as error:  # pooling, for one, lies between them
        raise ValueError(
            f"gradmax needs what reads the units of {growth.coupling.name} to follow what makes them, but for "
            f"normalizations and activations; {error}"
        ) from error
    if not bool(mixed.isfinite().all()):
        raise ValueError(f"the gradient at {growth.coupling.name} is not finite on this batch: look at its loss")
    _, _, right = torch.linalg.svd(mixed.reshape(one[1].numel(), one[0].numel()).double())
    rows = right[: growth.extra].to(one[0])
    others = normal(rows.new_empty(growth.extra - len(rows), rows.shape[1]), growth)  # more units than directions
    rows = torch.cat([rows, direction(others)])

    both = replace(growth, size=growth.size + growth.extra)  # each with either sign, to see which the ReLU lets through
    network = rebuilt(growth.network, _unread(both), growth.call, _given(both, lambda old: torch.cat([rows, -rows])))
    name = growth.coupling.of(CONSUMED)[0].tensor
    leaf = network.get_parameter(name).detach().requires_grad_()
    (gradient,) = gradients(growth.loss(network, {name: leaf}), [leaf])
    plus, minus = gradient.transpose(0, 1).flatten(1).norm(dim=1)[growth.coupling.size :].split(growth.extra)
    rows = torch.where((plus >= minus).unsqueeze(1), rows, -rows)
    return _unread(growth), _given(growth, lambda old: rows)


def _around(growth: Growth) -> tuple[tuple[nn.Module, Tensor], tuple[nn.Module, Tensor]]:
    """The layer that makes the units with its input, the one that reads them with the gradient at its output."""
    made, read = growth.coupling.of(WEIGHT), growth.coupling.of(CONSUMED)
    plain = [use.layout == ((UNITS,),) for use in (*made, *read)]
    layers = [growth.network.get_submodule(use.tensor.rpartition(".")[0]) for use in (*made, *read)]
    known = [isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) for layer in layers]
    if len(made) != 1 or len(read) != 1 or growth.coupling.pairings or not all(plain + known):
        raise ValueError(
            f"gradmax needs one linear or convolutional layer that makes the units of {growth.coupling.name} and one "
            "that reads them, each on an axis of their own"
        )
    maker, reader = layers
    inputs, outputs = [], []
    hooks = [
        maker.register_forward_hook(lambda module, given, output: inputs.append(given[0].detach())),
        reader.register_forward_hook(lambda module, given, output: outputs.append(output)),
    ]
    try:
        loss = growth.loss(growth.network)
    finally:
        for hook in hooks:
            hook.remove()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"gradmax needs a loss that calls the layers around {growth.coupling.name} once; found more")
    return (maker, inputs[0]), (reader, torch.autograd.grad(loss, outputs[0])[0])


def _with_weight(module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    zeros = {} if module.bias is None else {"bias": weight.new_zeros(len(weight))}
    return functional_call(module, {"weight": weight, **zeros}, (inputs,))


LEARNING_STEPS, LEARNING_BATCH = 50, 128


def ligo_cost(examples: int) -> int:
    """Example-evaluations of `ligo`: three for every example of a minibatch, for every step."""
    return 3 * LEARNING_STEPS * min(LEARNING_BATCH, examples)


def ligo(
    growth: Growth, steps: int = LEARNING_STEPS, batch: int = LEARNING_BATCH, step_size: float = 1e-2
) -> tuple[Plan, Touch | None]:
    """Both matrices of the expansion are learned: `steps` steps of Adam on the loss of the grown network.

    They start as the copies of `bert2bert` with a little noise, as equal rows would learn the same. The width half of
    LiGO: Wang et al. 2023 (arXiv 2303.00980), section 3.

    Raises:
        ValueError: there are no targets to learn from.
    """
    examples = growth.examples
    start = plan(growth.coupling, copied(growth, growth.generator))
    make, read = ((m + NOISE * normal(m, growth)).requires_grad_() for m in (start.make, start.read))
    learned = replace(start, make=make, read=read)
    network = rebuilt(growth.network, start, growth.call)
    own = {name: p.detach() for name, p in (*growth.network.named_parameters(), *growth.network.named_buffers())}
    optimizer = torch.optim.Adam([make, read], lr=step_size)
    for _ in range(steps):
        part = growth.taking(torch.randperm(examples, generator=growth.generator)[:batch])
        make.grad, read.grad = torch.autograd.grad(
            part.loss(network, transform(own, learned)), [make, read], allow_unused=True
        )
        optimizer.step()
    return replace(start, make=make.detach(), read=read.detach()), None


def _appended(growth: Growth, keep: bool) -> Plan:
    source = torch.cat([torch.arange(growth.coupling.size), torch.full((growth.extra,), NEW)])
    return plan(growth.coupling, source, keep=keep)


def _unread(growth: Growth) -> Plan:
    if growth.coupling.normalizations:
        raise ValueError(
            f"the units of {growth.coupling.name} are normalized together: new ones would be felt though nothing reads "
            "them; copies (lemon, hypercloning, net2net, ...) or zero_incoming are exact here"
        )
    return _appended(growth, keep=False)


def _given(growth: Growth, rows: Callable[[Tensor], Tensor]) -> Touch:
    """Incoming weights for new units: `rows` of the old ones (old, inputs) → (extra, inputs), at their mean norm."""
    n, makers = growth.coupling.size, growth.coupling.makers(WEIGHT)

    def touch(use: Use, tensor: Tensor) -> Tensor:
        if use in makers:
            old = tensor[:n].flatten(1)
            new = rows(old)
            new = new / new.norm(dim=1, keepdim=True) * old.norm(dim=1).mean()
            tensor = torch.cat([tensor[:n], new.view(-1, *tensor.shape[1:]).to(tensor)])
        return tensor

    return touch
