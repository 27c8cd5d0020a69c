"""Networks with BatchNorm: full fine-tuning trains and keeps the statistics, a frozen backbone leaves them alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from kills import Kill, die_at
from safetensors.torch import load_file, save_file

import train.loop
from train import build
from train import state as states
from train.errors import TrainError
from train.loop import fit
from train.methods import get, head_names, statistic_names
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec
from train.tasks import load

RECIPE = Recipe(epochs=2, batch_size=16, lr=1e-2, lr_for=(), warmup_epochs=0, drop_path=0.2)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_efficientnet", img_size=32, method="full",
    recipe=RECIPE,
)  # fmt: skip
BATCHES = 2  # of 16 of the 32 training images


@pytest.fixture(scope="module")
def task():
    return load("digits", train_size=40, test_size=20)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """A run that was never interrupted."""
    return fit(SPEC, task, tmp_path_factory.mktemp("whole"), quiet=True)


def test_full_fine_tuning_keeps_the_statistics_that_it_trained(whole):
    before, after = whole.initial_state(), whole.trained_state()
    model = whole.model()
    own = model.state_dict()
    assert set(after) == set(before) == set(own)
    assert all(torch.equal(own[name], tensor) for name, tensor in after.items())
    statistics = statistic_names(model)
    assert len(statistics) == 39
    assert not any(torch.equal(before[name], after[name]) for name in statistics)
    counters = {after[name].item() for name in statistics if name.endswith("num_batches_tracked")}
    assert counters == {BATCHES * (whole.metrics["selected_epoch"] + 1)}


def test_a_linear_probe_keeps_the_backbones_statistics_still(task, tmp_path):
    spec = replace(SPEC, method="linear")
    run = fit(spec, task, tmp_path, quiet=True)
    assert set(run.trained_state()) == {"classifier.weight", "classifier.bias"}
    before, after = build.build(spec, 10).state_dict(), run.model().state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert run.metrics["adapter_bytes"] == 0
    assert run.metrics["head_bytes"] == 4 * (256 + 1) * 10


@pytest.mark.parametrize(
    ("name", "head"), [("test_efficientnet", "classifier"), ("test_resnet", "fc"), ("test_byobnet", "head.fc")]
)
def test_a_frozen_backbones_batchnorm_is_in_eval_mode_and_all_else_is_not(name, head):
    """NUMERICS rule 4: also after the network was judged between two epochs."""
    images = torch.zeros(2, 3, 32, 32)
    for method in ("linear", "full"):
        model = build.build(replace(SPEC, backbone=f"random:{name}", method=method), 10)
        trained = get(method).trainable(model)
        assert head_names(model) == [f"{head}.weight", f"{head}.bias"]
        assert trained == head_names(model) if method == "linear" else len(trained) > 20
        build.predict(model, images)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms
        assert {m.training for m in norms} == {method == "full"}
        assert all(m.training for m in model.modules() if m not in norms)


def test_the_first_layers_statistics_are_a_literal_loop(task, tmp_path):
    """r <- 0.9 r + 0.1 batch statistic over two steps in the run's order, at a learning rate that moves no weight."""
    recipe = replace(RECIPE, epochs=1, lr=1e-30, min_lr=0.0, drop_path=0.0)
    run = fit(replace(SPEC, recipe=recipe), task, tmp_path, quiet=True)
    x, _ = run.tensors("train")
    initial, trained = run.initial_state(), run.trained_state()
    kernel = initial["conv_stem.weight"].double()
    assert torch.equal(trained["conv_stem.weight"], initial["conv_stem.weight"])
    order = torch.randperm(32, generator=torch.Generator().manual_seed(build.stream(0, "order")))
    mean, variance = torch.zeros(len(kernel)).double(), torch.ones(len(kernel)).double()
    for step in range(BATCHES):
        padded = torch.zeros(16, 3, 34, 34).double()
        padded[:, :, 1:-1, 1:-1] = x[order[16 * step : 16 * step + 16]].double()
        patches = torch.stack([padded[:, :, i : i + 31 : 2, j : j + 31 : 2] for i in range(3) for j in range(3)], dim=2)
        values = torch.einsum("bckyx,ock->obyx", patches, kernel.reshape(len(kernel), 3, 9)).reshape(len(kernel), -1)
        batch = values.sum(1) / values.shape[1]
        spread = ((values - batch[:, None]) ** 2).sum(1) / (values.shape[1] - 1)
        mean, variance = 0.9 * mean + 0.1 * batch, 0.9 * variance + 0.1 * spread
    torch.testing.assert_close(trained["bn1.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained["bn1.running_var"].double(), variance, rtol=1e-5, atol=1e-6)
    assert trained["bn1.num_batches_tracked"] == BATCHES


def contents(run: Run) -> tuple:
    """Everything of a finished run that must not depend on how it came about."""
    record = json.loads((run.path / "run.json").read_text())
    files = sorted(p.name for p in run.path.iterdir())
    return files, (run.path / "trained.safetensors").read_bytes(), record["metrics"], record["status"]


@pytest.mark.parametrize(
    ("owner", "name", "count", "after"),
    [
        (torch.optim.AdamW, "step", 3, True),
        (states, "save", 1, True),
        (states, "save", 2, False),
        (train.loop, "write_weights", 1, True),
    ],
)
def test_a_killed_run_goes_on_to_the_same_statistics(owner, name, count, after, whole, task, tmp_path, monkeypatch):
    """NUMERICS rule 27: weights, running statistics and their counters, bit for bit."""
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, count, after)
        with pytest.raises(Kill):
            fit(SPEC, task, tmp_path, quiet=True)
    torch.manual_seed(99)
    assert contents(fit(SPEC, task, tmp_path, quiet=True)) == contents(whole)


def test_the_selected_epochs_statistics_are_kept_and_not_the_last_ones(task, tmp_path, monkeypatch):
    """NUMERICS rule 26: with a first epoch that judges best, its counters are those of one epoch."""
    score, accuracies = train.loop.score, iter([1.0, 0.0])
    monkeypatch.setattr(
        train.loop, "score", lambda *a: replace(score(*a), **{"accuracy": v} if (v := next(accuracies, None)) else {})
    )
    run = fit(SPEC, task, tmp_path, quiet=True)
    assert run.metrics["selected_epoch"] == 0
    assert run.trained_state()["bn1.num_batches_tracked"] == BATCHES
    assert run.verify("val")


def test_bytes_are_those_of_the_file_and_parameters_are_those_trained(whole):
    """NUMERICS rule 24: statistics are in the file's bytes, eight for a counter, and are no trained parameters."""
    stored, metrics = load_file(whole.path / "trained.safetensors"), whole.metrics
    names = dict(whole.model().named_parameters())
    assert metrics["trained_parameters"] == sum(stored[name].numel() for name in names) == 101_766
    assert metrics["head_bytes"] == 4 * (256 + 1) * 10
    floats = sum(t.numel() for t in stored.values() if t.is_floating_point())
    assert metrics["adapter_bytes"] + metrics["head_bytes"] == 4 * floats + 8 * 13
    assert metrics["file_bytes"] == (whole.path / "trained.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("bn1.running_mean"), "lacks the trained tensor bn1.running_mean"),
        (lambda state: state.pop("bn1.num_batches_tracked"), "lacks the trained tensor bn1.num_batches_tracked"),
        (lambda state: state["bn1.running_var"].fill_(torch.inf), "bn1.running_var has values that are not finite"),
        (lambda state: state.update({"bn1.running_var": torch.ones(3)}), r"expected bn1.running_var of shape \(24,\)"),
    ],
)
def test_a_file_without_its_statistics_is_refused(whole, task, tmp_path, change, text):
    state = load_file(whole.path / "trained.safetensors")
    change(state)
    save_file(state, tmp_path / "trained.safetensors")
    (tmp_path / "run.json").write_bytes((whole.path / "run.json").read_bytes())
    with pytest.raises(TrainError, match=text):
        Run.open(tmp_path, task=task).model()


@pytest.mark.parametrize("method", ["lora", "adaptformer"])
def test_an_adapter_of_transformers_says_what_it_found(method, task, tmp_path):
    with pytest.raises(TrainError, match=r"standard Block, found Sequential as blocks\.0 of EfficientNet") as caught:
        fit(replace(SPEC, method=method, dim=2), task, tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
    assert "full, linear" in str(caught.value)
