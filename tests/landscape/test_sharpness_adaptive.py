"""Adaptive sharpness against the eigenvalues of the scaled Hessian, and its invariance."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from landscape_nets import Mlp, data, seeded
from sharpness_bowls import bowl, losses_of_two, most_in_ball, two_weights

from landscape import Objective, Policy, Space
from landscape.sharpness import adaptive, keskar, worst_case


def net(model: torch.nn.Module, **options: object) -> tuple[Objective, Space]:
    x, y = data(Mlp)
    return Objective(model, x.double(), y), Space(model, [n for n, _ in model.named_parameters()], **options)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_on_a_bowl_it_is_the_trust_region_maximum_in_scaled_coordinates(slope):
    objective, space, hessian, g, w = bowl(2, k=4, slope=slope)
    scale = np.diag(np.abs(w).reshape(-1))
    # every row has the same Hessian; all rows share one ball
    scaled = scale @ np.kron(np.eye(2), hessian) @ scale
    exact = most_in_ball(scaled, scale @ g.reshape(-1), 0.5)
    found = adaptive.measure(objective, space, rho=0.5, steps=80)
    assert found.value == pytest.approx(exact, rel=1e-3)
    assert found.value <= exact * (1 + 1e-9)


def test_brute_force_over_two_weights():
    objective, space = two_weights()
    w = space.centre["w"].numpy()[0]
    radius, angle = np.meshgrid(np.linspace(0, 0.8, 150), np.linspace(0, 2 * np.pi, 300))
    moves = np.abs(w) * np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    most = (losses_of_two(w + moves, objective) - losses_of_two(w[None], objective)).max()
    assert adaptive.measure(objective, space, rho=0.8, steps=40).value == pytest.approx(most, rel=2e-3)


@pytest.mark.parametrize("policy", ["zero", "element"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rule_21_rescaling_single_relu_units_leaves_it(norm, policy):
    """rule 21 and rule 9: a factor of its own for every ReLU unit, in float64."""
    model = seeded(Mlp).double()
    with torch.no_grad():
        model.up.weight[3] = 0  # zero weights scale to zero weights
        model.down.weight[1, 2] = 0
    other = copy.deepcopy(model)
    c = torch.tensor([9.0, 0.2, 1, 3, 5, 1, 0.1], dtype=torch.float64)
    with torch.no_grad():
        other.up.weight.mul_(c[:, None])
        other.up.bias.mul_(c)
        other.down.weight.div_(c)
    found = [
        adaptive.measure(*net(m, policy=Policy(bias_and_norm=policy)), rho=0.2, norm=norm, steps=12)
        for m in (model, other)
    ]
    assert found[1].value == pytest.approx(found[0].value, rel=1e-9)
    assert found[1].details["one_step_nats"] == pytest.approx(found[0].details["one_step_nats"], rel=1e-9)
    assert found[0].value > 0
    # the filter-relative worst case is not unchanged by it
    if norm == "l2" and policy == "zero":
        a, b = (worst_case.measure(*net(m), rho=0.2, steps=12).value for m in (model, other))
        assert abs(b / a - 1) > 0.01


def test_the_first_step_from_the_centre_is_that_of_asam():
    model = seeded(Mlp).double()
    objective, space = net(model)
    found = adaptive.measure(objective, space, rho=0.3, steps=5)
    x, y = data(Mlp)
    copied = copy.deepcopy(model)
    weights = [copied.up.weight, copied.down.weight]  # biases: held still
    loss = torch.nn.functional.cross_entropy(copied(x.double()), y)
    g = torch.autograd.grad(loss, weights)
    length = sum(float(((p.detach() * d) ** 2).sum()) for p, d in zip(weights, g, strict=True)) ** 0.5
    with torch.no_grad():
        for p, d in zip(weights, g, strict=True):
            p += 0.3 * p**2 * d / length
        there = torch.nn.functional.cross_entropy(copied(x.double()), y)
    assert found.details["one_step_nats"] == pytest.approx(float(there - loss.detach()), rel=1e-9)
    assert found.value >= found.details["one_step_nats"]


def test_it_grows_with_the_radius():
    objective, space = net(seeded(Mlp).double())
    values = [adaptive.measure(objective, space, rho=r, steps=10).value for r in (0.05, 0.1, 0.3)]
    assert values == sorted(values)
    assert values[0] > 0


@pytest.mark.parametrize("measure", [adaptive.measure, worst_case.measure, keskar.measure])
def test_a_centre_without_a_gradient_is_failed_with_its_reason(measure):
    """The root of a square at 0 has the loss 0 and the gradient NaN: no ascent can leave the centre."""
    model = torch.nn.Linear(3, 2, bias=False).double()
    x = torch.zeros(6, 3, dtype=torch.float64)
    objective = Objective(model, x, x[:, :2], loss=lambda z, t: ((z - t) ** 2).sum(dim=1).sqrt())
    with pytest.warns(RuntimeWarning, match="losses or gradients at .* inf or NaN"):
        found = measure(objective, Space(model, ["weight"]))
    assert found.status == "failed"
    assert np.isnan(found.value)
    assert "gradient is inf or NaN" in found.details["reason"]
