"""Noise radius: how much noise relative to the weights a model bears before it loses one point of accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from landscape.directions import draw
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.objective import Objective
from landscape.sharpness._crossing import Bracket, enclose
from landscape.sharpness._meter import Meter, mean_and_error, positive, whole
from landscape.space import Space

MEASURE, UNIT = "noise_radius", "alpha"
# All directions together that are kept between radii, in entries; more are drawn anew for each radius.
_KEPT = 2**28
# A drop of exactly the one asked for, as far as accuracies of float64 say.
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


def measure(
    objective: Objective,
    space: Space,
    *,
    drop: float = 0.01,
    directions: int = 8,
    start: float = 0.1,
    largest: float = 10.0,
    tolerance: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The least alpha with A(w) - E_d[A(w + alpha d)] >= drop, A being the accuracy and d filter-normalised noise.

    The radius is enclosed by doubling or halving from ``start``, then by bisection of its logarithm. Every accuracy is
    evaluated, none interpolated (NUMERICS 10). Where the mean accuracy is not monotone in alpha, what is found is a
    crossing between two neighbours of the radii evaluated, which need not be the first; ``monotone`` in the details
    says whether the means evaluated are.

    The interval is that of the radii at which a t-test over the directions does not tell the mean drop from ``drop``:
    its ends are where mean + t se and mean - t se cross it. Accuracy is that of these N samples.

    Parameters
    ----------
    objective, space
        Class scores and class indices are needed; what moves.
    drop
        In accuracy: 0.01 is one point.
    directions
        K directions, the same at all radii; their seeds are ``seed``, ..., ``seed + K - 1``.
    start, largest
        First radius tried, and the last.
    tolerance
        The bracket ends when its upper end is at most (1 + tolerance) times its lower.
    confidence
        Of the interval over directions.

    Returns
    -------
    Estimate
        The bracket's geometric middle, ``residual`` half its width; standard error over directions from the width of
        the interval, NaN where that has no upper end within ``largest``. ``failed``, with NaN, where the accuracy never
        drops so far: ``reason`` in the details. A sample whose logits are NaN is no hit.

    Raises
    ------
    LandscapeError
        For wrong settings, a loss without classes, or if nothing may move.
    """
    for name, value in {"drop": drop, "start": start, "largest": largest, "tolerance": tolerance}.items():
        positive(name, value)
    whole("directions", directions)
    if not 0 < confidence < 1:
        raise LandscapeError(f"expected a confidence between 0 and 1, found {confidence}")
    if not start <= largest:
        raise LandscapeError(f"expected start to be at most largest={largest}, found {start}")
    with Meter(objective, space) as meter:
        if meter.centre.hit is None:
            raise LandscapeError("expected class scores and class indices, which an accuracy needs; found neither")
        keep = directions if directions * space.k <= _KEPT else 1
        drawn = lru_cache(maxsize=keep)(lambda number: draw(space, number))
        evaluated: dict[float, Floats] = {}

        def drops(alpha: float) -> Floats:
            if alpha not in evaluated:
                found = [meter.at(drawn(seed + i), alpha).accuracy for i in range(directions)]
                evaluated[alpha] = meter.centre.accuracy - np.array(found)
            return evaluated[alpha]

        def crossing(errors: float) -> Bracket | None:
            return enclose(lambda a: _shifted(drops(a), errors) >= drop - _ROUNDING, start, largest, tolerance)

        bracket = None if meter.broken else crossing(0.0)
        value, interval, se = _middle(bracket), (math.nan, math.nan), math.nan
        if bracket is not None and directions > 1:
            t = float(stats.t.ppf((1 + confidence) / 2, directions - 1))
            upper = crossing(-t)
            interval = (_middle(crossing(t)), math.inf if upper is None else _middle(upper))
            # Half the interval is t standard errors.
            se = math.nan if upper is None else (interval[1] - interval[0]) / (2 * t)
        details = {
            "drop": drop,
            "directions": directions,
            "seed": seed,
            "bracket": bracket,
            "tolerance": tolerance,
            "interval": interval,
            "confidence": confidence,
            **_table(evaluated, meter.centre.accuracy),
        }
        if bracket is None and not meter.broken:
            details["reason"] = (
                f"the mean accuracy over directions does not drop by {drop:g} from {meter.centre.accuracy:.4g} "
                f"up to alpha {largest:g}"
            )
        return meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="directions",
            status="failed" if bracket is None else "converged" if bracket[0] > 0 else "budget",
            residual=math.nan if bracket is None else (bracket[1] - bracket[0]) / 2,
            details=details,
        )


def _shifted(drops: Floats, errors: float) -> float:
    """Mean plus so many of its standard errors."""
    mean, se = mean_and_error(drops)
    return mean + errors * se if errors else mean


def _middle(bracket: Bracket | None) -> float:
    return math.nan if bracket is None else math.sqrt(bracket[0] * bracket[1])


def _table(evaluated: Mapping[float, Floats], centre: float) -> dict[str, Any]:
    alphas = sorted(evaluated)
    means = [float(evaluated[alpha].mean()) for alpha in alphas]
    rows = [
        {"alpha": alpha, "accuracy": centre - mean, "drops": evaluated[alpha].tolist()}
        for alpha, mean in zip(alphas, means, strict=True)
    ]
    return {"monotone": bool(np.all(np.diff(means) >= 0)), "evaluated": rows}
