"""Every registered quantiser keeps the laws it declares (rule 22), and its grid is what is stored of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.quantizers import get, names
from quant.quantizers._affine import EPS
from quant.quantizers.base import LAWS

EVERY = [(name, bits) for name in names() for bits in range(1, 9)]
few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**31)


def declaring(law: str):
    return pytest.mark.parametrize(("name", "bits"), [(n, b) for n, b in EVERY if law in get(n, b).laws])


def sample(seed: int, *, std: float = 1.0, mean: float = 0.0, n: int = 400, dtype=torch.float64) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    draw = rng.choice([rng.standard_normal(n), rng.laplace(size=n), rng.uniform(-1, 1, n)])
    return torch.from_numpy(draw * std + mean).to(dtype).reshape(20, -1)


class TestLaws:
    """Rule 22, one test a law, for every quantiser and bits that declare it."""

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_laws_have_names(self, name, bits):
        assert get(name, bits).laws <= set(LAWS)
        assert (get(name, bits).name, get(name, bits).bits) == (name, bits)

    @declaring("monotone")
    @few
    @given(seed=seeds, log_std=st.floats(-6, 4), shift=st.floats(-5, 5))
    def test_rule_22_monotone(self, name, bits, seed, log_std, shift):
        w = sample(seed, std=10**log_std, mean=shift * 10**log_std, dtype=torch.float32)
        codes = get(name, bits).fit(w).codes(w.flatten().sort().values)
        assert (codes.int().diff() >= 0).all()
        assert int(codes.max()) < 2**bits

    @declaring("identity")
    @few
    @given(seed=seeds, log_std=st.floats(-2, 4), shift=st.floats(-5, 5))
    def test_rule_22_quantise_after_dequantise_is_the_identity(self, name, bits, seed, log_std, shift):
        grid = get(name, bits).fit(sample(seed, std=10**log_std, mean=shift * 10**log_std, dtype=torch.float32))
        codes = torch.arange(2**bits, dtype=torch.uint8)
        assert torch.equal(grid.codes(grid.values(codes)), codes)

    @declaring("nearest")
    @few
    @given(seed=seeds, log_std=st.floats(0, 4))
    def test_rule_22_the_value_is_the_nearest(self, name, bits, seed, log_std):
        w = sample(seed, std=10**log_std)
        grid = get(name, bits).fit(w)
        values = grid.values(torch.arange(2**bits, dtype=torch.uint8))
        brute = (w[..., None] - values).abs().amin(-1)
        slack = 8 * 2 * EPS + 1e-8 * 10**log_std  # eps moves a boundary by EPS times a standardised weight
        assert ((w - grid.values(grid.codes(w))).abs() <= brute + slack).all()

    @declaring("scale")
    @few
    @given(seed=seeds, factor=st.floats(0.1, 1e4))
    def test_rule_22_scale(self, name, bits, seed, factor):
        w = sample(seed, std=1e6)  # eps is nothing here
        one, other = get(name, bits).fit(w), get(name, bits).fit(w * factor)
        assert torch.equal(one.codes(w), other.codes(w * factor))
        codes = one.codes(w)
        torch.testing.assert_close(other.values(codes), one.values(codes) * factor, rtol=1e-12, atol=1e-6 * factor)

    @declaring("shift")
    @few
    @given(seed=seeds, shift=st.floats(-10, 10))
    def test_rule_22_shift(self, name, bits, seed, shift):
        w = sample(seed)
        one, other = get(name, bits).fit(w), get(name, bits).fit(w + shift)
        codes = one.codes(w)
        assert torch.equal(codes, other.codes(w + shift))
        torch.testing.assert_close(other.values(codes), one.values(codes) + shift, rtol=0, atol=1e-12)

    @declaring("falls")
    def test_rule_22_the_error_falls_with_bits(self, name, bits):
        w = torch.from_numpy(np.random.default_rng(0).standard_normal(20_000))

        def error(b: int) -> float:
            grid = get(name, b).fit(w)
            return float((w - grid.values(grid.codes(w))).abs().mean())

        assert error(bits) < (error(bits - 1) if bits > 1 else float(w.abs().mean()))


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_rule_22_ties_go_to_the_lower_code(name, bits):
    quantizer = get(name, bits)
    std = np.float32(1) - np.float32(EPS)
    grid = quantizer.grid(torch.tensor([0.0, std]), (1, 2))
    assert grid.table[1] + EPS == 1  # so that a weight of this grid is its standardised self
    boundaries = torch.tensor(quantizer.codebook().boundaries, dtype=torch.float32).unique()
    above = torch.nextafter(boundaries, torch.tensor(math.inf))
    assert (grid.codes(boundaries) < grid.codes(above)).all()
    if bits <= 4:
        assert grid.codes(boundaries).tolist() == list(range(2**bits - 1))


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_the_forward_pass_is_the_formula(name, bits):
    w = sample(3, std=0.02, mean=0.004)
    x, book = w.numpy(), get(name, bits).codebook()
    z = (x - x.mean()) / (x.std(ddof=1) + 1e-5)
    q = book.values[0] + sum(
        (z > r) * (v - u) for r, u, v in zip(book.boundaries, book.values, book.values[1:], strict=False)
    )
    grid = get(name, bits).fit(w)
    np.testing.assert_allclose(grid.values(grid.codes(w)).numpy(), q * x.std(ddof=1) + x.mean(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_a_grid_comes_back_from_its_statistics(name, bits):
    w = sample(4, std=0.02, dtype=torch.float32)
    grid = get(name, bits).fit(w)
    again = get(name, bits).grid(grid.statistics, tuple(w.shape))
    assert grid.statistics.dtype == torch.float32
    assert grid.codes(w).dtype == torch.uint8
    assert torch.equal(again.codes(w), grid.codes(w))
    assert torch.equal(again.values(grid.codes(w)), grid.values(grid.codes(w)))


@pytest.mark.parametrize(("name", "bits"), EVERY)
@pytest.mark.parametrize(
    "w",
    [
        torch.full((7, 11), 0.1),
        torch.full((77, 131), 1 / 3),
        torch.full((5003,), -7e-4),
        torch.tensor([[-3.25]]),
        torch.zeros(5, 3),
    ],
)
def test_a_constant_matrix_keeps_its_value(name, bits, w):
    grid = get(name, bits).fit(w)
    assert torch.equal(grid.values(grid.codes(w)), w)
    assert grid.statistics[1] == 0
    again = get(name, bits).grid(grid.statistics, tuple(w.shape))
    assert torch.equal(again.values(again.codes(w)), w)


def test_below_its_stated_deviation_the_identity_is_lost_to_eps():
    codes = torch.arange(256, dtype=torch.uint8)
    lost, kept = (get("gaussian_l1", 8).grid(torch.tensor([0.0, s]), (256,)) for s in (1.0e-3, 1.4e-3))
    assert not torch.equal(lost.codes(lost.values(codes)), codes)
    assert torch.equal(kept.codes(kept.values(codes)), codes)


@pytest.mark.parametrize(
    ("w", "found"),
    [
        (torch.tensor([1.0, math.nan]), "found values from nan"),
        (torch.tensor([1.0, -math.inf]), "found values from -inf"),
        (torch.tensor([3e38, -3e38, 3e38]), "standard deviation inf"),
        (torch.empty(0, 4), r"shape \(0, 4\)"),
        (torch.arange(4), "torch.int64"),
    ],
)
def test_what_no_grid_fits_is_refused(w, found):
    with pytest.raises(QuantError, match=found):
        get("gaussian_l1", 2).fit(w)


def test_a_nan_has_no_code():
    with pytest.raises(QuantError, match="1 NaN of 2"):
        get("gaussian_l1", 2).fit(torch.randn(9)).codes(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("statistics", [[0.0], [0.0, -1.0], [math.nan, 1.0], [0.0, math.inf], [[0.0, 1.0]]])
def test_statistics_that_make_no_grid_are_refused(statistics):
    with pytest.raises(QuantError, match="mean"):
        get("gaussian_l1", 2).grid(torch.tensor(statistics), (9,))


def test_a_wrong_name_meets_the_nearest():
    with pytest.raises(QuantError, match=r"unknown quantizer 'gausian_l1'.*nearest: gaussian_l1"):
        get("gausian_l1", 2)
    assert {"gaussian_l1", "gaussian_l2", "released"} <= set(names())
