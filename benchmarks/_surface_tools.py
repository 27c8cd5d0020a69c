"""Surfaces by other tools, in a process of their own, with the weights that they really evaluated and what those cost.

A job holds ``model``, ``inputs``, ``targets``, ``seed`` and ``steps``. Each tool is called as its documentation says,
twice with one seed: once timed, once with a loss that also takes note of the weights. From these follow the tool's own
two directions, and from those the truth: the loss at centre + a d1 + b d2, point by point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._rows import clock

Job = dict[str, Any]
Answer = dict[str, Any]
Floats = NDArray[np.float64]


def loss_landscapes(job: Job) -> Answer:
    """``random_plane`` of loss-landscapes, normalised by filter, on a deep copy."""
    from loss_landscapes import random_plane
    from loss_landscapes.metrics.metric import Metric
    from loss_landscapes.metrics.sl_metrics import Loss

    model, steps = job["model"].eval(), job["steps"]
    loss = Loss(nn.CrossEntropyLoss(), job["inputs"], job["targets"])
    seen: list[Tensor] = []

    class Noting(Metric):
        """The same loss, taking note of the weights."""

        def __call__(self, model_wrapper: Any) -> float:
            seen.append(_flat(model_wrapper.get_module_parameters().parameters))
            return loss(model_wrapper)

    def run(metric: Any) -> Floats:
        torch.manual_seed(job["seed"])
        return random_plane(model, metric, distance=1, steps=steps, normalization="filter", deepcopy_model=True)

    started = clock()
    values = run(loss)
    seconds = clock() - started
    run(Noting())
    # Cells (0, 0), (0, 1) and (2, 0) in the order in which it goes through them.
    d1, d2 = (seen[2 * steps] - seen[0]) / 2, seen[1] - seen[0]
    # "original start params will be in the center of the plot": whichever centre of the lattice suits it best
    centres = product(((steps - 1) / 2, steps / 2), repeat=2)
    truths = [_true(job, d1, d2, np.arange(steps) - a, np.arange(steps) - b) for a, b in centres]
    return _answer(seconds, values, truths, d1, d2)


def landscaper(job: Job) -> Answer:
    """``LossLandscape.compute`` of landscaper along its own random orthogonal directions."""
    from landscaper import LossLandscape
    from landscaper.utils import generate_random_orthogonal_directions

    model, steps = job["model"].eval(), job["steps"]
    data = [(job["inputs"], job["targets"])]
    seen: list[Tensor] = []

    def loss(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> float:
        return float(np.mean([nn.functional.cross_entropy(model(x), y).item() for x, y in data]))

    def noting(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> float:
        seen.append(_flat(model.parameters()))
        return loss(model, data)

    def run(scalar: Callable[..., float]) -> Any:
        torch.manual_seed(job["seed"])
        directions = generate_random_orthogonal_directions(model, n=2)
        return LossLandscape.compute(model, data, directions, scalar, steps=steps, distance=0.5, dim=2, device="cpu")

    started = clock()
    found = run(loss)
    seconds = clock() - started
    run(noting)
    at = seen[(steps // 2) * steps + steps // 2]
    d1 = seen[(steps // 2 + 1) * steps + steps // 2] - at
    d2 = seen[(steps // 2) * steps + steps // 2 + 1] - at
    # Its coordinates, -0.5 to 0.5, are in units of the norm of the weights.
    unit = float(at.norm())
    truth = _true(job, d1 / d1.norm() * unit, d2 / d2.norm() * unit, *map(np.asarray, found.ranges))
    return _answer(seconds, np.asarray(found.loss), [truth], d1, d2)


def _true(job: Job, d1: Tensor, d2: Tensor, xs: Floats, ys: Floats) -> Floats:
    """The loss at centre + x d1 + y d2, each point by itself."""
    model = job["model"]
    parameters = list(model.parameters())
    centre = _flat(parameters)
    values = np.empty((len(xs), len(ys)))
    with torch.no_grad():
        for (i, x), (j, y) in product(enumerate(xs), enumerate(ys)):
            torch.nn.utils.vector_to_parameters(centre + float(x) * d1 + float(y) * d2, parameters)
            values[i, j] = nn.functional.cross_entropy(model(job["inputs"]), job["targets"]).item()
        torch.nn.utils.vector_to_parameters(centre, parameters)
    return values


def _answer(seconds: float, values: Floats, truths: list[Floats], d1: Tensor, d2: Tensor) -> Answer:
    errors = [float(np.abs(values - true).max() / (true.max() - true.min())) for true in truths]
    return {
        "seconds": seconds,
        "away": min(errors),
        "cosine": float(d1 @ d2 / (d1.norm() * d2.norm())),
        "positive": float((d1[d1 != 0] > 0).double().mean()),
    }


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).clone()
