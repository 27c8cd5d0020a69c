"""The doctor and the card of measures on a run, through their commands' functions."""

from __future__ import annotations

import pytest
import torch
from pandas.testing import assert_frame_equal

from analyses.card import card
from analyses.checkpoint import open_checkpoint
from analyses.doctor import ANALYSIS, Doctor, rescale
from analyses.errors import AnalysisError
from analyses.flatness import ANALYSIS as FLATNESS
from analyses.flatness import Lines
from analyses.options import Options
from landscape.sharpness import card as sharpness_card
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=8, batch_size=8, quiet=True)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, method="full",
    recipe=Recipe(epochs=1, batch_size=16, lr=1e-3, lr_for=(), warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    task = load("digits", train_size=40, test_size=20)
    return open_checkpoint(fit(SPEC, task, tmp_path_factory.mktemp("runs"), quiet=True).path, OPTIONS)


def test_the_doctor_checks_each_space_and_writes_a_caption(checkpoint):
    tables = ANALYSIS.report([checkpoint], OPTIONS, Doctor(factor=256.0), checkpoint.folder)
    checks = tables["checks"]
    assert set(checks.space) == {"full"}
    assert not (checks.outcome == "fail").any(), checks[checks.outcome == "fail"]
    assert len(tables["captions"]) == 1
    assert all("exact" in line for line in tables["captions"].caption)
    scales = tables["rescale"]
    assert (scales.change_of_loss_nats.abs() < 1e-3).all()
    full = scales[scales.space == "full"].set_index("measure").ratio
    relative, absolute = (abs(full[name] - 1) for name in ("average sharpness, per filter", "Hessian trace"))
    # a large factor: attention carries little in a network that was hardly trained
    assert relative < 1e-3
    assert absolute > 1e-2


def test_the_rescale_of_attention_leaves_the_function(checkpoint):
    model = checkpoint.model
    what, factors = rescale(model, "full", 8.0)
    assert "query" in what
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    saved = {name: model.get_parameter(name).detach().clone() for name in factors}
    with torch.no_grad():
        before = model(x)
        for name, factor in factors.items():
            model.get_parameter(name).mul_(factor)
        after = model(x)
        for name, tensor in saved.items():
            model.get_parameter(name).copy_(tensor)
    assert torch.allclose(before, after, atol=1e-4)


def test_the_card_of_measures_is_a_table_beside_the_lines(checkpoint):
    spec = Lines(directions=1, points=3, measures="average, sam, eigenvalues, trace")
    tables = FLATNESS.measure(checkpoint, OPTIONS, spec)
    found = tables["measures"]
    assert set(found.space) == {"full"}
    assert found.value.notna().all()
    assert (found.status != "failed").all(), found[found.status == "failed"].reason.tolist()
    assert len(found[found.measure.str.contains("eigenvalue")]) == 5
    blocks = tables["blocks"]
    assert len(blocks) > 2


def test_an_unknown_measure_is_one_line_with_the_nearest(checkpoint):
    with pytest.raises(AnalysisError, match="did you mean 'average'"):
        FLATNESS.measure(checkpoint, OPTIONS, Lines(directions=1, points=3, measures="avrage"))


def test_a_killed_card_goes_on_with_the_measure_it_was_at(checkpoint, tmp_path, monkeypatch):
    whole, real, asked = card_of(checkpoint, tmp_path / "whole"), sharpness_card.measure_all, []

    def once(objective, space, chosen, **settings):
        asked.append(chosen[0])
        if asked == ["average", "sam"]:
            raise KeyboardInterrupt
        return real(objective, space, chosen, **settings)

    monkeypatch.setattr(sharpness_card, "measure_all", once)
    with pytest.raises(KeyboardInterrupt):
        card_of(checkpoint, tmp_path / "killed")
    resumed = card_of(checkpoint, tmp_path / "killed")
    assert asked == ["average", "sam", "sam"]
    cost = [column for column in whole if column.startswith("cost_")]  # a new process checks determinism anew
    assert_frame_equal(resumed.drop(columns=cost), whole.drop(columns=cost), check_exact=True)


def card_of(checkpoint, parts):
    tables, spent = card(checkpoint, OPTIONS, ["average", "sam"], Lines(), parts)
    assert [*parts.glob("*/*/sam")], "kept until the tables are written"
    spent()
    assert not [*parts.glob("*")]
    return tables["measures"]
