"""Pretraining: augmentation, schedule, a killed run that goes on, and the backbone that is shipped."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from train.backbones import ASSETS, content_hash
from train.errors import TrainError
from train.pretrain import Pretraining, augment, learning_rate, pretrain

SMALL = Pretraining(epochs=3, batch_size=8, warmup_steps=2, plain_epochs=1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 10), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            where = tmp_path / "data" / split / name
            where.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (32, 32, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{i}.png")
    return tmp_path / "data"


def test_an_augmented_image_is_a_window_of_the_reflected_one_or_its_mirror():
    x = torch.randn(6, 3, 8, 8)
    out = augment(x, torch.Generator().manual_seed(0), 2)
    for image, found in zip(x.numpy(), out.numpy(), strict=True):
        wide = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        windows = [wide[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        assert any(np.array_equal(found, w) or np.array_equal(found, w[:, :, ::-1]) for w in windows)


def test_the_schedule_warms_up_and_ends_at_zero():
    p = Pretraining(warmup_steps=10, lr=1.0)
    assert learning_rate(0, 110, p) == pytest.approx(0.1)
    assert learning_rate(9, 110, p) == pytest.approx(1.0)
    assert learning_rate(60, 110, p) == pytest.approx(0.5)
    assert learning_rate(110, 110, p) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(35, 110, p) == pytest.approx(0.5 + math.sqrt(0.5) / 2)


def test_a_killed_pretraining_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    whole = pretrain(folder, tmp_path / "whole", SMALL).read_bytes()
    replace, calls = os.replace, []

    def killed_after_the_second_epoch(source, target):
        replace(source, target)
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed_after_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(folder, tmp_path / "cut", SMALL)
    monkeypatch.undo()
    weights = pretrain(folder, tmp_path / "cut", SMALL)
    assert weights.read_bytes() == whole
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["schedules_from_epoch_of_epochs"] == [[0, 3]]
    assert card["pretrained_on"]["images"] == 20


def test_too_few_images_are_said(folder, tmp_path):
    with pytest.raises(TrainError, match="at least one batch of 64 images"):
        pretrain(folder, tmp_path / "out", Pretraining(batch_size=64))


def test_the_shipped_backbone_is_small_and_is_what_its_card_says():
    from safetensors.torch import load_file

    weights = ASSETS / "vit_tiny32.safetensors"
    card = json.loads((ASSETS / "vit_tiny32.json").read_text())
    assert weights.stat().st_size == card["bytes"] <= 6_000_000
    state = load_file(weights)
    assert content_hash(state) == card["hash"]
    assert sum(v.numel() for v in state.values()) == card["parameters"]
    assert all(v.dtype == torch.float16 for v in state.values())
