"""The schedule against timm's own scheduler, driven as the paper's code drives it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler

from train.errors import TrainError
from train.recipe import PRESETS, Recipe, preset


def by_timm(recipe: Recipe, method: str = "") -> list[float]:
    """Rates of all epochs: timm's scheduler, stepped after each epoch with that epoch's index."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.base_lr(method))
    scheduler = CosineLRScheduler(
        optimizer, t_initial=recipe.epochs, warmup_t=recipe.warmup_epochs, warmup_lr_init=recipe.warmup_lr,
        lr_min=recipe.min_lr, cycle_decay=0.1,
    )  # fmt: skip
    rates = []
    for epoch in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    return rates


def test_the_papers_schedule():
    rates = [PRESETS["paper"].learning_rate(e) for e in range(100)]
    assert rates[0] == rates[1] == 1e-6
    assert max(rates) == pytest.approx(9.758e-4, abs=1e-7)
    assert rates.index(max(rates)) == 11
    assert rates == pytest.approx(by_timm(PRESETS["paper"]), rel=1e-12)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", ["", "full", "lora"])
def test_presets_follow_timm(name, method):
    recipe = preset(name)
    rates = [recipe.learning_rate(e, method) for e in range(recipe.epochs)]
    assert rates == pytest.approx(by_timm(recipe, method), rel=1e-12)
    assert recipe.base_lr("full") < recipe.base_lr("lora")


@settings(max_examples=40, deadline=None)
@given(
    epochs=st.integers(2, 60), warmup=st.integers(0, 12), lr=st.floats(1e-5, 1e-1), low=st.floats(0, 1e-5),
    start=st.floats(0, 1e-3),
)  # fmt: skip
def test_any_schedule_follows_timm(epochs, warmup, lr, low, start):
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup, lr=lr, min_lr=low, warmup_lr=start)
    rates = [recipe.learning_rate(e) for e in range(epochs)]
    assert rates == pytest.approx(by_timm(recipe), rel=1e-9, abs=1e-15)


def test_a_method_may_have_its_own_rate():
    recipe = Recipe(lr=1e-3).with_lr("lora", 5e-3).with_lr("lora", 6e-3)
    assert recipe.base_lr("lora") == 6e-3
    assert recipe.base_lr("adaptformer") == 1e-3
    assert recipe.base_lr("full") == 1e-4
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_other_epochs_scale_the_warmup():
    assert preset("paper").with_epochs(20).warmup_epochs == 2
    assert preset("paper").with_epochs(20).epochs == 20


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch_size"), ({"lr": 0}, "lr"), ({"lr": float("nan")}, "lr"),
        ({"lr_for": (("full", -1.0),)}, "lr of full"), ({"drop_path": 1.0}, "drop_path"), ({"min_lr": -1}, "min_lr"),
        ({"epochs": 2.5}, "epochs"),
    ],
)  # fmt: skip
def test_impossible_values_are_one_line(changes, text):
    with pytest.raises(TrainError, match=f"recipe: expected {text}"):
        Recipe(**changes)


def test_wrong_names_say_which_is_near():
    with pytest.raises(TrainError, match=r"unknown recipe 'papers'.*nearest: paper"):
        preset("papers")
    with pytest.raises(TrainError, match=r"unknown field of a recipe 'epoch'.*nearest: epochs"):
        Recipe.from_dict({"epoch": 3})
