"""Binary weight networks: the sign and one scale, exact in the squared error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine, mean_magnitude
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Bwn(Affine):
    """-s or s with s = mean|w|, which among all s has the least squared error."""

    kind = "bwn"
    widths = range(1, 2)
    source = "Rastegari et al. 2016 (XNOR-Net); BitDelta"
    formula = "s sign(w), s = mean|w|"

    @property
    def laws(self) -> frozenset[str]:
        """Not shift: the boundary stays at 0."""
        return frozenset(LAWS) - {"shift"}

    def codebook(self) -> Codebook:
        """-1 and 1."""
        return midpoints([-1.0, 1.0])

    def measure(self, x: Tensor) -> Tensor:
        """The mean magnitude."""
        return mean_magnitude(x)[None]

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of a mean magnitude."""
        # ds/dw_j = q_j / n
        return q / x.shape[1]


QUANTIZER = Bwn
