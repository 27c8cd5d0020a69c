"""Epsilon-sharpness against corners of separable bowls and brute force, by both of its maximisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from landscape_nets import Mlp, data, seeded
from sharpness_bowls import bowl, losses_of_two, two_weights

from landscape import LandscapeError, Objective, Space
from landscape.sharpness import keskar

BOTH = ["apgd", "lbfgsb"]


@pytest.mark.parametrize("maximiser", BOTH)
def test_on_a_separable_bowl_it_is_the_corner(maximiser):
    objective, space, hessian, g, w = bowl(2, slope=0.3, diagonal=True)
    found = keskar.measure(objective, space, epsilon=0.01, maximiser=maximiser)
    width = 0.01 * (np.abs(w) + 1)
    most = (0.5 * np.diag(hessian) * width**2 + np.abs(g) * width).sum()
    exact = 100 * most / (1 + objective.evaluate().mean_loss)
    assert found.value == pytest.approx(exact, rel=1e-6)
    assert found.details["rise_nats"] == pytest.approx(most, rel=1e-6)
    assert found.unit == "%"
    assert found.details["maximiser"] == maximiser


@pytest.mark.parametrize("maximiser", BOTH)
def test_brute_force_over_two_weights(maximiser):
    objective, space = two_weights()
    w = space.centre["w"].numpy()[0]
    sides = [np.linspace(-0.5 * (abs(v) + 1), 0.5 * (abs(v) + 1), 201) for v in w]
    moves = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
    here = losses_of_two(w[None], objective)[0]
    exact = 100 * (losses_of_two(w + moves, objective).max() - here) / (1 + here)
    found = keskar.measure(objective, space, epsilon=0.5, maximiser=maximiser, restarts=4, steps=40)
    assert found.value == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("maximiser", BOTH)
def test_zero_weights_move_by_epsilon_and_every_move_is_in_the_box(maximiser):
    model = seeded(Mlp)  # float32, whose rounding must not leave the box
    with torch.no_grad():
        model.down.weight.zero_()
    x, y = data(Mlp)
    objective, space = Objective(model, x, y), Space(model, ["up.weight", "down.weight"])
    seen: list[torch.Tensor] = []
    original = space.move
    space.move = lambda d, c: (seen.append(d.tensors["down.weight"].clone()), original(d, c))  # type: ignore
    found = keskar.measure(objective, space, epsilon=0.05, maximiser=maximiser, steps=5)
    assert found.value > 0
    assert max(float(m.abs().max()) for m in seen) == pytest.approx(0.05, rel=1e-6)
    assert all((m.abs() <= torch.tensor(0.05)).all() for m in seen)


@pytest.mark.parametrize("maximiser", BOTH)
@pytest.mark.filterwarnings("ignore:.*inf or NaN")
def test_rule_6_a_loss_that_breaks_ends_it_as_diverged(maximiser):
    model = seeded(Mlp).double()
    edge = float(model.down.weight.detach().norm() * 1.01)

    def loss(logits, targets):
        plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return torch.where(model.down.weight.norm() > edge, math.nan, plain)

    x, y = data(Mlp)
    objective = Objective(model, x.double(), y, loss=loss)
    found = keskar.measure(objective, Space(model, ["down.weight"]), epsilon=0.2, maximiser=maximiser)
    assert found.status == "diverged"
    assert math.isnan(found.value)


def test_wrong_settings():
    objective, space = two_weights()
    with pytest.raises(LandscapeError, match="expected maximiser among apgd, lbfgsb, found 'bfgs'; nearest: 'lbfgsb'"):
        keskar.measure(objective, space, maximiser="bfgs")
    with pytest.raises(LandscapeError, match="expected epsilon to be positive and finite, found nan"):
        keskar.measure(objective, space, epsilon=math.nan)


@pytest.mark.parametrize("maximiser", ["lbfgsb", "apgd"])
def test_an_ascent_of_one_step_is_not_called_converged(maximiser):
    objective, space, *_ = bowl(slope=1.0, seed=3)
    short = keskar.measure(objective, space, epsilon=0.3, steps=1, restarts=1, maximiser=maximiser)
    assert short.residual > 0
    assert short.status == "budget"
    assert keskar.measure(objective, space, epsilon=0.3, steps=100, maximiser=maximiser).status == "converged"
