"""Products with the Hessian by central differences of gradients: for models that have no second derivative."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from landscape.curvature.operator import ModelOperator
from landscape.errors import LandscapeError
from landscape.gradient import gradient
from landscape.objective import Objective
from landscape.space import Space


class CentralDifference(ModelOperator):
    """v -> (g(w + h v) - g(w - h v)) / 2h, two gradients a product; every point is written from the saved weights.

    It is not exact: too large a step sees higher derivatives and the kinks of a ReLU, too small a one sees rounding of
    the gradients. Fused kernels stay in use, nothing is kept in memory.

    Parameters
    ----------
    objective, space, surrogate
        As for :class:`landscape.curvature.hessian.Hessian`.
    step
        ||h v|| over ||w||, the norm of the space's weights; None takes the cube root of the dtype's epsilon, which
        balances the two errors where third derivatives are of the size of the gradient.

    Attributes
    ----------
    relative_error
        ||difference at h - difference at 2h|| over the norm of the first, of the first product (four gradients). It is
        three times the error where higher derivatives dominate, and about twice the error at 2h where rounding does.

    Raises
    ------
    LandscapeError
        For a step that is not positive and finite.
    """

    name = "central_difference"

    def __init__(
        self, objective: Objective, space: Space, *, step: float | None = None, surrogate: bool = False
    ) -> None:
        super().__init__(objective, space, surrogate=surrogate)
        if step is not None and not (math.isfinite(step) and step > 0):
            raise LandscapeError(f"expected a positive finite step, found {step}")
        epsilon = max(torch.finfo(p.dtype).eps for p in space.parameters.values())
        self.step = epsilon ** (1 / 3) if step is None else step
        self.relative_error = math.nan

    def describe(self) -> dict[str, Any]:
        """As the base class, with the step and the error of the first product."""
        return {**super().describe(), "step": self.step, "relative_error": self.relative_error}

    def _products(self, vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        for row, v in zip(found, vectors, strict=True):
            if not v.any():
                continue
            row += self._difference(v, self.step)
            if math.isnan(self.relative_error):
                # compared where the step is doubled rather than halved: a smaller one may only see rounding
                wider = self._difference(v, 2 * self.step)
                self.relative_error = float((wider - row).norm() / row.norm()) if row.any() else 0.0
        return found

    def _difference(self, v: Tensor, step: float) -> Tensor:
        direction = self.direction(v, "product")
        h = step * (self.space.norm() or 1.0) / direction.norm
        try:
            ahead, behind = (self._gradient_at(direction, c) for c in (h, -h))
        finally:
            self.space.move(direction, 0.0)
        # H v = (g(w + h v) - g(w - h v)) / 2h + O(h^2)
        return (ahead - behind) / (2 * h)

    def _gradient_at(self, direction: Any, coefficient: float) -> Tensor:
        self.space.move(direction, coefficient)
        self.cost["gradients"] += 1
        return self.flatten(gradient(self.objective, self.space)[1])
