"""Whether a reduced precision may stand in for float32: a probe at the centre and the corners (NUMERICS 15)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from landscape.batchnorm import follow
from landscape.directions import Direction
from landscape.objective import Objective
from landscape.space import Space

Precision = Literal["float32", "tf32", "bfloat16"]
ALLOWED = 0.25
"""Of the paired standard error: how far a reduced precision may move a loss."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe of a precision found.

    Attributes
    ----------
    precision
        The one to measure in.
    tried
        The reduced one that was tried, None where the device has none.
    largest_change_nats, allowed_nats
        Of the mean loss over the points, and what rule 15 allows at the point where it was nearest to it.
    """

    precision: Precision
    tried: Precision | None
    largest_change_nats: float
    allowed_nats: float

    def facts(self) -> dict[str, Any]:
        """Plain data for a provenance."""
        return asdict(self)


def fastest(device: torch.device) -> Precision:
    """The reduced precision that this device is faster in than float32, or float32 where it has none."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bfloat16"
    return "float32"


@contextmanager
def precision(model: nn.Module, chosen: Precision) -> Iterator[None]:
    """Passes of the model in this precision; an objective raises logits to float32 before any loss."""
    if chosen == "bfloat16":
        with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield
    elif chosen == "tf32":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    else:
        yield


def probe(
    objective: Objective,
    space: Space,
    directions: Sequence[Direction],
    *,
    extent: float,
    tried: Precision | None = None,
) -> Probed:
    """Try the device's reduced precision (or ``tried``) at the centre and each corner of a line or plane.

    It is chosen only if, everywhere, it moves the mean loss by less than a quarter of the paired standard error of the
    rise, in float32, at that corner (at the centre: of the nearest corner's).
    """
    tried = fastest(objective.device) if tried is None else tried
    if tried == "float32":
        return Probed(precision="float32", tried=None, largest_change_nats=0.0, allowed_nats=0.0)
    corners = list(itertools.product((-extent, extent), repeat=len(directions)))
    with space:
        follow(space.batch_norm, objective)
        centre = objective.evaluate()
        with precision(space.model, tried):
            at_centre = abs(objective.evaluate().mean_loss - centre.mean_loss)
        changes, errors = [], []
        for corner in corners:
            space.move(directions, corner)
            follow(space.batch_norm, objective)
            exact = objective.evaluate()
            with precision(space.model, tried):
                changes.append(abs(objective.evaluate().mean_loss - exact.mean_loss))
            errors.append(exact.rise_over(centre)[1])
    limits = [ALLOWED * min(errors), *(ALLOWED * error for error in errors)]
    found = [at_centre, *changes]
    passed = all(change < limit for change, limit in zip(found, limits, strict=True))  # NaN does not pass
    nearest = max(range(len(found)), key=lambda i: found[i] / limits[i] if limits[i] > 0 else float("inf"))
    return Probed(
        precision=tried if passed else "float32",
        tried=tried,
        largest_change_nats=max(found),
        allowed_nats=limits[nearest],
    )
