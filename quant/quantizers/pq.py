"""Product quantisation: a code for four weights at a time, b / 4 bits a weight; the codebook is stored."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from quant.quantizers.base import Quantizer

LENGTH = 4
_CHUNK = 1 << 12  # sub-vectors compared with the whole codebook at a time
_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Pq(Quantizer):
    """Runs of 4 entries along the row take the nearest of 2^b vectors found by k-means (k-means++ start, seed 0).

    The runs are those of the flattened tensor: along the rows where these are a multiple of 4 long. A tensor of fewer
    than 2^b runs has a vector for each of them. What is missing in the last run counts for nothing.
    """

    kind = "pq"
    scoped = False
    elementwise = False
    trains = False
    source = "Jegou et al. 2011; Stock et al. 2020"
    formula = "c_k for 4 weights at a time, 2^b vectors"

    @property
    def laws(self) -> frozenset[str]:
        """Not monotone: a code belongs to several weights. Nearest as a vector."""
        return frozenset({"identity", "nearest", "scale", "shift", "falls"})

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The vectors, one after the other."""
        return ("value",)

    def statistics_count(self, shape: tuple[int, ...]) -> int:
        """Four values for each vector."""
        return LENGTH * min(self.levels, *self.codes_shape(shape))

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A code a run."""
        return (-(-math.prod(shape) // LENGTH),)

    def measure(self, x: Tensor) -> Tensor:
        """The vectors, sorted."""
        runs, _ = _runs(x.cpu().double())
        whole = runs[: x.shape[1] // LENGTH] if x.shape[1] >= LENGTH else runs
        k = min(self.levels, len(runs))
        if not torch.isfinite(whole).all():
            return x.new_full((k * LENGTH, 1), math.nan)
        distinct = np.unique(whole.numpy(), axis=0)
        if len(distinct) <= k:
            found = np.concatenate([distinct, np.repeat(distinct[-1:], k - len(distinct), axis=0)])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a vector that lost its last run stays where it was
                found, _ = kmeans2(whole.numpy(), k, iter=_ROUNDS, minit="++", rng=np.random.default_rng(0))
            found = found[np.lexsort(found.T[::-1])]
        return torch.from_numpy(found).to(x).reshape(-1, 1)

    def encode(self, x: Tensor, table: Tensor) -> Tensor:
        """The nearest vector, of several the first."""
        runs, there = _runs(x)
        vectors = table.view(-1, LENGTH)
        parts = [
            ((part[:, None] - vectors).square() * held[:, None]).sum(dim=2).argmin(dim=1)
            for part, held in zip(runs.split(_CHUNK), there.split(_CHUNK), strict=True)
        ]
        return torch.cat(parts).to(torch.uint8)[None]

    def decode(self, codes: Tensor, table: Tensor) -> Tensor:
        """The vectors, one after the other; the caller cuts off what the last has too many."""
        return table.view(-1, LENGTH)[codes.flatten().long()].reshape(1, -1)


def _runs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Runs (R, 4) of one group (1, n), zeros after the last, and 1 where there is an entry."""
    missing = -x.shape[1] % LENGTH
    held = torch.nn.functional.pad(torch.ones_like(x), (0, missing))
    return torch.nn.functional.pad(x, (0, missing)).view(-1, LENGTH), held.view(-1, LENGTH)


QUANTIZER = Pq
