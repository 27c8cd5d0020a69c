"""The reference of the benchmarks against brute force, and that the command runs; never how fast."""

from __future__ import annotations

import copy
import csv
import io

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks._curvature_tools import vectors_of
from benchmarks._device import operations
from benchmarks._reference import filter_normalised, in_memory, surface


def test_the_reference_is_the_literal_surface():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(20, 5, generator=generator), torch.randint(3, (20,), generator=generator)
    parameters = list(model.parameters())
    noise = [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(2)]
    dx, dy = (filter_normalised([p.detach() for p in parameters], n) for n in noise)
    for direction in (dx, dy):
        for d, p in zip(direction, parameters, strict=True):
            expected = p.detach().norm(dim=1) if p.ndim > 1 else torch.zeros(())
            assert torch.allclose(d.norm(dim=-1) if p.ndim > 1 else d.norm(), expected, rtol=1e-5)
    before = [p.detach().clone() for p in parameters]
    xs, ys = [-1.0, 0.0, 0.5], [-0.5, 0.25]
    losses, accuracies = surface(model, parameters, dx, dy, xs, ys, in_memory(x, y, 7))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    for i, a in enumerate(xs):
        for j, b in enumerate(ys):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for p, u, v in zip(moved.parameters(), dx, dy, strict=True):
                    p += a * u + b * v
                logits = moved(x)
            assert np.isclose(losses[i, j], nn.functional.cross_entropy(logits, y).item(), rtol=1e-5)
            assert np.isclose(accuracies[i, j], (logits.argmax(1) == y).float().mean().item())


def test_the_command_measures_a_tiny_net(command):
    sections = "grid", "adaptive", "errors", "images", "device"
    done = command("benchmarks.landscape", "--tiny", "--quick", "--sections", *sections)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["section"] for row in rows} == set(sections)
    assert all(float(row["value"]) > 0 for row in rows if row["section"] != "errors")
    assert all(float(row["value"]) >= 0 for row in rows)


def test_operations_are_those_of_the_matrix_products():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    assert operations(lambda: model(torch.zeros(7, 5))) == 2 * 7 * (5 * 6 + 6 * 3)
    q = torch.zeros(1, 2, 8, 4)  # two heads, eight tokens of four channels: scores, and what they weigh
    assert operations(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 8 * 8 * 4)


def test_tools_are_asked_for_products_with_the_vector_that_the_truth_is_of():
    """The first of one vector is not the first of several where their size is no multiple of torch's block."""
    assert not torch.equal(vectors_of(0, 1, 322)[0], vectors_of(0, 3, 322)[0])


@pytest.mark.slow
def test_the_benchmark_of_quantisers_runs(command, tmp_path):
    done = command("benchmarks.quant", "--quick", "--out", tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["section"] for row in rows} == {"pack", "coding", "training step", "evaluation"}
    assert all(float(row["ours"]) > 0 for row in rows)
    assert "## quant: training step" in (tmp_path / "README.md").read_text()
