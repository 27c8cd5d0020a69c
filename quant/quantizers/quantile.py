"""Equal mass: every code is used equally often where weights are normal, so that no entropy coder gains anything."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, quantiles
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Quantile(Standardised):
    """Standardised group, cells of equal mass under N(0, 1), the median of each as its value.

    NF (``nf``) is another: it takes quantiles for values, scales by the largest weight and has a zero.
    """

    kind = "quantile"
    source = "Dettmers et al. 2022 (quantile quantisation), of the fitted normal"
    formula = "q s + m, s = std w; q the medians of cells of equal mass under N(0, 1)"

    @property
    def laws(self) -> frozenset[str]:
        """Above 1 bit the boundaries are quantiles, no midpoints."""
        return frozenset(LAWS) if self.bits == 1 else frozenset(LAWS) - {"nearest"}

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.quantiles`."""
        return quantiles(self.bits)


QUANTIZER = Quantile
