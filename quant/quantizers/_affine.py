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
from quant.quantizers._cells import Cells
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
        return self.cells(self.standardised(x, table), table).to(torch.uint8)

    def decode(self, codes: Tensor, table: Tensor) -> Tensor:
        """The codebook's values, scaled and shifted."""
        return self._placed(self._standard_values(codes.int(), table), table)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same in one go; keeps the weights, z and q."""
        z = self.standardised(x, table)
        q = self._standard_values(self.cells(z, table), table)
        return self._placed(q, table), (x, z, q)

    def backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> Tensor:
        """See the module: the plain gradient and what goes through the scale."""
        x, z, q = saved
        # g_j + ds/dw_j * sum_i g_i (q_i - z_i)
        total = (grad * (q - z)).sum(dim=1, keepdim=True)
        total = torch.where(self._scale(table) > 0, total, 0.0)  # a group of one value has no scale to train
        return grad + total * self.scale_slope(x, q, table)

    def cells(self, z: Tensor, table: Tensor) -> Tensor:
        """Codes (int32) of standardised weights."""
        _, cells = tables(self, z.dtype, z.device)
        return cells(z)

    def refuse(self, table: Tensor) -> str:
        """A scale is at least 0."""
        return (
            f"with a {self.statistic_names[int(self.location)]} of at least 0" if (self._scale(table) < 0).any() else ""
        )

    def standardised(self, x: Tensor, table: Tensor) -> Tensor:
        """The weights as the codebook sees them, z; 0 where the scale is."""
        scale = self._scale(table)
        x = x - table[0] if self.location else x
        return x / torch.where(scale > 0, scale, 1.0)

    def _standard_values(self, codes: Tensor, table: Tensor) -> Tensor:
        values, _ = tables(self, table.dtype, codes.device)
        return values.index_select(0, codes.view(-1)).view_as(codes)

    def _placed(self, q: Tensor, table: Tensor) -> Tensor:
        # q s + m
        values = q * self._scale(table)
        return values.add_(table[0]) if self.location else values

    def _scale(self, table: Tensor) -> Tensor:
        return table[int(self.location)]


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
        return (x - table[0]).div_(table[1] + EPS)

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of an unbiased standard deviation."""
        return deviation_slope(x)

    def backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> Tensor:
        """PAPER 1.3, where eps lets a little of the mean through."""
        x, z, q = saved
        s = table[1]
        wide = s + EPS
        # dL/dW_j = rho (g_j - gbar) + gbar + (W_j - m) / ((n-1) s) * sum_i g_i (q_i - rho w_i),   rho = s / (s + eps)
        rho, gbar = s / wide, grad.mean(dim=1, keepdim=True)
        rest = rho * z
        total = torch.sub(q, rest, out=rest).mul_(grad).sum(dim=1, keepdim=True)
        slope = total.div_(max(x.shape[1] - 1, 1) * s)
        slope.masked_fill_(s == 0, 0.0)  # a constant group has no scale to train
        return (grad - gbar).mul_(rho).add_(gbar).add_((z * wide).mul_(slope))


def deviation_slope(x: Tensor) -> Tensor:
    """The slope of the unbiased standard deviation, (G, L); 0 in a group of one value."""
    if x.shape[1] == 1:
        return torch.zeros_like(x)
    std, mean = torch.std_mean(x, dim=1, keepdim=True)
    # (w_j - m) / ((n - 1) s)
    return (x - mean) / ((x.shape[1] - 1) * torch.where(std > 0, std, 1.0))


def mean_magnitude(x: Tensor) -> Tensor:
    """mean|w| of each group, (G,); exactly |w| where all are, as Welford's update has it."""
    return torch.std_mean(x.abs(), dim=1, correction=0)[1]


def largest(x: Tensor) -> Tensor:
    """max|w| of each group, (G,)."""
    return x.abs().amax(dim=1)


def largest_slope(x: Tensor) -> Tensor:
    """The slope of max|w|, (G, L): the sign at the largest weight, shared where several are as large."""
    at = x.abs() == largest(x)[:, None]
    return x.sign() * at / at.sum(dim=1, keepdim=True)


@lru_cache(maxsize=256)
def tables(quantizer: Affine, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Cells]:
    """Values and cells on a device; kept, because training asks for them in every forward pass."""
    codebook = quantizer.codebook()
    values = torch.tensor(codebook.values, dtype=dtype, device=device)
    return values, Cells(torch.tensor(codebook.boundaries, dtype=dtype, device=device))
