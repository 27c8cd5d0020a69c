"""What a quantiser is: it fits a grid to a matrix, and the grid turns weights into codes and codes into values.

The quantisers here standardise a whole matrix and look it up in a codebook (PAPER 1.2): with m the mean, s the unbiased
standard deviation and eps = 1e-5, the code of W is the cell of (W - m) / (s + eps), and its value is v * s + m. Only m
and s are stored beside the codes.

eps shrinks the standardised weights by s / (s + eps). The laws below hold where that is little beside half a cell:
for s above 1.3e-3 at 8 bits, and for smaller s at fewer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from quant.codebooks import Codebook, check_bits
from quant.errors import QuantError

EPS = 1e-5

LAWS = {
    "monotone": "a larger weight has no lower code",
    "identity": "the values of codes have these codes again on the same grid",
    "nearest": "the value of a weight is the nearest value of the grid",
    "scale": "c > 0 times a matrix has the same codes and c times the values",
    "shift": "a matrix plus c has the same codes and the values plus c",
    "falls": "the error on normal weights is below that with a bit less",
}


@dataclass(frozen=True, kw_only=True)
class Quantizer(ABC):
    """A rule that turns any weight tensor into codes of ``bits`` bits, one grid for the whole tensor.

    A subclass gives ``name`` (its file's name), ``laws`` (those of :data:`LAWS` it obeys) and ``codebook``.
    """

    name: ClassVar[str]
    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    @abstractmethod
    def laws(self) -> frozenset[str]:
        """The laws, of :data:`LAWS`, that hold at these bits; the conformance tests test just these."""

    @abstractmethod
    def codebook(self) -> Codebook:
        """Values and boundaries for weights of mean 0 and standard deviation 1."""

    def fit(self, w: Tensor) -> Grid:
        """The grid of a tensor of any shape. A constant tensor, or one of a single entry, gets a grid of one value.

        Computed in float32, in float64 for a tensor of float64.

        Raises
        ------
        QuantError
            If the tensor is empty or not of floats, holds a NaN or an infinity, or has no finite variance.
        """
        if not w.is_floating_point() or w.numel() == 0:
            raise QuantError(f"expected a tensor of floats with entries, found {w.dtype} of shape {tuple(w.shape)}")
        w = w.detach()
        w = w if w.dtype == torch.float64 else w.float()
        if w.numel() == 1:
            mean, std = w.flatten()[0].clone(), w.new_zeros(())
        else:
            std, mean = torch.std_mean(w)  # Welford's update: exactly (0, w) where all entries are the same w
        if not torch.isfinite(mean + std):
            raise QuantError(
                f"expected finite weights, found values from {w.min().item():.4g} to {w.max().item():.4g}, "
                f"mean {mean.item():.4g}, standard deviation {std.item():.4g}"
            )
        return Grid(quantizer=self, mean=mean, std=std)

    def grid(self, statistics: Tensor) -> Grid:
        """The grid again, from what was stored of it.

        Raises
        ------
        QuantError
            If the statistics are not two finite float32 with a standard deviation of at least 0.
        """
        if statistics.dtype != torch.float32 or statistics.shape != (2,):
            found = f"{statistics.dtype} of shape {tuple(statistics.shape)}"
            raise QuantError(f"expected 2 float32 statistics (mean, standard deviation), found {found}")
        if not torch.isfinite(statistics).all() or statistics[1] < 0:
            raise QuantError(
                f"expected a finite mean and a standard deviation of at least 0, found {statistics.tolist()}"
            )
        mean, std = statistics.detach().clone().unbind()
        return Grid(quantizer=self, mean=mean, std=std)


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The values that one tensor may take.

    quantizer: what made it. mean, std: 0-d, in the dtype that all is computed in (float32, or float64).
    """

    quantizer: Quantizer
    mean: Tensor
    std: Tensor

    @property
    def statistics(self) -> Tensor:
        """What is stored: (mean, std), float32, shape (2,)."""
        return torch.stack([self.mean, self.std]).float()

    def codes(self, w: Tensor) -> Tensor:
        """Codes of weights, uint8, same shape; 0 is the lowest value, a tie goes to the lower code.

        Raises
        ------
        QuantError
            If a weight is NaN. An infinity gets the outermost code.
        """
        _, boundaries = _tables(self.quantizer, self.mean.dtype, self.mean.device)
        standard = self.standardised(w)
        if torch.isnan(standard).any():
            raise QuantError(f"expected finite weights, found {int(torch.isnan(standard).sum())} NaN of {w.numel()}")
        return torch.bucketize(standard.contiguous(), boundaries, out_int32=True).to(torch.uint8)

    def values(self, codes: Tensor) -> Tensor:
        """Values of codes (uint8), same shape, in the dtype of the grid."""
        return self.standard_values(codes) * self.std + self.mean

    def standardised(self, w: Tensor) -> Tensor:
        """The weights as the codebook sees them: (w - mean) / (std + eps)."""
        return (w.detach().to(self.mean.dtype) - self.mean) / (self.std + EPS)

    def standard_values(self, codes: Tensor) -> Tensor:
        """The codebook's values of codes, before they are scaled and shifted."""
        values, _ = _tables(self.quantizer, self.mean.dtype, self.mean.device)
        return values.index_select(0, codes.flatten().int()).view(codes.shape)


@lru_cache(maxsize=64)
def _tables(quantizer: Quantizer, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values and boundaries on a device; kept, because training asks for them in every forward pass."""
    codebook = quantizer.codebook()
    values = torch.tensor(codebook.values, dtype=dtype, device=device)
    return values, torch.tensor(codebook.boundaries, dtype=dtype, device=device)
