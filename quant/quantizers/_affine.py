"""Quantisers that shift and scale each group and look it up in a fixed codebook.

With location m (0 where none is stored) and scale s: the code of w is the cell of z = (w - m) / s, its value is
q s + m. In training the rounding q(z) - z counts as constant and nothing else does, s and m included:

    value_i = (q_i + z_i - const z_i) s + m
    dL/dw_j = g_j + ds/dw_j * sum_i g_i (q_i - z_i)

m has no part in it: what it takes from z it adds to the value. A quantiser has only to say what ds/dw is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from quant.codebooks import Codebook
from quant.quantizers.base import Quantizer

EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Affine(Quantizer):
    """Location and scale of each group, and one codebook for what is left; ``location``: whether there is one."""

    location: ClassVar[bool] = False

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group."""
        return ("mean", "scale") if self.location else ("scale",)

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.codebook().values.size

    @abstractmethod
    def codebook(self) -> Codebook:
        """Values and boundaries for weights of location 0 and scale 1."""

    @abstractmethod
    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """ds/dw, (G, L); q: the codebook's values of the weights' codes."""

    def encode(self, x: Tensor, table: Tensor) -> Tensor:
        """The cell of each standardised weight; a boundary belongs to the lower one."""
        _, boundaries = tables(self, x.dtype, x.device)
        return torch.bucketize(self.standardised(x, table).contiguous(), boundaries, out_int32=True).to(torch.uint8)

    def decode(self, codes: Tensor, table: Tensor) -> Tensor:
        """The codebook's values, scaled and shifted."""
        # q s + m
        values = self.standard_values(codes, table) * self._scale(table)
        return values + table[0, :, None] if self.location else values

    def backward(self, grad: Tensor, x: Tensor, codes: Tensor, table: Tensor) -> Tensor:
        """See the module: the plain gradient and what goes through the scale."""
        q = self.standard_values(codes, table)
        # g_j + ds/dw_j * sum_i g_i (q_i - z_i)
        total = (grad * (q - self.standardised(x, table))).sum(dim=1, keepdim=True)
        slope = total * self.scale_slope(x, q, table)
        return grad + torch.where(self._scale(table) > 0, slope, 0.0)  # a group of one value has no scale to train

    def refuse(self, table: Tensor) -> str:
        """A scale is at least 0."""
        return (
            f"with a {self.statistic_names[int(self.location)]} of at least 0" if (self._scale(table) < 0).any() else ""
        )

    def standardised(self, x: Tensor, table: Tensor) -> Tensor:
        """The weights as the codebook sees them, z; 0 where the scale is."""
        scale = self._scale(table)
        x = x - table[0, :, None] if self.location else x
        return x / torch.where(scale > 0, scale, 1.0)

    def standard_values(self, codes: Tensor, table: Tensor) -> Tensor:
        """The codebook's values of codes, q, before they are scaled and shifted."""
        values, _ = tables(self, table.dtype, codes.device)
        return values.index_select(0, codes.flatten().int()).view(codes.shape)

    def _scale(self, table: Tensor) -> Tensor:
        return table[int(self.location), :, None]


@dataclass(frozen=True, kw_only=True)
class Standardised(Affine):
    """Each group at mean 0 and standard deviation 1 (PAPER 1.2): with m the mean, s the unbiased deviation and
    eps = 1e-5, the code of w is the cell of (w - m) / (s + eps), and its value is q s + m.

    eps shrinks the standardised weights by s / (s + eps). The laws hold where that is little beside half a cell: for s
    above 1.3e-3 at 8 bits, and for smaller s at fewer.
    """

    location = True

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group."""
        return ("mean", "standard deviation")

    def measure(self, x: Tensor) -> Tensor:
        """Mean and deviation; Welford's update gives exactly (w, 0) where all entries are the same w."""
        if x.shape[1] == 1:
            return torch.stack([x[:, 0], torch.zeros_like(x[:, 0])])
        std, mean = torch.std_mean(x, dim=1)
        return torch.stack([mean, std])

    def standardised(self, x: Tensor, table: Tensor) -> Tensor:
        """The weights as the codebook sees them."""
        # (w - m) / (s + eps)
        return (x - table[0, :, None]) / (table[1, :, None] + EPS)

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of an unbiased standard deviation."""
        # ds/dw_j = (w_j - m) / ((n - 1) s)
        return (x - table[0, :, None]) / (max(x.shape[1] - 1, 1) * table[1, :, None])

    def backward(self, grad: Tensor, x: Tensor, codes: Tensor, table: Tensor) -> Tensor:
        """PAPER 1.3, where eps lets a little of the mean through."""
        s = table[1, :, None]
        z = self.standardised(x, table)
        # dL/dW_j = rho (g_j - gbar) + gbar + (W_j - m) / ((n-1) s) * sum_i g_i (q_i - rho w_i),   rho = s / (s + eps)
        rho, gbar = s / (s + EPS), grad.mean(dim=1, keepdim=True)
        total = (grad * (self.standard_values(codes, table) - rho * z)).sum(dim=1, keepdim=True)
        slope = total / (max(x.shape[1] - 1, 1) * s)
        slope = torch.where(s > 0, slope, 0.0)  # a constant group has no scale to train
        return rho * (grad - gbar) + gbar + z * (s + EPS) * slope


@lru_cache(maxsize=256)
def tables(quantizer: Affine, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values and boundaries on a device; kept, because training asks for them in every forward pass."""
    codebook = quantizer.codebook()
    values = torch.tensor(codebook.values, dtype=dtype, device=device)
    return values, torch.tensor(codebook.boundaries, dtype=dtype, device=device)
