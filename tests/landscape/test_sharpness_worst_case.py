"""Worst cases against trust-region and corner closed forms, brute force in two weights, and rule 21's order."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from landscape_nets import CLASSES, Mlp, TinyVit, data, everything, seeded
from sharpness_bowls import bowl, losses_of_two, most_in_ball, rise, two_weights
from torch import nn

from landscape import LandscapeError, Objective, Policy, Space
from landscape.sharpness import average, worst_case
from landscape.sharpness._ascent import Climb, _checkpoints, climb
from landscape.sharpness._balls import Box, FilterBall


def net(kind: type[nn.Module] = Mlp, **options: object) -> tuple[Objective, Space]:
    model = seeded(kind).double()
    x, y = data(kind)
    x = {k: v.double() for k, v in x.items()} if isinstance(x, dict) else x.double()
    return Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()], **options)


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("rows", [1, 3])
def test_l2_on_a_bowl_is_the_trust_region_maximum_of_every_filter(rows, slope):
    objective, space, hessian, g, w = bowl(rows, slope=slope)
    found = worst_case.measure(objective, space, rho=0.4, steps=60)
    exact = sum(most_in_ball(hessian, g[i], 0.4 * np.linalg.norm(w[i])) for i in range(rows))
    assert found.value == pytest.approx(exact, rel=1e-3)
    assert found.value <= exact * (1 + 1e-9)
    assert found.status == "converged"


def test_linf_on_a_separable_bowl_is_its_corner():
    objective, space, hessian, g, w = bowl(2, slope=0.3, diagonal=True)
    assert abs(hessian - np.diag(np.diag(hessian))).max() < 1e-9
    found = worst_case.measure(objective, space, rho=0.3, norm="linf", steps=30)
    exact = (0.5 * np.diag(hessian) * (0.3 * w) ** 2 + np.abs(g) * 0.3 * np.abs(w)).sum()
    assert found.value == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("norm", "policy"), [("l2", "filter"), ("linf", "filter"), ("l2", "layer")])
@pytest.mark.parametrize("rho", [0.2, 1.5])
def test_brute_force_over_two_weights(norm, policy, rho):
    objective, space = two_weights(Policy(matrices=policy))
    found = worst_case.measure(objective, space, rho=rho, norm=norm, steps=40)
    w = space.centre["w"].numpy()[0]
    if norm == "l2":  # one row: a disc
        radius, angle = np.meshgrid(np.linspace(0, rho * np.linalg.norm(w), 150), np.linspace(0, 2 * np.pi, 300))
        moves = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(-1, 2)
    else:
        moves = np.stack(np.meshgrid(*(np.linspace(-rho * abs(v), rho * abs(v), 150) for v in w)), -1).reshape(-1, 2)
    grid = losses_of_two(w + moves, objective) - losses_of_two(w[None], objective)
    assert found.value == pytest.approx(grid.max(), rel=2e-3)
    assert found.value >= grid.max() * (1 - 2e-4)  # the grid comes close from below


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", [Mlp, TinyVit])
def test_rule_21_never_below_the_average_case_nor_a_smaller_radius(kind, norm):
    objective, space = net(kind)
    rhos = [0.001, 0.01, 0.05, 0.2, 0.21]
    # one step only: what holds by construction, not because the search is good
    found = worst_case.ladder(objective, space, rhos=rhos, norm=norm, steps=1, directions=3, restarts=2)
    values = [e.value for e in found]
    assert values == sorted(values)
    for rho, e in zip(rhos, found, strict=True):
        case = average.measure(objective, space, rho=rho, norm=norm, directions=3)
        assert e.value >= max(max(pair) for pair in case.details["rises_nats"])
        assert e.value >= 0
    assert {a["start"] for a in found[1].details["ascents"]} == {"average case", "next smaller radius"}
    assert {a["start"] for a in found[0].details["ascents"]} == {"average case", "centre"}


def test_rule_21_the_draw_and_the_smaller_radius_count_when_every_ascent_fails(monkeypatch):
    model = seeded(Mlp).double()
    x, y = data(Mlp)
    space = Space(model, ["up.weight"])
    centre = model.up.weight.detach().clone()

    def ring(logits, targets):  # a wall at relative distances about 0.1, and low beyond it
        away = (model.up.weight - centre).norm() / centre.norm()
        return 0 * logits.sum(dim=1) + torch.exp(-((away - 0.1) ** 2) * 1e3)

    objective = Objective(model, x.double(), y, loss=ring)

    def fruitless(meter, ball, start, label, steps, rows=None):
        return climb(lambda m: 0.0, lambda m: (0.0, ball.zero()), ball, ball.zero(), label, steps)

    monkeypatch.setattr(worst_case, "ascend", fruitless)
    small, large = worst_case.ladder(objective, space, rhos=[0.1, 0.5], directions=2)
    case = average.measure(objective, space, rho=0.1, directions=2)
    assert small.value == max(max(pair) for pair in case.details["rises_nats"]) > 0.9
    assert small.details["found_from"] == "average case"
    assert large.value == small.value
    assert worst_case.measure(objective, space, rho=0.5, directions=2).value < 1e-3


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_rule_21_zero_weights_stay_and_never_make_a_nan(norm):
    objective, space = net(TinyVit, policy=Policy(bias_and_norm="element"))
    model = copy.deepcopy(space.model)
    with torch.no_grad():
        model.up.weight.zero_()  # a low-rank adapter at initialisation
        model.mix.weight[2] = 0
        model.head.weight[0, 1] = 0
    objective = Objective(model, {k: v.double() for k, v in data(TinyVit)[0].items()}, data(TinyVit)[1])
    space = Space(model, space.names, policy=space.policy)
    seen: list[dict[str, torch.Tensor]] = []
    original = space.move
    space.move = lambda d, c: (seen.append({n: t.clone() for n, t in d.tensors.items()}), original(d, c))  # type: ignore
    found = worst_case.measure(objective, space, rho=0.3, norm=norm, steps=8)
    assert math.isfinite(found.value)
    assert found.value > 0
    assert len(seen) > 20
    for move in seen:
        assert all(bool(t.isfinite().all()) for t in move.values())
        assert not move["up.weight"].any()
        assert not move["mix.weight"][2].any()
        if norm == "linf":
            assert move["head.weight"][0, 1] == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_step_stays_in_the_ball_is_logged_and_its_gradient_is_its_own(norm):
    _, space, hessian, g, w = bowl(2, slope=0.4, diagonal=True)
    ball = (FilterBall if norm == "l2" else Box)(space, 0.5)
    visited: list[np.ndarray] = []

    def value_and_gradient(move):
        m = move["map.weight"].numpy()
        assert ball.project(move)["map.weight"].equal(move["map.weight"])
        visited.append(m)
        return rise(m, hessian, g), {"map.weight": torch.from_numpy(g + m @ hessian)}

    # A rise of its own, bowed the other way, so that steps overshoot, halve and restart from the best.
    hessian = -8 * hessian
    found = climb(lambda m: value_and_gradient(m)[0], value_and_gradient, ball, ball.zero(), "centre", 40)
    assert [s["step"] for s in found.steps] == list(range(41))
    assert [s["loss_nats"] for s in found.steps] == [rise(m, hessian, g) for m in visited]
    assert found.loss == max(s["loss_nats"] for s in found.steps)
    assert rise(found.move["map.weight"].numpy(), hessian, g) == found.loss
    etas = [s["eta"] for s in found.steps]
    assert etas[-1] < 0.1
    assert all(b in (a, a / 2) for a, b in pairwise(etas))
    # After a halving the step begins at the best move so far, with that move's gradient and no momentum.
    for i in range(2, 40):
        if etas[i] < etas[i - 1]:
            best = max(visited[:i], key=lambda m: rise(m, hessian, g))
            up = ball.steepest({"map.weight": torch.from_numpy(g + best @ hessian)})["map.weight"]
            z = ball.project({"map.weight": torch.from_numpy(best) + etas[i] * up})["map.weight"].numpy()
            np.testing.assert_allclose(visited[i], best + 0.75 * (z - best), atol=1e-12)
            break
    else:
        pytest.fail("the step was never halved")
    # The maximum of a concave, separable quadratic: where its gradient vanishes, cut entry by entry to the box.
    most = -g / np.diag(hessian)
    if norm == "linf":
        most = np.clip(most, -0.5 * np.abs(w), 0.5 * np.abs(w))
    assert ball.project({"map.weight": torch.from_numpy(most)})["map.weight"].equal(torch.from_numpy(most))
    assert found.loss == pytest.approx(rise(most, hessian, g), rel=1e-2)


def test_checkpoints_are_those_of_the_paper():
    # p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99, then beyond the end
    assert sorted(c for c in _checkpoints(100) if c <= 100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_rule_3_all_is_put_back_after_an_exception_in_the_middle_of_an_ascent():
    class Stops(Exception):
        pass

    class Net(Mlp):
        calls = 0

        def forward(self, x):
            Net.calls += 1
            if Net.calls == 40:
                raise Stops
            return super().forward(x)

    model = seeded(Net).train()
    model.up.bias.requires_grad_(False)
    space = Space(model, ["up.weight", "down.weight"])
    objective = Objective(model, *data(Mlp))
    before = everything(model)
    with pytest.raises(Stops):
        worst_case.measure(objective, space, rho=0.1, directions=2)
    assert everything(model) == before
    worst_case.measure(objective, space, rho=0.1, directions=2, steps=3)
    assert everything(model) == before


@pytest.mark.parametrize(("bad", "check"), [(math.inf, math.isinf), (math.nan, math.isnan)])
@pytest.mark.filterwarnings("ignore:.*inf or NaN")
def test_rule_6_a_loss_that_breaks_on_the_way_is_the_value(bad, check):
    model = seeded(Mlp).double()
    edge = float(model.down.weight.detach().norm() * 1.02)

    def loss(logits, targets):
        plain = nn.functional.cross_entropy(logits, targets, reduction="none")
        return torch.where(model.down.weight.norm() > edge, bad, plain)

    x, y = data(Mlp)
    found = worst_case.measure(
        Objective(model, x.double(), y, loss=loss), Space(model, ["up.weight", "down.weight"]), rho=0.2, steps=15
    )
    assert check(found.value)
    assert found.status == "diverged"
    assert math.isnan(found.se)


def test_rule_6_it_warns_with_a_count():
    objective, space = net()
    with torch.no_grad():
        space.model.up.weight[0, 0] = math.nan
    space = Space(space.model, space.names)
    with pytest.warns(RuntimeWarning, match="worst_case_sharpness: the centre's loss is inf or NaN"):
        found = worst_case.measure(objective, space)
    assert found.status == "diverged"
    assert math.isnan(found.value)


@pytest.mark.parametrize(
    ("losses", "rose"),
    [([1.0], math.nan), ([1.0, 3.0], 2.0), ([1.0, 2.0, 5.0], 3.0), ([0.0, 4.0, 1.0, 2.0, 5.0], 1.0)],
)
def test_the_residual_is_the_rise_of_the_best_loss_in_the_last_quarter_of_the_steps(losses, rose):
    steps = [{"step": i, "loss_nats": loss} for i, loss in enumerate(losses)]
    assert Climb("centre", {}, max(losses), steps).residual == pytest.approx(rose, nan_ok=True)
    assert math.isnan(Climb("centre", {}, max(losses), steps, stopped="the gradient is inf or NaN").residual)


def test_a_gradient_that_is_nan_ends_an_ascent_and_keeps_what_it_had():
    _, space, *_ = bowl(1)
    ball = FilterBall(space, 0.5)
    nan = {"map.weight": torch.full((1, 6), math.nan, dtype=torch.float64)}
    found = climb(lambda m: 1.0, lambda m: (1.0, nan), ball, ball.zero(), "centre", 5)
    assert found.stopped == "the gradient is inf or NaN"
    assert found.loss == 1.0
    assert len(found.steps) == 1


def test_rule_9_one_factor_for_a_relu_layer_leaves_it():
    objective, space = net()
    model = copy.deepcopy(space.model)
    with torch.no_grad():
        model.up.weight.mul_(5)
        model.up.bias.mul_(5)
        model.down.weight.div_(5)
    x, y = data(Mlp)
    other = Objective(model, x.double(), y), Space(model, space.names)
    for norm in ("l2", "linf"):
        settings = {"rho": 0.1, "norm": norm, "steps": 10, "directions": 2}
        a, b = worst_case.measure(objective, space, **settings), worst_case.measure(*other, **settings)
        assert b.value == pytest.approx(a.value, rel=1e-9)


def test_the_details_are_plain_and_hold_every_step():
    objective, space = net()
    found = worst_case.measure(objective, space, rho=0.1, steps=7, restarts=4, directions=2)
    assert len(found.details["ascents"]) == len(found.draws) == 4
    assert all(len(a["steps"]) == 8 for a in found.details["ascents"])
    assert json.loads(json.dumps(found.details))["ascents"][3]["start"] == "random draw, seed 3"
    assert found.cost["gradients"] == 4 * 7  # a gradient a step, none at the last point
    assert found.details["effective_radius"] <= 0.1 * (1 + 1e-9)
    assert found.value >= max(found.draws) - 1e-9
    losses = [s["loss_nats"] for a in found.details["ascents"] for s in a["steps"]]
    assert max(losses) - found.details["baseline"]["loss_nats"] == pytest.approx(found.value, rel=1e-9)


def test_half_precision_moves_in_float32():
    model = seeded(Mlp).to(torch.bfloat16)
    x, y = data(Mlp)
    found = worst_case.measure(
        Objective(model, x.to(torch.bfloat16), y), Space(model, ["up.weight", "down.weight"]), rho=0.1, steps=5
    )
    assert found.value > 0
    assert CLASSES == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rho": -1.0}, "expected rho to be positive"),
        ({"norm": "l3"}, "expected norm among l2, linf"),
        ({"steps": 0}, "expected steps to be a whole number of at least 1"),
        ({"restarts": 1}, "expected restarts to be a whole number of at least 2, found 1"),
    ],
)
def test_wrong_settings(settings, text):
    with pytest.raises(LandscapeError, match=text):
        worst_case.measure(*net(), **settings)
    with pytest.raises(LandscapeError, match=r"expected growing radii, found \[0.2, 0.1\]"):
        worst_case.ladder(*net(), rhos=[0.2, 0.1])


@pytest.mark.parametrize("seed", range(4))
def test_rule_21_never_below_the_average_case_where_each_entry_is_a_filter(seed):
    """Noise of one entry has no bound in itself: both cases are of what the ball cuts it to."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0 * x + self.bias

    model, x = Point(), torch.zeros(5, 1, dtype=torch.float64)
    objective = Objective(model, x, x + 2, loss=lambda z, t: ((z - t) ** 2).sum(dim=1))
    space = Space(model, ["bias"], policy=Policy(bias_and_norm="element"))
    mean = average.measure(objective, space, rho=0.1, seed=seed).value
    assert mean <= worst_case.measure(objective, space, rho=0.1, seed=seed).value == pytest.approx(0.04)
