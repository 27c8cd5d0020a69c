"""Curvature along directions and block by block, against the dense Hessian and differences of the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature_oracles import case, dense_hessian
from torch import nn

from landscape import LandscapeError, Objective, Space, draw, line
from landscape.curvature import GaussNewton, Hessian, along, block_traces


def hessian_of(name: str) -> tuple[Hessian, torch.Tensor]:
    model, x, y = case(name)
    operator = Hessian(Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()]))
    return operator, dense_hessian(model, x, y, operator.space.names)


def test_it_is_the_second_difference_of_the_lines_loss():
    operator, _ = hessian_of("attention")
    direction, h = draw(operator.space, 7), 1e-3
    curve = line(operator.objective, operator.space, direction, [-h, 0.0, h])
    left, centre, right = curve.values()
    found = along(operator, [direction])
    assert found.value == pytest.approx((left - 2 * centre + right) / h**2, rel=1e-3)
    assert math.isnan(found.se)


def test_it_is_the_mean_over_the_directions_with_its_error():
    operator, dense = hessian_of("mlp")
    found = along(operator, 6, seed=3)
    vectors = torch.stack([operator.flatten(draw(operator.space, 3 + i)) for i in range(6)])
    expected = ((vectors @ dense) * vectors).sum(dim=1).numpy()
    np.testing.assert_allclose(found.draws, expected, rtol=1e-9)
    assert found.value == pytest.approx(expected.mean())
    assert found.se == pytest.approx(expected.std(ddof=1) / math.sqrt(6))
    assert (found.measure, found.error_over, found.cost["products"]) == ("directional_curvature", "directions", 6)
    quotient = along(operator, 6, seed=3, per="norm")
    np.testing.assert_allclose(quotient.draws, expected / (vectors**2).sum(dim=1).numpy(), rtol=1e-9)
    ends = torch.linalg.eigvalsh(dense)
    assert all(ends[0] <= q <= ends[-1] for q in quotient.draws)
    assert quotient.measure == "rayleigh_quotient"


def test_along_an_eigenvector_it_is_the_eigenvalue():
    operator, dense = hessian_of("tied")
    values, vectors = torch.linalg.eigh(dense)
    direction = operator.direction(vectors[:, -1], "eigenvector", norm=2.0)
    assert along(operator, [direction], per="norm").value == pytest.approx(float(values[-1]))
    assert along(operator, [direction]).value == pytest.approx(4 * float(values[-1]))


def test_blocks_have_the_traces_of_their_diagonal_blocks():
    operator, dense = hessian_of("attention")
    found = block_traces(operator, block=lambda name: name.split(".")[0], tolerance=1e-9, max_products=400)
    diagonal, start, true = dense.diagonal(), 0, dict.fromkeys(found.blocks, 0.0)
    sizes = dict.fromkeys(found.blocks, 0)
    for name, p in operator.space.parameters.items():
        true[name.split(".")[0]] += float(diagonal[start : start + p.numel()].sum())
        sizes[name.split(".")[0]] += p.numel()
        start += p.numel()
    for name, estimate in found.blocks.items():
        assert abs(estimate.value - true[name]) < 4 * estimate.se + 1e-12
        assert estimate.details["entries"] == sizes[name]
    assert list(found.blocks) == sorted(true, key=lambda name: -found.blocks[name].value)
    assert found.whole.value == pytest.approx(sum(e.value for e in found.blocks.values()))
    assert abs(found.whole.value - float(dense.trace())) < 4 * found.whole.se
    assert found.whole.cost["products"] == 400
    assert found.whole.status == "budget"


def test_blocks_of_a_diagonal_hessian_are_exact():
    """One-hot inputs and squared errors: every weight has its own curvature."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Identity()).double()
    x = torch.eye(4, dtype=torch.float64).repeat(3, 1)[:9]  # the first input three times, the others twice
    objective = Objective(model, x, x, loss=lambda out, _: (out**2).sum(dim=1))
    found = block_traces(Hessian(objective, Space(model, ["0.weight"])))
    assert list(found.blocks) == ["0"]
    # 2 / N for each sample and output
    assert found.whole.value == pytest.approx(2 * 9 * 2 / 9)
    assert found.whole.se == pytest.approx(0, abs=1e-12)
    assert found.whole.status == "converged"
    assert found.whole.cost["products"] == 8


def test_the_default_blocks_are_the_networks():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    operator = GaussNewton(Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()]))
    found = block_traces(operator, tolerance=0.3)
    assert set(found.blocks) == {"0", "1"}
    assert found.to_frame()["block"].tolist() == [*found.blocks, "(all)"]
    assert found.to_frame()["share"].iloc[-1] == 1.0
    assert "<table" in found._repr_html_()
    assert "sharpest" in repr(found)
    each = block_traces(operator, block=str)
    assert set(each.blocks) == {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}


def test_nan_curvature_is_diverged():
    """Rule 6."""
    model, x, y = case("mlp")
    with torch.no_grad():
        model.up.bias[0] = float("nan")
    operator = Hessian(Objective(model, x, y), Space(model, ["up.weight", "down.weight"]))
    assert along(operator, 2).status == "diverged"
    assert block_traces(operator).whole.status == "diverged"


def test_wrong_settings_are_one_line():
    operator, _ = hessian_of("mlp")
    for use, text in (
        (lambda: along(operator, 0), "at least one direction"),
        (lambda: along(operator, 1, per="length"), "per='norm'"),
        (lambda: block_traces(operator, max_products=3), "at least 8"),
        (lambda: block_traces(operator, tolerance=-1.0), "positive tolerance"),
    ):
        with pytest.raises(LandscapeError, match=text) as caught:
            use()
        assert "\n" not in str(caught.value)
