"""The spectral density of a curvature operator by stochastic Lanczos quadrature, with a band over probes.

Golub and Welsch's nodes and weights of each probe (Ubaru, Chen and Saad 2017), drawn with a Gaussian kernel whose width
is a share of the spectrum's range. P parameters, m probes, G points of the drawn density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.special import stdtrit

from landscape.curvature.basis import Basis, Floats, memory_for, noise, random_vector
from landscape.curvature.operator import Operator
from landscape.errors import LandscapeError
from landscape.estimate import Estimate, Status

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEVEL = 0.95
_POINTS_A_WIDTH = 4
_TAIL = 4  # widths of the kernel beyond the outermost node


@dataclass(frozen=True, kw_only=True, eq=False)
class Density:
    """How the eigenvalues are spread: shares of the P of them, summing to 1.

    Attributes
    ----------
    nodes, weights
        Of each probe, float64; a probe's weights sum to 1. Fewer than ``steps`` where its Krylov space ended before.
    eigenvalues
        (G,) where the density is drawn.
    density, low, high
        (G,) mean over probes, and its 95 % interval by Student's t, cut at 0.
    width
        Standard deviation of the kernel.
    size
        P.
    status
        ``converged`` (the steps asked for were made) or ``diverged``.
    """

    nodes: tuple[Floats, ...]
    weights: tuple[Floats, ...]
    eigenvalues: Floats
    density: Floats
    low: Floats
    high: Floats
    width: float
    size: int
    status: Status
    cost: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def moment(self, power: int) -> Estimate:
        """Mean of the eigenvalues' powers, with its standard error over probes: trace / P, ||A||_F^2 / P, ..."""
        draws = [float((w * x**power).sum()) for x, w in zip(self.nodes, self.weights, strict=True)]
        return Estimate(
            measure=f"{self.details['operator']}_moment_{power}",
            value=float(np.mean(draws)),
            unit="nats" if power == 1 else f"nats^{power}",
            se=float(np.std(draws, ddof=1) / math.sqrt(len(draws))),
            error_over="probes",
            status=self.status,
            cost=self.cost,
            details=self.details,
            draws=tuple(draws),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a point: eigenvalue, density, low, high."""
        import pandas as pd

        columns = {"eigenvalue_nats": self.eigenvalues, "density": self.density, "low": self.low, "high": self.high}
        return pd.DataFrame(columns)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw as the paper's figure does; returns the axes."""
        from figures import density

        return density.plot(self.to_frame(), ax)

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False, max_rows=20)

    def __repr__(self) -> str:
        ends = f"from {self.eigenvalues[0]:.4g} to {self.eigenvalues[-1]:.4g} nats"
        return f"Density({self.details['operator']}, P={self.size:,}, {len(self.nodes)} probes, {ends}, {self.status})"


def spectral_density(
    operator: Operator,
    *,
    probes: int = 4,
    steps: int = 24,
    width: float = 0.01,
    seed: int = 0,
    memory_bytes: int | None = None,
) -> Density:
    """Spread of the eigenvalues, from ``probes`` times ``steps`` products.

    Parameters
    ----------
    operator
        Opened here where it is not yet.
    probes
        Random starting vectors, at least 2: the band is over them.
    steps
        Lanczos steps a probe, with full re-orthogonalisation; moments up to the power 2 * steps - 1 are unbiased.
    width
        Standard deviation of the kernel over the range of all nodes.
    seed
        Of the probes.
    memory_bytes
        For the bases, ``steps + 1`` vectors each. Probes go side by side as far as it allows, which saves passes over
        the data where graphs are not kept. None as for :func:`.memory_for`: one basis at least.

    Raises
    ------
    LandscapeError
        For settings outside their range, or memory for less than one basis.
    """
    if probes < 2 or steps < 1:
        raise LandscapeError(f"expected at least 2 probes and 1 step, found {probes} and {steps}")
    if not 0 < width < 1:
        raise LandscapeError(f"expected a width above 0 and below 1, a share of the range, found {width}")
    before = dict(operator.cost)
    steps = min(steps, operator.size)
    with operator, torch.no_grad():
        together = memory_for(operator, probes * (steps + 1), memory_bytes, least=steps + 1) // (steps + 1)
        rules: list[tuple[Floats, Floats]] = []
        for start in range(0, probes, together):
            group = range(start, min(start + together, probes))
            starts = [random_vector(operator, seed, index, signs=True) for index in group]
            rules += _quadratures(operator, starts, steps)
    nodes, weights = tuple(x for x, _ in rules), tuple(w for _, w in rules)
    details = {**operator.describe(), "probes": probes, "steps": steps, "width": width, "seed": seed}
    drawn, sigma = np.full((4, 1), math.nan), math.nan
    if np.isfinite(np.concatenate(nodes)).all():
        drawn, sigma = _drawn(nodes, weights, width, noise(operator))
    return Density(
        nodes=nodes,
        weights=weights,
        eigenvalues=drawn[0],
        density=drawn[1],
        low=drawn[2],
        high=drawn[3],
        width=sigma,
        size=operator.size,
        status="converged" if math.isfinite(sigma) else "diverged",
        cost=operator.spent(before),
        details=details,
    )


