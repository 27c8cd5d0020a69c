"""Quantisers against formulas written out, and exact ones against every assignment of levels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quant.quantizers._clusters as clusters
import quant.quantizers._scale as scales
from quant.quantizers import get

few = settings(max_examples=15, deadline=None)
weights = st.lists(st.integers(-12, 12).map(float) | st.floats(-3, 3, width=32), min_size=1, max_size=6)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def error(name: str, bits: int, w: torch.Tensor, power: int = 2) -> float:
    grid = get(name, bits).fit(w)
    return float((w - grid.values(grid.codes(w))).abs().pow(power).sum())


def every_assignment(x: np.ndarray, levels: np.ndarray) -> float:
    """Least squared error of s v over all s >= 0 and all assignments of levels v."""
    v = np.array(list(itertools.product(levels, repeat=x.size)))
    a, b = v @ x, (v * v).sum(axis=1)
    gain = np.where((a > 0) & (b > 0), a * a / np.maximum(b, 1e-300), 0.0)
    return float(x @ x - gain.max())


class TestExactScale:
    """The error is that of the best of all scales and all assignments."""

    @pytest.mark.parametrize(
        ("name", "bits", "levels"), [("bwn", 1, [-1, 1]), ("ternary", 2, [-1, 0, 1]), ("lsq", 2, [-2, -1, 0, 1])]
    )
    @few
    @given(values=weights)
    def test_about_zero(self, name, bits, levels, values):
        w = tensor(values)
        best = every_assignment(w.numpy(), np.array(levels, dtype=float))
        assert error(name, bits, w) == pytest.approx(best, abs=1e-9)

    @pytest.mark.parametrize("bits", [1, 2])
    @few
    @given(values=weights)
    def test_about_the_mean(self, bits, values):
        w = tensor(values)
        levels = np.arange(2**bits) - (2**bits - 1) / 2
        rest = (w - w.mean()).numpy()
        best = min(every_assignment(rest, levels), float(rest @ rest) if not rest.any() else math.inf)
        assert error("uniform_mse", bits, w) == pytest.approx(best, abs=1e-9)

    @pytest.mark.parametrize("bits", [3, 5, 8])
    @pytest.mark.parametrize("name", ["uniform_mse", "lsq"])
    def test_no_scale_of_many_is_better(self, name, bits):
        w = torch.from_numpy(np.random.default_rng(bits).laplace(size=150))
        levels = get(name, bits).codebook().values
        x = (w - w.mean() if name == "uniform_mse" else w).numpy()
        tried = np.abs(x).max() / np.abs(levels).max() * np.linspace(0.05, 2, 1500)
        scanned = min(float((np.abs(x[:, None] - s * levels).min(axis=1) ** 2).sum()) for s in tried)
        assert error(name, bits, w) <= scanned * (1 + 1e-12)

    @pytest.mark.parametrize(("name", "bits"), [("uniform_mse", 2), ("uniform_mse", 6), ("lsq", 4), ("ternary", 2)])
    def test_large_groups_walk_around_the_best_of_many(self, name, bits, monkeypatch):
        w = torch.from_numpy(np.random.default_rng(0).standard_t(4, 3000))
        whole = error(name, bits, w)
        monkeypatch.setattr(scales, "_EVENTS", 100)
        assert error(name, bits, w) == pytest.approx(whole, rel=1e-6)


class TestClusters:
    @pytest.mark.parametrize(("name", "power"), [("kmeans", 2), ("kmedians", 1)])
    @pytest.mark.parametrize("bits", [1, 2])
    @few
    @given(values=st.lists(st.integers(-9, 9).map(float) | st.floats(-3, 3, width=32), min_size=1, max_size=9))
    def test_the_optimum_over_all_partitions(self, name, power, bits, values):
        x = np.sort(values)
        parts = min(2**bits, x.size)
        centre = np.mean if name == "kmeans" else np.median
        best = min(
            sum((np.abs(part - centre(part)) ** power).sum() for part in np.split(x, cuts))
            for cuts in itertools.combinations(range(1, x.size), parts - 1)
        )
        assert error(name, bits, tensor(values), power) == pytest.approx(best, abs=1e-9)

    @pytest.mark.parametrize(("name", "power"), [("kmeans", 2), ("kmedians", 1)])
    @pytest.mark.parametrize("bits", [2, 5])
    def test_both_ways_through_the_layers_agree(self, name, power, bits, monkeypatch):
        w = torch.from_numpy(np.random.default_rng(1).laplace(size=300))
        pairs = error(name, bits, w, power)
        monkeypatch.setattr(clusters, "_PAIRS", 0)
        assert error(name, bits, w, power) == pytest.approx(pairs, rel=1e-12)

    @pytest.mark.parametrize(("name", "power"), [("kmeans", 2), ("kmedians", 1)])
    @pytest.mark.parametrize("bits", [1, 4, 6])
    def test_of_many_weights_it_is_all_but_the_optimum(self, name, power, bits, monkeypatch):
        w = torch.from_numpy(np.random.default_rng(2).standard_t(3, 2000))
        exact = error(name, bits, w, power)
        monkeypatch.setattr(clusters, "_PLACES", 512)
        assert exact <= error(name, bits, w, power) <= exact * 1.002


def test_published_values():
    """bitsandbytes' NF4 table."""
    nf4 = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    grid = get("nf", 4).fit(torch.tensor([2.0, -1.0]))
    np.testing.assert_allclose(grid.values(torch.arange(16, dtype=torch.uint8)) / 2, nf4, atol=3e-5)


