"""DoReFa: evenly spaced levels of tanh(w)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine, largest, largest_slope, mean_magnitude
from quant.quantizers.base import LAWS


@dataclass(frozen=True, kw_only=True)
class Dorefa(Affine):
    """z = tanh(w) / tanh(s) with s = max|w|, on 2^b even levels from -1 to 1, times s; at 1 bit the sign times mean|w|.

    Departs from the paper by the factor s: there the values stay in [-1, 1], whatever the size of the weights, and the
    normalisation after the layer takes it up. Small weights are all but evenly quantised; of large ones, in whose tanh
    little is left between them, the value is far from the weight.
    """

    kind = "dorefa"
    source = "Zhou et al. 2016, equation 9"
    formula = "s q(tanh(w) / tanh(s)), s = max|w|; at 1 bit s sign(w), s = mean|w|"

    @property
    def laws(self) -> frozenset[str]:
        """Not scale, not nearest: tanh bends. Not shift. With 2 bits the outermost levels are worse than a sign."""
        if self.bits == 1:
            return frozenset(LAWS) - {"shift"}
        return frozenset({"monotone"} | ({"falls"} if self.bits > 2 else set()))

    def codebook(self) -> Codebook:
        """From -1 to 1."""
        return midpoints(np.linspace(-1, 1, 2**self.bits))

    def measure(self, x: Tensor) -> Tensor:
        """The largest magnitude, at 1 bit the mean one."""
        return (mean_magnitude(x) if self.bits == 1 else largest(x))[None]

    def standardised(self, x: Tensor, table: Tensor) -> Tensor:
        """The weights as the codebook sees them."""
        if self.bits == 1:
            return super().standardised(x, table)
        # tanh(w) / tanh(s)
        top = table[0].tanh()
        return x.tanh() / torch.where(top > 0, top, 1.0)

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of the mean magnitude at 1 bit, else of the largest."""
        return q / x.shape[1] if self.bits == 1 else largest_slope(x)

    def backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> Tensor:
        """Through the tanh as well."""
        if self.bits == 1:
            return super().backward(grad, table, *saved)
        x, z, q = saved
        s = table[0]
        top = s.tanh()
        ratio = torch.where(top > 0, s / torch.where(top > 0, top, 1.0), 1.0)
        # value_i = (q_i + z_i - const z_i) s:   dL/dw_j = s/tanh(s) (1 - tanh^2 w_j) g_j
        #                                          + ds/dw_j sum_i g_i (q_i - z_i s/tanh(s) (1 - tanh^2 s))
        total = (grad * (q - z * ratio * (1 - top.square()))).sum(dim=1, keepdim=True)
        return ratio * (1 - x.tanh().square()) * grad + torch.where(s > 0, total, 0.0) * largest_slope(x)


QUANTIZER = Dorefa
