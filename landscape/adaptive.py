"""A curve or surface to a requested error from few evaluated points; the loss between them is interpolated.

The loss is modelled by a Gaussian process (Rasmussen and Williams 2006, chapters 2 and 5): constant mean, a Matern
kernel with a length for each axis and a nugget, fitted by maximum likelihood, which also says how smooth the kernel is.
Points are added where its error is expected to be largest, in rounds, until the error of the whole is as asked for. It
is estimated, not known: the spread of the process over the cells, scaled by what leaving out each evaluated point in
turn showed it to be worth. Only the loss is interpolated, never accuracy; evaluated cells keep their values
(NUMERICS 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import brentq, minimize
from scipy.spatial.distance import cdist
from scipy.stats import chi2, norm

from landscape.errors import LandscapeError
from landscape.probe import Point, Probe, Row

Floats = NDArray[np.float64]
Measure = Callable[..., dict[Point, list[Row]]]

START = 5
"""Points along an axis in the first round, denser towards its ends, where a process knows least."""
SCOUTS = {1: 6, 2: 40}
"""Further points of the first round by dimension, all over and in no rows: what lies between the first few and is none
of their smooth continuation, such as a ridge or a second basin, would else stay unseen. What is smaller than the space
between them still may."""
GROWTH = 0.2
"""Share by which a round adds to the points, at most; fewer where the last rounds say that fewer are enough."""
QUANTILE = 0.99
SAFETY, FEW = 1.5, 22
"""Factor SAFETY (1 + FEW / points) on the estimated error: what makes it no lower than the true one on 95 % of surfaces
(the tests count). Few points say little of how smooth a surface is, an uncertainty that the process leaves out."""
KERNELS: dict[float, tuple[float, ...]] = {
    2.5: (1, 1, 1 / 3),
    3.5: (1, 1, 2 / 5, 1 / 15),
    4.5: (1, 1, 3 / 7, 2 / 21, 1 / 105),
}
"""Matern kernels by smoothness nu: k(r) = sum_i c_i s^i exp(-s) with s = sqrt(2 nu) r (eq. 4.16)."""
MOST = 600
"""Points at which a surface is found to be too rough for few of them: all of it is evaluated."""
REACH = 0.25
"""Distance, in half-widths of the plane, over which errors at evaluated points tell where the surface bends."""


def adaptive(
    probe: Probe, points: Sequence[Point], measure: Measure, error: float, on_point: Callable[[int, int], None] | None
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of all points, those that were not evaluated with an interpolated loss, and what is known of its error.

    Parameters
    ----------
    probe, measure
        What measures points.
    points
        All points of the grid, in the order of the rows.
    error
        99th percentile over all points of the error, as a share of the range of the loss over them.
    on_point
        Called after each point with (points done, points of the grid), of which few may be needed.

    Raises
    ------
    LandscapeError
        For an error that is no share, or weights that are quantised again at every point, whose loss is a staircase.
    """
    if not 0 < error < 1:
        raise LandscapeError(f"expected an error between 0 and 1, a share of the range of the loss, found {error}")
    if probe.space.weights == "requantised":
        raise LandscapeError("expected weights='values': the staircase of requantised weights is never interpolated")
    cells = _scaled(np.array(points))
    chosen = _first(cells)
    found: dict[Point, list[Row]] = {}
    fits: dict[str, Process] = {}
    reached: dict[str, float] = {}
    history: list[tuple[int, float]] = []

    def tell(done: int, of: int) -> None:
        if on_point is not None:
            on_point(len(found) + done, len(points))

    while True:
        found |= measure([points[i] for i in chosen if points[i] not in found], on_point=tell)
        losses = {split: [found[points[i]][s]["loss_nats"] for i in chosen] for s, split in enumerate(probe.objectives)}
        rough = len(chosen) > min(MOST, len(points) // 2) or not np.isfinite(list(losses.values())).all()
        if rough:
            found |= measure([point for point in points if point not in found], on_point=tell)
            break
        fits = {split: Process(cells[chosen], np.array(z), fits.get(split)) for split, z in losses.items()}
        reached = {split: fit.error(cells) for split, fit in fits.items()}
        if max(reached.values()) <= error:
            break
        worst = fits[max(reached, key=lambda split: reached[split])]
        history.append((len(chosen), max(reached.values())))
        chosen = chosen + worst.next_points(cells, _more(history, error))
    means = {split: fit.mean(cells) for split, fit in fits.items()} if not rough else {}
    rows = [
        row
        for i, point in enumerate(points)
        for row in (found[point] if point in found else _interpolated(probe, found, point, means, i))
    ]
    facts = {
        "asked_error": error,
        "estimated_error": dict.fromkeys(probe.objectives, 0.0) if rough else reached,
        "quantile": QUANTILE,
        "evaluated": len(found),
        "points": len(points),
        "all_evaluated_because": ("the loss is too rough, or not finite somewhere, for few points" if rough else None),
    }
    return rows, {"interpolation": facts}


class Process:
    """A Gaussian process through evaluated points.

    Parameters
    ----------
    x
        (E, D) coordinates in [-1, 1].
    z
        (E,) finite values.
    before
        An earlier fit, to start from its lengths.
    """

    def __init__(self, x: Floats, z: Floats, before: Process | None = None) -> None:
        self.x, self.centre, self.unit = x, z.mean(), z.std() or 1.0
        self.z = (z - self.centre) / self.unit
        # By smoothness: logs of the lengths and the nugget, where the next fit starts from.
        self.fitted: dict[float, Floats] = {}
        likelihoods: dict[float, float] = {}
        for self.smoothness in KERNELS:
            start = np.r_[np.zeros(x.shape[1]), -14.0] if before is None else before.fitted[self.smoothness]
            options = {"maxiter": 120, "xatol": 0.05, "fatol": 0.05}
            found = minimize(self._likelihood, start, method="Nelder-Mead", options=options)
            self.fitted[self.smoothness], likelihoods[self.smoothness] = found.x, found.fun
        self.smoothness = min(likelihoods, key=lambda nu: likelihoods[nu])
        self._solve(self.fitted[self.smoothness])

    def mean(self, cells: Floats) -> Floats:
        """(N,) interpolated values."""
        return self.centre + self.unit * (self.beta + self._kernel(cells, self.x) @ self.weights)

    def spread(self, cells: Floats) -> Floats:
        """(N,) standard deviation of the process, as its likelihood has it, without the nugget."""
        half = solve_triangular(self.factor, self._kernel(self.x, cells), lower=True)
        return self.unit * np.sqrt(self.variance * np.maximum(1.0 - np.sum(half**2, axis=0), 0.0))

    def left_out(self) -> tuple[Floats, Floats]:
        """(E,) error at each evaluated point had it been left out, and the standard deviation there (eq. 5.12)."""
        inverse = cho_solve((self.factor, True), np.eye(len(self.z)))
        diagonal = np.diag(inverse)
        return self.unit * self.weights / diagonal, self.unit * np.sqrt(self.variance / diagonal)

    def error(self, cells: Floats) -> float:
        """The 99th percentile over the cells of the error, as a share of the range of the values."""
        missed, expected = self.left_out()
        # How much larger the errors are than the process thinks: the 95 % limit from so few, never below 1.
        scale = max(1.0, float(np.sqrt(np.sum((missed / expected) ** 2) / chi2.ppf(0.05, len(missed)))))
        away = SAFETY * (1 + FEW / len(missed)) * scale * self.spread(cells)
        mean = self.mean(cells)
        drawn = float(max(mean.max(), (self.z * self.unit + self.centre).max()) - mean.min())
        if not away.any() or drawn == 0.0:
            return 0.0
        safe = np.maximum(away, 1e-300)

        def beyond(q: float) -> float:
            return float(np.mean(2 * norm.sf(q / safe))) - (1 - QUANTILE)

        return float(brentq(beyond, 0.0, 10 * away.max())) / drawn if beyond(0.0) > 0 else 0.0

    def next_points(self, cells: Floats, count: int) -> list[int]:
        """Cells to evaluate next: the largest variance given all before, weighted by the errors found nearby."""
        missed, _ = self.left_out()
        near = np.exp(-0.5 * _squared(cells / REACH, self.x / REACH))
        bends = np.sqrt(near @ missed**2 / near.sum(axis=1))
        half = solve_triangular(self.factor, self._kernel(self.x, cells), lower=True)
        variance = np.maximum(1.0 - np.sum(half**2, axis=0), 0.0)
        taken = set(map(tuple, self.x.tolist()))
        variance[[tuple(cell) in taken for cell in cells.tolist()]] = 0.0
        chosen: list[int] = []
        for _ in range(min(count, int(np.count_nonzero(variance)))):
            i = int(np.argmax(variance * bends))
            chosen.append(i)
            row = self._kernel(cells[i : i + 1], cells)[0] - half[:, i] @ half
            step = row / np.sqrt(max(variance[i], 1e-12))
            half = np.vstack([half, step])
            variance = np.maximum(variance - step**2, 0.0)
            variance[i] = 0.0
        return chosen

    def _kernel(self, a: Floats, b: Floats) -> Floats:
        s = np.sqrt(2 * self.smoothness * _squared(a / self.lengths, b / self.lengths))
        value = np.zeros_like(s)
        for c in reversed(KERNELS[self.smoothness]):
            value = value * s + c
        return value * np.exp(-s)

    def _solve(self, logs: Floats) -> None:
        self.lengths = np.exp(logs[:-1])
        covariance = self._kernel(self.x, self.x)
        covariance[np.diag_indices_from(covariance)] += np.exp(logs[-1])
        self.factor = cholesky(covariance, lower=True)
        ones, z = cho_solve((self.factor, True), np.stack([np.ones_like(self.z), self.z], axis=1)).T
        self.beta = z.sum() / ones.sum()
        self.weights = z - self.beta * ones
        self.variance = max(float((self.z - self.beta) @ self.weights) / len(self.z), 1e-300)

    def _likelihood(self, logs: Floats) -> float:
        # Minus the log likelihood with mean and variance at their best (eq. 5.8, up to a constant).
        if np.any(np.abs(logs[:-1]) > 3) or not -24 < logs[-1] < -4:
            return np.inf
        try:
            self._solve(logs)
        except np.linalg.LinAlgError:
            return np.inf
        return 0.5 * len(self.z) * float(np.log(self.variance)) + float(np.log(np.diag(self.factor)).sum())


def _more(history: Sequence[tuple[int, float]], error: float) -> int:
    """Points of the next round, from the points and errors of the rounds so far.

    The error falls as a power of the points: so many as it takes by the power of the last rounds, within bounds.
    """
    points, now = history[-1]
    most, least = max(4, round(GROWTH * points)), max(4, round(0.2 * GROWTH * points))
    earlier = [(n, e) for n, e in history[-4:-1] if e > now]
    if not earlier or not now < math.inf:
        return most
    n, e = earlier[0]
    power = max(math.log(e / now) / math.log(points / n), 0.1)  # one that hardly falls asks for the most, not for inf
    return min(most, max(least, math.ceil(points * ((now / error) ** (1 / power) - 1))))


def _scaled(points: Floats) -> Floats:
    # (N, D) in [-1, 1] on each axis.
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / np.where(high > low, (high - low) / 2, 1.0)


def _first(cells: Floats) -> list[int]:
    # The cells next to a grid of Chebyshev points, START along each axis, the corners and the middle among them; and
    # to a sequence of low discrepancy, by the powers of the root of x^(D+1) = x + 1, of at most an eighth of the cells.
    dimensions = cells.shape[1]
    nodes = -np.cos(np.pi * np.arange(START) / (START - 1))
    grid = np.stack(np.meshgrid(*[nodes] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)
    root = brentq(lambda x: x ** (dimensions + 1) - x - 1, 1, 2)
    steps = np.arange(1, min(SCOUTS[dimensions], len(cells) // 8) + 1)[:, None]
    scouts = 2 * ((0.5 + steps * root ** -np.arange(1.0, dimensions + 1)) % 1) - 1
    return sorted({int(i) for i in np.argmin(_squared(np.vstack([grid, scouts]), cells), axis=1)})


def _squared(a: Floats, b: Floats) -> Floats:
    return cdist(a, b, "sqeuclidean")


def _interpolated(
    probe: Probe, found: dict[Point, list[Row]], point: Point, means: dict[str, Floats], i: int
) -> list[Row]:
    # What is known without a pass over the data; the rest is NaN.
    rows = []
    for split, row in zip(probe.objectives, next(iter(found.values())), strict=True):
        empty = {name: float("nan") if isinstance(value, float) else value for name, value in row.items()}
        loss = float(means[split][i])
        known = {
            **probe.at(point),
            "split": split,
            "loss_nats": loss,
            "rise_nats": loss - probe.centre[split].mean_loss,
            "nonfinite": 0,
            "evaluated": False,
        }
        rows.append({**empty, **known})
    return rows
