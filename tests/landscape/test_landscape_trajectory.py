"""Checkpoints in a plane, against a dense singular value decomposition of all displacements and against geometry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import Mlp, Tied, TinyVit, data, everything, seeded
from torch import Tensor, nn

from landscape import LandscapeError, Objective, Space, draw, from_tensors, grid, plane, principal, project


def space_of(kind: type[nn.Module] = Mlp) -> Space:
    model = seeded(kind).double()
    return Space(model, [name for name, _ in model.named_parameters()])


def flat(space: Space, state: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in space.names])


def walk(space: Space, steps: int, seed: int = 0, drift: float = 0.3) -> list[dict[str, Tensor]]:
    """Checkpoints of a random walk with a drift that ends, exactly, at the space's centre."""
    g = torch.Generator().manual_seed(seed)
    bias = {n: drift * torch.randn(c.shape, generator=g, dtype=torch.float64) for n, c in space.centre.items()}
    states = [dict(space.centre)]
    for _ in range(steps - 1):
        last = states[0]
        noise = {n: torch.randn(c.shape, generator=g, dtype=torch.float64) for n, c in last.items()}
        states.insert(0, {n: c + 0.1 * noise[n] + bias[n] for n, c in last.items()})
    return states


@pytest.mark.parametrize("kind", [Mlp, TinyVit, Tied])
def test_the_plane_is_that_of_a_dense_decomposition(kind):
    space = space_of(kind)
    states = walk(space, 6)
    before = everything(space.model)
    found = principal(space, states)
    assert everything(space.model) == before
    moves = np.stack([flat(space, s) for s in states]) - flat(space, states[-1])
    u, s, vt = np.linalg.svd(moves, full_matrices=False)
    for j, direction in enumerate(found.directions):
        axis = flat(space, direction.tensors)
        sign = np.sign(axis @ vt[j])
        np.testing.assert_allclose(axis, sign * vt[j], atol=1e-12)
        np.testing.assert_allclose(found.coordinates[:, j], sign * u[:, j] * s[j], atol=1e-11)
        furthest = np.abs(found.coordinates[:, j]).argmax()
        assert found.coordinates[furthest, j] > 0
    assert found.explained_share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-12)
    np.testing.assert_allclose(found.provenance["shares"], s**2 / (s**2).sum(), atol=1e-12)
    rest = moves - moves @ vt[:2].T @ vt[:2]
    length = np.linalg.norm(moves, axis=1)
    np.testing.assert_allclose(found.norms, length, rtol=1e-12)
    share = np.linalg.norm(rest[:-1], axis=1) / length[:-1]
    np.testing.assert_allclose(found.outside_share[:-1], share**2, atol=1e-12)
    assert found.coordinates[-1].tolist() == [0, 0]
    assert found.outside_share[-1] == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(0, 1000), st.floats(0, 1e4))
def test_laws_of_the_plane(steps, seed, drift):
    """Orthonormal axes, Pythagoras for each checkpoint, shares that add up, no other plane that explains more."""
    space = space_of()
    states = walk(space, steps, seed, drift)
    found = principal(space, states)
    dx, dy = found.directions
    assert (dx.norm, dy.norm) == pytest.approx((1, 1), rel=1e-12)
    assert abs(dx.dot(dy)) < 1e-12
    inside = (found.coordinates**2).sum(axis=1)
    np.testing.assert_allclose(inside, (1 - found.outside_share) * found.norms**2, rtol=1e-9, atol=1e-12)
    assert found.explained_share == pytest.approx(inside.sum() / (found.norms**2).sum(), rel=1e-12)
    assert sum(found.provenance["shares"]) == pytest.approx(1)
    assert sum(found.provenance["shares"][:2]) == pytest.approx(found.explained_share, rel=1e-9)
    other = project(space, states, (draw(space, 1), draw(space, 2)))
    assert other.explained_share <= found.explained_share + 1e-12


def test_checkpoints_of_a_plane_are_met_by_the_surface_at_their_coordinates():
    """The loss of each checkpoint, evaluated at its coordinates in the plane, is the loss of the checkpoint itself."""
    space = space_of()
    a, b = draw(space, 1), draw(space, 2)
    weights = [(0.5, 0.2), (-0.3, 0.4), (0.1, -0.6)]
    states = [
        {n: c + x * a.tensors[n] + y * b.tensors[n] for n, c in space.centre.items()} for x, y in weights
    ] + [space.centre]  # fmt: skip
    objective = Objective(space.model, *(t.double() if t.is_floating_point() else t for t in data(Mlp)))
    found = principal(space, states)
    assert found.explained_share == pytest.approx(1, abs=1e-12)
    assert (found.outside_share < 1e-12).all()
    for (x, y), state in zip(found.coordinates, states, strict=True):
        here = plane(objective, space, *found.directions, [x], [y]).values()[0, 0]
        own = seeded(Mlp).double()
        own.load_state_dict(state)
        assert here == pytest.approx(Objective(own, objective.inputs["0"], objective.targets).evaluate().mean_loss)
    distances = np.linalg.norm(found.coordinates[:, None] - found.coordinates[None], axis=-1)
    dense = np.stack([flat(space, s) for s in states])
    np.testing.assert_allclose(distances, np.linalg.norm(dense[:, None] - dense[None], axis=-1), atol=1e-12)


