"""Studies: which runs are trained and what is measured on them; one file a study, found by its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analyses.study import Study


def names() -> list[str]:
    """The studies there are: the names of the files here."""
    return sorted(f.stem for f in Path(__file__).parent.glob("[a-z]*.py"))


def get(name: str) -> Study:
    """The study of that name.

    Raises
    ------
    AnalysisError
        If there is none.
    """
    from analyses.errors import AnalysisError
    from figures.tables import nearest

    if name not in names():
        raise AnalysisError(f"unknown study {name!r}, expected one of {', '.join(names())}{nearest(name, names())}")
    return importlib.import_module(f"analyses.studies.{name}").STUDY
