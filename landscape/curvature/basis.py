"""Orthonormal bases of flat vectors: inner products summed in float64, Gram-Schmidt twice, a relative breakdown test.

P entries, m vectors in the basis, B new ones. A basis is a tensor (m, P) in the operator's dtype; what is small, such
as (m, B), is float64 on the processor.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.curvature.operator import Operator
from landscape.errors import LandscapeError

Floats = NDArray[np.float64]
# Entries that an inner product sums in the vectors' dtype before it goes on in float64.
_CHUNK = 1 << 18
# Bytes for a basis where the caller names none.
MEMORY = 2 << 30
# Roundings below which a rest is noise, and the space invariant.
_NOISE = 100


def random_vector(operator: Operator, seed: int, index: int, *, signs: bool = False) -> Tensor:
    """Standard normal (or random signs) (P,), of (seed, index), the same on every device."""
    digest = hashlib.sha256(f"{seed}\0probe\0{index}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if signs:
        drawn = torch.randint(2, (operator.size,), generator=generator, dtype=torch.int8, device="cpu")
        drawn = drawn.float().mul_(2).sub_(1)
    else:
        drawn = torch.randn(operator.size, generator=generator, dtype=torch.float32, device="cpu")
    return drawn.to(operator.device, operator.dtype)


def inner(a: Tensor, b: Tensor) -> Floats:
    """Inner products of the rows of (m, P) and (B, P), (m, B)."""
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device="cpu")
    for start in range(0, a.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        found += (a[:, part] @ b[:, part].T).cpu().double()
    return found.numpy()


def combined(weights: Floats, vectors: Tensor) -> Tensor:
    """Combinations (B, P) of vectors (m, P) by weights (B, m)."""
    return torch.from_numpy(np.ascontiguousarray(weights)).to(vectors) @ vectors


def norm(vector: Tensor) -> float:
    """Euclidean norm of (P,)."""
    return float(inner(vector[None], vector[None])[0, 0]) ** 0.5


def noise(operator: Operator) -> float:
    """Share of a vector's length below which what is left of it after a subtraction is rounding."""
    return _NOISE * torch.finfo(operator.dtype).eps


def memory_for(operator: Operator, vectors: int, memory_bytes: int | None, least: int) -> int:
    """How many of the wanted vectors fit into the memory allowed; None allows 2 GiB, or what the least need if more.

    Raises
    ------
    LandscapeError
        If the memory given is for fewer than the least that the method needs.
    """
    each = operator.size * torch.finfo(operator.dtype).bits // 8
    least = min(least, vectors)
    fit = min(vectors, (max(MEMORY, least * each) if memory_bytes is None else memory_bytes) // each)
    if fit < least:
        raise LandscapeError(
            f"expected memory_bytes of at least {least * each:,} for {least} vectors, found {memory_bytes:,}"
        )
    return int(fit)


class Basis:
    """Orthonormal vectors, at most ``capacity`` of them.

    Attributes
    ----------
    size
        How many there are, m.
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        self._all = torch.empty(capacity, operator.size, dtype=operator.dtype, device=operator.device)
        self._noise = noise(operator)
        self.size = 0

    @property
    def vectors(self) -> Tensor:
        """The vectors, (m, P), a view."""
        return self._all[: self.size]

    @property
    def capacity(self) -> int:
        """How many vectors there may be."""
        return len(self._all)

    @torch.no_grad()
    def append(self, new: Tensor, negligible: float = 0.0) -> tuple[Floats, Floats]:
        """Add the rows of W = ``new`` (B, P), which is overwritten, as far as they are independent.

        Parameters
        ----------
        new
            Finite vectors.
        negligible
            Length of a rest that is left out; at least the noise in what it is left of.

        Returns
        -------
        tuple of ndarray
            C (m, B) and R (B, B), upper triangular, with W' = V' C + Q' R for the old vectors V and the new Q. A row of
            zeros in R stands for a rest that was left out, for which no vector was added.
        """
        before = [norm(w) for w in new]
        old = np.zeros((self.size, len(new)))
        for _ in range(2):  # once leaves what rounding of the first subtraction left; twice is enough (Giraud 2005)
            old += self._subtract(self.vectors, new)
        among = np.zeros((len(new), len(new)))
        added: list[int] = []
        for j, w in enumerate(new):
            mine = self._all[self.size : self.size + len(added)]
            for _ in range(2):
                among[added, j] += self._subtract(mine, w[None])[:, 0]
            length = norm(w)
            if length <= max(self._noise * before[j], negligible):
                continue
            among[j, j] = length
            w /= length
            # What was small before it was divided has its rounding errors magnified with it.
            self._subtract(self._all[: self.size + len(added)], w[None])
            self._all[self.size + len(added)] = w / norm(w)
            added.append(j)
        self.size += len(added)
        return old, among

    @torch.no_grad()
    def rotate(self, columns: Floats) -> None:
        """Replace the vectors V by S' V for orthonormal columns S (m, p), in place."""
        turn = torch.from_numpy(np.ascontiguousarray(columns.T)).to(self._all)
        for start in range(0, self._all.shape[1], _CHUNK):
            part = slice(start, start + _CHUNK)
            self._all[: len(turn), part] = turn @ self._all[: self.size, part]
        self.size = len(turn)

    def _subtract(self, vectors: Tensor, new: Tensor) -> Floats:
        # W <- W - (W V') V; returns V W', (m, B)
        found = inner(vectors, new)
        if len(vectors):
            new.addmm_(torch.from_numpy(found.T).to(new), vectors, alpha=-1)
        return found
