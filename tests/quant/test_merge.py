"""Merged units leave the function as it is; the smaller pair is the best one that brute force finds."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import QuantError
from quant.merge import contributions, eliminate, merge_parallel, output_spectrum, truncate


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relu(down: torch.Tensor, up: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x @ down.T).relu() @ up.T


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((-3, -0.1, 0, 0.02, 1, 2.5))), min_size=1, max_size=9))
def test_merged_units_leave_the_function_equal(units):
    """Units that are multiples of four directions, opposite ones and zeros among them."""
    directions = gaussian(4, 6, seed=0)
    down = torch.stack([a * directions[i] for i, a in units])
    up, x = gaussian(5, len(units), seed=1), gaussian(30, 6, seed=2)
    kept, merged = merge_parallel(down, up)
    assert (relu(down[kept], merged, x) - relu(down, up, x)).abs().max() < 1e-6
    different = {(i, a > 0) for i, a in units if a != 0}
    assert len(kept) == max(len(different), 1)


def test_units_that_are_only_alike_stay():
    down = gaussian(1, 8).repeat(2, 1)
    down[1, 0] += 1e-3
    assert merge_parallel(down, gaussian(4, 2))[0] == [0, 1]
    assert merge_parallel(down, gaussian(4, 2), tolerance=0.1)[0] == [0]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_truncated_product_is_the_nearest_of_its_rank(rank):
    """Eckart and Young: the error is what the other singular values hold; no random pair of that rank is nearer."""
    down, up = gaussian(4, 7), gaussian(6, 4, seed=1)
    new_down, new_up = truncate(down, up, rank)
    assert new_down.shape == (rank, 7)
    assert new_up.shape == (6, rank)
    product = up @ down
    s = torch.linalg.svdvals(product)
    assert float((new_up @ new_down - product).norm()) == pytest.approx(float(s[rank:].norm()))
    exact = truncate(down, up, 4)
    torch.testing.assert_close(exact[1] @ exact[0], product)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_what_is_left_is_fitted_anew_by_least_squares(size):
    """For the units kept, the columns are those of a least-squares fit of the outputs; one step is the best choice."""
    z, up = gaussian(200, 5).relu(), gaussian(6, 5, seed=1)
    kept, new = eliminate(z.T @ z / 200, up, size)
    by_lstsq = torch.linalg.lstsq(z[:, kept], z @ up.T).solution.T
    torch.testing.assert_close(new, by_lstsq, atol=1e-6, rtol=0)
    if size == 4:
        errors = {
            units: float((z[:, units] @ torch.linalg.lstsq(z[:, units], z @ up.T).solution - z @ up.T).norm())
            for units in itertools.combinations(range(5), 4)
        }
        assert tuple(kept) == min(errors, key=lambda units: errors[units])


def test_units_that_repeat_others_go_first_and_cost_nothing():
    """Two hidden units are sums of the others: three are enough, though their moments are singular."""
    z = gaussian(300, 3).relu()
    z = torch.cat([z, z[:, :1] + z[:, 1:2], 2 * z[:, 2:]], dim=1)
    up = gaussian(4, 5)
    kept, new = eliminate(z.T @ z / 300, up, 3)
    torch.testing.assert_close(z[:, kept] @ new.T, z @ up.T, atol=1e-5, rtol=0)
    assert float(output_spectrum(z.T @ z / 300, up)[3:].max()) < 1e-7


def test_contributions_and_the_spectrum_of_outputs_by_hand():
    z, up = gaussian(100, 4), gaussian(7, 4, seed=1)
    moments = z.T @ z / 100
    by_hand = [(z[:, j, None] * up[:, j]).square().sum(dim=1).mean().sqrt() for j in range(4)]
    torch.testing.assert_close(contributions(moments, up), torch.stack(by_hand))
    outputs = torch.linalg.svdvals(z @ up.T) / 10
    torch.testing.assert_close(output_spectrum(moments, up), outputs[:4])


def test_dead_units_and_what_does_not_fit():
    kept, up = eliminate(torch.zeros(3, 3), gaussian(2, 3), 1)
    assert len(kept) == 1
    assert up.shape == (2, 1)
    assert merge_parallel(torch.zeros(3, 4), gaussian(2, 3))[0] == [0]
    with pytest.raises(QuantError, match="from 1 to 3, found 4"):
        eliminate(torch.eye(3), gaussian(2, 3), 4)
    with pytest.raises(QuantError, match="moments of 3"):
        contributions(torch.eye(2), gaussian(2, 3))