def _quadratures(operator: Operator, starts: list[torch.Tensor], steps: int) -> list[tuple[Floats, Floats]]:
    """Nodes and weights of each start vector, advanced side by side."""
    bases = [Basis(operator, steps + 1) for _ in starts]
    diagonals: list[list[float]] = [[] for _ in starts]
    beside: list[list[float]] = [[] for _ in starts]
    for basis, start in zip(bases, starts, strict=True):
        basis.append(start[None])
    for _ in range(steps):
        # a basis that did not grow spans an invariant space: its rule is exact
        going = [i for i, basis in enumerate(bases) if basis.size > len(diagonals[i])]
        if not going:
            break
        images = operator.products(torch.stack([bases[i].vectors[-1] for i in going]))
        if not bool(images.isfinite().all()):
            return [(np.array([math.nan]), np.array([math.nan]))] * len(starts)
        for i, image in zip(going, images, strict=True):
            negligible = noise(operator) * max(map(abs, [*diagonals[i], *beside[i]]), default=0.0)
            inside, leaving = bases[i].append(image[None], negligible)
            diagonals[i].append(float(inside[-1, 0]))
            beside[i].append(float(leaving[0, 0]))
    return [_rule(np.array(a), np.array(b[: len(a) - 1])) for a, b in zip(diagonals, beside, strict=True)]


def _rule(diagonal: Floats, beside: Floats) -> tuple[Floats, Floats]:
    # The nodes are the eigenvalues of T, the weights the squared first entries of its eigenvectors.
    nodes, vectors = eigh_tridiagonal(diagonal, beside)
    weights = vectors[0] ** 2
    return nodes, weights / weights.sum()


def _drawn(
    nodes: tuple[Floats, ...], weights: tuple[Floats, ...], width: float, negligible: float
) -> tuple[Floats, float]:
    """Eigenvalue, density, low and high, (4, G), and the kernel's standard deviation."""
    everywhere = np.concatenate(nodes)
    low, high = float(everywhere.min()), float(everywhere.max())
    # a multiple of the identity has no range but that of rounding
    scale = max(abs(low), abs(high))
    sigma = width * (high - low if high - low > negligible * scale else scale or 1.0)
    count = math.ceil(((high - low) / sigma + 2 * _TAIL) * _POINTS_A_WIDTH) + 1
    at = np.linspace(low - _TAIL * sigma, high + _TAIL * sigma, count)
    # density(x) = sum_i w_i N(x; node_i, sigma)
    heights = [np.exp(-(((at[:, None] - x) / sigma) ** 2) / 2) @ w for x, w in zip(nodes, weights, strict=True)]
    each = np.stack(heights) / (sigma * math.sqrt(2 * math.pi))
    mean = each.mean(axis=0)
    half = stdtrit(len(each) - 1, 0.5 + LEVEL / 2) * each.std(axis=0, ddof=1) / math.sqrt(len(each))
    return np.stack([at, mean, np.maximum(mean - half, 0.0), mean + half]), sigma
