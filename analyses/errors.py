"""The error of this package: something the person gave cannot be used."""

from __future__ import annotations


class AnalysisError(ValueError):
    """One line: what was expected, what was found, the nearest valid name."""

    exit_code = 2
