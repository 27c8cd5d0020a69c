"""Curvature along given directions: how sharply the loss bends on the lines that a landscape is drawn on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from landscape.curvature.basis import inner
from landscape.curvature.operator import ModelOperator
from landscape.directions import Direction, draw
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.normalisation import Normalisation

_TOGETHER = 4


def along(
    operator: ModelOperator,
    directions: Sequence[Direction] | int = 10,
    *,
    per: Literal["alpha", "norm"] = "alpha",
    seed: int = 0,
    normalisation: Normalisation | None = None,
) -> Estimate:
    """Mean over directions of d' A d, the second derivative of the loss by alpha on the line w + alpha d.

    Parameters
    ----------
    operator
        Opened here where it is not yet.
    directions
        Directions of the operator's space, or how many to draw, seeds ``seed``, ``seed + 1``, ...
    per
        ``alpha``: d' A d, for filter-normalised directions comparable between models as their surfaces are; ``norm``:
        the Rayleigh quotient d' A d / d' d, between the smallest and the largest eigenvalue.
    seed, normalisation
        Of directions that are drawn, as in :func:`landscape.directions.draw`.

    Raises
    ------
    LandscapeError
        If there is no direction, or ``per`` is neither of the two.
    """
    if per not in ("alpha", "norm"):
        raise LandscapeError(f"expected per='alpha' or per='norm', found {per!r}")
    if isinstance(directions, int):
        chosen = [draw(operator.space, seed + i, normalisation) for i in range(directions)]
    else:
        chosen = list(directions)
    if not chosen:
        raise LandscapeError("expected at least one direction, found none")
    before, curvatures, lengths = dict(operator.cost), [], []
    with operator, torch.no_grad():
        for start in range(0, len(chosen), _TOGETHER):
            vectors = torch.stack([operator.flatten(d) for d in chosen[start : start + _TOGETHER]])
            images = operator.products(vectors)
            curvatures += np.diag(inner(vectors, images)).tolist()
            lengths += np.diag(inner(vectors, vectors)).tolist()
    draws = curvatures if per == "alpha" else [c / d for c, d in zip(curvatures, lengths, strict=True)]
    value = float(np.mean(draws))
    several = len(draws) > 1 and math.isfinite(value)
    return Estimate(
        measure="directional_curvature" if per == "alpha" else "rayleigh_quotient",
        value=value,
        unit="nats",
        se=float(np.std(draws, ddof=1) / math.sqrt(len(draws))) if several else math.nan,
        error_over="directions" if len(draws) > 1 else "",
        status="exact" if math.isfinite(value) else "diverged",
        cost=operator.spent(before),
        details={
            **operator.describe(),
            "per": per,
            "directions": [d.describe() for d in chosen],
        },
        draws=tuple(draws),
    )
