import pytest
import torch
from cases import batch, convolutional, mlp
from torch import nn

from mmstudy.batched import connectivity
from mmstudy.batched import ensemble as en
from mmstudy.batched.modes import NORMALIZATION
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.validation import landscapes


def test_segments_end_in_the_stored_losses():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(2)])
    points = en.vectors(stacked)
    loss = of_networks(stacked, (inputs, targets))
    along = connectivity.segment(loss, points[:1], points[1:], torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(along[0, [0, 2]], en.losses(stacked, (inputs, targets)))


def test_the_known_barrier_has_its_height():
    ends, alphas = torch.tensor([[-1.0, 3.0], [1.0, -2.0]]), torch.linspace(0, 1, 21)
    along = connectivity.segment(landscapes.barrier(0.7), ends[0], ends[1], alphas)
    assert connectivity.barrier(along, alphas).item() == pytest.approx(0.7)
    assert connectivity.barrier(alphas * 5, alphas).item() == pytest.approx(0, abs=1e-6)  # a slope is no barrier
    with pytest.raises(ValueError, match=r"run from 0\.5 to 1"):
        connectivity.barrier(along[10:], alphas[10:])


def test_the_planes_corners_are_the_networks():
    inputs, targets = batch(64)
    stacked = en.stack([mlp(seed=i) for i in range(3)])
    loss, points = of_networks(stacked, (inputs, targets)), en.vectors(stacked)
    _, corners = connectivity.plane(loss, points, torch.zeros(1), torch.zeros(1))
    for i in range(3):
        grid, _ = connectivity.plane(loss, points, corners[i, :1], corners[i, 1:])
        assert grid.item() == pytest.approx(float(loss(points)[i]), rel=1e-4)


def test_point_losses_are_those_of_networks_with_these_parameters():
    inputs, targets = batch(64)
    stacked = en.stack([mlp()])
    points = torch.randn(2, 3, en.vectors(stacked).shape[1], generator=generator("points"))
    found = of_networks(stacked, (inputs, targets))(points)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            network = mlp(seed=9)
            nn.utils.vector_to_parameters(points[i, j], network.parameters())
            expected = nn.functional.cross_entropy(network(inputs), targets).item()
            assert found[i, j].item() == pytest.approx(expected, rel=1e-5)


def test_many_segments_are_those_of_each_and_a_plain_loop():
    starts, ends = torch.randn(2, 4, 3, 5, generator=generator("ends"), dtype=torch.float64)
    alphas, loss = torch.tensor([0.0, 0.2, 0.7, 1.0]), landscapes.ring(1.5)
    along = connectivity.segment(loss, starts, ends, alphas)
    assert along.shape == (4, 3, 4)
    for i in range(4):
        for j in range(3):
            for p, alpha in enumerate(alphas.double().tolist()):
                expected = loss((1 - alpha) * starts[i, j] + alpha * ends[i, j])
                torch.testing.assert_close(along[i, j, p], expected, rtol=1e-9, atol=1e-12)


def test_barriers_of_many_segments_rise_over_the_straight_line():
    along = torch.rand(3, 2, 6, generator=generator("along"), dtype=torch.float64)
    alphas = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    heights = connectivity.barrier(along, alphas)
    for i in range(3):
        for j in range(2):
            row = along[i, j].tolist()
            rises = [v - ((1 - a) * row[0] + a * row[-1]) for v, a in zip(row, alphas.tolist(), strict=True)]
            assert heights[i, j].item() == pytest.approx(max(rises), abs=1e-12)


@pytest.mark.parametrize("height", [0.0, 0.7, 30.0])
def test_a_barrier_between_unequal_ends_is_measured_from_their_line(height):
    alphas = torch.linspace(0, 1, 21, dtype=torch.float64)
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    tilted = lambda points: landscapes.barrier(height)(points) + 5 * points[..., 0]  # noqa: E731
    along = connectivity.segment(tilted, ends[0], ends[1], alphas)
    assert connectivity.barrier(along, alphas).item() == pytest.approx(height, abs=1e-9)


def test_a_segment_through_a_loss_that_is_not_a_number_has_no_barrier():
    alphas = torch.linspace(0, 1, 3)
    assert connectivity.barrier(torch.tensor([1.0, torch.nan, 1.0]), alphas).isnan()


def test_the_plane_keeps_distances_and_has_rows_along_the_second_axis():
    corners = torch.randn(3, 8, generator=generator("plane"), dtype=torch.float64)
    first = torch.tensor([-0.5, 0.0, 2.0], dtype=torch.float64)
    second = torch.tensor([0.0, 1.5], dtype=torch.float64)
    grid, coordinates = connectivity.plane(lambda points: points.square().sum(-1), corners, first, second)
    assert grid.shape == (2, 3)
    torch.testing.assert_close(torch.cdist(coordinates, coordinates), torch.cdist(corners, corners))
    assert coordinates[0].abs().max() == 0
    assert coordinates[1, 1].abs() < 1e-12
    assert coordinates[2, 1] > 0
    u = (corners[1] - corners[0]) / (corners[1] - corners[0]).norm()
    rest = corners[2] - corners[0]
    v = (rest - rest.dot(u) * u) / (rest - rest.dot(u) * u).norm()
    for row, y in enumerate(second):
        for column, x in enumerate(first):
            torch.testing.assert_close(grid[row, column], (corners[0] + x * u + y * v).square().sum())


@pytest.mark.parametrize("normalization", NORMALIZATION)
def test_interpolated_networks_end_in_the_networks_themselves(normalization):
    """Normalized networks whose running statistics differ, several pairs at once."""
    inputs, targets = batch(64)
    nets = [convolutional(seed) for seed in range(4)]
    for i, net in enumerate(nets):
        net(inputs * (i + 1))  # moves the running statistics
    start, end = en.stack(nets[:2]), en.stack(nets[2:])
    alphas = torch.tensor([0.0, 0.3, 1.0])
    between = connectivity.interpolated(start, end, alphas)
    found = en.losses(between, (inputs, targets), normalization=normalization).view(2, 3)
    for ends, column in ((start, 0), (end, 2)):
        torch.testing.assert_close(found[:, column], en.losses(ends, (inputs, targets), normalization=normalization))
    mean = between.buffers["2.running_mean"].view(2, 3, -1)[:, 1]
    torch.testing.assert_close(mean, 0.7 * start.buffers["2.running_mean"] + 0.3 * end.buffers["2.running_mean"])
    assert (between.buffers["2.num_batches_tracked"] == 1).all()
    with pytest.raises(ValueError, match="as many starts as ends; got 2 and 4"):
        connectivity.interpolated(start, en.stack(nets), alphas)
