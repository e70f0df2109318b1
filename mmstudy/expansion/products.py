"""Products with the matrices of expansions, most of whose rows have one entry: copies, and no long sums."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A matrix (new, old) that has been looked at: which of its rows are copies."""

    matrix: Tensor
    source: Tensor  # the place of an entry of each row, (new, 1); 0 where it has none
    several: Tensor  # the rows that have more than one, (some,)
    different: Tensor  # those that are not the same, (different, old): averages are
    which: Tensor  # and which of them each is, (some,)

    @staticmethod
    def of(matrix: Tensor) -> "Rows":
        """The rows of a matrix."""
        entries = matrix.detach()
        row, column = entries.nonzero().T
        source = torch.zeros(len(entries), 1, dtype=torch.long, device=entries.device)
        source[row, 0] = column  # rows that have several are taken whole below
        several = (row.bincount(minlength=len(entries)) > 1).nonzero().squeeze(1)
        different, which = entries[several].unique(dim=0, return_inverse=True)
        return Rows(matrix, source, several, different, which)

    def times(self, units: Tensor) -> Tensor:
        """The product with (old, ...): (new, ...); a matrix that is learned is one."""
        if self.matrix.requires_grad or len(self.different) == len(self.matrix):
            return _summed(self.matrix, units)
        entries, device = self.matrix.gather(1, self.source).to(units), units.device
        copies = _selected(units, self.source.squeeze(1).to(device))
        entries, into = entries.view(-1, *[1] * (units.ndim - 1)), None if copies.requires_grad else copies
        product = torch.addcmul(units.new_zeros(()), copies, entries, out=into)  # in place, where that can be
        if len(self.several):
            product[self.several.to(device)] = _summed(self.different, units)[self.which.to(device)]
        return product


def _selected(units: Tensor, index: Tensor) -> Tensor:
    """These units, in the order in which the tensor lies in memory: to read it across takes ten times as long."""
    strides = units.stride()
    order = sorted(range(units.ndim), key=lambda axis: -strides[axis])
    found = units.permute(order).index_select(order.index(0), index)
    return found.permute([order.index(axis) for axis in range(units.ndim)])


def _summed(matrix: Tensor, units: Tensor) -> Tensor:
    return (matrix.to(units) @ units.flatten(1)).view(len(matrix), *units.shape[1:])
