"""Eigenvalues at a named end against explicit spectra and the dense Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature_oracles import Bowl, Explicit, case, dense_hessian, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import LandscapeError, Objective, Space
from landscape.curvature import Hessian, top_eigenvalues
from landscape.curvature.operator import Operator

KEYS = {"largest": lambda v: -v, "smallest": lambda v: v, "magnitude": lambda v: -abs(v)}
SPECTRA = {
    "even": [*np.linspace(1, 10, 50)],
    "multiple": [10.0] * 3 + [5.0, 4.0] + [1.0] * 40,
    "identity": [2.0] * 20,
    "zero": [0.0] * 10,
    "negative": [-7.0, -7.0, 5.0, 3.0] + [0.0] * 30,
    "tiny": [3.0, 1.0],
    "one": [-2.0],
    "outliers": [10.0, 5.2, 5.0, 3.0, 2.9, *np.random.default_rng(0).normal(0, 0.1, 200)],
    "copies": [10.0, 10.0, 5.2, 5.0, 5.0, 3.0, *np.random.default_rng(0).normal(0, 0.1, 600)],
    "small": [*np.linspace(1e-9, 1e-8, 30)],
}


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("end", KEYS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_each_end_of_a_known_spectrum(spectrum: str, end: str, dtype: torch.dtype, block: int):
    """Rule 18: the named end, multiplicities, residuals within the tolerance, vectors orthonormal to 1e-5."""
    values = SPECTRA[spectrum]
    k, top = min(5, len(values)), max(map(abs, values))
    matrix = symmetric(values, dtype=dtype)
    found = top_eigenvalues(Explicit(matrix), k, end=end, tolerance=1e-4, block=block)
    true = np.array(sorted(values, key=KEYS[end])[:k])
    measure = np.abs if end == "magnitude" else np.asarray
    np.testing.assert_allclose(measure(found.values), measure(true), atol=1.5e-4 * top + 1e-15)
    assert found.status == "converged"
    assert found.converged.all()
    v = found.vectors.double()
    assert float((v @ v.T - torch.eye(k, dtype=torch.float64)).abs().max()) < 1e-5
    residuals = (v @ matrix.double() - torch.from_numpy(found.values)[:, None] * v).norm(dim=1).numpy()
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-5 * top + 1e-15)
    assert (residuals <= 1e-4 * top * 1.01 + 1e-15).all()
    assert found.scale == pytest.approx(top, rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("end", KEYS)
def test_the_hessian_of_a_network_has_the_eigenvalues_of_the_dense_one(end: str):
    model, x, y = case("attention")
    names = [n for n, _ in model.named_parameters()]
    operator = Hessian(Objective(model, x, y), Space(model, names))
    dense = np.linalg.eigvalsh(dense_hessian(model, x, y, operator.space.names).numpy())
    found = top_eigenvalues(operator, 4, end=end, tolerance=1e-6)
    np.testing.assert_allclose(found.values, sorted(dense, key=KEYS[end])[:4], rtol=1e-8, atol=1e-10)
    assert dense.min() < -1e-3  # so that the ends differ
    assert found.details["end"] == end
    assert found.cost["products"] == found.products == operator.cost["products"]
    assert found.cost["gradients"] < 2


def test_a_bowl_in_single_precision():
    values = [*range(1, 40), 100.0, 100.0]
    model, a = Bowl(len(values)), symmetric(values, dtype=torch.float32)
    objective = Objective(model, torch.zeros(6, 1), torch.zeros(6), loss=lambda w, _: (w @ a * w).sum(dim=1) / 2)
    found = top_eigenvalues(Hessian(objective, Space(model, ["w"]), batch_size=4), 3, seed=3)
    np.testing.assert_allclose(found.values, [100, 100, 39], rtol=1e-4)


@pytest.mark.parametrize("block", [1, 2])
def test_restarts_with_little_memory_find_the_same(block: int):
    """Rule 18, with a basis of 16 vectors where the search needs many more."""
    values = [*np.linspace(0, 1, 300), 1.02, 1.04, 1.1]
    operator = Explicit(symmetric(values))
    plain = top_eigenvalues(operator, 3, tolerance=1e-5, block=block, max_products=600)
    small = top_eigenvalues(operator, 3, tolerance=1e-5, block=block, max_products=600, memory_bytes=16 * 303 * 8)
    assert small.details["restarts"] > 2
    assert plain.details["restarts"] == 0
    assert small.status == plain.status == "converged"
    np.testing.assert_allclose(small.values, plain.values, atol=1e-9)
    assert (small.residuals <= 1e-5 * small.scale).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_is_not_taken_for_one_of_the_many_near_zero(seed: int):
    """Where nearly all eigenvalues are near zero, any vector has a small residual: by a thousandth of the largest."""

    class Diagonal(Operator):
        def _products(self, vectors: torch.Tensor) -> torch.Tensor:
            return vectors * values

    rest = np.random.default_rng(0).normal(0, 1e-3, 200_000)
    spectrum = [369, 136, 109, *(30 / np.arange(1, 500)), *(-6 / np.arange(1, 200)), *rest]
    values = torch.tensor(spectrum, dtype=torch.float32)
    for k, memory in ((1, None), (3, None), (1, 16 * 4 * len(values))):  # the last restarts on the way
        found = top_eigenvalues(Diagonal(len(values), torch.float32), k, end="smallest", seed=seed, memory_bytes=memory)
        assert bool(found.details["restarts"]) == (memory is not None)
        assert found.status == "converged"
        np.testing.assert_allclose(found.values, [-6, -3, -2][:k], atol=0.369)


def linear(inputs: int, samples: int, outputs: int, seed: int) -> tuple[Hessian, np.ndarray]:
    """Linear regression: the Hessian by its weights, and its eigenvalues, each as often as there are outputs."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, d, generator=generator, dtype=torch.float64) for d in (inputs, outputs))
    model = torch.nn.Linear(inputs, outputs, bias=False).double()
    objective = Objective(model, x, y, loss=lambda z, t: ((z - t) ** 2).sum(dim=1))
    true = torch.linalg.eigvalsh(2 * x.T @ x / samples).flip(0).repeat_interleave(outputs)
    return Hessian(objective, Space(model, ["weight"])), true.numpy()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_linear_regression_has_every_eigenvalue_once_an_output(k: int):
    """Rule 18, where no gap sets the copies apart: whatever the seed, at the default settings."""
    for seed in range(8):
        hessian, true = linear(40, 60, 3, seed)
        found = top_eigenvalues(hessian, k)
        assert found.status == "converged"
        np.testing.assert_allclose(found.values, true[:k], atol=2e-3 * true[0])


