"""Training: the same bits after any kill, the selection of the epoch, what is refused, what is left untouched."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kills import Kill, die_at

import figures.atomic
import train.loop
from analyses.parallel import context
from train import build
from train import state as states
from train.build import Score
from train.errors import TrainError
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

RECIPE = Recipe(epochs=3, batch_size=16, lr=1e-2, warmup_epochs=1, drop_path=0.2)
SPEC = RunSpec(
    task="digits",
    train_size=40,
    test_size=20,
    backbone="random:test_vit",
    img_size=32,
    dim=2,
    bits=1,
    head_bits=1,
    recipe=RECIPE,
)


@pytest.fixture(scope="module")
def task():
    return load("digits", train_size=40, test_size=20)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """A run that was never interrupted."""
    return fit(SPEC, task, tmp_path_factory.mktemp("whole"), quiet=True)


def contents(run):
    """Everything of a finished run that must not depend on how it came about."""
    record = json.loads((run.path / "run.json").read_text())
    return (
        sorted(p.name for p in run.path.iterdir()),
        (run.path / "trained.safetensors").read_bytes(),
        (run.path / "adapter.lowbit").read_bytes(),
        record["metrics"],
        record["status"],
        run.history.drop(columns="seconds").to_csv(),
    )


@pytest.mark.parametrize(
    ("owner", "name", "count", "after"),
    [
        (torch.optim.AdamW, "step", 1, False),
        (states, "save", 2, False),
        (states, "save", 2, True),
        (os, "fsync", 5, True),
        (train.loop, "write_weights", 1, True),
        (train.loop, "sizes", 1, True),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(owner, name, count, after, whole, task, tmp_path, monkeypatch):
    """NUMERICS rule 27: a kill at any moment."""
    with monkeypatch.context() as patch:
        # a real kill writes no last record either
        die_at(patch, owner, name, count, after)
        write = train.loop.write_record
        patch.setattr(train.loop, "write_record", lambda f, r: write(f, r) if r["status"] == "running" else None)
        with pytest.raises(Kill):
            fit(SPEC, task, tmp_path, quiet=True)
    assert json.loads((tmp_path / SPEC.name / "run.json").read_text())["status"] == "running"
    torch.manual_seed(99)
    assert contents(fit(SPEC, task, tmp_path, quiet=True)) == contents(whole)


def test_kill_9_in_another_process(whole, task, tmp_path):
    """NUMERICS rule 27: the process is gone in the middle of its second epoch, half a file beside the run."""
    process = context().Process(target=dying, args=(SPEC.to_json(), tmp_path, torch.get_num_threads()))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / SPEC.name / "resume.safetensors").exists()
    assert (tmp_path / SPEC.name / HALF).exists()
    assert contents(fit(SPEC, task, tmp_path, quiet=True)) == contents(whole)


HALF = ".resume.safetensors.1.tmp"


def dying(spec: str, out: Path, threads: int) -> None:
    """Train until the fourth step, then be gone."""
    torch.set_num_threads(threads)
    run, calls, step = RunSpec.from_json(spec), [0], torch.optim.AdamW.step

    def fourth(*args):
        calls[0] += 1
        if calls[0] == 4:
            (out / run.name / HALF).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    torch.optim.AdamW.step = fourth
    fit(run, build.load_task(run), out, quiet=True)


def test_full_fine_tuning_resumes_too_and_has_no_lowbit_file(task, tmp_path, monkeypatch):
    spec = replace(SPEC, method="full", bits=32, head_bits=32, recipe=replace(RECIPE, epochs=2))
    once = fit(spec, task, tmp_path / "a", quiet=True)
    with monkeypatch.context() as patch:
        die_at(patch, torch.optim.AdamW, "step", 3)
        with pytest.raises(Kill):
            fit(spec, task, tmp_path / "b", quiet=True)
    again = fit(spec, task, tmp_path / "b", quiet=True)
    assert not (once.path / "adapter.lowbit").exists()
    assert (once.path / "trained.safetensors").read_bytes() == (again.path / "trained.safetensors").read_bytes()
    assert once.metrics == again.metrics
    assert once.metrics["file_bytes"] == (once.path / "trained.safetensors").stat().st_size == once.bytes
    assert once.metrics["adapter_bytes"] + once.metrics["head_bytes"] == 4 * once.metrics["trained_parameters"]


def test_another_seed_is_another_run_and_a_cache_changes_nothing(whole, task, tmp_path):
    cache: dict = {}
    same = fit(SPEC, task, tmp_path, quiet=True, cache=cache)
    assert contents(same) == contents(whole)
    assert {split for _, _, split in cache} == {"train", "val", "test"}
    other = fit(replace(SPEC, seed=1), task, tmp_path, quiet=True, cache=cache)
    assert other.path != same.path
    assert contents(other)[1] != contents(same)[1]


def test_a_second_identical_call_does_nothing(whole, task, monkeypatch):
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.path.iterdir()}
    monkeypatch.setattr(train.loop, "_Training", None)
    (whole.path / "resume.safetensors").write_bytes(b"left by a kill after the end")
    again = fit(SPEC, task, whole.path.parent, quiet=True)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in whole.path.iterdir()} == before
    assert again.metrics == whole.metrics


def test_the_epoch_is_chosen_on_val_and_the_test_set_is_read_once_at_the_end(task, tmp_path, monkeypatch):
    asked = []
    original = build.tensors
    monkeypatch.setattr(build, "tensors", lambda s, t, split, cache=None: asked.append(split) or original(s, t, split))
    run = fit(SPEC, task, tmp_path, quiet=True)
    assert asked == ["train", "val", "val", "val", "train", "test", "val"]
    history = run.history
    ranked = history.sort_values(["val_accuracy", "val_loss_nats"], ascending=[False, True], kind="stable")
    chosen = ranked.iloc[0]
    assert run.metrics["selected_epoch"] == chosen["epoch"]
    assert run.metrics["val_accuracy"] == chosen["val_accuracy"]
    assert run.metrics["val_loss_nats"] == chosen["val_loss_nats"]
    assert list(history["lr"]) == [RECIPE.learning_rate(e, "adaptformer") for e in range(3)]
    assert list(history) == ["epoch", "lr", "train_loss_nats", "val_loss_nats", "val_accuracy", "seconds"]


def test_the_papers_protocol_trains_on_val_too_and_keeps_what_it_saw_of_the_test_set(
    whole, task, tmp_path, monkeypatch
):
    sizes = []
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **k: sizes.append(n) or original(n, **k))
    seen = []
    score = train.loop.score
    monkeypatch.setattr(train.loop, "score", lambda *a: seen.append(score(*a)) or seen[-1])
    spec = replace(SPEC, protocol="paper", recipe=replace(RECIPE, epochs=12))
    run = fit(spec, task, tmp_path, quiet=True)
    assert sizes == [40] * 12
    along = [s.accuracy for s in seen[:-2]]  # the last two judge the finished files
    assert len(along) == 10
    assert run.metrics["best_test_accuracy_seen"] == max(along)
    assert run.metrics["test_accuracy"] == along[-1]
    assert run.metrics["selected_epoch"] == 11
    assert run.metrics["val_accuracy"] is None
    assert run.history["val_accuracy"].isna().all()
    assert "best_test_accuracy_seen" not in whole.metrics


def test_one_epoch_is_adamw_over_whole_batches_written_out(task, tmp_path):
    """The trained head of a linear probe against a loop of its own; 32 images in batches of 10, two are left over."""
    recipe = Recipe(epochs=1, batch_size=10, lr=1e-2, warmup_epochs=0, drop_path=0.0)
    spec = replace(SPEC, method="linear", bits=32, head_bits=32, recipe=recipe)
    run = fit(spec, task, tmp_path, quiet=True)
    x, y = run.tensors("train")
    model = build.build(spec, 10).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True).double()
    w, b = (t.detach().double().requires_grad_() for t in (model.head.weight, model.head.bias))
    moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in (w, b)]
    order = torch.randperm(32, generator=torch.Generator().manual_seed(build.stream(0, "order")))
    for step in range(3):
        rows = order[10 * step : 10 * step + 10]
        loss = -(features[rows] @ w.T + b).log_softmax(1)[torch.arange(10), y[rows]].mean()
        for t, g, (m, v) in zip((w, b), torch.autograd.grad(loss, (w, b)), moments, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                t -= 1e-2 * (1e-4 * t + hat[0] / (hat[1].sqrt() + 1e-8))
    state = run.trained_state()
    torch.testing.assert_close(state["head.weight"].double(), w.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(state["head.bias"].double(), b.detach(), rtol=1e-3, atol=1e-5)


def test_torchs_generators_and_settings_are_as_before(whole, task, tmp_path):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002 (the old global is what must not move)
    fit(SPEC, task, tmp_path, quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert torch.is_grad_enabled()


def test_other_data_or_another_backbone_is_refused(whole, tmp_path, monkeypatch):
    """NUMERICS rule 5: fingerprints are compared when a run starts."""
    other = load("digits", train_size=40, test_size=20, data_seed=1)
    with pytest.raises(TrainError, match="trained with another data: expected fingerprint"):
        fit(SPEC, other, whole.path.parent, quiet=True)
    with pytest.raises(TrainError, match=r"expected the task 'digits'.*found 'counting'"):
        fit(SPEC, load("counting", train_size=40, test_size=20), tmp_path, quiet=True)
    monkeypatch.setattr(build, "backbone_hash", lambda spec: "0" * 64)
    with pytest.raises(TrainError, match="trained with another backbone"):
        fit(SPEC, whole.task(), whole.path.parent, quiet=True)


def test_failures_are_recorded_and_the_run_may_be_started_again(task, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        nan = torch.tensor(math.nan, requires_grad=True)
        patch.setattr(torch.nn.functional, "cross_entropy", lambda *a, **k: nan)
        with pytest.raises(TrainError, match="training diverged: the loss is nan"):
            fit(SPEC, task, tmp_path, quiet=True)
    record = json.loads((tmp_path / SPEC.name / "run.json").read_text())
    assert (record["status"], record["error"][:17]) == ("failed", "training diverged")
    with monkeypatch.context() as patch:
        patch.setattr(train.loop._Training, "_judge", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(SPEC, task, tmp_path, quiet=True)
    assert json.loads((tmp_path / SPEC.name / "run.json").read_text())["status"] == "cancelled"
    assert fit(SPEC, task, tmp_path, quiet=True).status == "done"


def test_a_full_disk_is_itself_and_leaves_no_half_file(whole, task, tmp_path, monkeypatch):
    calls = [0]

    def full(fd):
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(figures.atomic.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fit(SPEC, task, tmp_path, quiet=True)
    assert not list((tmp_path / SPEC.name).glob(".*.tmp"))
    assert contents(fit(SPEC, task, tmp_path, quiet=True)) == contents(whole)


def test_what_cannot_be_trained_is_one_line(task, tmp_path):
    for changes, text in (
        ({"recipe": replace(RECIPE, batch_size=33)}, "at least one batch of 33 images to train on, found 32"),
        ({"backbone": "random:resnet10t"}, "expected a timm vision transformer made of Block"),
    ):
        with pytest.raises(TrainError, match=text):
            fit(replace(SPEC, head_bits=32, **changes), task, tmp_path, quiet=True)
    for device in ("cuda:77", "tpu", "meta"):
        with pytest.raises(TrainError, match="device") as caught:
            fit(SPEC, task, tmp_path, device=device, quiet=True)
        assert "\n" not in str(caught.value)


def test_a_damaged_position_is_named(task, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, states, "save", 1, after=True)
        with pytest.raises(Kill):
            fit(SPEC, task, tmp_path, quiet=True)
    path = tmp_path / SPEC.name / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TrainError, match=r"resume\.safetensors: expected a training's position, found a damaged file"):
        fit(SPEC, task, tmp_path, quiet=True)


def test_scores_are_of_eval_mode_and_do_not_depend_on_the_batch(whole, monkeypatch):
    """NUMERICS rules 4 and 5: dropout and drop path are off, the mode is restored, the mean is sum / N."""
    inputs, labels = whole.tensors("train")
    model = whole.model("latent").train()
    first = build.predict(model, inputs)
    assert model.training
    assert torch.equal(first, build.predict(model, inputs))
    found = build.score(first, labels)
    assert found.loss_nats == whole.metrics["train_loss_nats"]
    for batch in (7, 32):
        monkeypatch.setattr(build, "EVAL_BATCH", batch)
        other = build.score(build.predict(model, inputs), labels)
        assert other.loss_nats == pytest.approx(found.loss_nats, rel=1e-6)
        assert other.accuracy == found.accuracy
    p = first.double().exp()
    by_hand = -(p[torch.arange(len(labels)), labels] / p.sum(1)).log().mean().item()
    assert found.loss_nats == pytest.approx(by_hand, rel=1e-12)


def test_progress_says_how_long(task, tmp_path, capsys):
    fit(replace(SPEC, recipe=replace(RECIPE, epochs=1)), task, tmp_path)
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert captured.out == ""
    assert isinstance(pd.read_csv(next(tmp_path.iterdir()) / "history.csv"), pd.DataFrame)


def test_a_network_that_is_judged_without_a_number_has_diverged(task, tmp_path, monkeypatch):
    """The last step of an epoch may be the one that diverges: nothing is called done that has no loss."""
    monkeypatch.setattr(train.loop, "score", lambda *_: Score(loss_nats=math.nan, accuracy=0.1, logits_sha256=""))
    with pytest.raises(TrainError, match="training diverged"):
        fit(SPEC, task, tmp_path, quiet=True)
    assert json.loads((tmp_path / SPEC.name / "run.json").read_text())["status"] == "failed"


def test_two_processes_do_not_train_one_run(task, tmp_path):
    from train.folder import alone

    with alone(tmp_path / SPEC.name), pytest.raises(TrainError, match="another process is training this run"):
        fit(SPEC, task, tmp_path, quiet=True)
    assert fit(SPEC, task, tmp_path, quiet=True).status == "done"


@pytest.mark.parametrize(("what", "change"), [("versions", {"torch": "0.0"}), ("threads", {"threads": 64})])
def test_a_run_goes_on_only_as_it_was_begun(task, tmp_path, monkeypatch, what, change):
    """NUMERICS rule 27: other versions or threads would end elsewhere; the position is kept."""
    die_at(monkeypatch, states, "save", 1, after=True)
    with pytest.raises(Kill):
        fit(SPEC, task, tmp_path, quiet=True)
    monkeypatch.undo()
    path = tmp_path / SPEC.name / "run.json"
    record = json.loads(path.read_text())
    record["versions" if what == "versions" else "device"] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(TrainError, match=f"begun with {what}"):
        fit(SPEC, task, tmp_path, quiet=True)
    assert (tmp_path / SPEC.name / "resume.safetensors").exists()
