"""Noise radius and basin radius against staircases and bowls whose crossings are known."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import Mlp, data, seeded
from scipy import stats
from scipy.integrate import quad
from sharpness_bowls import Linear, bowl, half_square, two_weights
from torch import nn

from landscape import LandscapeError, Objective, Policy, Space, draw
from landscape.sharpness import basin_radius, noise_radius
from landscape.sharpness._crossing import enclose


@settings(max_examples=100, deadline=None)
@given(st.floats(-6, 1.5), st.floats(-2, 1), st.floats(0.001, 0.5))
def test_a_crossing_is_enclosed_to_the_tolerance(exponent, first, tolerance):
    at, start = 10**exponent, 10**first
    inner, outer = enclose(lambda a: a >= at, start, 100.0, tolerance)
    assert inner < at <= outer <= (1 + tolerance) * inner


def test_nothing_beyond_and_all_beyond():
    seen: list[float] = []
    assert enclose(lambda a: seen.append(a) or False, 0.1, 3.0, 0.1) is None
    assert max(seen) == 3.0
    inner, outer = enclose(lambda a: True, 0.1, 3.0, 0.1)
    assert inner == 0
    assert outer < 1e-12


class Threshold(nn.Module):
    """Class 1 where w x > 1: noise of one entry is plus or minus w, so accuracy is a staircase known in advance."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            self.map.weight.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), self.map(x) - 1], dim=1)


def staircase() -> tuple[Objective, Space, np.ndarray, list[float]]:
    x = np.linspace(0.5, 1.5, 200)  # sample i changes its class at alpha |1/x_i - 1|, on one side
    model = Threshold()
    objective = Objective(model, torch.from_numpy(x)[:, None], torch.from_numpy((x > 1).astype(int)))
    space = Space(model, ["map.weight"])
    signs = [float(draw(space, s).tensors["map.weight"]) for s in range(4)]
    return objective, space, x, signs


def test_the_noise_radius_of_a_known_staircase():
    objective, space, x, signs = staircase()
    assert {round(s, 12) for s in signs} == {1.0, -1.0}

    def drops(alpha: float) -> np.ndarray:
        return np.array([np.mean(((1 + s * alpha) * x > 1) != (x > 1)) for s in signs])

    fine = np.geomspace(3e-3, 0.3, 4001)
    means = np.array([drops(a).mean() for a in fine])
    for drop in (0.01, 0.05):
        found = noise_radius.measure(objective, space, drop=drop, directions=4, tolerance=0.01)
        exact = fine[np.argmax(means >= drop)]
        inner, outer = found.details["bracket"]
        assert inner < exact * (1 + 2e-3)
        assert outer > exact * (1 - 2e-3)
        assert found.value == pytest.approx(exact, rel=0.012)
        assert found.residual == pytest.approx((outer - inner) / 2)
        assert found.status == "converged"
        assert found.details["monotone"]
        for row in found.details["evaluated"]:  # evaluated, never interpolated
            np.testing.assert_allclose(row["drops"], drops(row["alpha"]), atol=1e-12)


def fitted() -> tuple[nn.Module, Objective, Space]:
    # Its own predictions are the labels it is right about, so that noise can only cost accuracy.
    model = seeded(Mlp).double()
    x, y = data(Mlp, 300)
    with torch.no_grad():
        y[:] = model(x.double()).argmax(dim=1)
    return model, Objective(model, x.double(), y), Space(model, [n for n, _ in model.named_parameters()])


