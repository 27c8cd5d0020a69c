"""The best K values for the weights themselves: k-means and k-medians in one dimension, by dynamic programming.

Sorted weights fall into K runs, each with its mean or median as value: D_j(i) = min_t D_{j-1}(t) + cost(t, i), and the
best t grows with i (the cost is Monge), so each layer is solved by halving the range of t, all middles of one depth at
once. Runs may end at 2,048 places: with no more weights than that the optimum is exact. Of more weights the places are
evenly spaced ranks, and the runs found are improved by Lloyd's two steps until neither changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from quant.codebooks import Norm
from quant.quantizers.base import LAWS, Quantizer

_PLACES = 2048
_PAIRS = 512
_ROUNDS = 2000
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Clustered(Quantizer):
    """Each group has its own 2^b values, which are stored. A weight takes the nearest."""

    norm: ClassVar[Norm]

    @property
    def laws(self) -> frozenset[str]:
        """All of them."""
        return frozenset(LAWS)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The whole codebook."""
        return ("value",) * self.levels

    def measure(self, x: Tensor) -> Tensor:
        """The values, ascending; with fewer distinct weights than values the largest is repeated."""
        values = [best_values(row, self.levels, self.norm) for row in x.cpu().double().numpy()]
        return torch.from_numpy(np.stack(values, axis=1)).to(x)

    def encode(self, x: Tensor, table: Tensor) -> Tensor:
        """The nearest value; half way between two the lower."""
        values = table[:, :, 0].T.contiguous()
        low, high = values[:, :-1], values[:, 1:]
        # below the higher one even where nothing lies between them, so that each value has its own code
        between = torch.minimum(low + (high - low) / 2, torch.nextafter(high, low))
        return torch.searchsorted(between, x.contiguous(), out_int32=True).to(torch.uint8)

    def decode(self, codes: Tensor, table: Tensor) -> Tensor:
        """The value itself."""
        return table[:, :, 0].T.gather(1, codes.long())

    def backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> Tensor:
        """The plain gradient: what a weight adds to its value c it takes from w - c, whose rounding counts as constant.

        value_i = c_k + (w_i - c_k) - const (w_i - c_k), c_k the mean or median of the run that i is in: dL/dw_j = g_j.
        """
        return grad

    def refuse(self, table: Tensor) -> str:
        """Values ascend."""
        return "ascending" if (table.diff(dim=0) < 0).any() else ""


def best_values(w: np.ndarray, k: int, norm: Norm) -> np.ndarray:
    """The k values (k,) of least sum |w - q| (l1) or (w - q)^2 (l2), ascending; NaN if a weight is not finite."""
    if not np.isfinite(w).all():
        return np.full(k, np.nan)
    x = np.sort(w)
    distinct = np.unique(x)
    if distinct.size <= k:
        return np.concatenate([distinct, np.full(k - distinct.size, distinct[-1])])
    runs = Runs(x, norm)
    places = _places(x, norm)
    ends = _cuts(places, k, runs.cost)
    values = runs.values(ends)
    return values if places.size == x.size + 1 else _lloyd(runs, values)


