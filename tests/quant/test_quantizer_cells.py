"""Cells by bins against a search, entry by entry, at and beside every boundary."""

import numpy as np
import pytest
import torch

from quant.codebooks import gaussian
from quant.quantizers._cells import Cells

CASES = {
    "1 bit": np.zeros(1),
    "2 bits": gaussian(2).boundaries,
    "8 bits": gaussian(8).boundaries,
    "close": np.array([0, 1e-7, 1, 2, 3]),
    "equal": np.array([0.0, 0, 1, 2, 3]),
    "even": np.arange(7) - 3.0,
    "rough": np.sort(np.random.default_rng(0).normal(size=100)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_as_a_search(case, dtype):
    boundaries = torch.tensor(CASES[case], dtype=dtype)
    beside = [torch.nextafter(boundaries, torch.full_like(boundaries, end)) for end in (-torch.inf, torch.inf)]
    far = torch.tensor([-torch.inf, -1e30, 0, 1e30, torch.inf], dtype=dtype)
    z = torch.cat([boundaries, *beside, far, 4 * torch.randn(10_000, dtype=dtype)]).view(1, -1)
    expected = np.searchsorted(boundaries.numpy(), z.numpy(), side="left")
    assert (Cells(boundaries)(z).numpy() == expected).all()


def test_bins_are_used_where_boundaries_allow():
    assert len(Cells(torch.tensor(CASES["8 bits"])).below)
    assert not len(Cells(torch.tensor(CASES["close"])).below)
