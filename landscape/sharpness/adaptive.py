"""Adaptive sharpness of Kwon et al. 2021: the worst case in a ball whose axes are the sizes of the weights."""

from __future__ import annotations

import math

import torch

from landscape.estimate import Estimate
from landscape.objective import Objective
from landscape.sharpness._ascent import from_centre, judged, worst
from landscape.sharpness._balls import Box, Ellipsoid
from landscape.sharpness._meter import Meter, among, positive, whole
from landscape.space import Space

MEASURE, UNIT = "adaptive_sharpness", "nats"


def measure(
    objective: Objective,
    space: Space,
    *,
    rho: float = 0.5,
    norm: str = "l2",
    steps: int = 20,
    restarts: int = 3,
    error: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """The most of L(w + e) - L(w) over ||T_w^-1 e||_p <= rho, with T_w = diag(|w|), from below.

    Sought by projected ascent in the coordinates T_w^-1 e, from the centre (whose first step is ASAM's own, e = rho
    T_w^2 g / ||T_w g||) and from random draws. Rescaling single ReLU units, c for the unit's incoming weights and bias
    and 1/c for its outgoing weights, leaves it unchanged.

    Source: Kwon et al. 2021 (ASAM, arXiv:2102.11600, section 3). Departures: no 0.01 is added to |w|,
    so a weight of zero does not move; biases follow the space's policy, where ASAM scales none; the maximum is sought
    in several steps where ASAM takes one (``one_step_nats`` in the details).

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves.
    rho
        Radius; in norm ``l2`` over all entries at once.
    norm
        ``l2`` or ``linf``, which is the ball of the worst case's ``linf``.
    steps
        Of one ascent, a gradient each.
    restarts
        Ascents in all: the first from the centre.
    error
        The ascent counts as converged when its best loss rose by at most this share of the value in the last quarter
        of its steps (``residual``).

    Returns
    -------
    Estimate
        In nats, with the paired standard error over samples at the move found; ``draws`` are the rises of the ascents,
        the details hold every step of each.

    Wrong settings, and a space in which nothing may move, are a ``LandscapeError``.
    """
    positive("rho", rho)
    among("norm", norm, ("l2", "linf"))
    whole("steps", steps)
    whole("restarts", restarts)
    ball = Ellipsoid(space, rho, torch.abs, "elementwise-relative l2") if norm == "l2" else Box(space, rho)
    with Meter(objective, space) as meter:
        settings = {"rho": rho, "norm": ball.name, "restarts": restarts, "seed": seed}
        if meter.broken:
            return meter.estimate(MEASURE, UNIT, math.nan, details=settings)
        climbs = from_centre(meter, ball, steps, restarts, seed)
        best = worst(climbs)
        here = meter.at(best.move)
        rise, se = here.rise_over(meter.centre)
        value, status, reason = judged(best, rise, error)
        centre = meter.centre.mean_loss
        first = climbs[0].steps
        return meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="samples",
            status=status,
            residual=best.residual,
            details={
                **settings,
                **reason,
                "found_from": best.start,
                "one_step_nats": first[1]["loss_nats"] - centre if len(first) > 1 else math.nan,
                "effective_radius": meter.radius(best.move),
                "accuracy": here.accuracy,
                "ascents": [c.log() for c in climbs],
            },
            draws=[c.loss - centre for c in climbs],
        )
