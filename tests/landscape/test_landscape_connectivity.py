"""Ways between checkpoints: exact ends, barriers by hand, curves of closed form, the plane of three."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, everything, seeded
from scipy import optimize
from torch import Tensor, nn

from landscape import LandscapeError, Objective, Space, bezier_curve, draw, interpolate, plane, plane_through
from landscape.connectivity import coefficients, ends

KINDS = [Mlp, ConvNet, TinyVit, Tied]


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def pair(kind: type[nn.Module] = Mlp) -> tuple[Objective, Space, dict[str, Tensor], nn.Module]:
    """An objective at one network, its space, and the parameters of another network."""
    here, there = seeded(kind, 0), seeded(kind, 1)
    return Objective(here, *data(kind)), Space(here, names(here)), dict(there.named_parameters()), there


def sample_losses(model: nn.Module, kind: type[nn.Module]) -> np.ndarray:
    x, y = data(kind)
    with torch.no_grad():
        logits = model.eval()(**x)["logits"] if kind is TinyVit else model.eval()(x)
    return -torch.log_softmax(logits.double(), dim=1)[torch.arange(len(y)), y].numpy()


def between_by_hand(here: nn.Module, there: nn.Module, alpha: float) -> nn.Module:
    """A fresh network whose parameters are the weighted mean of two others', one by one in float64."""
    model = copy.deepcopy(here)
    with torch.no_grad():
        for p, a, b in zip(model.parameters(), here.parameters(), there.parameters(), strict=True):
            p.copy_((1 - alpha) * a.double() + alpha * b.double())
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_rule_1_both_ends_are_exact_and_the_barrier_is_that_by_hand(kind):
    objective, space, other, there = pair(kind)
    before = everything(space.model)
    found = interpolate(objective, space, other, 7)
    assert everything(space.model) == before  # rule 3
    losses = found.curve.values()
    first, last = sample_losses(space.model, kind), sample_losses(there, kind)
    assert losses[0] == first.sum() / len(first)
    assert losses[-1] == last.sum() / len(last)
    by_hand = [sample_losses(between_by_hand(space.model, there, a), kind) for a in found.curve.alphas]
    np.testing.assert_allclose(losses, [x.mean() for x in by_hand], atol=1e-6)
    over = [x - (1 - a) * first - a * last for a, x in zip(found.curve.alphas, by_hand, strict=True)]
    highest = int(np.argmax([x.mean() for x in over]))
    assert found.barrier.value == pytest.approx(max(over[highest].mean(), 0), abs=1e-6)
    if found.barrier.value > 1e-5:
        assert found.barrier.details["alpha"] == found.curve.alphas[highest]
        assert found.barrier.se == pytest.approx(over[highest].std(ddof=1) / math.sqrt(len(first)), rel=1e-3)
    frame = found.curve.to_frame()
    moved = {n: c - other[n].detach() for n, c in space.centre.items() if not torch.equal(c, other[n])}
    distance = torch.cat([m.flatten() for m in moved.values()]).norm()
    norm = torch.cat([space.centre[n].flatten() for n in moved]).norm()
    np.testing.assert_allclose(frame.effective_radius, frame.alpha * float(distance / norm), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_the_end_is_exact_for_weights_of_any_size(seed, dtype):
    """Weights of very different exponents, where centre + (other - centre) is mostly not the other."""
    rng = np.random.default_rng(seed)
    span = 4 if dtype == torch.float16 else 20
    ends_of_it = [rng.standard_normal((7, 5)) * 2.0 ** rng.integers(-span, span, (7, 5)) for _ in range(2)]
    model = seeded(Mlp).to(dtype)
    here, there = (torch.from_numpy(w).to(dtype) for w in ends_of_it)
    with torch.no_grad():
        model.up.weight.copy_(here)
    space = Space(model, ["up.weight"])
    way = ends(space, {"up.weight": there})
    with space:
        space.move(way, coefficients(len(way), 0, 1.0))
        assert torch.equal(model.up.weight, there)
        space.move(way, coefficients(len(way), 0, 0.0))
        assert torch.equal(model.up.weight, here)


def test_the_standard_error_of_a_barrier_is_paired():
    """A network and the same with its hidden units in another order: one loss at both ends and a hill between."""
    here = seeded(Mlp)
    with torch.no_grad():
        for p in here.parameters():
            p *= 4
    there, order = copy.deepcopy(here), torch.tensor([3, 0, 5, 6, 1, 4, 2])
    with torch.no_grad():
        there.up.weight.copy_(here.up.weight[order])
        there.up.bias.copy_(here.up.bias[order])
        there.down.weight.copy_(here.down.weight[:, order])
        x, _ = data(Mlp, n=60)
        y = here.eval()(x).argmax(dim=1)
    found = interpolate(Objective(here, x, y), Space(here, names(here)), dict(there.named_parameters()), 5)
    losses = found.curve.values()
    assert losses[0] == pytest.approx(losses[-1], rel=1e-5)

    def each(model: nn.Module) -> np.ndarray:
        with torch.no_grad():
            return nn.functional.cross_entropy(model.eval()(x).double(), y, reduction="none").numpy()

    alpha = found.barrier.details["alpha"]
    over = each(between_by_hand(here, there, alpha)) - (1 - alpha) * each(here) - alpha * each(there)
    assert found.barrier.value > 0.1
    assert found.barrier.value == pytest.approx(over.mean(), rel=1e-4)
    assert found.barrier.se == pytest.approx(over.std(ddof=1) / math.sqrt(60), rel=1e-4)
    unpaired = each(between_by_hand(here, there, alpha)).std(ddof=1) / math.sqrt(60)
    assert found.barrier.se != pytest.approx(unpaired, rel=1e-3)
    assert found.barrier.error_over == "samples"


def test_a_step_of_the_rounded_difference_alone_misses_the_end():
    """What the second direction is for."""
    _, space, other, _ = pair()
    line, _rest = ends(space, other)
    with space:
        space.move(line, 1.0)
        assert any(not torch.equal(p, other[n]) for n, p in space.parameters.items())


def test_several_splits_and_no_barrier():
    model = seeded(Mlp)
    objectives = {"train": Objective(model, *data(Mlp)), "test": Objective(model, *data(Mlp, n=12, seed=9))}
    space = Space(model, ["down.bias"])
    found = interpolate(objectives, space, {"down.bias": model.down.bias.detach() + torch.tensor([1.0, 0, 0, 0])}, 5)
    # The loss is convex in the last bias: no point lies above the straight line.
    assert found.barriers["test"].value == found.barriers["train"].value == 0
    assert found.barrier.se == 0
    assert set(found.to_frame().split) == {"train", "test"}
    assert found.curve.to_frame().groupby("split").size().tolist() == [5, 5]
    assert "straight line" in repr(found)
    assert "barrier" in found._repr_html_()


class Ring(nn.Module):
    """Loss (|w|^2 - 1)^2 for every sample: its minima are a circle, so the straight way between two is over a hill."""

    def __init__(self, at: tuple[float, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([at], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * ((self.w**2).sum() - 1)


def ring(angle: float, degree: int = 2) -> tuple[Objective, Space, dict[str, Tensor], float]:
    model = Ring((1.0, 0.0))
    x = torch.ones(6, 1, dtype=torch.float64)
    objective = Objective(model, x, torch.zeros(6, 1), loss=lambda z, _: (z**2).sum(dim=1), batch_size=2)
    return (
        objective,
        Space(model, ["w"]),
        {"w": torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)},
        angle,
    )


def mean_loss(control: np.ndarray, angle: float) -> float:
    """The mean over alpha of the loss on a quadratic curve, by Gauss-Legendre (it is a polynomial of degree 8)."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    t = (nodes + 1) / 2
    a, b = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    phi = np.outer((1 - t) ** 2, a) + np.outer(2 * t * (1 - t), control) + np.outer(t**2, b)
    return float((weights / 2 * ((phi**2).sum(axis=1) - 1) ** 2).sum())


def test_the_barrier_of_a_chord_in_closed_form():
    """Half way on the chord of an angle the radius is cos(angle / 2)."""
    objective, space, other, angle = ring(2.0)
    found = interpolate(objective, space, other, 11)
    assert found.barrier.value == pytest.approx((math.cos(angle / 2) ** 2 - 1) ** 2, rel=1e-9)
    assert found.barrier.details["alpha"] == 0.5


def test_the_trained_curve_is_the_best_one_by_quadrature():
    objective, space, other, angle = ring(2.0)
    before = everything(space.model)
    best = optimize.minimize(mean_loss, x0=np.array([0.3, 0.4]), args=(angle,), tol=1e-12)
    found = bezier_curve(objective, space, other, 21, steps=250, lr=0.2)
    assert everything(space.model) == before  # rule 3
    control = found.controls[0]["w"].numpy().ravel()
    assert mean_loss(control, angle) == pytest.approx(best.fun, abs=5e-4)  # 0.27 on the chord
    np.testing.assert_allclose(control, best.x, atol=0.05)
    straight = interpolate(objective, space, other, 21)
    assert 0 < found.barrier.value < 0.1 * straight.barrier.value
    losses = found.curve.values()
    assert losses[0] == straight.curve.values()[0]
    assert losses[-1] == straight.curve.values()[-1]
    # Each point by the formula itself.
    for t, loss in zip(found.curve.alphas, losses, strict=True):
        end = other["w"].numpy().ravel()
        phi = (1 - t) ** 2 * np.array([1.0, 0.0]) + 2 * t * (1 - t) * control + t**2 * end
        assert loss == pytest.approx(((phi**2).sum() - 1) ** 2, abs=1e-12)


def test_a_cubic_has_two_control_points_and_starts_on_the_straight_line():
    objective, space, other, _ = ring(2.0)
    still = bezier_curve(objective, space, other, 5, degree=3, steps=1, lr=1e-12)
    line = interpolate(objective, space, other, 5)
    np.testing.assert_allclose(still.curve.values(), line.curve.values(), atol=1e-9)
    assert len(still.controls) == 2
    bent = bezier_curve(objective, space, other, 21, degree=3, steps=250, lr=0.2)
    assert bent.barrier.value < 0.02 * line.barrier.value


def test_training_is_seeded_uses_every_batch_and_is_restored():
    objective, space, other, _ = pair()
    objective.batch_size = 8
    model = space.model.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
        p.requires_grad_(False)
    before = everything(model)
    first = bezier_curve(objective, space, other, 3, steps=12, seed=1)
    again = bezier_curve(objective, space, other, 3, steps=12, seed=1)
    third = bezier_curve(objective, space, other, 3, steps=12, seed=2)
    assert everything(model) == before
    assert torch.equal(first.controls[0]["up.weight"], again.controls[0]["up.weight"])
    assert not torch.equal(first.controls[0]["up.weight"], third.controls[0]["up.weight"])
    assert first.curve.values()[0] == objective.evaluate().mean_loss
    said = first.curve.provenance
    assert (said["steps"], said["seed"], said["finished"], len(said["losses"])) == (12, 1, True, 12)


@pytest.mark.parametrize("degree", [2, 3])
def test_training_is_the_literal_loop(degree):
    """Autograd through the curve written out, entry by entry, with the same draws of alpha and of the batches."""
    objective, space, other, _ = pair()
    objective.batch_size = 8
    found = bezier_curve(objective, space, other, 2, degree=degree, steps=6, lr=0.1, seed=4)
    x, y = data(Mlp)
    a, b = space.centre, {n: w.detach() for n, w in other.items()}
    inner = [{n: a[n] + (b[n] - a[n]) * k / degree for n in a} for k in range(1, degree)]
    for p in inner:
        for n in p:
            p[n] = p[n].clone().requires_grad_()
    moved = torch.cat([(b[n] - a[n]).flatten() for n in a])
    size = 0.1 * float(moved.norm()) / math.sqrt(int((moved != 0).sum()))
    adam = torch.optim.Adam([w for p in inner for w in p.values()], lr=size)
    rng, left = np.random.default_rng(4), []
    for step in range(6):
        t = rng.random()
        left = left or list(rng.permutation(4))
        rows = slice(8 * left[-1], 8 * left.pop() + 8)
        bernstein = {2: [(1 - t) ** 2, 2 * t * (1 - t), t**2]}
        bernstein[3] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
        points = [a, *inner, b]
        at = {n: sum(c * p[n] for c, p in zip(bernstein[degree], points, strict=True)) for n in a}
        logits = torch.func.functional_call(seeded(Mlp).eval(), at, (x[rows],))
        # The mean over samples of all batches: a short batch counts for its samples.
        loss = nn.functional.cross_entropy(logits.double(), y[rows], reduction="sum") * 4 / 30
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = size * (1 + math.cos(math.pi * step / 6)) / 2
        adam.step()
    for mine, literal in zip(found.controls, inner, strict=True):
        for n in a:
            np.testing.assert_allclose(mine[n], literal[n].detach(), atol=2e-4 * size, err_msg=n)


def test_the_plane_of_three_checkpoints_keeps_their_distances():
    objective, space, a, _ = pair()
    b = dict(seeded(Mlp, 2).named_parameters())
    found = plane_through(space, a, b, labels=("here", "a", "b"))
    states = [space.centre, a, b]
    dense = np.stack([np.concatenate([s[n].detach().double().numpy().ravel() for n in space.names]) for s in states])
    distances = np.linalg.norm(dense[:, None] - dense[None], axis=-1)
    xy = found.coordinates
    np.testing.assert_allclose(np.linalg.norm(xy[:, None] - xy[None], axis=-1), distances, rtol=1e-6)
    assert xy[0].tolist() == [0, 0]
    assert abs(xy[1, 1]) < 1e-6
    assert xy[2, 1] > 0
    assert (found.outside_share < 1e-10).all()
    dx, dy = found.directions
    assert (dx.norm, dy.norm) == pytest.approx((1, 1), rel=1e-6)
    assert abs(dx.dot(dy)) < 1e-6
    for state, (x, y) in zip((a, b), xy[1:], strict=True):
        own = seeded(Mlp)
        own.load_state_dict(state)
        loss = plane(objective, space, dx, dy, [x], [y]).values()[0, 0]
        assert loss == pytest.approx(Objective(own, *data(Mlp)).evaluate().mean_loss, abs=1e-6)
    half = {n: (c + a[n]).detach() / 2 for n, c in space.centre.items()}
    with pytest.raises(LandscapeError, match="all on one line"):
        plane_through(space, a, half)


def test_rule_6_a_loss_that_is_not_finite_on_the_way_is_the_barrier():
    objective, space, other, _ = pair()
    broken = {n: w.detach() * (float("inf") if n == "down.bias" else 1) for n, w in other.items()}
    with pytest.warns(RuntimeWarning, match="inf or NaN"):
        found = interpolate(objective, space, broken, 3)
    assert found.barrier.status == "diverged"
    assert not np.isfinite(found.barrier.value)
    assert math.isnan(found.barrier.se)
    model = Ring((1.0, 0.0))
    steep = Objective(model, torch.ones(2, 1), torch.zeros(2, 1), loss=lambda z, _: z.sum(dim=1).log())
    with pytest.warns(RuntimeWarning, match="ended after 0 of 3 steps"), pytest.warns(RuntimeWarning, match="3 of 3 r"):
        bezier_curve(steep, Space(model, ["w"]), {"w": torch.tensor([[-1.0, 0.0]])}, 3, steps=3)


def test_what_differs_outside_the_space_is_said():
    objective, _, other, _ = pair()
    with pytest.warns(RuntimeWarning, match=r"2 tensors outside the space differ, such as 'up\.weight'"):
        interpolate(objective, Space(objective.model, ["down.weight", "down.bias"]), other, 2)


def test_wrong_use_is_one_line():
    objective, space, other, _ = pair()
    for call, text in [
        (lambda: interpolate(objective, space, other, 1), "at least 2, found 1"),
        (lambda: interpolate(objective, space, {}, 3), "expected 'up.weight'"),
        (lambda: interpolate(objective, space, space.centre, 3), "equal weights"),
        (lambda: bezier_curve(objective, space, other, degree=1), "degree 2 or more"),
        (lambda: bezier_curve(objective, space, other, steps=0), "a step or more"),
        (lambda: bezier_curve(objective, space, other, lr=math.nan), "positive step size"),
        (lambda: interpolate(Objective(seeded(Mlp), *data(Mlp)), space, other, 3), "another model"),
    ]:
        with pytest.raises(LandscapeError, match=text) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_random_model_is_refused_before_training():
    class Random(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    model, steps = seeded(Random), []
    space = Space(model, names(model))
    target = {n: c + draw(space, 0).tensors[n] for n, c in space.centre.items()}
    with pytest.raises(LandscapeError, match="the model's own forward"):
        bezier_curve(Objective(model, *data(Mlp)), space, target, 3, steps=3, on_step=lambda *s: steps.append(s))
    assert not steps


def test_ways_are_drawn_as_the_figure_draws_them():
    mpl = pytest.importorskip("matplotlib")
    mpl.use("agg")
    from matplotlib import pyplot

    objective, space, other, _ = pair()
    line, curve = interpolate(objective, space, other, 5), bezier_curve(objective, space, other, 5, steps=2)
    assert (line.way, curve.way) == ("straight line", "Bezier curve of degree 2")
    assert line.plot().lines
    ax = pyplot.subplots()[1]
    assert curve.plot(ax) is ax
    drawn = ax.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, curve.curve.values())
    pyplot.close("all")


def test_the_error_of_a_barrier_is_that_of_statistics_taken_anew_on_the_way():
    """Rule 8: under ``recalibrate`` the highest point and the end each have their own running statistics."""
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    nets = []
    for seed in (2, 12):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double())
        adam = torch.optim.Adam(nets[-1].parameters(), 1e-2)
        for _ in range(200):
            adam.zero_grad()
            nn.functional.cross_entropy(nets[-1](x), y).backward()
            adam.step()
    start, own = copy.deepcopy(nets[0]), nets[0]
    here, there = start.state_dict(), nets[1].state_dict()

    def at(alpha: float) -> np.ndarray:
        model = copy.deepcopy(start).train()
        mixed = {n: (1 - alpha) * here[n] + alpha * there[n] for n, _ in model.named_parameters()}
        model.load_state_dict({**model.state_dict(), **mixed})
        with torch.no_grad():  # one pass in train mode over all samples at once
            model[1].momentum = 1.0
            model(x)
            return nn.functional.cross_entropy(model.eval()(x), y, reduction="none").numpy()

    space = Space(own, [n for n, _ in own.named_parameters()], batch_norm="recalibrate")
    barrier = interpolate(Objective(own, x, y), space, there, points=11).barrier
    alpha = barrier.details["alpha"]
    assert 0 < alpha < 1
    paired = at(alpha) - ((1 - alpha) * at(0.0) + alpha * at(1.0))
    assert barrier.value == pytest.approx(paired.mean(), rel=1e-3)
    assert barrier.se == pytest.approx(paired.std(ddof=1) / math.sqrt(60), rel=1e-3)
