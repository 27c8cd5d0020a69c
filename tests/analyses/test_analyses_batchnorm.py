"""A network with BatchNorm from its run folder to its tables: what moves, what stays, and the same as plain weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from train.errors import TrainError
from train.loop import fit
from train.methods import statistic_names
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=16, batch_size=8, quiet=True)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_efficientnet", img_size=32, method="full",
    recipe=Recipe(epochs=1, batch_size=16, lr_for=(), warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    task = load("digits", train_size=40, test_size=20)
    return open_checkpoint(fit(SPEC, task, tmp_path_factory.mktemp("runs"), quiet=True).path, OPTIONS)


def test_parameters_move_and_statistics_do_not(checkpoint):
    """Rules 3 and 11: the one space is full; its tensors are parameters, the head still; buffers are put back."""
    assert checkpoint.spaces() == ["full"]
    model, names = checkpoint.network("full")
    parameters = dict(model.named_parameters())
    assert names == [name for name in parameters if not name.startswith("classifier.")]
    assert not set(names) & set(statistic_names(model))
    with pytest.raises(AnalysisError, match="no merged space"):
        checkpoint.network("merged")


def test_the_flatness_of_a_convolutional_network(checkpoint):
    """Rule 1: the centre is the loss of the deployed network by hand; rule 3: every tensor is as before afterwards."""
    from analyses.flatness import ANALYSIS, Lines

    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    spec = Lines(directions=1, points=3)
    curves = ANALYSIS.report([checkpoint], OPTIONS, spec, checkpoint.folder)["curves"]
    x, y = checkpoint.data("train", 16)
    with torch.no_grad():
        log_p = torch.log_softmax(checkpoint.model(x).double(), dim=1)
    train = curves[curves.split == "train"].set_index("alpha")
    assert train.loss_nats[0.0] == pytest.approx(-log_p[torch.arange(16), y].mean().item(), abs=1e-6)
    assert train.rise_nats[0.0] == 0
    assert (train.rise_nats[[-0.5, 0.5]] != 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())
    rows = sum(p.numel() for name, p in checkpoint.model.named_parameters() if p.ndim > 1 and "classifier" not in name)
    assert set(curves.moving) == {rows}


def test_its_trained_tensors_are_weights_of_a_whole_network(checkpoint, tmp_path):
    """They hold the statistics, so the plain file gives the same logits; without one statistic it is refused."""
    from safetensors.torch import load_file, save_file

    options = Options(samples=16, quiet=True, backbone="test_efficientnet", task="digits", img_size=32, train_size=40)
    weights = tmp_path / "own.safetensors"
    state = load_file(checkpoint.path / "trained.safetensors")
    save_file(state, weights)
    own = open_checkpoint(weights, options)
    x = checkpoint.data("test", 8)[0]
    with torch.no_grad():
        assert torch.equal(own.model(x), checkpoint.model(x))
    del state["bn1.running_mean"]
    save_file(state, weights)
    with pytest.raises(TrainError, match=r"own\.safetensors: expected a tensor named bn1\.running_mean"):
        open_checkpoint(weights, options)


@pytest.mark.parametrize(("mode", "vectors"), [("recalibrate", "zero"), ("perturb", "element")])
def test_rule_4_the_mode_of_running_statistics_is_chosen_and_recorded(checkpoint, mode, vectors):
    """Another mode gives another loss at a moved point, and the table says which; all is put back."""
    from analyses.flatness import ANALYSIS, Lines

    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    spec = Lines(directions=1, points=3, extent=0.05, vectors=vectors)
    frozen, _ = ANALYSIS.compute(checkpoint, OPTIONS, spec, None)
    moved, facts = ANALYSIS.compute(checkpoint, OPTIONS, replace(spec, batch_norm=mode), None)
    assert facts["measured"]["full"]["mode"]["batch_norm"] == mode
    ends = frozen["curves"].alpha != 0
    assert moved["curves"].loss_nats.notna().all()
    assert (frozen["curves"].loss_nats[ends] != moved["curves"].loss_nats[ends]).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())


def test_a_network_without_running_statistics_has_no_mode_of_them(checkpoint):
    plain = replace(checkpoint, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
    with pytest.raises(AnalysisError, match="no BatchNorm with running statistics"):
        plain.space("full", head=True, batch_norm="recalibrate")
    with pytest.raises(AnalysisError, match="--batch-norm perturb needs --vectors"):
        checkpoint.space("full", batch_norm="perturb")
