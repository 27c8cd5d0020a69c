"""Ranks in closed form, the Marchenko-Pastur law against drawn matrices and brute integration, planted low rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.spectra import (
    MarchenkoPastur,
    above_edge,
    effective_rank,
    product_singular_values,
    random_product_rank,
    singular_values,
    stable_rank,
    tracy_widom,
)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ranks_in_closed_form():
    assert effective_rank(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    # p = 2/3, 1/3: entropy log 3 - 2/3 log 2
    assert effective_rank(torch.tensor([2.0, 1.0])) == pytest.approx(3 / 2 ** (2 / 3))
    assert stable_rank(torch.tensor([2.0, 1.0])) == pytest.approx(1.25)
    assert stable_rank(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.floats(0.1, 9))
def test_ranks_are_laws_of_the_spectrum(values, factor):
    """Scale says nothing; 1 <= stable rank, 1 <= effective rank <= count; a rotation changes nothing."""
    s = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    assert 1 - 1e-9 <= effective_rank(s) <= len(values) + 1e-9
    assert 1 - 1e-9 <= stable_rank(s) <= len(values) + 1e-9
    assert effective_rank(factor * s) == pytest.approx(effective_rank(s))
    q = torch.linalg.qr(gaussian(len(values), len(values))).Q
    assert effective_rank(singular_values(q * s)) == pytest.approx(effective_rank(s))


@pytest.mark.parametrize(("d_out", "h", "d_in"), [(9, 3, 7), (3, 5, 9), (1, 1, 6), (6, 8, 2)])
def test_the_spectrum_of_a_product_without_the_product(d_out, h, d_in):
    up, down = gaussian(d_out, h), gaussian(h, d_in, seed=1)
    least = min(d_out, h, d_in)
    whole = np.linalg.svd((up @ down).numpy(), compute_uv=False)[:least]
    assert product_singular_values(up, down)[:least].numpy() == pytest.approx(whole, abs=1e-10)


@pytest.mark.parametrize(("n", "p"), [(40, 160), (150, 150), (160, 100)])
def test_the_density_is_that_of_drawn_matrices(n, p):
    """Integral 1, second moment the variance's; the middle quantiles are the singular values that were drawn."""
    law = MarchenkoPastur(rows=n, columns=p, sigma=0.3)
    low, high = law.edges
    x = np.linspace(low, high, 100_001)[1:]
    dx = x[1] - x[0]
    density = law.density(x)
    assert density.sum() * dx == pytest.approx(1, abs=2e-3)
    assert (density * x**2).sum() * dx == pytest.approx(0.09 * max(n, p), rel=2e-3)  # E s^2 = |W|^2 / m
    halves = np.array([0, (low + high) / 2, 2 * high])
    assert law.shares(halves) == pytest.approx(
        [density[x < halves[1]].sum() * dx, density[x > halves[1]].sum() * dx], abs=3e-3
    )
    drawn = np.mean([singular_values(0.3 * gaussian(n, p, seed=i)).numpy() for i in range(10)], axis=0)
    assert law.quantiles().numpy() == pytest.approx(drawn, abs=0.02 * high)
    assert effective_rank(law.quantiles()) == pytest.approx(effective_rank(torch.from_numpy(drawn)), rel=0.01)


@pytest.mark.parametrize("shape", [(8, 192), (32, 128), (40, 40)])
@pytest.mark.parametrize("kind", ["normal", "bits"])
def test_the_largest_singular_value_of_random_entries_stays_below_the_edge(shape, kind):
    """The allowance at 90 %: of 200 normal matrices a tenth lies above it; of bits, which vary less, fewer."""
    rng = np.random.default_rng(0)
    draw = rng.standard_normal if kind == "normal" else lambda size: rng.choice([-1.0, 1.0], size)
    limit = MarchenkoPastur(rows=shape[0], columns=shape[1]).largest(0.9)
    above = np.mean([np.linalg.norm(draw(shape), 2) > limit for _ in range(200)])
    assert (0.04 if kind == "normal" else 0) <= above <= 0.165  # 3 standard errors


def test_tracy_widom_against_published_quantiles():
    """Table 1 of Johnstone 2001 (and Prahofer's): -3.18 (.05), -1.27 (.5), .45 (.9), .98 (.95), 2.02 (.99)."""
    for probability, value in ((0.05, -3.1808), (0.5, -1.2686), (0.9, 0.4501), (0.95, 0.9793), (0.99, 2.0234)):
        assert tracy_widom(probability) == pytest.approx(value, abs=0.01)


def test_planted_low_rank_is_found_and_nothing_else():
    """Three directions well above the noise: all three counted, with their share of the squares."""
    u, v = torch.linalg.qr(gaussian(64, 3)).Q, torch.linalg.qr(gaussian(200, 3, seed=1)).Q
    noise = gaussian(64, 200, seed=2)
    w = noise + u @ torch.diag(torch.tensor([90.0, 60, 45], dtype=torch.float64)) @ v.T
    s = singular_values(w)
    count, share = above_edge(s, MarchenkoPastur.of(w))
    assert count == 3
    planted = 90**2 + 60**2 + 45**2
    assert share == pytest.approx(planted / (planted + 64 * 200), abs=0.05)
    assert above_edge(singular_values(noise), MarchenkoPastur.of(noise)) == (0, 0.0)
    s[3:] = 0
    assert effective_rank(s) < 3


def test_a_random_product_is_below_its_factors():
    found = random_product_rank(200, 8, 200, seed=0)
    assert 7 < found < 8
    assert found == random_product_rank(200, 8, 200, seed=0)


def test_what_is_no_matrix():
    with pytest.raises(QuantError, match=r"matrix of finite values, found shape \(3,\)"):
        singular_values(torch.ones(3))
    with pytest.raises(QuantError, match="finite"):
        singular_values(torch.full((2, 2), math.nan))
    with pytest.raises(QuantError, match=r"found \(2, 3\) and \(2, 3\)"):
        product_singular_values(torch.ones(2, 3), torch.ones(2, 3))
    assert singular_values(torch.ones(2, 3, 4)).shape == (2,)
