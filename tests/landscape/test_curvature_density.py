"""The spectral density against explicit spectra: moments, weights, kernel, band."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_oracles import Explicit, case, dense_hessian, symmetric

from landscape import LandscapeError, Objective, Space
from landscape.curvature import Hessian, basis, spectral_density, top_eigenvalues

SPECTRUM = [*np.random.default_rng(0).normal(0, 0.1, 150), 2.0, 3.0, 3.0, 8.0]


def test_the_moments_are_those_of_the_spectrum():
    """Rule 20: weights sum to 1; the moments are trace / n and ||A||_F^2 / n within their errors, over 20 seeds."""
    operator, values = Explicit(symmetric(SPECTRUM)), np.array(SPECTRUM)
    all_found = [spectral_density(operator, probes=6, steps=8, seed=seed) for seed in range(20)]
    for found in all_found:
        assert all(w.sum() == pytest.approx(1, abs=1e-12) and (w >= 0).all() for w in found.weights)
    for power in (1, 2, 3):
        scores, spread = [], []
        for found in all_found:
            moment = found.moment(power)
            scores.append((moment.value - np.mean(values**power)) / moment.se)
            spread.append(moment.value)
        assert abs(np.mean(spread) - np.mean(values**power)) < 3.5 * np.std(spread) / math.sqrt(20)
        assert np.mean(np.abs(scores) < 2.57) > 0.75  # Student's t at 5 degrees of freedom: 95 %


def test_the_drawn_density_is_the_kernel_mixture_of_the_nodes():
    """Rule 20: it integrates to 1, its kernel is a share of the range, no mass lies beyond the outermost kernels."""
    found = spectral_density(Explicit(symmetric(SPECTRUM)), probes=3, steps=20, width=0.02)
    low, high = min(x.min() for x in found.nodes), max(x.max() for x in found.nodes)
    assert (low, high) == (pytest.approx(min(SPECTRUM), abs=1e-3), pytest.approx(8))
    assert found.width == pytest.approx(0.02 * (high - low))
    at, step = found.eigenvalues, np.diff(found.eigenvalues)
    assert (at[0], at[-1]) == (pytest.approx(low - 4 * found.width), pytest.approx(high + 4 * found.width))
    assert (found.density * step[0]).sum() == pytest.approx(1, abs=1e-4)
    literal = np.zeros((3, len(at)))
    for probe, (nodes, weights) in enumerate(zip(found.nodes, found.weights, strict=True)):
        for node, weight in zip(nodes, weights, strict=True):
            kernel = np.exp(-((at - node) ** 2) / (2 * found.width**2)) / (found.width * math.sqrt(2 * math.pi))
            literal[probe] += weight * kernel
    np.testing.assert_allclose(found.density, literal.mean(axis=0), atol=1e-12)
    half = 4.302653 * literal.std(axis=0, ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    np.testing.assert_allclose(found.high, literal.mean(axis=0) + half, atol=1e-5)
    np.testing.assert_allclose(found.low, np.maximum(literal.mean(axis=0) - half, 0), atol=1e-5)


def test_the_density_is_the_spectrums_where_the_krylov_space_is_all():
    """A multiple eigenvalue counts as often as it is there; a rule ends where its space does."""
    values = [-1.0] * 10 + [0.0] * 25 + [4.0] * 5
    found = spectral_density(Explicit(symmetric(values)), probes=60, steps=10)
    assert {len(x) for x in found.nodes} == {3}
    assert all(np.allclose(x, [-1, 0, 4]) for x in found.nodes)
    shares, errors = np.mean(found.weights, axis=0), np.std(found.weights, axis=0) / math.sqrt(60)
    assert (np.abs(shares - [0.25, 0.625, 0.125]) < 4 * errors).all()
    step = np.diff(found.eigenvalues)[0]
    below = (found.density * step)[found.eigenvalues < -0.5].sum()
    assert below == pytest.approx(shares[0], abs=1e-3)


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_a_multiple_of_the_identity_has_one_peak(value: float):
    found = spectral_density(Explicit(value * torch.eye(20, dtype=torch.float64)))
    assert all(np.allclose(x, value) for x in found.nodes)
    assert found.eigenvalues[np.argmax(found.density)] == pytest.approx(value, abs=found.width)
    assert found.width > 0


def test_full_orthogonalisation_keeps_ghosts_away_in_single_precision():
    """Rule 18: without it, copies of the outlier appear after some twenty steps and shift the weights."""
    matrix = symmetric([*np.linspace(0, 1, 200), 1000.0], dtype=torch.float32)
    found = spectral_density(Explicit(matrix), probes=4, steps=60)
    for nodes in found.nodes:
        assert (nodes > 500).sum() == 1
        assert np.diff(nodes).min() > 1e-4


def test_side_by_side_or_one_by_one_is_the_same():
    model, x, y = case("mlp")
    operator = Hessian(Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()]), keep_bytes=0)
    both = spectral_density(operator, probes=3, steps=8)
    single = spectral_density(operator, probes=3, steps=8, memory_bytes=9 * operator.size * 8)
    for a, b in zip(both.nodes, single.nodes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert single.cost["products"] == both.cost["products"] == 24
    # A pass serves all probes of a group; the first one also measured how large a graph is, on a few rows.
    assert 8 <= both.cost["gradients"] < 9
    assert single.cost["gradients"] == pytest.approx(24)
    with pytest.raises(LandscapeError, match="memory_bytes"):
        spectral_density(operator, steps=8, memory_bytes=100)


def test_a_model_of_which_one_basis_is_more_than_the_usual_memory_has_a_density(monkeypatch):
    """Twenty-five vectors of a ViT-S are more than 2 GiB."""
    operator = Explicit(symmetric(np.linspace(-1, 3, 60)))
    wide = spectral_density(operator, steps=8)
    monkeypatch.setattr(basis, "MEMORY", 5 * 60 * 8)
    narrow = spectral_density(operator, steps=8)
    for a, b in zip(wide.nodes, narrow.nodes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert top_eigenvalues(operator, 3).status == "converged"


def test_the_moments_of_a_networks_hessian():
    model, x, y = case("attention")
    operator = Hessian(Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()]))
    dense = dense_hessian(model, x, y, operator.space.names)
    found = spectral_density(operator, probes=12, steps=10)
    for power, true in ((1, dense.trace()), (2, (dense**2).sum())):
        moment = found.moment(power)
        assert abs(moment.value - float(true) / operator.size) < 4 * moment.se
        assert moment.measure == f"hessian_moment_{power}"


def test_nan_curvature_is_diverged():
    """Rule 6."""
    matrix = symmetric(range(8))
    matrix[2, 2] = float("nan")
    found = spectral_density(Explicit(matrix), probes=2)
    assert found.status == "diverged"
    assert np.isnan(found.density).all()
    assert math.isnan(found.moment(1).value)


def test_it_shows_itself():
    found = spectral_density(Explicit(symmetric(SPECTRUM)), probes=2, steps=5)
    assert list(found.to_frame().columns) == ["eigenvalue_nats", "density", "low", "high"]
    assert "<table" in found._repr_html_()
    from matplotlib.figure import Figure

    ax = found.plot(Figure().subplots())
    assert len(ax.lines) == 1
    assert ax.get_xlabel()


def test_wrong_settings_are_one_line():
    operator = Explicit(symmetric(range(9)))
    for settings_, text in (
        ({"probes": 1}, "at least 2 probes"),
        ({"steps": 0}, "1 step"),
        ({"width": 0.0}, "a share of the range"),
    ):
        with pytest.raises(LandscapeError, match=text) as caught:
            spectral_density(operator, **settings_)
        assert "\n" not in str(caught.value)