def test_rule_14_the_interval_is_where_a_t_test_over_directions_turns():
    model, objective, space = fitted()
    found = noise_radius.measure(objective, space, directions=6, tolerance=0.02, seed=3)
    low, high = found.details["interval"]
    assert low < found.value < high
    t = stats.t.ppf(0.975, 5)
    assert found.se == pytest.approx((high - low) / (2 * t))

    def bounds(alpha: float) -> tuple[float, float, float]:
        with torch.no_grad():
            at_centre = model(data(Mlp, 300)[0].double()).argmax(dim=1)
        drops = []
        for seed in range(3, 9):
            net = copy.deepcopy(model)
            with torch.no_grad():
                for name, p in net.named_parameters():
                    p += alpha * draw(space, seed).tensors[name]
                drops.append(float((net(data(Mlp, 300)[0].double()).argmax(dim=1) != at_centre).double().mean()))
        error = t * np.std(drops, ddof=1) / math.sqrt(6)
        return np.mean(drops) - error, float(np.mean(drops)), np.mean(drops) + error

    assert bounds(low * 1.02)[2] >= 0.01 > bounds(low / 1.02)[2]
    assert bounds(found.value * 1.02)[1] >= 0.01 > bounds(found.value / 1.02)[1]
    assert bounds(high * 1.02)[0] >= 0.01 > bounds(high / 1.02)[0]


def test_directions_drawn_anew_give_the_same_radius(monkeypatch):
    _, objective, space = fitted()
    kept = noise_radius.measure(objective, space, directions=3)
    monkeypatch.setattr(noise_radius, "_KEPT", 0)
    assert noise_radius.measure(objective, space, directions=3).value == kept.value


def test_an_accuracy_that_never_drops_is_failed_with_its_reason():
    objective, space, *_ = staircase()
    found = noise_radius.measure(objective, space, drop=0.9, largest=2.0)
    assert found.status == "failed"
    assert math.isnan(found.value)
    assert found.details["reason"] == "the mean accuracy over directions does not drop by 0.9 from 1 up to alpha 2"
    json.dumps(found.details)
    one = noise_radius.measure(objective, space, directions=1)
    assert one.status == "converged"
    assert math.isnan(one.se)


def test_the_noise_radius_needs_classes_and_sound_settings():
    objective, space, *_ = bowl()
    with pytest.raises(LandscapeError, match="expected class scores and class indices"):
        noise_radius.measure(objective, space)
    for settings_, text in [
        ({"confidence": 1.0}, "expected a confidence between 0 and 1, found 1.0"),
        ({"start": 3.0, "largest": 1.0}, "expected start to be at most largest=1.0, found 3.0"),
        ({"drop": 0.0}, "expected drop to be positive"),
    ]:
        with pytest.raises(LandscapeError, match=text):
            noise_radius.measure(*staircase()[:2], **settings_)


@pytest.mark.parametrize("rows", [1, 3])
def test_radii_along_the_rays_of_a_bowl(rows):
    objective, space, hessian, _, w = bowl(rows)
    found = basin_radius.measure(objective, space, rise=0.2, rays=5, tolerance=0.01, seed=7)
    k = w.size
    for i, log in enumerate(found.draws):
        u = basin_radius._ray(space, 7 + i)[0].tensors["map.weight"].numpy()
        # on the sphere of radius sqrt(k), each filter divided by its root mean square
        scale = np.linalg.norm(w, axis=1, keepdims=True) / math.sqrt(w.shape[1])
        assert np.linalg.norm(u / scale) == pytest.approx(math.sqrt(k), rel=1e-12)
        exact = 0.5 * math.log(2 * 0.2 / np.einsum("ri,ij,rj->", u, hessian, u))
        assert exact - math.log(1.01) <= log <= exact
    assert found.value == pytest.approx(np.mean(found.draws))
    assert found.se == pytest.approx(np.std(found.draws, ddof=1) / math.sqrt(5))
    assert found.residual <= math.log(1.01)
    assert found.details["entries"] == k
    assert found.status == "converged"


