"""The optimal codebook for Laplace weights in the absolute error."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, laplace
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class LaplaceL1(Standardised):
    """Standardised group, values of least E|w - q| for Laplace weights."""

    kind = "laplace_l1"
    source = "as gaussian_l1, for another law"
    formula = "q s + m, s = std w; q of least E|z - q| for Laplace weights"

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.laplace`."""
        return laplace(self.bits, "l1")


QUANTIZER = LaplaceL1
