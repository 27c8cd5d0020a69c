"""Bare forward passes: what a point of a surface cannot cost less than."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._rows import alternated, clock

SIZES = (16, 25, 32, 50, 64, 100, 128, 200, 256, 512)


def passes(model: nn.Module, inputs: Tensor, batch_size: int, count: int = 1) -> None:
    """``count`` passes over all inputs in eval mode under ``inference_mode``; the outputs are thrown away."""
    model.eval()
    with torch.inference_mode():
        for _ in range(count):
            for batch in inputs.split(batch_size):
                model(batch)


def best_batch_size(model: nn.Module, inputs: Tensor, repeats: int = 7, *, now: Callable[[], float] = clock) -> int:
    """The batch size whose pass over the inputs takes the least time, the median of alternated repeats."""
    sizes = sorted({min(size, len(inputs)) for size in SIZES})
    passes(model, inputs, sizes[0])  # what happens once happens here
    seconds = alternated({str(size): partial(passes, model, inputs, size) for size in sizes}, repeats, now=now)
    return int(min(seconds, key=lambda size: seconds[size]))