def test_rule_21_it_is_a_lower_bound_of_the_log_volume():
    objective, space, hessian, _, w = bowl(1, k=2)
    found = basin_radius.measure(objective, space, rise=0.2, rays=60, tolerance=0.01)
    length = np.linalg.norm(w)  # alpha 1 is a circle of this radius: two entries, each the root mean square

    def log_radius(angle: float) -> float:
        u = length * np.array([math.cos(angle), math.sin(angle)])
        return 0.5 * math.log(0.4 / (u @ hessian @ u))

    exact = quad(log_radius, 0, 2 * math.pi)[0] / (2 * math.pi)
    assert abs(found.value - exact) < 4 * found.se + found.residual
    area = 0.4 * math.pi / math.sqrt(np.linalg.det(hessian))
    ratio = math.log(area / (math.pi * length**2))
    assert 2 * exact < ratio
    assert found.details["log_volume_ratio_at_least"] == pytest.approx(2 * found.value)
    assert found.details["log_volume_ratio_at_least"] < ratio + 4 * found.details["log_volume_ratio_se"]
    assert found.details["bound"] == "lower"


def test_rays_that_never_cross_are_counted_and_keep_the_bound():
    objective, space, *_ = bowl(2)
    free = basin_radius.measure(objective, space, rise=0.2, rays=8)
    cut = math.exp(sorted(free.draws)[4])
    found = basin_radius.measure(objective, space, rise=0.2, rays=8, largest=cut, start=cut / 8)
    assert found.details["censored"] == 4
    assert found.status == "budget"
    assert sum(d == math.log(cut) for d in found.draws) == 4
    assert found.value < free.value + free.residual
    none = basin_radius.measure(objective, space, rise=1e6, rays=3, largest=1.0)
    assert none.status == "failed"
    assert none.value == 0  # log of the largest: still a lower bound
    assert none.details["reason"] == "the loss stays below the threshold up to alpha 1 along every ray"


def test_a_loss_that_is_nan_is_beyond_and_one_that_jumps_at_once_has_no_radius():
    weight = np.array([[1.0, 2.0]])
    model = Linear(weight)
    x = torch.zeros(5, 2, dtype=torch.float64)
    y = torch.zeros(5, 1, dtype=torch.float64)
    space = Space(model, ["map.weight"])
    there = lambda: float((model.map.weight.detach() - torch.from_numpy(weight)).norm())  # noqa: E731
    broken = Objective(model, x, y, loss=lambda out, t: half_square(out, t) + (math.nan if there() > 0.5 else 0))
    with pytest.warns(RuntimeWarning, match="points on the way are inf or NaN"):
        found = basin_radius.measure(broken, space, rays=3, tolerance=0.01)
    np.testing.assert_allclose(np.exp(found.draws) * math.sqrt(5), 0.5, rtol=0.011)
    assert found.status == "converged"
    assert found.details["nonfinite_points"] > 0
    jumps = Objective(model, x, y, loss=lambda out, t: half_square(out, t) + (there() > 0))
    found = basin_radius.measure(jumps, space, rays=2)
    assert found.value == -math.inf
    assert found.status == "failed"
    assert found.details["reason"] == "the loss is above the threshold however near, along 2 rays"


def test_zero_filters_do_not_move_and_do_not_count():
    _, space = two_weights()
    model = seeded(Mlp).double()
    with torch.no_grad():
        model.up.weight[2] = 0
    space = Space(model, ["up.weight", "up.bias"])
    ray, entries = basin_radius._ray(space, 0)
    assert entries == 30
    assert not ray.tensors["up.weight"][2].any()
    assert "up.bias" not in ray.moved
    with pytest.raises(LandscapeError, match="nothing moves: policy bias_and_norm='zero'"):
        basin_radius._ray(Space(model, ["up.bias"]), 0)


def test_a_drop_of_exactly_the_one_asked_for_counts():
    """0.29 - 0.28 is 0.00999... in float64: the first of a hundred samples flips at 0.5, the others at 5."""

    class Threshold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([1 - (self.bias - 1).abs() / x, 0 * x], dim=1)

    x = torch.full((100, 1), 1e9, dtype=torch.float64)
    x[0], x[1:29] = 0.5, 5.0
    model, y = Threshold(), torch.tensor([0] * 29 + [1] * 71)
    space = Space(model, ["bias"], policy=Policy(bias_and_norm="vector"))
    found = noise_radius.measure(Objective(model, x, y), space, drop=0.01, directions=4, largest=20.0)
    assert found.value == pytest.approx(0.5, rel=0.1)
