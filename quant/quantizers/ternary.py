"""The best ternary weights: scale and threshold of least squared error, exact."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, midpoints
from quant.quantizers._scale import LeastSquares
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Ternary(LeastSquares):
    """-s, 0 or s with the s of least squared error; the threshold is then s / 2."""

    kind = "ternary"
    widths = range(2, 3)
    source = "exact optimum of Li, Zhang and Liu 2016, equation 3"
    formula = "s round(clip(w / s, -1, 1)), s of least squared error"

    @property
    def laws(self) -> frozenset[str]:
        """Not shift: 0 stays a value."""
        return frozenset(LAWS) - {"shift"}

    def codebook(self) -> Codebook:
        """-1, 0 and 1."""
        return midpoints([-1.0, 0.0, 1.0])


QUANTIZER = Ternary
