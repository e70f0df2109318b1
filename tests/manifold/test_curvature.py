import pytest
import torch
from cases import batch, mlp
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn
from torch.func import hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmstudy.batched import ensemble as en
from mmstudy.batched.engine import loss_of
from mmstudy.batched.objective import Objective, of_landscape, of_networks
from mmstudy.core.networks import Decoder, ViT, initialize
from mmstudy.core.seeds import generator
from mmstudy.manifold.curvature import PRODUCT, curvature
from mmstudy.manifold.estimate import Budget
from mmstudy.validation import landscapes


def rotated(curvatures: torch.Tensor, name: object = 0):
    """An ellipsoid whose axes are not the coordinates', so that random signs do not see its trace exactly."""
    axes = torch.linalg.qr(torch.randn(2 * curvatures.shape, generator=generator("axes", name)).to(curvatures))[0]
    return lambda points: landscapes.ellipsoid(curvatures)(points @ axes)


def at_origin(landscape, dim, level=0.5, samples=64, name=0, dtype=torch.float64, **options):
    origin = torch.zeros(1, dim, dtype=dtype)
    return curvature(of_landscape(landscape, dim), origin, level, Budget(samples), generator("probe", name), **options)


@given(
    axes=st.lists(st.floats(0.1, 10), min_size=1, max_size=30), level=st.floats(1e-3, 10), count=st.integers(2, 9),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_the_radius_of_an_ellipsoid_is_exact_on_its_axes(axes, level, count, dtype):
    """√(2ℓ / mean curvature); random signs meet a diagonal Hessian's trace exactly."""
    curvatures = torch.tensor(axes, dtype=dtype)
    found = at_origin(landscapes.ellipsoid(curvatures), len(axes), level, count, dtype=dtype)
    exact = (2 * level / float(curvatures.double().mean())) ** 0.5
    assert found["size"].item() == pytest.approx(exact, rel=1e-5)
    assert found["trace"].item() == pytest.approx(float(curvatures.sum()), rel=1e-5)
    assert found["size_se"].item() == pytest.approx(0, abs=1e-5 * exact)
    assert found["status"].item() == "ok"
    assert found["samples"].shape == (1, count)


def test_the_radius_of_a_rotated_ellipsoid_within_five_percent_and_honest_errors():
    """200 repetitions of 64 probes."""
    curvatures = torch.logspace(-1, 1, 20, dtype=torch.float64)
    exact = (2 * 0.5 / float(curvatures.mean())) ** 0.5
    loss = rotated(curvatures)
    repeated = [at_origin(loss, 20, name=i, iterations=0) for i in range(200)]
    size, error = (torch.tensor([r[name].item() for r in repeated]) for name in ("size", "size_se"))
    z = (size - exact) / error
    covered = int((z.abs() < 1.96).sum())
    assert binom.ppf(0.001, 200, 0.95) <= covered <= 198, f"{covered} of 200 intervals cover the truth"
    assert abs(float(z.mean())) < 4 / 200**0.5
    assert (size / exact - 1).abs().median() < 0.05


def test_the_error_falls_as_one_over_the_root_of_the_number_of_probes():
    loss = rotated(torch.logspace(-1, 1, 20, dtype=torch.float64))
    errors = [at_origin(loss, 20, samples=n)["size_se"].item() for n in (200, 3200)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_the_top_eigenvalue():
    curvatures = torch.linspace(0.1, 1, 20, dtype=torch.float64)
    curvatures[7] = 5
    assert at_origin(rotated(curvatures), 20)["top"].item() == pytest.approx(5, rel=1e-6)
    curvatures[7] = -5
    assert at_origin(rotated(curvatures), 20)["top"].item() == pytest.approx(-5, rel=1e-6)
    assert at_origin(rotated(curvatures), 20, iterations=0)["top"].isnull()


def narrow(inputs: torch.Tensor, targets: torch.Tensor, dtype=torch.float64) -> tuple[Objective, torch.Tensor]:
    stacked = en.stack([mlp((3,), seed=i, dtype=dtype) for i in range(3)])
    return of_networks(stacked, (inputs, targets)), en.vectors(stacked)


def dense_hessian(network: nn.Module, data, loss_fn) -> torch.Tensor:
    """The slow and obvious way."""
    stacked = en.stack([network])
    loss = lambda point: loss_of(network, loss_fn)(  # noqa: E731
        {n: p[0] for n, p in en.at(stacked, point).parameters.items()}, dict(network.named_buffers()), data
    )
    with sdpa_kernel(SDPBackend.MATH):
        return hessian(loss)(en.vectors(stacked)[0])


def _perceptron():
    return mlp((3,), dtype=torch.float64), batch(20, dtype=torch.float64), en.classification


def _regression():
    network = initialize(nn.Sequential(nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 2)).double(), generator("tanh"))
    inputs = batch(20, dtype=torch.float64)[0]
    return network, (inputs, inputs[:, :2].sin()), en.regression


def _vit():
    network = initialize(
        ViT((1, 1, 8), (1, 4), width=4, depth=1, heads=2, outputs=3, ratio=2).double(), generator("vit")
    )
    stream = generator("vit", "data")
    return (
        network,
        (torch.randn(6, 8, generator=stream, dtype=torch.float64), torch.randint(3, (6,), generator=stream)),
        en.classification,
    )


def _decoder():
    network = initialize(Decoder(5, context=4, width=4, depth=1, heads=2, ratio=2).double(), generator("decoder"))
    tokens = torch.randint(5, (6, 5), generator=generator("decoder", "data"))
    return network, (tokens[:, :-1], tokens[:, 1:]), en.classification


@pytest.mark.parametrize("case", [_perceptron, _regression, _vit, _decoder])
def test_the_trace_of_networks_is_that_of_the_dense_hessian(case):
    network, data, loss_fn = case()
    network.eval()
    stacked = en.stack([network])
    objective, points = of_networks(stacked, data, loss_fn), en.vectors(stacked)
    level = float(objective(points)) + 0.1
    found = curvature(objective, points, level, Budget(400), generator("dense"), iterations=60)
    dense = dense_hessian(network, data, loss_fn)
    trace, values = float(dense.trace()), torch.linalg.eigvalsh(dense)
    error = float(2 * (dense.square().sum() - dense.diagonal().square().sum()) / 400) ** 0.5
    assert abs(found["trace"].item() - trace) < 4 * error
    assert found["trace_se"].item() == pytest.approx(error, rel=0.2)
    assert found["top"].item() == pytest.approx(float(values[values.abs().argmax()]), rel=0.01)
    assert found["status"].item() == ("ok" if trace > 0 else "saddle")
    if trace > 0:
        assert found["size"].item() == pytest.approx((0.2 * points.shape[1] / found["trace"].item()) ** 0.5)


def test_every_radius_says_how_far_it_can_be_trusted():
    lopsided = rotated(torch.tensor([10.0] + [-0.4] * 24, dtype=torch.float64))  # trace 0.4, of squares 104
    assert at_origin(lambda p: p.sum(-1), 3)["status"].item() == "unbounded"
    assert at_origin(lambda p: p.sum(-1), 3)["size"].item() == float("inf")
    assert at_origin(lambda p: -p.square().sum(-1), 3)["status"].item() == "saddle"
    assert at_origin(lambda p: -p.square().sum(-1), 3)["size"].isnull()
    assert at_origin(lambda p: p[..., 0] * p[..., 1], 2, samples=2)["status"].item() in ("saddle", "few_samples")
    assert at_origin(lopsided, 25, samples=16)["status"].item() in ("saddle", "few_samples")
    assert at_origin(lambda p: p.abs().sqrt().sum(-1), 3)["status"].item() == "nan"
    assert at_origin(landscapes.ring(), 2, level=-1.0)["status"].item() == "outside"


def test_a_parent_alone_and_among_others_is_the_same_and_bad_ones_poison_none():
    objective, points = narrow(*batch(64, dtype=torch.float64))
    loss = objective(points)
    far, broken = points[:1] * 1e3, torch.full_like(points[:1], torch.nan)
    level = float(loss.max()) + 0.2
    budget = Budget(8)
    together = curvature(objective, torch.stack([points[0], far[0], broken[0]]), level, budget, generator("alone"))
    alone = curvature(objective, points[:1], level, budget, generator("alone"))
    assert together["status"].values.tolist() == ["ok", "outside", "nan"]
    for name in ("size", "size_se", "trace", "top"):
        assert together[name].values[0] == pytest.approx(alone[name].item(), rel=1e-9)
        assert together[name].isnull().values.tolist() == [False, True, True]
    assert int(alone["cost"].max()) == 64 * (1 + PRODUCT * (8 + 10))


def test_single_precision_agrees_with_double():
    inputs, targets = batch(64, dtype=torch.float64)
    objective, points = narrow(inputs, targets)
    single, singles = narrow(inputs.float(), targets, torch.float32)
    level = float(objective(points).max()) + 0.2
    doubles = curvature(objective, singles.double(), level, Budget(8), generator("precision"))
    found = curvature(single, singles, level, Budget(8), generator("precision"))
    assert found["size"].values == pytest.approx(doubles["size"].values, rel=1e-4)


def test_the_number_of_iterations_must_be_one():
    with pytest.raises(ValueError, match="iterations ≥ 0; got -1"):
        at_origin(landscapes.ring(), 2, iterations=-1)
