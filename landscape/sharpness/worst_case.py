"""Worst-case sharpness: how high the loss can rise within a ball relative to the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.evaluation import Evaluation
from landscape.objective import Objective
from landscape.sharpness._ascent import Climb, Tensors, ascend, judged, worst
from landscape.sharpness._balls import Ball, relative_ball
from landscape.sharpness._meter import Meter, positive, whole
from landscape.sharpness.average import worst_draw
from landscape.space import Space

MEASURE, UNIT = "worst_case_sharpness", "nats"


def measure(
    objective: Objective,
    space: Space,
    *,
    rho: float = 0.01,
    norm: str = "l2",
    steps: int = 20,
    restarts: int = 3,
    directions: int = 8,
    error: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """The most of L(w + move) - L(w) over the moves of a ball, from below.

    The best of several projected ascents (:mod:`landscape.sharpness._ascent`): one from the average case's worst draw
    at this radius and seed, one from the centre, the others from random draws. It is never below the average case of
    the same ``rho``, ``norm``, ``directions`` and ``seed``, nor below 0. For several radii take :func:`ladder`.

    Source: Andriushchenko et al. 2023 (arXiv:2302.07011, worst-case adaptive sharpness). Departures: over all samples
    at once, not in batches; with norm ``l2`` every filter has its own radius, so that average-case noise lies in the
    ball.

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves; what the space's policy holds still does not, and a zero weight or filter
        cannot.
    rho
        Radius relative to the weights.
    norm
        ``l2``: ||move_i||_2 <= rho ||w_i||_2 for each filter i. ``linf``: |move_j| <= rho |w_j| for each entry j.
    steps
        Of one ascent, a gradient each.
    restarts
        Ascents in all, at least 2.
    directions
        Draws of the average case, both signs each, whose worst is a start.
    error
        The ascent counts as converged when its best loss rose by at most this share of the value in the last quarter
        of its steps (``residual``).

    Returns
    -------
    Estimate
        In nats, with the paired standard error over samples at the move found (the move was chosen on these samples);
        ``draws`` are the rises of the ascents. Details: every step of each, what the best began from, radii.

    Wrong settings, and a space in which nothing may move, are a ``LandscapeError``.
    """
    return ladder(
        objective,
        space,
        rhos=[rho],
        norm=norm,
        steps=steps,
        restarts=restarts,
        directions=directions,
        error=error,
        seed=seed,
    )[0]


def ladder(
    objective: Objective,
    space: Space,
    *,
    rhos: Sequence[float],
    norm: str = "l2",
    steps: int = 20,
    restarts: int = 3,
    directions: int = 8,
    error: float = 0.05,
    seed: int = 0,
) -> list[Estimate]:
    """Worst cases at growing radii; each radius also starts from the next smaller one's worst move: none is below it.

    Arguments and results are those of :func:`measure`.

    Raises
    ------
    LandscapeError
        For wrong settings, or if nothing may move.
    """
    for rho in rhos:
        positive("rho", rho)
    if not rhos or list(rhos) != sorted(set(rhos)):
        raise LandscapeError(f"expected growing radii, found {list(rhos)}")
    whole("steps", steps)
    whole("restarts", restarts, 2)
    whole("directions", directions)
    found: list[Estimate] = []
    smaller: _Worst | None = None
    for rho in rhos:
        ball = relative_ball(space, norm, rho)
        with Meter(objective, space) as meter:
            settings = {"rho": rho, "norm": ball.name, "restarts": restarts, "directions": directions, "seed": seed}
            if meter.broken:
                found.append(meter.estimate(MEASURE, UNIT, math.nan, details=settings))
                continue
            smaller, climbs = _search(meter, ball, smaller, steps, restarts, directions, seed)
            rise, se = smaller.here.rise_over(meter.centre)
            # Without an ascent a draw's loss was inf or NaN, and is the value.
            best = worst(climbs) if climbs else Climb("average case", smaller.move, rise)
            value, status, reason = judged(best, rise, error)
            found.append(
                meter.estimate(
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
                        "found_from": smaller.start,
                        "effective_radius": meter.radius(smaller.move),
                        "accuracy": smaller.here.accuracy,
                        "ascents": [c.log() for c in climbs],
                    },
                    draws=[c.loss - meter.centre.mean_loss for c in climbs],
                )
            )
    return found


@dataclass(frozen=True, kw_only=True)
class _Worst:
    """A move, its evaluation, and what the search had begun from."""

    start: str
    move: Tensors
    here: Evaluation


def _search(
    meter: Meter, ball: Ball, smaller: _Worst | None, steps: int, restarts: int, directions: int, seed: int
) -> tuple[_Worst, list[Climb]]:
    draw = _drawn(meter, ball, directions, seed)
    below = smaller or _Worst(start="centre", move=ball.zero(), here=meter.centre)
    known = [below, draw]
    climbs: list[Climb] = []
    if all(math.isfinite(k.here.mean_loss) for k in known):
        climbs.append(ascend(meter, ball, draw.move, "average case", steps))
        climbs.append(ascend(meter, ball, below.move, "next smaller radius" if smaller else "centre", steps))
        # Seeds behind those of the average case.
        for number in range(seed + directions, seed + directions + restarts - 2):
            start = ball.scaled(ball.draw(number), ball.rho)
            climbs.append(ascend(meter, ball, start, f"random draw, seed {number}", steps))
        best = worst(climbs)
        known.append(_Worst(start=best.start, move=best.move, here=meter.at(best.move)))
    broken = [k for k in known if not math.isfinite(k.here.mean_loss)]
    return (broken[0] if broken else max(known, key=lambda k: k.here.mean_loss)), climbs


def _drawn(meter: Meter, ball: Ball, directions: int, seed: int) -> _Worst:
    """The average case's worst draw; evaluated again only where the ball cuts it."""
    direction, coefficient, here = worst_draw(meter, ball, directions, seed)
    move = ball.scaled(direction, coefficient)
    whole_draw = all(torch.equal(x, coefficient * direction.tensors[name]) for name, x in move.items())
    return _Worst(start="average case", move=move, here=here if whole_draw else meter.at(move))
