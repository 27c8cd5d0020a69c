"""Tests of a mean, each with the interval that inverts it.

A number lies outside ``bounds(tail)`` exactly when one of ``tails(number)`` is at most ``tail``. Interval and p-value
are two views of one test here, so verdicts read off the one and the other cannot differ (a t interval beside a
permutation p-value would). ``paired_test`` and ``welch_test`` at the end choose the test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import special, stats

PERMUTATION_FROM, BOOTSTRAP_FROM = 6, 20  # pairs
ENUMERATED = 15  # pairs up to which all sign flips are taken
DRAWS = 2**15 - 1  # beyond: this many random ones, and as many bootstrap resamples
SLACK = 1e-9  # relative: a level that is attained but for rounding counts as attained


class MeanTest(Protocol):
    """A mean with a test of it."""

    @property
    def method(self) -> str:
        """Name of the test."""

    @property
    def status(self) -> str:
        """``"ok"``, or why there is no test."""

    @property
    def value(self) -> float:
        """The mean, or difference of means."""

    @property
    def se(self) -> float:
        """Its standard error."""

    @property
    def df(self) -> float:
        """Of the t distribution that the smallest effect is stated for."""

    @property
    def n(self) -> int:
        """Units: pairs, or those of the smaller side."""

    def tails(self, null: float) -> tuple[float, float]:
        """One-sided p-values: of "the mean is at most ``null``" and of "the mean is at least ``null``"."""

    def bounds(self, tail: float) -> tuple[float, float]:
        """Ends of the interval that leaves ``tail`` on each side; infinite where n cannot reach that level."""


@dataclass(frozen=True, kw_only=True)
class Untestable:
    """Data without an error: nothing is excluded. With fewer than two units not even a p-value is stated."""

    status: str
    value: float
    n: int
    method: str = "no test"
    se: float = math.nan
    df: float = math.nan

    def tails(self, null: float) -> tuple[float, float]:
        """NaN below two units; 1 where there are units but no usable spread, so that Holm still counts the test."""
        p = math.nan if self.n < 2 else 1.0
        return p, p

    def bounds(self, tail: float) -> tuple[float, float]:
        """Everything."""
        return -math.inf, math.inf


@dataclass(frozen=True, kw_only=True)
class StudentT:
    """Student's t with a known standard error and degrees of freedom."""

    method: str
    value: float
    se: float
    df: float
    n: int
    status: str = "ok"

    def tails(self, null: float) -> tuple[float, float]:
        """Tail areas of t at (value - null) / se."""
        t = (self.value - null) / self.se
        return float(special.stdtr(self.df, -t)), float(special.stdtr(self.df, t))

    def bounds(self, tail: float) -> tuple[float, float]:
        """Value plus and minus a quantile of t times the standard error."""
        reach = -float(special.stdtrit(self.df, tail)) * self.se
        return self.value - reach, self.value + reach


@dataclass(frozen=True, kw_only=True)
class _Resampled:
    """What both resampling tests of paired differences share; ``df`` is of the t test behind the smallest effect."""

    differences: np.ndarray
    seed: int = 0
    status: str = "ok"

    @property
    def n(self) -> int:
        return self.differences.size

    @property
    def value(self) -> float:
        return float(self.differences.mean())

    @property
    def se(self) -> float:
        return _standard_error(self.differences)

    @property
    def df(self) -> float:
        return self.n - 1.0


