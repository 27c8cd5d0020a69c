"""What the settings of an analysis may be: refused as they are read, before anything is opened or measured."""

from __future__ import annotations

import math

from analyses.errors import AnalysisError


def at_least(least: int, **settings: float | None) -> None:
    """Refuse a setting below ``least``, or NaN; None is one that was not given.

    Raises
    ------
    AnalysisError
        For the first such one, named as its flag.
    """
    for name, value in settings.items():
        if value is not None and not value >= least:
            raise AnalysisError(f"expected {_flag(name)} to be at least {least}, found {value}")


def below(limit: float, **settings: float | None) -> None:
    """Refuse a setting of ``limit`` or more; None is one that was not given.

    Raises
    ------
    AnalysisError
        For the first such one, named as its flag.
    """
    for name, value in settings.items():
        if value is not None and not value < limit:
            raise AnalysisError(f"expected {_flag(name)} to be below {limit:g}, found {value}")


def positive(**settings: float | None) -> None:
    """Refuse a setting that is not positive and finite; None is one that was not given.

    Raises
    ------
    AnalysisError
        For the first such one, named as its flag.
    """
    for name, value in settings.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise AnalysisError(f"expected {_flag(name)} to be positive and finite, found {value}")


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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
