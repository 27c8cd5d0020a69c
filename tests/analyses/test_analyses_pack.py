"""A file packed after training: what it holds, what it costs, and that it is the network it says it is."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
import torch

from analyses.checkpoint import open_checkpoint
from analyses.options import Options
from quant.lowbit import read_lowbit
from quant.quantizers import get
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=20, batch_size=20, quiet=True, train_size=40)
SPEC = RunSpec(
    task="digits", train_size=40, backbone="random:test_vit", img_size=32, dim=3, bits=32,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(SPEC, load("digits", train_size=40), tmp_path_factory.mktemp("runs"), quiet=True).path


def test_the_file_is_the_checkpoint_with_its_matrices_rounded(run, tmp_path, command):
    path = tmp_path / "x.lowbit"
    done = command("analyses.pack", run, "--bits", "2", "--quantizer", "gaussian_l2", "-o", path, "--samples", "20")
    assert done.returncode == 0
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert int(row["file_bytes"]) == path.stat().st_size
    assert (row["stored_bits"], row["stored_quantizer"], row["stored_head_bits"]) == ("2", "gaussian_l2", "32")
    whole, packed = open_checkpoint(run, OPTIONS), open_checkpoint(path, OPTIONS)
    # by hand: each matrix through its quantiser, nothing else changed
    expected = whole.model.state_dict()
    for name in [n for n in expected if "adapter" in n]:
        grid = get("gaussian_l2", 2).fit(expected[name])
        expected[name] = grid.values(grid.codes(expected[name]))
        assert len(expected[name].unique()) <= 4
    whole.model.load_state_dict(expected)
    x, y = whole.data("test", 20)
    with torch.no_grad():
        logits = whole.model(x)
        assert torch.equal(packed.model(x), logits)
    assert float(row["loss_nats"]) == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), y).item())
    assert float(row["accuracy"]) == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_a_head_in_few_bits_keeps_its_bias(run, tmp_path, command):
    path = tmp_path / "x.lowbit"
    assert command("analyses.pack", run, "--head-bits", "4", "-o", path, "--samples", "20").returncode == 0
    stored = {t.name: t for t in read_lowbit(path).tensors}
    assert (stored["head.weight"].bits, stored["head.bias"].bits) == (4, 32)
    assert open_checkpoint(path, OPTIONS).model.head.weight.unique().numel() <= 16


@pytest.mark.parametrize("bits", [1, 32])
def test_the_head_alone_in_few_bits(run, tmp_path, command, bits):
    """The adapter's own codes, or its plain values, stay; only the head's matrix is another."""
    if bits < 32:
        run = fit(replace(SPEC, bits=bits), load("digits", train_size=40), tmp_path, quiet=True).path
    before = read_lowbit(run / "adapter.lowbit")
    for source, path in ((run, tmp_path / "x.lowbit"), (run / "adapter.lowbit", tmp_path / "y.lowbit")):
        done = command("analyses.pack", source, "--bits", "32", "--head-bits", "2", "-o", path, "--samples", "20")
        assert done.returncode == 0, done.stderr
        after = read_lowbit(path)
        assert after.header == {**before.header, "head_bits": 2}
        for old, new in zip(before.tensors, after.tensors, strict=True):
            assert (old.name, old.shape) == (new.name, new.shape)
            if old.name == "head.weight":
                expected = get("gaussian_l1", 2).fit(old.dense())
                assert torch.equal(new.dense(), expected.values(expected.codes(old.dense())))
            else:
                assert (old.bits, old.quantizer) == (new.bits, new.quantizer)
                assert torch.equal(old.dense(), new.dense())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "x.bin"), "ends in .lowbit"),
        (("--quantizer", "gausian_l1", "-o", "x.lowbit"), "nearest: gaussian_l1"),
        (("--bits", "9", "-o", "x.lowbit"), "found 9"),
    ],
)
def test_what_cannot_be_packed_is_one_line(run, command, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = command("analyses.pack", run, *arguments, "--samples", "20")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x.lowbit").exists()


def test_a_low_bit_checkpoint_is_packed_already(run, tmp_path, command):
    low = fit(replace(SPEC, bits=1), load("digits", train_size=40), tmp_path, quiet=True).path
    done = command("analyses.pack", low, "-o", tmp_path / "x.lowbit", "--samples", "20")
    assert (done.returncode, "32-bit" in done.stderr) == (2, True)
