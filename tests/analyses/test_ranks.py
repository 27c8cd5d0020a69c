"""Rank correlations with their intervals: against scipy, against literal resampling, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analyses.ranks import DRAWS, compare, spearman

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=4, max_size=12)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_it_is_scipys_correlation_with_ties(data):
    x = np.array(data.draw(VALUES))
    y = np.array(data.draw(st.lists(st.integers(-5, 5).map(float), min_size=len(x), max_size=len(x))))
    found = spearman(x[None], y[None])[0]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_intervals_are_percentiles_of_paired_resamples():
    """The literal loop: each resample takes the same units for both predictors and the target."""
    rng = np.random.default_rng(1)
    target = rng.normal(size=9)
    x, y = target + 0.5 * rng.normal(size=9), rng.normal(size=9)
    found = compare({"x": x, "y": y}, target, baseline="y", seed=7)
    rows = np.random.default_rng(7).integers(0, 9, size=(DRAWS, 9))
    lead = []
    for i in rows[:60]:
        a, b = (stats.spearmanr(v[i], target[i]).statistic for v in (x, y))
        lead.append(a - b)
    mine = spearman(x[rows], target[rows]) - spearman(y[rows], target[rows])
    assert np.allclose(mine[:60], lead, equal_nan=True)
    assert (found["x"].lead_low, found["x"].lead_high) == pytest.approx(np.nanquantile(mine, [0.025, 0.975]))
    assert found["x"].lead == pytest.approx(found["x"].spearman - found["y"].spearman)
    assert (found["y"].lead, found["y"].lead_low, found["y"].lead_high) == (0, 0, 0)


def test_any_rising_function_of_the_target_ranks_perfectly():
    target = np.random.default_rng(0).normal(size=12)
    rank = compare({"p": np.exp(3 * target), "b": -target}, target, baseline="b")["p"]
    assert (rank.spearman, rank.lead) == (1.0, 2.0)
    assert (rank.low, rank.high) == (1.0, 1.0)


@pytest.mark.parametrize("target", [np.arange(3.0), np.ones(8), np.array([0, 1, 2, np.nan, 4.0])])
def test_what_cannot_be_ranked_is_nan(target):
    found = compare({"p": np.arange(float(len(target)))}, target, baseline="p")["p"]
    assert math.isnan(found.spearman)


@pytest.mark.slow
def test_intervals_cover_the_correlation_of_normal_pairs():
    """Nominal 95 % over 24 units at a Pearson correlation of .6, whose Spearman is 6 / pi asin(.3)."""
    rng, truth, hits = np.random.default_rng(3), 6 / np.pi * np.arcsin(0.3), 0
    for seed in range(400):
        x = rng.normal(size=24)
        y = 0.6 * x + 0.8 * rng.normal(size=24)
        rank = compare({"x": x}, y, baseline="x", seed=seed)["x"]
        hits += rank.low <= truth <= rank.high
    assert 0.90 <= hits / 400 <= 0.98
