"""Block Lanczos with full re-orthogonalisation: the search that :mod:`landscape.curvature.eigen` runs.

Thick restarts (Wu and Simon 2000) when the memory for the basis is used up; random directions in place of those that
an invariant space lacks, so that multiple eigenvalues are found as often as they are there. P parameters, k wanted
pairs, m basis vectors, B vectors a block.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.basis import Basis, Floats, combined, inner, noise, norm, random_vector
from landscape.curvature.operator import Operator
from landscape.estimate import Status

End = Literal["largest", "smallest", "magnitude"]
# Most eigenvalues of a large network are near zero, so a random vector is nearly an eigenvector: where wanted values
# are below _NEAR of the scale, small residuals say nothing before the space is large enough to see what lies beyond by
# _SHARE of the range.
_NEAR, _SHARE = 0.1, 0.02


class Lanczos:
    """A V = V T + Q R: the basis V, the projected matrix T = V' A V, and by R how A V leaves the space.

    Parameters
    ----------
    operator
        Open.
    k, end
        How many pairs are wanted, and at which end.
    tolerance
        Of the residuals over ``scale``.
    seed, block
        Of the start block, and its size B.
    capacity
        How many vectors V and Q may have, at least 2 k + 2 B or P.

    Attributes
    ----------
    scale
        Largest magnitude of a Ritz value, an estimate of the operator's norm; NaN after a product that was not finite.
    iterations, products, restarts, breakdowns
        What was done so far.
    """

    def __init__(
        self, operator: Operator, k: int, end: End, tolerance: float, seed: int, block: int, capacity: int
    ) -> None:
        self.operator, self.k, self.end, self.tolerance = operator, k, end, tolerance
        self.seed, self.block = seed, block
        self.basis = Basis(operator, capacity)
        # What leaves the space by far less than the tolerance might as well not: it is then searched for more copies.
        self._negligible = max(noise(operator), tolerance / 100)
        self.t = np.zeros((0, 0))
        self.leaving = np.zeros((0, 0))  # R, (B, m): zero but for the last block, or after a restart
        # Of the vector of such an eigenvalue a random start has about 1 / sqrt(P); a step multiplies it by
        # exp(2 sqrt(_SHARE)) over those of an evenly spread rest.
        self.least = math.ceil(math.log(10 * operator.size**0.5) / (2 * _SHARE**0.5))
        self.scale = 0.0
        self.iterations = self.products = self.restarts = self.breakdowns = 0
        self._drawn = 0
        self._starts = [0]  # where in the basis the vectors of each random start begin
        self._refill()
        self.breakdowns, self._starts = 0, [0]

    @property
    def complete(self) -> bool:
        """Whether every direction there is has been multiplied."""
        return len(self.t) == self.operator.size

    @property
    def exhaustive(self) -> bool:
        """Whether the space became invariant, and other starts have looked for what it lacks.

        After a restart what came of the last start is no longer told from the rest.
        """
        return self.complete or (self.breakdowns > 0 and not self.restarts)

    def outermost(self) -> tuple[float, float]:
        """The :func:`key` of the outermost Ritz value so far, and the residual of its pair by the recurrence."""
        values, columns = ritz(self.t, self.end)
        return float(key(values, self.end)[0]), float(np.linalg.norm(self.leaving @ columns[:, 0]))

    def let_go(self) -> None:
        """Free the basis; the counts stay."""
        self.basis = Basis(self.operator, 0)

    def run(self, promise: float, budget: int) -> Status:
        """Go on until the wanted pairs promise residuals within ``promise * scale``, or the budget ends."""
        while not (self.complete or self._promised(promise * self.scale)):
            pending = self.basis.vectors[len(self.t) :]
            if self.products + len(pending) > budget:
                return "budget"
            images = self._multiplied(pending)
            self.iterations += 1
            if not bool(images.isfinite().all()):
                self.scale = math.nan
                return "diverged"
            self._extend(images)
        return "converged"

    def measure(self, budget: int) -> tuple[Floats, Tensor, Floats]:
        """Values, vectors and residuals of the wanted pairs; NaN where the search diverged.

        The recurrence knows the image A v = theta v + Q R s of a Ritz vector v = V s, hence its residual, as far as it
        holds. One product with the sum of k > 2 vectors with random signs says how far: the length of the difference,
        whose mean square is the sum of all vectors' own, is added to each residual. Where that leaves one beyond the
        tolerance, each is measured by a product of its own, if the budget has them.
        """
        if math.isnan(self.scale):
            nothing = torch.full((self.k, self.operator.size), math.nan)
            return np.full(self.k, math.nan), nothing.to(self.basis.vectors), np.full(self.k, math.nan)
        values, columns = ritz(self.t, self.end)
        values, columns = values[: self.k], columns[:, : self.k]
        vectors = combined(columns.T, self.basis.vectors[: len(self.t)])
        if self.k > 2:
            residuals = self._residuals(values, columns, vectors)
            if residuals.max() <= self.tolerance * self.scale or self.products + self.k > budget:
                return values, vectors, residuals
        self.products += self.k
        return best_within(self.operator, vectors, self.k, self.end)

    def _residuals(self, values: Floats, columns: Floats, vectors: Tensor) -> Floats:
        leaving = self.leaving[self.leaving.any(axis=1)] @ columns
        beyond = self.basis.vectors[len(self.t) : len(self.t) + len(leaving)]
        signs = np.random.default_rng(self.seed).choice([-1.0, 1.0], (1, self.k))
        expected = combined(signs * values, vectors) + combined(signs @ leaving.T, beyond)
        # ||A V s - theta V s|| = ||R s||, and what the product says that this lacks
        lacking = norm((self._multiplied(combined(signs, vectors)) - expected)[0])
        return np.linalg.norm(leaving, axis=0) + lacking

    def _multiplied(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        return self.operator.products(vectors)

    def _extend(self, images: Tensor) -> None:
        """Take the images of the pending vectors into T and their new directions into the basis."""
        done, size = len(self.t), self.basis.size
        inside, leaving = self.basis.append(images, self._negligible * self.scale)
        self.leaving = np.zeros((len(leaving), size))
        self.leaving[:, done:] = leaving
        t = np.zeros((size, size))
        t[:done, :done] = self.t
        t[:, done:], t[done:, :] = inside, inside.T
        # Rounding and the products' own errors make the corner not quite symmetric.
        t[done:, done:] = (inside[done:] + inside[done:].T) / 2
        self.t = t
        self.scale = float(np.abs(np.linalg.eigvalsh(t)).max())
        if size + 2 * self.block > self.basis.capacity < self.operator.size:
            self._restart()
        if self.basis.size - len(self.t) < self.block:
            self._refill()

    def _refill(self) -> None:
        """Random directions in place of those that an invariant space does not have."""
        most = min(len(self.t) + self.block, self.operator.size)
        if self.basis.size < most:
            self._starts.append(self.basis.size)
            self.breakdowns += 1
        while self.basis.size < most:
            self.basis.append(random_vector(self.operator, self.seed, self._drawn)[None])
            self._drawn += 1

    def _restart(self) -> None:
        """Keep the best Ritz vectors and the pending directions (thick restart)."""
        done, pending = len(self.t), self.basis.size - len(self.t)
        keep = min(max(2 * self.k, done // 2), self.basis.capacity - 2 * self.block)
        values, columns = ritz(self.t, self.end)
        turn = np.zeros((self.basis.size, keep + pending))
        turn[:done, :keep] = columns[:, :keep]
        turn[done:, keep:] = np.eye(pending)
        self.basis.rotate(turn)
        self.t = np.diag(values[:keep])
        self.leaving = self.leaving @ columns[:, :keep]
        self.restarts += 1
        self._starts = [min(start, keep) for start in self._starts]

    def _promised(self, within: float) -> bool:
        """Whether the wanted pairs are expected to have residuals within a bound, and none better is left unseen."""
        if len(self.t) < self.k:
            return False
        values, columns = ritz(self.t, self.end)
        if abs(values[self.k - 1]) < _NEAR * self.scale and self.products < self.least:
            return False
        # ||A V s - theta V s|| = ||R s||
        if (np.linalg.norm(self.leaving @ columns[:, : self.k], axis=0) > within).any():
            return False
        if not self.breakdowns:
            return True
        # A Krylov space has one vector of each eigenvalue. Each random start after a breakdown finds what is left, its
        # own outermost first: there is no better one left when that is none of the wanted, or equals the last of them.
        start = max(start for start in self._starts if start < len(self.t))
        own, own_columns = ritz(self.t[start:, start:], self.end)
        resolved = np.linalg.norm(self.leaving[:, start:] @ own_columns[:, 0]) <= within
        return bool(resolved and key(own, self.end)[0] <= key(values, self.end)[self.k - 1] + within)


def best_within(operator: Operator, vectors: Tensor, k: int, end: End) -> tuple[Floats, Tensor, Floats]:
    """Rayleigh and Ritz within orthonormal vectors (m, P), by their true images: the k best pairs and residuals."""
    images = operator.products(vectors)
    projected = inner(vectors, images)
    values, turned = ritz((projected + projected.T) / 2, end)
    vectors, images = combined(turned[:, :k].T, vectors), combined(turned[:, :k].T, images)
    residuals = [norm(a - value * v) for a, v, value in zip(images, vectors, values[:k].tolist(), strict=True)]
    return values[:k], vectors, np.array(residuals)


def ritz(t: Floats, end: End) -> tuple[Floats, Floats]:
    """Eigenvalues and vectors of a projected matrix, the wanted end first."""
    values, columns = np.linalg.eigh(t)
    order = np.argsort(-key(values, end), kind="stable")
    return values[order], columns[:, order]


def key(values: Floats, end: End) -> Floats:
    """What is largest at the wanted end."""
    return {"largest": values, "smallest": -values, "magnitude": np.abs(values)}[end]
