"""Planted repeats are found, independent units are not: the share of false findings under the null by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from quant.errors import QuantError
from quant.units import Likeness, count_units, likeness


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fair_bits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("side", ["down", "up", "both"])
@pytest.mark.parametrize("bits", [True, False])
def test_independent_units_are_rarely_called_dependent(side, bits):
    """The family-wise rate under the null is at most alpha, and not far below it: 100 pairs of matrices."""
    draw = fair_bits if bits else gaussian
    found = [
        count_units(likeness(draw(8, 48, seed=2 * i), draw(48, 8, seed=2 * i + 1), side, bits=bits), alpha=0.2)
        for i in range(100)
    ]
    rate = np.mean([f["dependent_pairs"] > 0 for f in found])
    assert rate <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 100)
    assert rate >= 0.05
    assert all(f["distinct_units"] == 8 - f["dependent_pairs"] for f in found if f["dependent_pairs"] < 2)


@pytest.mark.parametrize("shape", [(6, 40), (6, 7)])
def test_the_threshold_of_cosines_against_its_law_integrated(shape):
    """Density of a cosine in d dimensions: (1 - c^2)^((d - 3) / 2), by a sum."""
    h, d = shape
    found = likeness(gaussian(h, d), gaussian(d, h), "down")
    assert found.size == d
    c = np.linspace(-1, 1, 100_001)
    density = (1 - c**2) ** ((d - 3) / 2)
    t = found.threshold(0.05)
    tail = density[np.abs(c) >= t].sum() / density.sum()
    assert tail == pytest.approx(0.05 / (h * (h - 1) / 2), rel=1e-3)


def test_the_threshold_of_agreements_against_all_patterns():
    """Ten fair bits: the least agreement, or disagreement, whose probability is small enough, counted out."""
    counts = np.array([sum(p) for p in itertools.product((0, 1), repeat=10)])
    cosine = np.abs(2 * counts / 10 - 1)
    alpha = 0.3
    allowed = [t for t in sorted(set(cosine)) if (cosine >= t - 1e-9).mean() <= alpha / 3]
    assert likeness(fair_bits(3, 10), fair_bits(4, 3), "down", bits=True).threshold(alpha) == pytest.approx(allowed[0])


def test_planted_repeats_are_found_their_signs_too():
    down, up = gaussian(10, 60), gaussian(50, 10, seed=1)
    down[3], up[:, 3] = 4 * down[7], up[:, 7] / 4  # the same unit, scaled
    down[5], up[:, 5] = -down[1], -up[:, 1]  # its opposite
    found = count_units(likeness(down, up))
    assert (found["dependent_pairs"], found["opposite_pairs"], found["same_pairs"]) == (2, 1, 2)
    assert found["distinct_units"] == found["different_units"] == 8
    assert found["largest"] == pytest.approx(1)
    assert found["pairs"] == 45


def test_planted_repeats_of_codes():
    down, up = fair_bits(12, 200), fair_bits(200, 12, seed=1)
    down[4] = down[2]
    down[4, :20] = 1 - down[4, :20]  # 90 % agree: 80 % of a cosine
    up[:, 4] = up[:, 2]
    down[9], up[:, 9] = 1 - down[0], 1 - up[:, 0]
    both = likeness(down, up, bits=True)
    assert both.cosines[2, 4] == pytest.approx(2 * (180 + 200) / 400 - 1)
    found = count_units(both, same=0.95)
    assert (found["dependent_pairs"], found["opposite_pairs"]) == (2, 1)
    assert (found["distinct_units"], found["same_pairs"], found["different_units"]) == (10, 1, 11)


def test_a_chain_is_no_group():
    """60 degrees apart along a chain of three: the ends are opposite in the plane, so no group of three at .4."""
    angles = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) * math.pi / 3.2
    found = likeness(torch.stack([angles.cos(), angles.sin()], dim=1), torch.ones(1, 3), "down")
    assert len(set(found.groups(0.5))) == 2


@pytest.mark.parametrize("bits", [True, False])
def test_the_null_of_a_histogram(bits):
    """Shares of the bins add up to 1 and are those of drawn units."""
    draw = fair_bits if bits else gaussian
    found = likeness(draw(60, 40), draw(40, 60, seed=1), bits=bits)
    edges = np.linspace(-1, 1, 17)
    shares = found.null_shares(edges)
    assert shares.sum() == pytest.approx(1)
    counts = np.histogram(found.pairs, edges)[0]
    assert counts / counts.sum() == pytest.approx(shares, abs=0.05)
    assert stats.entropy(shares) > 0


def test_the_size_of_both_halves_is_that_of_the_means_variance():
    found = likeness(gaussian(200, 30), gaussian(90, 200, seed=1))
    assert found.size == pytest.approx(4 / (1 / 30 + 1 / 90))
    assert found.pairs.var() == pytest.approx(1 / found.size, rel=0.05)


def test_one_unit_units_without_weights_and_what_does_not_fit():
    one = count_units(likeness(gaussian(1, 5), gaussian(5, 1)))
    assert (one["units"], one["distinct_units"], one["dependent_pairs"]) == (1, 1, 0)
    down = gaussian(3, 9)
    down[1] = 0
    assert likeness(down, torch.zeros(4, 3)).cosines[1].tolist() == [0, 0, 0]
    assert Likeness(cosines=np.ones((3, 3)), size=1, null="directions").threshold() > 1
    assert likeness(fair_bits(3, 4), fair_bits(4, 3), "down", bits=True).threshold() > 1
    with pytest.raises(QuantError, match=r"found \(3, 9\), \(4, 2\)"):
        likeness(down, torch.zeros(4, 2))
    with pytest.raises(QuantError, match="one bit"):
        likeness(torch.full((3, 9), 2), torch.zeros(4, 3), bits=True)
