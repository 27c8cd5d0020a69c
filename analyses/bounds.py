"""What the settings of an analysis may be: refused as they are read, before anything is opened or measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from analyses.errors import AnalysisError


def at_least(least: int, **settings: float | None) -> None:
    """Refuse a setting below ``least``, or NaN; None is one that was not given.

    An ``AnalysisError`` names the first such one as its flag.
    """
    _refuse(settings, lambda value: value >= least, f"at least {least}")


def below(limit: float, **settings: float | None) -> None:
    """Refuse a setting of ``limit`` or more; None is one that was not given.

    An ``AnalysisError`` names the first such one as its flag.
    """
    _refuse(settings, lambda value: value < limit, f"below {limit:g}")


def positive(**settings: float | None) -> None:
    """Refuse a setting that is not positive and finite; None is one that was not given.

    An ``AnalysisError`` names the first such one as its flag.
    """
    _refuse(settings, lambda value: math.isfinite(value) and value > 0, "positive and finite")


def odd(**settings: int) -> None:
    """Refuse points along an axis that have no centre, or nothing beside it.

    Raises
    ------
    AnalysisError
        For the first such one, named as its flag.
    """
    for name, value in settings.items():
        if value < 3 or value % 2 == 0:
            raise AnalysisError(
                f"expected {_flag(name)} to be odd and at least 3, so that the centre is one; found {value}"
            )


def _refuse(settings: Mapping[str, float | None], allowed: Callable[[float], bool], expected: str) -> None:
    # NaN compares as false: no bound allows it.
    for name, value in settings.items():
        if value is not None and not allowed(value):
            raise AnalysisError(f"expected {_flag(name)} to be {expected}, found {value}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
