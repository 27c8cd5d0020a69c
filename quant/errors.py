"""The error of this package: something the person gave cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantError(ValueError):
    """One line: what was expected, what was found, the nearest valid name."""

    exit_code = 2


def unknown(kind: str, name: object, valid: Iterable[str]) -> str:
    """The text of the error about a name that nothing has: the valid names and the nearest of them."""
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    nearest = f"; nearest: {near[0]}" if near else ""
    return f"unknown {kind} {name!r}: expected {', '.join(valid)}{nearest}"
