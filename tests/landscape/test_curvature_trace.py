"""Stochastic traces against explicit matrices, literal formulas and the dense Hessian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_oracles import Explicit, case, dense_hessian, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import LandscapeError, Objective, Space
from landscape.curvature import Hessian, hutch_pp, hutchinson, xtrace
from landscape.curvature.basis import random_vector
from landscape.curvature.operator import Operator

METHODS = {"hutchinson": hutchinson, "hutch_pp": hutch_pp, "xtrace": xtrace}
DECAYING = [10 * 0.8**i for i in range(60)]
FLAT = [*np.random.default_rng(1).uniform(-1, 3, 60)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.integers(0, 1000))
def test_random_signs_are_exact_for_a_diagonal_matrix(values: list[float], seed: int):
    """Rule 19."""
    found = hutchinson(Explicit(torch.diag(torch.tensor(values, dtype=torch.float64))), seed=seed)
    assert found.value == pytest.approx(sum(values), abs=1e-10)
    assert found.se == pytest.approx(0, abs=1e-10)
    assert found.status == "converged" or abs(sum(values)) < 1e-8


@pytest.mark.parametrize("spectrum", ["DECAYING", "FLAT"])
@pytest.mark.parametrize("method", METHODS)
def test_unbiased_over_seeds_with_an_honest_standard_error(method: str, spectrum: str):
    """Rule 19, at a fixed budget: the mean of 60 estimates, and how far they scatter against what they say."""
    values = globals()[spectrum]
    operator, options = Explicit(symmetric(values)), {"sketch": 8} if method == "hutch_pp" else {}
    found = [METHODS[method](operator, tolerance=1e-9, max_products=30, seed=s, **options) for s in range(60)]
    assert {e.status for e in found} == {"budget"}
    assert {e.cost["products"] for e in found} == {30.0}
    deviations = np.array([e.value for e in found]) - sum(values)
    scatter = deviations.std(ddof=1)
    assert abs(deviations.mean()) < 3.5 * scatter / math.sqrt(len(found))
    said = math.sqrt(np.mean([e.se**2 for e in found]))
    # XTrace's estimates with one probe left out share the others: where these catch most of the trace, as they do of a
    # decaying spectrum, their scatter says more than the error of the mean.
    assert 0.7 < said / scatter < (4.0 if method == "xtrace" else 1.5)


def test_sketches_help_where_the_spectrum_decays():
    operator = Explicit(symmetric(DECAYING))
    errors = {}
    for name, method in METHODS.items():
        found = [method(operator, tolerance=1e-9, max_products=64, seed=s).value for s in range(15)]
        errors[name] = np.mean(np.abs(np.array(found) - sum(DECAYING)))
    assert errors["hutch_pp"] < errors["hutchinson"] / 5
    assert errors["xtrace"] < errors["hutchinson"] / 10


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_on_its_standard_error(method: str):
    """Rule 19: at the error asked for or at the budget, whichever comes first, and says which."""
    operator = Explicit(symmetric(FLAT))
    loose, tight = (METHODS[method](operator, tolerance=t, max_products=2000) for t in (0.2, 0.02))
    assert loose.status == tight.status == "converged"
    assert loose.se <= 0.2 * abs(loose.value)
    assert tight.se <= 0.02 * abs(tight.value)
    assert loose.cost["products"] < tight.cost["products"] < 2000
    assert abs(tight.value - sum(FLAT)) < 5 * tight.se + 1e-9
    short = METHODS[method](operator, tolerance=1e-12, max_products=45)
    assert short.status == "budget"
    assert short.cost["products"] in (44.0, 45.0)
    assert short.error_over == "probes"


def test_xtrace_equals_its_definition_with_every_probe_left_out_in_turn():
    """The estimator written literally: a new factorisation for each probe that is left out."""
    matrix = symmetric(FLAT)
    operator, m, size = Explicit(matrix), 9, len(FLAT)
    found = xtrace(operator, tolerance=1e-9, max_products=2 * m, seed=4)
    w = torch.stack([random_vector(operator, 4, i) for i in range(m)], dim=1)

    def literal(probes: list[int]) -> list[float]:
        found = []
        for i in probes:
            q, _ = torch.linalg.qr(matrix @ w[:, [j for j in probes if j != i]])
            u = w[:, i] - q @ (q.T @ w[:, i])
            rest = (size - len(probes) + 1) * (u @ matrix @ u) / (u @ u)
            found.append(float(torch.trace(q.T @ matrix @ q) + rest))
        return found

    expected = literal(list(range(m)))
    np.testing.assert_allclose(found.draws, expected, rtol=1e-10)
    assert found.value == pytest.approx(np.mean(expected))
    without = [np.mean(literal([j for j in range(m) if j != i])) for i in range(m)]
    assert found.se == pytest.approx(math.sqrt((m - 1) / m * sum((v - np.mean(without)) ** 2 for v in without)))


def test_hutch_pp_equals_its_definition():
    matrix = symmetric(FLAT)
    operator = Explicit(matrix)
    found = hutch_pp(operator, tolerance=1e-9, max_products=24, seed=2, sketch=6)
    s = torch.stack([random_vector(operator, ~2, i, signs=True) for i in range(6)], dim=1)
    z = torch.stack([random_vector(operator, 2, i, signs=True) for i in range(12)], dim=1)
    q, _ = torch.linalg.qr(matrix @ s)
    z = z - q @ (q.T @ z)
    expected = torch.trace(q.T @ matrix @ q) + torch.trace(z.T @ matrix @ z) / 12
    assert found.value == pytest.approx(float(expected))


@pytest.mark.parametrize("rank", [0, 3])
def test_a_sketch_larger_than_the_rank_leaves_nothing_to_estimate(rank: int):
    values = [2.0, -1.0, 5.0][:rank] + [0.0] * 50
    for method in (hutch_pp, xtrace):
        found = method(Explicit(symmetric(values)))
        assert found.value == pytest.approx(sum(values), abs=1e-9)
        assert found.se == pytest.approx(0, abs=1e-9)
    assert xtrace(Explicit(symmetric([3.0, 1.0]))).value == pytest.approx(4)


def test_what_rounding_hides_outside_of_an_exhausted_rank_is_in_the_standard_error():
    """A hundred thousand small eigenvalues beside one: of each product, all but that one is rounding in float32."""

    class Diagonal(Operator):
        def _products(self, vectors: torch.Tensor) -> torch.Tensor:
            return vectors * values

    values = torch.full((100_000,), 1e-8)
    values[0] = 1.0
    found = xtrace(Diagonal(len(values), torch.float32))
    assert found.details["rank_exhausted"]
    assert 5e-4 < abs(found.value - 1.001) <= found.se < 0.02


def test_the_trace_of_a_networks_hessian():
    model, x, y = case("attention")
    operator = Hessian(Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()]))
    true = float(dense_hessian(model, x, y, operator.space.names).trace())
    for method in METHODS.values():
        found = method(operator, tolerance=0.1, max_products=192)
        assert abs(found.value - true) < 4 * found.se + 1e-9
        assert found.measure == "hessian_trace"
        assert found.details["data"]["samples"] == 9


@pytest.mark.parametrize("method", METHODS)
def test_nan_curvature_is_diverged(method: str):
    """Rule 6."""
    matrix = symmetric(FLAT)
    matrix[3, 3] = float("nan")
    found = METHODS[method](Explicit(matrix))
    assert found.status == "diverged"
    assert math.isnan(found.value)
    assert math.isnan(found.se)


def test_memory_bounds_the_sketch():
    operator = Explicit(symmetric(FLAT))
    assert hutch_pp(operator, sketch=16, memory_bytes=5 * 480).details["sketch"] == 5
    assert xtrace(operator, tolerance=1e-9, memory_bytes=10 * 480).details["probes"] == 10
    with pytest.raises(LandscapeError, match="memory_bytes"):
        xtrace(operator, memory_bytes=480)


def test_wrong_settings_are_one_line():
    operator = Explicit(symmetric(FLAT))
    for method, settings_, text in (
        (hutchinson, {"tolerance": 0.0}, "positive finite tolerance"),
        (hutchinson, {"max_products": 7}, "at least 8"),
        (hutch_pp, {"max_products": 39}, "at least 40"),
        (xtrace, {"max_products": 15}, "at least 16"),
    ):
        with pytest.raises(LandscapeError, match=text) as caught:
            method(operator, **settings_)
        assert "\n" not in str(caught.value)
