"""The codebook of the paper's released code, not converged above 4 bits: files on disk were made with it."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, released
from quant.quantizers._affine import Standardised
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Released(Standardised):
    """Standardised matrix, values as PAPER 1.1 iterates them.

    Departs from the released code on ties, which go to the lower code in training too (there: halfway between two).
    """

    kind = "released"
    source = "Jie, Wang and Deng 2023, as released (PAPER 1.1)"
    formula = "q s + m, s = std w; q after 500 rounds towards gaussian_l1"

    @property
    def laws(self) -> frozenset[str]:
        """Above 4 bits the boundaries are no midpoints; at 8 inner values coincide, and the last bit does not help."""
        lost = {"nearest"} if self.bits > 4 else set()
        return frozenset(LAWS) - lost - ({"identity", "falls"} if self.bits == 8 else set())

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.released`."""
        return released(self.bits)


QUANTIZER = Released
