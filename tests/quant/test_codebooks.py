"""Codebooks against published digits, conditional medians and means, and the released iteration written out."""

from __future__ import annotations

import json
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.stats import norm, truncnorm

from quant.codebooks import gaussian, laplace, normal_float, quantiles, released
from quant.errors import QuantError

BITS = range(1, 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_rule_22_solved_to_1e_10(shared, bits, loss):
    oracle = json.loads((shared / "oracles" / "gaussian_codebooks.json").read_text())[str(bits)]
    values = gaussian(bits, loss).values
    np.testing.assert_allclose(values[2 ** (bits - 1) :], oracle[loss], rtol=0, atol=1e-10)
    np.testing.assert_array_equal(values, -values[::-1])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_rule_22_each_value_is_the_median_or_mean_of_its_cell(bits, loss):
    book = gaussian(bits, loss)
    edges = np.concatenate([[-np.inf], book.boundaries, [np.inf]])
    cells = truncnorm(edges[:-1], edges[1:])
    if loss == "l1":
        centre = cells.median()
    else:
        centre = [
            quad(lambda x: x * norm.pdf(x), a, b, epsabs=1e-15)[0] / quad(norm.pdf, a, b, epsabs=1e-15)[0]
            for a, b in pairwise(edges)
        ]
    np.testing.assert_allclose(book.values, centre, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(book.boundaries, (book.values[1:] + book.values[:-1]) / 2)


def test_published_digits():
    np.testing.assert_allclose(gaussian(1).values, [-0.67449, 0.67449], atol=5e-6)
    np.testing.assert_allclose(gaussian(2).values[2:], [0.377754, 1.265720], atol=5e-7)
    np.testing.assert_allclose(gaussian(3).boundaries[3:], [0, 0.414022, 0.869574, 1.452877], atol=5e-7)
    np.testing.assert_allclose(gaussian(2, "l2").values[2:], [0.4528, 1.510], atol=5e-4)  # Max 1960, table I
    assert gaussian(8).values[-1] == pytest.approx(3.785, abs=5e-4)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_released_is_500_literal_rounds(bits):
    normal = NormalDist()
    v = [0.0] * 2**bits
    for _ in range(500):
        r = [(a + b) / 2 for a, b in pairwise(v)]
        p = [0.0, *map(normal.cdf, r), 1.0]
        v = [normal.inv_cdf((a + b) / 2) for a, b in pairwise(p)]
    np.testing.assert_allclose(released(bits).values, v, rtol=0, atol=1e-11)
    np.testing.assert_allclose(released(bits).boundaries, r, rtol=0, atol=1e-11)


def test_released_is_far_from_solved_at_8_bits():
    values = released(8).values
    assert (np.abs(values) < 1e-3).sum() == 148
    assert np.abs(values - gaussian(8).values).max() == pytest.approx(1.64, abs=5e-3)
    assert (np.diff(values) > 0).all()
    assert np.abs(released(4).values - gaussian(4).values).max() == pytest.approx(2.9e-8, abs=1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_laplace_values_are_medians_or_means_between_midpoints(bits, loss):
    book, law = laplace(bits, loss), stats.laplace(scale=np.sqrt(0.5))
    np.testing.assert_array_equal(book.boundaries, (book.values[1:] + book.values[:-1]) / 2)
    np.testing.assert_array_equal(book.values, -book.values[::-1])
    edges = np.concatenate([[0], book.boundaries[2 ** (bits - 1) :], [np.inf]])
    tail = law.sf(edges)
    if loss == "l1":
        centre = law.isf((tail[:-1] + tail[1:]) / 2)
    else:
        x = np.minimum(edges, 1e3)
        moments = tail * (x + np.sqrt(0.5))  # of the tail of an exponential law: x + 1 / rate
        centre = (moments[:-1] - moments[1:]) / (tail[:-1] - tail[1:])
    np.testing.assert_allclose(book.values[2 ** (bits - 1) :], centre, rtol=0, atol=1e-10)


def test_laplace_published_digits():
    np.testing.assert_allclose(laplace(1).values[1:], [0.7071], atol=5e-5)  # Paez and Glisson 1972
    np.testing.assert_allclose(laplace(2).values[2:], [0.4198, 1.8340], atol=5e-5)
    np.testing.assert_allclose(laplace(3).values[4:], [0.2334, 0.8330, 1.6725, 3.0867], atol=5e-5)


@pytest.mark.parametrize("bits", BITS)
def test_quantiles_have_equal_mass(bits):
    book = quantiles(bits)
    np.testing.assert_allclose(np.diff(norm.cdf(book.boundaries), prepend=0, append=1), 2.0**-bits, atol=1e-13)
    np.testing.assert_allclose(norm.cdf(book.values), (np.arange(2**bits) + 0.5) / 2**bits, atol=1e-13)


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_float_as_published(bits):
    """QLoRA's create_normal_map, its offset 0.9677083 written for any number of bits."""
    offset = 1 - (1 / (2 * 2**bits) + 1 / (2 * (2**bits - 1))) / 2
    if bits == 4:
        assert offset == pytest.approx(0.9677083, abs=1e-7)
    half = 2 ** (bits - 1)
    upper = norm.ppf(np.linspace(offset, 0.5, half + 1)[:-1])
    lower = -norm.ppf(np.linspace(offset, 0.5, half)[:-1])
    values = np.sort(np.concatenate([upper, [0.0], lower]))
    np.testing.assert_allclose(normal_float(bits).values, values / values.max(), atol=1e-14)
    assert normal_float(bits).values.size == 2**bits
    assert 0.0 in normal_float(bits).values


def test_codebooks_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        gaussian(2).values[0] = 0


@pytest.mark.parametrize("bits", [0, 9, 2.0, "4", True])
def test_bits_from_1_to_8(bits):
    with pytest.raises(QuantError, match="bits from 1 to 8, found"):
        gaussian.__wrapped__(bits)


def test_a_wrong_norm_is_named():
    with pytest.raises(QuantError, match="unknown norm 'l3': expected l1, l2"):
        gaussian(2, "l3")
    with pytest.raises(QuantError, match="unknown norm 'l3': expected l1, l2"):
        laplace(2, "l3")
    with pytest.raises(QuantError, match="bits from 2 to 8, found 1"):
        normal_float(1)
