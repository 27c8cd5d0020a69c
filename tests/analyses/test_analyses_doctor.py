"""The doctor and the card of measures on a run, through their commands' functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pandas.testing import assert_frame_equal

from analyses.card import card, measures
from analyses.checkpoint import open_checkpoint
from analyses.doctor import ANALYSIS, Doctor, rescale
from analyses.errors import AnalysisError
from analyses.flatness import ANALYSIS as FLATNESS
from analyses.flatness import Lines
from analyses.options import Options
from landscape.sharpness import card as sharpness_card
from train.build import build
from train.loop import fit
from train.methods import get
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


def test_the_rescale_of_a_lora_leaves_the_function_before_and_after_it_is_merged():
    spec = RunSpec(task="digits", backbone="random:test_vit", img_size=32, method="lora", dim=4)
    model = build(spec, 10).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        for name in get("lora").adapter_names(model):
            model.get_parameter(name).copy_(torch.randn(model.get_parameter(name).shape, generator=generator) / 9)
        for said in ("lora_q.down", "query"):
            what, factors = rescale(model, "lora", 4.0)
            assert said in what
            before = model(x)
            for name, factor in factors.items():
                model.get_parameter(name).mul_(factor)
            assert torch.allclose(model(x), before, atol=1e-4)
            get("lora").fold(model)


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


def test_the_cards_curvature_is_that_of_gradients_one_by_one(checkpoint):
    names = "smallest, directional, gauss_newton, fisher"
    tables = FLATNESS.measure(checkpoint, OPTIONS, Lines(directions=1, points=3, measures=names))
    found = tables["measures"].set_index("measure")
    assert found.value["hessian_smallest_eigenvalue_1"] < 0, "hardly trained: no minimum"
    assert found.status["directional_curvature"] == "exact"

    space = checkpoint.space("full")
    objective = checkpoint.objectives(space.model, ("train",), OPTIONS)["train"]
    weights = [space.parameters[name].requires_grad_() for name in space.names]
    true, empirical = 0.0, 0.0
    logits = objective.logits(slice(0, objective.n))
    for row, target in zip(logits.log_softmax(dim=1), objective.targets, strict=True):
        for label, log_p in enumerate(row):
            gradients = torch.autograd.grad(log_p, weights, retain_graph=True, allow_unused=True)
            squared = sum(float(g.double().pow(2).sum()) for g in gradients if g is not None) / len(logits)
            true += float(log_p.detach().exp()) * squared
            empirical += squared * (label == int(target))
    for measure, value in (("gauss_newton", true), ("fisher_true", true), ("fisher_empirical", empirical)):
        row = found.loc[f"{measure}_trace"]
        assert row.se < 0.06 * value
        assert abs(row.value - value) < max(4 * row.se, 1e-3 * value), measure


@pytest.mark.parametrize(
    ("names", "text"), [("avrage", "did you mean 'average'"), ("all,foo", "unknown measure 'foo'"), ("", "measure ''")]
)
def test_an_unknown_measure_is_one_line_before_anything_is_opened(names, text):
    with pytest.raises(AnalysisError, match=text):
        Lines(measures=names)


def test_all_measures_are_all_whatever_else_is_named():
    assert measures("sam, all") == measures("all")
    assert measures("sam, sam") == ["sam"]


def test_a_killed_card_goes_on_with_the_measure_it_was_at(checkpoint, tmp_path, monkeypatch):
    whole = card_of(at(checkpoint, tmp_path / "whole"), "average, sam")
    real, asked, killed = sharpness_card.measure_all, [], at(checkpoint, tmp_path / "killed")

    def once(objective, space, chosen, **settings):
        asked.append(chosen[0])
        if asked == ["average", "sam"]:
            raise KeyboardInterrupt
        return real(objective, space, chosen, **settings)

    monkeypatch.setattr(sharpness_card, "measure_all", once)
    with pytest.raises(KeyboardInterrupt):
        card_of(killed, "average, sam")
    resumed = card_of(killed, "average, sam")
    assert asked == ["average", "sam", "sam"]
    cost = [column for column in whole if column.startswith("cost_")]  # a new process checks determinism anew
    assert_frame_equal(resumed.drop(columns=cost), whole.drop(columns=cost), check_exact=True)


def test_what_a_card_has_measured_is_kept_whatever_else_is_asked_for(checkpoint, tmp_path, monkeypatch):
    fresh = at(checkpoint, tmp_path)
    whole = card_of(fresh, "average, sam")
    lines = {path: path.stat().st_mtime_ns for path in (tmp_path / "tables" / "lines").iterdir()}
    monkeypatch.setattr(sharpness_card, "measure_all", lambda *_, **__: pytest.fail("measured again"))
    assert_frame_equal(card_of(fresh, "sam"), whole.tail(1).reset_index(drop=True))
    assert set(FLATNESS.measure(fresh, OPTIONS, Lines(directions=1, points=3))) == {"curves"}
    assert_frame_equal(card_of(fresh, "average, sam"), whole)
    assert {path: path.stat().st_mtime_ns for path in lines} == lines, "and the lines are drawn once"
    assert_frame_equal(card(fresh, OPTIONS, ["sam"], Lines(points=5))["measures"], whole.tail(1).reset_index(drop=True))


def card_of(checkpoint, names):
    return FLATNESS.measure(checkpoint, OPTIONS, Lines(directions=1, points=3, measures=names))["measures"]


def at(checkpoint, folder):
    folder.mkdir(exist_ok=True)
    return replace(checkpoint, path=folder)
