"""Each check of the doctor passes on a sound model and fails where what it checks is broken."""

from __future__ import annotations

import math

import pytest
import torch
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, everything, seeded
from torch import nn

from landscape import LandscapeError, Objective, Space, draw, line
from landscape.checks import examine, rescaled, to_frame
from landscape.derivatives import derivatives
from landscape.sharpness import get


def setting(kind: type[nn.Module] = Mlp) -> tuple[Objective, Space]:
    model = seeded(kind)
    return Objective(model, *data(kind)), Space(model, [n for n, _ in model.named_parameters()])


def outcomes(objective: Objective, space: Space) -> dict[str, str]:
    return {check.check: check.outcome for check in examine(objective, space)}


@pytest.mark.parametrize("kind", [Mlp, ConvNet, TinyVit])
def test_a_sound_model_passes_and_is_left_as_it_was(kind):
    objective, space = setting(kind)
    before = everything(space.model)
    found = outcomes(objective, space)
    assert "fail" not in found.values()
    assert {"centre", "order", "restore", "determinism", "batch size", "share that moves", "finite"} <= set(found)
    assert everything(space.model) == before


def test_rule_15_a_reduced_precision_is_tried_at_the_moved_weights():
    """A rise of nats changes by hundredths in bfloat16; weights kept from the centre would change it by all of it."""
    x, y = data(Mlp)
    model = seeded(Mlp)
    with torch.no_grad():
        model.down.weight *= 20
    objective, space = Objective(model, x, y), Space(model, ["up.weight", "down.weight"])
    checks = {c.check: c for c in examine(objective, space, extent=2.0)}
    far = line(objective, space, draw(space, 0), [2.0]).values("rise_nats")[0]
    assert abs(far) > 1
    assert checks["bfloat16 for float32"].figure < 0.1 * abs(far)


def test_a_space_that_walks_fails_the_centre(monkeypatch):
    objective, space = setting()

    def walk(self, directions, coefficients):
        with torch.no_grad():
            for direction, c in zip(directions, coefficients, strict=True):
                for name, d in direction.tensors.items():
                    self.parameters[name].add_(d, alpha=c + 1e-3)

    monkeypatch.setattr(Space, "move", walk)
    found = outcomes(objective, space)
    assert found["centre"] == "fail"
    assert found["order"] == "fail"


def test_a_space_that_does_not_restore_fails(monkeypatch):
    objective, space = setting()
    leave = Space.__exit__

    def forget(self, *error):
        leave(self, *error)
        if error[0] is not None:
            with torch.no_grad():
                self.parameters["up.weight"].add_(1e-7)
                self.centre["up.weight"].add_(1e-7)

    monkeypatch.setattr(Space, "__exit__", forget)
    found = {c.check: c for c in examine(objective, space)}
    assert found["restore"].outcome == "fail"
    assert "up.weight" in found["restore"].meaning


class BatchStatistics(Mlp):
    """Its output depends on who else is in the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def test_a_model_that_depends_on_the_batch_fails_the_batch_size():
    objective, space = setting(BatchStatistics)
    assert outcomes(objective, space)["batch size"] == "fail"


def test_losses_that_are_not_finite_fail():
    objective, space = setting()
    with torch.no_grad():
        space.model.down.weight[0, 0] = math.nan
    assert outcomes(objective, Space(space.model, ["up.weight"]))["finite"] == "fail"


def test_the_frame_has_a_row_a_check():
    objective, space = setting()
    frame = to_frame(examine(objective, space))
    assert list(frame.columns) == ["check", "outcome", "figure", "unit", "meaning"]
    assert frame.check.is_unique


def test_a_loss_of_ones_own_is_not_said_to_be_in_nats():
    objective, space = setting()
    own = Objective(space.model, *data(Mlp), loss=lambda logits, targets: logits.square().sum(dim=1))
    for chosen, said in ((objective, True), (own, False)):
        checks = [*examine(chosen, space), *derivatives(chosen, space)]
        assert ("nats" in {check.unit for check in checks}) == said


@pytest.mark.parametrize("kind", [Mlp, ConvNet, TinyVit, Tied])
def test_rule_17_derivatives_agree_with_differences_of_the_loss(kind):
    objective, space = setting(kind)
    model = space.model
    before = everything(model)
    found = derivatives(objective, space)
    assert [c.check for c in found] == ["gradient", "curvature"]
    assert all(c.outcome == "pass" for c in found), found
    assert everything(model) == before


def test_derivatives_of_another_function_than_the_loss_are_noticed():
    objective, space = setting()
    model = space.model
    hook = model.up.weight.register_hook(lambda g: 2 * g)
    assert [c.outcome for c in derivatives(objective, space)] == ["fail", "fail"]
    hook.remove()
    staircase = Space(model, space.names, weights="requantised")
    assert [c.outcome for c in derivatives(objective, staircase)] == ["not known", "not known"]


def test_rule_9_a_rescale_of_a_relu_layer_shows_which_measures_speak_of_the_function():
    objective, space = setting()
    c = 4.0
    whole = {"up.weight": torch.tensor(c), "up.bias": torch.tensor(c), "down.weight": torch.tensor(1 / c)}
    names = ["average", "sam"]
    measures = {name: (lambda s, name=name: get(name)(objective, s, rho=0.1)) for name in names}
    before = everything(space.model)
    found = {row["measure"]: row for row in rescaled(measures, space, whole, objective)}
    assert everything(space.model) == before
    assert all(row["change_of_loss_nats"] < 1e-6 for row in found.values())
    assert found["average"]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert abs(found["sam"]["ratio"] - 1) > 0.05


def test_a_rescale_that_changes_the_function_is_seen():
    objective, space = setting()
    rows = rescaled({}, space, {"up.weight": torch.tensor(2.0)}, objective)
    assert rows == []
    rows = rescaled(
        {"average": lambda s: get("average")(objective, s)}, space, {"up.weight": torch.tensor(2.0)}, objective
    )
    assert rows[0]["change_of_loss_nats"] > 1e-2
    with pytest.raises(LandscapeError, match="no parameter"):
        rescaled({}, space, {"nothing": torch.tensor(2.0)}, objective)
