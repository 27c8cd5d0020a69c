"""Measures of sharpness, one a file; the file's name is the measure's. A new file here is found by itself.

A measure's file defines ``MEASURE`` and ``UNIT``, its name and unit in tables, and ``measure(objective, space, *,
...)``. Names that begin with an underscore are helpers. Listing the names loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol

from landscape.errors import LandscapeError, nearest

if TYPE_CHECKING:
    from landscape.estimate import Estimate
    from landscape.objective import Objective
    from landscape.space import Space

# They measure with the measures: a card of all, and one measure block by block.
_TABLES = ("card", "per_layer")


class Measure(Protocol):
    """What each measure is: a function of an objective and a space, with settings of its own beside the seed."""

    def __call__(self, objective: Objective, space: Space, *, seed: int = 0, **settings: Any) -> Estimate:
        """Measure at the space's centre, which is left bit for bit as it was."""


def names() -> list[str]:
    """Names of all measures, sorted; imports none of them."""
    return sorted(m.name for m in iter_modules(__path__) if m.name not in _TABLES and not m.name.startswith("_"))


def get(name: str) -> Measure:
    """The measure of that name.

    Raises
    ------
    LandscapeError
        If there is none of that name.
    """
    if name not in names():
        raise LandscapeError(f"expected a sharpness among {', '.join(names())}, found {name!r}{nearest(name, names())}")
    return import_module(f"{__name__}.{name}").measure
