import pytest
import torch
from cases import batch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mmstudy.ranking import given


def part(loader, examples: int, said: list[str] | None = None):
    told = [] if said is None else said
    return given.measured_part(loader, examples, 0, torch.device("cpu"), told.append)


def numbered(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Examples that are their own numbers, in batches."""
    return [(each[:, None].float(), each) for each in torch.arange(count).split(size)]


@pytest.mark.parametrize("count", [21, 40, 41, 95, 300, 1003])
@pytest.mark.parametrize("size", [1, 7, 50, 2000])
def test_the_measured_part_is_spread_evenly_over_the_loader(count, size):
    inputs, targets = part(numbered(count, size), 20)
    assert len(targets) == 20
    assert torch.equal(inputs[:, 0].long(), targets)
    apart = targets.diff()
    assert apart.min() >= 1
    assert apart.max() <= 2 * count / 20 + 1
    assert targets[0] == 0
    assert targets[-1] >= count - 2 * count / 20 - 1


def test_all_classes_of_a_sorted_loader_judge():
    inputs, _ = batch(400)
    sorted_ones = DataLoader(TensorDataset(inputs, torch.arange(4).repeat_interleave(100)), 25)
    _, targets = part(sorted_ones, 40)
    assert targets.bincount(minlength=4).min() >= 8


@pytest.mark.parametrize("examples", [40, 60])
def test_a_loader_that_has_no_more_is_measured_as_it_is(examples):
    data = TensorDataset(*batch(40))
    found, whole = part(DataLoader(data, 16), examples), batch(40)
    assert all(torch.equal(*pair) for pair in zip(found, whole, strict=True))


def test_a_stream_is_read_from_its_beginning_and_that_is_said():
    class Endless(IterableDataset):
        def __iter__(self):
            inputs, targets = batch(8)
            while True:
                yield from zip(inputs, targets, strict=True)

    said: list[str] = []
    _, targets = part(DataLoader(Endless(), 8), 20, said)
    assert torch.equal(targets, batch(8)[1].repeat(3)[:20])
    assert said == ["validation_loader has no length: networks are compared by its first 20 examples"]
