"""A receipt of an expansion: what it cost, whether the function stayed, and whether all that should stay did.

It knows nothing of how the network was expanded: it looks at the two networks, and at what they do on a batch.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from mmstudy.batched.engine import Batch, LossFn
from mmstudy.batched.ensemble import classification
from mmstudy.core import arguments, precision
from mmstudy.core.networks import count_flops, evaluating
from mmstudy.core.seeds import generator
from mmstudy.core.states import restored, seeded
from mmstudy.core.threads import alone
from mmstudy.expansion import given, growth, unchanged
from mmstudy.expansion.differences import changes, largest
from mmstudy.expansion.plans import units_first
from mmstudy.expansion.replacing import sharing
from mmstudy.tracing.calls import Call, Output, by_name
from mmstudy.tracing.couplings import Coupling, of_trace
from mmstudy.tracing.trace import trace
from mmstudy.tracing.trees import tensors

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MODES = ("evaluation", "training")
NEVER, NO_MORE = "does not run", "ran before, does not run now"
SAME = 1e-6  # a difference of gradients, as a share of the largest, that is rounding


@dataclass(frozen=True)
class Row:
    """One line: what was looked at, in the old network and in the new one, and whether it is as it should be."""

    what: str
    before: str
    after: str
    right: bool | None = None  # None: there is no right or wrong about it


@dataclass(frozen=True)
class Receipt:
    """What `receipt` found; printed, a table.

    `differences`: (type of numbers, mode) → the largest difference of an output and how much the outputs vary, or why
    there is none; `parameters`, `named` (a tied tensor once, and under each of its names) and `flops` (one example)
    before and after; `still`: coupling → how many of the new network's units get no gradient; `twins`: how many get the
    same as another unit that is made like them; `changed`: the numbers that modules keep. Differences are in the unit
    of the outputs.
    """

    differences: Mapping[tuple[str, str], tuple[float, float] | str]
    parameters: tuple[int, int]
    named: tuple[int, int]
    flops: tuple[int, int] | str
    still: Mapping[str, int] | str
    twins: Mapping[str, int] | str
    changed: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be."""
        return [f"{row.what}: {row.after}" for row in self.rows if row.right is False]

    def __str__(self) -> str:
        lines = [("", "before", "after"), *((row.what, row.before, row.after) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
        table = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in lines]
        return "\n".join([*table, *(f"changed: {each}" for each in self.changed)])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{escape(row.what)}</td><td>{escape(row.before)}</td>"
            f"<td style='text-align:left'>{escape(row.after)}</td></tr>"
            for row in self.rows
        )
        changed = "".join(f"<li>{escape(each)}</li>" for each in self.changed)
        head = "<tr><th></th><th>before</th><th style='text-align:left'>after</th></tr>"
        return f"<table>{head}{cells}</table>" + (f"<p>Changed:</p><ul>{changed}</ul>" if changed else "")


