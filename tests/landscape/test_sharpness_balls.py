"""Rule 21: projections exact in every norm, with zero weights and zero filters present."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from landscape import LandscapeError, Policy, Space
from landscape.sharpness._balls import Box, Ellipsoid, FilterBall

SHAPE = (3, 4)
ROOM = 1e-6  # float32 moves


class Net(nn.Module):
    def __init__(self, weight: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__()
        self.map = nn.Linear(SHAPE[1], SHAPE[0])
        self.to(dtype)
        with torch.no_grad():
            self.map.weight.copy_(torch.from_numpy(weight))


def balls(weight: np.ndarray, rho: float, dtype: torch.dtype = torch.float64, policy: Policy = Policy()):
    model = Net(weight, dtype)
    space = Space(model, ["map.weight", "map.bias"], policy=policy)
    return {
        "filters": FilterBall(space, rho),
        "box": Box(space, rho),
        "keskar": Box(space, rho, lambda w: w.abs() + 1),
        "axes": Ellipsoid(space, rho, torch.abs, "axes"),
        "sphere": Ellipsoid(space, rho, torch.ones_like, "sphere"),
    }


def excess(kind: str, x: np.ndarray, w: np.ndarray, rho: float) -> float:
    """How far outside its ball a move is, relative to the radius; by numpy."""
    if kind == "filters":
        return max(np.linalg.norm(a) - rho * np.linalg.norm(b) for a, b in zip(x, w, strict=True)) / rho
    if kind in ("box", "keskar"):
        width = np.abs(w) + (kind == "keskar")
        return float((np.abs(x) - rho * width).max() / rho)
    scale = np.abs(w) if kind == "axes" else np.ones(SHAPE)
    assert not x[scale == 0].any()
    return float(np.linalg.norm(x[scale > 0] / scale[scale > 0]) / rho - 1)


KINDS = ["filters", "box", "keskar", "axes", "sphere"]
numbers = st.one_of(st.just(0.0), st.floats(-8, 8).filter(lambda v: abs(v) > 1e-3))
matrices = st.lists(numbers, min_size=12, max_size=12).map(lambda v: np.array(v).reshape(SHAPE))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(matrices, matrices, st.floats(0.01, 2), st.sampled_from([torch.float32, torch.float64]))
def test_rule_21_projections_are_inside_idempotent_and_leave_what_is_inside(kind, w, x, rho, dtype):
    ball = balls(w, rho, dtype)[kind]
    w = ball.space.centre["map.weight"].double().numpy()
    move = torch.from_numpy(x).to(dtype)
    there = ball.project({"map.weight": move})["map.weight"]
    assert there.isfinite().all()
    assert excess(kind, there.double().numpy(), w, rho) <= ROOM
    again = ball.project({"map.weight": there})["map.weight"]
    assert torch.equal(again, there)
    if kind != "axes" and excess(kind, x, w, rho) <= 0:
        assert torch.equal(there, move)
    if kind in ("filters", "box", "axes"):
        assert not there[torch.from_numpy(w == 0) & (kind != "filters")].any()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(matrices, matrices, matrices, st.floats(0.01, 2))
def test_rule_21_the_projection_is_the_nearest_point(kind, w, x, other, rho):
    # P x is nearest in a convex set exactly if <x - P x, y - P x> <= 0 for every y in it; `axes` where it is a sphere.
    ball = balls(w, rho)[kind]
    project = lambda m: ball.project({"map.weight": torch.from_numpy(m)})["map.weight"].numpy()  # noqa: E731
    near, y = project(x), project(other)
    scale = np.where(w == 0, 1.0, np.abs(w)) if kind == "axes" else 1.0
    lean = (((x - near) / scale) * ((y - near) / scale))[(w != 0) | (kind != "axes")].sum()
    assert lean <= 1e-9 * (1 + np.abs(x / scale).max() ** 2 + np.abs(other / scale).max() ** 2)


@pytest.mark.parametrize("kind", ["filters", "box", "keskar", "sphere"])
def test_rule_21_the_projection_is_what_scipy_finds(kind):
    rng = np.random.default_rng(0)
    w, x, rho = rng.normal(size=SHAPE), 2 * rng.normal(size=SHAPE), 0.7
    w[1], w[0, 2] = 0, 0
    rows = lambda m: np.sum(m.reshape(SHAPE) ** 2, axis=1)  # noqa: E731
    width = rho * (np.abs(w) + (kind == "keskar")).reshape(-1)
    limits = {
        "filters": {"constraints": {"type": "ineq", "fun": lambda m: rho**2 * rows(w) - rows(m)}},
        "sphere": {"constraints": {"type": "ineq", "fun": lambda m: rho**2 - (m**2).sum()}},
    }.get(kind, {"bounds": np.stack([-width, width], axis=1)})
    far = lambda m: (((m - x.reshape(-1)) ** 2).sum(), 2 * (m - x.reshape(-1)))  # noqa: E731
    found = minimize(far, 0.01 * x.reshape(-1), jac=True, method="SLSQP",
                     options={"ftol": 1e-14, "maxiter": 200}, **limits)  # fmt: skip
    near = balls(w, rho)[kind].project({"map.weight": torch.from_numpy(x)})["map.weight"].numpy()
    np.testing.assert_allclose(near, found.x.reshape(SHAPE), atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(matrices, matrices, matrices, st.floats(0.01, 2))
def test_the_steepest_move_is_in_the_ball_and_no_other_gains_more(kind, w, g, other, rho):
    ball = balls(w, rho)[kind]
    step = ball.steepest({"map.weight": torch.from_numpy(g)})["map.weight"].numpy()
    assert excess(kind, step, w, rho) <= 1e-9
    y = ball.project({"map.weight": torch.from_numpy(other)})["map.weight"].numpy()
    assert (g * step).sum() >= (g * y).sum() - 1e-9 * np.abs(g).sum() * (1 + np.abs(y).max())
    # the dual norm, in closed form
    width = np.abs(w) + (kind == "keskar")
    most = {
        "filters": (np.linalg.norm(g, axis=1) * np.linalg.norm(w, axis=1)).sum(),
        "box": (np.abs(g) * width).sum(),
        "keskar": (np.abs(g) * width).sum(),
        "axes": np.linalg.norm(g * w),
        "sphere": np.linalg.norm(g),
    }[kind]
    np.testing.assert_allclose((g * step).sum(), rho * most, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_in_the_ball_of_radius_one_and_zero_weights_stay(kind):
    w = np.random.default_rng(1).normal(size=SHAPE)
    w[2], w[0, 1] = 0, 0
    for dtype in (torch.float32, torch.float64):
        ball = balls(w, 0.3, dtype)[kind]
        held = ball.space.centre["map.weight"].double().numpy()
        d, e = (ball.draw(s).tensors["map.weight"].double().numpy() for s in (0, 1))
        assert excess(kind, d, held, 1.0) <= ROOM
        assert not np.array_equal(d, e)
        if kind not in ("keskar", "sphere"):
            assert not d[2].any()
        if kind in ("box", "axes"):
            assert d[0, 1] == 0
        # scaled to the radius it comes back as it is: nothing is cut from it
        scaled = ball.scaled(ball.draw(0), 0.3)["map.weight"]
        assert torch.equal(scaled, 0.3 * ball.draw(0).tensors["map.weight"])


def test_uniform_draws_of_a_box_are_uniform():
    from scipy import stats

    model = nn.Linear(100, 100, bias=False)
    d = Box(Space(model, ["weight"]), 1.0).draw(0).tensors["weight"] / model.weight.detach().abs()
    assert stats.kstest(d.reshape(-1).numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_what_the_policy_holds_still_does_not_move_and_nothing_left_is_an_error():
    w = np.ones(SHAPE)
    assert balls(w, 1.0)["box"].names == ["map.weight"]
    assert balls(w, 1.0, policy=Policy(bias_and_norm="element"))["filters"].names == ["map.weight", "map.bias"]
    model = Net(w, torch.float32)
    for kind in (FilterBall, Box):
        with pytest.raises(LandscapeError, match="policy bias_and_norm='zero' holds them still"):
            kind(Space(model, ["map.bias"]), 1.0)
    for kind in ("filters", "box", "axes"):
        with pytest.raises(LandscapeError, match="nothing moves"):
            balls(0 * w, 1.0)[kind].draw(0)


def test_noise_without_a_bound_is_cut_to_its_entry():
    w = np.ones(SHAPE)
    ball = balls(w, 0.5, policy=Policy(bias_and_norm="element"))["filters"]
    with torch.no_grad():
        bias = ball.space.centre["map.bias"]
    cut = ball.scaled(ball.draw(0), 5.0)["map.bias"]
    assert (cut.abs() <= 0.5 * bias.abs() * (1 + 1e-12)).all()
