"""The codebook of the paper's released code, not converged above 4 bits: files on disk were made with it."""

from __future__ import annotations

from dataclasses import dataclass

from quant.codebooks import Codebook, released
from quant.quantizers._affine import Standardised


@dataclass(frozen=True, kw_only=True)
class Released(Standardised):
    """Standardised matrix, values as PAPER 1.1 iterates them.

    Departs from the released code on ties, which go to the lower code in training too (there: halfway between two).
    """

    kind = "released"

    @property
    def laws(self) -> frozenset[str]:
        """Above 4 bits the boundaries are no midpoints; above 6 inner values nearly coincide and bits stop helping."""
        always = {"monotone", "scale", "shift"}
        return frozenset(
            always | ({"nearest"} if self.bits <= 4 else set()) | ({"identity", "falls"} if self.bits <= 6 else set())
        )

    def codebook(self) -> Codebook:
        """See :func:`quant.codebooks.released`."""
        return released(self.bits)


QUANTIZER = Released
