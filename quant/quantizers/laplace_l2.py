"""The optimal codebook for Laplace weights in the squared error: Lloyd-Max where tails are heavier than a normal's."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, laplace
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class LaplaceL2(Standardised):
    """Standardised group, values of least E(w - q)^2 for Laplace weights."""

    kind = "laplace_l2"
    source = "Sullivan 1996; Lloyd 1982, Max 1960"
    formula = "q s + m, s = std w; q of least E(z - q)^2 for Laplace weights"

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.laplace`."""
        return laplace(self.bits, "l2")


QUANTIZER = LaplaceL2
