"""Lines through real checkpoints: centre, spaces, shared noise, the common radius, and the command."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from train.errors import TrainError

OPTIONS = Options(samples=16, quiet=True)


@pytest.fixture(scope="module")
def lora(done):
    return open_checkpoint(done.run("lora", 4, 1), OPTIONS)


@pytest.fixture(scope="module")
def adaptformer(done):
    return open_checkpoint(done.run("adaptformer", 8, 1), OPTIONS)


@pytest.fixture(scope="module")
def full(done):
    return open_checkpoint(done.run("full"), OPTIONS)


def test_the_centre_is_the_loss_of_the_deployed_model(lora, done):
    """Rule 1: the value at 0 in every space is the plain cross-entropy of the same images, by hand."""
    from figures.tables import read_table

    curves = read_table(lora.path / "tables" / "lines", "curves").frame
    x, y = lora.data("train", 16)
    with torch.no_grad():
        log_p = torch.log_softmax(lora.model(x).double(), dim=1)
    by_hand = -log_p[torch.arange(16), y].mean().item()
    centre = curves[(curves.alpha == 0) & (curves.split == "train")]
    assert set(centre.space) == {"factors", "merged", "full"}
    assert centre[centre.space != "merged"].loss_nats.to_numpy() == pytest.approx(by_hand, abs=1e-9)
    assert centre[centre.space == "merged"].loss_nats.to_numpy() == pytest.approx(by_hand, abs=1e-5)
    assert (centre.rise_nats == 0).all()


def test_a_method_with_a_nonlinearity_has_no_merged_space(adaptformer):
    """Rule 11."""
    assert adaptformer.spaces() == ["factors", "full"]
    with pytest.raises(AnalysisError, match="nonlinearity"):
        adaptformer.network("merged")


def test_spaces_hold_what_they_say(lora, adaptformer, full):
    """Rule 11: the head stays still unless asked; full is every weight; merged the dense matrices that LoRA touches."""
    _, factors = adaptformer.network("factors")
    assert all("adapter" in name for name in factors)
    assert len(factors) == 12
    model, names = full.network("full", head=True)
    assert set(names) == {name for name, _ in model.named_parameters()}
    _, merged = lora.network("merged")
    assert merged == [f"blocks.{i}.attn.qkv.weight" for i in range(6)]
    for checkpoint, space in ((lora, "factors"), (lora, "merged"), (adaptformer, "full"), (full, "factors")):
        assert not any(name.startswith("head.") for name in checkpoint.network(space)[1])


def test_two_models_share_the_noise_of_shared_tensors(adaptformer, full):
    """Rule 16: a direction draws each tensor from (seed, tensor name); the rows differ by their norms alone."""
    from landscape.directions import draw
    from landscape.space import Space

    a, b = (draw(Space(*c.network("full"), kind="full"), 3) for c in (adaptformer, full))
    name = "blocks.2.mlp.fc1.weight"
    rows = [d.tensors[name] / d.tensors[name].norm(dim=1, keepdim=True) for d in (a, b)]
    torch.testing.assert_close(*rows, atol=1e-6, rtol=0)
    other = draw(Space(*full.network("full"), kind="full"), 4).tensors[name]
    assert not torch.allclose(other, b.tensors[name])


def line(label: str, seed: int, slope: float, direction: int = 0, method: str = "full") -> pd.DataFrame:
    """A line whose rise is slope * alpha^2, effective radius alpha, logit radius slope * alpha."""
    alpha = np.linspace(-1, 1, 21)
    return pd.DataFrame(
        {
            "task": "t", "label": label, "method": method, "dim": 0, "bits": 32, "seed": seed, "run": f"{label}.{seed}",
            "space": "full", "head": False, "split": "train", "direction": direction, "alpha": alpha,
            "effective_radius": abs(alpha), "logit_radius": slope * abs(alpha), "rise_nats": slope * alpha**2,
            "moving": 10, "moving_share": 1.0, "direction_norm": 1.0,
        }
    )  # fmt: skip


def test_the_rise_is_read_at_the_radius_that_all_models_reach():
    """Rule 16, closed form: at the logit radius r of the flatter model, the steeper one's alpha is r / slope."""
    from analyses.flatness import summarise

    curves = pd.concat([line("a", 0, 2.0), line("a", 0, 2.0, direction=1), line("b", 0, 0.5, method="lora")])
    rows = summarise(curves).set_index(["label", "radius_kind"])
    assert rows.loc[("a", "alpha"), "rise_nats"] == pytest.approx(2.0)
    assert rows.loc[("b", "alpha"), "rise_nats"] == pytest.approx(0.5)
    assert rows.loc[("a", "logit"), "radius"] == pytest.approx(0.5)
    assert rows.loc[("a", "logit"), "rise_nats"] == pytest.approx(2.0 * (0.5 / 2.0) ** 2, rel=1e-2)
    assert rows.loc[("b", "logit"), "rise_nats"] == pytest.approx(0.5)
    assert rows.loc[("a", "alpha"), "directions"] == 2


