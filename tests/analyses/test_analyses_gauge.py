"""Which tensors of an adapter move, and how: gauges (rule 9), merged moves and quantised modes (rule 13)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lora_nets import adapted, pairs, regauged

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.flatness import ANALYSIS, Lines
from analyses.noise import Noise
from analyses.options import Options, settings_of
from analyses.surface import Plane
from landscape import Objective, Space, between, draw, grid, line, orthogonal_pair, plane
from train import methods
from train.loop import fit
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec
from train.tasks import load

LORA = methods.get("lora")
OPTIONS = Options(samples=16, batch_size=16, quiet=True)
BASE = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


def images(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 16, 16, generator=g, dtype=torch.float64), torch.randint(5, (n,), generator=g)


def surface(model, space: str) -> np.ndarray:
    """The filter-normalised surface of a network with LoRA, in one of its spaces."""
    if space == "merged":
        model = LORA.merge(model)
        names = LORA.merged_names(model)
    else:
        model = LORA.balanced(model) if space.startswith("balanced") else model
        whole = space.endswith("full")
        names = [n for n, _ in model.named_parameters()] if whole else LORA.adapter_names(model)
    moving = Space(model, names)
    axis = grid(1.0, 3)
    return plane(Objective(model, *images()), moving, *orthogonal_pair(moving, (0, 1)), axis, axis).values()


@pytest.mark.parametrize("space", ["merged", "balanced factors", "balanced full"])
def test_rule_9_merged_and_balanced_are_invariant_under_every_gauge(space):
    model = adapted()
    plain = surface(model, space)
    assert np.ptp(plain) > 1e-3
    for seed in range(3):
        assert np.abs(surface(regauged(model, seed), space) - plain).max() < 1e-9


@pytest.mark.parametrize("space", ["as trained", "as trained full"])
def test_rule_9_factors_as_trained_are_not_but_for_a_scalar(space):
    model = adapted()
    plain = surface(model, space)
    assert np.abs(surface(regauged(model), space) - plain).max() > 1e-3
    with torch.no_grad():
        for i, pair in enumerate(pairs(model)):
            pair.down.weight *= 3.0 + i
            pair.up.weight /= 3.0 + i
    assert np.abs(surface(model, space) - plain).max() < 1e-9


def test_rule_13_a_low_rank_move_of_merged_weights_is_the_explicit_dense_one():
    """Factors moved by alpha equal the merged matrices moved by s((B + a dB)(A + a dA) - B A), entry by entry."""
    model, (x, _) = adapted(), images()
    merged = LORA.merge(model)
    factors = Space(model, LORA.adapter_names(model))
    dense = Space(merged, LORA.merged_names(merged), kind="merged")
    noise, scale, width = draw(factors, 0), 1.3, 16
    for alpha in (0.0, 0.5, -1.0):
        target = {}
        for name, w in dense.centre.items():
            layer = name.removesuffix(".weight")
            change = torch.zeros_like(w)
            for branch, rows in (("lora_q", slice(0, width)), ("lora_v", slice(2 * width, 3 * width))):
                up, down = (factors.centre[f"{layer}.{branch}.{part}.weight"] for part in ("up", "down"))
                d_up, d_down = (noise.tensors[f"{layer}.{branch}.{part}.weight"] for part in ("up", "down"))
                change[rows] = scale * ((up + alpha * d_up) @ (down + alpha * d_down) - up @ down)
            target[name] = w + change
        with factors, torch.no_grad():
            factors.move(noise, alpha)
            by_factors = model(x)
        with dense, torch.no_grad():
            if alpha:
                dense.move(between(dense, target), 1.0)
            by_merged = merged(x)
        assert (by_factors - by_merged).abs().max() < 1e-9


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    task, out, cache = load("digits", train_size=40, test_size=20), tmp_path_factory.mktemp("runs"), {}
    specs = {
        "lora32": replace(BASE, method="lora"),
        "lora1": replace(BASE, method="lora", bits=1),
        "adaptformer32": BASE,
        "full": replace(BASE, method="full"),
    }
    return {name: fit(spec, task, out, quiet=True, cache=cache) for name, spec in specs.items()}


def opened(runs: dict[str, Run], name: str):
    return open_checkpoint(runs[name].path, OPTIONS)


def test_rule_13_latent_weights_move_and_are_quantised_again(runs):
    """The centre is the deployed model's loss bit for bit; off it each point is the latent model's by hand."""
    checkpoint = opened(runs, "lora1")
    deployed = checkpoint.space("factors")
    latent = checkpoint.space("factors", weights="requantised")
    assert (deployed.weights, latent.weights) == ("values", "requantised")
    assert checkpoint.spaces("requantised") == ["factors", "full"]
    noise = draw(latent, 0)
    alphas = [0.0, 1e-7, 0.4]
    curve = line(checkpoint.objectives(latent.model, ("train",), OPTIONS), latent, noise, alphas)
    plain = line(checkpoint.objectives(deployed.model, ("train",), OPTIONS), deployed, draw(deployed, 0), alphas)
    assert curve.values()[0] == plain.values()[0]
    assert curve.provenance["mode"]["weights"] == "requantised"
    # A staircase: a move that changes no code changes the loss by the grid's mean and deviation alone.
    assert abs(curve.values()[1] - curve.values()[0]) < 1e-5
    model = runs["lora1"].model("latent")
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name in noise.tensors:
                w += 0.4 * noise.tensors[name]
    x, y = checkpoint.data("train", OPTIONS.samples)
    with torch.no_grad():
        log_p = torch.log_softmax(model(x).double(), dim=1)
    assert curve.values()[2] == pytest.approx(-log_p[torch.arange(len(y)), y].mean().item(), abs=1e-6)
    assert len({float(v) for v in model.blocks[0].attn.qkv.lora_q.down.deployed().weight.detach().flatten()}) == 2


def test_a_32_bit_model_moves_by_its_values_in_both_modes(runs):
    for name in ("lora32", "full"):
        checkpoint = opened(runs, name)
        space = checkpoint.space(checkpoint.spaces()[0], weights="requantised")
        assert space.weights == "values"
        assert space.model is checkpoint.model


def test_the_balanced_gauge_of_a_checkpoint(runs):
    checkpoint = opened(runs, "lora32")
    space = checkpoint.space("factors", gauge="balanced")
    x, _ = checkpoint.data("test", 8)
    with torch.no_grad():
        assert (space.model(x) - checkpoint.model(x)).abs().max() < 1e-5
    for pair in pairs(space.model):
        gram = pair.up.weight.detach().T @ pair.up.weight.detach()
        torch.testing.assert_close(gram, pair.down.weight.detach() @ pair.down.weight.detach().T, rtol=1e-4, atol=1e-5)
    assert opened(runs, "full").space("full", gauge="balanced").k  # nothing to balance, nothing refused
    spec = Lines(directions=1, points=3, gauge="balanced")
    tables, facts = ANALYSIS.compute(checkpoint, OPTIONS, spec, None)
    assert facts["measured"]["factors"]["gauge"] == "balanced"
    as_trained, _ = ANALYSIS.compute(checkpoint, OPTIONS, replace(spec, gauge="as-trained"), None)
    both = [t["curves"].set_index(["space", "split", "alpha"]).loss_nats for t in (tables, as_trained)]
    differ = (both[0] - both[1]).abs().groupby("space").max()
    assert differ["factors"] > 1e-5
    assert differ["merged"] == 0


@pytest.mark.parametrize(
    ("name", "space", "options", "text"),
    [
        ("lora1", "factors", {"gauge": "balanced"}, "would change their codes"),
        ("adaptformer32", "full", {"gauge": "balanced"}, "no balanced gauge"),
        ("lora1", "merged", {"weights": "requantised"}, "not stored in low bits"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(runs, name, space, options, text):
    with pytest.raises(AnalysisError, match=text) as error:
        opened(runs, name).space(space, **options)
    assert "\n" not in str(error.value)


def test_new_settings_at_their_default_leave_published_keys_as_they_were():
    assert settings_of(Lines()) == {"directions": 5, "extent": 0.5, "points": 11, "head": False}
    assert set(settings_of(Noise())) == {"draws", "levels", "head"}
    assert set(settings_of(Plane())) == {"extent", "points", "space", "head"}
    assert settings_of(Plane(weights="requantised"))["weights"] == "requantised"
    assert settings_of(Lines(gauge="balanced"))["gauge"] == "balanced"
