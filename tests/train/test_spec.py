"""A run's identity: what is hashed, what is not, and both ways through JSON."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import TrainError
from train.recipe import PRESETS, Recipe
from train.spec import RunSpec

SPECS = st.builds(
    RunSpec,
    task=st.sampled_from(["digits", "counting", "folder:/data/pets", "npz:/data/x.npz"]),
    train_size=st.integers(10, 2000),
    test_size=st.none() | st.integers(1, 500),
    method=st.sampled_from(["lora", "adaptformer"]),
    dim=st.integers(1, 64),
    bits=st.sampled_from([1, 2, 3, 8, 32]),
    scale=st.floats(0.01, 100),
    head_bits=st.sampled_from([1, 32]),
    quantizer=st.sampled_from(["gaussian_l1", "released", "gaussian_l2"]),
    recipe=st.sampled_from([*PRESETS.values(), Recipe(lr=0.02, epochs=3).with_lr("lora", 0.3)]),
    protocol=st.sampled_from(["validation", "paper"]),
    inputs=st.sampled_from(["backbone", "unit", "imagenet"]),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=40, deadline=None)
@given(SPECS)
def test_json_both_ways(spec):
    twin = RunSpec.from_json(spec.to_json())
    assert twin == spec
    assert twin.name == spec.name


def test_the_name_and_the_hash_are_frozen():
    """A changed default or hash would orphan every run on disk: it needs another schema."""
    assert RunSpec(task="digits", bits=1).name == "digits.adaptformer-8.1b.s0.076d7c02"
    assert RunSpec(task="digits", method="full", recipe=Recipe(epochs=3, lr=0.02)).hash == "3128367f"


def test_each_field_counts():
    base = RunSpec(task="digits", bits=2)
    others = [
        {"task": "counting"}, {"train_size": 500}, {"test_size": 10}, {"data_seed": 1}, {"backbone": "x"},
        {"img_size": 64}, {"method": "lora"}, {"dim": 4}, {"bits": 1}, {"quantizer": "released"}, {"scale": 0.1},
        {"head_bits": 1}, {"recipe": Recipe(lr=2e-3)}, {"protocol": "paper"}, {"inputs": "unit"}, {"seed": 1},
    ]  # fmt: skip
    hashes = {replace(base, **change).hash for change in others}
    assert len(hashes | {base.hash}) == len(others) + 1


def test_moved_data_is_the_same_run():
    here, there = (RunSpec(task=f"folder:{at}/my pets", backbone=f"vit@{at}/w.pth") for at in ("/a", "/b/c"))
    assert here.name == there.name
    assert re.fullmatch(r"folder-my-pets\.adaptformer-8\.32b\.s0\.[0-9a-f]{8}", here.name)
    assert here.hash != RunSpec(task="folder:/a/cars", backbone="vit@/a/w.pth").hash


def test_what_has_no_effect_has_one_value():
    assert RunSpec(task="digits", method="full", dim=16, scale=3) == RunSpec(task="digits", method="full")
    assert RunSpec(task="digits", method="linear").dim == 0
    assert RunSpec(task="digits", quantizer="released").quantizer == "gaussian_l1"
    assert RunSpec(task="digits", quantizer="released", head_bits=1).quantizer == "released"
    assert RunSpec(task="digits", scale=1) == RunSpec(task="digits", scale=1.0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"task": "digit"}, "unknown task 'digit'.*nearest: digits"),
        ({"method": "lara"}, "unknown method 'lara'.*nearest: lora"),
        ({"quantizer": "gausian_l1"}, "unknown quantizer.*nearest: gaussian_l1"),
        ({"quantizer": "nf/rows"}, r"expected a quantizer NAME\[/row"),
        ({"bits": 9}, "expected bits to be one of 1, 2.*32, found 9"),
        ({"head_bits": 2}, "expected head bits to be one of 1, 32, found 2"),
        ({"protocol": "papers"}, "unknown protocol.*nearest: paper"),
        ({"inputs": "imagenett"}, "unknown inputs.*nearest: imagenet"),
        ({"dim": 0}, "expected dim to be a whole number from 1"),
        ({"scale": 0}, "expected scale above 0"),
        ({"scale": float("nan")}, "expected scale above 0"),
        ({"seed": -1}, "expected seed to be a whole number from 0"),
        ({"train_size": "x"}, "expected train_size"),
        ({"method": "full", "bits": 1}, "full has no adapter to quantise"),
        ({"method": "full", "head_bits": 1}, "expected head bits 32"),
    ],
)
def test_wrong_values_are_one_line(changes, text):
    with pytest.raises(TrainError, match=text) as caught:
        RunSpec(**{"task": "digits", **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"task": "digits", "epochs": 3}', '{"task": "digits", "bits": null}']
)
def test_damaged_json_is_refused(text):
    with pytest.raises(TrainError):
        RunSpec.from_json(text)


def test_labels_read_like_the_papers():
    assert RunSpec(task="digits", bits=1).label == "AdaptFormer h8, 1 bit"
    assert RunSpec(task="digits", method="lora", dim=4, bits=2, head_bits=1).label == "LoRA r4, 2 bits, 1-bit head"
    assert RunSpec(task="digits", method="full").label == "Full fine-tuning"
