"""Learned step size: in training the step is a parameter with LSQ's own gradient, after training it is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.errors import QuantError
from quant.quantizers._affine import mean_magnitude
from quant.quantizers._scale import LeastSquares
from quant.quantizers.base import LAWS, Grid


@dataclass(frozen=True, kw_only=True)
class Lsq(LeastSquares):
    """s k with k from -2^(b-1) to 2^(b-1) - 1. ``fit`` takes the s of least squared error; a ``QuantLinear`` has s as a
    parameter, from 2 mean|w| / sqrt(Q) on, Q = 2^(b-1) - 1. At 1 bit only -s and 0 would be left: there is none.
    """

    kind = "lsq"
    widths = range(2, 9)
    learned = True
    source = "Esser et al. 2020"
    formula = "s round(clip(w / s, -2^(b-1), 2^(b-1) - 1)), s learned"

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group."""
        return ("step",)

    @property
    def laws(self) -> frozenset[str]:
        """Not shift: 0 stays a value."""
        return frozenset(LAWS) - {"shift"}

    def codebook(self) -> Codebook:
        """Whole steps."""
        return midpoints(np.arange(2**self.bits) - 2.0 ** (self.bits - 1))

    def first_step(self, w: Tensor) -> Tensor:
        """The steps (G,) that training begins with, in the dtype of the weights."""
        # s = 2 mean|w| / sqrt(Q)
        means = [mean_magnitude(x) for x in self.blocks(w.detach())]
        return 2 * torch.cat(means) / math.sqrt(2 ** (self.bits - 1) - 1)

    def grid_of_step(self, step: Tensor, w: Tensor) -> Grid:
        """The grid of learned steps (G,) for a tensor; of a step that training took below 0, its magnitude.

        Raises
        ------
        QuantError
            If a weight or a step is not finite.
        """
        table = step.detach().abs()[None]
        table = table.half() if self.stored == "float16" else table.float()
        if not (torch.isfinite(table).all() and torch.isfinite(w).all()):
            raise QuantError(f"expected finite weights and steps, found steps up to {step.abs().max().item():.4g}")
        dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
        return Grid(quantizer=self, shape=tuple(w.shape), table=table.to(dtype))

    def step_backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in the weights (G, L) and in the steps (G,) that are learned (equations 3 and 5)."""
        _, z, q = saved
        low, high = -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1
        inside = (z > low) & (z < high)
        # dL/dw = g inside, else 0.   dL/ds = 1 / sqrt(n Q) * sum g (q - z inside, q outside)
        step = (grad * torch.where(inside, q - z, q)).sum(dim=1) / math.sqrt(z.shape[1] * high)
        return torch.where(inside, grad, 0.0), step


QUANTIZER = Lsq