def test_flatter_under_one_radius_alone_is_undecided():
    """Rule 16, intersection-union: b is flatter at equal alpha, steeper at equal logit radius."""
    from analyses.flatness import compare

    seeds = range(5)
    curves = pd.concat(
        [line("a", s, 2.0 + 0.01 * s) for s in seeds] + [line("b", s, 0.5 + 0.02 * s, method="lora") for s in seeds]
    )
    rows = compare(curves).set_index("radius_kind")
    assert rows.loc["alpha", "verdict"] == "holds"
    assert rows.loc["logit", "verdict"] == "does not hold"
    assert rows.loc["all", "verdict"] == "does not hold"


def test_the_command_reports_one_run_and_compares_two(command, done, tmp_path):
    options = ["--samples", 16, "--directions", 2, "--points", 3, "--out", tmp_path]
    runs = [tmp_path / "runs" / run.name for run in (done.run("full"), done.run("adaptformer", 8, 1))]
    for source, copy in zip((done.run("full"), done.run("adaptformer", 8, 1)), runs, strict=True):
        shutil.copytree(source, copy)
    one = command("analyses.flatness", runs[0], *options)
    assert one.returncode == 0, one.stderr
    rows = list(csv.DictReader(io.StringIO(one.stdout)))
    assert {row["radius_kind"] for row in rows} == {"alpha", "effective", "logit"}
    two = command("analyses.flatness", *runs, *options)
    assert two.returncode == 0, two.stderr
    assert {row["verdict"] for row in csv.DictReader(io.StringIO(two.stdout))} <= {
        "holds",
        "does not hold",
        "undecided",
    }
    assert (tmp_path / "figures" / "flatness.pdf").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["analyses.flatness", "/nowhere/run"], "no such checkpoint"),
        (["analyses.flatness"], "expected at least one checkpoint"),
        (["analyses.noise", "README.md"], "a checkpoint is a run folder"),
        (["analyses.noise", "{full}", "--device", "gpu7"], "unknown device"),
        (["analyses.surface", "{full}", "--points", "4"], "--points to be odd"),
        (["analyses.noise", "{weights}"], "--backbone and --task"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command, done, tmp_path, arguments, text):
    places = {"full": done.run("full"), "weights": done.run("full") / "trained.safetensors"}
    if "{weights}" in arguments:
        copied = tmp_path / "copied.safetensors"
        copied.write_bytes(places["weights"].read_bytes())
        places["weights"] = copied
    found = command(*(a.format(**places) for a in arguments), *(["--quiet"] if len(arguments) > 1 else []))
    assert found.returncode == 2
    assert text in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_weights_of_a_whole_network_are_a_checkpoint(done, full, tmp_path):
    """A plain safetensors file with its backbone and task named gives the same losses as the run it came from."""
    weights = tmp_path / "own.safetensors"
    weights.write_bytes((done.run("full") / "trained.safetensors").read_bytes())
    options = Options(samples=16, quiet=True, backbone="vit_tiny32", task="digits")
    own = open_checkpoint(weights, options)
    x = full.data("test", 8)[0]
    with torch.no_grad():
        assert torch.equal(own.model(x), full.model(x))
    assert own.spaces() == ["full"]
    # Two files of one name are told apart where they write to; of one label they are not compared.
    assert own.folder == Path("analysis") / f"own-{own.identity[:8]}"
    from analyses.checkpoint import comparable

    other = replace(own, path=tmp_path / "elsewhere" / "own.pth", identity="another")
    assert other.folder != own.folder
    with pytest.raises(AnalysisError, match="are both 'own': rename one"):
        comparable([own, other])


