"""The trace of a curvature operator by XTrace: each probe sketches for the others and samples their rest.

P parameters, m probes w_i, the columns of W (P, m).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from landscape.curvature.basis import Basis, Floats, inner, memory_for, noise, norm, random_vector
from landscape.curvature.operator import Operator
from landscape.curvature.trace import LEAST, check, estimate, reached
from landscape.estimate import Estimate


def xtrace(
    operator: Operator,
    *,
    tolerance: float = 0.05,
    max_products: int = 200,
    seed: int = 0,
    memory_bytes: int | None = None,
) -> Estimate:
    """Each probe serves both as sketch for the others and as sample for their rest (Epperly, Tropp and Webber 2023).

    With Y = A W = Q R, leaving out probe i leaves Q_i = Q (I - s s'), s along R^-T e_i, and the estimate

        t_i = tr(Q_i' A Q_i) + (P - m + 1) u' A u / u' u,    u = (I - Q_i Q_i') w_i,

    whose mean over i is the value (sections 2.2 and 4.1 there, with the normalisation of rotation invariant probes).

    Departures: probes are added until the standard error is reached. That is the jackknife's over probes, which is no
    smaller than the true one on average (Efron and Stein 1981): 1.1 to 3.5 times it on explicit matrices, most where
    the spectrum decays fast. The scatter of the t_i, which are not independent, gives down to 0.7 of it. An operator
    whose rank is below the number of probes has its trace on Q, without error.

    Parameters
    ----------
    operator, tolerance, max_products, seed
        As for :func:`hutchinson`; a probe costs two products, the budget is at least 16.
    memory_bytes
        For Q, a vector a probe; the probes are no more than it allows. None as for :func:`.memory_for`.
    """
    check(tolerance, max_products, 2 * LEAST)
    before = dict(operator.cost)
    with operator, torch.no_grad():
        most = memory_for(operator, min(max_products // 2, operator.size), memory_bytes, least=LEAST)
        growing = _Leave(operator, seed, most)
        while True:
            wanted = min(max(LEAST, growing.probes + max(growing.probes // 2, 2)), most)
            samples, error = growing.to(wanted)
            if growing.exhausted or growing.probes == most or reached(samples, error, tolerance):
                break
    details = {"seed": seed, "rank_exhausted": growing.exhausted}
    return estimate(operator, "xtrace", samples, error, tolerance, before, details)


class _Leave:
    """The leave-one-out estimates of XTrace, from Q and small matrices; probes are drawn again when they are needed."""

    def __init__(self, operator: Operator, seed: int, most: int) -> None:
        self.operator, self.seed = operator, seed
        self.basis = Basis(operator, most)
        self.probes, self.exhausted = 0, False
        self._hidden = 0.0  # of the trace, by rounding, where the rank is exhausted
        self._r = np.zeros((0, 0))
        self._g = np.zeros((0, 0))
        self._own: list[float] = []

    def to(self, probes: int) -> tuple[list[float], float]:
        """The estimates with that many probes, and the standard error of their mean."""
        for index in range(self.probes, probes):
            w = random_vector(self.operator, self.seed, index)
            y = self.operator.product(w)
            if not bool(y.isfinite().all()):
                self.probes, self.exhausted = index + 1, True
                return [math.nan] * self.probes, math.nan
            self._own.append(float(inner(w[None], y[None])[0, 0]))  # w_i' A w_i
            length = norm(y)
            above, below = self.basis.append(y[None])
            self.exhausted = self.exhausted or below[0, 0] == 0
            if self.exhausted:
                # In every direction the rest may have what rounding hides of it in this one.
                self._hidden = noise(self.operator) * length * self.operator.size**0.5
                break
            self._r = np.block([[self._r, above], [np.zeros((1, index)), below]])
            inside = inner(self.basis.vectors, self.operator.product(self.basis.vectors[-1])[None])
            self._g = np.block([[self._g, inside[:-1]], [inside.T]])
        self.probes = probes
        if self.exhausted or self.basis.size == self.operator.size:
            self.exhausted = True
            return [float(np.trace(self._g))] * probes, self._hidden
        small = self._small()
        return _left_out(self.operator.size, *small).tolist(), _jackknife(self.operator.size, *small)

    def _small(self) -> tuple[Floats, ...]:
        """Q' A Q, R, Q' W, and of each probe w' A w and w' w: all that the estimates are made of."""
        drawn = (random_vector(self.operator, self.seed, index)[None] for index in range(self.probes))
        columns = [(inner(self.basis.vectors, w)[:, 0], inner(w, w)[0, 0]) for w in drawn]
        w = np.stack([column for column, _ in columns], axis=1)
        return self._g, self._r, w, np.array(self._own), np.array([length for _, length in columns])


def _left_out(size: int, g: Floats, r: Floats, w: Floats, own: Floats, lengths: Floats) -> Floats:
    """The estimates t_i (m,)."""
    s = np.linalg.inv(r).T
    s /= np.linalg.norm(s, axis=0)
    # Q_i' w_i in the coordinates of Q
    p = w - s * (s * w).sum(axis=0)
    # u' A u = w' A w - 2 p' Q' A w + p' Q' A Q p, with Q' A w_i the column r_i
    curvature = own - 2 * (p * r).sum(axis=0) + (p * (g @ p)).sum(axis=0)
    rest = (size - len(own) + 1) * curvature / (lengths - (p * p).sum(axis=0))
    # t_i = tr(Q' A Q) - s' Q' A Q s + (P - m + 1) u' A u / u' u
    return np.trace(g) - (s * (g @ s)).sum(axis=0) + rest


def _jackknife(size: int, g: Floats, r: Floats, w: Floats, own: Floats, lengths: Floats) -> float:
    """Standard error of the mean of the t_i from the whole method run again without each probe in turn."""
    m, values = len(own), []
    for i in range(m):
        others = np.delete(np.arange(m), i)
        q, small_r = np.linalg.qr(r[:, others])
        values.append(_left_out(size, q.T @ g @ q, small_r, (q.T @ w)[:, others], own[others], lengths[others]).mean())
    # se^2 = (m - 1) / m sum_i (mean without i - their mean)^2
    return math.sqrt((m - 1) * np.var(values))
