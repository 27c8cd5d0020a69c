"""What moves, what is written, and that everything comes back."""

from __future__ import annotations

import pytest
import torch
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, everything, seeded
from torch import nn

from landscape import LandscapeError, Objective, Policy, Space, draw


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", [Mlp, ConvNet, TinyVit, Tied])
@pytest.mark.parametrize("fails", [False, True])
def test_rule_3_everything_is_as_before(kind, fails):
    model, (x, y) = seeded(kind).train(), data(kind)
    out = model(**x)["logits"] if kind is TinyVit else model(x)
    out.sum().backward()  # gradients that must stay
    next(model.children()).eval()
    before = everything(model)
    space = Space(model, names(model), policy=Policy(bias_and_norm="element"))
    objective = Objective(model, x, y)

    def use() -> None:
        with space:
            space.move(draw(space, 0), 0.7)
            assert everything(model)["bits"] != before["bits"]
            objective.evaluate()
            model.train()
            torch.rand(1)
            for buffer in model.buffers():
                buffer.add_(1)
            if fails:
                raise RuntimeError("half way")

    if fails:
        with pytest.raises(RuntimeError, match="half way"):
            use()
    else:
        use()
    assert everything(model) == before


def test_rule_3_a_replaced_buffer_comes_back():
    model = seeded(ConvNet)
    before = everything(model)
    with Space(model, ["conv.weight"]):
        model.norm.running_mean = torch.ones(3)
    assert everything(model) == before


def test_rule_1_coefficients_of_zero_give_the_exact_centre_after_any_move():
    model = seeded(Mlp)
    before = everything(model)["bits"]
    space = Space(model, names(model))
    d, e = draw(space, 0), draw(space, 1)
    with space:
        space.move([d, e], [0.3, -2.0])
        space.move([d, e], [0.0, -0.0])
        assert everything(model)["bits"] == before


def test_rule_2_a_point_does_not_depend_on_the_points_before_it():
    model = seeded(Mlp)
    space = Space(model, names(model))
    d, e = draw(space, 0), draw(space, 1)
    with space:
        space.move(d, 0.1)
        direct = everything(model)["bits"]
        for c in (0.3, -1e6, 0.7):
            space.move([e, d], [c, c])
        space.move(d, 0.1)
        assert everything(model)["bits"] == direct


