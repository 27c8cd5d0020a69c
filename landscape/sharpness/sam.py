"""m-sharpness of Foret et al. 2021: the worst case of each group of m samples by itself, averaged."""

from __future__ import annotations

import math

import numpy as np
import torch

from landscape.estimate import Estimate, Status
from landscape.objective import Objective
from landscape.sharpness._ascent import ascend
from landscape.sharpness._balls import Ellipsoid
from landscape.sharpness._meter import Meter, mean_and_error, positive, reached, whole
from landscape.space import Space

MEASURE, UNIT = "m_sharpness", "nats"


def measure(
    objective: Objective,
    space: Space,
    *,
    rho: float = 0.05,
    m: int = 128,
    steps: int = 1,
    error: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """(1/N) sum over groups S of m samples of |S| max over ||e||_2 <= rho of (L_S(w + e) - L_S(w)).

    One step is SAM's own: e = rho g_S / ||g_S||_2, whatever the loss there; where the gradient is zero, e is. With more
    steps it is projected ascent from the centre, never below it. The ball is Euclidean and absolute over all that
    moves: models of other sizes or scales are not compared by it (NUMERICS 12).

    Source: Foret et al. 2021 (SAM, arXiv:2010.01412, equation 2 and section 4.1, m-sharpness). Departures: what the
    space's policy holds still does not move; groups are consecutive samples, so shuffle data that are sorted by class;
    the last group may be smaller, and counts by its samples.

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves.
    rho
        Radius in the units of the weights.
    m
        Samples in a group; N or more makes one group of all.
    steps
        1 for SAM's step, more for an ascent of so many.
    error
        With more steps: an ascent counts as converged when its loss rose by at most this share of its value in the last
        quarter of them; the value does when the weighted mean over groups has.
    seed
        Not used: nothing is random here.

    Returns
    -------
    Estimate
        In nats, standard error over groups, ``draws`` one value a group. Details: size and radius of each group.

    Wrong settings, and a space in which nothing may move, are a ``LandscapeError``.
    """
    positive("rho", rho)
    whole("m", m)
    whole("steps", steps)
    ball = Ellipsoid(space, rho, torch.ones_like, "l2")
    with Meter(objective, space) as meter:
        groups = [slice(i, min(i + m, objective.n)) for i in range(0, objective.n, m)]
        rises, residuals = [], []
        for rows in [] if meter.broken else groups:
            found = ascend(meter, ball, ball.zero(), "centre", steps, rows)
            centre, _ = mean_and_error(meter.centre.loss[rows])
            there = found.steps[-1]["loss_nats"] if steps == 1 else meter.loss(found.move, rows)
            if len(found.steps) == 1:
                there = math.nan  # no finite gradient, so no step
            elif steps > 1 and there < centre:
                there = centre  # which is in the ball; NaN stays
            rises.append(there - centre)
            residuals.append(found.residual)
        sizes = [rows.stop - rows.start for rows in groups]
        value, se = _weighted(rises, sizes)
        residual = _weighted(residuals, sizes)[0]
        status: Status = reached(value, 0.0 if steps == 1 else residual, error)
        norm = space.norm(frozenset(ball.names))
        return meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="groups",
            status="exact" if steps == 1 and status == "converged" else status,
            residual=math.nan if steps == 1 else residual,
            details={
                "rho": rho,
                "norm": ball.name,
                "m": m,
                "steps": steps,
                "method": "one step" if steps == 1 else "projected ascent",
                "group_sizes": sizes,
                "effective_radius": rho / norm if norm else math.inf,
            },
            draws=rises,
        )


def _weighted(values: list[float], sizes: list[int]) -> tuple[float, float]:
    """Mean over groups by their samples, and its standard error, that of the mean where sizes are equal."""
    if not values:
        return math.nan, math.nan
    numbers, weights = np.asarray(values), np.asarray(sizes) / sum(sizes)
    with np.errstate(invalid="ignore"):
        mean = float((weights * numbers).sum())
    count = len(numbers)
    if count < 2 or not np.isfinite(numbers).all():
        return mean, math.nan
    # sqrt(G / (G - 1) sum_g (n_g / N)^2 (r_g - mean)^2)
    return mean, float(np.sqrt(count / (count - 1) * (weights**2 * (numbers - mean) ** 2).sum()))
