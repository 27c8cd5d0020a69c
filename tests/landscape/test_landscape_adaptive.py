"""Surfaces from few points, against the full grid, on many small networks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from landscape_nets import Mlp, data, seeded
from scipy import special
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape import LandscapeError, Objective, Space, draw, grid, line, orthogonal_pair, plane
from landscape.adaptive import GROWTH, KERNELS, Process, _more, adaptive

ERROR = 0.01


class Wide(nn.Module):
    """Two hidden layers, smooth or with kinks."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 4, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def trained(activation: type[nn.Module], seed: int, steps: int) -> tuple[Objective, Space]:
    """A network in a minimum; more steps make it sharper."""
    model = seeded(Wide, seed, activation=activation)
    x, _ = data(Mlp, 60, seed)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0.3).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Objective(model, x, y), Space(model, [n for n, _ in model.named_parameters()])


def full(objective: Objective, space: Space, pair: tuple, axis: np.ndarray) -> np.ndarray:
    """The loss in every cell, all at once, by torch.func: no code of the package but the directions."""
    x, y = objective.inputs["0"], objective.targets
    centre = {n: p.detach().double() for n, p in space.model.named_parameters()}
    dx, dy = ({n: t.double() for n, t in d.tensors.items()} for d in pair)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        moved = {n: w + a * dx[n] + b * dy[n] for n, w in centre.items()}
        return nn.functional.cross_entropy(functional_call(space.model, moved, (x.double(),)), y)

    cells = torch.cartesian_prod(torch.from_numpy(axis), torch.from_numpy(axis))
    with torch.no_grad():
        return vmap(loss)(cells[:, 0], cells[:, 1]).reshape(len(axis), len(axis)).numpy()


@pytest.mark.parametrize("seeds", [3, pytest.param(16, marks=pytest.mark.slow)])
def test_rule_10_the_stated_error_is_not_below_the_true_one_on_95_of_100_surfaces(seeds):
    axis = grid(1.0, 25)
    kept, points, cases = 0, [], 0
    for activation in (nn.GELU, nn.Tanh, nn.ReLU):
        for seed in range(seeds):
            objective, space = trained(activation, seed, (5, 40, 150, 400)[seed % 4])
            pair = orthogonal_pair(space, (seed, seed + 100))
            surface = plane(objective, space, *pair, axis, axis, error=ERROR)
            truth = full(objective, space, pair, axis)
            missed = np.abs(surface.values() - truth)
            error = np.percentile(missed, 99) / (truth.max() - truth.min())
            stated = surface.provenance["interpolation"]
            evaluated = surface.values("evaluated").astype(bool)
            assert missed[evaluated].max() < 1e-4 * truth.max()
            assert evaluated.sum() == stated["evaluated"]
            kept += error <= max(stated["estimated_error"]["data"], 1e-6)
            points.append(stated["evaluated"])
            cases += 1
    assert kept >= min(0.95 * cases, cases - 1)  # of few surfaces one may fail
    assert np.median(points) < 625 / 3


