"""The whole engine on models that are no vision transformer: text in dicts with a mask, next tokens, a plain CNN."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from landscape_nets import CLASSES, ConvNet, everything, seeded
from landscape_nets import data as data_of
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import Objective, Space, grid, line, orthogonal_pair, plane
from landscape.checks import examine
from landscape.curvature import Hessian, hutch_pp, spectral_density, top_eigenvalues
from landscape.sharpness.card import measure_all

WORDS, LENGTH = 11, 6
FEW = {
    "worst_case": {"steps": 2, "directions": 2},
    "adaptive": {"steps": 2, "restarts": 1},
    "keskar": {"steps": 2, "restarts": 1},
    "noise_radius": {"directions": 2, "tolerance": 0.5},
    "basin_radius": {"rays": 2, "tolerance": 0.5},
}


class Text(nn.Module):
    """Words to classes through torch's own transformer, whose eval mode takes another path than its training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(WORDS, 8), nn.Parameter(0.1 * torch.randn(LENGTH, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(self.word(input_ids) + self.position, src_key_padding_mask=attention_mask == 0)
        kept = attention_mask[:, :, None]
        return {"logits": self.head((tokens * kept).sum(dim=1) / kept.sum(dim=1))}


class NextWord(nn.Module):
    """Words to the word after each: logits (N, T, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.cell, self.head = nn.Embedding(WORDS, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.word(x))[0])


def words(n: int = 12) -> Tensor:
    return torch.randint(WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(2))


def text() -> Objective:
    ids = words()
    mask = torch.arange(LENGTH) < 2 + ids[:, :1] % (LENGTH - 2)
    return Objective(
        seeded(Text).double(), {"input_ids": ids, "attention_mask": mask.long()}, ids[:, 0] % CLASSES, batch_size=7
    )


def convolutions() -> Objective:
    images, labels = data_of(ConvNet)
    return Objective(seeded(ConvNet).double(), images.double(), labels, batch_size=7)


def next_words() -> Objective:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.double().transpose(1, 2), targets, reduction="none").mean(dim=1)

    ids = words()
    return Objective(seeded(NextWord).double(), ids[:, :-1], ids[:, 1:], loss=loss, batch_size=7)


def everything_in(objective: Objective) -> Space:
    names = [name for name, _ in objective.model.named_parameters()]
    return Space(objective.model, names, kind="full", head=True)


def by_hand(objective: Objective) -> float:
    """The mean loss without the engine, from the model in training code's manner."""
    model = objective.model.eval()
    with torch.no_grad():
        inputs = objective.inputs
        logits = model(*inputs.values()) if "0" in inputs else model(**inputs)
        logits = logits["logits"] if isinstance(logits, dict) else logits
        model.train()
        return F.cross_entropy(logits.double().flatten(0, -2), objective.targets.flatten()).item()


@pytest.mark.parametrize("make", [text, convolutions, next_words])
def test_surface_card_curvature_and_doctor(make):
    """Rules 1, 3 and 17: each against a figure by hand, and everything is put back bit for bit."""
    objective = make()
    before, space = everything(objective.model), everything_in(objective)
    dx, dy = orthogonal_pair(space, (0, 1))
    axis = grid(0.5, 5)
    surface = plane(objective, space, dx, dy, axis, axis)
    assert surface.values()[2, 2] == pytest.approx(by_hand(objective), rel=1e-12)
    with space:
        space.move([dx, dy], [axis[0], axis[3]])
        moved = by_hand(objective)
    assert surface.values()[0, 3] == pytest.approx(moved, rel=1e-12)

    with Hessian(objective, space) as hessian:
        u, v = torch.randn(2, hessian.size, generator=torch.Generator().manual_seed(0)).to(hessian.dtype)
        assert float(u @ hessian.product(v)) == pytest.approx(float(v @ hessian.product(u)), rel=1e-9, abs=1e-9)
        top = top_eigenvalues(hessian, 2)
        trace = hutch_pp(hessian, max_products=40)
        density = spectral_density(hessian, probes=2, steps=8)
    assert top.status == "converged"
    # Float64: a step so short that no ReLU changes sides still bends the loss by more than rounding.
    step = hessian.direction(top.vectors[0], "top", norm=1e-4)
    curve = line(objective, space, step, [-1.0, 0.0, 1.0]).values()
    assert (curve[0] + curve[2] - 2 * curve[1]) / 1e-8 == pytest.approx(top.values[0], rel=1e-3)
    assert math.isfinite(trace.value)
    assert density.to_frame().notna().all(axis=None)

    estimates = {e.measure: e for e in measure_all(objective, space, options=FEW)}
    assert estimates["m_sharpness"].value > 0
    # The loss of words has no classes to drop a point of accuracy in: that measure alone says so.
    failed = {name for name, e in estimates.items() if e.status == "failed"}
    assert failed == ({"noise_radius"} if make is next_words else set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the doctor tries precisions on purpose
        checks = examine(objective, space)
    assert [c.check for c in checks if c.outcome == "fail"] == []
    assert everything(objective.model) == before


@pytest.mark.parametrize("make", [text, convolutions])
def test_few_points_serve_any_model(make):
    """Rule 10: the error that a surface of few points states is not below the true one, of all points."""
    objective = make()
    space = everything_in(objective)
    dx, dy = orthogonal_pair(space, (0, 1))
    axis = grid(0.5, 15)
    full = plane(objective, space, dx, dy, axis, axis).values()
    few = plane(objective, space, dx, dy, axis, axis, error=0.01)
    away = np.abs(few.values() - full)
    true = np.percentile(away, 99) / np.ptp(full)
    assert few.provenance["cost"]["points"] < 225 / 2
    assert true <= few.provenance["interpolation"]["estimated_error"]["data"]
