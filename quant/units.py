"""Hidden units that repeat one another: a unit is a row of the down matrix (h, d_in) and a column of the up matrix.

Two units are compared by the cosine of their weights, of codes of one bit by the agreement of their codes a, which
is a cosine too: 2a - 1. Either sign counts: a unit and its opposite depend on each other as equals do. What cosine
says something is fixed by the null at the same size: independent directions, or independent fair bits.

Of a method that is linear between its matrices (LoRA) units are no property of the function: an invertible matrix may
stand between the factors. Its product's spectrum is one (:mod:`quant.spectra`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from quant.errors import QuantError

SIDES = ("down", "up", "both")


@dataclass(frozen=True, kw_only=True, eq=False)
class Likeness:
    """How alike the units of one pair of matrices are.

    Attributes
    ----------
    cosines
        (h, h) float64; 2a - 1 of an agreement a. 0 beside a unit without weights.
    size
        Weights that a cosine is over, as the null counts them.
    null
        ``bits``: agreements of independent fair bits, binomial. ``directions``: cosines of independent directions
        that are uniform, as those of i.i.d. normal weights are; nearly, of other laws.
    """

    cosines: np.ndarray
    size: float
    null: Literal["bits", "directions"]

    @property
    def pairs(self) -> np.ndarray:
        """The cosine of each pair of units, (h (h - 1) / 2,)."""
        return self.cosines[np.triu_indices(len(self.cosines), 1)]

    def threshold(self, alpha: float = 0.05) -> float:
        """The absolute cosine that no pair reaches under the null but with probability alpha: Bonferroni over pairs.

        Above 1 where the size is too small for any cosine to say so.
        """
        tail = alpha / max(self.pairs.size, 1) / 2  # both signs
        if self.null == "bits":
            # the least k with P(K >= k) <= tail, K ~ B(n, 1/2); isf gives the least k with P(K > k) <= tail
            return 2 * (float(stats.binom.isf(tail, int(self.size), 0.5)) + 1) / self.size - 1
        if self.size <= 1:
            return math.nextafter(1, 2)
        half = (self.size - 1) / 2
        # (1 + c) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)
        return 2 * float(stats.beta.isf(tail, half, half)) - 1

    def null_shares(self, edges: np.ndarray) -> np.ndarray:
        """Probability under the null of a cosine in each bin [edge, next edge), the last closed."""
        if self.null == "bits":
            # P(C < e) = P(K < n (1 + e) / 2)
            below = stats.binom.cdf(np.ceil(self.size * (1 + edges) / 2 - 1e-9) - 1, int(self.size), 0.5)
        else:
            half = max(self.size - 1, 1e-9) / 2
            below = stats.beta.cdf((1 + edges) / 2, half, half)
        below[-1] = 1.0 if edges[-1] >= 1 else below[-1]
        return np.diff(below)

    def groups(self, cosine: float) -> np.ndarray:
        """A label for each unit, (h,): within a group every two have at least this absolute cosine.

        Complete linkage: a chain of like units is no group, as its ends are not alike.
        """
        h = len(self.cosines)
        if h < 2:
            return np.ones(h, dtype=int)
        distance = np.maximum(1 - np.abs(self.pairs), 0)
        return fcluster(linkage(distance, "complete"), max(1 - cosine, 0) + 1e-12, "distance")


def likeness(down: Tensor, up: Tensor, side: str = "both", *, bits: bool = False) -> Likeness:
    """How alike units are by their rows of ``down`` (h, d_in), their columns of ``up`` (d_out, h), or both.

    Of both, the mean of the two cosines, and of codes the agreement over all: rescaling a unit (one half up, the other
    down) changes nothing. ``bits``: the two hold codes of one bit, 0 and 1.

    Raises
    ------
    QuantError
        If the two do not fit, or codes of one bit are not.
    """
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or side not in SIDES:
        raise QuantError(
            f"expected (h, d_in) and (d_out, h), and {', '.join(SIDES)}; found {tuple(down.shape)}, {tuple(up.shape)}, "
            f"{side}"
        )
    if bits and (int(down.max()) > 1 or int(up.max()) > 1):
        raise QuantError("expected codes of one bit, found higher ones")
    halves = {"down": [down], "up": [up.T], "both": [down, up.T]}[side]
    rows = [(2.0 * w.double() - 1 if bits else w.double()).detach().cpu() for w in halves]
    sizes = [w.shape[1] for w in rows]
    if bits:
        # agreement over all places: the mean of the halves weighted by their sizes
        cosines = torch.stack([w @ w.T for w in rows]).sum(dim=0) / sum(sizes)
        return Likeness(cosines=cosines.numpy(), size=sum(sizes), null="bits")
    normed = [torch.nn.functional.normalize(w, dim=1) for w in rows]
    cosines = torch.stack([w @ w.T for w in normed]).mean(dim=0)
    # Var c = 1 / d of each half, so that of the mean of k is sum(1 / d) / k^2: a cosine in k^2 / sum(1 / d) dimensions
    size = len(sizes) ** 2 / sum(1 / d for d in sizes)
    return Likeness(cosines=cosines.clamp(-1, 1).numpy(), size=size, null="directions")


def count_units(found: Likeness, *, alpha: float = 0.05, same: float = 0.9) -> dict[str, float]:
    """Pairs of units that depend on each other and that are the same, and how many units that leaves.

    Returns
    -------
    dict
        ``units``; ``pairs``; ``threshold`` (absolute cosine, by the null); ``dependent_pairs`` at or above it, of which
        ``opposite_pairs`` with a negative cosine; ``distinct_units``, groups of dependent units; ``same_pairs`` at or
        above ``same`` and the threshold, and the ``different_units`` that they leave; ``median`` and ``largest``
        absolute cosine.
    """
    c = np.abs(found.pairs)
    threshold = found.threshold(alpha)
    near = max(threshold, same)
    dependent = c >= threshold - 1e-12
    return {
        "units": len(found.cosines),
        "pairs": c.size,
        "threshold": threshold,
        "dependent_pairs": int(dependent.sum()),
        "opposite_pairs": int((dependent & (found.pairs < 0)).sum()),
        "distinct_units": int(found.groups(threshold).max()),
        "same_pairs": int((c >= near - 1e-12).sum()),
        "different_units": int(found.groups(near).max()),
        "median": float(np.median(c)) if c.size else math.nan,
        "largest": float(c.max()) if c.size else math.nan,
    }
