"""Spectra of weight matrices: effective and stable rank, and what of a spectrum random entries would not give.

n by p matrices, m = min(n, p), M = max(n, p), y = m / M; s are singular values, largest first, in float64. Of a matrix
with i.i.d. entries of variance sigma^2 they lie, as it grows, between sigma sqrt(M) (1 - sqrt(y)) and
sigma sqrt(M) (1 + sqrt(y)) (Marchenko and Pastur 1967), whatever the law of the entries: codes of one bit too.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from quant.errors import QuantError


def singular_values(w: Tensor) -> Tensor:
    """Those of a matrix (n, p), or of a tensor (n, ...) with all further axes flattened; (m,), largest first.

    Raises
    ------
    QuantError
        If the tensor has fewer than two axes or values that are not finite.
    """
    if w.dim() < 2 or not bool(w.isfinite().all()):
        raise QuantError(f"expected a matrix of finite values, found shape {tuple(w.shape)}")
    return torch.linalg.svdvals(w.detach().cpu().double().flatten(1))


def product_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Those of ``up @ down``, (d_out, h) times (h, d_in), without forming it; the first min(h, d_in, d_out) of them.

    Raises
    ------
    QuantError
        If the two do not fit.
    """
    if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0]:
        raise QuantError(f"expected (d_out, h) and (h, d_in), found {tuple(up.shape)} and {tuple(down.shape)}")
    # up = Q_1 R_1, down' = Q_2 R_2: up down = Q_1 (R_1 R_2') Q_2'
    r_up = torch.linalg.qr(up.detach().cpu().double(), mode="r").R
    r_down = torch.linalg.qr(down.detach().cpu().double().T, mode="r").R
    return singular_values(r_up @ r_down.T)


def effective_rank(s: Tensor) -> float:
    """From 1 to the number of singular values; 0 for a matrix of zeros (Roy and Vetterli 2007, definition 1)."""
    total = float(s.sum())
    if total == 0:
        return 0.0
    p = s / total
    # exp(-sum p log p), p = s / sum s
    return math.exp(float(torch.special.entr(p).sum()))


def stable_rank(s: Tensor) -> float:
    """Sum of squares over the largest square; 0 for a matrix of zeros. At most the rank, and blind to small values."""
    largest = float(s.max())
    # ||W||_F^2 / ||W||_2^2
    return float((s / largest).square().sum()) if largest else 0.0


@dataclass(frozen=True, kw_only=True)
class MarchenkoPastur:
    """The singular values of an n by p matrix of i.i.d. entries with standard deviation ``sigma``."""

    rows: int
    columns: int
    sigma: float = 1.0

    @classmethod
    def of(cls, w: Tensor) -> MarchenkoPastur:
        """With shape and standard deviation of a matrix. What stands out of it is in the deviation: cautious."""
        flat = w.detach().cpu().double().flatten(1)
        return cls(rows=flat.shape[0], columns=flat.shape[1], sigma=float(flat.std(correction=0)))

    @property
    def unit(self) -> float:
        """Sigma sqrt(M): what singular values are divided by to lie from 1 - sqrt(y) to 1 + sqrt(y)."""
        return self.sigma * math.sqrt(max(self.rows, self.columns))

    @property
    def edges(self) -> tuple[float, float]:
        """Lower and upper end of the density."""
        root = math.sqrt(self._ratio)
        return self.unit * (1 - root), self.unit * (1 + root)

    def largest(self, confidence: float = 0.99) -> float:
        """What the largest singular value of such a matrix stays below with this probability, at its finite size.

        The eigenvalue's law is Tracy and Widom's for real matrices, with the centre and scale of Ma (2012), theorem 2,
        and the law's shifted-gamma form of Chiani (2014).
        """
        a, b = math.sqrt(max(self.rows - 0.5, 0.5)), math.sqrt(max(self.columns - 0.5, 0.5))
        # mu = (a + b)^2, s = (a + b) (1/a + 1/b)^(1/3)
        centre, scale = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
        return self.sigma * math.sqrt(centre + scale * tracy_widom(confidence))

    def density(self, s: np.ndarray) -> np.ndarray:
        """Of the singular values at ``s``; the square roots are the reason why it is none of eigenvalues."""
        low, high = (edge / self.unit for edge in self.edges)
        u = np.asarray(s, dtype=float) / self.unit
        inside = np.clip((u**2 - low**2) * (high**2 - u**2), 0, None)
        # g(u) = sqrt((u^2 - a^2)(b^2 - u^2)) / (pi y u)
        return np.sqrt(inside) / (math.pi * self._ratio * np.maximum(u, 1e-300)) / self.unit

    def quantiles(self) -> Tensor:
        """The singular values that such a matrix has on average, nearly: the m middle quantiles, largest first."""
        m = min(self.rows, self.columns)
        u, share = _distribution(self._ratio)
        return torch.from_numpy(self.unit * np.interp((np.arange(m, 0, -1) - 0.5) / m, share, u))

    def shares(self, edges: np.ndarray) -> np.ndarray:
        """Share of the singular values between each edge and the next."""
        u, share = _distribution(self._ratio)
        return np.diff(np.interp(np.asarray(edges, dtype=float) / self.unit, u, share, left=0.0, right=1.0))

    @property
    def _ratio(self) -> float:
        return min(self.rows, self.columns) / max(self.rows, self.columns)


def above_edge(s: Tensor, law: MarchenkoPastur, confidence: float = 0.99) -> tuple[int, float]:
    """How many singular values exceed :meth:`MarchenkoPastur.largest`, and their share of the sum of squares."""
    beyond = s[s > law.largest(confidence)]
    total = float(s.square().sum())
    return len(beyond), float(beyond.square().sum()) / total if total else 0.0


def random_product_rank(rows: int, dim: int, columns: int, *, seed: int, draws: int = 5) -> float:
    """Mean effective rank of the product of two Gaussian matrices, (rows, dim) times (dim, columns)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        up, down = (torch.randn(*shape, generator=generator) for shape in ((rows, dim), (dim, columns)))
        found.append(effective_rank(product_singular_values(up, down)))
    return sum(found) / draws


def tracy_widom(probability: float) -> float:
    """The quantile of the Tracy-Widom law for real matrices, to about .01 (Chiani 2014, table I)."""
    k, theta, alpha = 46.446, 0.186054, 9.84801
    # F_1(x) = P(k, (x + alpha) / theta), nearly
    return float(theta * gammaincinv(k, probability) - alpha)


@functools.lru_cache(maxsize=64)
def _distribution(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Places at sigma sqrt(M) = 1 and the share of the singular values below each, ascending.

    With u^2 = 1 + y - 2 sqrt(y) cos t the density has no edge left that a sum could miss.
    """
    t = (np.arange(20_000) + 0.5) * math.pi / 20_000
    u2 = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(t)
    # g(u) du = 2 sin(t)^2 / (pi u^2) dt
    mass = 2 * np.sin(t) ** 2 / (math.pi * u2)
    return np.sqrt(u2), np.cumsum(mass) / mass.sum()
