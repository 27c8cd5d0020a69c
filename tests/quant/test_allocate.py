"""Bytes shared out among matrices, against all allocations there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.allocate import allocate
from quant.errors import QuantError

COST = st.tuples(st.integers(0, 30), st.integers(0, 50).map(float))
MATRIX = st.dictionaries(st.integers(1, 8), COST, min_size=1, max_size=5)
MATRICES = st.dictionaries(st.sampled_from("abc"), MATRIX, min_size=1, max_size=3)


def every(choices):
    """(bytes, damage) of all allocations."""
    for combination in itertools.product(*(of.values() for of in choices.values())):
        yield sum(b for b, _ in combination), sum(d for _, d in combination)


@given(MATRICES, st.integers(0, 100))
def test_it_fits_and_no_allocation_of_its_price_is_better(choices, budget):
    if min(b for b, _ in every(choices)) > budget:
        with pytest.raises(QuantError, match="at least"):
            allocate(choices, budget)
        return
    found = allocate(choices, budget)
    own = [choices[name][choice] for name, choice in found.chosen.items()]
    assert (found.nbytes, found.damage) == (sum(b for b, _ in own), sum(d for _, d in own))
    assert found.nbytes <= budget
    best = min(d for b, d in every(choices) if b <= budget)
    # Lagrangian duality: no allocation beats the line of this price through the budget
    bound = min(d + found.price * b for b, d in every(choices)) - found.price * budget
    assert best >= bound - 1e-9
    dearest = max(b for of in choices.values() for b, _ in of.values())
    assert found.damage - best <= found.price * dearest + 1e-9
    if found.price == 0:
        assert found.damage == best


def test_convex_choices_are_shared_out_as_by_brute_force():
    choices = {
        name: {b: (10 * b, scale * 4.0**-b) for b in range(1, 9)}
        for name, scale in zip("abc", (1, 30, 900), strict=True)
    }
    for budget in range(30, 241, 10):
        found = allocate(choices, budget)
        assert found.damage == pytest.approx(min(d for b, d in every(choices) if b <= budget))
    assert allocate(choices, 90).chosen == {"a": 1, "b": 3, "c": 5}


def test_a_matrix_without_choices_or_with_nan_is_refused():
    with pytest.raises(QuantError, match="at least one choice of a"):
        allocate({"a": {}}, 10)
    with pytest.raises(QuantError, match="NaN"):
        allocate({"a": {1: (1, float("nan"))}}, 10)
