"""Ternary weight networks: a threshold by rule of thumb, and the mean magnitude of what lies beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine, largest, mean_magnitude
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Twn(Affine):
    """-s, 0 or s: 0 up to t = 0.7 mean|w|, and s the mean of |w| beyond t. ``ternary`` finds the best t instead."""

    kind = "twn"
    widths = range(2, 3)
    source = "Li, Zhang and Liu 2016"
    formula = "s sign(w) where |w| > t = 0.7 mean|w|, else 0; s = mean|w| there"

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The threshold is stored too, so that a grid read back gives the codes that it gave."""
        return ("scale", "threshold")

    @property
    def laws(self) -> frozenset[str]:
        """Not nearest: t is not s / 2. Not shift: 0 stays a value."""
        return frozenset(LAWS) - {"nearest", "shift"}

    def codebook(self) -> Codebook:
        """-1, 0 and 1; the boundaries are the group's own."""
        return midpoints([-1.0, 0.0, 1.0])

    def measure(self, x: Tensor) -> Tensor:
        """Scale and threshold."""
        threshold = 0.7 * mean_magnitude(x)
        beyond = x.abs() > threshold[:, None]
        # counted from the largest, so that weights of one magnitude keep it to the last bit
        top = largest(x)
        below = torch.where(beyond, top[:, None] - x.abs(), 0.0).sum(dim=1) / beyond.sum(dim=1).clamp(min=1)
        return torch.stack([top - below, threshold])

    def cells(self, z: Tensor, table: Tensor) -> Tensor:
        """0 below -t or on it, 2 above t, else 1."""
        scale = self._scale(table)
        threshold = table[1] / torch.where(scale > 0, scale, 1.0)
        return (z > -threshold).int() + (z > threshold).int()

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of a mean magnitude over the weights that are not 0."""
        # ds/dw_j = q_j / (number of q_i that are not 0)
        return q / q.abs().sum(dim=1, keepdim=True).clamp(min=1)


QUANTIZER = Twn
