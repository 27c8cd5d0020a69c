"""m-sharpness against a literal loop over groups."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from landscape_nets import Mlp, data, seeded
from sharpness_bowls import bowl, most_in_ball
from torch.nn.functional import cross_entropy

from landscape import Objective, Policy, Space
from landscape.sharpness import sam


def literal(model: torch.nn.Module, names: list[str], n: int, m: int, rho: float) -> list[float]:
    x, y = data(Mlp, n)
    x = x.double()
    rises = []
    for i in range(0, n, m):
        net = copy.deepcopy(model)
        moving = [p for name, p in net.named_parameters() if name in names]
        loss = cross_entropy(net(x[i : i + m]), y[i : i + m])
        g = torch.autograd.grad(loss, moving)
        length = math.sqrt(sum(float((d**2).sum()) for d in g))
        with torch.no_grad():
            for p, d in zip(moving, g, strict=True):
                p += rho * d / length
            rises.append(float(cross_entropy(net(x[i : i + m]), y[i : i + m]) - loss))
    return rises


@pytest.mark.parametrize("m", [7, 10, 30, 100])
def test_one_step_is_the_literal_loop_and_a_smaller_last_group_counts_by_its_samples(m):
    model = seeded(Mlp).double()
    x, y = data(Mlp, 30)
    objective = Objective(model, x.double(), y, batch_size=4)  # a group is several batches
    space = Space(model, [n for n, _ in model.named_parameters()])
    found = sam.measure(objective, space, rho=0.2, m=m)
    rises = literal(model, ["up.weight", "down.weight"], 30, m, 0.2)
    np.testing.assert_allclose(found.draws, rises, rtol=1e-9)
    sizes = [min(m, 30 - i) for i in range(0, 30, m)]
    assert found.details["group_sizes"] == sizes
    assert found.value == pytest.approx(np.average(rises, weights=sizes), rel=1e-9)
    assert found.error_over == "groups"
    assert found.status == "exact"
    # one gradient pass and one forward pass over all data, besides the centre's two
    assert found.cost["gradients"] == pytest.approx(1)
    assert found.cost["forwards"] == pytest.approx(3)
    if m == 10:
        assert found.se == pytest.approx(np.std(rises, ddof=1) / math.sqrt(3), rel=1e-9)
    if m >= 30:
        assert math.isnan(found.se)


def test_the_error_over_groups_of_unequal_size_is_that_of_simulated_groups():
    # groups of sizes 4, 4, 4, 1 with independent values of variance 1: Var(sum w_g r_g) = sum w_g^2
    rng = np.random.default_rng(0)
    sizes = [4, 4, 4, 1]
    draws = [sam._weighted(list(rng.normal(size=4)), sizes) for _ in range(4000)]
    exact = np.std([mean for mean, _ in draws])
    assert math.sqrt(np.mean([se**2 for _, se in draws])) == pytest.approx(exact, rel=0.1)


def test_biases_move_where_the_policy_lets_them():
    model = seeded(Mlp).double()
    x, y = data(Mlp, 30)
    space = Space(model, [n for n, _ in model.named_parameters()], policy=Policy(bias_and_norm="vector"))
    found = sam.measure(Objective(model, x.double(), y), space, rho=0.2, m=15)
    rises = literal(model, ["up.weight", "up.bias", "down.weight", "down.bias"], 30, 15, 0.2)
    np.testing.assert_allclose(found.draws, rises, rtol=1e-9)


def test_an_ascent_of_more_steps_reaches_the_maximum_of_a_bowl():
    objective, space, hessian, g, w = bowl(2, k=3, slope=0.5)
    exact = most_in_ball(np.kron(np.eye(2), hessian), g.reshape(-1), 0.4)
    one, many = (sam.measure(objective, space, rho=0.4, m=24, steps=s) for s in (1, 60))
    assert many.value == pytest.approx(exact, rel=1e-3)
    assert one.value <= many.value <= exact * (1 + 1e-9)
    assert many.details["method"] == "projected ascent"
    assert many.status == "converged"
    assert many.details["effective_radius"] == pytest.approx(0.4 / np.linalg.norm(w), rel=1e-12)


def test_at_a_zero_gradient_one_step_is_no_step():
    model = seeded(Mlp).double()
    x, y = data(Mlp)
    found = sam.measure(Objective(model, 0 * x.double(), y), Space(model, ["up.weight"]), m=10)
    assert found.draws == (0.0, 0.0, 0.0)  # no input, no slope: exactly 0, not 0/0


@pytest.mark.filterwarnings("ignore:.*inf or NaN")
def test_rule_6_a_broken_group_is_a_broken_mean():
    model = seeded(Mlp).double()
    x, y = data(Mlp, 30)
    x = x.double()
    x[17] = math.nan
    found = sam.measure(Objective(model, x, y), Space(model, ["up.weight"]), m=10)
    assert found.status == "diverged"
    assert math.isnan(found.value)