class Runs:
    """Costs and values of runs x[t:i] of sorted weights."""

    def __init__(self, x: np.ndarray, norm: Norm) -> None:
        self.x, self.norm = x, norm
        self.centre = x[x.size // 2]  # keeps the partial sums small
        y = x - self.centre
        self.sums = np.concatenate([[0.0], np.cumsum(y)])
        self.squares = np.concatenate([[0.0], np.cumsum(y * y)])

    def cost(self, t: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Sum of distances to the median, or of squares about the mean."""
        if self.norm == "l1":
            lower, upper = (t + i) // 2, (t + i + 1) // 2
            total = (self.sums[i] - self.sums[upper]) - (self.sums[lower] - self.sums[t])
        else:
            total = self.squares[i] - self.squares[t] - (self.sums[i] - self.sums[t]) ** 2 / np.maximum(i - t, 1)
        return np.maximum(total, 0.0)

    def values(self, ends: np.ndarray) -> np.ndarray:
        """Mean or median of each run between neighbouring ends; NaN of an empty one."""
        t, i = ends[:-1], ends[1:]
        with np.errstate(invalid="ignore"):
            if self.norm == "l2":
                found = self.centre + (self.sums[i] - self.sums[t]) / (i - t)
            else:
                found = (self.x[np.minimum((t + i - 1) // 2, self.x.size - 1)] + self.x[(t + i) // 2 - (t == i)]) / 2
        return np.where(i > t, found, np.nan)


def _places(x: np.ndarray, norm: Norm) -> np.ndarray:
    """Where runs may end: everywhere if few enough, else denser where the best values will be, as from 0 to n."""
    if x.size <= _PLACES:
        return np.arange(x.size + 1)
    # Panter and Dite: the best values have the density p^(1/2) (l1) or p^(1/3) (l2); between neighbours p is 1 / gap.
    grown = np.cumsum(np.diff(x) ** (1 / 2 if norm == "l1" else 2 / 3))
    inner = 1 + np.searchsorted(grown, np.linspace(0, grown[-1], _PLACES)[1:-1])
    return np.unique(np.concatenate([[0], inner, [x.size]]))


def _cuts(places: np.ndarray, k: int, cost: Cost) -> np.ndarray:
    """Ends (k + 1,) of the k runs of least cost that end at these places, from 0."""
    best = cost(np.zeros_like(places), places)
    halving = partial(layer, cost=lambda t, i: cost(places[t], places[i]))
    step = _all_pairs(places, cost) if places.size <= _PAIRS else halving
    choices = []
    for _ in range(k - 1):
        best, choice = step(best)
        choices.append(choice)
    at = places.size - 1
    ends = [at]
    for choice in reversed(choices):
        at = int(choice[at])
        ends.append(at)
    return places[np.array([0, *reversed(ends)])]


def _all_pairs(places: np.ndarray, cost: Cost) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """``layer`` by looking at every pair: of few places the quicker way."""
    t, i = np.meshgrid(places, places, indexing="ij")
    costs = np.where(t <= i, cost(t, np.maximum(t, i)), np.inf)

    def step(before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total = before[:, None] + costs
        choice = total.argmin(axis=0)
        return total[choice, np.arange(places.size)], choice

    return step


def layer(before: np.ndarray, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """D_j and its best t from D_{j-1}, all (n + 1,)."""
    n = before.size - 1
    after, choice = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    stride = 1 << n.bit_length()
    while stride > 1:
        half = stride // 2
        i = np.arange(half, n + 1, stride)
        right = i + half  # solved a depth before, or beyond the end
        low, high = choice[i - half], np.where(right <= n, choice[np.minimum(right, n)], n)
        high = np.minimum(high, i)
        lengths = high - low + 1
        starts = np.cumsum(lengths) - lengths
        t = np.arange(lengths.sum()) + np.repeat(low - starts, lengths)
        total = before[t] + cost(t, np.repeat(i, lengths))
        after[i] = np.minimum.reduceat(total, starts)
        first = np.flatnonzero(total == np.repeat(after[i], lengths))
        choice[i] = t[first[np.searchsorted(first, starts)]]
        stride = half
    return after, choice


def _lloyd(runs: Runs, values: np.ndarray) -> np.ndarray:
    """Nearest value for each weight, mean or median of each run, in turn: neither step raises the error."""
    ends = np.array([0, *np.zeros(values.size - 1, dtype=np.int64), runs.x.size])
    for _ in range(_ROUNDS):
        cut = np.searchsorted(runs.x, (values[:-1] + values[1:]) / 2, side="right")
        if np.array_equal(cut, ends[1:-1]):
            break
        ends[1:-1] = cut
        moved = runs.values(ends)
        values = np.where(np.isnan(moved), values, moved)
    return values