@dataclass(frozen=True, kw_only=True)
class SignFlips(_Resampled):
    """The sign-flip permutation test of paired differences, inverted exactly.

    Let T(s) be the mean of s_i (d_i - mu). Flipping the set S lets T stay or grow exactly when the mean of d over S is
    at most mu. So the one-sided p-value is (1 + the number of non-empty subsets whose mean is at most mu) / 2^n, and
    the interval ends at order statistics of the subset means (Hartigan 1969, typical values). All subsets up to 15
    differences, else 32,767 random ones, the identity added. Assumes differences symmetric about their mean.
    """

    @property
    def method(self) -> str:
        """Which flips were taken."""
        return "sign-flip permutation" + ("" if self.n <= ENUMERATED else f" ({DRAWS} random flips)")

    @cached_property
    def _subset_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted, once for each side: ties but for rounding count against rejecting, an empty random subset too."""
        d = self.differences
        if self.n <= ENUMERATED:
            member = (np.arange(1, 2**self.n)[:, None] >> np.arange(self.n)) & 1
        else:
            member = np.random.default_rng(self.seed).integers(0, 2, size=(DRAWS, self.n))
        size = member.sum(axis=1)
        means = member @ d / np.maximum(size, 1)
        slack = 1e-12 * np.abs(d).max()
        low = np.where(size == 0, -np.inf, means - slack)
        high = np.where(size == 0, np.inf, means + slack)
        return np.sort(low), np.sort(high)

    def tails(self, null: float) -> tuple[float, float]:
        """Shares of the flips, identity included, that give a mean as large, and as small."""
        low, high = self._subset_means
        flips = low.size + 1
        above = (1 + np.searchsorted(low, null, side="right")) / flips
        below = (1 + high.size - np.searchsorted(high, null, side="left")) / flips
        return float(above), float(below)

    def bounds(self, tail: float) -> tuple[float, float]:
        """Order statistics of the subset means; infinite where even the identity alone weighs more than ``tail``."""
        low, high = self._subset_means
        spare = math.floor(tail * (low.size + 1) * (1 + SLACK)) - 1
        if spare < 0:
            return -math.inf, math.inf
        return float(low[spare]), float(high[-1 - spare])


@dataclass(frozen=True, kw_only=True)
class BiasCorrected(_Resampled):
    """The bias-corrected and accelerated bootstrap of a mean (Efron 1987), by scipy.

    Its p-value is the level at which the interval just excludes the null.
    """

    method: str = f"BCa bootstrap ({DRAWS} resamples)"

    def _interval(self, tail: float, drawn: Any = None) -> Any:
        return stats.bootstrap(
            (self.differences,), np.mean, method="BCa", confidence_level=1 - 2 * tail,
            n_resamples=0 if drawn else DRAWS, bootstrap_result=drawn, rng=np.random.default_rng(self.seed),
        )  # fmt: skip

    @cached_property
    def _drawn(self) -> Any:
        return self._interval(0.025)

    def bounds(self, tail: float) -> tuple[float, float]:
        """Infinite below one resample in the tail: the bootstrap cannot resolve that."""
        if tail * (1 + SLACK) < 1 / (DRAWS + 1):
            return -math.inf, math.inf
        found = self._interval(min(tail, 0.5 - SLACK), self._drawn).confidence_interval
        return float(found.low), float(found.high)

    def tails(self, null: float) -> tuple[float, float]:
        """By bisection of the level, between one resample and one half."""
        middle = sum(self.bounds(0.5)) / 2
        above = middle > null
        included, excluded = 1 / (DRAWS + 1), 0.5
        if self._excludes(null, included, above):
            excluded = included
        while excluded - included > 1e-12:
            tail = (included + excluded) / 2
            if self._excludes(null, tail, above):
                excluded = tail
            else:
                included = tail
        return (excluded, 1 - excluded) if above else (1 - excluded, excluded)

    def _excludes(self, null: float, tail: float, above: bool) -> bool:
        low, high = self.bounds(tail)
        return low > null if above else high < null


def paired_test(d: np.ndarray, tail: float, seed: int = 0) -> MeanTest:
    """The test for paired differences (n,), chosen by n and by the one-sided level it must reach, never by the values.

    - Below six pairs: Student's t.
    - From six: sign-flip permutation, where its smallest p-value, 2 / 2^n two-sided, can reach the level. Six pairs
      never get below .031; in a large family that would mean "undecided" whatever the data, so t is kept there.
    - From twenty: BCa bootstrap.
    """
    n = d.size
    trouble = _trouble(d)
    if trouble:
        return Untestable(status=trouble, value=float(d.mean()) if n else math.nan, n=n)
    # rounding alone is no spread: t and BCa would make a certainty of it, the sign flips do not
    spread = np.ptp(d) > 1e-12 * np.abs(d).max()
    if n >= BOOTSTRAP_FROM and spread:
        return BiasCorrected(differences=d, seed=seed)
    if n >= PERMUTATION_FROM and 2.0**-n <= tail * (1 + SLACK):
        return SignFlips(differences=d, seed=seed)
    if not spread:
        status = f"all {n} differences are equal: no error can be estimated"
        return Untestable(status=status, value=float(d.mean()), n=n)
    return StudentT(method="paired t", value=float(d.mean()), se=_standard_error(d), df=n - 1.0, n=n)


def welch_test(a: np.ndarray, b: np.ndarray) -> MeanTest:
    """Welch's t for two sides without pairs, (na,) and (nb,)."""
    n = min(a.size, b.size)
    value = float(a.mean() - b.mean()) if n else math.nan
    trouble = _trouble(a) or _trouble(b)
    if trouble:
        return Untestable(status=trouble, value=value, n=n)
    va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    if math.sqrt(va + vb) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        return Untestable(status="no spread on either side: no error can be estimated", value=value, n=n)
    # Welch-Satterthwaite: df = (va + vb)^2 / (va^2 / (na - 1) + vb^2 / (nb - 1))
    df = (va + vb) ** 2 / (va**2 / (a.size - 1) + vb**2 / (b.size - 1))
    return StudentT(method="Welch t", value=value, se=math.sqrt(va + vb), df=float(df), n=n)


def _standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1)) / math.sqrt(x.size)


def _trouble(x: np.ndarray) -> str:
    if x.size < 2:
        return f"{x.size} unit(s), at least 2 are needed"
    lost = int((~np.isfinite(x)).sum())
    return f"{lost} of {x.size} values are not finite" if lost else ""
