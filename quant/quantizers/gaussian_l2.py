"""The optimal codebook for N(0, 1) in the squared error: Lloyd and Max."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, gaussian
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class GaussianL2(Standardised):
    """Standardised matrix, values of least E(w - q)^2 for normal weights."""

    kind = "gaussian_l2"
    source = "Lloyd 1982, Max 1960"
    formula = "q s + m, s = std w; q of least E(z - q)^2 for N(0, 1)"

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.gaussian`."""
        return gaussian(self.bits, "l2")


QUANTIZER = GaussianL2