def test_projection_is_orthogonal_where_axes_are_oblique_and_long():
    """What a division by the norm alone gets wrong: two axes of norms that are not 1, at an angle that is not right."""
    space = space_of()
    a = draw(space, 1)
    b = from_tensors(space, {n: 0.7 * a.tensors[n] + d for n, d in draw(space, 2).tensors.items()}, "oblique")
    c = draw(space, 3)
    # c without its part in the plane of a and b, by dense least squares
    basis = np.stack([flat(space, a.tensors), flat(space, b.tensors)], axis=1)
    away = flat(space, c.tensors)
    away -= basis @ np.linalg.lstsq(basis, away, rcond=None)[0]
    out = from_tensors(space, torch.from_numpy(away), "away")
    state = {n: w + 2 * a.tensors[n] - 3 * b.tensors[n] + out.tensors[n] for n, w in space.centre.items()}
    found = project(space, [state, space.centre], (a, b))
    np.testing.assert_allclose(found.coordinates[0], [2, -3], rtol=1e-10)
    assert found.outside_share[0] == pytest.approx((out.norm / found.norms[0]) ** 2, rel=1e-9)
    assert found.provenance["plane"] == "given"
    with pytest.raises(LandscapeError, match="found parallel ones"):
        project(space, [state, space.centre], (a, a))


class Lazy(Mapping[str, Tensor]):
    """A state that notes which of its tensors are read."""

    def __init__(self, state: Mapping[str, Tensor], read: list[str]) -> None:
        self.state, self.read = state, read

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self.state[name]

    def __contains__(self, name: object) -> bool:
        return name in self.state

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def test_tensors_are_streamed_and_chunks_change_nothing(monkeypatch):
    """All checkpoints' tensors of one name before those of the next: memory is one tensor a checkpoint."""
    space = space_of()
    states, read = walk(space, 5), []
    whole = principal(space, states)
    lazy = principal(space, [Lazy(s, read) for s in states], through=None)
    per_pass = [name for name in space.names for _ in states]
    assert read == 3 * per_pass
    monkeypatch.setattr("landscape.trajectory.CHUNK", 3)
    chunked = principal(space, states)
    for other in (lazy, chunked):
        np.testing.assert_allclose(other.coordinates, whole.coordinates, atol=1e-11)
        np.testing.assert_allclose(other.outside_share, whole.outside_share, atol=1e-11)


def test_half_precision_and_float32_checkpoints():
    space64 = space_of()
    states = [{n: t.bfloat16() for n, t in s.items()} for s in walk(space64, 5)]
    model = seeded(Mlp).bfloat16()
    model.load_state_dict(states[-1])
    space = Space(model, space64.names)
    found = principal(space, states)
    assert found.directions[0].tensors["up.weight"].dtype == torch.float32
    assert abs(found.directions[0].dot(found.directions[1])) < 1e-6
    moves = np.stack([flat(space, s) for s in states]) - flat(space, states[-1])
    s = np.linalg.svd(moves, compute_uv=False)
    assert found.explained_share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-6)


def test_the_centre_is_the_last_checkpoint_unless_said_otherwise():
    space = space_of()
    states = walk(space, 4)
    with pytest.raises(LandscapeError, match="weights of checkpoint '3' at the space's centre, found others in 'up"):
        principal(space, states[::-1])
    first = principal(space, states[::-1], through=0, labels=("end", "c", "b", "start"))
    assert first.provenance["through"] == "end"
    assert principal(space, states[:-1], through=None).provenance["through"].endswith("no checkpoint")
    np.testing.assert_allclose(np.abs(first.coordinates[::-1]), np.abs(principal(space, states).coordinates), atol=1e-9)


def test_wrong_checkpoints_are_one_line():
    space = space_of()
    states = walk(space, 4)
    line = [{n: c + k for n, c in space.centre.items()} for k in (3.0, 2.0, 1.0, 0.0)]
    broken = [{**s, "down.bias": s["down.bias"] * (float("nan") if i == 1 else 1)} for i, s in enumerate(states)]
    for wrong, options, text in [
        (
            [{k: v for k, v in states[0].items() if k != "up.bias"}, *states[1:]],
            {},
            "'up.bias' in checkpoint '0'",
        ),
        ([{**states[0], "up.bias": torch.ones(3)}, *states[1:]], {}, r"found \(3,\); different ranks share a plane"),
        (line, {}, "all on one line"),
        (states[-1:], {}, "all on one line"),
        (broken, {}, "NaN or inf in 'down.bias' of checkpoint '1'"),
        (states, {"labels": ("a",)}, "a label for each of 4"),
        (states, {"through": 4}, "one of 4 checkpoints to go through"),
        ([], {}, "one of 0 checkpoints"),
    ]:
        with pytest.raises(LandscapeError, match=text) as error:
            principal(space, wrong, **options)
        assert "\n" not in str(error.value)


def test_table_text_and_drawing():
    mpl = pytest.importorskip("matplotlib")
    mpl.use("agg")
    from matplotlib import pyplot

    space = space_of()
    found = principal(space, walk(space, 4), labels=("start", "a", "b", "end"))
    frame = found.to_frame()
    assert list(frame) == ["checkpoint", "x", "y", "norm", "outside_share"]
    assert list(frame.checkpoint) == ["start", "a", "b", "end"]
    assert f"{found.explained_share:.1%}" in repr(found)
    assert "start" in found._repr_html_()
    objective = Objective(space.model, *(t.double() if t.is_floating_point() else t for t in data(Mlp)))
    beneath = plane(objective, space, *found.directions, *(grid(1.1 * r, 5) for r in found.reach))
    assert found.plot().lines
    drawn = found.plot(pyplot.subplots()[1], surface=beneath)
    assert drawn.collections
    pyplot.close("all")
