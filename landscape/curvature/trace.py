"""The trace of a curvature operator from random probes, by Hutchinson's estimate and Hutch++, with standard errors.

Each stops when its standard error is small enough or its budget of products ends. Looking at the error again and again
makes it a little optimistic; each looks first after ``LEAST`` probes. XTrace is in ``leave_one_out``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from landscape.curvature.basis import Basis, inner, memory_for, noise, random_vector
from landscape.curvature.operator import Operator
from landscape.errors import LandscapeError
from landscape.estimate import Estimate, Status

LEAST = 8
# Probes multiplied at once: where graphs are not kept, they share a pass over the data.
_TOGETHER = 4


def hutchinson(operator: Operator, *, tolerance: float = 0.05, max_products: int = 200, seed: int = 0) -> Estimate:
    """Mean of z' A z over vectors z of random signs (Hutchinson 1990): exact for a diagonal matrix.

    Parameters
    ----------
    operator
        Opened here where it is not yet.
    tolerance
        Stops at a standard error of this share of the value.
    max_products
        Stops at the latest here; at least 8.
    seed
        Of the probes.
    """
    check(tolerance, max_products, LEAST)
    before = dict(operator.cost)
    with operator, torch.no_grad():
        samples = _until(operator, None, 0.0, tolerance, max_products, seed)
    return estimate(operator, "hutchinson", samples, _error(samples), tolerance, before, {"seed": seed})


def hutch_pp(
    operator: Operator,
    *,
    tolerance: float = 0.05,
    max_products: int = 200,
    seed: int = 0,
    sketch: int = 16,
    memory_bytes: int | None = None,
) -> Estimate:
    """The trace on the span Q of A S exactly, and Hutchinson's estimate of the rest (Meyer et al. 2021, algorithm 1).

    Departures: the sketch has a fixed size instead of a third of the budget, the rest of which is spent until the
    standard error is reached; ``draws`` are the trace on Q plus each sample of the rest.

    Parameters
    ----------
    operator, tolerance, max_products, seed
        As for :func:`hutchinson`; the budget is at least 8 more than twice the sketch.
    sketch
        Columns of S; each costs two products and a vector in memory.
    memory_bytes
        For Q; fewer columns are taken where it allows no more. None as for :func:`.memory_for`.
    """
    check(tolerance, max_products, LEAST + 2 * sketch)
    before = dict(operator.cost)
    with operator, torch.no_grad():
        basis = Basis(operator, memory_for(operator, min(sketch, operator.size), memory_bytes, least=1))
        for start in range(0, basis.capacity, _TOGETHER):
            columns = range(start, min(start + _TOGETHER, basis.capacity))
            # another seed than that of the probes of the rest, which must not depend on Q
            drawn = torch.stack([random_vector(operator, ~seed, index, signs=True) for index in columns])
            images = operator.products(drawn)
            if not bool(images.isfinite().all()):
                return estimate(operator, "hutch_pp", [math.nan], math.nan, tolerance, before, {"seed": seed})
            basis.append(images, noise(operator) * float(images.norm(dim=1).max()))
        # tr(Q' A Q)
        found = sum(float(inner(q[None], operator.product(q)[None])[0, 0]) for q in basis.vectors)
        budget = max_products - round(operator.spent(before)["products"])
        samples = _until(operator, basis, found, tolerance, budget, seed)
    details = {"seed": seed, "sketch": basis.size, "trace_on_sketch": found}
    return estimate(operator, "hutch_pp", samples, _error(samples), tolerance, before, details)


def _until(
    operator: Operator, basis: Basis | None, found: float, tolerance: float, budget: int, seed: int
) -> list[float]:
    """Samples ``found`` + z' A z, z random signs outside the basis, until their standard error is reached."""
    samples: list[float] = []
    while len(samples) < budget and not (len(samples) >= LEAST and reached(samples, _error(samples), tolerance)):
        indices = range(len(samples), min(len(samples) + _TOGETHER, budget))
        z = torch.stack([random_vector(operator, seed, index, signs=True) for index in indices])
        if basis is not None:
            inside = torch.from_numpy(inner(basis.vectors, z).T.copy()).to(z)
            z.addmm_(inside, basis.vectors, alpha=-1)
        images = operator.products(z)
        samples += [found + float(inner(a[None], b[None])[0, 0]) for a, b in zip(z, images, strict=True)]
    return samples


def reached(samples: Sequence[float], error: float, tolerance: float) -> bool:
    """Whether there is nothing to gain: the standard error is small enough, or the value is not finite."""
    return not math.isfinite(sum(samples)) or error <= tolerance * abs(float(np.mean(samples)))


def _error(samples: Sequence[float]) -> float:
    return float(np.std(samples, ddof=1) / math.sqrt(len(samples)))


def check(tolerance: float, max_products: int, least: int) -> None:
    """Refuse a tolerance that is not positive, and a budget below the least that a method needs.

    Raises
    ------
    LandscapeError
        With what was found.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise LandscapeError(f"expected a positive finite tolerance, found {tolerance}")
    if max_products < least:
        raise LandscapeError(f"expected max_products of at least {least}, found {max_products}")


def estimate(
    operator: Operator,
    method: str,
    samples: Sequence[float],
    error: float,
    tolerance: float,
    before: Mapping[str, float],
    details: Mapping[str, Any],
) -> Estimate:
    """The result of a method, whose mean over samples is the value."""
    value = float(np.mean(samples))
    state: Status = "converged" if reached(samples, error, tolerance) else "budget"
    finite = math.isfinite(value)
    return Estimate(
        measure=f"{operator.name}_trace",
        value=value,
        unit="nats",
        se=error if finite else math.nan,
        error_over="probes",
        status=state if finite else "diverged",
        cost=operator.spent(before),
        details={**operator.describe(), "method": method, "probes": len(samples), "tolerance": tolerance, **details},
        draws=tuple(samples),
    )
