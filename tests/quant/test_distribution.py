"""Fits against scipy's densities, distances against brute integration, the exact optimum against all partitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quant.distribution import (
    best_law,
    distortion_ratio,
    distortion_ratio_null,
    fit_laws,
    k_medians_error,
    trained_share,
    w1_null,
    w1_to_normal,
)
from quant.errors import QuantError

DENSITIES = {
    "normal": lambda loc, scale, _: stats.norm(loc, scale),
    "laplace": lambda loc, scale, _: stats.laplace(loc, scale),
    "logistic": lambda loc, scale, _: stats.logistic(loc, scale),
    "student_t": lambda loc, scale, shape: stats.t(shape, loc, scale),
    "generalised_normal": lambda loc, scale, shape: stats.gennorm(shape, loc, scale),
}
SAMPLES = {
    "normal": lambda rng: rng.normal(0.3, 0.02, 4000),
    "laplace": lambda rng: rng.laplace(-2, 0.5, 4000),
    "student_t": lambda rng: 0.01 * rng.standard_t(3, 4000),
    "logistic": lambda rng: rng.logistic(1, 3, 40_000),
    "generalised_normal": lambda rng: stats.gennorm(5).rvs(4000, random_state=rng),
}


@pytest.mark.parametrize("law", SAMPLES)
def test_rule_25_likelihoods_are_those_of_the_densities_and_maximal(law):
    w = SAMPLES[law](np.random.default_rng(0))[:1500]
    fit = fit_laws(w)
    assert fit["aic"] == sorted(fit["aic"])
    assert fit["delta_aic"][0] == 0
    columns = ("law", "log_likelihood_nats", "location", "scale", "shape", "parameters", "aic")
    for name, value, loc, scale, shape, k, aic in zip(*(fit[c] for c in columns), strict=True):
        density = DENSITIES[name](loc, scale, shape)
        assert value == pytest.approx(density.logpdf(w).sum(), rel=1e-9)
        assert aic == pytest.approx(2 * k - 2 * value)
        for factor in (0.99, 1.01):  # no neighbour is better
            assert value >= DENSITIES[name](loc, scale * factor, shape).logpdf(w).sum()
            assert value >= DENSITIES[name](loc + (factor - 1) * scale, scale, shape).logpdf(w).sum() - 1e-6
            if name == "student_t" and shape < 1000:
                assert value >= DENSITIES[name](loc, scale, shape * factor).logpdf(w).sum()


@pytest.mark.parametrize("law", SAMPLES)
def test_rule_25_the_law_that_made_them_is_best(law):
    assert best_law(SAMPLES[law](np.random.default_rng(1))) == law


def test_the_fit_is_as_good_as_scipys():
    w = np.random.default_rng(2).standard_t(4, 800)
    fit = dict(zip(*(fit_laws(w)[c] for c in ("law", "log_likelihood_nats")), strict=True))
    assert fit["student_t"] >= stats.t(*stats.t.fit(w)).logpdf(w).sum() - 1e-3
    assert fit["generalised_normal"] >= stats.gennorm(*stats.gennorm.fit(w)).logpdf(w).sum() - 1e-3


@pytest.mark.parametrize("n", [2, 3, 20, 400])
def test_rule_25_w1_against_brute_integration(n):
    w = np.random.default_rng(n).gamma(2, size=n) * 7 - 3
    z = np.sort((w - w.mean()) / w.std(ddof=1))
    u = (np.arange(400_000) + 0.5) / 400_000
    brute = np.abs(z[(u * n).astype(int)] - stats.norm.ppf(u)).mean()
    assert w1_to_normal(w) == pytest.approx(brute, abs=2e-5)
    assert w1_to_normal(5 - 2 * w) == pytest.approx(w1_to_normal(w), rel=1e-9)
    assert w1_to_normal(w.reshape(1, -1)) == w1_to_normal(w)


def test_rule_25_the_null_at_the_same_n():
    assert w1_null(192, seed=0, draws=40) == pytest.approx(0.059, rel=0.1)
    assert w1_null(768, seed=0, draws=40) == pytest.approx(0.031, rel=0.15)
    assert w1_null(24_576, seed=0, draws=4) == pytest.approx(0.005, rel=0.2)
    assert w1_null(50, seed=1) == w1_null(50, seed=1) != w1_null(50, seed=2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20) | st.floats(-3, 3), min_size=1, max_size=9), st.integers(1, 5))
def test_rule_25_the_optimum_against_all_partitions(values, k):
    x = np.sort(np.array(values, dtype=float))
    parts = min(k, x.size)
    brute = min(
        sum(np.abs(part - np.median(part)).sum() for part in np.split(x, cuts))
        for cuts in itertools.combinations(range(1, x.size), parts - 1)
    )
    assert k_medians_error(np.random.default_rng(0).permutation(x), k) == pytest.approx(brute, abs=1e-9)


@pytest.mark.parametrize("k", [2, 3, 8, 16])
def test_rule_25_the_optimum_against_the_literal_recursion(k):
    x = np.sort(np.random.default_rng(k).standard_t(3, 90))
    cost = [[np.abs(x[t:i] - np.median(x[t:i])).sum() if i > t else 0.0 for i in range(91)] for t in range(91)]
    best = cost[0]
    for _ in range(k - 1):
        best = [min(best[t] + cost[t][i] for t in range(i + 1)) for i in range(91)]
    assert k_medians_error(x, k) == pytest.approx(best[-1], rel=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rule_25_distortion_of_normal_weights_is_near_one_of_others_is_not(bits):
    rng = np.random.default_rng(0)
    normal = distortion_ratio(rng.normal(0.1, 0.02, 6000), bits)
    assert 1 <= normal < 1.02  # the optimum fits the noise of 6,000 draws a little
    assert distortion_ratio(rng.laplace(size=6000), bits) > normal + 0.01


def test_distortion_at_one_bit_by_hand():
    """Best values at 1 bit: the medians of the lower and the upper part at the best of all cuts."""
    x = np.sort(np.random.default_rng(3).gamma(2.0, size=60))
    best = min(
        np.abs(a - np.median(a)).sum() + np.abs(b - np.median(b)).sum()
        for a, b in (np.split(x, [i]) for i in range(1, 60))
    )
    m, s = x.mean(), x.std(ddof=1)
    error = np.abs(x - (m + np.where((x - m) > 0, 1, -1) * 0.6744897501960817 * s)).sum()
    assert distortion_ratio(x, 1) == pytest.approx(error / best, rel=1e-9)


def test_rule_25_distortion_needs_twenty_weights_a_value():
    w = np.random.default_rng(0).standard_normal(80)
    assert math.isfinite(distortion_ratio(w, 2))
    assert math.isnan(distortion_ratio(w[:79], 2))
    assert math.isnan(distortion_ratio(np.repeat([1.0, 2.0, 4.0, 8.0], 30), 2))


def test_rule_25_share_that_training_moved():
    rng = np.random.default_rng(0)
    w_init, move = rng.standard_normal((2, 100_000))
    assert trained_share(w_init, w_init) == 0
    assert trained_share(move, np.zeros_like(move)) == 1
    assert trained_share(w_init + 3, w_init) == pytest.approx(0, abs=1e-12)
    assert trained_share(w_init + 0.5 * move, w_init) == pytest.approx(0.2, abs=0.005)  # .25 / 1.25
    assert trained_share(-w_init, w_init) == pytest.approx(0.8)  # 4 / 5, still below 1
    with pytest.raises(QuantError, match="shape"):
        trained_share(move, move[:5])


def test_constants_and_numbers_that_are_none():
    assert math.isnan(w1_to_normal(np.full(9, 0.1)))
    with pytest.raises(QuantError, match=r"two distinct weights, found 9 times 0\.1"):
        fit_laws(np.full(9, 0.1))
    with pytest.raises(QuantError, match=r"found 3, 1 of them not finite"):
        fit_laws(np.array([1, 2, math.nan]))
    with pytest.raises(QuantError, match="at least two weights"):
        w1_to_normal(np.array([1.0]))


@pytest.mark.parametrize(("n", "bits"), [(320, 2), (1536, 2), (1536, 4)])
def test_the_null_of_the_distortion_ratio_is_what_normal_samples_of_that_size_give(n, bits):
    """Rule 25: other draws have the same mean; it is above 1 and falls with n."""
    others = [distortion_ratio(np.random.default_rng(100 + i).normal(3.0, 0.2, n), bits) for i in range(20)]
    null = distortion_ratio_null(n, bits, seed=0)
    assert null == pytest.approx(np.mean(others), abs=5 * np.std(others) / np.sqrt(10))
    assert 1 < distortion_ratio_null(4 * n, bits, seed=0) < null