@alone
def receipt(
    old: nn.Module,
    new: nn.Module,
    batch: Batch | Call,
    loss_fn: LossFn = classification,
    *,
    also: Sequence[Batch | Call] = (),
    output: Output = None,
) -> Receipt:
    """Compare an expanded network with the old one on a batch; neither is touched.

    Outputs are compared in each type of numbers that both networks run in. Gradients are those of the loss; where there
    is none (the batch is one tensor, arguments by name, or a `Call`), of a fixed random sum of the outputs.

    Args:
        batch: a tensor is what the networks are called with, and without a loss of one's own a mapping gives arguments
            by name; of any other batch `loss_fn` calls them.
        loss_fn: (model, batch) → mean loss.
        also: more batches, on which outputs are compared in float64.
        output: which part of what the networks return counts; see `tracing.calls.Call`.

    Returns:
        What was found. It prints as a table; `wrong` lists what is not as it should be.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a network cannot be called on the batch, cannot be copied or has complex numbers, or the loss has no
            gradient.
    """
    old, new = arguments.network(old, "old"), arguments.network(new, "new")
    for name, network in (("old", old), ("new", new)):
        if any(p.is_complex() for p in network.parameters()):
            raise ValueError(f"{name} has complex parameters, and a receipt compares real numbers: {type(network)}")
        with arguments.naming(name):
            sharing(network)  # which is refused where there is no copy
    new, _, _ = given.fit(new, batch, loss_fn, output)
    old, batch, call = given.fit(old, batch, loss_fn, output)
    more = [each for _, each in given.further(old, also, loss_fn, output)]
    differences = {
        (str(kind).removeprefix("torch."), mode): _difference(old, new, call, kind, mode)
        for kind in TYPES
        for mode in MODES
    }
    once, named = ((_parameters(old, tied), _parameters(new, tied)) for tied in (False, True))
    flops = _flops(old, new, call)
    before, after = (_units(network, call, batch, loss_fn) for network in (old, new))
    rows = [_of_difference(kind, mode, found) for (kind, mode), found in differences.items()]
    rows += [_further(old, new, each, mode) for each in more for mode in MODES]
    rows += [_pair("parameters, a tied one once", once), _pair("parameters, by name", named)]
    rows += [_pair("operations, one example", flops)]
    rows += [_of_units("units that get no gradient", before[0], after[0])]
    rows += [_of_units("units that have a twin", before[1], after[1]), *map(_of_finding, unchanged.stayed(old, new))]
    rows += [Row("its class builds it from its configuration", *said) for said in unchanged.configurations(old, new)]
    return Receipt(differences, once, named, flops, *after, tuple(unchanged.changed(old, new)), tuple(rows))


def _difference(old: nn.Module, new: nn.Module, call: Call, kind: torch.dtype, mode: str) -> tuple[float, float] | str:
    """The largest difference of an output in this type of numbers, and how much the outputs vary; or why it is not."""
    given = call.mapped(lambda t: t.to(kind) if t.is_floating_point() else t)

    def outputs(network: nn.Module, *seeds: int) -> list[Any]:
        found, own = [], copy.deepcopy(network).to(kind).train(mode == "training")
        for seed in seeds:
            with torch.no_grad(), seeded(own, seed), precision.full():
                found.append(copy.deepcopy(given).of(own))
        return found

    try:
        one, other = outputs(old, 0, 1)
        random = any(gap for gap, _, _ in changes(one, other))
    except Exception as error:  # whatever a network does in numbers that it was not made for
        return f"{NEVER}: {arguments.first_line(error)}"
    try:
        (two,) = outputs(new, 0)
        gap, spread, _ = largest(one, two)
    except Exception as error:  # as above
        return f"{NO_MORE}: {arguments.first_line(error)}"
    return "the network draws random numbers" if random else (gap, spread)


def _of_difference(kind: str, mode: str, found: tuple[float, float] | str) -> Row:
    what = f"largest difference of an output, {mode}, {kind}"
    if isinstance(found, str):
        return Row(what, "", found, False if found.startswith(NO_MORE) else None)
    return Row(what, "", f"{found[0]:.1e} (they vary by {found[1]:.2g})")


def _further(old: nn.Module, new: nn.Module, call: Call, mode: str) -> Row:
    found = _of_difference("float64", mode, _difference(old, new, call, torch.float64, mode))
    return replace(found, what=f"{found.what}, on a batch of shape {call.shapes}")


def _of_finding(finding: unchanged.Finding) -> Row:
    what, count, wrong = finding
    after = f"NO: {', '.join(wrong)}" if wrong else "yes" if count else "there are none"
    return Row(what, str(count), after, not wrong)


def _parameters(network: nn.Module, tied: bool) -> int:
    return sum(p.numel() for _, p in network.named_parameters(remove_duplicate=not tied))


