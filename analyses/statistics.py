"""Estimates with their errors, and the verdicts that rest on them (NUMERICS 16). The one owner of both.

The unit is the training seed: directions are averaged before anything here sees them. Which test is taken when is said
in ``intervals.paired_test``.

A family of comparisons is decided by Holm's step-down on two-sided p-values. Each comparison is then read off its
interval at the level of its own Holm step (the step at which Holm stopped, for those after it), so "decided" and
``p_holm <= alpha`` are the same statement. These intervals invert Holm's decisions; they are no simultaneous confidence
region. Holm bounds the chance of any false rejection in the family; that of any decision for the wrong side is proven
bounded for independent comparisons (Shaffer 1980), and simulated in the tests.

A conjunction ("under all three radii") is an intersection-union test: it *holds* only if every part holds, each at the
full level. It *does not hold* if at least one part of k lies wholly on the other side at level alpha / k: one part is
enough to refute "all", and looking at k parts for one is paid for by Bonferroni. Else it is undecided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import optimize, special, stats

from analyses.errors import AnalysisError
from analyses.intervals import SLACK, MeanTest, paired_test, welch_test
from figures.tables import nearest

if TYPE_CHECKING:
    import pandas as pd

Alternative = Literal["two-sided", "greater", "less"]
Kind = Literal["superiority", "non-inferiority"]
Side = Literal["greater", "less"]
Verdict = Literal["holds", "does not hold", "undecided"]
Sample = np.ndarray | tuple[np.ndarray, np.ndarray]  # paired differences, or two sides without pairs


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its interval and the test that the interval inverts.

    Attributes
    ----------
    value, se
        The mean (or difference of means) and its standard error, in the unit of what was given.
    low, high, confidence
        The interval; one end is infinite for a one-sided alternative, both where n cannot reach the level.
    n
        Units: pairs, or the units of the smaller side.
    method, status
        Which test; ``"ok"`` or why there is none.
    smallest_effect
        The distance from the null that this n, with this spread, would have shown with a power of .8.
    p_value
        Against the null, in the direction of the alternative; NaN below two units.
    """

    value: float
    se: float
    low: float
    high: float
    confidence: float
    n: int
    method: str
    status: str
    smallest_effect: float
    p_value: float

    def to_frame(self) -> pd.DataFrame:
        """One row, a column for each attribute."""
        import pandas as pd

        return pd.DataFrame([asdict(self)])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One member of a family: the samples of its parts (one, or one a radius) and what is claimed of them all."""

    parts: Mapping[str, Sample]
    kind: Kind
    margin: float = 0.0
    side: Side = "greater"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What came out for a :class:`Comparison`.

    ``estimate`` is of the part that settled it (the one nearest to failing, or the one that refutes), at the confidence
    of the Holm step; read against the margin it gives ``verdict``. ``p_value`` is two-sided, of the whole conjunction.
    """

    estimate: Estimate
    part: str
    p_value: float
    p_holm: float
    verdict: Verdict


