"""What operators promise, held against what they do: every operator, on every family of networks, at several places."""

import copy
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmstudy.batched import engine
from mmstudy.batched.engine import Model
from mmstudy.core import datasets, networks, progress, tasks
from mmstudy.core.networks import evaluating
from mmstudy.core.seeds import generator
from mmstudy.expansion.candidate import Candidate, Expansion
from mmstudy.expansion.exactness import Reference
from mmstudy.expansion.operators import EXACTLY, OPERATORS, UP_TO_NOISE
from mmstudy.tracing.calls import of_loss
from mmstudy.tracing.couplings import Coupling, of_trace
from mmstudy.tracing.layouts import places


@dataclass(frozen=True)
class Family:
    """A kind of network, small, with the couplings that may get wider and the members that may be followed by more."""

    build: Callable[[], nn.Module]
    wider: tuple[str, ...]
    deeper: tuple[str, ...]
    language: bool = False

    def network(self, seed: int = 0) -> nn.Module:
        """A new network; the same seed gives the same one."""
        return networks.initialize(self.build(), generator("family", seed))

    def examples(self, count: int, seed: int = 0) -> tasks.Split:
        """Digits: as rows of 64 standardized pixels with their labels, or as sentences of pixels."""
        if self.language:
            return datasets.pixel_tokens(count, seed)
        return tasks.load(tasks.Task("digits", (), count, seed=seed)).training

    def loss_fn(self, model: Model, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean cross-entropy (nats), over tokens too."""
        inputs, targets = batch
        return cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


ATTENTION = ("blocks.0.attention.query[0]", "blocks.0.attention.query[1]", "blocks.0.attention.value[1]", "blocks.0.up")
FAMILIES = {
    "MLP": Family(
        lambda: networks.MLP(64, (12, 12, 12), 10), ("hidden.0", "hidden.1", "hidden.2"), ("hidden.0", "hidden.2")
    ),
    "MLP, batch norm": Family(
        lambda: networks.MLP(64, (12, 12, 12), 10, normalized=True),
        ("hidden.0.0", "hidden.1.0", "hidden.2.0"),
        ("hidden.0", "hidden.2"),
    ),
    "ResNet, batch norm": Family(
        lambda: networks.ResNet(1, (4, 8), (2, 2), 10, "batch", (8, 8)),
        ("stem", "stages.0.0.conv1", "stages.1.0.conv2", "stages.1.1.conv1"),
        ("stages.0.0", "stages.0.1", "stages.1.0"),
    ),
    "ResNet, group norm": Family(
        lambda: networks.ResNet(1, (8, 16), (2, 2), 10, "group", (8, 8)),
        ("stem[0]", "stem[1]", "stages.0.0.conv1[0]", "stages.1.0.conv2[0]", "stages.1.1.conv1[1]"),
        ("stages.0.0", "stages.0.1", "stages.1.0"),
    ),
    "ViT": Family(
        lambda: networks.ViT((1, 8, 8), (2, 2), 12, 2, 3, 10), ("embedding", *ATTENTION), ("blocks.0", "blocks.1")
    ),
    "decoder": Family(
        lambda: networks.Decoder(17, 63, 16, 2, 4, key_heads=2),
        ("embedding", *ATTENTION[:2], "blocks.0.attention.query[2]", *ATTENTION[2:]),
        ("blocks.0", "blocks.1"),
        language=True,
    ),
}


def trained(
    family: Family, network: nn.Module, examples: tasks.Split, steps: int, step_size: float = 1e-2
) -> nn.Module:
    """The network, trained in place by Adam on minibatches of 64 in a fixed order; left in evaluation mode."""
    optimizer, stream = torch.optim.Adam(network.parameters(), step_size), generator("contracts")
    network.train()
    for _ in range(steps):
        some = torch.randperm(len(examples.inputs), generator=stream)[:64]
        optimizer.zero_grad()
        family.loss_fn(network, engine.take(examples, some)).backward()
        optimizer.step()
    return network.eval()


def survey(
    family: Family,
    network: nn.Module,
    examples: tasks.Split,
    operators: Iterable[str] = tuple(OPERATORS),
    factor: float | int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Every operator at every place of the family: a row each, with what `COLUMNS` names.

    Wider ones multiply the units by `factor`, deeper ones add one layer or block. Where an operator does not apply,
    its reason stands in `refused` and the measurements are missing.
    """
    reference = Reference(network, of_loss(network, examples, family.loss_fn))
    groups = of_trace(reference.traced)
    before = _state(family, network, examples)
    ranks = {place: _rank(network, place.partition("[")[0], examples) for place in (*family.wider, *family.deeper)}
    rows: list[dict[str, Any]] = []
    for operator in operators:
        for place in family.wider if OPERATORS[operator].widens else family.deeper:
            size = round(groups[place].size * factor) if OPERATORS[operator].widens else 1
            candidate = Candidate(operator, (place,), (size,), seed)
            row = {"operator": operator, "place": place, "candidate": str(candidate), "refused": ""}
            try:
                expansion = candidate.grow(network, examples, family.loss_fn, reference.traced, references=[reference])
            except ValueError as error:
                rows.append(row | {"refused": str(error)})
                continue
            after = _state(family, expansion.network, examples)
            grown = groups[place] if OPERATORS[operator].widens else None
            measured = _compare(candidate, before, after, expansion, grown, examples)
            rows.append(row | measured | {"rank_before": ranks[place]})
    return pd.DataFrame(rows)


def _state(family: Family, network: nn.Module, examples: tasks.Split) -> dict:
    with evaluating(network):
        outputs = network(examples.inputs)
        loss = family.loss_fn(lambda inputs: outputs, examples)
        gradients = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
    with torch.no_grad():
        training = copy.deepcopy(network).train()(examples.inputs)  # a copy's running statistics may move
    names = [name for name, _ in network.named_parameters()]
    gradient = dict(zip(names, gradients, strict=True))
    return {"outputs": outputs.detach(), "training": training, "loss": loss.item(), "gradient": gradient}


def _compare(candidate, before, after, expansion: Expansion, grown: Coupling | None, examples) -> dict[str, float]:
    network, gradient = expansion.network, after["gradient"]
    new = {name: torch.full_like(g, name in expansion.inserted) for name, g in gradient.items()}
    (place,) = candidate.locations
    if grown is None:
        parent, _, index = place.rpartition(".")
        layer = f"{parent}.{int(index) + 1}"
    else:
        layer, _, _ = place.partition("[")
        for use in grown.uses:
            if use.tensor in new:
                added = places(use.layout, candidate.sizes[0])[grown.size :].flatten()
                new[use.tensor].index_fill_(use.axis, added, 1)
    share = {name: (g * new[name], g * (1 - new[name])) for name, g in gradient.items()}
    return {
        "change": _change(before["outputs"], after["outputs"]),
        "change_training": _change(before["training"], after["training"]),
        "loss_change": after["loss"] - before["loss"],
        "gradient_new": float(torch.cat([a.flatten() for a, _ in share.values()]).norm()),
        "gradient_old": float(torch.cat([b.flatten() for _, b in share.values()]).norm()),
        "rank": _rank(network, layer, examples),
        "parameters": networks.count_parameters(network),
    }


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


def _rank(network: nn.Module, path: str, examples: tasks.Split) -> float:
    return effective_rank(activations(network, path, examples.inputs))


def activations(network: nn.Module, path: str, inputs: Tensor) -> Tensor:
    """What the module at `path` puts out, (examples × positions, units), in evaluation mode."""
    seen = []
    hook = network.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with evaluating(network), torch.no_grad():
            network(inputs)
    finally:
        hook.remove()
    output = seen[-1].movedim(1, -1) if seen[-1].ndim == 4 else seen[-1]
    return output.flatten(0, -2)


def effective_rank(rows: Float[Tensor, "rows units"]) -> float:
    """exp(−Σ p log p) of the normalized singular values p (Roy & Vetterli 2007, definition 1)."""
    values = torch.linalg.svdvals(rows.double())
    return float(torch.distributions.Categorical(probs=values).entropy().exp())


SYMBOLS = "= exact · =ᵉ exact in evaluation mode · ≈ up to noise · ≠ the function changes · – does not apply"


def cell(rows: pd.DataFrame) -> str:
    """What an operator did to a family, over all places: one of `SYMBOLS`, with at how many places if not at all."""
    done = rows[rows.refused == ""]
    if done.empty:
        return "–"
    (operator,) = rows.operator.unique()
    if OPERATORS[operator].preserves == EXACTLY:
        exact = done.change.max() <= EXACT, done.change_training.max() <= EXACT
        symbol = {(True, True): "=", (True, False): "=ᵉ"}.get(exact, "broken")
    elif OPERATORS[operator].preserves == UP_TO_NOISE:
        symbol = "≈" if done.change.max() <= NEAR else "broken"
    else:
        symbol = "≠"
    return symbol if len(done) == len(rows) else f"{symbol} {len(done)}/{len(rows)}"


def table(surveys: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Operators × families, from a survey of each family; every cell is what was measured (see `cell`)."""
    cells = {
        family: {operator: cell(rows) for operator, rows in frame.groupby("operator", sort=False)}
        for family, frame in surveys.items()
    }
    return pd.DataFrame(cells).rename_axis("operator")


def untrained(name: str) -> pd.DataFrame:
    """The survey of a family in float64, with nothing special about its weights: what the README shows."""
    family = FAMILIES[name]
    network, examples = family.network().double(), family.examples(8 if family.language else 32)  # of many tokens each
    stream = generator("untrained", name)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 1 and tensor.is_floating_point():  # normalizations that do something
            tensor.data += 0.3 * torch.rand(tensor.shape, generator=stream)
    inputs = examples.inputs if family.language else examples.inputs.double()
    return survey(family, network, tasks.Split(inputs, examples.targets))


def trained_survey(name: str, steps: int, examples: int, seed: int = 0) -> pd.DataFrame:
    """The survey of one family in float32 after `steps` steps of training, on the examples that it was trained on."""
    torch.set_num_threads(1)  # to run beside others, in a process each
    family = FAMILIES[name]
    data = family.examples(examples, seed)
    return survey(family, trained(family, family.network(seed), data, steps), data, seed=seed).assign(family=name)


def markdown(contracts: pd.DataFrame) -> str:
    """The table in Markdown."""
    header = ["operator", *contracts.columns]
    lines = [header, ["---"] * len(header), *([f"`{name}`", *row] for name, row in contracts.T.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


COLUMNS = {
    "change": ("1", "largest change of an output, over the largest output, in evaluation mode"),
    "change_training": ("1", "the same in training mode"),
    "loss_change": ("nat", "change of the loss"),
    "gradient_new": ("nat", "norm of the loss gradient over the new units' parameters"),
    "gradient_old": ("nat", "norm of the loss gradient over all other parameters"),
    "rank": ("1", "effective rank of what the expanded (or inserted) layer puts out"),
    "rank_before": ("1", "the same of the layer that is expanded (or followed), before"),
    "parameters": ("1", "parameters after the expansion"),
}
EXACT, NEAR = 1e-12, 0.2  # relative changes of outputs: of float64 that is exact, and of what is exact up to noise


def write_into(path: Path) -> None:
    """Measure all families anew and put the table between its marks in a Markdown file."""
    before, start, rest = path.read_text().partition("<!-- contracts -->\n")
    _, end, after = rest.partition("<!-- /contracts -->")
    made = markdown(table({name: untrained(name) for name in progress.through(FAMILIES, "families")}))
    path.write_text(f"{before}{start}{made}\n{end}{after}")


if __name__ == "__main__":  # python -m mmstudy.validation.preservation README.md
    write_into(Path(sys.argv[1]))
