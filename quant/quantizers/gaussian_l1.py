"""The optimal codebook for N(0, 1) in the absolute error (PAPER 1.1), solved to the end."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, gaussian
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class GaussianL1(Standardised):
    """Standardised matrix, values of least E|w - q| for normal weights."""

    kind = "gaussian_l1"
    source = "Jie, Wang and Deng 2023, solved to the end (PAPER 1.1)"
    formula = "q s + m, s = std w; q of least E|z - q| for N(0, 1)"

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.gaussian`."""
        return gaussian(self.bits, "l1")


QUANTIZER = GaussianL1
