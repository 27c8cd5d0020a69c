"""Every registered quantiser keeps the laws it declares (rule 22), and its grid is what is stored of it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.quantizers import get, names, widths
from quant.quantizers._affine import EPS, Affine, Standardised
from quant.quantizers.base import LAWS

EVERY = [(name, bits) for name in names() for bits in widths(name)]
STANDARDISED = [(name, bits) for name, bits in EVERY if isinstance(get(name, bits), Standardised)]
SCOPED = [(name, bits) for name, bits in EVERY if get(name, bits).scoped and bits in {1, 2, 4}]


def sample(seed: int, *, std: float = 1.0, mean: float = 0.0, n: int = 300, dtype=torch.float64) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    draw = rng.choice([rng.standard_normal(n), rng.laplace(size=n), rng.uniform(-1, 1, n)])
    return torch.from_numpy(draw * std + mean).to(dtype).reshape(20, -1)


def quantised(q, w):
    grid = q.fit(w)
    return grid.values(grid.codes(w))


def monotone(q, seed, size, shift, factor):
    w = sample(seed, std=size, mean=shift * size, dtype=torch.float32).flatten().sort().values
    codes = q.fit(w).codes(w).int()
    each = codes if q.elementwise else codes.repeat_interleave(4)[: w.numel()]
    assert int(codes.max()) < q.levels
    return bool((each.diff() >= 0).all()) and q.elementwise


def identity(q, seed, size, shift, factor):
    w = sample(seed, std=size, mean=shift * size, dtype=torch.float32)
    grid = q.fit(w)
    if q.elementwise:
        codes = torch.arange(q.levels, dtype=torch.uint8)
    else:
        runs = q.codes_shape(tuple(w.shape))[0]
        codes = torch.arange(runs).remainder(min(q.levels, runs)).to(torch.uint8)
    return torch.equal(grid.codes(grid.values(codes)), codes)


def nearest(q, seed, size, shift, factor):
    w = sample(seed, std=max(size, 1.0))
    grid = q.fit(w)
    slack = 8 * 2 * EPS + 1e-8 * size  # eps moves a boundary by EPS times a standardised weight
    if q.elementwise:
        values = grid.values(torch.arange(q.levels, dtype=torch.uint8))
        found, brute = (w - grid.values(grid.codes(w))).abs(), (w[..., None] - values).abs().amin(-1)
    else:
        runs, vectors = w.reshape(-1, 4), grid.table.view(-1, 4)
        found = (runs - grid.values(grid.codes(w)).reshape(-1, 4)).norm(dim=1)
        brute = (runs[:, None] - vectors).norm(dim=2).amin(1)
    return bool((found <= brute + slack).all())


def scale(q, seed, size, shift, factor):
    w = sample(seed, std=1e6 if isinstance(q, Standardised) else size)  # eps is nothing here
    one, other = q.fit(w), q.fit(w * factor)
    codes = one.codes(w)
    near = torch.allclose(
        other.values(codes), one.values(codes) * factor, rtol=1e-9, atol=1e-9 * factor * float(w.std())
    )
    return torch.equal(codes, other.codes(w * factor)) and near


def shift(q, seed, size, shift, factor):
    w = sample(seed)
    one, other = q.fit(w), q.fit(w + shift)
    codes = one.codes(w)
    near = torch.allclose(other.values(codes), one.values(codes) + shift, rtol=0, atol=1e-12)
    return torch.equal(codes, other.codes(w + shift)) and near


@lru_cache
def error_on_normal_weights(name, bits):
    n = 20_000 if isinstance(get(name, widths(name)[0]), Affine) else 1500 if name == "pq" else 500
    w = 0.02 * torch.from_numpy(np.random.default_rng(0).standard_normal(n))
    if bits not in widths(name):
        return float((w - w.mean()).abs().mean())
    return float((w - quantised(get(name, bits), w)).abs().mean())


def falls(q, *_):
    return error_on_normal_weights(q.kind, q.bits) < 0.99 * error_on_normal_weights(q.kind, q.bits - 1)


CHECKS = {f.__name__: f for f in (monotone, identity, nearest, scale, shift, falls)}


class TestLaws:
    """Rule 22: what a quantiser declares holds, and what it does not declare fails somewhere."""

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_what_it_says_of_itself(self, name, bits):
        q = get(name, bits)
        assert q.laws <= set(LAWS) == set(CHECKS)
        assert (q.name, q.kind, q.bits) == (name, name, bits)
        assert q.levels <= 2**bits
        assert q.formula
        assert q.source

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_rule_22_declared_laws_hold(self, name, bits):
        q = get(name, bits)
        assert "falls" not in q.laws or falls(q)

        @settings(max_examples=4 if isinstance(q, Affine) else 1, deadline=None)
        @given(
            seed=st.integers(0, 2**31),
            log_std=st.floats(-2, 4),
            shift=st.floats(-5, 5),
            factor=st.floats(0.1, 1e4),
        )
        def hold(seed, log_std, shift, factor):
            for law in q.laws - {"falls"}:
                assert CHECKS[law](q, seed, 10**log_std, shift, factor), law

        hold()

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_rule_22_declared_laws_hold_for_many_seeds(self, name, bits):
        q, rng = get(name, bits), np.random.default_rng(0)
        for seed in range(100 if isinstance(q, Affine) else 10):
            size, shift, factor = 10 ** rng.uniform(-2, 4), rng.uniform(-5, 5), 10 ** rng.uniform(-1, 4)
            for law in q.laws - {"falls"}:
                assert CHECKS[law](q, seed, size, shift, factor), law

    @pytest.mark.parametrize(
        ("name", "bits", "law"), [(n, b, law) for n, b in EVERY for law in sorted(set(LAWS) - get(n, b).laws)]
    )
    def test_rule_22_what_is_not_declared_fails_somewhere(self, name, bits, law):
        q = get(name, bits)
        trials = [(seed, size, 3.0, 10.0) for seed in range(6) for size in (0.01, 1.0, 100.0)]
        assert not all(CHECKS[law](q, *trial) for trial in trials)

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_monotone_at_every_size(self, name, bits):
        if "monotone" in get(name, bits).laws:
            for log_std in (-6, -4, 6):
                assert monotone(get(name, bits), 0, 10.0**log_std, 1.0, 1.0)


@pytest.mark.parametrize(("name", "bits"), [(n, b) for n, b in EVERY if isinstance(get(n, b), Affine)])
def test_rule_22_ties_go_to_the_lower_code(name, bits):
    """A weight that the grid sees exactly on a boundary, and the next float above it."""
    q = get(name, bits)
    std = np.float32(1) - np.float32(EPS) if isinstance(q, Standardised) else 1.0
    statistics = {1: [std], 2: [0.0, std], 3: [0.0, std, 0.5]}[len(q.statistic_names)]
    boundaries = torch.tensor(q.codebook().boundaries, dtype=torch.float32).unique()
    if name == "twn":
        statistics, boundaries = [1.0, 0.5], torch.tensor([-0.5, 0.5])
    if name == "dorefa" and bits > 1:
        statistics = [1e-4]  # where tanh is the identity, and the rounding of the tie that of one division
        z = q.standardised(boundaries[None] * 1e-4, torch.tensor([[1e-4]]))[0]
        on = torch.bucketize(z, boundaries)
        assert (on - torch.arange(len(boundaries))).abs().max() <= 1
        return
    grid = q.grid(torch.tensor(statistics), (1, 2))
    if isinstance(q, Standardised):
        assert grid.table[1] + EPS == 1  # so that a weight of this grid is its standardised self
    above = torch.nextafter(boundaries, torch.tensor(math.inf))
    assert (grid.codes(boundaries) < grid.codes(above)).all()
    if bits <= 4:
        assert grid.codes(boundaries).tolist() == list(range(q.levels - 1))


@pytest.mark.parametrize(("name", "bits"), STANDARDISED)
def test_the_forward_pass_is_the_formula(name, bits):
    w = sample(3, std=0.02, mean=0.004)
    x, book = w.numpy(), get(name, bits).codebook()
    z = (x - x.mean()) / (x.std(ddof=1) + 1e-5)
    q = book.values[0] + sum(
        (z > r) * (v - u) for r, u, v in zip(book.boundaries, book.values, book.values[1:], strict=False)
    )
    np.testing.assert_allclose(quantised(get(name, bits), w).numpy(), q * x.std(ddof=1) + x.mean(), rtol=0, atol=1e-15)


class TestStored:
    """What a file holds of a grid is the grid."""

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    @pytest.mark.parametrize("suffix", ["", "/f16"])
    def test_a_grid_comes_back_from_its_statistics(self, name, bits, suffix):
        w, q = sample(4, std=0.02, dtype=torch.float32), get(name + suffix, bits)
        grid = q.fit(w)
        codes, statistics = grid.codes(w), grid.statistics
        again = q.grid(statistics, tuple(w.shape))
        assert statistics.dtype == torch.float32
        assert statistics.shape == (q.statistics_count(tuple(w.shape)),)
        assert codes.dtype == torch.uint8
        assert codes.shape == q.codes_shape(tuple(w.shape))
        assert grid.values(codes).shape == w.shape
        assert torch.equal(again.codes(w), codes)
        assert torch.equal(again.values(codes), grid.values(codes))
        if suffix:
            assert q.stored == "float16"
            assert torch.equal(statistics, statistics.half().float())
            plain = get(name, bits).fit(w).statistics
            torch.testing.assert_close(statistics, plain, rtol=2**-11, atol=2**-25)

    @pytest.mark.parametrize(("name", "bits"), SCOPED)
    @pytest.mark.parametrize("scope", ["row", "group37", "group299", "group5000"])
    def test_a_group_is_a_tensor_of_its_own(self, name, bits, scope):
        w = sample(5, std=0.02, dtype=torch.float32)
        q, alone = get(f"{name}/{scope}", bits), get(name, bits)
        parts = list(w) if scope == "row" else list(w.flatten().split(int(scope[5:])))
        grids = [alone.fit(part) for part in parts]
        grid = q.fit(w)
        codes = torch.cat([g.codes(part) for g, part in zip(grids, parts, strict=True)]).view(w.shape)
        values = torch.cat([g.values(g.codes(part)) for g, part in zip(grids, parts, strict=True)]).view(w.shape)
        torch.testing.assert_close(grid.statistics, torch.stack([g.statistics for g in grids], 1).flatten())
        if alone.kind != "ecu":  # whose search may pick its neighbour where rounding differs
            assert (grid.codes(w) != codes).sum() <= 1
            torch.testing.assert_close(grid.values(codes), values)
        assert torch.equal(q.grid(grid.statistics, tuple(w.shape)).codes(w), grid.codes(w))
        assert q.name == f"{name}/{scope}"

    def test_statistics_are_counted(self):
        assert get("gaussian_l1", 1).statistics_count((768, 4)) == 2
        assert get("gaussian_l1/row", 1).statistics_count((768, 4)) == 2 * 768
        assert get("gaussian_l1/row", 1).statistics_count((768,)) == 2
        assert get("nf/group64/f16", 4).statistics_count((10, 13)) == 3
        assert get("kmeans/row", 3).statistics_count((5, 2, 3)) == 5 * 8
        assert get("pq", 3).statistics_count((8, 5)) == 4 * 8
        assert get("pq", 3).statistics_count((5, 3)) == 4 * 4
        assert get("pq", 3).codes_shape((5, 3)) == (4,)

    def test_several_grids_need_their_shape(self):
        with pytest.raises(QuantError, match=r"as many weights as the grids were fitted to, \(20, 15\), found \(3,\)"):
            get("bwn/row", 1).fit(sample(0)).codes(torch.ones(3))


class TestOddTensors:
    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_a_constant_matrix_keeps_its_value(self, name, bits):
        constant = (
            torch.full((7, 11), 0.1),
            torch.full((17, 13), 1 / 3),
            torch.full((503,), -7e-4),
            torch.tensor([[-3.25]]),
            torch.zeros(5, 3),
        )
        for suffix in ("", "/row", "/group3") if get(name, bits).scoped else ("",):
            q = get(name + suffix, bits)
            for w in constant:
                grid = q.fit(w)
                assert torch.equal(grid.values(grid.codes(w)), w)
                again = q.grid(grid.statistics, tuple(w.shape))
                assert torch.equal(again.values(again.codes(w)), w)

    @pytest.mark.parametrize("name", names())
    def test_without_axes_and_of_few_entries(self, name):
        q = get(name, widths(name)[-1])
        for w in (torch.tensor(2.5), torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [-1.0], [2.0]])):
            assert quantised(q, w).shape == w.shape

    @pytest.mark.parametrize("name", names())
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_dtypes(self, name, dtype):
        q, w = get(name, widths(name)[-1]), sample(0, dtype=dtype)
        grid = q.fit(w)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert grid.values(grid.codes(w)).dtype == wide
        assert torch.equal(grid.codes(w), q.fit(w.to(wide)).codes(w.to(wide)))

    @pytest.mark.parametrize("name", names())
    @pytest.mark.parametrize(
        ("w", "found"),
        [
            (torch.tensor([1.0, math.nan, 3, 4, 5]), "finite weights, found values from nan"),
            (torch.tensor([1.0, -math.inf, 3, 4, 5]), "finite weights, found values from -inf"),
            (torch.tensor([1.0, math.inf, 3, 4, math.nan]), "finite weights, found values from nan"),
            (torch.empty(0, 4), r"with entries, found torch.float32 of shape \(0, 4\)"),
            (torch.arange(4), "tensor of floats with entries, found torch.int64"),
        ],
    )
    def test_what_no_grid_fits_is_refused(self, name, w, found):
        for bits in widths(name):
            with pytest.raises(QuantError, match=found):
                get(name, bits).fit(w)

    def test_statistics_that_overflow_are_refused(self):
        with pytest.raises(QuantError, match=r"statistics float32 can hold.*standard deviation inf"):
            get("gaussian_l1", 2).fit(torch.tensor([3e38, -3e38, 3e38]))
        with pytest.raises(QuantError, match="statistics float16 can hold, found values from -1e"):
            get("bwn/f16", 1).fit(torch.tensor([1e5, -1e5]))

    @pytest.mark.parametrize("name", names())
    def test_a_nan_has_no_code_and_an_infinity_the_outermost(self, name):
        q = get(name, widths(name)[-1])
        grid = q.fit(sample(0))
        with pytest.raises(QuantError, match="1 NaN of 2"):
            grid.codes(torch.tensor([0.0, math.nan]))
        if q.elementwise:
            assert grid.codes(torch.tensor([-math.inf, math.inf])).tolist() == [0, q.levels - 1]


class TestRefused:
    @pytest.mark.parametrize("statistics", [[0.0], [0.0, -1.0], [math.nan, 1.0], [0.0, math.inf], [[0.0, 1.0]]])
    def test_statistics_that_make_no_grid(self, statistics):
        with pytest.raises(QuantError, match="mean"):
            get("gaussian_l1", 2).grid(torch.tensor(statistics), (9,))

    @pytest.mark.parametrize(("name", "bits"), EVERY)
    def test_statistics_of_another_count_or_sign(self, name, bits):
        q = get(name, bits)
        count = q.statistics_count((9, 9))
        with pytest.raises(QuantError, match=f"expected {count} float32 statistics"):
            q.grid(torch.ones(count + 1), (9, 9))
        with pytest.raises(QuantError, match="all finite, found"):
            q.grid(torch.full((count,), math.nan), (9, 9))
        if name != "pq":
            with pytest.raises(QuantError, match=r"expected statistics .* (at least 0|ascending), found"):
                q.grid(-torch.arange(1.0, count + 1), (9, 9))

    def test_names(self):
        with pytest.raises(QuantError, match=r"unknown quantizer 'gausian_l1'.*nearest: gaussian_l1"):
            get("gausian_l1", 2)
        for name in (
            "nf/rows",
            "nf/group0",
            "nf/group",
            "nf/f16/row",
            "nf/",
            "nf/row/f16/",
            "nf/group064",
            "nf/group-1",
        ):
            with pytest.raises(QuantError, match=r"expected a quantizer NAME\[/row\|/group<N>\]\[/f16\], found"):
                get(name, 4)
        for bits in (0, 9, 2.0, True):
            with pytest.raises(QuantError, match="expected bits from 1 to 8, found"):
                get.__wrapped__("gaussian_l1", bits)

    @pytest.mark.parametrize(
        ("name", "bits", "expected"), [("nf", 1, "2 to 8"), ("ternary", 3, "2"), ("bwn", 2, "1"), ("lsq", 1, "2 to 8")]
    )
    def test_bits_that_it_does_not_have(self, name, bits, expected):
        with pytest.raises(QuantError, match=f"expected bits of {name}: {expected}, found {bits}"):
            get(name, bits)

    def test_a_scope_that_it_does_not_have(self):
        with pytest.raises(QuantError, match="expected pq of the whole tensor, found /row"):
            get("pq/row", 2)


def test_below_its_stated_deviation_the_identity_is_lost_to_eps():
    codes = torch.arange(256, dtype=torch.uint8)
    lost, kept = (get("gaussian_l1", 8).grid(torch.tensor([0.0, s]), (256,)) for s in (1.0e-3, 1.4e-3))
    assert not torch.equal(lost.codes(lost.values(codes)), codes)
    assert torch.equal(kept.codes(kept.values(codes)), codes)
