"""The scale of least squared error for given levels: exact, in one dimension.

With levels v (ascending) and scale s each weight takes the nearest of s v, so f(s) = sum_i min_v (w_i - s v)^2. While
no weight changes its level f is the parabola C - 2 s A + s^2 B, A = sum w_i v_i, B = sum v_i^2, and a weight changes
its level where w_i = s b with b a midpoint of two levels. Every assignment bounds the least error from above by
C - A^2 / B, and the best one attains it: walking over all the changes, in order, with running sums finds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.quantizers._affine import Affine

_EVENTS = 1 << 17  # changes of level of one group that are all walked; of more, those near the best of many scales
_COARSE = np.geomspace(1 / 2048, 4, 300)  # steps of 3 %


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Affine):
    """The scale of each group has the least squared error (see ``best_scale``), about its mean where there is one."""

    def measure(self, x: Tensor) -> Tensor:
        """The mean (where there is a location) and the best scale."""
        mean = torch.std_mean(x, dim=1, correction=0)[1]
        rest = x - mean[:, None] if self.location else x
        scale = best_scale(rest.cpu().double().numpy(), self.codebook().values)
        found = torch.from_numpy(scale).to(x)
        return torch.stack([mean, found]) if self.location else found[None]

    def scale_slope(self, x: Tensor, q: Tensor, table: Tensor) -> Tensor:
        """The slope of the best scale while no weight changes its level."""
        # s = sum w_i q_i / sum q_i^2, so ds/dw_j = q_j / sum q_i^2; about the mean (q_j - qbar) / sum q_i^2
        total = q.square().sum(dim=1, keepdim=True)
        moved = q - q.mean(dim=1, keepdim=True) if self.location else q
        return moved / torch.where(total > 0, total, 1.0)


def best_scale(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The scale (G,) of least squared error of each group; x: (G, L) float64, levels: ascending.

    Exact up to 2^17 changes of level in a group (weights times levels). Beyond, the changes are walked between those of
    300 scales whose error is within 1 % of the least: with so many weights it is smooth between them.
    """
    if not np.isfinite(x).all():
        return np.full(len(x), np.nan)
    alike = np.abs(x[:, 0])
    constant = (x == x[:, :1]).all(axis=1)  # level 1 or -1, which loses nothing to rounding
    return np.where(constant, alike, _best_of_several(x, levels))


def _best_of_several(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    if x.shape[1] * levels.size <= _EVENTS:
        rows = max(_EVENTS // (x.shape[1] * levels.size), 1)
        parts = [_walk(x[at : at + rows], levels) for at in range(0, len(x), rows)]
        return np.concatenate(parts)
    return np.array([_bracketed(row, levels) for row in x])


def _walk(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The exact scale of few weights in each of several groups."""
    bounds = (levels[:-1] + levels[1:]) / 2
    keep = bounds != 0  # nothing crosses 0
    bounds, low, high = bounds[keep], levels[:-1][keep], levels[1:][keep]
    # From s = 0, where each weight has the outermost level of its side, inwards.
    start = np.where(x > 0, levels[-1], np.where(x < 0, levels[0], _at_zero(levels)))
    a, b = (x * start).sum(axis=1), (start**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = x[:, :, None] / bounds  # the scale where the weight crosses the bound
    crosses = at > 0
    inwards = np.where(bounds > 0, -1.0, 1.0)
    da = np.where(crosses, x[:, :, None] * (inwards * (high - low)), 0.0).reshape(len(x), -1)
    db = np.where(crosses, inwards * (high**2 - low**2), 0.0).reshape(len(x), -1)
    order = np.argsort(np.where(crosses, at, np.inf).reshape(len(x), -1), axis=1)
    return _best(x, a, b, np.take_along_axis(da, order, 1), np.take_along_axis(db, order, 1), levels)


def _best(
    x: np.ndarray, a: np.ndarray, b: np.ndarray, da: np.ndarray, db: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """The scale of the largest A^2 / B along the walk from (a, b), refined on the levels that it gives."""
    sum_a = np.cumsum(np.concatenate([a[:, None], da], axis=1), axis=1)
    sum_b = np.cumsum(np.concatenate([b[:, None], db], axis=1), axis=1)
    least = np.min(levels[levels != 0] ** 2) / 2  # below it no weight has a level but 0
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where((sum_b > least) & (sum_a > 0), sum_a**2 / sum_b, 0.0)
        best = gain.argmax(axis=1)[:, None]
        scale = (np.take_along_axis(sum_a, best, 1) / np.take_along_axis(sum_b, best, 1))[:, 0]
        found = np.take_along_axis(gain, best, 1)[:, 0] > 0
        v = _nearest(x, np.where(found, scale, 0.0), levels)
        # A and B afresh, without what the running sums lost
        return np.where(found, (x * v).sum(axis=1) / (v**2).sum(axis=1), 0.0)


def _bracketed(x: np.ndarray, levels: np.ndarray) -> float:
    """The best scale of one large group: the walk between the best of many."""
    bounds = (levels[:-1] + levels[1:]) / 2
    x = np.sort(x)
    sums = np.concatenate([[0.0], np.cumsum(x)])
    top = max(abs(x[0]), abs(x[-1]))
    if top == 0:
        return 0.0
    scales = top / np.abs(levels).max() * _COARSE

    def state(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A and B at each scale (M,)."""
        cut = np.searchsorted(x, s[:, None] * bounds, side="right")
        ends = np.concatenate([np.zeros((len(s), 1), int), cut, np.full((len(s), 1), x.size)], axis=1)
        return np.diff(sums[ends], axis=1) @ levels, np.diff(ends, axis=1) @ levels**2

    a, b = state(scales)
    left = x @ x - np.where(b > 0, a**2 / np.maximum(b, 1e-300), 0.0)
    close = np.flatnonzero(left <= 1.01 * left.min())
    near = scales[max(close[0] - 1, 0)], scales[min(close[-1] + 1, len(scales) - 1)]
    (a,), (b,) = state(np.array([near[0]]))
    at, da, db = [], [], []
    for bound, low, high in zip(bounds, levels[:-1], levels[1:], strict=True):
        first, last = np.searchsorted(x, sorted((near[0] * bound, near[1] * bound)), side="right")
        crossing, inwards = x[first:last], -1.0 if bound > 0 else 1.0
        if bound != 0:
            at.append(crossing / bound)
            da.append(crossing * (inwards * (high - low)))
            db.append(np.full(crossing.size, inwards * (high**2 - low**2)))
    order = np.argsort(np.concatenate(at))
    step_a, step_b = (np.concatenate(d)[order][None] for d in (da, db))
    return float(_best(x[None], np.array([a]), np.array([b]), step_a, step_b, levels)[0])


def _nearest(x: np.ndarray, scale: np.ndarray, levels: np.ndarray) -> np.ndarray:
    z = x / np.where(scale > 0, scale, 1.0)[:, None]
    return levels[np.searchsorted((levels[:-1] + levels[1:]) / 2, z)]


def _at_zero(levels: np.ndarray) -> float:
    return float(levels[np.searchsorted((levels[:-1] + levels[1:]) / 2, 0.0)])
