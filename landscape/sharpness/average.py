"""Average sharpness: how much the loss rises, on average, under noise relative to the weights."""

from __future__ import annotations

import numpy as np

from landscape.directions import Direction
from landscape.estimate import Estimate
from landscape.evaluation import Evaluation
from landscape.objective import Objective
from landscape.sharpness._balls import Ball, relative_ball
from landscape.sharpness._meter import Meter, mean_and_error, positive, reached, whole
from landscape.space import Space

MEASURE, UNIT = "average_sharpness", "nats"


def measure(
    objective: Objective,
    space: Space,
    *,
    rho: float = 0.1,
    norm: str = "l2",
    directions: int = 8,
    error: float = 0.2,
    seed: int = 0,
) -> Estimate:
    """E_d [(L(w + rho d) + L(w - rho d)) / 2] - L(w).

    Both signs of a direction are evaluated: their mean has no first-order term, so its variance is that of the
    curvature. A direction counts once, as the mean of its two signs.

    Source: Andriushchenko et al. 2023 (arXiv:2302.07011, average-case adaptive sharpness). Departures: the noise is
    normalised filter by filter (Li et al. 2018) and the same for all samples, where they draw anew for each batch.

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves.
    rho
        Radius relative to the weights: the alpha of a filter-normalised line.
    norm
        ``l2``: Gaussian, with each filter's norm (:func:`landscape.directions.draw`); ``linf``: each entry uniform
        within plus or minus its weight.
    directions
        K directions; their seeds are ``seed``, ..., ``seed + K - 1``.
    error
        Standard error asked for, as a share of the value: says whether the status is ``converged`` or ``budget``.
        All directions are evaluated, so that models compared have the same.

    Returns
    -------
    Estimate
        In nats, standard error over directions, ``draws`` (K,). Details: the paired standard error over samples of the
        mean over directions (``se_over_samples_nats``), each rise at plus and minus rho, mean effective radius.

    Wrong settings, and a space in which nothing moves, are a ``LandscapeError``.
    """
    positive("rho", rho)
    whole("directions", directions)
    ball = relative_ball(space, norm, rho)
    with Meter(objective, space) as meter:
        rises, losses, radii = [], np.zeros(objective.n), []
        for i in range(0 if meter.broken else directions):
            direction = ball.draw(seed + i)
            plus, minus = both_signs(meter, direction, rho)
            rises.append((plus.rise_over(meter.centre)[0], minus.rise_over(meter.centre)[0]))
            losses += (plus.loss + minus.loss) / (2 * directions)
            radii.append(meter.radius(direction, rho))
        draws = [(plus + minus) / 2 for plus, minus in rises]
        value, se = mean_and_error(draws)
        _, over_samples = mean_and_error(losses - meter.centre.loss)
        return meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="directions",
            status=reached(value, se, error),
            details={
                "rho": rho,
                "norm": ball.name,
                "directions": directions,
                "seed": seed,
                "se_over_samples_nats": over_samples,
                "rises_nats": rises,
                "effective_radius": mean_and_error(radii)[0],
            },
            draws=draws,
        )


def both_signs(meter: Meter, direction: Direction, rho: float) -> tuple[Evaluation, Evaluation]:
    """The losses at plus and at minus rho times a direction."""
    return meter.at(direction, rho), meter.at(direction, -rho)


def worst_draw(meter: Meter, ball: Ball, directions: int, seed: int) -> tuple[Direction, float, Evaluation]:
    """The draw of the average case, and its sign times rho, where the loss is highest; inf and NaN before others."""
    best: tuple[Direction, float, Evaluation] | None = None
    for i in range(directions):
        direction = ball.draw(seed + i)
        for sign, here in zip((1, -1), both_signs(meter, direction, ball.rho), strict=True):
            if best is None or _worse(here, best[2]):
                best = (direction, sign * ball.rho, here)
    assert best is not None
    return best


def _worse(a: Evaluation, b: Evaluation) -> bool:
    if not np.isfinite(b.mean_loss):
        return False
    return not np.isfinite(a.mean_loss) or a.mean_loss > b.mean_loss
