"""Ternary weights scaled by their mean magnitude, as BitNet b1.58 has them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine, mean_magnitude
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Absmean(Affine):
    """-s, 0 or s with s = mean|w|, whichever is nearest. Published with an eps in the division; here there is none."""

    kind = "absmean"
    widths = range(2, 3)
    source = "Ma et al. 2024 (BitNet b1.58)"
    formula = "s round(clip(w / s, -1, 1)), s = mean|w|"

    @property
    def laws(self) -> frozenset[str]:
        """Not shift: 0 stays a value."""
        return frozenset(LAWS) - {"shift"}

    def codebook(self) -> Codebook:
        """-1, 0 and 1."""
        return midpoints([-1.0, 0.0, 1.0])

    def measure(self, x: Tensor) -> Tensor:
        """The mean magnitude."""
        return mean_magnitude(x)[None]

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of a mean magnitude."""
        # ds/dw_j = sign(w_j) / n
        return x.sign() / x.shape[1]


QUANTIZER = Absmean