def test_only_the_loss_is_interpolated():
    objective, space = trained(nn.GELU, 0, 40)
    surface = plane({"a": objective, "b": objective}, space, *orthogonal_pair(space, (0, 1)), *[grid(1.0, 21)] * 2,
                    error=0.02)  # fmt: skip
    frame = surface.to_frame()
    between = frame[~frame.evaluated]
    assert len(frame) == 2 * 21**2
    assert 0 < len(between) < len(frame)
    assert (
        between[["accuracy", "accuracy_se", "loss_se_nats", "rise_se_nats", "logit_radius", "kl_nats"]]
        .isna()
        .all(axis=None)
    )
    assert between[["loss_nats", "rise_nats", "effective_radius", "x", "y"]].notna().all(axis=None)
    exact = plane(objective, space, *orthogonal_pair(space, (0, 1)), *[grid(1.0, 21)] * 2).to_frame()
    there = frame[(frame.split == "a") & frame.evaluated]
    shared = exact.loc[there.index // 2 if len(exact) == len(frame) // 2 else there.index]
    assert np.array_equal(shared.loss_nats.to_numpy(), there.loss_nats.to_numpy())
    assert np.allclose(exact.effective_radius.to_numpy(), frame[frame.split == "a"].effective_radius.to_numpy(), rtol=0)
    centre = frame[(frame.x == 0) & (frame.y == 0)]
    assert centre.evaluated.all()
    assert (centre.rise_nats == 0).all()


def test_a_curve_takes_fewer_points_and_keeps_its_error():
    objective, space = trained(nn.GELU, 3, 150)
    direction, axis = draw(space, 5), grid(1.0, 101)
    exact = line(objective, space, direction, axis).values()
    curve = line(objective, space, direction, axis, error=0.005)
    assert curve.values("evaluated").sum() < 40
    assert np.percentile(np.abs(curve.values() - exact), 99) < 0.005 * (exact.max() - exact.min())


def test_a_rough_surface_is_evaluated_throughout_and_says_so():
    model = seeded(Mlp)
    x, _ = data(Mlp)

    def rough(z: Tensor, y: Tensor) -> Tensor:
        return torch.frac(1e4 * z.double().abs()).sum(1)

    objective, space = Objective(model, x, torch.zeros(len(x)), loss=rough), Space(model, ["up.weight"])
    curve = line(objective, space, draw(space, 0), grid(1.0, 41), error=0.001)
    assert curve.values("evaluated").all()
    assert "rough" in curve.provenance["interpolation"]["all_evaluated_because"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("shape", "side"), [("hole", 35), pytest.param("ridge", 51, marks=SLOW), pytest.param("bump", 51, marks=SLOW)]
)
def test_what_lies_between_the_first_points_is_seen(shape, side):
    """Neither a narrow ridge, nor a small bump or hole, of which a few points in rows show nothing."""

    def loss(x: float, y: float) -> float:
        away = (x - 0.35) / 0.04 if shape == "ridge" else np.hypot(x - 0.52, y - 0.31) / 0.1
        return 0.5 * (x * x + y * y) + (-0.5 if shape == "hole" else 1.0) * float(np.exp(-(away**2) / 2))

    axis = grid(1.0, side).tolist()
    points = [(x, y) for x in axis for y in axis]
    nothing = SimpleNamespace(mean_loss=0.0)
    probe = SimpleNamespace(
        space=SimpleNamespace(weights="values"), objectives={"": None}, centre={"": nothing}, at=lambda point: {}
    )
    rows, facts = adaptive(
        probe, points, lambda asked, on_point: {p: [{"loss_nats": loss(*p)}] for p in asked}, 0.005, None
    )
    missed = np.abs([row["loss_nats"] - loss(*p) for row, p in zip(rows, points, strict=True)])
    drawn = np.ptp([loss(*p) for p in points])
    assert np.quantile(missed, 0.99) / drawn <= max(facts["interpolation"]["estimated_error"][""], 1e-9)


def test_rule_6_a_surface_that_is_not_finite_is_never_smoothed_over():
    model = seeded(Mlp)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight", "down.weight"])
    with torch.no_grad():
        model.down.weight.mul_(1e38)
    space = Space(model, ["up.weight", "down.weight"])
    with pytest.warns(RuntimeWarning, match="inf or NaN"):
        curve = line(objective, space, draw(space, 0), grid(1e3, 41), error=0.01)
    assert curve.values("evaluated").all()


def test_a_killed_adaptive_surface_goes_on_to_the_same_rows(tmp_path):
    objective, space = trained(nn.GELU, 1, 40)
    pair, axis = orthogonal_pair(space, (0, 1)), grid(1.0, 21)
    whole = plane(objective, space, *pair, axis, axis, error=0.01)

    def stop(done: int, total: int) -> None:
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plane(objective, space, *pair, axis, axis, error=0.01, store=tmp_path, on_point=stop)
    resumed = plane(objective, space, *pair, axis, axis, error=0.01, store=tmp_path)
    assert repr(resumed.rows) == repr(whole.rows)


@pytest.mark.parametrize("nu", sorted(KERNELS))
def test_the_kernels_are_matern_kernels(nu):
    """Against the general formula with a Bessel function (Rasmussen and Williams 2006, eq. 4.14)."""
    rng = np.random.default_rng(0)
    fit = Process(rng.uniform(-1, 1, (12, 2)), rng.normal(size=12))
    fit.smoothness, fit.lengths = nu, np.array([0.5, 2.0])
    a, b = rng.uniform(-1, 1, (2, 9, 2))
    s = np.sqrt(2 * nu) * np.linalg.norm((a[:, None] - b) / fit.lengths, axis=-1)
    assert np.allclose(fit._kernel(a, b), 2 ** (1 - nu) / special.gamma(nu) * s**nu * special.kv(nu, s))


def test_the_likelihood_chooses_the_smoothness():
    """Among draws of each kernel, most are told by the right one, or a neighbour (the data say little more)."""
    x = np.random.default_rng(0).uniform(-1, 1, (80, 2))
    found = {}
    for nu in KERNELS:
        fit = Process(x[:5], x[:5, 0])
        fit.smoothness, fit.lengths = nu, np.array([1.0, 1.0])
        half = np.linalg.cholesky(fit._kernel(x, x) + 1e-9 * np.eye(80))
        draws = [Process(x, half @ np.random.default_rng(i).normal(size=80)).smoothness for i in range(8)]
        found[nu] = np.mean(draws)
    assert found[2.5] < found[3.5] < found[4.5]


def test_the_process_is_that_of_the_textbook():
    """Mean, spread and left-out errors by explicit inverses, and by leaving each point out in turn."""
    rng = np.random.default_rng(0)
    x, z = rng.uniform(-1, 1, (12, 2)), rng.normal(size=12)
    fit = Process(x, z)
    k = lambda a, b: fit._kernel(a, b)  # noqa: E731
    nugget = np.exp(fit.fitted[fit.smoothness][-1])
    cov = k(x, x) + nugget * np.eye(12)
    inverse, ones = np.linalg.inv(cov), np.ones(12)
    standard = (z - z.mean()) / z.std()
    beta = ones @ inverse @ standard / (ones @ inverse @ ones)
    cells = rng.uniform(-1, 1, (5, 2))
    mean = beta + k(cells, x) @ inverse @ (standard - beta)
    assert np.allclose(fit.mean(cells), z.mean() + z.std() * mean)
    sigma2 = (standard - beta) @ inverse @ (standard - beta) / 12
    spread = np.sqrt(sigma2 * (1 - np.einsum("ij,jk,ik->i", k(cells, x), inverse, k(cells, x))))
    assert np.allclose(fit.spread(cells), z.std() * spread)
    missed, _ = fit.left_out()
    for i in range(12):
        rest = np.delete(np.arange(12), i)
        c = np.linalg.inv(cov[np.ix_(rest, rest)])
        predicted = beta + k(x[i : i + 1], x[rest]) @ c @ (standard[rest] - beta)
        assert np.isclose(missed[i], z.std() * (standard[i] - predicted[0]))


def test_an_error_that_hardly_falls_asks_for_the_most_points():
    assert _more([(100, 0.05 + 1e-12), (120, 0.05)], 0.005) == GROWTH * 120


def test_a_staircase_and_an_error_that_is_no_share_are_refused():
    model = seeded(Mlp)
    objective = Objective(model, *data(Mlp))
    stairs = Space(model, ["up.weight"], weights="requantised")
    with pytest.raises(LandscapeError, match="staircase"):
        line(objective, stairs, draw(stairs, 0), grid(1.0, 11), error=0.01)
    space = Space(model, ["up.weight"])
    for wrong in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(LandscapeError, match="between 0 and 1"):
            line(objective, space, draw(space, 0), grid(1.0, 11), error=wrong)
