"""The error of this package: what a person asked for cannot be measured."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LandscapeError(ValueError):
    """Wrong input to a landscape function; its text is one line."""

    exit_code = 2


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; nearest: 'x'"`` for the end of an error about a wrong name, empty where nothing is near."""
    close = get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.4)
    return f"; nearest: {close[0]!r}" if close else ""
