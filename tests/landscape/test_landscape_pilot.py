"""The number of samples from a pilot, and the probe of a reduced precision."""

from __future__ import annotations

import math

import pytest
import torch
from landscape_nets import Mlp, data, everything, seeded

from landscape import LandscapeError, Objective, Space, draw, line, orthogonal_pair
from landscape.pilot import samples_for
from landscape.precision import precision, probe


def setting(n: int = 40) -> tuple[Objective, Space]:
    model = seeded(Mlp)
    return Objective(model, *data(Mlp, n)), Space(model, ["up.weight", "down.weight"])


def test_rule_14_so_many_samples_have_the_error_that_was_asked_for():
    _, space = setting(2000)
    pair = orthogonal_pair(space, (0, 1))
    pilot = Objective(space.model, *[t[:200] for t in data(Mlp, 2000)])
    needed = samples_for(pilot, space, pair, extent=1.0, se=0.02)
    n = int(needed.value)
    assert 50 < n < 2000
    chosen = Objective(space.model, *[t[:n] for t in data(Mlp, 2000)])
    worst = 0.0
    with space:
        centre = chosen.evaluate()
        for x in (-1.0, 1.0):
            for y in (-1.0, 1.0):
                space.move(pair, [x, y])
                difference = chosen.evaluate().loss - centre.loss
                worst = max(worst, difference.std(ddof=1) / math.sqrt(n))
    assert worst == pytest.approx(0.02, rel=0.2)


def test_rule_14_twice_the_error_takes_a_quarter_of_the_samples():
    objective, space = setting()
    one, two = (samples_for(objective, space, [draw(space, 0)], extent=0.5, se=se).value for se in (0.001, 0.002))
    assert one == pytest.approx(4 * two, abs=4)


def test_a_pilot_that_is_not_finite_says_so():
    model = seeded(Mlp)
    with torch.no_grad():
        model.down.weight.mul_(1e38)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    assert samples_for(objective, space, [draw(space, 0)], extent=1e3, se=0.1).status == "diverged"


def test_wrong_pilots_are_one_line():
    objective, space = setting()
    for se in (0.0, -1.0, float("nan")):
        with pytest.raises(LandscapeError, match="positive standard error"):
            samples_for(objective, space, [draw(space, 0)], extent=1.0, se=se)
    few = Objective(space.model, *data(Mlp, 7))
    with pytest.raises(LandscapeError, match="at least 8 samples"):
        samples_for(few, space, [draw(space, 0)], extent=1.0, se=0.1)


def test_rule_15_bfloat16_is_chosen_only_where_it_changes_less_than_a_quarter_of_the_error():
    objective, space = setting()
    direction = draw(space, 0)
    before = everything(space.model)
    found = probe(objective, space, [direction], extent=1.0, tried="bfloat16")
    assert everything(space.model) == before
    changes, errors = [], []
    with space:
        centre = objective.evaluate()
        for alpha in (-1.0, 1.0):
            space.move([direction], [alpha])
            exact = objective.evaluate()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                changes.append(abs(objective.evaluate().loss.mean() - exact.loss.mean()))
            errors.append((exact.loss - centre.loss).std(ddof=1) / math.sqrt(objective.n))
    assert found.largest_change_nats >= max(changes) > 0
    literally = all(c < e / 4 for c, e in zip(changes, errors, strict=True))
    assert (found.precision == "bfloat16") <= literally
    assert found.precision == "bfloat16", "the net is too coarse for the test to show the other side"
    near = probe(objective, space, [direction], extent=1e-4, tried="bfloat16")
    assert near.precision == "float32"
    assert near.largest_change_nats > near.allowed_nats


def test_rule_15_a_reduced_precision_gives_float32_logits_and_leaves_the_globals():
    objective, _ = setting()
    for chosen in ("float32", "tf32", "bfloat16"):
        with precision(objective.model, chosen):
            assert objective.evaluate().logits.dtype == torch.float32


def test_a_line_in_a_chosen_precision_says_so():
    objective, space = setting()
    curve = line(objective, space, draw(space, 0), [-1.0, 0.0, 1.0], precision="auto")
    facts = curve.provenance["precision"]
    assert facts["precision"] in ("float32", "bfloat16")
    assert set(facts) == {"precision", "tried", "largest_change_nats", "allowed_nats"}


def test_rule_27_parts_of_one_precision_join_whatever_figures_it_was_chosen_by(tmp_path, monkeypatch):
    """Those differ by the extent of the probe, and by a bit from machine to machine."""
    monkeypatch.setattr("landscape.precision.fastest", lambda device: "bfloat16")
    monkeypatch.setattr("landscape.precision.ALLOWED", math.inf)
    objective, space = setting()
    direction = draw(space, 0)
    wide = line(objective, space, direction, [-1.0, 0.0, 1.0], precision="auto", store=tmp_path)
    narrow = line(objective, space, direction, [-0.5, 0.0, 0.5], precision="auto", store=tmp_path)
    figures = [curve.provenance["precision"]["largest_change_nats"] for curve in (wide, narrow)]
    assert wide.provenance["precision"]["precision"] == "bfloat16"
    assert figures[0] != figures[1]
    with pytest.raises(LandscapeError, match="another precision"):
        line(objective, space, direction, [-1.0, 0.0, 1.0], precision="float32", store=tmp_path)