def test_copies_are_found_after_restarts_too():
    hessian, true = linear(40, 10, 3, 0)
    found = top_eigenvalues(hessian, 6, memory_bytes=15 * hessian.size * 8)
    assert found.details["restarts"] > 2
    assert found.status == "converged"
    np.testing.assert_allclose(found.values, true[:6], atol=2e-3 * true[0])


@pytest.mark.parametrize("budget", [25, 30, 35, 40, 50])
def test_a_budget_that_ends_before_copies_were_looked_for_is_said(budget: int):
    hessian, true = linear(40, 60, 3, 0)
    found = top_eigenvalues(hessian, 3, max_products=budget)
    assert found.products <= budget
    assert found.status == "budget" or np.allclose(found.values, true[:3], atol=2e-3 * true[0])
    assert top_eigenvalues(hessian, 3, max_products=25).status == "budget"


def test_a_budget_that_ends_is_said_and_kept():
    """Rule 18: a converged flag for each; the residuals are those of what is returned."""
    operator = Explicit(symmetric([*np.linspace(0, 1, 300), 5.0]))
    found = top_eigenvalues(operator, 3, tolerance=1e-6, max_products=20)
    assert found.status == "budget"
    assert found.converged.tolist() == [True, False, False]
    assert found.products == 20
    assert [e.status for e in found.estimates()] == ["converged", "budget", "budget"]


