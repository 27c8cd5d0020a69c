"""Directions against a literal slow loop of Li et al. 2018, and the laws of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, seeded
from scipy import stats
from torch import nn

from landscape import (
    LandscapeError,
    Objective,
    Policy,
    Space,
    between,
    cosine,
    draw,
    from_tensors,
    line,
    orthogonal_pair,
)
from landscape.normalisation import gaussian

KINDS = [Mlp, ConvNet, TinyVit, Tied]


def whole(kind: type[nn.Module], **options: object) -> Space:
    model = seeded(kind).double()
    return Space(model, [name for name, _ in model.named_parameters()], **options)


def slow(space: Space, seed: int) -> dict[str, np.ndarray]:
    """Filter normalisation filter by filter, entry by entry, for the default policy."""
    tokens = {"cls_token", "pos_embed"}
    found = {}
    for name, weight in space.centre.items():
        w, g = weight.numpy(), gaussian(seed, name, weight).numpy()
        d = np.zeros(w.shape)
        if name in tokens:
            filters = [(0, i) for i in range(w.shape[1])]
        elif w.ndim >= 2 and name != "gamma":
            filters = [(i,) for i in range(w.shape[0])]
        else:
            filters = []
        for f in filters:
            length = sum(v * v for v in w[f].flatten()) ** 0.5
            noise = sum(v * v for v in g[f].flatten()) ** 0.5
            for at in np.ndindex(*w[f].shape):
                d[(*f, *at)] = g[(*f, *at)] / noise * length
        found[name] = d
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_filter_normalisation_is_the_literal_loop(kind):
    space = whole(kind)
    for name, d in slow(space, 5).items():
        np.testing.assert_allclose(draw(space, 5).tensors[name].numpy(), d, rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_rule_7_each_row_has_the_norm_of_its_weights_in_float32(kind):
    model = seeded(kind)
    space = Space(model, [n for n, _ in model.named_parameters()])
    for name, d in draw(space, 2).tensors.items():
        if space.roles[name] == "matrix":
            w = space.centre[name].reshape(len(d), -1).double()
            np.testing.assert_allclose(d.reshape(len(d), -1).double().norm(dim=1), w.norm(dim=1), rtol=1e-6)


def test_rule_7_a_zero_row_gives_a_zero_row():
    model = seeded(Mlp)
    with torch.no_grad():
        model.up.weight[2] = 0
    space = Space(model, ["up.weight"])
    for direction in (draw(space, 0), *orthogonal_pair(space, (0, 1))):
        d = direction.tensors["up.weight"]
        assert not d[2].any()
        assert d[[0, 1, 3, 4, 5, 6]].ne(0).all()
        assert d.isfinite().all()


def test_rule_7_rows_of_one_entry_are_flagged_and_layer_normalisation_varies_them():
    space = whole(TinyVit)
    d = draw(space, 0)
    assert list(d.flags) == ["up.weight"]
    assert torch.equal(d.tensors["up.weight"].abs(), space.centre["up.weight"].abs())
    layer = draw(space, 0, "layer")
    assert not layer.flags
    ratio = (layer.tensors["up.weight"] / space.centre["up.weight"]).abs()
    assert ratio.std() > 0.1
    assert float(layer.tensors["up.weight"].norm()) == pytest.approx(float(space.centre["up.weight"].norm()), rel=1e-12)


def test_rule_7_policies_for_what_has_no_rows():
    zero = draw(whole(TinyVit), 0)
    assert zero.moved == {"cls_token", "pos_embed", "mix.weight", "head.weight", "down.weight", "up.weight"}
    assert zero.moving == whole(TinyVit).k
    space = whole(TinyVit, policy=Policy(bias_and_norm="vector"))
    d = draw(space, 0)
    for name in ("mix.bias", "norm.weight", "gamma", "scale"):
        assert float(d.tensors[name].norm()) == pytest.approx(float(space.centre[name].norm()), rel=1e-12)
    assert d.tensors["scale"].shape == ()
    assert "scale" in d.flags
    element = draw(whole(TinyVit, policy=Policy(bias_and_norm="element")), 0)
    noise = gaussian(0, "mix.bias", space.centre["mix.bias"])
    np.testing.assert_allclose(element.tensors["mix.bias"], noise * space.centre["mix.bias"].abs(), rtol=1e-14)
    assert not draw(whole(TinyVit, policy=Policy(bias_and_norm="element")), 0).tensors["norm.bias"].any()  # bias is 0


def test_rule_7_tokens_have_their_own_norms():
    space = whole(TinyVit)
    d = draw(space, 1).tensors["pos_embed"]
    np.testing.assert_allclose(d.norm(dim=-1), space.centre["pos_embed"].norm(dim=-1), rtol=1e-12)


def test_rule_7_a_direction_that_moves_nothing_names_its_policy():
    model = seeded(TinyVit)
    space = Space(model, ["norm.weight", "mix.bias", "scale"])
    with pytest.raises(LandscapeError, match="policy bias_and_norm='zero' holds them still"):
        draw(space, 0)
    with torch.no_grad():
        model.up.weight.zero_()
    with pytest.raises(LandscapeError, match="lets move is zero"):
        draw(Space(model, ["up.weight", "mix.bias"]), 0)


def test_rule_8_noise_is_standard_normal_and_seeded():
    w = torch.empty(200, 100)
    noise = gaussian(0, "w", w).flatten()
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert torch.equal(noise, gaussian(0, "w", w).flatten())
    for other in (gaussian(1, "w", w), gaussian(0, "v", w)):
        assert abs(np.corrcoef(noise, other.flatten())[0, 1]) < 0.03


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_rule_8_another_seed_gives_another_direction(a, b):
    space = whole(Mlp)
    assert (draw(space, a).norm == draw(space, b).norm) or a != b
    assert torch.equal(draw(space, a).tensors["up.weight"], draw(space, b).tensors["up.weight"]) == (a == b)


def test_rule_8_drawing_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    draw(whole(Mlp), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_rule_16_models_share_the_noise_of_the_tensors_they_share():
    alone, more = Space(seeded(Mlp), ["down.weight"]), Space(seeded(Mlp), ["up.weight", "down.weight"])
    assert torch.equal(draw(alone, 4).tensors["down.weight"], draw(more, 4).tensors["down.weight"])


@pytest.mark.parametrize("kind", [Mlp, ConvNet, Tied])
@pytest.mark.parametrize("normalisation", ["filter", "layer", "element"])
def test_rule_8_the_second_is_orthogonal_after_normalisation(kind, normalisation):
    space = whole(kind)
    dx, dy = orthogonal_pair(space, (0, 1), normalisation)
    assert abs(cosine(dx, dy)) < 1e-12
    assert abs(cosine(dx, draw(space, 1, normalisation))) > 1e-3  # it was not before
    if normalisation == "filter":
        for name, d in dy.tensors.items():
            if space.roles[name] == "matrix":
                w = space.centre[name].reshape(len(d), -1)
                np.testing.assert_allclose(d.reshape(len(d), -1).norm(dim=1), w.norm(dim=1), rtol=1e-12)
    assert dx.norm == pytest.approx(draw(space, 0, normalisation).norm, rel=1e-15)


def test_rule_8_where_rows_of_one_entry_forbid_it_the_cosine_is_what_they_leave():
    space = whole(TinyVit)
    dx, dy = orthogonal_pair(space, (0, 1))
    left = float((dx.tensors["up.weight"] * dy.tensors["up.weight"]).sum()) / (dx.norm * dy.norm)
    assert cosine(dx, dy) == pytest.approx(left, rel=1e-9)
    with pytest.raises(LandscapeError, match="two different seeds"):
        orthogonal_pair(space, (3, 3))


def test_between_ends_at_the_other_weights():
    here, there = seeded(Mlp, 0).double(), seeded(Mlp, 1).double()
    names = [n for n, _ in here.named_parameters()]
    space = Space(here, names)
    other = {n: p.detach() for n, p in there.named_parameters()}
    d = between(space, other)
    with space:
        space.move(d, 1.0)
        for name, p in here.named_parameters():
            np.testing.assert_allclose(p.detach(), other[name], rtol=1e-12, atol=1e-15)
    for bad, text in [
        ({k: v for k, v in other.items() if k != "up.bias"}, "expected 'up.bias'"),
        ({**other, "up.bias": torch.ones(3)}, r"found \(3,\)"),
        (dict(space.centre), "equal weights"),
    ]:
        with pytest.raises(LandscapeError, match=text):
            between(space, bad)


def test_a_line_along_an_eigenvector_bends_by_its_eigenvalue():
    """A flat eigenvector of the dense Hessian in the order of the space's names: the second difference is lambda."""
    space = whole(Mlp)
    x, y = data(Mlp)
    shapes = [c.shape for c in space.centre.values()]
    sizes = [c.numel() for c in space.centre.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        logits = torch.func.functional_call(space.model, dict(zip(space.names, parts, strict=True)), (x.double(),))
        return nn.functional.cross_entropy(logits, y)

    at = torch.cat([c.flatten() for c in space.centre.values()])
    values, vectors = torch.linalg.eigh(torch.func.hessian(loss)(at))
    objective, h = Objective(space.model, x.double(), y), 1e-3
    for i in (-1, -2, 0):
        direction = from_tensors(space, vectors[:, i], "eigenvector")
        assert direction.norm == pytest.approx(1, rel=1e-12)
        left, centre, right = line(objective, space, direction, [-h, 0.0, h]).values()
        assert (left - 2 * centre + right) / h**2 == pytest.approx(float(values[i]), abs=1e-5)
        assert direction.describe()["normalisation"] == "eigenvector"


def test_given_tensors_are_scaled_or_normalised_as_asked():
    space = whole(TinyVit)
    given = {name: torch.ones_like(c, dtype=torch.float32) for name, c in space.centre.items() if name != "cls_token"}
    plain = from_tensors(space, given, "ones")
    assert all(torch.equal(plain.tensors[name], given[name].double()) for name in given)
    assert not plain.tensors["cls_token"].any()
    assert from_tensors(space, given, "ones", norm=3.0).norm == pytest.approx(3.0, rel=1e-12)
    noise = {name: gaussian(5, name, c) for name, c in space.centre.items()}
    for normalisation in ("filter", "layer", "element"):
        same = from_tensors(space, noise, "noise", normalisation=normalisation)
        for name, d in draw(space, 5, normalisation).tensors.items():
            assert torch.equal(same.tensors[name], d)


def test_wrong_tensors_are_one_line():
    space = whole(Mlp)
    one = torch.ones_like(space.centre["up.weight"])
    for tensors, options, text in [
        ({"up.wieght": one}, {}, "nearest: 'up.weight'"),
        ({"up.weight": one.T}, {}, r"expected 'up.weight' \(7, 5\), found \(5, 7\)"),
        (torch.ones(3), {}, r"74 entries, found shape \(3,\)"),
        ({"up.weight": 0 * one}, {}, "the direction 'x' is zero"),
        ({}, {}, "the direction 'x' is zero"),
        ({"up.weight": one}, {"norm": 1.0, "normalisation": "filter"}, "found both"),
        ({"up.weight": one}, {"normalisation": "filters"}, "nearest: 'filter'"),
        ({"up.bias": torch.ones(7)}, {"normalisation": "filter"}, "lets move is zero"),
    ]:
        with pytest.raises(LandscapeError, match=text) as error:
            from_tensors(space, tensors, "x", **options)
        assert "\n" not in str(error.value)


def test_description_and_table():
    d = draw(whole(TinyVit), 7)
    facts = d.describe()
    assert facts["seed"] == 7
    assert facts["normalisation"] == "filter"
    assert facts["norm"] == pytest.approx(np.sqrt((d.to_frame()["norm"] ** 2).sum()), rel=1e-12)
    assert "up.weight" in d._repr_html_()
    with pytest.raises(LandscapeError, match="nearest: 'filter'"):
        draw(whole(Mlp), 0, "filters")
