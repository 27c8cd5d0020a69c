"""The paired score interval: closed form without changes, the likelihood maximised by brute force, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analyses.errors import AnalysisError
from analyses.hits import paired_hits


def brute_score(gained: int, lost: int, n: int, d: float) -> float:
    """The trinomial likelihood over a fine grid of the lost share, the gained one d more; then the score's formula."""
    q = np.linspace(max(0, -d), (1 - d) / 2, 400_001)[1:-1]
    log_likelihood = gained * np.log(q + d) + lost * np.log(q) + (n - gained - lost) * np.log1p(-2 * q - d)
    best = q[np.argmax(log_likelihood)]
    return (gained - lost - n * d) / math.sqrt(n * (2 * best + d - d * d))


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 200), (12, 2, 80), (5, 5, 30)])
def test_the_ends_are_where_the_score_is_the_quantile(gained, lost, n):
    found = paired_hits(gained, lost, n, 0.9)
    assert found.value == (gained - lost) / n
    assert brute_score(gained, lost, n, found.low) == pytest.approx(1.6449, abs=2e-3)
    assert brute_score(gained, lost, n, found.high) == pytest.approx(-1.6449, abs=2e-3)
    p = 2 * stats.norm.sf(abs(brute_score(gained, lost, n, -0.03)))
    assert paired_hits(gained, lost, n, null=-0.03).p_value == pytest.approx(p, rel=5e-3)
    differences = np.repeat([1, -1, 0], [gained, lost, n - gained - lost])
    assert found.se == pytest.approx(differences.std(ddof=1) / math.sqrt(n))


def test_without_a_change_the_interval_is_closed_form():
    z2 = stats.norm.ppf(0.975) ** 2
    found = paired_hits(0, 0, 1000)
    assert (found.low, found.high) == pytest.approx((-z2 / (1000 + z2), z2 / (1000 + z2)), rel=1e-6)
    assert (found.value, found.se, found.p_value) == (0, 0, 1)


def test_sides_mirror_and_ends_stay_within_what_can_be():
    a, b = paired_hits(7, 2, 50), paired_hits(2, 7, 50)
    assert (a.low, a.high) == pytest.approx((-b.high, -b.low))
    for gained, lost in ((5, 0), (0, 5), (5, 5)):
        found = paired_hits(gained, lost, max(gained + lost, 5))
        assert -1 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("gain", "loss"), [(0.01, 0.02), (0.002, 0.002), (0.1, 0.05)])
def test_coverage(gain, loss):
    """The interval covers the true difference 95 times of a hundred, few changes or many: 2,000 draws."""
    rng = np.random.default_rng(0)
    draws, counts = np.unique(rng.multinomial(400, [gain, loss, 1 - gain - loss], 2000), axis=0, return_counts=True)
    inside = [(e := paired_hits(int(g), int(m), 400)).low <= gain - loss <= e.high for g, m, _ in draws]
    assert 0.93 <= np.average(inside, weights=counts) <= 0.99


def test_counts_that_are_none():
    with pytest.raises(AnalysisError, match="among 3, found 2 and 2"):
        paired_hits(2, 2, 3)
    with pytest.raises(AnalysisError, match="between 0 and 1"):
        paired_hits(1, 1, 3, 1.5)
