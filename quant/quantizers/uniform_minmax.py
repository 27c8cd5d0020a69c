"""Evenly spaced values from the smallest weight to the largest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class UniformMinmax(Affine):
    """2^b values from min(w) to max(w); nothing is clipped, and one far weight widens every cell."""

    kind = "uniform_minmax"
    location = True
    source = "Jacob et al. 2018, without the zero point's rounding"
    formula = "m + s k / (2^b - 1), m = min w, s = max w - min w"

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group."""
        return ("minimum", "range")

    @property
    def laws(self) -> frozenset[str]:
        """At 1 bit the two values are the extremes, worse than the mean alone."""
        return frozenset(LAWS) - ({"falls"} if self.bits == 1 else set())

    def codebook(self) -> Codebook:
        """From 0 to 1."""
        return midpoints(np.linspace(0, 1, 2**self.bits))

    def measure(self, x: Tensor) -> Tensor:
        """The smallest weight, and how far the largest is from it."""
        low, high = torch.aminmax(x, dim=1)
        return torch.stack([low, high - low])

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """It moves with the extremes alone."""
        # ds/dw_j = [w_j = max w] - [w_j = min w], each shared where several are
        low, high = (x == e[:, None] for e in torch.aminmax(x, dim=1))
        return high / high.sum(dim=1, keepdim=True) - low / low.sum(dim=1, keepdim=True)


QUANTIZER = UniformMinmax
