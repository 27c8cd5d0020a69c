"""The error of this package: something the person gave cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrainError(ValueError):
    """One line: what was expected, what was found, the nearest valid name."""

    exit_code = 2


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error about a wrong name: ``"; nearest: ..."``, or nothing when no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""
