"""Lines and planes against brute force, cell by cell and bit by bit."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, everything, seeded
from torch import nn

from landscape import LandscapeError, Objective, Policy, Space, draw, grid, line, orthogonal_pair, plane

KINDS = [Mlp, ConvNet, TinyVit, Tied]
COLUMNS = {
    "space", "head", "split", "direction", "alpha", "loss_nats", "loss_se_nats", "rise_nats", "rise_se_nats",
    "accuracy", "accuracy_se", "effective_radius", "logit_radius", "kl_nats", "samples", "nonfinite",
    "moving", "moving_share", "direction_norm", "evaluated",
}  # fmt: skip


def setting(kind: type[nn.Module] = Mlp, **options: object) -> tuple[Objective, Space]:
    model = seeded(kind)
    return Objective(model, *data(kind)), Space(model, [n for n, _ in model.named_parameters()], **options)


def brute(space: Space, kind: type[nn.Module], moves: list[tuple[object, float]]) -> float:
    """The mean loss at a point: a fresh copy of the model, its weights set one by one, one pass."""
    model = copy.deepcopy(space.model).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, start in space.centre.items():
            w = start.clone()
            for direction, c in moves:
                if c != 0:
                    w = torch.add(w, direction.tensors[name], alpha=c)
            own[name].copy_(w)
        x, y = data(kind)
        logits = model(**x)["logits"] if kind is TinyVit else model(x)
        losses = -torch.log_softmax(logits.double(), dim=1)[torch.arange(len(y)), y]
    return float(losses.numpy().sum() / len(y))


@pytest.mark.parametrize("kind", KINDS)
def test_rule_1_a_non_square_plane_is_the_brute_force_loop_bit_for_bit(kind):
    objective, space = setting(kind, policy=Policy(bias_and_norm="element"))
    dx, dy = orthogonal_pair(space, (0, 1))
    xs, ys = grid(1.0, 5), np.array([-0.5, 0.0, 0.75])
    surface = plane(objective, space, dx, dy, xs, ys)
    found = surface.values()
    assert found.shape == (5, 3)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            assert found[i, j] == brute(space, kind, [(dx, x), (dy, y)]), (i, j)
    frame = surface.to_frame()
    assert list(frame.x[:4]) == [-1.0, -1.0, -1.0, -0.5]
    assert list(frame.y[:4]) == [-0.5, 0.0, 0.75, -0.5]


def test_rule_1_the_centre_is_the_baseline_exactly():
    objective, space = setting()
    baseline = objective.evaluate()
    curve = line(objective, space, draw(space, 0), grid(1.0, 5))
    row = curve.to_frame().set_index("alpha").loc[0.0]
    assert row.loss_nats == baseline.mean_loss
    assert (row.rise_nats, row.rise_se_nats, row.logit_radius, row.kl_nats, row.effective_radius) == (0, 0, 0, 0, 0)
    assert curve.provenance["baseline"]["data"]["loss_nats"] == baseline.mean_loss
    # The centre is the baseline too where the line does not visit it.
    off = line(objective, space, draw(space, 0), [0.5]).to_frame().iloc[0]
    assert off.rise_nats == curve.to_frame().set_index("alpha").loc[0.5].rise_nats


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 60))
def test_rule_1_a_grid_is_symmetric_with_an_exact_zero(extent, half):
    g = grid(extent, 2 * half + 1)
    assert len(g) == 2 * half + 1
    assert g[half] == 0
    assert (g == -g[::-1]).all()
    assert g[-1] == extent
    assert (np.diff(g) > 0).all()


@pytest.mark.parametrize(("extent", "points"), [(1.0, 4), (1.0, 1), (0.0, 5), (-1.0, 5), (math.inf, 5)])
def test_grids_without_a_centre_are_refused(extent, points):
    with pytest.raises(LandscapeError, match="expected"):
        grid(extent, points)


def test_rule_2_the_order_of_the_points_changes_no_value():
    objective, space = setting(ConvNet)
    d = draw(space, 0)
    alphas = grid(2.0, 7)
    order = np.random.default_rng(0).permutation(7)
    forward = line(objective, space, d, alphas).values()
    mixed = line(objective, space, d, alphas[order]).values()
    assert (forward[order] == mixed).all()
    alone = [line(objective, space, d, [a]).values()[0] for a in alphas]
    assert (forward == alone).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rule_3_everything_is_as_before_a_line_and_after_a_failing_one(kind):
    model = seeded(kind).train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    objective = Objective(model, *data(kind))
    space = Space(model, [n for n, _ in model.named_parameters()])
    before = everything(model)
    line(objective, space, draw(space, 0), grid(1.0, 3))
    assert everything(model) == before

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plane(objective, space, draw(space, 0), draw(space, 1), [0.1, 0.2], [0.1, 0.3], on_point=stop)
    assert everything(model) == before

    class Broken(Exception):
        pass

    def broken(*_: object) -> torch.Tensor:
        raise Broken

    objective = Objective(model, *data(kind), loss=broken)
    with pytest.raises(Broken):
        line(objective, space, draw(space, 0), [1.0])
    assert everything(model) == before


def test_rule_4_a_random_model_is_refused_before_the_first_point():
    class Random(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(1)

    model, seen = seeded(Random), []
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    with pytest.raises(LandscapeError, match="the model's own forward"):
        line(objective, space, draw(space, 0), [0.0, 1.0], on_point=lambda *p: seen.append(p))
    assert not seen


def test_rule_6_a_point_that_is_not_finite_is_marked_and_counted():
    objective, space = setting()
    with pytest.warns(RuntimeWarning, match="1 of 3 rows"):
        curve = line(objective, space, draw(space, 0), [0.0, 0.5, 1e30])
    frame = curve.to_frame()
    assert list(frame.nonfinite > 0) == [False, False, True]
    assert not np.isfinite(frame.loss_nats[2])
    assert curve.provenance["nonfinite_rows"] == 1


def test_rule_12_rows_carry_size_norm_and_three_radii():
    model = seeded(Mlp)
    objectives = {"train": Objective(model, *data(Mlp)), "test": Objective(model, *data(Mlp, n=12, seed=9))}
    space = Space(model, ["up.weight", "up.bias"], kind="factors", head=False)
    d = draw(space, 3)
    frame = line(objectives, space, d, grid(0.5, 3)).to_frame()
    assert set(frame) == COLUMNS
    assert list(frame.split) == ["train", "test"] * 3
    assert list(frame.samples) == [30, 12] * 3
    assert set(frame.moving) == {35}
    assert set(frame.moving_share) == {35 / (35 + 7 + 28 + 4)}
    assert set(frame.direction) == {3}
    np.testing.assert_allclose(frame.direction_norm, float(model.up.weight.detach().norm()), rtol=1e-6)
    np.testing.assert_allclose(frame.effective_radius, frame.alpha.abs(), rtol=1e-6)
    for split, o in objectives.items():
        centre = o.evaluate()
        with space:
            space.move(d, 0.5)
            here = o.evaluate()
        row = frame[(frame.split == split) & (frame.alpha == 0.5)].iloc[0]
        assert row.logit_radius == here.logit_radius(centre) > 0
        assert row.kl_nats == here.kl_from(centre) > 0
        assert (row.rise_nats, row.rise_se_nats) == here.rise_over(centre)
        assert (row.accuracy, row.loss_se_nats) == (here.accuracy, here.loss_se)


def test_rule_28_the_provenance_is_plain_data_that_says_everything():
    objective, space = setting(kind=TinyVit)
    dx, dy = orthogonal_pair(space, (0, 1))
    surface = plane(objective, space, dx, dy, [-0.1, 0.0], [0.2])
    said = json.loads(json.dumps(surface.provenance))
    assert [d["seed"] for d in said["directions"]] == [0, 1]
    assert said["cosine"] != 0  # the adapter of dim 1 cannot be orthogonal
    assert "up.weight" in said["directions"][0]["flags"]
    assert said["objectives"]["data"]["fingerprint"] == objective.fingerprint
    assert said["cost"]["points"] == 2
    assert said["cost"]["passes"] == 2 + 2  # the centre twice (determinism), and the two points beside it
    assert {"policy", "space", "mode", "dtype", "device", "versions", "baseline", "threads"} <= set(said)
    assert "Surface(2 x 1 points" in surface._repr_html_()


def test_weights_are_written_once_a_point_and_the_centre_is_not_evaluated_again(monkeypatch):
    model = seeded(Mlp)
    objectives = {s: Objective(model, *data(Mlp, seed=i)) for i, s in enumerate(("train", "test"))}
    space = Space(model, ["up.weight"])
    d, moves, calls = draw(space, 0), [], []
    line(objectives, space, d, [0.0])
    move = Space.move
    monkeypatch.setattr(Space, "move", lambda self, *a: (moves.append(a), move(self, *a)))
    model.register_forward_hook(lambda *_: calls.append(1))
    progress: list[tuple[int, int]] = []
    curve = line(objectives, space, d, grid(1.0, 5), on_point=lambda *p: progress.append(p))
    assert len(moves) == 4
    assert len(calls) == 2 * 5 == curve.provenance["cost"]["passes"]
    assert progress == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize("change", ["loss", "what a lambda does", "still weights", "buffers", "architecture"])
def test_rule_27_points_of_another_measurement_are_not_read_from_a_store(tmp_path, change):
    """Also where what moves and the data are the same."""

    def measure(**options: object) -> None:
        space = Space(model, ["conv.weight"])
        line(Objective(model, *data(ConvNet), **options), space, draw(space, 0), grid(1.0, 3), store=tmp_path)

    def halved(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(z, t, reduction="none") / 2

    model = seeded(ConvNet)
    lambdas = [lambda z, t: z.square().sum(dim=1), lambda z, t: 3 * z.square().sum(dim=1)]
    before = {"loss": lambdas[0]} if change == "what a lambda does" else {}
    measure(**before)
    measure(**before)  # the same is found again
    after = {"loss": {"loss": halved}, "what a lambda does": {"loss": lambdas[1]}}.get(change, {})
    with torch.no_grad():
        if change == "still weights":
            model.head.weight.mul_(3)
        elif change == "buffers":
            model.norm.running_mean.add_(1)
        elif change == "architecture":
            model.extra = nn.Tanh()
    with pytest.raises(LandscapeError, match="not mixed"):
        measure(**after)


def test_a_count_of_workers_may_be_a_number_and_a_precision_is_one_of_two():
    objective, space = setting()
    d = draw(space, 0)
    assert line(objective, space, d, [0.0, 1.0], workers=1).rows == line(objective, space, d, [0.0, 1.0]).rows
    with pytest.raises(LandscapeError, match="'float32' or 'auto', found 'bf16'"):
        line(objective, space, d, [0.0], precision="bf16")


def test_a_model_of_another_space_and_bad_coordinates_are_refused():
    objective, space = setting()
    other = Objective(seeded(Mlp), *data(Mlp))
    d = draw(space, 0)
    for arguments, text in [
        ((other, space, d, [0.0]), "another model"),
        (({}, space, d, [0.0]), "at least one objective"),
        ((objective, space, d, [0.0, math.nan]), "finite"),
        ((objective, space, d, []), "finite"),
    ]:
        with pytest.raises(LandscapeError, match=text):
            line(*arguments)
    with space:
        space.move(d, 1.0)
        with pytest.raises(LandscapeError, match="move back to 0"):
            line(objective, space, d, [0.0])
        space.move(d, 0.0)
        line(objective, space, d, [0.0])
    with pytest.raises(LandscapeError, match="expected a split among data"):
        line(objective, space, d, [0.0]).values(split="train")


def test_a_loss_of_the_users_own_is_not_drawn_in_nats():
    model = seeded(Mlp)
    x, y = data(Mlp)
    axis = grid(1.0, 5)
    space = Space(model, ["up.weight"])
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for loss, unit in ((None, " (nats)"), (lambda z, t: z.square().sum(dim=1), "")):
        objective = Objective(model, x, y, loss=loss)
        assert line(objective, space, draw(space, 0), axis).plot().get_ylabel() == "rise of the loss" + unit
        found = plane(objective, space, *orthogonal_pair(space, (0, 1)), axis, axis)
        assert found.plot().get_title(loc="left") == "rise of the data loss" + unit
        assert ("nats" in repr(found)) == bool(unit)
    plt.close("all")


def test_plots_are_those_of_the_figures():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    objective, space = setting()
    dx, dy = orthogonal_pair(space, (0, 1))
    for drawn in (
        line(objective, space, dx, grid(1.0, 5)).plot(),
        plane(objective, space, dx, dy, grid(1.0, 3), grid(1.0, 5)).plot(plt.subplots()[1]),
    ):
        assert drawn.get_xlabel()
        assert drawn.lines or drawn.collections
    plt.close("all")


def test_importing_the_package_loads_no_torch_and_a_module_no_pandas():
    script = (
        "import sys, landscape; assert 'torch' not in sys.modules; landscape.line; "
        "loaded = {'pandas', 'matplotlib', 'timm', 'figures'} & set(sys.modules); assert not loaded, loaded; "
        "assert 'Objective' in dir(landscape)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
