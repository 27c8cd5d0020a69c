"""Entropy-constrained uniform: steps and thresholds for codes that an entropy coder will pack.

Values are s k + m, k whole. A larger step and a wider zero cost error and save bits; (s, t) minimises D + lambda H,
with D the mean squared error and H the entropy of the codes in bits. lambda is the slope at which an ideal uniform
quantiser of normal weights spends b - 1 bits: 2^b - 1 codes suffice for that, with next to nothing clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.codebooks import Codebook, midpoints
from quant.quantizers._affine import Affine, deviation_slope
from quant.quantizers.base import LAWS

_STEPS = 2 ** np.linspace(-0.75, 0.5, 16)  # of the step of normal weights
_THRESHOLDS = 0.5 + np.array(
    [0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25]
)  # a threshold lies this far from the value nearer to 0


@dataclass(frozen=True, kw_only=True)
class Ecu(Affine):
    """m + s k; the code of z = (w - m) / s is the largest |k| with |z| > |k| - 1 + t, t at least 1/2."""

    kind = "ecu"
    widths = range(2, 9)
    location = True
    source = "Sullivan 1996 (uniform reconstruction with a dead zone)"
    formula = "m + s k, |k| = ceil(|w - m| / s - t), s and t of least D + lambda H"

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The threshold is stored too, so that a grid read back gives the codes that it gave."""
        return ("mean", "step", "threshold")

    @property
    def laws(self) -> frozenset[str]:
        """Not nearest: a code that saves bits is taken from a little further off."""
        return frozenset(LAWS) - {"nearest"}

    def codebook(self) -> Codebook:
        """Whole steps, as many above 0 as below; the boundaries are the group's own."""
        return midpoints(np.arange(2**self.bits - 1) - (2.0 ** (self.bits - 1) - 1))

    def measure(self, x: Tensor) -> Tensor:
        """Mean, step and threshold."""
        std, mean = torch.std_mean(x, dim=1, correction=0)
        found = [self._search(row) for row in (x - mean[:, None]).cpu().double().numpy()]
        step, threshold = torch.tensor(found, dtype=torch.float64).to(x).T
        return torch.stack([mean, torch.where(std > 0, step, 0.0), threshold])

    def cells(self, z: Tensor, table: Tensor) -> Tensor:
        """Counted from the middle; a weight on a threshold belongs to the lower code."""
        t, most = table[2], 2 ** (self.bits - 1) - 1
        # k is the number of thresholds k - 1 + t below z > 0, or of thresholds -(k - 1 + t) from z on
        k = torch.where(z > 0, torch.ceil(z - t), -torch.floor(-z - t) - 1)
        inner = (z <= t) & (z > -t)
        return (torch.where(inner, 0.0, k).clamp(-most, most) + most).int()

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The step is a multiple of the deviation, picked from a list: it moves with the deviation."""
        # s = c std w, so ds/dw = s / std w * d std w / dw
        std = x.std(dim=1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(x)
        return self._scale(table) / torch.where(std > 0, std, 1.0) * deviation_slope(x)

    def _search(self, x: np.ndarray) -> tuple[float, float]:
        """Step and threshold of least D + lambda H, of 128."""
        sigma = math.sqrt(float(np.mean(x * x)))
        if not sigma > 0 or not math.isfinite(sigma):
            return sigma, 0.5
        x = np.sort(x) / sigma
        sums, squares = (np.concatenate([[0.0], np.cumsum(y)]) for y in (x, x * x))
        # uniform at high rate: D = s^2 / 12, H = log2 (sqrt(2 pi e) / s), and lambda = -dD/dH = s^2 ln 2 / 6
        normal = math.sqrt(2 * math.pi * math.e) * 2.0 ** (1 - self.bits)
        weight = normal**2 * math.log(2) / 6
        most = 2 ** (self.bits - 1) - 1
        step, threshold = (a.ravel() for a in np.meshgrid(normal * _STEPS, _THRESHOLDS, indexing="ij"))
        above = np.arange(most) + threshold[:, None]
        bounds = np.concatenate([-above[:, ::-1], above], axis=1) * step[:, None]
        cut = np.searchsorted(x, bounds, side="right")
        edge = np.zeros((len(step), 1), dtype=np.int64)
        ends = np.concatenate([edge, cut, edge + x.size], axis=1)
        count, total = np.diff(ends, axis=1), np.diff(sums[ends], axis=1)
        values = np.arange(-most, most + 1) * step[:, None]
        # D = mean (w - v)^2 = mean w^2 - 2 mean w v + mean v^2
        error = (squares[-1] - 2 * (total * values).sum(axis=1) + (count * values**2).sum(axis=1)) / x.size
        p = count / x.size
        entropy = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=1)
        best = int(np.argmin(error + weight * entropy))
        return float(step[best]) * sigma, float(threshold[best])


QUANTIZER = Ecu