def paired(
    differences: Sequence[float] | np.ndarray, confidence: float = 0.95, alternative: Alternative = "two-sided", *,
    null: float = 0.0, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Mean of paired differences, (n,), with interval and p-value against ``null``."""
    _check(confidence, alternative)
    test = paired_test(_vector(differences), _tail(confidence, alternative), seed)
    return _estimate(test, confidence, alternative, null)


def welch(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95,
    alternative: Alternative = "two-sided", *, null: float = 0.0,
) -> Estimate:  # fmt: skip
    """Mean of ``a`` minus mean of ``b`` by Welch's t: for one checkpoint a side, over directions.

    The statement is then about these two checkpoints and not about how they were trained.
    """
    _check(confidence, alternative)
    return _estimate(welch_test(_vector(a), _vector(b)), confidence, alternative, null)


def smallest_effect(
    sd: float, n: int, confidence: float = 0.95, power: float = 0.8, alternative: Alternative = "two-sided"
) -> float:
    """The true mean that n pairs with this standard deviation show with this power: noncentral t, solved.

    Shown means on its own side; a two-sided rejection for the other side is no success.
    Nominal for the resampling tests, whose power is close to that of t. Infinite below two pairs.
    """
    _check(confidence, alternative)
    _check(power, alternative)
    if n < 2:
        return math.inf
    return _noncentrality(n - 1.0, _tail(confidence, alternative), power) * sd / math.sqrt(n)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (Holm 1979), in the order given; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    order, steps = _steps(p)
    adjusted = np.full(p.shape, np.nan)
    # p_(i) adjusted = max over j <= i of min(1, (m - j + 1) p_(j))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, steps * p[order]))
    return adjusted


def verdict(interval: tuple[float, float], *, kind: Kind, margin: float = 0.0, side: Side = "greater") -> Verdict:
    """Read an interval (low, high) against what is claimed.

    Superiority: the effect lies on ``side`` of zero. Non-inferiority: it is not further than ``margin`` on the other
    side of zero. Holds when the interval lies wholly within that, does not hold when wholly outside, else undecided.
    """
    null = threshold(kind, margin, side)
    low, high = interval
    above, below = low > null, high < null
    holds, fails = (above, below) if side == "greater" else (below, above)
    return "holds" if holds else "does not hold" if fails else "undecided"


def threshold(kind: Kind, margin: float, side: Side) -> float:
    """The effect that lies on the border between holding and not: zero, or the margin on the bad side of it.

    Raises
    ------
    AnalysisError
        If the kind or the side is unknown, or the margin does not suit the kind.
    """
    _known("kind", kind, ("superiority", "non-inferiority"))
    _known("side", side, ("greater", "less"))
    if not (margin == 0 if kind == "superiority" else 0 < margin < math.inf):
        wanted = "no margin" if kind == "superiority" else "a margin above zero, fixed in advance"
        raise AnalysisError(f"{kind} takes {wanted}; found {margin}")
    return 0.0 if kind == "superiority" else -margin if side == "greater" else margin


def decide(family: Sequence[Comparison], confidence: float = 0.95) -> list[Decision]:
    """Decide a family of comparisons together: Holm over its members, intersection-union over the parts of each.

    A member with fewer than two units in a part has no p-value, is not counted in the family and stays undecided.

    Raises
    ------
    AnalysisError
        If the confidence is not between 0 and 1, a kind or side is unknown, or a member has no part.
    """
    _check(confidence, "two-sided")
    if not all(c.parts for c in family):
        raise AnalysisError("a comparison needs at least one part; found none")
    finest = (1 - confidence) / max(len(family), 1) / 2  # the tail of Holm's first step
    members = [_Member(c, finest) for c in family]
    p = np.array([m.p_value for m in members])
    p_holm, levels = holm(p), _levels(p, 1 - confidence)
    return [m.decision(float(q), float(level)) for m, q, level in zip(members, p_holm, levels, strict=True)]


class _Member:
    """A comparison with the tests of its parts."""

    def __init__(self, comparison: Comparison, tail: float) -> None:
        c = self.comparison = comparison
        self.null = threshold(c.kind, c.margin, c.side)
        self.parts = len(c.parts)
        self.tests = {name: _test(sample, tail / self.parts) for name, sample in c.parts.items()}
        tails = {name: test.tails(self.null) for name, test in self.tests.items()}
        # one-sided p-values for "this part holds" and for "it lies on the other side"
        self.good = {name: t[c.side == "less"] for name, t in tails.items()}
        self.bad = {name: t[c.side == "greater"] for name, t in tails.items()}
        # all hold: the largest of k (intersection-union); one refutes: k times the smallest of k (Bonferroni)
        holds, refuted = max(self.good.values()), self.parts * min(self.bad.values())
        untested = any(math.isnan(p) for p in self.good.values())
        self.p_value = math.nan if untested else min(1.0, 2 * holds, 2 * refuted)

    def decision(self, p_holm: float, level: float) -> Decision:
        weakest = max(self.good, key=lambda name: (math.isnan(self.good[name]), self.good[name]))
        refuting = min(self.bad, key=lambda name: (math.isnan(self.bad[name]), self.bad[name]))
        full, shared = 1 - level, 1 - level / self.parts
        if math.isnan(self.p_value):
            return self._read(weakest, full, p_holm)
        for name, confidence, wanted in ((weakest, full, "holds"), (refuting, shared, "does not hold")):
            found = self._read(name, confidence, p_holm)
            if found.verdict == wanted:
                return found
        return self._read(weakest, shared, p_holm)

    def _read(self, name: str, confidence: float, p_holm: float) -> Decision:
        estimate = _estimate(self.tests[name], confidence, "two-sided", self.null)
        c = self.comparison
        read = verdict((estimate.low, estimate.high), kind=c.kind, margin=c.margin, side=c.side)
        return Decision(estimate=estimate, part=name, p_value=self.p_value, p_holm=p_holm, verdict=read)


def _test(sample: Sample, tail: float) -> MeanTest:
    if isinstance(sample, tuple):
        return welch_test(_vector(sample[0]), _vector(sample[1]))
    return paired_test(_vector(sample), tail)


def _estimate(test: MeanTest, confidence: float, alternative: Alternative, null: float) -> Estimate:
    above, below = test.tails(null)
    low, high = test.bounds(_tail(confidence, alternative))
    p = {"greater": above, "less": below, "two-sided": float(np.minimum(1, 2 * np.minimum(above, below)))}[alternative]
    shown = math.inf
    if test.status == "ok":
        shown = _noncentrality(test.df, _tail(confidence, alternative), 0.8) * test.se
    return Estimate(
        value=test.value, se=test.se, low=-math.inf if alternative == "less" else low,
        high=math.inf if alternative == "greater" else high, confidence=confidence, n=test.n,
        method=test.method, status=test.status, smallest_effect=shown, p_value=p,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _noncentrality(df: float, tail: float, power: float) -> float:
    """The noncentrality at which t with ``df`` degrees exceeds its quantile of ``tail`` with this probability."""
    critical = -special.stdtrit(df, tail)

    def missing(nc: float) -> float:
        return float(stats.nct.sf(critical, df, nc) - power)

    top = 1.0
    while missing(top) < 0:
        top *= 2
    return 0.0 if missing(0.0) >= 0 else float(optimize.brentq(missing, 0.0, top))


def _steps(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the p-values in ascending order without NaN, and the factor m, m - 1, ..., 1 of each."""
    order = np.argsort(p, kind="stable")
    order = order[~np.isnan(p[order])]
    return order, np.arange(order.size, 0, -1)


def _levels(p: np.ndarray, alpha: float) -> np.ndarray:
    """The level at which Holm compares each p-value: of its own step, or of the step at which he stopped."""
    order, steps = _steps(p)
    levels = np.full(p.shape, alpha)
    stopped = np.flatnonzero(p[order] > alpha / steps * (1 + SLACK))
    last = stopped[0] if stopped.size else order.size
    levels[order] = alpha / steps[np.minimum(np.arange(order.size), last)] if order.size else alpha
    return levels


def _tail(confidence: float, alternative: Alternative) -> float:
    return (1 - confidence) / (2 if alternative == "two-sided" else 1)


def _vector(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1:
        raise AnalysisError(f"expected a vector of one number a unit, found shape {x.shape}")
    return x


def _check(share: float, alternative: str) -> None:
    if not 0 < share < 1:
        raise AnalysisError(f"expected a confidence or power between 0 and 1, found {share}")
    _known("alternative", alternative, ("two-sided", "greater", "less"))


def _known(what: str, found: str, valid: tuple[str, ...]) -> None:
    if found not in valid:
        raise AnalysisError(f"unknown {what} {found!r}, expected {', '.join(valid)}{nearest(found, valid)}")
