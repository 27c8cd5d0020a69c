"""A line of the table: what was measured, what it is compared with, and whether the target is met."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NAN = math.nan
Kind = Literal["ratio", "speedup", "ours"]
FIGURES = {"ratio": "ours / theirs", "speedup": "theirs / ours", "ours": "ours"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what
        What was measured, and on what.
    ours, theirs
        In ``unit``; ``theirs`` NaN where there is nothing to compare with, or it gave no right answer.
    compared_with
        What ``theirs`` is.
    kind
        The figure that the target speaks of: ``ratio`` (ours / theirs, at most), ``speedup`` (theirs / ours, at least)
        or ``ours`` (at most).
    target
        Its bound; NaN where none is set.
    at_least
        Whether ``theirs`` was cut off there: it is more.
    note
        How the answer was checked, what failed.
    """

    what: str
    ours: float
    unit: str = "s"
    compared_with: str = ""
    theirs: float = NAN
    kind: Kind = "ratio"
    target: float = NAN
    at_least: bool = False
    note: str = ""

    @property
    def value(self) -> float:
        """The figure that the target speaks of."""
        if self.kind == "ours":
            return self.ours
        above, below = (self.ours, self.theirs) if self.kind == "ratio" else (self.theirs, self.ours)
        return above / below if below else NAN

    @property
    def met(self) -> str:
        """Yes, no, or nothing where there is no target or nothing to judge by."""
        if math.isnan(self.target) or math.isnan(self.value):
            return ""
        if self.kind == "speedup":
            return "yes" if self.value >= self.target else "no"
        return "yes" if self.value <= self.target else "no"

    def record(self) -> dict[str, Any]:
        """Plain columns; an empty text where there is no number."""
        bound = "" if math.isnan(self.target) else f"{'>=' if self.kind == 'speedup' else '<='} {self.target:g}"
        return {
            "what": self.what,
            "ours": _plain(self.ours),
            "unit": self.unit,
            "compared_with": self.compared_with,
            "theirs": _plain(self.theirs),
            "theirs_at_least": self.at_least,
            "figure": FIGURES[self.kind],
            "value": _plain(self.value),
            "target": bound,
            "met": self.met,
            "note": self.note,
        }


def clock() -> float:
    """Seconds of the processor, which others on the machine do not add to; of the wall where there are many threads.

    For one thread the two are the same on an idle machine.
    """
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def alternated(
    work: Mapping[str, Callable[[], object]], repeats: int, *, now: Callable[[], float] = clock
) -> dict[str, float]:
    """Median seconds of each; called in turn, so that what slows the machine for a while slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            started = now()
            call()
            seconds[name].append(now() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def say(text: str) -> None:
    """A line of progress on stderr, with the time of day."""
    import sys

    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _plain(value: float) -> float | str:
    return "" if math.isnan(value) else value
