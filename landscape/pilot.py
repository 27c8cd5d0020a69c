"""How many samples a comparison needs, from a few of them (NUMERICS 14).

The number is chosen once, at the centre and the corners, and is the same for every point and every model afterwards:
grown point by point it would bend the surface and its error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from landscape.batchnorm import follow
from landscape.directions import Direction
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.guard import eval_mode
from landscape.objective import Objective
from landscape.space import Space


def samples_for(
    objective: Objective, space: Space, directions: Sequence[Direction], *, extent: float, se: float
) -> Estimate:
    """Samples at which the paired standard error of the rise is at most ``se`` at each corner of a line or plane.

    n = max over corners of (s / se)^2, with s the standard deviation of loss(corner) - loss(centre) over the pilot's
    samples.

    Parameters
    ----------
    objective
        The pilot's samples, a few dozen or more, drawn like those that are to be measured.
    space, directions
        What moves, and where to.
    extent
        Corners lie at plus and minus this coordinate of each direction.
    se
        The standard error asked for, in the unit of the loss.

    Returns
    -------
    Estimate
        Samples; ``se`` is that of the number itself, from the relative error of a variance, sqrt(2 / (pilot - 1)).
        ``diverged`` where a loss at a corner is not finite: no number of samples is enough.

    Raises
    ------
    LandscapeError
        For an error that is not positive, fewer than 8 samples in the pilot, or a model that is random in eval mode.
    """
    if not se > 0:
        raise LandscapeError(f"expected a positive standard error, found {se}")
    if objective.n < 8:
        raise LandscapeError(f"expected at least 8 samples in a pilot, found {objective.n}")
    spreads = []
    with space, eval_mode(space.model):
        passes = follow(space.batch_norm, objective)
        centre = objective.evaluate() if objective.checked else objective.check_deterministic()
        for signs in itertools.product((-1.0, 1.0), repeat=len(directions)):
            space.move(directions, [sign * extent for sign in signs])
            passes += follow(space.batch_norm, objective)
            spreads.append(objective.evaluate().rise_over(centre)[1] * math.sqrt(objective.n))
    widest = math.nan if any(map(math.isnan, spreads)) else max(spreads)
    needed = (widest / se) ** 2
    return Estimate(
        measure="samples",
        value=needed if math.isnan(needed) else float(max(1, math.ceil(needed))),
        unit="samples",
        se=needed * math.sqrt(2 / (objective.n - 1)),
        error_over="samples",
        status="diverged" if math.isnan(needed) else "converged",
        cost={"forwards": 1 + len(spreads) + passes},
        details={"pilot": objective.n, "asked_se": se, "spreads": spreads, "extent": extent},
        draws=tuple(spreads),
    )
