"""The card of a model: every sharpness there is, measured one after the other at the same place on the same data."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.objective import Objective
from landscape.sharpness import get, names
from landscape.space import Space


def measure_all(
    objective: Objective,
    space: Space,
    chosen: Sequence[str] | None = None,
    *,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    on_measure: Callable[[Estimate], None] | None = None,
) -> list[Estimate]:
    """Measure several sharpnesses; one that cannot be measured here does not keep the others from it.

    Parameters
    ----------
    objective, space
        Whose sharpness, and what moves.
    chosen
        Names of measures, as in :func:`landscape.sharpness.names`; None for all.
    seed
        Of every measure.
    options
        Name of a measure -> its settings, where they are not the defaults.
    on_measure
        Called with each estimate as it is made.

    Returns
    -------
    list of Estimate
        One a measure, in the order of ``chosen``. A measure that raised a ``LandscapeError`` has the status ``failed``
        and the error's text as ``reason`` in its details.

    Raises
    ------
    LandscapeError
        For the name of a measure that there is not.
    """
    settings = dict(options or {})
    wanted = names() if chosen is None else list(chosen)
    measures = {name: get(name) for name in [*wanted, *settings]}
    idle = sorted(set(settings) - set(wanted))
    if idle:
        raise LandscapeError(f"expected options of measures that are measured, found some of {', '.join(idle)}")
    found = []
    for name in wanted:
        try:
            estimate = measures[name](objective, space, seed=seed, **settings.get(name, {}))
        except LandscapeError as error:
            module = sys.modules[measures[name].__module__]
            estimate = Estimate(
                measure=module.MEASURE,
                value=math.nan,
                unit=module.UNIT,
                status="failed",
                details={"reason": str(error), "seed": seed},
            )
        found.append(estimate)
        if on_measure is not None:
            on_measure(estimate)
    return found
