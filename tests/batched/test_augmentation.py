import numpy as np
import pytest
import torch

from mmstudy.batched import augmentation as au
from mmstudy.batched import ensemble as en
from mmstudy.batched import replay, training
from mmstudy.batched.objective import of_networks
from mmstudy.core import networks
from mmstudy.core.seeds import generator

IMAGES = [(1, 28, 28), (3, 32, 32), (3, 5, 7)]


def slowly(image: np.ndarray, down: int, right: int, mirrored: int) -> np.ndarray:
    """One image, the way everybody writes it: mirror, pad by four repeated pixels, crop."""
    if mirrored:
        image = image[:, :, ::-1]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="edge")
    _, height, width = image.shape
    return padded[:, 4 + down : 4 + down + height, 4 + right : 4 + right + width]


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_variants_are_those_of_a_loop_over_single_images(image):
    count, features = 5, int(np.prod(image))
    inputs, targets = torch.randn(count, features), torch.arange(count) % 3
    moves = [0, 1, 2, 3, 4, -1, -2, -3, -4]
    ways = [(down, right, mirrored) for down in moves for right in moves for mirrored in (0, 1)]
    assert len(ways) == au.VARIANTS
    draws = torch.arange(count * au.VARIANTS).view(2, -1, count)  # any shape
    found, classes = au.take(image, torch.device("cpu"))((inputs, targets), draws)
    assert found.shape == (*draws.shape, features)
    for draw, row, label in zip(draws.flatten().tolist(), found.flatten(0, -2), classes.flatten(), strict=True):
        expected = slowly(inputs[draw % count].view(image).numpy(), *ways[draw // count])
        assert np.array_equal(row.view(image).numpy(), expected)
        assert label == targets[draw % count]


def test_an_example_that_is_drawn_plainly_is_itself():
    inputs, targets = torch.randn(6, 75), torch.arange(6)
    found, classes = au.take((3, 5, 5), torch.device("cpu"))((inputs, targets), torch.arange(6))
    assert torch.equal(found, inputs)
    assert torch.equal(classes, targets)


def test_variants_of_an_order_come_from_its_own_generator_and_leave_its_examples():
    def order(names):
        plain = training.minibatches([generator("order", name) for name in names], 50, 40, 10)
        return plain, au.varied(plain, 50, [generator("variants", name) for name in names])

    plain, varied = order(["a", "b", "c"])
    assert torch.equal(varied % 50, plain)
    variants = varied // 50
    assert (variants >= 0).all() and (variants < au.VARIANTS).all()
    counts = variants.flatten().bincount(minlength=au.VARIANTS)
    expected = variants.numel() / au.VARIANTS
    surplus = ((counts - expected) ** 2 / expected).sum() - (au.VARIANTS - 1)  # χ², as a z-score
    assert abs(surplus) < 4 * (2 * (au.VARIANTS - 1)) ** 0.5
    for i, name in enumerate("abc"):
        assert torch.equal(order([name])[1][0], varied[i])
    assert not torch.equal(variants[0], variants[1])


IMAGE, COUNT, STEPS = (2, 6, 6), 12, 30  # long enough to be recorded and replayed


@pytest.fixture
def batch():
    return torch.randn(COUNT, 72), torch.arange(COUNT) % 3


def resnets(count):
    made = [networks.ResNet(2, (4, 4), (1, 1), 3, "group", (6, 6)) for _ in range(count)]
    return en.stack([networks.initialize(each, generator("augmented", i)) for i, each in enumerate(made)])


def order_of(names):
    plain = training.minibatches([generator("order", name) for name in names], COUNT, STEPS, 5)
    return au.varied(plain, COUNT, [generator("variants", name) for name in names])


def trained(start, data, order, **options):
    ((_, ended, seen),) = training.train(start, data, order, training.cosine(0.1, STEPS), **options)
    return en.vectors(ended), seen


@pytest.fixture
def take():
    return au.take(IMAGE, torch.device("cpu"))


def test_training_is_that_on_a_larger_set_with_all_variants_in_it(batch, take):
    everything = take(batch, torch.arange(COUNT * au.VARIANTS))
    order = order_of("ab")
    points, losses = trained(resnets(2), batch, order, take=take)
    expected, others = trained(resnets(2), everything, order)
    assert torch.equal(points, expected)
    assert torch.equal(losses, others)


def test_what_a_network_sees_does_not_depend_on_those_beside_it(batch, take):
    order, start = order_of("abb"), resnets(3)
    points, losses = trained(start, batch, order, take=take)
    for i in range(3):
        alone, own = trained(start[[i]], batch, order[[i]], take=take)
        torch.testing.assert_close(points[[i]], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[[i]], own, rtol=1e-4, atol=1e-5)
    same = start[[1, 1]]
    points, losses = trained(same, batch, order[[1, 2]], take=take)  # of one seed: of one order
    assert torch.equal(points[0], points[1])
    assert torch.equal(losses[0], losses[1])


def test_replayed_steps_see_the_same_images(batch, take):
    order = order_of("ab")
    points, losses = trained(resnets(2), batch, order, take=take)
    with replay.off():
        expected, others = trained(resnets(2), batch, order, take=take)
    assert torch.equal(points, expected)
    assert torch.equal(losses, others)


def test_an_order_of_variants_is_refused_where_nobody_takes_them(batch):
    with pytest.raises(ValueError, match=r"the order names examples \d+ to \d+; there are"):
        trained(resnets(2), batch, order_of("ab"))


def test_the_noisy_loss_of_an_objective_is_that_of_the_variants(batch, take):
    networks_ = resnets(2)
    objective = of_networks(networks_, batch, minibatch=5, take=take)
    points, owner, draws = en.vectors(networks_), torch.arange(2), order_of("ab")[:, 0]
    found, _ = objective.noisy_gradient(points, owner, draws)
    for i in range(2):
        torch.testing.assert_close(found[[i]].double(), en.losses(networks_[[i]], take(batch, draws[i])))
    plain = objective.draws([generator("a"), generator("b")], 3)
    seen, _ = objective.noisy_gradient(points, owner, plain[:, 0])
    expected, _ = of_networks(networks_, batch, minibatch=5).noisy_gradient(points, owner, plain[:, 0])
    assert torch.equal(seen, expected)


def test_everything_stays_where_the_examples_are():
    device = torch.device("meta")
    inputs, targets = torch.empty(10, 72, device=device), torch.empty(10, dtype=torch.long, device=device)
    found, classes = au.take(IMAGE, device)((inputs, targets), torch.empty(3, 4, dtype=torch.long, device=device))
    assert found.device == classes.device == device
    assert (found.shape, classes.shape) == ((3, 4, 72), (3, 4))
