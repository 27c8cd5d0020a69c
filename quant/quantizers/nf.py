"""NormalFloat: quantiles of a normal between the largest weights, with an exact zero (QLoRA's NF4 at 4 bits)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant.codebooks import Codebook, normal_float
from quant.quantizers._affine import Affine, largest, largest_slope
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class NormalFloat(Affine):
    """As published: no mean, s = max|w|, 0 among the values. It assumes that s is the top quantile of a normal, which
    it is in groups of about 64 (``nf/group64``); in a whole matrix the largest weight lies further out.
    """

    kind = "nf"
    widths = range(2, 9)
    source = "Dettmers et al. 2023 (QLoRA)"
    formula = "q s, s = max|w|; q quantiles of N(0, 1) over the largest, with 0"

    @property
    def laws(self) -> frozenset[str]:
        """Not shift: 0 stays a value."""
        return frozenset(LAWS) - {"shift"}

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.normal_float`."""
        return normal_float(self.bits)

    def measure(self, x: Tensor) -> Tensor:
        """The largest magnitude."""
        return largest(x)[None]

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """It moves with the largest weight alone."""
        # ds/dw_j = sign(w_j) where |w_j| = s, shared where several are
        return largest_slope(x)


QUANTIZER = NormalFloat
