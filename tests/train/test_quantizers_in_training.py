"""Every quantiser that trains, from a specification to a deployed file with the same logits (rules 23 and 26)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quant.errors import QuantError
from quant.lowbit import read_lowbit
from quant.quantizers import get, names, widths
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

RECIPE = Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0)
BASE = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3, recipe=RECIPE
)
FAMILIES = [
    "dorefa",
    "ecu",
    "kmeans",
    "lsq",
    "nf/group16/f16",
    "ternary",
    "uniform_mse",
    "gaussian_l1/row",
    "lsq/row/f16",
]
TRAINED = [
    name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow)
    for name in [*FAMILIES, *(n for n in names() if get(n, widths(n)[-1]).trains and n not in FAMILIES)]
]


@pytest.fixture(scope="module")
def digits():
    return load("digits", train_size=40, test_size=20), {}


def spec(name, **changes):
    bits = 2 if 2 in widths(name.partition("/")[0]) else 1
    return replace(BASE, quantizer=name, bits=bits, **changes)


@pytest.mark.parametrize("name", TRAINED)
def test_rule_26_what_is_deployed_is_what_was_trained(name, digits, tmp_path):
    """``fit`` compares the logits of training with those of the file and raises where they differ."""
    task, cache = digits
    run = fit(spec(name), task, tmp_path, quiet=True, cache=cache)
    inputs = run.tensors("test")[0]
    model = run.model("latent")
    assert torch.equal(run.model()(inputs), model(inputs))
    stored = [t for t in read_lowbit(run.path / "adapter.lowbit").tensors if t.quantizer]
    assert {t.quantizer for t in stored} == {name}
    moved = run.trained_state()["blocks.0.adapter.down.weight"] - run.initial_state()["blocks.0.adapter.down.weight"]
    assert moved.abs().max() > 0


def test_a_learned_step_is_trained_saved_and_deployed(digits, tmp_path):
    task, cache = digits
    run = fit(spec("lsq"), task, tmp_path, quiet=True, cache=cache)
    steps = {name: t for name, t in run.trained_state().items() if name.endswith(".step")}
    assert len(steps) == 12
    assert all((t != run.initial_state()[name]).all() for name, t in steps.items())
    stored = {t.name: t for t in read_lowbit(run.path / "adapter.lowbit").tensors}
    for name, t in steps.items():
        assert name not in stored
        assert torch.equal(stored[name.replace(".step", ".weight")].statistics, t.abs())
    assert run.metrics["trained_parameters"] == 2 * 64 * 3 * 6 + 65 * 10


def test_the_up_matrix_begins_with_a_step_that_fits_it(digits):
    from train.build import build

    up = build(spec("lsq"), 10).get_submodule("blocks.0.adapter.up")
    torch.testing.assert_close(up.step, 2 * up.weight.abs().mean()[None])


@pytest.mark.parametrize(
    ("name", "bits", "text"),
    [
        ("pq", 2, "pq does not train"),
        ("nf", 1, "expected bits of nf: 2 to 8, found 1"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(name, bits, text, digits, tmp_path):
    with pytest.raises(QuantError, match=text):
        fit(replace(BASE, quantizer=name, bits=bits), digits[0], tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
