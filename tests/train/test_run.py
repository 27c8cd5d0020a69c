"""Reopening a run: the same logits in a new process, honest byte counts, and errors of one line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analyses.parallel import context
from quant.fake import QuantLinear
from quant.lowbit import read_lowbit
from train import build
from train.errors import TrainError
from train.loop import fit
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec
from train.tasks import load

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0)
BASE = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3, recipe=RECIPE
)
SPECS = {
    **{f"lora{bits}": replace(BASE, method="lora", bits=bits) for bits in (1, 2, 3, 4, 8, 32)},
    "adaptformer1": replace(BASE, bits=1, head_bits=1, quantizer="released", protocol="paper"),
    "full": replace(BASE, method="full"),
    "linear": replace(BASE, method="linear"),
    "batchnorm": replace(BASE, method="full", backbone="random:test_efficientnet"),
    "batchnorm_probe": replace(BASE, method="linear", backbone="random:test_efficientnet"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    task = load("digits", train_size=40, test_size=20)
    out, cache = tmp_path_factory.mktemp("runs"), {}
    return {name: fit(spec, task, out, quiet=True, cache=cache) for name, spec in SPECS.items()}


@pytest.fixture
def run(runs):
    return runs["lora1"]


@pytest.fixture
def copied(run, tmp_path):
    """A run folder that may be damaged."""
    return Path(shutil.copytree(run.path, tmp_path / run.path.name))


def test_a_new_process_gives_the_same_bits(runs, tmp_path):
    """NUMERICS rule 26: logits in a new process are those at the end of training, at every bit-width."""
    paths = [str(run.path) for run in runs.values()]
    process = context().Process(target=predict_all, args=(paths, tmp_path / "x.pt", torch.get_num_threads()))
    process.start()
    process.join(200)
    assert process.exitcode == 0
    logits = torch.load(tmp_path / "x.pt", weights_only=True)
    for run in runs.values():
        digest = run.metrics["test_logits_sha256"]
        labels = run.tensors("test")[1]
        for weights in ("deployed", "latent"):
            there = logits[f"{run.path}{weights}"]
            assert torch.equal(there, build.predict(run.model(weights), run.tensors("test")[0]))
            assert build.score(there, labels).logits_sha256 == digest, "bit-equal to those at the end of training"
    assert runs["lora1"].verify("test")
    assert runs["lora1"].verify("val")


def predict_all(paths: list[str], out: Path, threads: int) -> None:
    """Logits of the test images of runs, saved by the path of the run and the kind of weights."""
    torch.set_num_threads(threads)
    logits = {}
    for path in paths:
        run = Run.open(path)
        inputs, _ = run.tensors("test")
        with torch.inference_mode():
            for weights in ("deployed", "latent"):
                logits[path + weights] = run.model(weights)(inputs)
    torch.save(logits, out)


def test_verify_sees_a_change(copied):
    record = json.loads((copied / "run.json").read_text())
    record["metrics"]["val_logits_sha256"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(record))
    assert not Run.open(copied).verify("val")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 32])
def test_bytes_are_those_on_disk_and_of_the_paper(runs, bits):
    """NUMERICS rule 24: 24 matrices of 64 x 3 (LoRA on 6 blocks), packed, with 8 bytes of statistics each."""
    run = runs[f"lora{bits}"]
    each = 64 * 3 * 4 if bits == 32 else math.ceil(64 * 3 * bits / 8) + 8
    assert run.metrics["adapter_bytes"] == 24 * each
    assert run.metrics["head_bytes"] == 4 * 65 * 10
    assert run.metrics["file_bytes"] == run.bytes == Path(run.path / "adapter.lowbit").stat().st_size
    assert run.metrics["file_bytes"] > run.metrics["adapter_bytes"] + run.metrics["head_bytes"]
    assert run.metrics["trained_parameters"] == 4 * 64 * 3 * 6 + 65 * 10


def test_a_bi_head_is_a_bit_a_weight_and_a_linear_probe_is_its_head(runs):
    assert runs["adaptformer1"].metrics["head_bytes"] == 64 * 10 // 8 + 8
    assert runs["linear"].metrics["adapter_bytes"] == 0
    assert [t.name for t in read_lowbit(runs["linear"].path / "adapter.lowbit").tensors] == ["head.weight", "head.bias"]


def test_deployed_is_plain_and_latent_is_not(run):
    deployed, latent = run.model(), run.model("latent")
    assert not deployed.training
    assert not any(isinstance(m, QuantLinear) for m in deployed.modules())
    assert sum(isinstance(m, QuantLinear) for m in latent.modules()) == 24
    for name, w in deployed.named_parameters():
        if ".lora_" in name:
            assert len(w.unique()) == 2
    state = run.trained_state()
    own = dict(latent.named_parameters())
    assert all(torch.equal(own[name], w) for name, w in state.items())
    assert set(dict(deployed.named_parameters())) == set(own)


def test_initial_values_come_back_from_the_seed(run, runs):
    initial, trained = run.initial_state(), run.trained_state()
    assert set(initial) == set(trained)
    fresh = dict(build.build(run.spec, 10).named_parameters())
    assert all(torch.equal(fresh[name], w) for name, w in initial.items())
    assert not any(torch.equal(initial[name], trained[name]) for name in initial)
    heads = [runs[name].initial_state()["head.weight"] for name in ("lora8", "linear", "full")]
    assert torch.equal(heads[0], heads[1]), "methods compared at one seed share the head they start from"
    assert torch.equal(heads[0], heads[2])


def test_a_run_tells_what_it_is(run):
    assert run.status == "done"
    assert run.spec == SPECS["lora1"]
    assert run.classes == tuple("0123456789")
    frame = run.to_frame()
    assert frame.loc[0, "label"] == "LoRA r3, 1 bit"
    assert frame.loc[0, "run"] == run.path.name
    assert run.path.name in run._repr_html_()
    record = run.record
    assert record["device"]["threads"] == torch.get_num_threads()
    assert {"torch", "timm", "python"} <= set(record["versions"])
    assert record["seconds"] == pytest.approx(run.history["seconds"].sum())
    assert Run.open(run.path / "adapter.lowbit").spec == run.spec
    header = read_lowbit(run.path / "adapter.lowbit").header
    assert header["backbone_hash"] == record["fingerprints"]["backbone"]
    assert header["classes"] == list(run.classes)


def test_it_refuses_what_is_not_a_finished_run(copied, tmp_path):
    with pytest.raises(TrainError, match=r"expected a run folder with run\.json"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(TrainError, match=r"unknown weights 'deploy'.*nearest: deployed"):
        Run.open(copied).model("deploy")
    good = json.loads((copied / "run.json").read_text())
    for changes, text in (
        ({"schema": 2}, "expected schema 1, found 2"),
        ({"status": "running"}, "expected a finished run, found one that is running"),
        ({"fingerprints": {**good["fingerprints"], "backbone": "f" * 64}}, "trained with another backbone"),
        ({"classes": ["a", "b"]}, r"expected head\.weight of shape \(2, 64\), found \(10, 64\)"),
        ({"spec": {**good["spec"], "bit": 1}}, "unknown field of a run's specification 'bit'.*nearest: bits"),
    ):
        (copied / "run.json").write_text(json.dumps({**good, **changes}))
        with pytest.raises(TrainError, match=text) as caught:
            Run.open(copied).model()
        assert "\n" not in str(caught.value)
    for damaged in ("{", "[]", "{}"):
        (copied / "run.json").write_text(damaged)
        with pytest.raises(TrainError):
            Run.open(copied)


def test_it_refuses_damaged_weights_and_other_data(copied):
    for name in ("adapter.lowbit", "trained.safetensors"):
        data = (copied / name).read_bytes()
        (copied / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=name) as caught:
            Run.open(copied).model("latent" if name[0] == "t" else "deployed")
        assert getattr(caught.value, "exit_code", None) == 2
    (copied / "adapter.lowbit").unlink()
    with pytest.raises(TrainError, match=r"adapter\.lowbit: expected the weights of \d bits?, found no file"):
        Run.open(copied).model()
    with pytest.raises(TrainError, match="trained with another data"):
        Run.open(copied, task=load("digits", train_size=40, test_size=20, data_seed=3)).task()


def command(monkeypatch, *arguments):
    """Run ``python -m train`` here; the exit code."""
    import figures.command
    from train.__main__ import main

    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as caught:
        figures.command.run(main, prog="python -m train")
    return caught.value.code


SMALL = (
    "--train-size",
    "40",
    "--test-size",
    "20",
    "--backbone",
    "random:test_vit",
    "--img-size",
    "32",
    "--dim",
    "2",
    "--recipe",
    "short",
)


def test_the_command_trains_and_finds_what_it_trained(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("train.recipe.PRESETS", {"short": RECIPE})
    arguments = ("digits", *SMALL, "--bits", "2", "--out", str(tmp_path), "--json")
    assert command(monkeypatch, *arguments) == 0
    first = capsys.readouterr()
    assert "AdaptFormer h2, 2 bits on digits: backbone random:test_vit" in first.err
    assert "trained: " in first.err
    [row] = json.loads(first.out)
    assert row["bits"] == 2
    assert 0 <= row["test_accuracy"] <= 1
    assert command(monkeypatch, *arguments) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "found finished: " in second.err
    record = json.loads((next(tmp_path.iterdir()) / "run.json").read_text())
    assert record["command"].startswith("python -m train digits --train-size 40")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("digit",), "unknown task 'digit'"),
        (("digits", "--method", "lorra"), "unknown method 'lorra'"),
        (("digits", "--recipe", "shrt"), "unknown recipe 'shrt'"),
        (("digits", "--quantizer", "gauss", "--bits", "1"), "unknown quantizer 'gauss'"),
        (("digits", "--bits", "9"), "expected bits to be one of"),
        (("digits", "--device", "cudda"), "unknown device 'cudda'"),
        (("digits", "--method", "full", "--dim", "4"), "full has no adapter: expected no --dim"),
        (("digits", "--backbone", "vit_tiny33"), "vit_tiny33"),
        (("digits", "--epochs", "0"), "expected epochs"),
        (("folder:/nowhere/at/all", "--backbone", "random:test_vit"), "no such folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(arguments, text, monkeypatch, tmp_path, capsys):
    assert command(monkeypatch, *arguments, "--out", str(tmp_path), "--quiet") == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_2(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(monkeypatch, "digits", *SMALL, "--quiet", "--out", str(tmp_path / "file" / "runs")) == 2
    assert capsys.readouterr().err.startswith("error: not a directory")


def test_help_is_quick_and_loads_no_torch():
    script = (
        "import sys, runpy; sys.argv = ['train', '--help']\n"
        "try: runpy.run_module('train', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0; assert not {'torch', 'timm', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for option in ("--method", "--dim", "--scale", "--bits", "--quantizer", "--head-bits", "--backbone", "--protocol"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "damage",
    [
        {"spec": None},
        {"metrics": [1]},
        {"fingerprints": None},
        {"classes": 5},
        {"device": "cpu"},
        {"spec": {"task": 5}},
        {"spec": {"task": "digits", "scale": "x"}},
        {"spec": {"task": "digits", "recipe": None}},
    ],
)
def test_a_record_of_other_kinds_is_one_line(copied, damage):
    path = copied / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(TrainError, match=r"run\.json") as caught:
        Run.open(copied)
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_trained_tensors_is_refused(copied):
    """Missing adapters would stay at their initial values, and all that is measured would be wrong."""
    from safetensors.torch import load_file, save_file

    state = load_file(copied / "trained.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("head.")}, copied / "trained.safetensors")
    with pytest.raises(TrainError, match="lacks the trained tensor"):
        Run.open(copied).model("latent")
    save_file({k: v * math.nan for k, v in state.items()}, copied / "trained.safetensors")
    with pytest.raises(TrainError, match="not finite"):
        Run.open(copied).model("latent")


def test_a_packed_file_of_another_backbone_is_refused(copied):
    from quant.lowbit import Lowbit, write_lowbit

    path = copied / "adapter.lowbit"
    whole = read_lowbit(path)
    write_lowbit(path, Lowbit(header={**whole.header, "backbone_hash": "0" * 64}, tensors=whole.tensors))
    with pytest.raises(TrainError, match="another backbone"):
        Run.open(copied).model()
