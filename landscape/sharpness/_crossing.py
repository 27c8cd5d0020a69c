"""Where something along a ray begins, enclosed by doubling, halving and bisection; nothing is interpolated."""

from __future__ import annotations

import math
from collections.abc import Callable

Bracket = tuple[float, float]
# Halvings of the first radius after which a crossing is taken to lie at the centre itself.
_HALVINGS = 40


def enclose(beyond: Callable[[float], bool], start: float, largest: float, tolerance: float) -> Bracket | None:
    """Neighbouring radii (inner, outer), the inner one not beyond and the outer one beyond.

    Parameters
    ----------
    beyond
        Whether a radius is; taken to be false at 0. Where it changes more than once, one of its changes is found.
    start, largest
        First radius tried, and the last.
    tolerance
        outer <= (1 + tolerance) inner, at the end.

    Returns
    -------
    tuple or None
        None where nothing is beyond up to ``largest``; an inner radius of 0 where all is, however near.
    """
    inner = outer = start
    if beyond(start):
        for _ in range(_HALVINGS):
            inner = outer / 2
            if not beyond(inner):
                break
            outer = inner
        else:
            return 0.0, outer
    else:
        while True:
            if inner >= largest:
                return None
            outer = min(2 * inner, largest)
            if beyond(outer):
                break
            inner = outer
    while outer > (1 + tolerance) * inner:
        middle = math.sqrt(inner * outer)
        inner, outer = (inner, middle) if beyond(middle) else (middle, outer)
    return inner, outer
