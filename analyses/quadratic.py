"""The second-order model of a loss, g'e + e'He/2, beside the loss itself, for a move e of several tensors.

Tensor by tensor (one moved, the others still) and for all of them together. g is the gradient at the centre of a space,
H its Hessian or Gauss-Newton matrix; both, and the loss after the move, are of the same samples, so that what differs
is the model's error and no chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from analyses.rounding import evaluate

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from landscape.curvature.operator import ModelOperator
    from landscape.evaluation import Evaluation
    from landscape.objective import Objective
    from landscape.space import Space

TOLERANCE, ERRORS = 0.5, 2.0
_TOGETHER = 4


def slopes(gradient: Mapping[str, Tensor], e: Mapping[str, Tensor]) -> dict[str, float]:
    """The slope g'e of each tensor."""
    return {name: float((gradient[name].double() * x.double()).sum()) for name, x in e.items()}


def curvatures(operator: ModelOperator, e: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
    """The curvature e'Ae of each tensor's part of e, the rest zero, and of all of e; the operator is open.

    One product a tensor: those of the parts sum to that of the whole.
    """
    import torch

    each: dict[str, float] = {}
    total = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
    names = list(e)
    for start in range(0, len(names), _TOGETHER):
        chosen = names[start : start + _TOGETHER]
        vectors = torch.stack([operator.flatten({name: e[name]}) for name in chosen])
        images = operator.products(vectors)
        each |= dict(zip(chosen, (vectors.double() * images.double()).sum(dim=1).tolist(), strict=True))
        total += images.double().sum(dim=0)
    return each, float(operator.flatten(e).double() @ total)


def changes(
    objective: Objective,
    space: Space,
    values: Mapping[str, Tensor],
    centre: Evaluation,
    on_step: Callable[[], Any] = lambda: None,
) -> tuple[dict[str, np.ndarray], Evaluation]:
    """Change of the loss of each sample, (N,), with one tensor at its value; and the evaluation with all of them."""
    single = {}
    for name, x in values.items():
        single[name] = evaluate(objective, space, {name: x}).loss - centre.loss
        on_step()
    return single, evaluate(objective, space, values)


def mean_and_error(change: np.ndarray) -> tuple[float, float]:
    """Mean of paired differences (N,) and its standard error over samples; NaN for one sample."""
    several = len(change) > 1
    return float(change.mean()), float(change.std(ddof=1) / math.sqrt(len(change))) if several else math.nan


def verdict(predicted: float, measured: float, error: float) -> str:
    """What the model is worth here, by a rule that was fixed before anything was measured.

    ``agrees``: within 50 % of the measured change. ``fails``: further off, and by more than twice the paired standard
    error of the measured change, or one of the two is not finite. ``within error``: further off, yet by no more.
    """
    gap = abs(predicted - measured)
    if gap <= TOLERANCE * abs(measured) and math.isfinite(gap):
        return "agrees"
    return "within error" if gap <= ERRORS * error else "fails"
