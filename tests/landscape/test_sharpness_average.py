"""Average sharpness against closed forms of a quadratic bowl, a literal loop, and the laws of rules 9 and 14."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from landscape_nets import Mlp, data, seeded
from sharpness_bowls import bowl

from landscape import LandscapeError, Objective, Space, draw
from landscape.sharpness.average import measure


def double_mlp(seed: int = 0) -> torch.nn.Module:
    return seeded(Mlp, seed).double()


def setting(model: torch.nn.Module, n: int = 30) -> tuple[Objective, Space]:
    x, y = data(Mlp, n)
    return Objective(model, x.double(), y), Space(model, [name for name, _ in model.named_parameters()])


@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_draws_on_a_bowl_are_half_rho_squared_dHd_whatever_the_slope(slope):
    objective, space, hessian, _, _ = bowl(3, slope=slope)
    found = measure(objective, space, rho=0.3, directions=5, seed=4)
    # both signs: the slope cancels
    for i, value in enumerate(found.draws):
        d = draw(space, 4 + i).tensors["map.weight"].numpy()
        assert value == pytest.approx(0.5 * 0.3**2 * np.einsum("ri,ij,rj->", d, hessian, d), rel=1e-9)
    assert found.value == pytest.approx(np.mean(found.draws), rel=1e-12)
    assert found.se == pytest.approx(np.std(found.draws, ddof=1) / math.sqrt(5), rel=1e-12)
    assert found.error_over == "directions"
    assert found.unit == "", "of a loss of its own"


def test_the_mean_over_many_directions_is_the_trace():
    objective, space, hessian, _, w = bowl(2, k=5)
    found = measure(objective, space, rho=0.2, directions=150)
    # E d_i d_i' = ||w_i||^2 / k
    exact = 0.5 * 0.2**2 * (w**2).sum() * np.trace(hessian) / 5
    assert abs(found.value - exact) < 4 * found.se
    assert found.se < 0.1 * exact
    assert found.status == "converged"


def test_uniform_noise_of_norm_linf_on_a_bowl():
    objective, space, hessian, _, w = bowl(2, k=4)
    found = measure(objective, space, rho=0.2, norm="linf", directions=150)
    # E u^2 = 1/3 for u uniform on [-1, 1]
    exact = 0.5 * 0.2**2 / 3 * (w**2 * np.diag(hessian)).sum()
    assert abs(found.value - exact) < 4 * found.se


def test_rule_14_the_error_over_samples_is_paired_and_of_its_own():
    objective, space = setting(double_mlp())
    found = measure(objective, space, rho=0.2, directions=3)
    x, y = data(Mlp)
    per_sample = np.zeros(len(y))
    for i in range(3):
        for sign in (1, -1):
            model = copy.deepcopy(space.model)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p += sign * 0.2 * draw(space, i).tensors[name]
                there = torch.nn.functional.cross_entropy(model(x.double()), y, reduction="none")
                here = torch.nn.functional.cross_entropy(space.model(x.double()), y, reduction="none")
            per_sample += (there - here).numpy() / 6
    assert found.value == pytest.approx(per_sample.mean(), rel=1e-12)
    se = per_sample.std(ddof=1) / math.sqrt(len(y))
    assert found.details["se_over_samples_nats"] == pytest.approx(se, rel=1e-9)
    assert abs(found.se - se) > 0.01 * se  # not the same thing as the error over directions


def rescaled(model: torch.nn.Module, c: torch.Tensor | float) -> torch.nn.Module:
    """The same function: c for the ReLU units' incoming weights and bias, 1/c for their outgoing weights."""
    other = copy.deepcopy(model)
    c = torch.as_tensor(c, dtype=torch.float64).expand(7)
    with torch.no_grad():
        other.up.weight.mul_(c[:, None])
        other.up.bias.mul_(c)
        other.down.weight.div_(c)
    return other


def test_rule_9_one_factor_for_a_relu_layer_leaves_it_and_a_factor_a_row_does_not():
    model = double_mlp()
    whole, single = rescaled(model, 7.0), rescaled(model, torch.tensor([9.0, 0.2, 1, 1, 5, 1, 0.1]))
    values = []
    for m in (model, whole, single):
        objective, space = setting(m)
        assert objective.evaluate().mean_loss == pytest.approx(setting(model)[0].evaluate().mean_loss, abs=1e-12)
        values.append(measure(objective, space, rho=0.3).value)
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert abs(values[2] / values[0] - 1) > 0.05


def test_same_seed_same_value_and_another_seed_another():
    objective, space = setting(double_mlp())
    a, b, c = (measure(objective, space, rho=0.2, directions=2, seed=s) for s in (0, 0, 2))
    assert a.draws == b.draws
    assert not set(a.draws) & set(c.draws)
    # directions are the seeds from `seed` on: the second of seed 0 is the first of seed 1
    assert measure(objective, space, rho=0.2, directions=1, seed=1).draws[0] == a.draws[1]
    assert math.isnan(measure(objective, space, rho=0.2, directions=1).se)


def test_cost_counts_passes():
    objective, space = setting(double_mlp())
    assert measure(objective, space, directions=3).cost["forwards"] == 8  # two at the unchecked centre
    assert measure(objective, space, directions=3).cost["forwards"] == 7
    assert measure(objective, space, directions=3).cost["gradients"] == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rho": 0}, "expected rho to be positive and finite, found 0"),
        ({"rho": math.inf}, "found inf"),
        ({"norm": "l1"}, "expected norm among l2, linf, found 'l1'"),
        ({"directions": 0}, "expected directions to be a whole number of at least 1, found 0"),
    ],
)
def test_wrong_settings_are_one_line(settings, text):
    with pytest.raises(LandscapeError, match=text) as error:
        measure(*setting(double_mlp()), **settings)
    assert "\n" not in str(error.value)
