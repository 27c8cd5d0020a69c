"""Which predictor ranks best: Spearman's correlations with one target, their intervals, and what one gains on another.

Intervals are percentiles of a bootstrap over the units, the same resamples for all predictors, so that a difference of
two correlations is paired. The matrices of a network are not independent units: the intervals are nominal (NUMERICS
25). Near 1, and below ten units, they are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DRAWS = 4000
LEAST = 4
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Spearman's correlation of a predictor with the target, and its lead over the baseline's, each with 95 %."""

    spearman: float
    low: float
    high: float
    lead: float
    lead_low: float
    lead_high: float


def compare(
    predictors: Mapping[str, np.ndarray], target: np.ndarray, *, baseline: str, seed: int = 0
) -> dict[str, Rank]:
    """Every predictor, (n,), against the target, (n,); the lead is over the predictor named ``baseline``.

    NaN throughout below four units, where nothing can be told, and where a value is NaN or all are equal.
    """
    import numpy as np

    n = len(target)
    if n < LEAST:
        return {name: Rank(**dict.fromkeys(Rank.__annotations__, math.nan)) for name in predictors}
    rows = np.random.default_rng(seed).integers(0, n, size=(DRAWS, n))
    rows = np.concatenate([np.arange(n)[None], rows])  # the sample itself comes first
    found = {name: spearman(np.asarray(x)[rows], target[rows]) for name, x in predictors.items()}
    ranks = {}
    for name, rho in found.items():
        lead = rho - found[baseline]
        low, high = _interval(rho[1:])
        lead_low, lead_high = _interval(lead[1:])
        ranks[name] = Rank(
            spearman=float(rho[0]), low=low, high=high, lead=float(lead[0]), lead_low=lead_low, lead_high=lead_high
        )
    return ranks


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of (B, n), ties at their mean rank; NaN where a row is constant or has one."""
    import numpy as np
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=1, nan_policy="propagate") for v in (x, y))
    a, b = (r - r.mean(axis=1, keepdims=True) for r in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        # the correlation of the ranks
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))


def _interval(draws: np.ndarray) -> tuple[float, float]:
    """Percentiles; a resample of one unit alone has no correlation and is left out."""
    import numpy as np

    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return math.nan, math.nan
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