def test_tables_of_a_run_that_is_read_only_go_elsewhere(full, monkeypatch):
    assert full.folder == full.path
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert full.folder == Path("analysis") / full.path.name


def test_checkpoints_of_other_images_are_not_compared(full):
    from analyses.checkpoint import comparable

    mirrored = replace(full.task, data={k: (x[::-1], y) for k, (x, y) in full.task.data.items()})
    other = replace(full, path=full.path.with_name("other"), task=mirrored)
    with pytest.raises(AnalysisError, match="different images"):
        comparable([full, other])


def test_checkpoints_whose_rows_would_mix_are_refused(full, lora):
    """One name, or two transforms: nothing is measured."""
    from analyses.checkpoint import comparable

    comparable([full, lora])
    with pytest.raises(AnalysisError, match="one name"):
        comparable([full, replace(lora, path=full.path.parent / "x" / full.path.name)])
    resized = replace(full.transform, size=64)
    with pytest.raises(AnalysisError, match="transform their images differently"):
        comparable([full, replace(lora, transform=resized)])


def test_runs_of_one_label_say_what_they_differ_in(full, lora, tmp_path):
    """Two recipes of one method are two models; a table that was made of each alone does not mix them."""
    from analyses.checkpoint import comparable, distinguished
    from analyses.flatness import ANALYSIS, Lines

    other = trained(lora, scale=10.0, recipe={"lr": 0.5})
    other = replace(other, path=tmp_path / "other", run=replace(other.run, path=tmp_path / "other"))
    one, two, three = distinguished([lora, other, full])
    recipe = lora.run.spec.recipe
    assert one.label == f"{lora.label}, scale {lora.run.spec.scale}, lr {recipe.base_lr('lora')}"
    assert two.label == f"{lora.label}, scale 10.0, lr 0.5"
    assert three.label == full.label
    comparable([one, two, three])
    seeds = distinguished([lora, trained(lora, seed=1), full])
    assert [c.label for c in seeds] == [lora.label, lora.label, full.label], "seeds of one model"

    for c in (other, one := replace(one, path=tmp_path / one.path.name)):
        c.path.mkdir()
    lines = Lines(directions=1, points=3)
    assert set(ANALYSIS.measure(other, OPTIONS, lines)["curves"].label) == {lora.label}
    tables = ANALYSIS.report([one, two], OPTIONS, lines, tmp_path)
    assert list(tables["curves"].label.unique()) == [one.label, two.label]
    assert set(tables["verdicts"].label) == {two.label}


def trained(checkpoint, recipe=(), **settings):
    record = checkpoint.run.record
    spec = {**record["spec"], **settings, "recipe": {**record["spec"]["recipe"], **dict(recipe)}}
    return replace(checkpoint, run=replace(checkpoint.run, record={**record, "spec": spec}))


def test_a_run_beside_weights_of_another_architecture_keeps_its_own(full):
    with pytest.warns(UserWarning, match="is of vit_tiny32: --backbone resnet10t is left to others"):
        beside = open_checkpoint(full.path, replace(OPTIONS, backbone="resnet10t", task="digits"))
    assert beside.identity == full.identity
    with pytest.raises(TrainError, match="no such file"):  # where the run's own weights lie now
        open_checkpoint(full.path, replace(OPTIONS, backbone="vit_tiny32@moved.safetensors"))


def test_a_direction_without_a_number_is_not_left_out():
    """Rule 6: the mean over directions is NaN where one of them is, not the mean of the others."""
    from analyses.flatness import summarise

    broken = line("a", 0, 2.0, direction=1)
    broken.loc[broken.alpha == 1.0, "rise_nats"] = np.nan
    rows = summarise(pd.concat([line("a", 0, 2.0), broken])).set_index("radius_kind")
    assert np.isnan(rows.loc["alpha", "rise_nats"])
    assert rows.loc["alpha", "directions"] == 2


def test_the_head_is_what_timm_says_it_is():
    """Rule 11: the head stays still whatever its name."""
    import timm

    from train.methods import head_names

    for name, head in (("resnet10t", "fc"), ("vit_tiny_patch16_224", "head"), ("mobilenetv3_small_050", "classifier")):
        assert head_names(timm.create_model(name)) == [f"{head}.weight", f"{head}.bias"]
