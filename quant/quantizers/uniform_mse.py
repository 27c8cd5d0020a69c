"""Evenly spaced values around the mean, the step of least squared error: what lies far out is clipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant.codebooks import Codebook, midpoints
from quant.quantizers._scale import LeastSquares
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class UniformMse(LeastSquares):
    """2^b values, s apart, symmetric about the mean; s has the least squared error of all."""

    kind = "uniform_mse"
    location = True
    source = "Max 1960 (uniform), on the weights themselves"
    formula = "m + s (k - (2^b - 1) / 2), m = mean w, s of least squared error"

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group."""
        return ("mean", "step")

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    def codebook(self) -> Codebook:
        """Steps from the middle: ..., -1/2, 1/2, ..."""
        return midpoints(np.arange(2**self.bits) - (2**self.bits - 1) / 2)


QUANTIZER = UniformMse
