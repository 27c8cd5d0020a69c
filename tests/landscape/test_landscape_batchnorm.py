"""Running statistics at moved weights, in each mode (rule 4), against a literal loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from landscape_nets import ConvNet, Mlp, data, everything, seeded

from landscape import LandscapeError, Objective, Policy, Space, draw, line
from landscape.batchnorm import recalibrate
from landscape.gradient import gradient

ALPHAS = [-0.5, 0.0, 0.5]


def setting(batch_norm: str, **options: object) -> tuple[Objective, Space]:
    model = seeded(ConvNet)
    recalibrate(Objective(model, *data(ConvNet, seed=5)))
    return Objective(model, *data(ConvNet), batch_size=12), Space(
        model, ["conv.weight", "head.weight"], batch_norm=batch_norm, **options
    )


def test_rule_4_recalibrated_statistics_are_those_of_the_moved_network():
    objective, space = setting("recalibrate")
    direction = draw(space, 0)
    before = everything(space.model)
    curve = line(objective, space, direction, ALPHAS)
    assert everything(space.model) == before
    assert curve.provenance["mode"]["batch_norm"] == "recalibrate"
    x, y = data(ConvNet)
    for alpha, found in zip(ALPHAS, curve.values(), strict=True):
        model = copy.deepcopy(space.model).eval()
        with torch.no_grad():
            for name in ("conv.weight", "head.weight"):
                model.get_parameter(name).add_(direction.tensors[name], alpha=alpha)
            activations = [model.conv(x[i : i + 12]) for i in (0, 12, 24)]
            model.norm.running_mean.copy_(sum(a.mean((0, 2, 3)) for a in activations) / 3)
            model.norm.running_var.copy_(sum(a.var((0, 2, 3), unbiased=True) for a in activations) / 3)
            loss = torch.nn.functional.cross_entropy(model(x).double(), y)
        assert found == pytest.approx(float(loss), rel=1e-5)


def test_rule_4_frozen_statistics_are_those_of_the_centre_and_another_loss():
    frozen, again = (
        line(*pair, draw(pair[1], 0), ALPHAS).values() for pair in (setting("freeze"), setting("recalibrate"))
    )
    assert not np.allclose(frozen, again)


def test_rule_4_perturbed_statistics_move_as_the_policy_says():
    objective, space = setting("perturb", policy=Policy(bias_and_norm="element"))
    direction = draw(space, 0)
    assert {"norm.running_mean", "norm.running_var"} <= direction.moved
    before = everything(space.model)
    with space:
        space.move([direction], [0.5])
        moved = space.model.norm.running_var - space.centre["norm.running_var"]
        assert torch.allclose(moved, 0.5 * direction.tensors["norm.running_var"])
    assert everything(space.model) == before
    with pytest.raises(LandscapeError, match="fixed running statistics"):
        gradient(objective, space)


def test_a_model_without_statistics_is_one_line():
    model = seeded(Mlp)
    with pytest.raises(LandscapeError, match="found none"):
        recalibrate(Objective(model, *data(Mlp)))
