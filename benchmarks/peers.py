"""mmstudy beside other packages, on the same networks, data and points: every line of the output is one case, as JSON.

Run by `bench.py` in an environment of its own that has the peers; a peer that cannot be imported, or fails, is skipped
with one line on stderr. The peers go through points one after another; all run in one process with all cores.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn
from tqdm import tqdm
from work import CORES, DEVICE, Work, build, difference, examples, interleaved, objective, row

from mmstudy.core.seeds import generator

NETWORKS, EXAMPLES, REPETITIONS = ("MLP 64", "convolutional"), 128, 7
LINE, PLANE, PROBES = 40, 20, 32  # points; points along each side; probes of a trace
REACH = 0.5  # of landscaper's plane, in lengths of the parameter vector
Compared = tuple[str, str, int, Callable[[], Tensor], Callable[[], Tensor], Tensor, Tensor]
# what, peer, count, the peer's way, ours, and results of both that must agree


def flat(network: nn.Module) -> Tensor:
    """The parameters as one vector."""
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def loss_landscapes(name: str) -> Iterator[Compared]:
    """`linear_interpolation` and `planar_interpolation` between networks of one shape."""
    import loss_landscapes as peer

    network, *others = [build(name, seed).eval() for seed in range(3)]
    batch = examples(name, EXAMPLES)
    metric = peer.metrics.Loss(nn.functional.cross_entropy, *batch)
    loss, start, (one, two) = objective(network, batch), flat(network), [flat(n) - flat(network) for n in others]

    def their_line() -> Tensor:
        return torch.as_tensor(peer.linear_interpolation(network, others[0], metric, LINE, deepcopy_model=True))

    def line() -> Tensor:
        along = torch.arange(1, LINE + 1, device=DEVICE) / LINE  # it leaves the start out
        return loss((start + along[:, None] * one)[None])[0]

    def their_plane() -> Tensor:
        return torch.as_tensor(peer.planar_interpolation(network, *others, metric, PLANE, deepcopy_model=True))

    def plane() -> Tensor:
        i, j = torch.meshgrid(*[torch.arange(PLANE, device=DEVICE)] * 2, indexing="ij")
        j = j + (i % 2 == 0)  # its points: every other row is one step further along the second direction
        points = start + (i[..., None] * one + j[..., None] * two) / PLANE
        return loss(points.view(1, PLANE**2, -1)).view(PLANE, PLANE)

    yield "line", "loss-landscapes", LINE, their_line, line, their_line(), line()
    yield "plane", "loss-landscapes", PLANE**2, their_plane, plane, their_plane(), plane()


def landscaper_plane(name: str) -> Iterator[Compared]:
    """`compute_loss_landscape` over the plane of two random directions."""
    from landscaper.compute import compute_loss_landscape

    network, batch = build(name).eval(), examples(name, EXAMPLES)
    shapes = [p.shape for p in network.parameters()]
    stream = generator("benchmark", "plane")
    directions = [[torch.randn(shape, generator=stream).to(DEVICE) for shape in shapes] for _ in range(2)]
    loss, start = objective(network, batch), flat(network)

    def scalar(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
        return nn.functional.cross_entropy(model(data[0]), data[1]).item()

    def theirs() -> Tensor:
        found, _ = compute_loss_landscape(network, batch, directions, scalar, PLANE, REACH, dim=2, device=DEVICE)
        return torch.as_tensor(found)

    def ours() -> Tensor:
        scaled = [torch.cat([(d * (d.numel() ** 0.5 / d.norm())).flatten() for d in many]) for many in directions]
        one, two = [start.norm() * REACH / (PLANE / 2) * direction / direction.norm() for direction in scaled]
        steps = torch.arange(PLANE, device=DEVICE) - PLANE // 2
        points = start + steps[:, None, None] * one + steps[None, :, None] * two
        return loss(points.view(1, PLANE**2, -1)).view(PLANE, PLANE)

    low = ours() < ours().max()  # it adds noise to its largest value
    yield "plane", "landscaper", PLANE**2, theirs, ours, theirs()[low], ours()[low]


def trace(name: str) -> tuple[nn.Module, tuple, Tensor, Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """A network, its data, a probe, our estimate of the Hessian's trace, and its product with a vector."""
    network, batch = build(name).eval(), examples(name, EXAMPLES)
    loss, start = objective(network, batch), flat(network)

    def products(vectors: Tensor) -> Tensor:
        return loss.hessian_vector(start[None], vectors[None])[0]

    def ours() -> Tensor:
        probes = 2.0 * torch.randint(2, (PROBES, len(start)), device=DEVICE) - 1
        return (probes * products(probes)).sum(1).mean()

    return network, batch, torch.randn(len(start), generator=generator("probe")).to(DEVICE), ours, products


def curvlinops(name: str) -> Iterator[Compared]:
    """`hutchinson_trace` of a `HessianLinearOperator`."""
    from curvlinops import HessianLinearOperator, hutchinson_trace

    network, batch, probe, ours, products = trace(name)
    parameters = list(network.parameters())
    hessian = HessianLinearOperator(network, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False)
    theirs = lambda: hutchinson_trace(hessian, PROBES)  # noqa: E731
    yield "Hessian trace", "curvlinops", PROBES, theirs, ours, (hessian @ probe).detach(), products(probe[None])[0]


def landscaper_trace(name: str) -> Iterator[Compared]:
    """`PyHessian.trace`, which is that of the package PyHessian."""
    from landscaper import PyHessian

    network, batch, probe, ours, products = trace(name)
    hessian = PyHessian(network, nn.CrossEntropyLoss(), [batch], DEVICE)
    pieces = probe.split([p.numel() for p in hessian.params])
    vector = [piece.view_as(p) for piece, p in zip(pieces, hessian.params, strict=True)]
    product = torch.cat([h.flatten() for h in hessian.hv_product(vector)[1]]).detach()
    theirs = lambda: hessian.trace(PROBES, tol=0)  # noqa: E731
    yield "Hessian trace", "landscaper", PROBES, theirs, ours, product, products(probe[None])[0]


def main() -> None:
    """Time every peer, and print each case as it is done."""
    torch.set_num_threads(CORES)
    pairs = [(p, n) for p in (loss_landscapes, landscaper_plane, curvlinops, landscaper_trace) for n in NETWORKS]
    for peer, name in tqdm(pairs, desc="peers", disable=None):
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found = []
                for what, package, count, theirs, ours, their_result, our_result in peer(name):
                    timed = interleaved({"reference": theirs, "one process": ours}, REPETITIONS)
                    apart = difference(their_result.double(), our_result.double())
                    work = Work(what, name, count, EXAMPLES, 1)
                    found.append(row(work, timed, apart, package))
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            tqdm.write(f"{peer.__name__}, {name}: skipped ({type(error).__name__}: {first})")
            continue
        for case in found:
            print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