def _flops(old: nn.Module, new: nn.Module, call: Call) -> tuple[int, int] | str:
    """Floating-point operations on the first example, in evaluation mode."""
    one = copy.deepcopy(call.mapped(lambda t: t[:1] if t.ndim else t))
    found = []
    try:
        for network in (old, new):
            with evaluating(network), restored(network):
                found.append(count_flops(network, *one.arguments, **one.options))
    except Exception as error:  # not every network takes a single example
        return f"not known: {arguments.first_line(error)}"
    return found[0], found[1]


def _pair(what: str, found: tuple[int, int] | str) -> Row:
    return Row(what, "", found) if isinstance(found, str) else Row(what, f"{found[0]:,}", f"{found[1]:,}")


Units = Mapping[str, int] | str  # coupling → how many of its units; or why that is not known


def _units(network: nn.Module, call: Call, batch: Any, loss_fn: LossFn) -> tuple[Units, Units]:
    """How many units of each coupling get no gradient, and how many stay the same as another one by their gradient."""
    try:
        groups = of_trace(trace(network, call))
    except NotImplementedError as error:
        return (f"not known: {str(error).partition(chr(10))[0]}",) * 2
    twin = copy.deepcopy(network).requires_grad_()
    with evaluating(twin), torch.random.fork_rng(devices=[]):
        lossless = isinstance(batch, Tensor | Call) or by_name(batch, loss_fn)
        loss = arguments.differentiable(_sum(copy.deepcopy(call).directly(twin)) if lossless else loss_fn(twin, batch))
    own = dict(twin.named_parameters())
    try:
        gradients = dict(zip(own, growth.gradients(loss, list(own.values())), strict=True))
    except RuntimeError as error:  # what is computed in place may be needed for them
        return (f"not known: {arguments.first_line(error)}",) * 2
    still = {name: int((_parts(group, gradients) == 0).all(1).sum()) for name, group in groups.items()}
    return still, {name: _twins(group, own, gradients) for name, group in groups.items()}


def _sum(outputs: Any) -> Tensor:
    """A fixed random sum of all outputs."""
    parts = [t.double() for t in tensors(outputs) if t.is_floating_point() and t.requires_grad]
    stream = generator("receipt")
    draws = [torch.randn(t.shape, generator=stream, dtype=torch.float64).to(t.device) for t in parts]
    return sum(((t * draw).where(t.isfinite(), 0).sum() for t, draw in zip(parts, draws, strict=True)), torch.zeros(()))


def _parts(group: Coupling, tensors: Mapping[str, Tensor], made: bool = False) -> Tensor:
    """All that belongs to each unit of a coupling in these tensors, or to what makes it, (units, numbers)."""
    uses = {(use.tensor, use.axis): use for use in (group.makers() if made else group.uses) if use.tensor in tensors}
    parts = [units_first(tensors[use.tensor].detach(), use, group.size).flatten(1).double() for use in uses.values()]
    return torch.cat([part.cpu() for part in parts] or [torch.zeros(group.size, 1)], dim=1)


def _twins(group: Coupling, own: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> int:
    """How many units are made as another one is, and get the same gradient there: training keeps them the same."""
    made, slope = _parts(group, own, made=True), _parts(group, gradients, made=True)
    which = torch.unique(made, dim=0, return_inverse=True)[1].double().unsqueeze(1)
    steps = (slope / (SAME * float(slope.abs().max()) or 1)).round()
    counts = torch.unique(torch.cat([which, steps], dim=1), dim=0, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _of_units(what: str, before: Units, after: Units) -> Row:
    def shown(found: Units) -> str:
        if isinstance(found, str):
            return ""
        where = ", ".join(f"{name}: {count}" for name, count in found.items() if count)
        return f"{sum(found.values())}" + (f" ({where})" if where else "")

    if isinstance(after, str):
        return Row(what, "", after)
    return Row(what, shown(before).partition(" ")[0], shown(after))
