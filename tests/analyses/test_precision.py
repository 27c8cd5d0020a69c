"""How many bits, of which kind: what is stored against brute force, the rows against models of their own."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from analyses.precision import ANALYSIS, Bits
from analyses.rounding import pairs, pooled, rounded_space, storage
from analyses.siblings import Training, missing, siblings, sorted_out
from quant.content import LowbitTensor
from train.loop import fit
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=20, batch_size=20, quiet=True)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, method="adaptformer", dim=3,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A 32-bit run, a low-bit one beside it, one of another seed, and a whole network."""
    task, out, cache = load("digits", train_size=40, test_size=20), tmp_path_factory.mktemp("runs"), {}
    specs = {
        "base": SPEC, "low": replace(SPEC, bits=1), "other": replace(SPEC, bits=1, seed=1),
        "full": replace(SPEC, method="full"),
    }  # fmt: skip
    return {name: fit(spec, task, out, quiet=True, cache=cache) for name, spec in specs.items()}


@pytest.fixture
def alone(runs, tmp_path):
    """The 32-bit run in a folder of its own."""
    ignored = shutil.ignore_patterns("tables", "figures")
    return shutil.copytree(runs["base"].path, tmp_path / "runs" / runs["base"].path.name, ignore=ignored)


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("gaussian_l1", 3), ("uniform_minmax/row", 2), ("gaussian_l2/group7/f16", 1)]
)
def test_storage_against_counting_by_hand(quantizer, bits):
    w = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1
    tensor = LowbitTensor.quantised("m", w, quantizer=quantizer, bits=bits)
    (row,) = storage([tensor], {"m": w})
    counts = Counter(tensor.codes.flatten().tolist()).values()
    entropy = sum(c / 60 * math.log2(60 / c) for c in counts)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(w.flatten(), tensor.dense().flatten(), strict=True)]
    groups = {"": 1, "row": 6, "group7": 9}[[*quantizer.split("/"), ""][1]]
    statistics = 2 * groups * (2 if "f16" in quantizer else 4)
    assert row["entropy_bits"] == pytest.approx(entropy)
    assert row["rate_bits"] == bits
    assert row["sigma"] == pytest.approx(np.std(w.double().numpy()))
    assert row["distortion"] == pytest.approx(sum(squares) / 60 / np.var(w.double().numpy()))
    assert row["adapter_bytes"] == -(-60 * bits // 8) + statistics
    assert row["entropy_coded_bytes"] == pytest.approx(60 * entropy / 8 + statistics)
    assert (row["bound_at_bits"], row["bound_at_entropy"]) == pytest.approx((4.0**-bits, 4.0**-entropy))


def test_normal_weights_have_the_known_distortion_and_entropy():
    """Lloyd-Max for N(0, 1) at 4 bits: mean squared error .009501, entropy 3.765 bits; both above the bound."""
    w = 0.02 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    row = pooled(storage([LowbitTensor.quantised("m", w, quantizer="gaussian_l2", bits=4)], {"m": w}))
    assert row["distortion"] == pytest.approx(0.009501, rel=0.015)
    assert row["entropy_bits"] == pytest.approx(3.765, abs=0.01)
    assert row["distortion"] > row["bound_at_entropy"] > row["bound_at_bits"] == 4.0**-4


def test_a_constant_matrix_is_kept_exactly_and_tensors_count_by_their_weights():
    small, large = torch.full((2, 3), 0.7), torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    weights = {"a": small, "b": large}
    rows = storage([LowbitTensor.quantised(n, w, quantizer="gaussian_l1", bits=2) for n, w in weights.items()], weights)
    assert (rows[0]["distortion"], rows[0]["entropy_bits"]) == (0, 0)
    row = pooled(rows)
    assert row["distortion"] == pytest.approx(0.9 * rows[1]["distortion"])
    assert row["adapter_bytes"] == rows[0]["adapter_bytes"] + rows[1]["adapter_bytes"]


def test_pairs_are_those_that_exist():
    from quant.errors import QuantError
    from quant.quantizers import get, names

    assert pairs(("gaussian_l1",), (1, 9, 4, 4)) == [("gaussian_l1", 1), ("gaussian_l1", 4)]
    every = pairs((), range(1, 9))
    assert {name for name, _ in every} == set(names())
    for pair in every:
        get(*pair)
    with pytest.raises(QuantError, match="gaussian_l1"):
        pairs(("gausian_l1",), (1,))
    with pytest.raises(AnalysisError, match="found 16 for gaussian_l1"):
        pairs(("gaussian_l1",), (16,))


def test_rows_of_a_run_and_of_what_was_trained_beside_it(runs):
    """In training: the recorded test metrics of that run; at 8 bits next to nothing changes; 32 bits are the centre."""
    base, low = runs["base"], runs["low"]
    checkpoint = open_checkpoint(base.path, OPTIONS)
    before = {n: p.clone() for n, p in checkpoint.model.named_parameters()}
    tables, facts = ANALYSIS.compute(checkpoint, OPTIONS, Bits(bits=(1, 8), quantizers=("gaussian_l2", "bwn")), None)
    points = tables["points"].set_index(["when", "quantizer", "bits"])
    assert list(points.index) == [
        ("as trained", "none", 32), ("after", "gaussian_l2", 1), ("after", "gaussian_l2", 8), ("after", "bwn", 1),
        ("in training", "gaussian_l1", 1),
    ]  # fmt: skip
    own, trained = points.loc["as trained"].iloc[0], points.loc["in training"].iloc[0]
    assert own.loss_nats == pytest.approx(base.metrics["test_loss_nats"], abs=1e-6)
    assert (own.rise_nats, own.rise_se_nats, own.accuracy_change) == (0, 0, 0)
    assert trained.trained == low.path.name
    assert trained.loss_nats == pytest.approx(low.metrics["test_loss_nats"], abs=1e-6)
    assert trained.accuracy == low.metrics["test_accuracy"]
    assert trained.rise_nats == pytest.approx(trained.loss_nats - own.loss_nats)
    assert trained.adapter_bytes == low.metrics["adapter_bytes"]
    assert abs(points.loc[("after", "gaussian_l2", 8)].rise_nats) < 2e-3
    assert 0 < points.loc[("after", "gaussian_l2", 8)].distortion < 1e-4
    matrices = tables["matrices"]
    assert len(matrices) == 4 * 2 * len(checkpoint.model.blocks)
    assert facts["measured"]["factors"]["baseline"]["loss_nats"] == own.loss_nats
    for name, p in checkpoint.model.named_parameters():
        assert torch.equal(p, before[name])


def test_paired_errors_of_loss_and_accuracy_by_hand(runs):
    """From the logits of two networks, image by image."""
    checkpoint = open_checkpoint(runs["base"].path, OPTIONS)
    row = ANALYSIS.compute(checkpoint, OPTIONS, Bits(bits=(1,), quantizers=("bwn",)), None)[0]["points"].iloc[-1]
    x, y = runs["base"].tensors("test")
    losses, hits = [], []
    for run in (runs["low"], runs["base"]):
        with torch.no_grad():
            logits = run.model()(x).double()
        losses.append(torch.nn.functional.cross_entropy(logits, y, reduction="none").numpy())
        hits.append((logits.argmax(1) == y).double().numpy())
    rise, change = losses[0] - losses[1], hits[0] - hits[1]
    assert row.when == "in training"
    assert row.rise_se_nats == pytest.approx(rise.std(ddof=1) / 20**0.5, rel=1e-4)
    assert (row.accuracy_change, row.accuracy_change_se) == pytest.approx((change.mean(), change.std(ddof=1) / 20**0.5))


def test_of_a_whole_network_all_matrices_that_moved(runs, monkeypatch):
    checkpoint = open_checkpoint(runs["full"].path, OPTIONS)
    names = rounded_space(checkpoint).names
    params = dict(checkpoint.model.named_parameters())
    linear = {n for n, m in checkpoint.model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert set(names) == {f"{n}.weight" for n in linear if not n.startswith("head")}
    assert all(params[n].ndim > 1 for n in names)
    still = runs["full"].initial_state() | {names[0]: params[names[0]].detach().clone()}
    monkeypatch.setattr(Run, "initial_state", lambda self: still)
    assert rounded_space(checkpoint).names == names[1:]
    monkeypatch.setattr(Run, "initial_state", lambda self: {n: p.detach() for n, p in params.items()})
    with pytest.raises(AnalysisError, match="no matrix that training moved"):
        rounded_space(checkpoint)


def test_siblings_differ_in_bits_and_quantiser_alone(runs, alone):
    beside = open_checkpoint(runs["base"].path, OPTIONS)
    assert [run.path for run in siblings(beside, [])] == [runs["low"].path]
    elsewhere = open_checkpoint(alone, OPTIONS)
    assert siblings(elsewhere, []) == []
    assert [r.path for r in siblings(elsewhere, [runs["low"].path, runs["other"].path])] == [runs["low"].path]
    # another quantiser is a sibling too, and what is trained already is not missing
    training = Training(train=True, train_bits=(1, 2))
    assert [(s.bits, s.seed) for s in missing(beside, [], training)] == [(2, 0)]
    with pytest.raises(AnalysisError, match="no adapter"):
        missing(open_checkpoint(runs["full"].path, OPTIONS), [], training)
    with pytest.raises(AnalysisError, match="after training only"):
        missing(beside, [], replace(training, train_quantizers=("pq",)))


def test_a_low_bit_run_brings_its_32_bit_one_along(runs, tmp_path):
    low, base = runs["low"].path, runs["base"].path
    assert sorted_out([low]) == ([base], [low])
    assert sorted_out([base, low]) == ([base], [low])
    copy = shutil.copytree(low, tmp_path / "x" / low.name)
    assert sorted_out([base, copy]) == ([base], [copy])
    with pytest.raises(AnalysisError, match="expected the 32-bit run"):
        sorted_out([copy])


def test_a_sibling_that_appears_makes_the_tables_anew(runs, alone):
    spec = Bits(bits=(1,), quantizers=("bwn",))
    first = ANALYSIS.measure(open_checkpoint(alone, OPTIONS), OPTIONS, spec)["points"]
    shutil.copytree(runs["low"].path, alone.parent / runs["low"].path.name)
    second = ANALYSIS.measure(open_checkpoint(alone, OPTIONS), OPTIONS, spec)["points"]
    assert list(first.when) == ["as trained", "after"]
    assert list(second.when) == ["as trained", "after", "in training"]
    # where a run lies is no part of what it is
    (given := alone.parent.parent / "given").mkdir()
    shutil.move(alone.parent / runs["low"].path.name, given / runs["low"].path.name)
    moved = replace(spec, low_bit=(given / runs["low"].path.name,))
    made = (alone / "tables" / "rounded" / "points.csv").stat().st_mtime_ns
    ANALYSIS.measure(open_checkpoint(alone, OPTIONS), OPTIONS, moved)
    assert (alone / "tables" / "rounded" / "points.csv").stat().st_mtime_ns == made


def test_the_command_trains_what_is_missing_once(command, alone):
    words = ["analyses.precision", alone, "--samples", 20, "--bits", 1, "--quantizers", "bwn", "--train"]
    words += ["--train-bits", 2, "--train-quantizers", "uniform_minmax"]
    told = command(*words)
    assert told.returncode == 0, told.stderr
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    assert [(r["quantizer"], r["bits"], r["when"]) for r in rows] == [
        ("none", "32", "as trained"), ("bwn", "1", "after"), ("uniform_minmax", "2", "in training"),
    ]  # fmt: skip
    (trained,) = [run for run in alone.parent.iterdir() if run != alone]
    assert (Run.open(trained).spec.bits, Run.open(trained).spec.quantizer) == (2, "uniform_minmax")
    assert (alone / "figures" / "bits.pdf").exists()
    made = (trained / "run.json").stat().st_mtime_ns
    again = command(*words)
    assert (again.returncode, again.stdout) == (0, told.stdout)
    assert "training" not in again.stderr.replace("after training", "")
    assert (trained / "run.json").stat().st_mtime_ns == made
