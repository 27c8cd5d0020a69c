"""Eigenvalues at a named end of a curvature operator, with measured residuals. P parameters, k pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.curvature.basis import Floats, memory_for
from landscape.curvature.deflation import left_out, steps_after
from landscape.curvature.lanczos import End, Lanczos, best_within
from landscape.curvature.operator import Operator
from landscape.errors import LandscapeError, nearest
from landscape.estimate import Estimate, Status

if TYPE_CHECKING:
    import pandas as pd

ENDS = {
    "largest": "largest algebraic",
    "smallest": "smallest algebraic",
    "magnitude": "largest in magnitude",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigen:
    """Eigenpairs at one end of the spectrum, the outermost first.

    Attributes
    ----------
    values
        (k,) float64, Rayleigh quotients of the vectors.
    vectors
        (k, P), orthonormal, in the operator's dtype and on its device.
    residuals
        (k,) ||A v - lambda v|| in the unit of the values, measured with one more product for each of one or two
        vectors; of more by the recurrence, with its error on a product of all of them together added
        (:meth:`.Lanczos.measure`).
    converged
        (k,) whether the residual is at most ``tolerance`` * ``scale``.
    end
        ``largest`` and ``smallest`` algebraic, or largest ``magnitude``.
    tolerance, scale
        As asked for, and the largest magnitude of any Ritz value, an estimate of the operator's norm.
    iterations, products
        Blocks multiplied, and vectors.
    status
        ``converged``, ``budget`` or ``diverged``, as in :data:`landscape.estimate.MEANING`; ``budget`` too where it did
        not last to look for pairs that were left out.
    """

    values: Floats
    vectors: Tensor
    residuals: Floats
    converged: np.ndarray
    end: End
    tolerance: float
    scale: float
    iterations: int
    products: int
    status: Status
    cost: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def estimates(self) -> list[Estimate]:
        """One an eigenvalue, named by its end but for the largest; the cost is that of all together."""
        name = str(self.details["operator"]) + ("" if self.end == "largest" else f"_{self.end}")
        states: list[Status] = [
            self.status if self.status == "diverged" or self.converged.all() else "converged" if c else "budget"
            for c in self.converged
        ]
        return [
            Estimate(
                measure=f"{name}_eigenvalue_{rank}",
                value=float(value),
                unit="nats",
                status=state,
                residual=float(residual),
                cost=self.cost,
                details={**self.details, "rank": rank},
            )
            for rank, (value, residual, state) in enumerate(zip(self.values, self.residuals, states, strict=True), 1)
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row an eigenvalue: rank, end, value, residual, converged."""
        import pandas as pd

        return pd.DataFrame(
            {
                "rank": np.arange(1, len(self.values) + 1),
                "end": self.end,
                "eigenvalue_nats": self.values,
                "residual_nats": self.residuals,
                "converged": self.converged,
            }
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{v:.4g}" for v in self.values[:5]) + (", ..." if len(self.values) > 5 else "")
        return f"Eigen({ENDS[self.end]}: {values}; {self.status} after {self.products} products)"


def top_eigenvalues(
    operator: Operator,
    k: int = 5,
    *,
    end: End = "largest",
    tolerance: float = 1e-3,
    max_products: int = 300,
    seed: int = 0,
    block: int = 1,
    memory_bytes: int | None = None,
) -> Eigen:
    """The k outermost eigenvalues at one end, with vectors and measured residuals.

    Parameters
    ----------
    operator
        Opened here where it is not yet.
    k
        How many; 1 to P.
    end
        ``largest`` and ``smallest`` are algebraic: the most positive and the most negative curvature.
    tolerance
        A pair is converged when its residual is at most this times the largest magnitude of all Ritz values; there is
        then an eigenvalue within the residual of the value.
    max_products
        The budget, with the products that measure the residuals.
    seed
        Of the start block and of what replaces a direction after a breakdown.
    block
        Vectors multiplied at once, B. One Krylov space holds one vector of a multiple eigenvalue, a block holds B of
        them; what it leaves out is looked for from another start, with a quarter to three quarters as many products
        again (``check_products`` of the details).
    memory_bytes
        For the basis, which is restarted when it is full. None as for :func:`.memory_for`.

    Settings outside their range, and memory for fewer vectors than the method needs, are a ``LandscapeError``.
    """
    _check(operator, k, end, tolerance, max_products, block)
    before = dict(operator.cost)
    with operator, torch.no_grad():
        capacity = memory_for(operator, min(operator.size, max_products + block), memory_bytes, least=2 * k + 2 * block)
        search = Lanczos(operator, k, end, tolerance, seed, block, capacity)
        promise = 0.9 * tolerance
        while True:
            state = search.run(promise, max_products - (k if k <= 2 else 1))
            values, vectors, residuals = search.measure(max_products)
            worst = float(residuals.max()) / (search.scale or 1.0)
            enough = state != "converged" or worst <= tolerance or search.complete
            if enough or search.products + block + k > max_products:
                break
            # What the recurrence promised did not hold in a true product; it is asked for that much more.
            promise *= 0.5 * tolerance / worst
        search.let_go()
        products, checked, added = search.products, 0, 0
        steps, complete = steps_after(products), search.exhaustive
        while state == "converged" and not complete and products + steps[0] + k + 2 <= max_products:
            better, taken = left_out(
                operator, values, vectors, end=end, within=tolerance * search.scale, steps=steps,
                budget=max_products - products - k - 1, seed=seed + 1 + added, memory_bytes=memory_bytes,
            )  # fmt: skip
            products, checked = products + taken, checked + taken
            complete = better is None
            if better is not None:
                values, vectors, residuals = best_within(operator, torch.cat([vectors, better]), k, end)
                products, added = products + k + 1, added + 1
    converged = residuals <= tolerance * search.scale
    if state != "diverged":
        state = "converged" if converged.all() and complete else "budget"
    cost = operator.spent(before)
    return Eigen(
        values=values,
        vectors=vectors,
        residuals=residuals,
        converged=converged,
        end=end,
        tolerance=tolerance,
        scale=search.scale,
        iterations=search.iterations,
        products=products,
        status=state,
        cost=cost,
        details={
            **operator.describe(), "end": end, "tolerance": tolerance, "scale": search.scale, "seed": seed,
            "block": block, "iterations": search.iterations, "restarts": search.restarts,
            "breakdowns": search.breakdowns, "check_products": checked, "added_by_check": added,
        },
    )  # fmt: skip


def _check(operator: Operator, k: int, end: str, tolerance: float, max_products: int, block: int) -> None:
    if end not in ENDS:
        raise LandscapeError(f"expected end to be one of {', '.join(ENDS)}, found {end!r}{nearest(end, ENDS)}")
    if not 1 <= k <= operator.size:
        raise LandscapeError(f"expected from 1 to {operator.size} eigenvalues, found {k}")
    if block < 1 or not (math.isfinite(tolerance) and tolerance > 0):
        raise LandscapeError(f"expected a block of at least 1 and a positive tolerance, found {block} and {tolerance}")
    if max_products < 2 * k + block:
        raise LandscapeError(f"expected max_products of at least {2 * k + block} for k={k}, found {max_products}")