@pytest.mark.parametrize("k", [2, 3])
def test_a_promise_that_a_true_product_does_not_keep_is_not_believed(k: int):
    """Rule 18: an operator that rounds to three digits cannot have residuals of 1e-6, whatever the recurrence says."""

    class Coarse(Explicit):
        def _products(self, vectors: torch.Tensor) -> torch.Tensor:
            return super()._products((vectors * 1000).round() / 1000)

    matrix = symmetric([*np.linspace(0, 1, 30), 5.0])
    found = top_eigenvalues(Coarse(matrix), k, tolerance=1e-7, max_products=100)
    assert found.status == "budget"
    assert (found.residuals > 1e-7 * found.scale).all()
    np.testing.assert_allclose(found.values[:2], [5, 1], atol=2e-2)
    v = found.vectors
    true = (v @ matrix - torch.from_numpy(found.values)[:, None] * v).norm(dim=1).numpy()
    np.testing.assert_allclose(found.residuals, true, atol=2e-2)


def test_nan_curvature_is_diverged():
    """Rule 6."""
    matrix = symmetric(range(8))
    matrix[2, 2] = float("nan")
    found = top_eigenvalues(Explicit(matrix), 2)
    assert found.status == "diverged"
    assert np.isnan(found.values).all()
    assert not found.converged.any()
    assert {e.status for e in found.estimates()} == {"diverged"}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 4.0]), min_size=1, max_size=10), st.data())
def test_any_multiplicities_at_any_end(values: list[float], chosen: st.DataObject):
    """Rule 18: an invariant space is noticed, and what it lacks is found."""
    k = chosen.draw(st.integers(1, len(values)))
    end = chosen.draw(st.sampled_from(list(KEYS)))
    seed = chosen.draw(st.integers(0, 99))
    found = top_eigenvalues(Explicit(symmetric(values, seed)), k, end=end, seed=seed, tolerance=1e-8)
    true = np.array(sorted(values, key=KEYS[end])[:k])
    measure = np.abs if end == "magnitude" else np.asarray
    np.testing.assert_allclose(measure(found.values), measure(true), atol=1e-7)


def test_the_seed_is_the_start():
    operator = Explicit(symmetric([*np.linspace(0, 1, 60)]))
    a, b, c = (top_eigenvalues(operator, 2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.vectors, b.vectors)
    assert not torch.equal(a.vectors, c.vectors)
    state = torch.get_rng_state()
    top_eigenvalues(operator, 1)
    assert torch.equal(state, torch.get_rng_state())


def test_it_shows_itself():
    found = top_eigenvalues(Explicit(symmetric(range(9))), 2)
    assert list(found.to_frame().columns) == ["rank", "end", "eigenvalue_nats", "residual_nats", "converged"]
    assert "largest algebraic: 8, 7" in repr(found)
    assert "<table" in found._repr_html_()
    first = found.estimates()[0]
    assert (first.measure, first.unit, first.details["rank"]) == ("explicit_eigenvalue_1", "nats", 1)
    (least,) = top_eigenvalues(Explicit(symmetric(range(9))), 1, end="smallest").estimates()
    assert least.measure == "explicit_smallest_eigenvalue_1"


def test_wrong_settings_are_one_line():
    operator = Explicit(symmetric(range(50)))
    for settings_, text in (
        ({"end": "larges"}, "nearest: 'largest'"),
        ({"k": 0}, "from 1 to 50"),
        ({"k": 51}, "from 1 to 50"),
        ({"tolerance": 0.0}, "positive tolerance"),
        ({"max_products": 5}, "max_products of at least 11"),
        ({"memory_bytes": 100}, "memory_bytes of at least"),
    ):
        with pytest.raises(LandscapeError, match=text) as caught:
            top_eigenvalues(operator, **settings_)
        assert "\n" not in str(caught.value)