@pytest.mark.parametrize("seed", range(3))
def test_formulas_written_out(seed):
    w = np.random.default_rng(seed).standard_normal(200) * 0.3 + 0.05
    mean = np.abs(w).mean()
    beyond = np.abs(w) > 0.7 * mean
    dorefa = np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5
    low, high = w.min(), w.max()
    expected = {
        ("bwn", 1): np.sign(w) * mean,
        ("twn", 2): np.sign(w) * beyond * np.abs(w)[beyond].mean(),
        ("absmean", 2): mean * np.clip(np.round(w / mean), -1, 1),
        ("dorefa", 1): np.sign(w) * mean,
        ("dorefa", 3): np.abs(w).max() * (2 * np.round(7 * dorefa) / 7 - 1),
        ("uniform_minmax", 5): low + np.round((w - low) / (high - low) * 31) / 31 * (high - low),
    }
    for (name, bits), values in expected.items():
        grid = get(name, bits).fit(torch.from_numpy(w))
        np.testing.assert_allclose(grid.values(grid.codes(torch.from_numpy(w))).numpy(), values, rtol=0, atol=1e-14)


class TestEntropyConstrained:
    @staticmethod
    def cost(w: np.ndarray, step: float, threshold: float, bits: int) -> tuple[float, float]:
        """Mean squared error in variances and entropy in bits, by rounding each weight."""
        z = (w - w.mean()) / step
        most = 2 ** (bits - 1) - 1
        k = np.clip(np.sign(z) * np.maximum(np.ceil(np.abs(z) - threshold), 0), -most, most)
        p = np.unique(k, return_counts=True)[1] / w.size
        return float(((w - w.mean() - step * k) ** 2).mean() / w.var()), float(-(p * np.log2(p)).sum())

    @pytest.mark.parametrize("bits", [2, 4, 6])
    @pytest.mark.parametrize("law", ["normal", "laplace"])
    def test_no_other_step_or_threshold_costs_less(self, bits, law):
        w = getattr(np.random.default_rng(bits), law)(size=2000) + 0.5
        grid = get("ecu", bits).fit(torch.from_numpy(w))
        _, step, threshold = grid.table[:, 0].tolist()
        price = math.log(2) / 6 * 2 * math.pi * math.e * 4.0 ** (1 - bits)
        found = self.cost(w, step, threshold, bits)
        least = found[0] + price * found[1]
        for factor in (0.8, 0.9, 1.12, 1.25):
            other = self.cost(w, step * factor, threshold, bits)
            assert least < other[0] + price * other[1]
        for moved in (-0.1, 0.1, 0.2):
            if threshold + moved >= 0.5:
                other = self.cost(w, step, threshold + moved, bits)
                assert least < other[0] + price * other[1]

    @pytest.mark.parametrize("bits", [3, 5, 8])
    def test_normal_weights_spend_about_a_bit_less(self, bits):
        w = torch.from_numpy(np.random.default_rng(0).standard_normal(20_000))
        codes = get("ecu", bits).fit(w).codes(w)
        p = torch.bincount(codes.flatten().int()).double() / w.numel()
        spent = float(-(p * p.clamp(min=1e-12).log2()).sum())
        assert bits - 1.3 < spent < bits - 0.9
        same_rate = get("gaussian_l2", bits - 1).fit(w)
        lloyd = float((w - same_rate.values(same_rate.codes(w))).square().mean())
        assert error("ecu", bits, w) / w.numel() < lloyd * (1.35 if bits == 3 else 0.9)


class TestProduct:
    def test_the_nearest_vector_is_taken(self):
        w = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 50)))
        grid = get("pq", 4).fit(w)
        vectors, runs = grid.table.view(16, 4).numpy(), w.numpy().reshape(-1, 4)
        expected = ((runs[:, None] - vectors) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(grid.codes(w).numpy(), expected)
        np.testing.assert_array_equal(grid.values(grid.codes(w)).numpy().reshape(-1, 4), vectors[expected])

    def test_vectors_are_the_means_of_their_runs(self):
        w = torch.from_numpy(np.random.default_rng(1).standard_normal(400))
        grid = get("pq", 3).fit(w)
        codes, vectors = grid.codes(w), grid.table.view(8, 4)
        for k in range(8):
            torch.testing.assert_close(w.view(-1, 4)[codes == k].mean(0), vectors[k], rtol=0, atol=0.05)

    @pytest.mark.parametrize("shape", [(5, 3), (2, 4), (3,), (1, 9)])
    def test_with_as_many_vectors_as_runs_nothing_is_lost(self, shape):
        w = torch.from_numpy(np.random.default_rng(2).standard_normal(shape))
        whole = math.prod(shape) // 4 * 4
        grid = get("pq", 3).fit(w)
        values = grid.values(grid.codes(w))
        assert values.shape == w.shape
        assert torch.equal(values.flatten()[:whole], w.flatten()[:whole])
        if whole == 0:
            assert torch.equal(values, w)