def test_tensors_of_one_direction_only_go_back_when_another_moves():
    model = seeded(Mlp)
    space = Space(model, ["up.weight", "down.weight"])
    d = draw(space, 0)
    only = type(d)(tensors={"up.weight": d.tensors["up.weight"]}, seed=0, normalisation="filter", policy=d.policy)
    with space:
        space.move(d, 1.0)
        space.move(only, 1.0)
        assert torch.equal(model.down.weight, space.centre["down.weight"])
        assert torch.equal(model.up.weight, torch.add(space.centre["up.weight"], d.tensors["up.weight"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    model = seeded(Mlp).to(dtype)
    before = everything(model)
    space = Space(model, names(model))
    d, e = draw(space, 0), draw(space, 1)
    assert d.tensors["up.weight"].dtype == torch.float32
    with space:
        space.move([d, e], [0.01, 0.02])
        w = space.centre["up.weight"].double()
        exact = w + 0.01 * d.tensors["up.weight"].double() + 0.02 * e.tensors["up.weight"].double()
        assert torch.equal(model.up.weight, exact.to(dtype))
    assert everything(model) == before


def test_shared_parameters_move_once():
    model = seeded(Tied)
    space = Space(model, ["second.weight", "first.weight", "head.weight"])
    assert space.names == ("first.weight", "head.weight")
    assert space.k == 25 + 20
    assert space.share == 45 / (25 + 5 + 5 + 24)
    same = Space(model, ["second.weight"])
    assert torch.equal(draw(same, 3).tensors["first.weight"], draw(space, 3).tensors["first.weight"])
    # Two parameter objects on one memory are one tensor too.
    model.second.weight = nn.Parameter(model.first.weight.data)
    assert Space(model, ["second.weight", "first.weight"]).names == ("first.weight",)


def test_caches_keyed_on_the_version_notice_a_move():
    model = seeded(Mlp)
    space = Space(model, names(model))
    versions = [model.up.weight._version]
    with space:
        space.move(draw(space, 0), 1.0)
        versions.append(model.up.weight._version)
        space.move(draw(space, 0), 0.0)
        versions.append(model.up.weight._version)
    assert versions[0] < versions[1] < versions[2]


def test_roles_and_counts():
    space = Space(seeded(TinyVit), names(seeded(TinyVit)))
    assert space.roles["cls_token"] == space.roles["pos_embed"] == "token"
    assert {n for n, r in space.roles.items() if r == "vector"} == {
        "norm.weight", "norm.bias", "mix.bias", "head.bias", "scale", "gamma",
    }  # fmt: skip
    assert space.roles["up.weight"] == space.roles["down.weight"] == "matrix"
    assert space.k == 6 + 30 + 36 + 24 + 6 + 6
    frame = space.to_frame()
    assert frame.loc[~frame.held, "entries"].sum() == space.k
    assert "108" in space._repr_html_()


def test_one_singleton_row_of_a_plain_module_and_tokens_without_a_batch_axis():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.class_embedding = nn.Parameter(torch.ones(6))
            self.prompts = nn.Parameter(torch.ones(3, 2, 6))
            self.factor = nn.Parameter(torch.ones(6, 1))
            self.conv = nn.Conv1d(6, 1, 3)
            self.latents = nn.Parameter(torch.ones(1, 4, 6))
            self.norm = nn.LayerNorm((7, 4))

    names = ["class_embedding", "prompts", "factor", "conv.weight", "latents", "norm.weight", "norm.bias"]
    assert Space(Odd(), names).roles == {
        "class_embedding": "token", "prompts": "token", "factor": "matrix", "conv.weight": "matrix", "latents": "token",
        "norm.weight": "vector", "norm.bias": "vector",
    }  # fmt: skip


def test_effective_radius_is_the_ratio_of_norms():
    model = seeded(Mlp)
    space = Space(model, names(model))
    d, e = draw(space, 0), draw(space, 1)
    with space, torch.no_grad():
        space.move([d, e], [0.3, -0.4])
        moved = [model.up.weight - space.centre["up.weight"], model.down.weight - space.centre["down.weight"]]
    weights = [space.centre["up.weight"], space.centre["down.weight"]]
    ratio = torch.cat([t.flatten() for t in moved]).norm() / torch.cat([t.flatten() for t in weights]).norm()
    assert space.effective_radius([d, e], [0.3, -0.4]) == pytest.approx(float(ratio), rel=1e-5)
    assert space.effective_radius(d, -0.25) == pytest.approx(0.25, rel=1e-6)
    assert space.effective_radius(d, 0.0) == 0.0


def test_wrong_use_is_one_line():
    model = seeded(ConvNet)
    for wanted, text in [
        (["conv.wieght"], "nearest: 'conv.weight'"),
        (["norm.running_mean"], "is a buffer"),
        ([], "at least one tensor"),
    ]:
        with pytest.raises(LandscapeError, match=text) as error:
            Space(model, wanted)
        assert "\n" not in str(error.value)
        assert error.value.exit_code == 2
    assert Space(model, (name for name in ["conv.weight"])).names == ("conv.weight",)
    space = Space(model, ["conv.weight"])
    with pytest.raises(LandscapeError, match="inside `with space:`"):
        space.move(draw(space, 0), 1.0)
    other = Space(model, ["head.weight"])
    with space, pytest.raises(LandscapeError, match="no tensor of this space"):
        space.move(draw(other, 0), 1.0)
    with pytest.raises(LandscapeError, match="expected bias_and_norm to be one of zero, vector, element"):
        Policy(bias_and_norm="vectors")
    with torch.no_grad():
        model.conv.weight.add_(1)
    with pytest.raises(LandscapeError, match="is not as it was"), space:
        pass


def test_integer_parameters_are_refused():
    model = nn.Module()
    model.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(LandscapeError, match=r"found torch\.int8"):
        Space(model, ["codes"])
