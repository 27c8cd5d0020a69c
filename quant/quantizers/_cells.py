"""Which cell of a codebook a weight lies in: as ``torch.bucketize``, without a search where the boundaries allow it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FEW = 3
"""Boundaries up to which each is compared with all weights."""
_MOST_BINS = 2**16


class Cells:
    """Number of boundaries below each weight, int32; a weight on a boundary belongs to the cell below it.

    Even bins cover the boundaries, each with one of them at most: a weight's bin says how many lie below, and one
    comparison the rest. Bins of weights and of boundaries come from the same rounded, monotone arithmetic, so this is
    exact. Boundaries too close to each other for that are searched.

    Parameters
    ----------
    boundaries
        (K - 1,) ascending.
    """

    def __init__(self, boundaries: Tensor) -> None:
        self.boundaries = boundaries
        self.below = self.inside = torch.empty(0)
        if len(boundaries) > _FEW:
            self._bin()

    def __call__(self, z: Tensor) -> Tensor:
        """Cells of weights that are not NaN, of the shape of ``z``."""
        if len(self.boundaries) <= _FEW:
            cells = torch.zeros_like(z, dtype=torch.int32)
            for boundary in self.boundaries:
                cells += z > boundary
            return cells
        if not len(self.below):
            return torch.bucketize(z.contiguous(), self.boundaries, out_int32=True)
        bins = self._bins(z).view(-1)
        cells = self.below.index_select(0, bins).view_as(z)
        return cells.add_(z > self.inside.index_select(0, bins).view_as(z))

    def _bin(self) -> None:
        gap = float(self.boundaries.diff().min())
        width = float(self.boundaries[-1] - self.boundaries[0])
        if not 0 < 2 * width < gap * _MOST_BINS:
            return
        # Half a gap wide: two boundaries never share one, whatever rounding does.
        self.count = math.ceil(2 * width / gap) + 1
        self.first, self.rate = float(self.boundaries[0]), (self.count - 1) / width
        bins = self._bins(self.boundaries).long()
        if (bins.diff() < 1).any():
            return
        counts = torch.zeros(self.count, dtype=torch.int32, device=bins.device)
        counts[bins] = 1
        self.below = (counts.cumsum(0) - counts).int()
        self.inside = torch.full((self.count,), math.inf, dtype=self.boundaries.dtype, device=bins.device)
        self.inside[bins] = self.boundaries

    def _bins(self, z: Tensor) -> Tensor:
        return (z - self.first).mul_(self.rate).clamp_(0, self.count - 1).int()
