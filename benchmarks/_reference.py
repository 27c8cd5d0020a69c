"""The reference: surfaces as Li et al. 2018 describe them (Visualizing the Loss Landscape of Neural Nets, section 4).

Two Gaussian directions, every filter (a slice along a tensor's first axis) scaled to the norm of the weights' own
filter, tensors with one axis or none held still. Every point is a fresh copy of the weights w + x dx + y dy and a pass
over all data in eval mode, batch by batch, summing loss and hits.

Departures from their published program, all in its favour: the best batch size found for the bare passes in place of
128, no file is written, the weights stay where the model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from train.tasks import Transform

Batches = Iterable[tuple[Tensor, Tensor]]
_EPSILON = 1e-10


def filter_normalised(weights: Sequence[Tensor], noise: Sequence[Tensor]) -> list[Tensor]:
    """d_i <- d_i / ||d_i|| * ||w_i|| for every filter i; zero for biases and norm layers."""
    directions = []
    for w, d in zip(weights, noise, strict=True):
        if w.dim() <= 1:
            directions.append(torch.zeros_like(w))
        else:
            directions.append(torch.stack([a * (b.norm() / (a.norm() + _EPSILON)) for a, b in zip(d, w, strict=True)]))
    return directions


def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross entropy and share of hits over all data."""
    model.eval()
    total, hits, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in batches:
            outputs = model(inputs)
            total += F.cross_entropy(outputs, targets).item() * len(targets)
            hits += int((outputs.argmax(dim=1) == targets).sum().item())
            count += len(targets)
    return total / count, hits / count


def surface(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    dx: Sequence[Tensor],
    dy: Sequence[Tensor],
    xs: Sequence[float],
    ys: Sequence[float],
    batches: Batches,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss and accuracy at w + x dx + y dy, each (X, Y); the weights are put back."""
    weights = [p.detach().clone() for p in parameters]
    losses, accuracies = np.empty((len(xs), len(ys))), np.empty((len(xs), len(ys)))
    try:
        for i, x in enumerate(xs):
            for j, y in enumerate(ys):
                for p, w, a, b in zip(parameters, weights, dx, dy, strict=True):
                    p.data = w + (x * a + y * b)
                losses[i, j], accuracies[i, j] = evaluate(model, batches)
    finally:
        for p, w in zip(parameters, weights, strict=True):
            p.data = w
    return losses, accuracies


class Files(Dataset[tuple[Tensor, int]]):
    """Images that are decoded from their file, resized and normalised each time they are asked for."""

    def __init__(self, paths: Sequence[Path], targets: Tensor, transform: Transform) -> None:
        self.paths, self.targets, self.transform = list(paths), targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image.convert("RGB"))
        return self.transform(pixels[None])[0], self.targets[index]


def write_images(folder: Path, images: NDArray[np.uint8]) -> list[Path]:
    """(N, H, W, 3) as PNG files, which give back the same pixels."""
    from PIL import Image

    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def decoding(paths: Sequence[Path], targets: Tensor, transform: Transform, batch_size: int) -> Batches:
    """Batches that are decoded anew in every pass, in this process: on few cores loader processes gain nothing."""
    return DataLoader(Files(paths, targets, transform), batch_size=batch_size)


def in_memory(inputs: Tensor, targets: Tensor, batch_size: int) -> Batches:
    """The same batches, prepared once."""
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))
